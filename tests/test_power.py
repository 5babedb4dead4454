"""What a number of seeds can show: published sample sizes, simulations, and the table of kdcore plan."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import KEY, made
from scipy import stats

from kdcore import cli, papers
from kdcore.report import power
from kdcore.trials.store import Store

PAPER = papers.get(KEY)
gaps, spreads, counts = st.floats(0.05, 5), st.floats(0.1, 5), st.integers(2, 40)


@pytest.mark.parametrize(("gap", "n", "published"), [(0.5, 34, 0.8078), (0.2, 199, 0.8017), (0.8, 15, 0.8213)])
def test_published_power_of_a_paired_t_test(gap, n, published):
    """Small, medium and large effects at 5 %, two-sided: the pairs that Cohen's tables and G*Power give for a power of 0.8."""
    assert power.of_difference(gap, 1.0, n) == pytest.approx(published, abs=5e-5)
    assert power.of_difference(gap, 1.0, n - 1) < 0.8


def test_seeds_needed_for_published_effects():
    assert power.seeds_needed(0.5, 1.0) == 34 and power.seeds_needed(-0.8, 1.0) == 15
    assert power.seeds_needed(0.2, 1.0) is None, "199 are more than 100"
    assert power.seeds_needed(0.0, 1.0) is None
    assert power.seeds_needed(1.0, 0.0) == 2, "no spread"


