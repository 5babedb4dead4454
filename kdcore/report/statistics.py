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


def mean_interval(values, level: float = 0.95, overlap: float = 0.0) -> tuple[float, float, float]:
    """Mean of ``values`` [n] and its t-interval, (mean, low, high), in the unit of the values.

    mean -+ t(n - 1, (1 + level) / 2) s sqrt(1 / n + overlap). A single value has no interval: (x, nan, nan); no value: (nan, nan,
    nan). overlap: 0 for independent values; for values measured on random parts of one data set, ``resampling_overlap``.
    """
    values = np.asarray(list(values), np.float64)
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) == 1:
        return float(values[0]), np.nan, np.nan
    if _flat(values):
        return (float(values[0]),) * 3
    mean = values.mean()
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * _error(values, overlap)
    return rounded(mean), rounded(mean - half), rounded(mean + half)


def resampling_overlap(repetitions: int, test_share: float) -> float:
    """The ``overlap`` of values that are each a mean over ``repetitions`` random test sets with a share ``test_share`` of the cases.

    Nadeau & Bengio 2003 (Machine Learning 52:239) correct the variance of a mean over J such test sets from s^2 / J to
    (1 / J + test_share / (1 - test_share)) s^2, because their training sets share cases. A mean over r of them varies from one
    to the next by s^2 / r, so that n of these means need 1 / n + r test_share / (1 - test_share) in place of 1 / n.
    """
    return repetitions * test_share / (1 - test_share)


def cell_verdict(values, reported: float | None, margin: float | None, better: str | None = None, overlap: float = 0.0) -> str:
    """The verdict of ``values`` [n] (one per seed) on the paper's ``reported`` number.

    margin: how far apart two numbers may be and still count as the same result, in the unit of the values; with None or 0, only
    a direction can be found. "reproduced": the 90 % t-interval of mean - reported lies inside (-margin, margin), an equivalence
    test at 5 %; else, if the interval lies on one side of 0, "better" or "worse" (``better``: "lower" or "higher"), or without
    a better side "higher" or "lower"; else "undecided", as a single seed always is; "no number" if the paper reports none;
    "not run" without values. overlap: as in ``mean_interval``.
    """
    values = np.asarray(list(values), np.float64)
    if not len(values):
        return "not run"
    if reported is None or np.isnan(reported):
        return "no number"
    if len(values) < 2:
        return "undecided"
    _, low, high = mean_interval(_differences(values, [reported] * len(values)), 0.90, overlap)
    if margin and -margin < low and high < margin:
        return "reproduced"
    if low <= 0 <= high:
        return "undecided"
    side = "higher" if low > 0 else "lower"
    return side if better is None else "better" if side == better else "worse"


def claim_test(left, right, relation: str, margin: float | None = None, alpha: float = 0.05, overlap: float = 0.0) -> dict[str, float]:
    """Paired comparison of ``left`` and ``right`` [n], seed by seed: {n, mean, low, high, p, level} of left - right.

    relation "<": p of the two-sided paired t-test, and the interval of level 1 - alpha, which excludes 0 exactly where p < alpha.
    relation "same": p of the equivalence test within ``margin`` (the larger of the two one-sided p), and the interval of level
    1 - 2 alpha, which lies inside (-margin, margin) exactly where p < alpha. With fewer than two seeds, p and the interval are
    nan. If all differences are equal, p is 0 or 1. overlap: as in ``mean_interval``.
    Raises ValueError for another relation, sides of different lengths, or "same" without a margin.
    """
    _check_relation(relation, margin)
    differences = _differences(left, right)
    n = len(differences)
    level = 1 - alpha if relation == "<" else 1 - 2 * alpha
    mean, low, high = mean_interval(differences, level, overlap)
    if n < 2:
        p = np.nan
    elif _flat(differences):
        p = float(mean == 0 if relation == "<" else not -margin < mean < margin)
    else:
        t, error = stats.t(n - 1), _error(differences, overlap)
        p = 2 * t.sf(abs(mean) / error) if relation == "<" else max(t.sf((margin + mean) / error), t.sf((margin - mean) / error))
    return {"n": n, "mean": mean, "low": low, "high": high, "p": rounded(p), "level": rounded(level)}


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


def claim_verdict(test: dict, relation: str, margin: float | None = None) -> str:
    """ "holds", "contradicted", "undecided" or "not run" (no seed), from the interval of a ``claim_test`` at the claim's own level.

    A "<" holds if the interval lies below 0 and is contradicted if it lies above. A "same" holds if the interval lies inside
    (-margin, margin) and is contradicted if it lies entirely outside.
    """
    if not test["n"]:
        return "not run"
    low, high = test["low"], test["high"]
    if relation == "<":
        holds, contradicted = high < 0, low > 0
    else:
        holds, contradicted = -margin < low and high < margin, low >= margin or high <= -margin
    return "holds" if holds else "contradicted" if contradicted else "undecided"


def holm_levels(pvalues, alpha: float = 0.05) -> list[float]:
    """The level at which Holm's procedure tests each of m hypotheses (nan, not tested, does not count), to control the error of all.

    In the order of their p, the i-th is rejected while p < alpha / (m - i + 1), which is its level. The first that is not rejected
    ends the procedure; its level is that of all that remain. So p < level exactly where ``holm`` gives less than alpha.
    """
    p = np.asarray(list(pvalues), np.float64)
    levels, tested = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    for i, place in enumerate(order):
        levels[order[i:]] = alpha / (len(order) - i)
        if not p[place] < levels[place]:
            break
    return levels.tolist()


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


def _error(values: np.ndarray, overlap: float) -> float:
    """The standard error of the mean of ``values`` [n]: s sqrt(1 / n + overlap)."""
    return float(values.std(ddof=1) * np.sqrt(1 / len(values) + overlap))


def _flat(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)
