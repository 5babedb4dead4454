"""Records on disk: one JSON file per trial, written atomically, and a lease that keeps two runners from the same trial."""

import fcntl
import functools
import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.papers.spec import Trial

KEYS = (
    "id", "paper", "arm", "budget", "seed", "status", "config", "metrics", "history", "cost", "environment", "data",
    "teacher", "version",
)  # fmt: skip
CURE = "restore it from git, or delete it and run its trial again"


class Busy(Exception):
    """Another process holds the lease."""


class Store:
    """Records in ``results/records/PAPER/ID.json``; those of budget smoke in ``results/smoke/records``."""

    def __init__(self, results: Path | str = "results"):
        self.results = Path(results)

    def root(self, budget: str) -> Path:
        """The folder for a budget's records, tables and notebooks; smoke has its own, which git ignores."""
        return self.results / "smoke" if budget == "smoke" else self.results

    def path(self, trial: Trial) -> Path:
        return self.root(trial.budget) / "records" / trial.paper / f"{trial.id}.json"

    def get(self, trial: Trial) -> dict | None:
        """The record of a trial, or None. Raises KdcoreError for a damaged one."""
        path = self.path(trial)
        return read(path) if path.exists() else None

    def put(self, record: dict) -> None:
        """Write a record atomically. Raises KdcoreError if it is not valid or cannot be written."""
        text = dumps(record)
        record = loads(text.encode(), "the new record")
        folder = self.root(record["budget"]) / "records" / record["paper"]
        paths.write_text(folder / f"{record['id']}.json", text)

    def records(self, paper: str, budget: str | None = None) -> list[dict]:
        """All records of a paper (at one budget), including failures, ordered by budget, arm and seed."""
        roots = {self.root(budget)} if budget else {self.root(""), self.root("smoke")}
        records = [read(path) for root in roots for path in sorted((root / "records" / paper).glob("*.json"))]
        records = [record for record in records if budget in (None, record["budget"])]
        return sorted(records, key=order)

    def lease(self, trial: Trial):
        """Hold the trial's lease while a block runs. Raises Busy if another process holds it."""
        return lease(self.path(trial).with_suffix(".lease"), str(trial))


@contextmanager
def lease(path: Path, what: str):
    """Hold the lock file ``path`` while the block runs. Raises Busy(what) if another process holds it.

    The lock is the kernel's (flock) and ends with its process, however that dies: no heartbeats, clocks or stale leases.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if isinstance(error, BlockingIOError):
                    raise Busy(what) from None
                raise
            # the previous holder may have removed the file between our open and our lock: then lock the new one
            if _same_file(handle, path):
                break
            os.close(handle)
    except OSError as error:
        raise KdcoreError(f"cannot write {path} ({error.strerror}): {paths.cure(error)} and run the same command again") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def order(record: dict) -> tuple:
    """The sort key of records: budget, arm, seed."""
    return record["budget"], record["arm"], record["seed"], record["id"]


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def dumps(record: dict) -> str:
    """The text of a record's file: one top-level key per line, for readable diffs; last, a digest of everything before it."""
    lines = [f"{json.dumps(key)}: {json.dumps(record[key], sort_keys=True)},\n" for key in sorted(record, key=_place)]
    body = "{\n" + "".join(lines)
    return body + _seal(body.encode()).decode()


def _place(key: str) -> int:
    return KEYS.index(key) if key in KEYS else len(KEYS)


def _seal(body: bytes) -> bytes:
    return b'"digest": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


SEAL = len(_seal(b""))


def read(path: Path) -> dict:
    """Read and check one record. Raises KdcoreError that names the file."""
    try:
        content = paths.regular(path).read_bytes()
    except OSError as error:
        raise KdcoreError(f"the record {path} cannot be read ({error.strerror}): {CURE}") from error
    record = loads(content, f"the record {path}")
    if record["id"] != path.stem:
        raise KdcoreError(f"the record {path} has the id {record['id']}: {CURE}")
    return record


def loads(content: bytes, where: str) -> dict:
    """Parse a record's file. Checks its digest, keys and numbers, that its id matches its contents, and, if pydantic is installed
    (which training does not need), its types. Raises KdcoreError with a message that begins with ``where``."""

    def refuse(what) -> KdcoreError:
        return KdcoreError(f"{where} is not valid ({what}): {CURE}")

    if content[-SEAL:] != _seal(content[:-SEAL]):
        raise KdcoreError(f"{where} is damaged (its contents do not match the digest in its last line): {CURE}")
    try:
        record = json.loads(content.decode(), object_pairs_hook=_once)
        del record["digest"]
        _check_values(record)
    except (ValueError, RecursionError) as error:
        raise refuse(error) from error
    if set(record) != set(KEYS):
        raise refuse(f"its keys must be exactly {', '.join(KEYS)}")
    if (complaint := _schema()) and (what := complaint(record)):
        raise refuse(what)
    try:
        fields = {key: record[key] for key in ("paper", "arm", "budget", "seed", "config", "teacher", "version")}
        expected = Trial(**fields, data=record["data"]["fingerprint"]).id
    except (KeyError, TypeError) as error:
        raise refuse("its data has no fingerprint") from error
    if expected != record["id"]:
        raise refuse(f"its contents have the id {expected}, not {record['id']}")
    return record


def _once(pairs: list[tuple]) -> dict:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' occurs twice")
    "".join(mapping).encode()  # a UnicodeEncodeError is a ValueError
    return mapping


@functools.cache
def _schema():
    try:
        from kdcore.trials.schema import complaint
    except ModuleNotFoundError:
        return None
    return complaint


def _check_values(value: dict | list, depth: int = 0) -> None:
    """Raises ValueError, with the place, for values that readers could not use: numbers that are not finite, integers of more than
    64 bits, text that is not Unicode, and excessive nesting."""
    if depth > 20:  # records have 7
        raise ValueError("... is nested too deeply")
    for key, item in value.items() if type(value) is dict else enumerate(value):
        kind, wrong = type(item), None
        if kind is float:
            wrong = not -FINITE <= item <= FINITE and "not a finite number"
        elif kind is int:
            wrong = not -(2**63) <= item < 2**63 and "an integer of more than 64 bits"
        elif kind is str:
            wrong = not item.isascii() and item.encode(errors="replace").decode() != item and "not Unicode"
        elif kind is dict or kind is list:
            try:
                _check_values(item, depth + 1)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        if wrong:
            raise ValueError(f"{key} is {wrong}")


FINITE = sys.float_info.max
