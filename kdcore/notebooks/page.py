"""A paper in a notebook: its trials at one budget beside the committed records of all others."""

import textwrap

import pandas as pd
from IPython.display import HTML, Image, display

from kdcore import papers, validation
from kdcore.errors import KdcoreError, Stopped
from kdcore.notebooks import parameters
from kdcore.report import canvas, select, tables
from kdcore.report.catalogue import figures_of
from kdcore.report.claims import claims
from kdcore.report.drawing import alt_of
from kdcore.report.findings import findings
from kdcore.report.formats import to_html
from kdcore.trials import engine, environment, plan
from kdcore.trials.progress import Progress
from kdcore.trials.store import Store


class Page:
    """A paper's trials, tables, claims and figures, as shown in its notebook.

    budget: smoke, laptop, fast or paper. seeds: how many, or a list; 0: the budget's default. results_dir: relative to the
    checkout. Raises KdcoreError for an unknown paper, budget, engine or parameter.
    """

    def __init__(self, paper: str, *, budget: str, seeds, device: str, engine: str, results_dir: str):
        parameters.refuse_injected()
        self.paper, self.budget, self.device = papers.get(paper), budget, device
        validation.engine(engine)
        self.paper.budget(budget)
        environment.devices(device)
        self.seeds = validation.seeds(seeds)
        self.store = Store(validation.folder(validation.home() / validation.folder(results_dir)))

    def run(self, *, quiet: bool = True) -> None:
        """Run the trials of this budget that have no record, and print a summary. Raises KdcoreError on failure.

        quiet: print no progress.
        """
        planned = plan.make(self.paper.key, self.budget, None, self.seeds, self.store)
        with Progress(planned, quiet) as progress:
            outcome = engine.run(planned, self.store, device=self.device, watch=progress)
        if outcome.problems:
            raise KdcoreError("; ".join(outcome.problems))
        if outcome.paused:
            raise Stopped(f"stopped, {len(outcome.paused)} trials left")
        new = sum(len(job.ids) for job in planned.jobs)
        print(f"budget {self.budget}: {len(planned.trials)} trials recorded" + (f", {new} of them just now" if new else ""))

    def table(self, table: str) -> None:
        """Show a table of the paper for each budget with records that runs its arms; if there is none, the paper's numbers."""
        running = [budget for budget in self.budgets if any(each["id"] == table for each in select.tables_of(self.paper, budget))]
        for budget in running or [self.budget]:
            self._show(tables.table(self.paper, table, self._records(budget), budget))

    def claims(self) -> None:
        """Show every claim with its verdict, for each budget with records."""
        for budget in self.budgets:
            self._show(claims(self.paper, self._records(budget), budget))

    def findings(self) -> None:
        """Show what came out, in sentences whose numbers are computed from the records."""
        self._show(findings(self.paper, [record for budget in self.budgets for record in self._records(budget)]))

    def facts(self, part: str) -> None:
        """Show "protocol", "deviations" or another list of the sheet, or "budget": the changes of this run's budget."""
        self._show(tables.budget_table(self.paper, self.budget) if part == "budget" else tables.facts(self.paper, part))

    def figure(self, name: str) -> None:
        """Show one of the paper's figures at the first budget that can draw it, committed ones first.

        If no budget can, prints a sentence, since a larger budget may leave out what the figure shows. At smoke, which draws all
        figures, raises KdcoreError instead.
        """
        known: list[str] = []
        for budget in self.budgets:
            figures = figures_of(self.paper, self._records(budget))
            if name in figures:
                figure = figures[name]()
                display(Image(canvas.png(figure), width=800, alt=alt_of(figure)))
                print(textwrap.fill(f"budget {budget}: {self.paper.budget(budget)['about']}", 110))
                return
            known += figures
        there = ", ".join(dict.fromkeys(known))
        if self.budget == "smoke":
            raise KdcoreError(f"no figure '{name}': choose one of {there}")
        words = f"No figure '{name}': budget {' or '.join(self.budgets)} leaves out or lacks what it shows. There are: {there or 'none'}."
        print(textwrap.fill(words, 110))

    def measured(self, metric: str):
        """The metric of the first record that has it, in the order of ``budgets``. Raises KdcoreError if none has."""
        for budget in self.budgets:
            for record in select.results(self.paper, self._records(budget), budget):
                if metric in record["metrics"]:
                    return record["metrics"][metric]
        raise KdcoreError(f"no record has the metric '{metric}': call page.run() first, at a budget with the arm that measures it")

    @property
    def budgets(self) -> list[str]:
        """The budgets to show: those with committed records, then this run's."""
        there = [name for name in select.budgets(self.paper, self.store.records(self.paper.key)) if name not in ("smoke", self.budget)]
        return [*there, self.budget]

    def _records(self, budget: str) -> list[dict]:
        return self.store.records(self.paper.key, budget)

    @staticmethod
    def _show(frame: pd.DataFrame) -> None:
        display(HTML(to_html(frame)))
