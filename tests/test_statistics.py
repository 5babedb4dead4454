"""Intervals, tests and verdicts against numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdcore.report.statistics import (
    cell_verdict,
    claim_test,
    claim_verdict,
    holm,
    holm_levels,
    mean_interval,
    reported_test,
    resampling_overlap,
)

# Student's t from a printed table: t(df, 0.975) and t(df, 0.95)
T_975 = {2: 4.302653, 4: 2.776445}
T_95 = {2: 2.919986, 4: 2.131847}
samples = st.lists(st.integers(-300, 300).map(lambda i: i / 4), min_size=2, max_size=8)


def test_interval_by_hand():
    # mean 2, standard deviation 1, standard error 1 / sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - T_975[2] / math.sqrt(3), 2 + T_975[2] / math.sqrt(3)), abs=1e-6)
    # mean 146, squares 16 + 4 + 0 + 4 + 16 = 40, standard deviation sqrt(10), standard error sqrt(2)
    mean, low, high = mean_interval([142, 144, 146, 148, 150], level=0.90)
    assert (mean, low, high) == pytest.approx((146, 146 - T_95[4] * math.sqrt(2), 146 + T_95[4] * math.sqrt(2)), abs=1e-5)


def test_interval_of_few_and_equal_values():
    assert np.isnan(mean_interval([])).all()
    mean, low, high = mean_interval([7])
    assert mean == 7 and math.isnan(low) and math.isnan(high)
    assert mean_interval([0.1, 0.1, 0.1]) == (0.1, 0.1, 0.1)


@given(samples, st.integers(-50, 50))
def test_interval_moves_with_the_values_and_widens_with_the_level(values, shift):
    mean, low, high = mean_interval(values)
    moved = mean_interval([value + shift for value in values])
    assert moved == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-9)
    _, narrow_low, narrow_high = mean_interval(values, 0.90)
    assert low <= narrow_low <= mean <= narrow_high <= high


def test_interval_covers_what_it_says():
    draws = np.random.default_rng(0).standard_normal((1500, 3))
    inside = np.mean([low <= 0 <= high for _, low, high in map(mean_interval, draws)])
    assert 0.93 < inside < 0.97


@pytest.mark.parametrize(
    ("values", "reported", "margin", "verdict"),
    [
        ([], 146, 15, "not run"),
        ([], None, 15, "not run"),
        ([146, 147], None, 15, "no number"),
        ([146, 147], math.nan, 15, "no number"),
        ([146], 146, 15, "undecided"),  # one seed shows nothing
        # half width of the 90 % interval: 2.92 / sqrt(3) = 1.686
        ([145, 146, 147], 146, 1.6859, "reproduced"),
        ([145, 146, 147], 146, 1.6858, "undecided"),
        ([146, 147, 148], 145, 5, "reproduced"),  # above, but within the margin
        ([146, 147, 148], 145, 3, "higher"),  # 2 +- 1.686
        ([146, 147, 148], 149, 3, "lower"),
        ([100, 146, 190], 146, 15, "undecided"),
        # no spread: the one value decides, and the margin itself is outside
        ([150, 150, 150], 146, 4.5, "reproduced"),
        ([150, 150, 150], 146, 4, "higher"),
        ([142, 142], 146, 4, "lower"),
        ([146, 146], 146, None, "undecided"),
        ([146, 147, 148], 146, None, "undecided"),
        ([148, 149, 150], 146, None, "higher"),
    ],
)
def test_cell_verdict(values, reported, margin, verdict):
    assert cell_verdict(values, reported, margin) == verdict


@given(samples, st.integers(-80, 80), st.integers(1, 40))
def test_cell_verdict_is_the_equivalence_test_at_five_percent(values, reported, margin):
    p = claim_test(values, [reported] * len(values), "same", margin)["p"]
    assert abs(p - 0.05) < 1e-9 or (cell_verdict(values, reported, margin) == "reproduced") == (p < 0.05)


@given(samples, st.integers(-80, 80), st.integers(1, 40))
def test_cell_verdict_mirrors(values, reported, margin):
    mirror = {"higher": "lower", "lower": "higher"}
    verdict = cell_verdict(values, reported, margin)
    assert cell_verdict([-value for value in values], -reported, margin) == mirror.get(verdict, verdict)


def test_claim_test_by_hand():
    # differences -1, -2, -3: t = -2 sqrt(3); with 2 degrees of freedom the two-sided p is 1 - |t| / sqrt(t^2 + 2)
    test = claim_test([1, 2, 3], [2, 4, 6], "<")
    t = 2 * math.sqrt(3)
    assert test["n"] == 3 and test["mean"] == -2
    assert test["p"] == pytest.approx(1 - t / math.sqrt(t**2 + 2), abs=1e-12)
    assert (test["low"], test["high"]) == pytest.approx((-2 - T_975[2] / math.sqrt(3), -2 + T_975[2] / math.sqrt(3)), abs=1e-6)


def test_equivalence_by_hand():
    # differences 1, 2, 3 within a margin of 4: the nearer bound is (4 - 2) sqrt(3) standard errors away, one-sided
    test = claim_test([3, 5, 7], [2, 3, 4], "same", margin=4)
    t = 2 * math.sqrt(3)
    assert test["p"] == pytest.approx((1 - t / math.sqrt(t**2 + 2)) / 2, abs=1e-12)
    assert (test["low"], test["high"]) == pytest.approx((2 - T_95[2] / math.sqrt(3), 2 + T_95[2] / math.sqrt(3)), abs=1e-6)


def _density_integral(t: float, degrees: int) -> float:
    """P(T > t) by Simpson's rule over the density of Student's t, in float64, after x = tan(u)."""
    constant = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    u = np.linspace(math.atan(t), math.pi / 2 - 1e-9, 20001)
    y = constant * (1 + np.tan(u) ** 2 / degrees) ** (-(degrees + 1) / 2) / np.cos(u) ** 2
    return float((u[1] - u[0]) / 3 * (y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()))


@pytest.mark.parametrize("seed", range(5))
def test_p_values_against_integrals_of_the_density(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    left, right, margin = rng.normal(10, 1, n), rng.normal(10.5, 1, n), 1.5
    d = left - right
    error = math.sqrt(sum((d - d.mean()) ** 2) / (n - 1) / n)
    assert claim_test(left, right, "<")["p"] == pytest.approx(2 * _density_integral(abs(d.mean()) / error, n - 1), abs=1e-7)
    sides = [_density_integral((margin + sign * d.mean()) / error, n - 1) for sign in (1, -1)]
    assert claim_test(left, right, "same", margin)["p"] == pytest.approx(max(sides), abs=1e-7)


def test_differences_without_spread():
    assert claim_test([1, 2, 3], [2, 3, 4], "<")["p"] == 0
    assert claim_test([1, 2, 3], [1, 2, 3], "<")["p"] == 1
    assert claim_test([1, 2, 3], [1, 2, 3], "same", 0.5)["p"] == 0
    assert claim_test([1, 2, 3], [2, 3, 4], "same", 0.5)["p"] == 1
    # rounding is no effect: 0.1 + 0.2 is not 0.3 in binary
    assert claim_test([0.1 + 0.2] * 3, [0.3] * 3, "<") == {"n": 3, "mean": 0, "low": 0, "high": 0, "p": 1, "level": 0.95}
    assert claim_test([1.3, 1.2, 1.1], [1.2, 1.1, 1.0], "<")["p"] == 0


def test_claim_test_of_few_seeds():
    for left in ([], [1.0]):
        test = claim_test(left, left, "<")
        assert test["n"] == len(left) and math.isnan(test["p"]) and math.isnan(test["low"])


def test_claim_test_refuses():
    with pytest.raises(ValueError, match="same seeds"):
        claim_test([1, 2], [1, 2, 3], "<")
    with pytest.raises(ValueError, match="relation"):
        claim_test([1, 2], [1, 2], ">")
    with pytest.raises(ValueError, match="margin"):
        claim_test([1, 2], [1, 2], "same")


@pytest.mark.parametrize(
    ("left", "right", "relation", "margin", "alpha", "verdict"),
    [
        # differences -8, -8, -9, mean -25 / 3, standard error 1 / 3: the interval of level 0.95 is -8.33 -+ 4.303 / 3
        ([1, 2, 3], [9, 10, 12], "<", None, 0.05, "holds"),
        ([9, 10, 12], [1, 2, 3], "<", None, 0.05, "contradicted"),
        # differences 0, 1, 2: p = 1 - sqrt(3) / sqrt(5) = 0.2254
        ([0, 0, 0], [0, 1, 2], "<", None, 0.2255, "holds"),
        ([0, 0, 0], [0, 1, 2], "<", None, 0.2253, "undecided"),
        ([1], [9], "<", None, 0.05, "undecided"),
        ([], [], "<", None, 0.05, "not run"),
        ([], [], "same", 3, 0.05, "not run"),
        ([1, 2, 3], [1, 2, 3], "same", 3, 0.05, "holds"),
        # differences 10, 11, 12: the 90 % interval 11 -+ 2.92 / sqrt(3) = 11 -+ 1.686; the 95 % interval 11 -+ 2.484
        ([10, 11, 12], [0, 0, 0], "same", 9.31, 0.05, "contradicted"),
        ([0, 0, 0], [10, 11, 12], "same", 9.31, 0.05, "contradicted"),
        ([10, 11, 12], [0, 0, 0], "same", 9.32, 0.05, "undecided"),
        ([10, 11, 12], [0, 0, 0], "same", 9.31, 0.025, "undecided"),
        ([10, 11, 12], [0, 0, 0], "same", 8.51, 0.025, "contradicted"),
        ([10, 11, 12], [0, 0, 0], "same", 12.69, 0.05, "holds"),
        ([10, 11, 12], [0, 0, 0], "same", 12.68, 0.05, "undecided"),
    ],
)
def test_claim_verdict(left, right, relation, margin, alpha, verdict):
    assert claim_verdict(claim_test(left, right, relation, margin, alpha), relation, margin) == verdict


def test_a_side_that_is_better_is_named():
    assert [cell_verdict([146, 147, 148], 145, 3, better) for better in ("lower", "higher", None)] == ["worse", "better", "higher"]
    assert [cell_verdict([146, 147, 148], 149, 3, better) for better in ("lower", "higher", None)] == ["better", "worse", "lower"]


def test_levels_of_holm_by_hand():
    # sorted 0.005 < 0.05 / 4, 0.01 < 0.05 / 3, 0.03 >= 0.05 / 2: the last two share the level of the first that is not rejected
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    assert holm_levels([0.6, math.nan, 0.7])[::2] == [0.025, 0.025] and math.isnan(holm_levels([0.6, math.nan, 0.7])[1])
    assert holm_levels([0.001, 0.002]) == [0.025, 0.05] and holm_levels([]) == []


CLAIM = st.tuples(st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=0, max_size=6), st.sampled_from(["<", "same"]))


@given(st.lists(CLAIM, min_size=1, max_size=8), st.sampled_from([0.0, 0.4]))
def test_intervals_show_what_holm_decides(claims, overlap):
    """The adjusted p, computed apart from the levels, is below 5 % exactly where the interval decides."""
    margin = 2.5
    arguments = [(values, [0] * len(values), relation, margin if relation == "same" else None) for values, relation in claims]
    alone = [claim_test(*each, overlap=overlap)["p"] for each in arguments]
    for each, adjusted, alpha in zip(arguments, holm(alone), holm_levels(alone), strict=True):
        relation = each[2]
        if math.isnan(adjusted) or abs(adjusted - 0.05) < 1e-9:
            continue
        test = claim_test(*each, alpha, overlap)
        if relation == "<":
            assert (test["low"] > 0 or test["high"] < 0) == (adjusted < 0.05) and test["level"] == pytest.approx(1 - alpha)
        else:
            assert (-margin < test["low"] and test["high"] < margin) == (adjusted < 0.05) and test["level"] == pytest.approx(1 - 2 * alpha)
        assert (claim_verdict(test, relation, margin) in ("holds", "contradicted")) or adjusted >= 0.05


def test_resampled_test_sets_by_hand():
    # Nadeau & Bengio: J = 4 test sets of 1 / 5 of the cases, variance 1 / 4 + 1 / 4 instead of 1 / 4. Values 1, 2, 3, 6: mean 3,
    # squares 4 + 1 + 0 + 9 = 14, s^2 = 14 / 3; standard error sqrt(14 / 3 / 2), with 3 degrees of freedom (t = 3.182446)
    half = 3.182446 * math.sqrt(14 / 6)
    assert mean_interval([1, 2, 3, 6], overlap=resampling_overlap(1, 0.2)) == pytest.approx((3, 3 - half, 3 + half), abs=1e-5)
    test = claim_test([1, 2, 3, 6], [0, 0, 0, 0], "<", overlap=0.25)
    assert (test["low"], test["high"]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert test["p"] == pytest.approx(2 * _density_integral(3 / math.sqrt(14 / 6), 3), abs=1e-7)
    # ten test sets of a tenth in each of two means: s^2 of the sets is ten times that of the means; (1 / 20 + 1 / 9) 10 = 0.5 + 10 / 9
    assert resampling_overlap(10, 0.1) == pytest.approx(10 / 9)
    _, low, high = mean_interval([4, 6], overlap=10 / 9)  # s^2 = 2, t(1, 0.975) = 12.7062
    assert (low, high) == pytest.approx(
        (5 - 12.7062 * math.sqrt(2 * (0.5 + 10 / 9)), 5 + 12.7062 * math.sqrt(2 * (0.5 + 10 / 9))), abs=1e-4
    )
    assert cell_verdict([4.9, 5.0, 5.1], 5, 0.3) == "reproduced" and cell_verdict([4.9, 5.0, 5.1], 5, 0.3, overlap=1.0) == "undecided"


def test_means_of_overlapping_test_sets_cover_the_truth_once_corrected():
    """Ten means of ten test sets, correlated as Nadeau & Bengio assume (by the share of the cases in a test set)."""
    rng, rho = np.random.default_rng(0), 0.1
    shared, own = rng.standard_normal((2000, 1)), rng.standard_normal((2000, 10)) / math.sqrt(10)
    means = math.sqrt(rho) * shared + math.sqrt(1 - rho) * own
    inside = [
        [low <= 0 <= high for _, low, high in (mean_interval(row, overlap=o) for row in means)] for o in (0.0, resampling_overlap(10, rho))
    ]
    assert np.mean(inside[0]) < 0.5 and 0.935 < np.mean(inside[1]) < 0.965


def test_holm_by_hand():
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[::2] == pytest.approx([0.02, 0.04]) and math.isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.randoms())
def test_holm_properties(p, random):
    adjusted = holm(p)
    assert all(raw <= new <= 1 for raw, new in zip(p, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order])


def test_reported_difference_by_hand():
    # squared errors 9 / 3 = 3 and 1: standard error 2; degrees of freedom (3 + 1)^2 / ((9 + 1) / 2) = 3.2
    result = reported_test([(10, 3)], [(14, math.sqrt(3))], 3, "<")
    t = stats.t.ppf(0.975, 3.2)
    assert (result["mean"], result["low"], result["high"]) == pytest.approx((-4, -4 - 2 * t, -4 + 2 * t))
    assert result["p"] == pytest.approx(stats.ttest_ind_from_stats(10, 3, 3, 14, math.sqrt(3), 3, equal_var=False).pvalue)
    # alike spreads: Student's t with 2 (n - 1) = 4 degrees of freedom, standard error sqrt(6 / 3)
    result = reported_test([(1, math.sqrt(3))], [(2, math.sqrt(3))], 3, "<")
    assert (result["low"], result["high"]) == pytest.approx((-1 - T_975[4] * math.sqrt(2), -1 + T_975[4] * math.sqrt(2)), abs=1e-5)


def test_reported_mean_of_groups():
    # the mean of two groups has a quarter of the sum of their squared errors: (6 + 6) / 3 / 4 = 1, and 4 degrees of freedom
    result = reported_test([(1, math.sqrt(6)), (3, math.sqrt(6))], [(2, 0)], 3, "<")
    assert (result["mean"], result["low"], result["high"], result["p"]) == pytest.approx((0, -T_975[4], T_975[4], 1), abs=1e-5)


def test_reported_equivalence():
    sides = [(10, math.sqrt(3))], [(10.5, math.sqrt(3))]
    result = reported_test(*sides, 3, "same", 4)
    error = math.sqrt(2)
    assert (result["low"], result["high"]) == pytest.approx((-0.5 - T_95[4] * error, -0.5 + T_95[4] * error), abs=1e-5)
    assert result["p"] == pytest.approx(stats.t.sf(3.5 / error, 4)), "the larger of the two one-sided p: the margin on this side"
    assert reported_test(*sides[::-1], 3, "same", 4)["p"] == pytest.approx(result["p"])
    just = 0.5 + T_95[4] * error
    assert reported_test(*sides, 3, "same", just)["p"] == pytest.approx(0.05, abs=1e-6)


def test_reported_needs_two_runs_and_a_known_relation():
    with pytest.raises(ValueError, match="at least two runs, not 1"):
        reported_test([(1, 1)], [(2, 1)], 1, "<")
    for relation, margin in ((">", None), ("same", None)):
        with pytest.raises(ValueError, match="relation must be"):
            reported_test([(1, 1)], [(2, 1)], 3, relation, margin)
