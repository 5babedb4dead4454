"""Selection of the records, tables and numbers of a paper that count."""

import pandas as pd

from kdcore.errors import KdcoreError
from kdcore.report import statistics
from kdcore.validation import DOUBTFUL

SCALES = ("protocol", "short", "scaled", "demo")  # of budgets, the closest to the paper first
COMPARED = ("protocol", "short")  # where numbers are compared with the paper's


def current(paper, records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Split records into (current, stale); stale ones no longer match the paper's sheet or code."""

    def asked_for(record: dict) -> bool:
        try:
            return paper.trial(record["budget"], record["arm"], record["seed"]).id == record["id"]
        except KdcoreError:  # an arm or budget that no longer exists
            return False

    kept: tuple[list[dict], list[dict]] = ([], [])
    for record in records:
        kept[0 if asked_for(record) else 1].append(record)
    return kept


def results(paper, records: list[dict], budget: str) -> list[dict]:
    """The records for a table of ``budget``: current and done, ordered by the sheet's arms, then by seed."""
    paper.budget(budget)  # raises for an unknown budget
    order = {arm: number for number, arm in enumerate(paper.arms)}
    known, _ = current(paper, [record for record in records if record["budget"] == budget])
    return sorted((r for r in known if r["status"] == "done"), key=lambda record: (order[record["arm"]], record["seed"]))


def budgets(paper, records: list[dict]) -> list[str]:
    """The budgets that have results, in the order of the sheet."""
    return [budget for budget in paper.budgets if results(paper, records, budget)]


def closest_first(paper, budgets) -> list[str]:
    """Budgets in the order of their scales; of two with the same scale, the later one in the sheet first."""
    order = list(paper.budgets)
    return sorted(budgets, key=lambda name: (SCALES.index(paper.budget(name)["scale"]), -order.index(name)))


def overlap(paper, budget: str, arms, repetitions: int | None = None) -> float:
    """The correction for test sets that overlap (``statistics.resampling_overlap``) of values that are means over ``repetitions`` of
    them, by default those of a trial; the largest, if the arms differ. 0 unless the sheet has ``resampled``."""
    named = paper.sheet.get("resampled")
    configs = [paper.config(budget, arm) for arm in arms] if named else []
    found = [statistics.resampling_overlap(repetitions or each[named["repetitions"]], each[named["share"]]) for each in configs]
    return max(found, default=0.0)


def samples(paper, budget: str, records: list[dict], *sides: dict) -> tuple[list[dict[tuple[int, int], float]], float]:
    """What a test of ``sides`` (as in the sheet, none a constant) works with, and its ``overlap``.

    For each side {(seed, test set): mean of the metric over its arms}, for the seeds that have all arms: one value for each test set if
    the sheet has ``resampled`` and all records hold them, else one for each seed.
    """
    asked = [(record, side["metric"]) for side in sides for record in records if record["arm"] in side["arms"]]
    single = bool(asked) and all(_test_sets(paper, record, metric) for record, metric in asked)
    found = []
    for side in sides:
        values: dict[tuple[int, int], list[float]] = {}
        for record in records:
            if record["arm"] in side["arms"]:
                mean = measured(record, side["metric"])
                for number, value in enumerate(_test_sets(paper, record, side["metric"]) if single else [mean]):
                    values.setdefault((record["seed"], number), []).append(value)
        found.append({key: sum(each) / len(each) for key, each in values.items() if len(each) == len(side["arms"])})
    return found, overlap(paper, budget, {record["arm"] for record, _ in asked}, 1 if single else None)


def _test_sets(paper, record: dict, metric: str) -> list[float]:
    """A record's values of a metric on each random test set; [] if it holds none. Raises KdcoreError for one that is no number."""
    held = record["metrics"].get(paper.sheet["resampled"]["values"]) if "resampled" in paper.sheet else None
    values = held.get(metric) if isinstance(held, dict) else None
    if not isinstance(values, list):
        return []
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise KdcoreError(
            f"the record {record['id']} of {record['paper']} has a test set without a number '{metric}': delete it, and run it again"
        )
    return values


def by_arm(records: list[dict]) -> dict[str, list[dict]]:
    """{arm: its records}, in order of appearance."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["arm"], []).append(record)
    return groups


def rows(frame: pd.DataFrame) -> list[dict]:
    """The rows of a frame as dicts. Without its ``attrs``, which pandas would copy for each column of each row."""
    about, frame.attrs = frame.attrs, {}
    try:
        return frame.to_dict("records")
    finally:
        frame.attrs = about


def table_of(paper, table: dict | str) -> dict:
    """A table of the paper's sheet, given by its id or itself. Raises KdcoreError for an unknown id."""
    if isinstance(table, dict):
        return table
    for each in paper.tables:
        if each["id"] == table:
            return each
    raise KdcoreError(f"{paper.key} has no table '{table}': choose one of {', '.join(t['id'] for t in paper.tables)}")


def tables_of(paper, budget: str) -> list[dict]:
    """The paper's tables with at least one row that ``budget`` runs."""
    arms = set(paper.budget_arms(budget))
    return [table for table in paper.tables if any(row["arm"] in arms for row in table["rows"])]


def measured(record: dict, metric: str) -> float:
    """A record's metric. Raises KdcoreError if the record has no such number."""
    value = record["metrics"].get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KdcoreError(
            f"the records of {record['paper']} / {record['arm']} have no number '{metric}': correct it in {record['paper']}/sheet.yaml"
        )
    return value


def by_seed(records: list[dict], side: dict) -> dict[int, float]:
    """{seed: mean of the metric over the side's arms} for the seeds that have all arms. side: as in the sheet, not a constant."""
    values: dict[int, list[float]] = {}
    for record in records:
        if record["arm"] in side["arms"]:
            values.setdefault(record["seed"], []).append(measured(record, side["metric"]))
    return {seed: sum(each) / len(each) for seed, each in values.items() if len(each) == len(side["arms"])}


def doubt(row: dict) -> str:
    """The mark of a row's reported number if it is one of ``DOUBTFUL``, else ""."""
    return row["mark"] if row.get("mark") in DOUBTFUL else ""


def ran_on(record: dict) -> str:
    """The name of the processor, or GPU, that a trial ran on."""
    device, where = record["cost"]["device"], record["environment"]
    return device if device == where.get("gpu") else where.get("processor") or device


def mixed_processors(record: dict, records: dict[str, dict]) -> str:
    """ "teacher on A, student on B" if teacher and student of a record ran on different processors, else "".

    records: the paper's records by id. Arms are comparable seed by seed only on the same processor: another one rounds
    differently, which training amplifies as much as a change of the seed.
    """
    teacher = record["environment"].get("teacher_processor")
    if teacher is None and record["teacher"] in records:
        teacher = ran_on(records[record["teacher"]])
    return "" if teacher in (None, ran_on(record)) else f"teacher on {teacher}, student on {ran_on(record)}"


def mixed_seeds(row: dict) -> list[int]:
    """The seeds of a row (of a table or the claims) whose student and teacher ran on different processors."""
    return row["mixed"] if "mixed" in row else [each["seed"] for each in row["seeds"] if each["mixed"]]
