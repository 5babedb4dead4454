"""Tables that join records and reported numbers.

A table is a DataFrame with the numbers of a single budget; its ``attrs`` hold title, source, budget, device and hours.
"""

import math
import re

import pandas as pd

from kdcore import validation
from kdcore.report import select, statistics, words

# What a row with a reported number can have. The first six are verdicts; the others say why there is none: "interim" (fewer seeds than
# planned), "shorter run" (at scale short only agreement counts), "scaled down", "demo", "unverified" (a number that nobody could verify).
# Rows without a number to compare with have "no number" (in the paper), or "quoted" (from others' work, or on data that are not public).
VERDICTS = (
    "reproduced", "better", "worse", "higher", "lower", "undecided", "interim", "shorter run", "scaled down", "demo", "unverified",
    "not run",
)  # fmt: skip


def table(paper, table: dict | str, records: list[dict], budget: str) -> pd.DataFrame:
    """A table of the paper at one budget, with one row for each of the sheet's.

    table: an entry of ``paper.tables``, or its id. records: any of the paper's; those of other budgets, and failed or stale ones,
    are ignored. Columns: label, arm, metric, mark; paper (the reported number, or nan), std (its standard deviation, if a row
    of the sheet has one), reference (the number reported by the table's ``reference``, if it has one), ours (mean over seeds),
    low, high (95 % t-interval), n, planned (the seeds that the sheet asks for), difference (ours - paper; nan where nothing is
    compared), margin, all in ``unit``; better ("lower", "higher" or ""); verdict (one of ``VERDICTS``, "no number" or "quoted"); hours
    (wall time of the trials, one process each) and cpu_hours (CPU time over all threads, nan if a record has none); device; seeds
    ([{seed, value, id (of the record), seconds, cpu_seconds (or None), mixed (``select.mixed_processors``)}]).
    A row with neither a reported number nor an arm of the budget is left out.
    Raises KdcoreError for an unknown table, budget or metric.
    """
    sheet = select.table_of(paper, table)
    done, by_id = select.results(paper, records, budget), {record["id"]: record for record in records}
    of_arm = select.by_arm(done)
    scale = paper.budget(budget)["scale"]
    runs, rows = {None, *paper.budget_arms(budget)}, []
    shown = [row for row in sheet["rows"] if row["paper"] is not None or row["arm"] in runs] or sheet["rows"]
    for row in shown:
        mine = of_arm.get(row["arm"], [])
        values = [select.measured(record, row["metric"]) for record in mine]
        overlap = select.overlap(paper, budget, [row["arm"]]) if mine else 0.0
        mean, low, high = statistics.mean_interval(values, overlap=overlap)
        planned = paper.seeds(budget, row["arm"]) if row["arm"] in runs and row["arm"] is not None else 0
        rows.append(
            {
                "label": row["label"],
                "paper": as_float(row["paper"]),
                **({"reference": as_float(row.get("reference"))} if "reference" in sheet else {}),
                "ours": mean,
                "low": low,
                "high": high,
                "n": len(values),
                "planned": planned,
                "difference": mean - as_float(row["paper"]) if scale in select.COMPARED else math.nan,
                "margin": as_float(row["margin"]),
                "better": row["better"] or "",
                "verdict": _verdict(row, values, planned, scale, overlap),
                "unit": row["unit"],
                "hours": wall_hours(mine),
                "cpu_hours": _cpu_hours(mine),
                "device": devices(mine),
                "arm": row["arm"] or "",
                "metric": row["metric"],
                "mark": row.get("mark", ""),
                "seeds": [
                    {
                        "seed": record["seed"],
                        "value": value,
                        "id": record["id"],
                        "seconds": record["cost"]["seconds"],
                        "cpu_seconds": record["cost"].get("cpu_seconds"),
                        "mixed": select.mixed_processors(record, by_id),
                    }
                    for record, value in zip(mine, values, strict=True)
                ],
            }
        )
    frame = pd.DataFrame(rows)
    if any("std" in row for row in shown):
        frame.insert(2, "std", [as_float(row.get("std")) for row in shown])
    arms = set(frame["arm"])
    frame.attrs = about(paper, budget, [record for record in done if record["arm"] in arms]) | {
        "kind": "table",
        "id": sheet["id"],
        "title": sheet["title"],
        "number": sheet.get("number"),
        "source": sheet["source"],
        "reference": sheet.get("reference"),
    }
    return frame


