"""What a number of seeds can show: the power of the tests behind the verdicts, for ``kdcore plan``.

Power is the probability of a verdict if the true mean difference is ``gap`` and differences vary by ``spread`` (their standard
deviation) from seed to seed. alpha is the level of the test (Holm's first step for m claims: 0.05 / m); overlap as in
``statistics.mean_interval``. Cohen 1988 ("Statistical power analysis", chapter 2) for a difference; Phillips 1990 (J. Pharmacokin.
Biopharm. 18:137) for equivalence.
"""

import functools
import math

import numpy as np
from scipy import optimize, stats

from kdcore.report import claims as report_claims
from kdcore.report import select, statistics, words

POWER, ALPHA = 0.80, 0.05
MOST = 100  # seeds: of a claim that needs more, only that is said
SHOWN = 5  # numbers in a sentence
POINTS = 4000  # of the numerical integral over standard deviations


def of_difference(gap: float, spread: float, n: int, alpha: float = ALPHA, overlap: float = 0.0) -> float:
    """The power of the two-sided paired t-test with ``n`` >= 2 seeds, by the noncentral t distribution."""
    if not spread:
        return float(gap != 0)
    t, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(gap) / _error(spread, n, overlap)
    # scipy gives nan for a far tail, which is below 1e-12
    return float(stats.nct.sf(t, n - 1, shift) + np.nan_to_num(stats.nct.cdf(-t, n - 1, shift)))


def of_equivalence(gap: float, spread: float, n: int, margin: float, alpha: float = ALPHA, overlap: float = 0.0) -> float:
    """The power of the paired equivalence test (two one-sided t-tests) within ``margin``, with ``n`` >= 2 seeds."""
    if not spread:
        return float(abs(gap) < margin)
    t, error = stats.t.ppf(1 - alpha, n - 1), _error(spread, n, overlap)
    # given the sample's standard deviation, u times the true one, the mean must lie in (t u error - margin, margin - t u error)
    u = np.sqrt(stats.chi2.ppf((np.arange(POINTS) + 0.5) / POINTS, n - 1) / (n - 1))
    inside = stats.norm.cdf((margin - gap) / error - t * u) - stats.norm.cdf((-margin - gap) / error + t * u)
    return float(np.maximum(inside, 0).mean())


def of_no_difference(margin: float, spread: float, n: int, alpha: float = ALPHA, overlap: float = 0.0) -> float:
    """The power of the equivalence test where the true difference is 0."""
    return of_equivalence(0.0, spread, n, margin, alpha, overlap)


def detectable_gap(spread: float, n: int, alpha: float = ALPHA, overlap: float = 0.0) -> float:
    """The smallest gap that the t-test finds with a probability of ``POWER``, in the unit of ``spread``."""
    return _least(of_difference, n, alpha, overlap) * spread


def margin_needed(spread: float, n: int, alpha: float = ALPHA, overlap: float = 0.0) -> float:
    """The smallest margin within which two equal means are found equivalent with a probability of ``POWER``."""
    return _least(of_no_difference, n, alpha, overlap) * spread


def seeds_needed(
    gap: float, spread: float, margin: float | None = None, alpha: float = ALPHA, overlap: float = 0.0, per_seed: int = 1
) -> int | None:
    """The number of seeds that gives a claim a verdict with a probability of ``POWER`` if the gap seen so far is the true one; None if
    more than ``MOST``. With a margin: to find it inside, or to find a larger gap outside. per_seed: values that the test gets of a seed.
    """

    def power(n: int) -> float:
        if margin is None:
            return of_difference(gap, spread, n, alpha, overlap)
        if abs(gap) < margin:
            return of_equivalence(gap, spread, n, margin, alpha, overlap)
        return of_difference(abs(gap) - margin, spread, n, 2 * alpha, overlap)  # one-sided, at alpha

    return next((seeds for seeds in range(2, MOST + 1) if power(seeds * per_seed) >= POWER), None)


