"""Means, intervals and verdicts from a handful of seeds.

All are based on Student's t: with three to five seeds a percentile bootstrap covers far less than its nominal level, and a
large p is no evidence that two numbers agree, so agreement is shown by an equivalence test (two one-sided t-tests,
Schuirmann 1987, J. Pharmacokin. Biopharm. 15:657).
"""

import numpy as np
from scipy import stats

# A difference smaller than this, relative to its operands, is a rounding error: 0.1 + 0.2 - 0.3 is not an effect.
ROUNDING = 1e-12
# Processors differ in the last digits of quantiles and logarithms; results are rounded to this many digits to be the same on all.
DIGITS = 12


def rounded(value: float, digits: int = DIGITS) -> float:
    """``value`` to ``digits`` significant digits, by way of text: the last digits of a product or power depend on the processor."""
    return float(f"{value:.{digits - 1}e}")


def exponent(value: float) -> int:
    """The power of ten of the first digit of ``value`` (not 0): 1000 -> 3, 0.02 -> -2. A logarithm can be off by one."""
    return int(f"{value:.{DIGITS - 1}e}".partition("e")[2])


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of ``values`` [n] and its t-interval, (mean, low, high), in the unit of the values.

    mean -+ t(n - 1, (1 + level) / 2) s / sqrt(n). A single value has no interval: (x, nan, nan); no value: (nan, nan, nan).
    """
    values = np.asarray(list(values), np.float64)
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) == 1:
        return float(values[0]), np.nan, np.nan
    if _flat(values):
        return (float(values[0]),) * 3
    mean = values.mean()
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return rounded(mean), rounded(mean - half), rounded(mean + half)


def cell_verdict(values, reported: float | None, margin: float | None) -> str:
    """The verdict of ``values`` [n] (one per seed) on the paper's ``reported`` number.

    margin: how far apart two numbers may be and still count as the same result, in the unit of the values; with None or 0, only
    a direction can be found. "reproduced": the 90 % t-interval of mean - reported lies inside (-margin, margin), an equivalence
    test at 5 %; else "above" or "below": the interval lies on one side of 0; else "inconclusive", as a single seed always is;
    "no number" if the paper reports none; "not run" without values.
    """
    values = np.asarray(list(values), np.float64)
    if not len(values):
        return "not run"
    if reported is None or np.isnan(reported):
        return "no number"
    if len(values) < 2:
        return "inconclusive"
    _, low, high = mean_interval(_differences(values, [reported] * len(values)), 0.90)
    if margin and -margin < low and high < margin:
        return "reproduced"
    return "above" if low > 0 else "below" if high < 0 else "inconclusive"


def claim_test(left, right, relation: str, margin: float | None = None) -> dict:
    """Paired comparison of ``left`` and ``right`` [n], seed by seed: {n, mean, low, high, p} of left - right.

    relation "<": p of the two-sided paired t-test, and the 95 % interval. relation "same": p of the equivalence test within
    ``margin`` (the larger of the two one-sided p), and the corresponding 90 % interval. With fewer than two seeds, p and the
    interval are nan. If all differences are equal, p is 0 or 1.
    Raises ValueError for another relation, sides of different lengths, or "same" without a margin.
    """
    _check_relation(relation, margin)
    differences = _differences(left, right)
    n = len(differences)
    mean, low, high = mean_interval(differences, 0.95 if relation == "<" else 0.90)
    if n < 2:
        p = np.nan
    elif relation == "<":
        p = float(mean == 0) if _flat(differences) else stats.ttest_1samp(differences, 0).pvalue
    elif _flat(differences):
        p = float(not -margin < mean < margin)
    else:
        above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        p = max(above, below)
    return {"n": n, "mean": mean, "low": low, "high": high, "p": rounded(p)}


def reported_test(left, right, runs: int, relation: str, margin: float | None = None) -> dict:
    """Test a claim on the paper's own means and standard deviations: {mean, low, high, p} of left - right.

    left, right: [(mean, standard deviation), ...]; a side is the mean of its groups, each of ``runs`` independent runs.
    Welch's t-test (Welch 1947, Biometrika 34:28) with his degrees of freedom; relation, margin, p and interval as in
    ``claim_test``. Raises ValueError for fewer than two runs, and where ``claim_test`` does.
    """
    _check_relation(relation, margin)
    if runs < 2:
        raise ValueError(f"a standard deviation needs at least two runs, not {runs}")
    mean = np.mean([m for m, _ in left]) - np.mean([m for m, _ in right])
    parts = np.array([s**2 / runs / len(side) ** 2 for side in (left, right) for _, s in side])
    error = np.sqrt(parts.sum())
    t = stats.t(parts.sum() ** 2 / (parts**2).sum() * (runs - 1))
    half = t.ppf(0.975 if relation == "<" else 0.95) * error
    p = 2 * t.sf(abs(mean) / error) if relation == "<" else max(t.sf((margin + mean) / error), t.sf((margin - mean) / error))
    return {"mean": rounded(mean), "low": rounded(mean - half), "high": rounded(mean + half), "p": rounded(p)}


def claim_verdict(left, right, relation: str, adjusted: float, margin: float | None = None) -> str:
    """ "holds", "contradicted", "inconclusive" or "not run" (no seed), for the arguments of ``claim_test``.

    adjusted: the p of ``claim_test`` after ``holm``. If it is below 0.05, a "<" holds or is contradicted according to the sign of
    the mean difference, and a "same" holds. A "same" is contradicted if the 95 % interval of the difference lies entirely
    outside (-margin, margin).
    """
    differences = _differences(left, right)
    if not len(differences):
        return "not run"
    if len(differences) < 2:
        return "inconclusive"
    mean, low, high = mean_interval(differences)
    if adjusted < 0.05:
        return "contradicted" if relation == "<" and mean > 0 else "holds"
    if relation == "same" and (low >= margin or high <= -margin):
        return "contradicted"
    return "inconclusive"


def holm(pvalues) -> list[float]:
    """Adjust p-values for multiple testing by Holm's method, which controls the family-wise error rate.

    Holm 1979, Scand. J. Statist. 6:65: the i-th smallest of m is multiplied by m - i + 1, made monotone, at most 1.
    nan (not tested) stays nan and does not count.
    """
    p = np.asarray(list(pvalues), np.float64)
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def _check_relation(relation: str, margin: float | None) -> None:
    if relation not in ("<", "same") or (relation == "same" and not margin):
        raise ValueError(f"relation must be '<', or 'same' with a margin above 0, not {relation!r} with {margin!r}")


def _differences(left, right) -> np.ndarray:
    """left - right [n], with rounding errors set to 0. Raises ValueError for different lengths."""
    left, right = np.asarray(list(left), np.float64), np.asarray(list(right), np.float64)
    if left.shape != right.shape:
        raise ValueError(f"sides of a paired comparison must have the same seeds, not {len(left)} and {len(right)}")
    differences = left - right
    noise = ROUNDING * np.maximum(abs(left), abs(right)).max(initial=0)
    differences[abs(differences) <= noise] = 0
    # equal up to rounding errors: make them equal, so that these do not count as spread
    return np.full_like(differences, differences[0]) if len(differences) and np.ptp(differences) <= noise else differences


def _flat(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)
