"""The figures of a paper at a budget."""

import functools
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from kdcore.report import select, tables
from kdcore.report.drawing import heading, style
from kdcore.report.figures import learning_curves, paper_against_ours


def figures_of(paper, records: list[dict], frames: list[pd.DataFrame] | None = None) -> dict[str, Callable[[], Figure]]:
    """All figures of a paper at one budget, as {name: function that draws it}; {} without current results.

    ``paper_TABLE`` for each table with reported numbers; then the paper's own ``figures(records)``, called with current, done
    records; then ``learning_TABLE`` for the arms of each table (except with ``curves: false``) and each measure of the history.
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
    figures = {}
    made = {frame.attrs["id"]: frame for frame in frames or ()}
    for sheet in paper.tables:
        frame = made[sheet["id"]] if sheet["id"] in made else tables.table(paper, sheet, records, budget)
        if (frame["paper"].notna() & (frame["n"] > 0)).any():
            figures[f"paper_{sheet['id']}"] = functools.partial(paper_against_ours, frame)
    figures |= {name: functools.partial(_of_budget, draw, budget) for name, draw in paper.figures(done).items()}
    covered, of_arm = set(), select.by_arm(done)
    for sheet in paper.tables:
        arms = tuple(dict.fromkeys(row["arm"] for row in sheet["rows"]))
        shown = {arm: of_arm[arm] for arm in arms if arm in of_arm}
        if arms in covered or not shown or not sheet.get("curves", True):
            continue
        covered.add(arms)
        metrics = _measures(shown)
        for metric in metrics:
            name = f"learning_{sheet['id']}" + (f"_{metric}" if len(metrics) > 1 else "")
            title = f"{sheet['title']}: while training\n(budget {budget})"
            figures[name] = functools.partial(learning_curves, shown, metric, title)
    return figures


def _measures(records_by_arm: dict[str, list[dict]]) -> list[str]:
    """The measures in the histories besides stage, epoch, learning rate and training loss, in order of appearance."""
    rows = [row for records in records_by_arm.values() for record in records for row in record["history"]]
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("stage", "epoch", "lr", "loss")]


def _of_budget(draw: Callable[[], Figure], budget: str) -> Figure:
    """The figure that ``draw`` returns, with the budget in its heading, so that a copy still says what it shows."""
    figure = draw()
    with style():
        heading(figure, f"{figure.get_suptitle()}\n(budget {budget})".strip())
    return figure
