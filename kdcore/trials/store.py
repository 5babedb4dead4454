"""Records on disk: one atomic JSON file a trial, and a lease that keeps two runners off one trial."""

import fcntl
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.trials.spec import Trial

KEYS = (
    "id", "paper", "arm", "budget", "seed", "status", "config", "metrics", "history", "cost", "environment", "data",
    "teacher", "version",
)  # fmt: skip
STATUSES = ("done", "nan", "oom", "timeout", "killed", "error")


class Busy(Exception):
    """Another runner holds the lease of this trial."""


class Store:
    """Records under ``results/records/PAPER/ID.json``; those of budget smoke under ``results/smoke/records``."""

    def __init__(self, results: Path | str = "results"):
        self.results = Path(results)

    def root(self, budget: str) -> Path:
        """Where a budget's records, tables and notebooks go: smoke has a folder of its own that git ignores."""
        return self.results / "smoke" if budget == "smoke" else self.results

    def path(self, trial: Trial) -> Path:
        return self.root(trial.budget) / "records" / trial.paper / f"{trial.id}.json"

    def get(self, trial: Trial) -> dict | None:
        """The record of a trial, or None. Raises KdcoreError for a damaged one."""
        path = self.path(trial)
        return read(path) if path.exists() else None

    def put(self, record: dict) -> None:
        """Write a record atomically. Raises KdcoreError where it cannot be written or lacks a key."""
        validate(record, "the new record")
        folder = self.root(record["budget"]) / "records" / record["paper"]
        paths.write_text(folder / f"{record['id']}.json", dumps(record))

    def records(self, paper: str, budget: str | None = None) -> list[dict]:
        """All records of a paper (of one budget), failures included, in the order of arm and seed."""
        roots = {self.root(budget)} if budget else {self.root(""), self.root("smoke")}
        found = [read(path) for root in roots for path in sorted((root / "records" / paper).glob("*.json"))]
        found = [record for record in found if budget in (None, record["budget"])]
        return sorted(found, key=lambda record: (record["budget"], record["arm"], record["seed"], record["id"]))

    @contextmanager
    def lease(self, trial: Trial):
        """Hold the trial while the block runs. Raises Busy where another process holds it.

        The lock is the kernel's (flock), so that it ends with its process however that dies: there is no heartbeat to
        miss, no clock to compare and no stale lease to break.
        """
        path = self.path(trial).with_suffix(".lease")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    raise Busy(str(trial)) from None
                # the holder before us may have removed the file between our open and our lock: then lock the new one
                if _same_file(handle, path):
                    break
                os.close(handle)
        except OSError as error:
            raise KdcoreError(f"cannot write {path.parent} ({error.strerror}): make it writable, or pass another --results") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def dumps(record: dict) -> str:
    """The JSON of a record: one top-level key a line, so that a diff of two records can be read."""
    lines = [f"{json.dumps(key)}: {json.dumps(record[key], sort_keys=True, allow_nan=False)}" for key in KEYS]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> dict:
    """Read and validate one record. Raises KdcoreError that names the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdcoreError(f"the record {path} is damaged ({error}): restore it from git, or delete it and run its trial again") from error
    validate(record, str(path))
    if record["id"] != path.stem:
        raise KdcoreError(f"the record {path} says that it is {record['id']}: restore it from git, or delete it and run its trial again")
    return record


def validate(record: dict, where: str) -> None:
    """Check a record's keys, status, id and numbers. Raises KdcoreError."""

    def bad(what: str):
        raise KdcoreError(f"{where} is not a valid record ({what}): restore it from git, or delete it and run its trial again")

    if not isinstance(record, dict) or set(record) != set(KEYS):
        bad(f"its keys must be exactly {', '.join(KEYS)}")
    if record["status"] not in STATUSES:
        bad(f"status '{record['status']}'")
    fields = {key: record[key] for key in ("paper", "arm", "budget", "seed", "config", "teacher", "version")}
    try:
        expected = Trial(**fields, data=record["data"]["fingerprint"]).id
    except (KeyError, TypeError):
        bad("its data has no fingerprint")
    if expected != record["id"]:
        bad(f"its contents have the id {expected}, not {record['id']}")
    if not set(record["cost"]) >= {"seconds", "peak_memory_mb", "device"}:
        bad("cost lacks seconds, peak_memory_mb or device")
    if record["status"] == "done":
        numbers = [value for value in record["metrics"].values() if isinstance(value, int | float)]
        if not numbers or not all(math.isfinite(number) for number in numbers):
            bad("its metrics are missing or not finite")
