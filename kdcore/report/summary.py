"""What came out for a paper, over all its budgets: its effects beside the paper's own, its claims, and its numbers, each counted once."""

import math
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from kdcore.report import claims, select, tables
from kdcore.report.evidence import Evidence

MARKS = ("holds", "contradicted", "undecided", "interim", "not run")  # of claims


@dataclass(frozen=True)
class Effect:
    """A claim of the headline at one budget: left - right, in ``unit`` and, where named relative, in % of the right side.

    low and high are the interval that the verdict uses; paper_low and paper_high those of ``statistics.reported_test``. A number that
    does not exist is nan. A claim that was not run has budget and scale "".
    """

    claim: str
    text: str
    unit: str
    budget: str
    scale: str
    verdict: str
    n: int
    planned: int
    mean: float
    low: float
    high: float
    paper: float
    paper_low: float
    paper_high: float
    relative: float
    relative_low: float
    relative_high: float
    relative_paper: float


@dataclass(frozen=True)
class Summary:
    """A paper over all its budgets with current results, except those of scale demo.

    scale: the closest to the protocol among ``budgets``, "" without results. budgets: closest first. effects: the headline's, each as
    in ``claims``. claims: each claim once, at the closest scale at which it was run with all planned seeds, else with any (columns of
    ``claims.claims``, then budget and scale, "" if it was not run). marks: how many claims have each of ``MARKS``. numbers: how many
    distinct reported numbers have each of ``tables.VERDICTS``. seeds: the fewest and the most of an arm. devices: as in a table.
    hours: wall time of all current trials, failed ones included.
    """

    key: str
    short: str
    title: str
    question: str
    scale: str
    budgets: list[str]
    effects: list[Effect]
    claims: pd.DataFrame
    marks: dict[str, int]
    numbers: dict[str, int]
    seeds: tuple[int, int]
    devices: str
    hours: float

    @property
    def main(self) -> Effect | None:
        """The first effect that was run, else the first; None without a headline."""
        return next((effect for effect in self.effects if effect.n), next(iter(self.effects), None))


def summary(evidence: Evidence) -> Summary:
    """The summary of a paper's records and tables."""
    paper, sheet = evidence.paper, evidence.paper.sheet
    budgets = [name for name in select.closest_first(paper, evidence.budgets) if paper.budget(name)["scale"] in select.SCALES[:-1]]
    everything = _claims(evidence, budgets)
    known, _ = select.current(paper, [record for record in evidence.records if record["budget"] in budgets])
    done = [record for record in known if record["status"] == "done"]
    seeds = Counter((record["budget"], record["arm"]) for record in done).values()
    return Summary(
        key=paper.key,
        short=sheet["short"],
        title=sheet["title"],
        question=sheet["question"],
        scale=paper.budget(budgets[0])["scale"] if budgets else "",
        budgets=budgets,
        effects=[_effect(row) for name in sheet.get("headline", []) for row in select.rows(everything[everything["id"] == name])],
        claims=everything,
        marks={mark: int((everything["verdict"] == mark).sum()) for mark in MARKS},
        numbers=_numbers(evidence, budgets),
        seeds=(min(seeds, default=0), max(seeds, default=0)),
        devices=tables.devices(done),
        hours=tables.wall_hours(known),
    )


def scales(summaries: list[Summary]) -> dict[str, list[Summary]]:
    """Summaries by scale, the closest to the protocol first; scales without one, and papers without results, are left out."""
    groups = {scale: [each for each in summaries if each.scale == scale] for scale in select.SCALES}
    return {scale: group for scale, group in groups.items() if group}


def _claims(evidence: Evidence, budgets: list[str]) -> pd.DataFrame:
    """Each claim once: the first of its rows, closest first, that has all planned seeds, else the first that was run."""
    frames = [evidence.frames(name)[-1].assign(budget=name, scale=evidence.paper.budget(name)["scale"]) for name in budgets]
    if not frames:
        frames = [claims.claims(evidence.paper, [], next(iter(evidence.paper.budgets))).assign(budget="", scale="")]
    rows = pd.concat(frames, keys=range(len(frames)), names=["order", None]).reset_index("order")
    rows["rank"] = rows["verdict"].map(lambda verdict: {"not run": 2, "interim": 1}.get(verdict, 0))
    rows.loc[rows["verdict"] == "not run", ["budget", "scale"]] = ""
    chosen = rows.sort_values(["rank", "order"], kind="stable").drop_duplicates("id").set_index("id")
    ids = [claim["id"] for claim in evidence.paper.sheet.get("claims", [])]
    return chosen.loc[ids].reset_index()[list(frames[0].columns)]


def _effect(row: dict) -> Effect:
    def relative(value: float, right: float) -> float:
        return 100 * value / abs(right) if right else math.nan

    return Effect(
        claim=row["id"],
        text=row["effect"],
        unit=row["unit"],
        budget=row["budget"],
        scale=row["scale"],
        verdict=row["verdict"],
        n=row["n"],
        planned=row["planned"],
        mean=row["difference"],
        low=row["low"],
        high=row["high"],
        paper=row["reported"],
        paper_low=row["reported_low"],
        paper_high=row["reported_high"],
        relative=relative(row["difference"], row["right"]),
        relative_low=relative(row["low"], row["right"]),
        relative_high=relative(row["high"], row["right"]),
        relative_paper=relative(row["reported"], row["reported_right"]),
    )


def _numbers(evidence: Evidence, budgets: list[str]) -> dict[str, int]:
    """How many distinct reported numbers have each verdict. The same number for the same arm and metric counts once, however many
    rows show it, at the closest scale at which it was run with all planned seeds, else with any."""
    rows = [row for table in evidence.paper.tables for row in table["rows"] if row["arm"] is not None and row["paper"] is not None]
    found = {(row["arm"], row["metric"], float(row["paper"])): "not run" for row in rows}
    for name in budgets:
        for frame in evidence.frames(name)[:-1]:
            for row in select.rows(frame):
                key = (row["arm"], row["metric"], row["paper"])
                if found.get(key) in ("not run", "interim") and row["verdict"] != "not run":
                    found[key] = row["verdict"]
    counts = Counter(found.values())
    return {verdict: counts[verdict] for verdict in tables.VERDICTS if counts[verdict]}