def claims(paper, records: list[dict], budget: str, seeds: dict[str, set[int]]) -> list[dict]:
    """What planned seeds can show for each claim whose arms are all planned with at least two common seeds.

    records: done and current ones of the budget. seeds: the planned ones of each arm. Each: id, text, margin (None for "<"), tests (how
    many claims the budget tests, which sets the level), now and planned (seeds), spread and gap (mean) of the differences so far (nan for
    fewer than two values, and for none), detects (the gap, or for "same" the margin, that the planned seeds can decide), of_spread (the
    same in units of the spread), verdict (so far; "" without a spread), needs (seeds for an undecided claim: None for more than
    ``MOST``, 0 for others).
    """
    run = set(paper.budget_arms(budget))
    tested = [claim for claim in paper.sheet.get("claims", []) if set(paper.compared(claim)) <= run]
    alpha = ALPHA / max(1, len(tested))
    tests, counted = [], []
    for claim in tested:
        found, overlap = select.samples(paper, budget, records, *(side for side in (claim["left"], claim["right"]) if "value" not in side))
        left, right, keys = report_claims.paired(claim, found)
        tests.append((left, right, {"relation": claim["relation"], "margin": claim.get("margin"), "overlap": overlap}))
        counted.append(len({seed for seed, _ in keys}))
    rows = []
    for claim, now, test, judged in zip(tested, counted, tests, report_claims.judged(tests), strict=True):
        left, right, arguments = test
        planned = len(set.intersection(*(seeds.get(arm, set()) for arm in paper.compared(claim))))
        if planned < 2:
            continue
        spread, per_seed = _spread(np.subtract(left, right)), max(1, len(left) // max(1, now))
        margin, overlap = arguments["margin"], arguments["overlap"]
        if not left:  # means over the test sets of a trial, until there are records
            overlap = select.overlap(paper, budget, paper.compared(claim))
        known, least = not math.isnan(spread), detectable_gap if margin is None else margin_needed
        undecided = known and judged["verdict"] == "undecided"
        rows.append(
            {
                "id": claim["id"],
                "text": claim["text"],
                "margin": margin,
                "tests": len(tested),
                "now": now,
                "planned": planned,
                "spread": spread,
                "gap": judged["difference"],
                "of_spread": (of_spread := least(1.0, planned * per_seed, alpha, overlap)),
                "detects": of_spread * spread,
                "verdict": judged["verdict"] if known else "",
                "needs": seeds_needed(judged["difference"], spread, margin, alpha, overlap, per_seed) if undecided else 0,
            }
        )
    return rows


def numbers(paper, records: list[dict], budget: str, seeds: dict[str, set[int]]) -> list[dict]:
    """What planned seeds can show for each reported number of a planned arm with a spread: label, margin, and needs, the margin with
    which the verdict "reproduced" has a probability of ``POWER`` if the numbers are equal.

    Numbers without a margin, unverified and repeated ones are left out.
    """
    found = {}
    for row in (row for table in paper.tables for row in table["rows"]):
        planned = len(seeds.get(row["arm"], ()))
        if row["paper"] is None or not row["margin"] or select.doubt(row) or planned < 2:
            continue
        (values,), overlap = select.samples(paper, budget, records, {"arms": [row["arm"]], "metric": row["metric"]})
        spread, per_seed = _spread(list(values.values())), len(values) // max(1, len({seed for seed, _ in values}))
        if not math.isnan(spread):
            needs = margin_needed(spread, planned * per_seed, overlap=overlap)
            found.setdefault((row["arm"], row["metric"], row["paper"]), {"label": row["label"], "margin": row["margin"], "needs": needs})
    return list(found.values())


def in_words(rows: list[dict]) -> str:
    """The table of ``claims`` in a few sentences."""
    unknown = sum(math.isnan(row["spread"]) for row in rows)
    tests = rows[0]["tests"]
    level = f"level {ALPHA:g}{f' / {tests}, for {tests} claims' * (tests > 1)}"
    if unknown == len(rows):
        gaps = sorted({(row["planned"], words.number(row["of_spread"], 2)) for row in rows if row["margin"] is None})
        listed = words.listed(f"{gap} standard deviations with {planned} seeds" for planned, gap in gaps)
        known = f" With a probability of 80 %, the planned seeds detect a gap of {listed} ({level})." if gaps else ""
        return f"No claim has two seeds yet, so the spread of its differences is not known.{known}"
    said = (
        "Spread: the standard deviation of the paired differences. With a probability of 80 %, the planned seeds decide a claim whose true "
        f"gap is at least what they detect ({level})."
    )
    undecided = [row for row in rows if row["verdict"] == "undecided"]
    more = sum(row["needs"] is None or row["needs"] > row["planned"] for row in undecided)
    if undecided:
        count = f"{more or 'none'} of {len(undecided)} undecided claims need{'s' * (more < 2)} more seeds"
        said += f" If the gaps so far are the true ones, {count}."
    return said + (f" {unknown} of {len(rows)} claims have no spread yet." if unknown else "")


def margins_in_words(rows: list[dict]) -> str:
    """The list of ``numbers`` in a sentence."""
    narrow = [row for row in rows if row["needs"] > row["margin"]]
    said = f"{len(rows) - len(narrow)} of {len(rows)} margins are wide enough for the planned seeds to show that a number is reproduced"
    if not narrow:
        return f"{said}."
    listed = [f"{row['label']!r} {words.number(row['needs'], 2)} (has {words.reported(row['margin'])})" for row in narrow[:SHOWN]]
    more = f", and {len(narrow) - SHOWN} more" if len(narrow) > SHOWN else ""
    return f"{said}; these would need wider ones: {', '.join(listed)}{more}."


def _spread(values) -> float:
    """The standard deviation of values, nan for fewer than two; differences in the last digits do not count."""
    return statistics.rounded(float(np.std(values, ddof=1))) if len(values) > 1 else math.nan


def _error(spread: float, n: int, overlap: float) -> float:
    return spread * math.sqrt(1 / n + overlap)


@functools.cache
def _least(power, n: int, alpha: float, overlap: float) -> float:
    """The smallest effect, in standard deviations, with a power of ``POWER``; power rises with the effect."""

    def above(effect: float) -> float:
        return power(effect, 1.0, n, alpha, overlap) - POWER

    high = 1.0
    while above(high) < 0:
        high *= 2
    return float(optimize.brentq(above, 0, high, xtol=1e-9))
