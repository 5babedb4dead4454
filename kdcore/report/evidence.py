"""A paper's records and their tables, each made once for everything that shows it: files, figures and pages."""

from functools import cached_property

import pandas as pd

from kdcore.report import select
from kdcore.report.claims import claims
from kdcore.report.findings import findings
from kdcore.report.tables import table


class Evidence:
    """The records of one paper, of any budget and status, and the tables made from them."""

    def __init__(self, paper, records: list[dict]):
        self.paper, self.records = paper, records
        self._frames: dict[str, list[pd.DataFrame]] = {}

    @cached_property
    def budgets(self) -> list[str]:
        """The budgets that have results, in the order of the sheet."""
        return select.budgets(self.paper, self.records)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """What came out, in sentences."""
        return findings(self.paper, self.records)

    def of_budget(self, budget: str) -> list[dict]:
        """The records of one budget, including stale and failed ones."""
        return [record for record in self.records if record["budget"] == budget]

    def frames(self, budget: str) -> list[pd.DataFrame]:
        """Every table of the sheet at a budget, then the claims."""
        if budget not in self._frames:
            made = [table(self.paper, each, self.records, budget) for each in self.paper.tables]
            self._frames[budget] = [*made, claims(self.paper, self.records, budget)]
        return self._frames[budget]

    def shown(self, budget: str) -> list[pd.DataFrame]:
        """The frames with a row that the budget runs, and the claims."""
        ids = {each["id"] for each in select.tables_of(self.paper, budget)} | {"claims"}
        return [frame for frame in self.frames(budget) if frame.attrs["id"] in ids]