def simulated(n: int, gap: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Means [draws] and standard errors [draws] of ``n`` differences, in float64."""
    draws = np.random.default_rng(n).normal(gap, spread, (200_000, n))
    return draws.mean(1), draws.std(1, ddof=1) / np.sqrt(n)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7])
def test_power_of_a_difference_is_how_often_it_is_found(n, alpha):
    mean, error = simulated(n, gap=6.0, spread=2.0)
    found = np.mean(abs(mean) / error > stats.t.ppf(1 - alpha / 2, n - 1))
    assert power.of_difference(6.0, 2.0, n, alpha) == pytest.approx(found, abs=0.004)


@pytest.mark.parametrize(("n", "gap", "margin"), [(3, 0.0, 5.0), (5, 0.5, 3.0), (5, 2.5, 3.0), (12, -1.0, 2.0), (12, 3.0, 2.0)])
def test_power_of_equivalence_is_how_often_it_is_found(n, gap, margin):
    mean, error = simulated(n, gap, spread=1.5)
    half = stats.t.ppf(0.95, n - 1) * error
    found = np.mean((mean - half > -margin) & (mean + half < margin))
    assert power.of_equivalence(gap, 1.5, n, margin) == pytest.approx(found, abs=0.004)


def test_overlap_leaves_a_rest_that_no_number_of_seeds_removes():
    # s^2 (1 / n + 0.2): with n = 5 the standard error of n = 2.5 independent ones
    t, shift = stats.t.ppf(0.975, 4), 2 / math.sqrt(0.4)
    assert power.of_difference(2.0, 1.0, 5, overlap=0.2) == pytest.approx(stats.nct.sf(t, 4, shift), abs=1e-5), "and a far tail"
    assert power.seeds_needed(0.5, 1.0, overlap=1.0) is None
    assert power.seeds_needed(3.0, 1.0, overlap=0.2, per_seed=10) == 2 < power.seeds_needed(3.0, 1.0, overlap=0.2)


@settings(max_examples=40, deadline=None)
@given(gaps, spreads, counts)
def test_power_rises_with_gap_seeds_and_level_and_falls_with_spread(gap, spread, n):
    here = power.of_difference(gap, spread, n)
    assert 0 <= here <= 1 + 1e-12
    assert power.of_difference(-gap, spread, n) == here
    assert power.of_difference(1.5 * gap, spread, n) >= here - 1e-9
    assert power.of_difference(gap, spread, n + 1) >= here - 1e-9
    assert power.of_difference(gap, 1.5 * spread, n) <= here + 1e-9
    assert power.of_difference(gap, spread, n, alpha=0.01) <= here + 1e-9
    assert power.of_equivalence(0.0, spread, n, 1.5 * gap) >= power.of_equivalence(0.0, spread, n, gap) - 1e-9
    assert power.of_equivalence(0.5 * gap, spread, n, gap) <= power.of_equivalence(0.0, spread, n, gap) + 1e-9


@settings(max_examples=20, deadline=None)
@given(spreads, st.integers(2, 20))
def test_what_seeds_detect_has_the_power_that_is_promised(spread, n):
    gap, margin = power.detectable_gap(spread, n, alpha=0.01), power.margin_needed(spread, n)
    assert power.of_difference(gap, spread, n, alpha=0.01) == pytest.approx(0.8, abs=1e-6)
    assert power.of_equivalence(0.0, spread, n, margin) == pytest.approx(0.8, abs=1e-6)
    assert power.detectable_gap(spread, n + 1, alpha=0.01) < gap and power.margin_needed(spread, n + 1) < margin
    assert power.detectable_gap(2 * spread, n, alpha=0.01) == pytest.approx(2 * gap)


def test_a_gap_beyond_the_margin_is_to_be_found_outside():
    n = power.seeds_needed(3.0, 1.0, margin=1.0)
    # contradicted where the interval of level 1 - 2 alpha lies outside: a one-sided test of 2 against a spread of 1
    assert n == next(n for n in range(2, 100) if stats.nct.sf(stats.t.ppf(0.95, n - 1), n - 1, 2 * math.sqrt(n)) >= 0.8)


def records(small, kd, budget="fast"):
    values = {"small": small, "small with KD": kd}
    return [made(PAPER.trial(budget, arm, seed), {"test_errors": value}) for arm, each in values.items() for seed, value in enumerate(each)]


SEEDS = {arm: set(range(6)) for arm in PAPER.budget_arms("fast")}


def test_the_claims_of_a_plan():
    # differences 31, 42, 36: mean 36.33, spread the root of 60.67 / 2
    rows = {row["id"]: row for row in power.claims(PAPER, records((139, 142, 148), (108, 100, 112)), "fast", SEEDS)}
    row, tests = rows["kd_helps"], len(PAPER.sheet["claims"])
    assert (row["now"], row["planned"], row["tests"]) == (3, 6, tests)
    assert row["spread"] == pytest.approx(math.sqrt(60.6667 / 2), abs=1e-3) and row["gap"] == pytest.approx(-36.3333, abs=1e-3)
    assert power.of_difference(row["detects"], row["spread"], 6, 0.05 / tests) == pytest.approx(0.8, abs=1e-6)
    assert row["verdict"] == "holds" and row["needs"] == 0, "the only one with p; its level is 0.05"
    other = rows["big_beats_small"]
    assert (other["now"], other["verdict"], other["needs"]) == (0, "", 0) and math.isnan(other["spread"]) and math.isnan(other["detects"])
    assert f"level 0.05 / {tests}, for {tests} claims" in power.in_words(list(rows.values()))


def test_an_undecided_claim_says_how_many_seeds_it_needs():
    (row,) = [row for row in power.claims(PAPER, records((139, 142, 148), (108, 150, 112)), "fast", SEEDS) if row["id"] == "kd_helps"]
    # differences 31, -8, 36: mean 19.67, squares 128.4 + 765.4 + 266.8 = 1160.7
    assert row["verdict"] == "undecided" and row["spread"] == pytest.approx(math.sqrt(1160.667 / 2), abs=1e-3)
    alpha = 0.05 / row["tests"]
    reached = [power.of_difference(59 / 3, row["spread"], n, alpha) for n in (row["needs"] - 1, row["needs"])]
    assert reached[0] < 0.8 <= reached[1]
    assert "1 of 1 undecided claims needs more seeds." in power.in_words([row])
    assert "none of 1 undecided claims needs more seeds." in power.in_words([row | {"planned": row["needs"]}])


def test_claims_whose_arms_are_not_planned_are_left_out():
    assert power.claims(PAPER, [], "fast", {"small": {0, 1}, "small with KD": {1, 2}}) == [], "one common seed"
    (row,) = power.claims(PAPER, [], "fast", {"small": {0, 1, 2}, "small with KD": {1, 2}})
    assert row["planned"] == 2 and row["id"] == "kd_helps"
    assert "No claim has two seeds yet" in power.in_words([row]) and "standard deviations with 2 seeds" in power.in_words([row])


def test_margins_of_numbers():
    rows = power.numbers(PAPER, records((139, 142, 148), (108, 100, 112)), "fast", SEEDS)
    small = rows[0]
    # 139, 142, 148: mean 143, squares 16 + 1 + 25
    assert small["label"].startswith("small") and power.of_equivalence(0.0, math.sqrt(21), 6, small["needs"]) == pytest.approx(
        0.8, abs=1e-6
    )
    wide, narrow = small | {"margin": 99, "needs": 98.0}, small | {"label": "a", "margin": 2, "needs": 3.04}
    assert power.margins_in_words([wide]).startswith("1 of 1 margins") and power.margins_in_words([wide]).endswith("reproduced.")
    assert power.margins_in_words([wide, narrow]).endswith("these would need wider ones: 'a' 3 (has 2).")
    assert power.margins_in_words([narrow] * 7).endswith("and 2 more.")


def test_plan_prints_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    plan = ["plan", KEY, "--budget", "fast", "--no-forecast", "--results", str(tmp_path)]
    assert cli.main(plan) == 0
    assert "No claim has two seeds yet" in capsys.readouterr().out
    for each in records((139, 142, 148), (108, 150, 112)):
        Store(tmp_path).put(each)
    assert cli.main(plan) == 0
    out = capsys.readouterr().out
    assert "What the planned seeds can show" in out and "3 of 5" in out and "undecided" in out
    assert cli.main([*plan, "--arm", "small"]) == 0
    assert "No claim has all of its arms" in capsys.readouterr().out
    assert cli.main(["plan", KEY, "--no-forecast", "--results", str(tmp_path)]) == 0
    assert "planned seeds" not in capsys.readouterr().out, "smoke is not judged"


def test_a_machine_without_scipy_still_plans(tmp_path):
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "from kdcore import cli\n"
        f"sys.exit(cli.main(['plan', '{KEY}', '--budget', 'fast', '--no-forecast', '--results', {str(tmp_path)!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "not computed, because scipy is not installed" in ran.stdout and "cumbersome" in ran.stdout
