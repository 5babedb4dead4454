"""The figures of a paper at a budget, and the one picture of all papers."""

import functools
import re
import textwrap
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from kdcore.report import figures, select, tables, words


def figures_of(paper, records: list[dict], frames: list[pd.DataFrame] | None = None) -> dict[str, Callable[[], Figure]]:
    """All figures of a paper at one budget, as {name: function that draws it}; {} without current results.

    ``paper_TABLE`` for each table with reported numbers; then the paper's own ``figures(records)``, called with current, done
    records; then ``learning_TABLE_MEASURE`` for the arms of each table (except with ``curves: false``) and each measure of the
    history that was taken at three epochs or more.
    Figures are drawn only when called, so that listing their names costs nothing.
    frames: the tables of these records, if already made.
    Raises ValueError for records of more than one budget.
    """
    budgets = sorted({record["budget"] for record in records})
    if len(budgets) > 1:
        raise ValueError(f"figures show one budget, not several: {', '.join(budgets)}")
    done = [record for budget in budgets for record in select.results(paper, records, budget)]
    if not done:
        return {}
    (budget,) = budgets
    drawn, note = {}, trained(paper, budget)
    made = {frame.attrs["id"]: frame for frame in frames or ()}
    for sheet in paper.tables:
        frame = made[sheet["id"]] if sheet["id"] in made else tables.table(paper, sheet, records, budget)
        if (frame["paper"].notna() & (frame["n"] > 0)).any():
            missing = int((frame["paper"].notna() & (frame["n"] == 0) & (frame["verdict"] != "quoted")).sum())
            rest = f" ({missing} row{'s' if missing > 1 else ''} not run)" if missing else ""
            drawn[f"paper_{sheet['id']}"] = functools.partial(figures.paper_against_ours, frame, note=note + rest)
    drawn |= {name: functools.partial(draw, note=note) for name, draw in paper.figures(done).items()}
    covered, of_arm = set(), select.by_arm(done)
    for sheet in paper.tables:
        arms = tuple(dict.fromkeys(row["arm"] for row in sheet["rows"]))
        shown = {arm: of_arm[arm] for arm in arms if arm in of_arm}
        if arms in covered or not shown or not sheet.get("curves", True):
            continue
        covered.add(arms)
        measures = {}
        for metric in _measures(shown):
            curves = {arm: found for arm, mine in shown.items() if (found := figures.histories(mine, metric)) is not None}
            if any(len(epochs) > 2 for epochs, _ in curves.values()):
                measures[metric] = curves
        for metric, curves in measures.items():
            name = f"learning_{sheet['id']}_{metric}"
            drawn[name] = functools.partial(figures.learning_curves, curves, words.measure(paper, metric), sheet["title"], note=note)
    return drawn


def trained(paper, budget: str) -> str:
    """What was trained at a budget, in two or three lines: below the title of each figure, so that a copy still says what it shows.

    Of the budget's ``about``, as many whole clauses as fit.
    """
    there, shown = paper.budget(budget), ""
    for clause in re.split(r"(?<=[,;:])(?= [a-zA-Z])(?![^(]*\))", there["about"]):  # not within brackets
        if shown and len(shown + clause) > 140:
            break
        shown += clause
    return f"Ours: budget {budget} ({words.SCALES[there['scale']]}): {textwrap.shorten(shown.rstrip(',;:'), 150, placeholder=' ...')}"


def overview(summaries: dict[str, list]) -> Callable[[], Figure]:
    """The one picture of all papers: the main effect of each, where it was run. summaries: by scale (``summary.scales``)."""
    groups: dict[str, list[dict]] = {scale: [] for scale in select.SCALES}
    for each in [each for among in summaries.values() for each in among]:
        if (effect := each.main) and effect.n:
            row = {"paper": each.short, "effect": effect.text, "verdict": effect.verdict, "n": words.of_planned(effect.n, effect.planned)}
            ours = (effect.relative, effect.relative_low, effect.relative_high)
            groups[effect.scale].append(row | {"ours": ours, "reported": effect.relative_paper})
    shown = {words.SCALES[scale]: rows for scale, rows in groups.items() if rows}
    note = "The change of the error that each paper's idea makes, ours beside the paper's own"
    return functools.partial(figures.effects, shown, "What distillation gains, paper by paper", note=note)


def _measures(records_by_arm: dict[str, list[dict]]) -> list[str]:
    """The measures in the histories besides stage, epoch, learning rate and training loss, in order of appearance."""
    rows = [row for records in records_by_arm.values() for record in records for row in record["history"]]
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("stage", "epoch", "lr", "loss")]
