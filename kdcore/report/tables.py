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
        sample, overlap = _sample(paper, budget, mine, row)
        mean, low, high = statistics.mean_interval(sample, overlap=overlap)
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
                "verdict": _verdict(row, sample, len(values) < planned, scale, overlap),
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
    frame.attrs = about(paper, budget, [record for record in done if record["arm"] in arms])
    frame.attrs |= {
        "kind": "table",
        "id": sheet["id"],
        "title": sheet["title"],
        "number": sheet.get("number"),
        "source": sheet["source"],
        "reference": sheet.get("reference"),
        "trained": trained(paper, budget, [row["arm"] for row in shown if row["arm"] in runs and row["arm"] is not None]),
        "margins": [],
        "independent": [],
    }
    if scale in select.COMPARED:
        _add_earlier_verdicts(paper, sheet, shown, frame, of_arm)
    return frame


def trained(paper, budget: str, arms: list[str]) -> list[dict]:
    """What the arms train at a budget that is smaller than the protocol, [{parameter, values}]: the data, and each parameter of the
    sheet's ``trained`` that differs, as "wrn_10_1 (protocol: wrn_16_2)". Empty if none does, and where numbers are compared."""
    if paper.budget(budget)["scale"] in select.COMPARED or "paper" not in paper.budgets:
        return []
    lines, differs = [], False
    for parameter in paper.sheet.get("trained", validation.TRAINED):
        pairs = [(paper.config(budget, arm), paper.config("paper", arm)) for arm in arms if parameter in paper.sheet["config"]]
        if parameter == "teacher_network":
            pairs = [pair for pair in pairs if pair[0]["teacher"] is not None]
        values = [(here[parameter], there[parameter]) for here, there in pairs]
        changed = any(here != there for here, there in values)
        if values and (changed or parameter == "data"):
            shown = [f"{here} (protocol: {_or_none(there)})" if here != there else str(here) for here, there in values]
            lines.append({"parameter": parameter.replace("_", " "), "values": list(dict.fromkeys(shown))})
            differs = differs or changed
    return lines if differs else []


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
        "resampled": "resampled" in paper.sheet,
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


def _sample(paper, budget: str, records: list[dict], row: dict) -> tuple[list[float], float]:
    """The values of a row that its interval and verdict are based on, and their overlap (``select.samples``)."""
    if not records:
        return [], 0.0
    (found,), overlap = select.samples(paper, budget, records, {"arms": [row["arm"]], "metric": row["metric"]})
    return list(found.values()), overlap


def _verdict(row: dict, values: list[float], interim: bool, scale: str, overlap: float) -> str:
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
    if interim:
        return "interim"
    verdict = statistics.cell_verdict(values, row["paper"], row["margin"], row["better"], overlap)
    return verdict if scale == "protocol" or verdict == "reproduced" else "shorter run"


def _add_earlier_verdicts(paper, sheet: dict, rows: list[dict], frame: pd.DataFrame, of_arm: dict[str, list[dict]]) -> None:
    """What a table says of verdicts by other rules, in its ``attrs``, with rows as (label, that verdict, the verdict).

    margins: the margins that were changed, [{old, since, why, rows}]. independent: the rows whose verdict would be another, were
    the means of trials taken for independent although their test sets overlap, with the old margins.
    """
    about, changes = frame.attrs, {}
    for row, shown in zip(rows, frame.to_dict("records"), strict=True):
        sample, overlap = _sample(paper, about["budget"], of_arm.get(row["arm"], []), row)
        interim, first = shown["n"] < shown["planned"], row
        for entry in paper.margins_of(sheet["id"], row):
            if entry.get("old") is not None:
                before = row | {"margin": entry["old"]}
                first = before if first is row else first
                change = changes.setdefault(id(entry), {key: entry[key] for key in ("old", "since", "why")} | {"rows": []})
                verdict = _verdict(before, sample, interim, about["scale"], overlap)
                change["rows"].append((row["label"], verdict, shown["verdict"]))
        verdict = _verdict(first, [seed["value"] for seed in shown["seeds"]], interim, about["scale"], 0.0)
        if overlap and verdict != shown["verdict"]:
            about["independent"].append((row["label"], verdict, shown["verdict"]))
    about["margins"] = list(changes.values())


def _or_none(value) -> str:
    return "none" if value is None else str(value)


def _named(paper, group: list[str], among: list[str]) -> str:
    """A group of arms in few words: "all", "all but A; B", or their names, with a whole sweep as its first and last arm."""
    names, others = _names(paper, group), _names(paper, [arm for arm in among if arm not in group])
    if not others and len(among) > 1:
        return "all"
    return "all but " + "; ".join(others) if len(others) < len(names) else "; ".join(names)


def _names(paper, arms: list[str]) -> list[str]:
    """Names of arms, with a sweep, or a sweep with one variable fixed, as one: "300 units, T=1 ... 300 units, T=40 (9 arms)"."""
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
            names.append(f"{swept[0]} \N{HORIZONTAL ELLIPSIS} {swept[-1]} ({len(swept)} arms)" if len(swept) > 2 else "; ".join(swept))
            left = [arm for arm in left if arm not in swept]
    return [*left, *names]