def budget_table(paper, budget: str) -> pd.DataFrame:
    """The changes of ``budget`` from budget "paper": parameter, paper (its value there), here, arms (in words).

    One row for each group of arms with the same change; none for the budget "paper" itself.
    """
    arms = paper.budget_arms(budget)
    changes: dict = {}
    if "paper" in paper.budgets and budget != "paper":
        for arm in arms:
            there = paper.config("paper", arm) | {"seeds": paper.seeds("paper", arm)}
            here = paper.config(budget, arm) | {"seeds": paper.seeds(budget, arm)}
            for parameter in there:
                if there[parameter] != here[parameter]:
                    key = (parameter, _or_none(there[parameter]), _or_none(here[parameter]))
                    changes.setdefault(key, []).append(arm)
    order = {parameter: number for number, parameter in enumerate(["seeds", *paper.sheet["config"]])}
    rows = [
        {"parameter": parameter, "paper": there, "here": here, "arms": _named(paper, group, arms)}
        for (parameter, there, here), group in sorted(changes.items(), key=lambda item: order[item[0][0]])
    ]
    if left_out := [arm for arm in paper.arms if arm not in arms]:
        rows.append({"parameter": "arms left out", "paper": "run", "here": "not run", "arms": _named(paper, left_out, list(paper.arms))})
    frame = pd.DataFrame(rows, columns=["parameter", "paper", "here", "arms"])
    frame.attrs = about(paper, budget, []) | {
        "kind": "budget",
        "id": "budget",
        "title": "What this budget changes",
        "number": None,
        "source": "",
    }
    return frame


def facts(paper, part: str) -> pd.DataFrame:
    """A list of the sheet as a table: part "protocol" (what the paper says, what we do), "deviations", or any other. Raises
    KdcoreError for an unknown one."""
    lists = [name for name, value in paper.sheet.items() if isinstance(value, list)]
    validation.one_of(part, "list", lists, start=f"the sheet of {paper.key} has no {{what}} {{value}}")
    headings = {"protocol": {"paper": "paper says", "ours": "we use"}}.get(part, {})
    frame = pd.DataFrame(paper.sheet[part]).fillna("").rename(columns=headings)
    frame = frame.map(lambda value: words.fixed(value, 0) if isinstance(value, int) and not isinstance(value, bool) else value)
    frame.attrs = {"kind": "facts"}
    return frame


def about(paper, budget: str, records: list[dict]) -> dict:
    """The ``attrs`` of a frame: its paper and budget, and device and hours of its records."""
    return {
        "paper": paper.key,
        "short": paper.sheet["short"],
        "budget": budget,
        "about": paper.budget(budget)["about"],
        "scale": paper.budget(budget)["scale"],
        "device": devices(records),
        "hours": wall_hours(records),
        "cpu_hours": _cpu_hours(records),
    }


def as_float(value) -> float:
    """A number of the sheet as a float; nan for None."""
    return math.nan if value is None else float(value)


def wall_hours(records: list[dict]) -> float:
    return sum(record["cost"]["seconds"] for record in records) / 3600


def devices(records: list[dict]) -> str:
    return words.listed(sorted({record["cost"]["device"] for record in records}))


def _cpu_hours(records: list[dict]) -> float:
    """CPU hours of the records; nan unless every record has CPU seconds."""
    spent = [record["cost"].get("cpu_seconds", math.nan) for record in records] or [math.nan]
    return sum(spent) / 3600


def _verdict(row: dict, values: list[float], planned: int, scale: str, overlap: float) -> str:
    if row["arm"] is None:
        return "quoted"
    if not values:
        return "not run"
    if row["paper"] is None:
        return "no number"
    if select.doubt(row):
        return "unverified"
    if scale not in select.COMPARED:
        return "scaled down" if scale == "scaled" else "demo"
    if len(values) < planned:
        return "interim"
    verdict = statistics.cell_verdict(values, row["paper"], row["margin"], row["better"], overlap)
    return verdict if scale == "protocol" or verdict == "reproduced" else "shorter run"


def _or_none(value) -> str:
    return "none" if value is None else str(value)


def _named(paper, group: list[str], among: list[str]) -> str:
    """A group of arms in few words: "all", "all but A; B", or their names, with a whole sweep under its template."""
    names, others = _names(paper, group), _names(paper, [arm for arm in among if arm not in group])
    if not others and len(among) > 1:
        return "all"
    return "all but " + "; ".join(others) if len(others) < len(names) else "; ".join(names)


def _names(paper, arms: list[str]) -> list[str]:
    """Names of arms, with a sweep, or a sweep with one variable fixed, as one name: "300 units, T={temperature}"."""
    names, left = [], list(arms)
    templates = []
    for template, settings in paper.sheet["arms"].items():
        sweep = settings.get("sweep", {})
        fixed_one = [template.replace(f"{{{name}}}", str(value)) for name, values in sweep.items() for value in values]
        templates += [template, *fixed_one]
    for template in templates:
        pattern = re.sub(r"\\{.*?\\}", ".+", re.escape(template))
        swept = [arm for arm in paper.arms if re.fullmatch(pattern, arm)]
        if "{" in template and set(swept) <= set(left):
            names.append(template)
            left = [arm for arm in left if arm not in swept]
    return [*left, *names]
