"""Findings: sentences of a sheet whose numbers are computed from records, and whose words are held to them."""

import math

import numpy as np
import pandas as pd

from kdcore.report import select, statistics, words

UNTRUE = "No longer true: "


def findings(paper, records: list[dict]) -> pd.DataFrame:
    """The paper's findings that have records, in the order of the sheet, one row each.

    records: any of the paper's; failed and stale ones are ignored. Columns: id; text, paper, why ("" where the sheet has none), with
    the numbers filled in; budget; n, planned (seeds: the least over its values, and over its arms); untrue ("", or what the records say
    against it; the text then begins with ``UNTRUE``).
    """
    rows = []
    for finding in paper.sheet.get("findings", []):
        budget = finding["budget"]
        done = select.results(paper, records, budget)
        values = {name: Quantity(paper, done, value, budget) for name, value in finding["values"].items()}
        if not all(value.seeds for value in values.values()):
            continue
        untrue = "; ".join(filter(None, (value.complaint(name) for name, value in values.items())))
        arms = [arm for value in finding["values"].values() for arm in paper.compared(value)]
        text, *others = ((finding.get(key) or "").format_map(values) for key in ("text", "paper", "why"))
        rows.append(
            {
                "id": finding["id"],
                "text": (UNTRUE if untrue else "") + text,
                **dict(zip(("paper", "why"), others, strict=True)),
                "budget": budget,
                "n": min(len(value.seeds) for value in values.values()),
                "planned": min(paper.seeds(budget, arm) for arm in arms),
                "untrue": untrue,
            }
        )
    frame = pd.DataFrame(rows, columns=["id", "text", "paper", "why", "budget", "n", "planned", "untrue"])
    frame.attrs = {"kind": "findings", "id": "findings", "title": "Findings", "paper": paper.key, "short": paper.sheet["short"]}
    return frame


def problems(paper, records: list[dict]) -> list[str]:
    """One sentence for each finding whose words no longer agree with the records."""
    return [
        f"{paper.key}/sheet.yaml: finding {row['id']} is no longer true at budget {row['budget']} ({row['untrue']}): "
        "write what the records say now, and new bounds"
        for row in findings(paper, records).to_dict("records")
        if row["untrue"]
    ]


def _reported(paper, value: dict) -> float:
    """A value in the numbers that the paper reports; nan if one is missing."""
    sides = paper.reported(value)
    return math.nan if sides is None else statistics.rounded(np.subtract(*(np.mean([mean for mean, _ in side]) for side in sides)))


class Quantity:
    """A value of a finding: one number per seed, which a placeholder shows in one of several ways.

    seeds: {seed: left, or left - right}, of the seeds that have both.
    """

    def __init__(self, paper, records: list[dict], value: dict, budget: str):
        self.paper, self.value = paper, value
        self.overlap = select.overlap(paper, budget, paper.compared(value))
        self.above, self.below, self.of = value.get("above"), value.get("below"), value.get("of", "mean")
        left, right = select.by_seed(records, value["left"]), value.get("right")
        if right is None or right.get("value") is not None:
            self.seeds = {seed: each - (right["value"] if right else 0) for seed, each in left.items()}
        else:
            others = select.by_seed(records, right)
            self.seeds = {seed: left[seed] - others[seed] for seed in sorted(left.keys() & others.keys())}
        self.numbers = [statistics.rounded(each) for each in self.seeds.values()]

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; nan for one."""
        return statistics.rounded(float(np.std(self.numbers, ddof=1))) if len(self.numbers) > 1 else math.nan

    def complaint(self, name: str) -> str:
        """What the records say against the bounds; "" if nothing."""
        mean, seeds = statistics.mean_interval(self.numbers)[0], f"{len(self.numbers)} seed{'s' * (len(self.numbers) > 1)}"
        found, what = {
            "mean": ([mean], f"the mean of {seeds}"),
            "every": (self.numbers, f"in {self._count()}"),
            "spread": ([self.spread] if len(self.numbers) > 1 else [], f"the standard deviation of {seeds}"),
        }[self.of]
        if all(self._within(each) for each in found):
            return ""
        asked = [f"{word} {words.reported(bound)}" for word, bound in (("above", self.above), ("below", self.below)) if bound is not None]
        shown = f"{what} only" if self.of == "every" else f"{words.number(found[0])}, {what}, and not"
        return f"{name} is {shown} {' and '.join(asked)}"

    def __format__(self, how: str) -> str:
        """As ``{name:how}`` shows it: one of ``kdcore.papers.sheet.SHOWN``."""
        mean, low, high = statistics.mean_interval(self.numbers, overlap=self.overlap)
        if how == "interval":
            if math.isnan(low):
                return self._text(mean)
            places = max(0, 1 - statistics.exponent((high - low) / 2)) if high > low else 0
            return f"{words.fixed(mean, places, self._signed)} [{words.fixed(low, places)}, {words.fixed(high, places)}]"
        if how == "range":
            return " to ".join(dict.fromkeys(self._text(each) for each in (min(self.numbers), max(self.numbers))))
        if how == "each":
            *most, last = map(self._text, self.numbers)
            return f"{', '.join(most)} and {last}" if most else last
        if how == "spread":
            return words.number(self.spread, 2) or "unknown"
        if how == "seeds":
            return self._count()
        if how == "paper":
            number = _reported(self.paper, self.value)
            return words.reported(number) if self.value.get("right") is None else self._text(number)
        return self._text(mean)

    @property
    def _signed(self) -> bool:
        """Whether the sign is shown: of a difference, unless bounds fix it."""
        return self.value.get("right") is not None and self.above is None and self.below is None

    def _text(self, number: float) -> str:
        """Two significant digits of a difference, three of a measurement; none after the point of a whole number."""
        digits = 2 if self.value.get("right") is not None else 3
        places = 0 if number == round(number) else max(0, digits - 1 - statistics.exponent(number))
        return words.fixed(number, places, self._signed)

    def _within(self, number: float) -> bool:
        return (self.above is None or number > self.above) and (self.below is None or number < self.below)

    def _count(self) -> str:
        inside, every = sum(map(self._within, self.numbers)), len(self.numbers)
        return ("the one seed" if every == 1 else f"all {every} seeds") if inside == every else f"{inside or 'none'} of {every} seeds"
