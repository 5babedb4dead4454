"""``results/records.csv``: every current record of all papers as a row, for anybody's own analysis."""

import csv
import io
from collections.abc import Callable
from typing import Any

from kdcore.report import select, words
from kdcore.report.evidence import Evidence

COLUMNS: dict[str, tuple[str, Callable[[Any, dict], Any]]] = {  # meaning, and the value of (paper, record)
    "paper": ("key of the paper", lambda paper, record: record["paper"]),
    "arm": ("how the model was trained", lambda paper, record: record["arm"]),
    "budget": ("how much of the paper's protocol was run", lambda paper, record: record["budget"]),
    "scale": (
        "how close that is to the paper: `protocol` (its own), `short` (trained for less) or `scaled` (smaller networks or less data)",
        lambda paper, record: paper.budget(record["budget"])["scale"],
    ),
    "seed": ("seed of initial weights, batches and random test sets", lambda paper, record: record["seed"]),
    "status": (
        "`done`, or `failed` and how: a failed trial has no metrics",
        lambda paper, record: "done" if record["status"] == "done" else f"failed: {record['status']}",
    ),
    "id": ("the trial's id: its record is `records/PAPER/ID.json`", lambda paper, record: record["id"]),
    "teacher": ("id of the teacher's trial; empty without a teacher", lambda paper, record: record["teacher"]),
    "seconds": ("wall time", lambda paper, record: record["cost"]["seconds"]),
    "cpu_seconds": ("CPU time over all threads", lambda paper, record: record["cost"].get("cpu_seconds")),
    "peak_memory_mb": ("peak memory in MiB", lambda paper, record: record["cost"].get("peak_memory_mb")),
    "device": ("the GPU or processor that trained", lambda paper, record: record["cost"]["device"]),
    "processor": ("the machine's processor", lambda paper, record: record["environment"].get("processor")),
    "threads": ("threads of PyTorch", lambda paper, record: record["environment"].get("threads")),
    "precision": ("precision of matrix products in training", lambda paper, record: record["environment"].get("precision")),
    "torch": ("version of PyTorch", lambda paper, record: record["environment"].get("torch")),
    "commit": (
        "git commit of the code; with `+` there were uncommitted changes",
        lambda paper, record: record["environment"].get("commit"),
    ),
}


def to_csv(everything: list[Evidence]) -> str:
    """One row for each current record, done or failed, except smoke; ordered by paper, budget, arm and seed.

    The columns are ``COLUMNS``, then those of ``metrics``, sorted. A cell without a value is empty. Floats have as many digits as it takes
    to read the same number again.
    """
    rows, known = [], metrics(everything)
    for evidence in everything:
        for record in committed(evidence):
            row = {name: value(evidence.paper, record) for name, (_, value) in COLUMNS.items()}
            own = record["metrics"] if record["status"] == "done" else {}
            rows.append(row | {column(name): value for name, value in own.items() if _is_scalar(value)})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header := [*COLUMNS, *sorted(column(name) for name in known)])
    writer.writerows([_cell(row.get(name)) for name in header] for row in rows)
    return out.getvalue()


def metrics(everything: list[Evidence]) -> dict[str, dict[str, list[str]]]:
    """{metric: {its meaning: the papers that have it}} for all metrics in the rows, sorted by name.

    Numbers, texts and truth values have a column; lists and tables of numbers are only in the records.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for evidence in everything:
        mine = {
            name
            for record in committed(evidence)
            if record["status"] == "done"
            for name, value in record["metrics"].items()
            if _is_scalar(value)
        }
        for name in sorted(mine):
            meanings = found.setdefault(name, {})
            meanings.setdefault(evidence.paper.module.METRICS.get(name, ""), []).append(evidence.paper.key)
    return dict(sorted(found.items()))


def column(metric: str) -> str:
    """The column of a metric: its name, with ``metric_`` before it if that is another column's."""
    return f"metric_{metric}" if metric in COLUMNS else metric


def committed(evidence: Evidence) -> list[dict]:
    """The current records of a paper, except smoke, which git ignores."""
    known, _ = select.current(evidence.paper, [record for record in evidence.records if record["budget"] != "smoke"])
    return known


def _is_scalar(value) -> bool:
    return isinstance(value, str | int | float)


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value + 0.0)  # no sign on a zero
    return words.plain(value)
