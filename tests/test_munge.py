"""Pseudo data: MUNGE against its algorithm written out, limits, what each method keeps and loses."""

import numpy as np
import pytest
from scipy import stats

from kdcore.papers.model_compression import munge

WORDS = [0, 3, 0, 2]  # two numbers, two nominal variables


def mixed(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(50, 20, n), rng.integers(3, size=n), rng.random(n), rng.integers(2, size=n)], 1)


def literal_munge(values, words, passes, rng, p, s):
    """Algorithm 1 line by line, one number at a time; the random numbers are drawn in the same order."""
    numbers = [a for a in range(len(words)) if not words[a]]
    nominal = [a for a in range(len(words)) if words[a]]
    low = {a: min(v[a] for v in values) for a in numbers}
    width = {a: max(v[a] for v in values) - low[a] for a in numbers}
    made = []
    for _ in range(passes):
        t = [[float(x) for x in row] for row in values]
        moved = rng.random((len(t), len(numbers))) < p
        swapped = rng.random((len(t), len(nominal))) < p
        noise = rng.standard_normal((2, len(t), len(numbers)))
        for e in range(len(t)):
            distances = []
            for other in range(len(t)):
                euclid = sum(((t[e][a] - t[other][a]) / width[a]) ** 2 for a in numbers) ** 0.5
                hamming = sum(t[e][a] != t[other][a] for a in nominal)
                distances.append(float("inf") if other == e else euclid + hamming)
            closest = distances.index(min(distances))
            for i, a in enumerate(numbers):
                mine, its = t[e][a], t[closest][a]
                sd = abs(mine - its) / s
                if moved[e, i]:
                    t[e][a] = its + sd * noise[0, e, i]
                    t[closest][a] = mine + sd * noise[1, e, i]
            for i, a in enumerate(nominal):
                if swapped[e, i]:
                    t[e][a], t[closest][a] = t[closest][a], t[e][a]
        made += t
    return np.array(made)


@pytest.mark.parametrize("p, s", [(0.5, 1.0), (0.2, 5.0), (1.0, 2.0)])
def test_munge_is_algorithm_1(p, s):
    values = mixed()
    made = munge.munge(values, WORDS, 120, np.random.default_rng(7), p, s)
    expected = literal_munge(values, WORDS, 3, np.random.default_rng(7), p, s)
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-9)
    assert not np.allclose(made[:40], made[40:80]), "each pass begins with the training cases and draws anew"
    assert np.array_equal(munge.munge(values, WORDS, 50, np.random.default_rng(7), p, s), made[:50]), "the first of them"


def test_munge_meets_neighbours_where_they_then_are():
    # with p = 1 and no noise a case changes places with its closest: 0 and 0.1, back again, then 1 and 0.1
    made = munge.munge(np.array([[0.0], [0.1], [1.0]]), [0], 3, np.random.default_rng(0), 1.0, np.inf)
    np.testing.assert_allclose(made[:, 0], [0.0, 1.0, 0.1], atol=1e-12)


def test_limits_of_munge():
    values = mixed()
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(munge.munge(values, WORDS, 80, rng, 0.0, 1.0), np.tile(values, (2, 1)), rtol=1e-12)
    few = mixed(6)  # so few that the closest case has other words
    swapped = munge.munge(few, WORDS, 6, rng, 0.7, 1.0)
    for a in (1, 3):  # words only change places
        assert sorted(swapped[:, a]) == sorted(few[:, a])
    assert not np.array_equal(swapped[:, [1, 3]], few[:, [1, 3]])


def test_a_larger_s_keeps_cases_closer():
    values = np.random.default_rng(1).random((200, 3))
    spread = []
    for s in (0.5, 1, 5):
        made = munge.munge(values, [0, 0, 0], 200, np.random.default_rng(2), 1.0, s)
        nearest = np.sqrt(((made[:, None] - values[None]) ** 2).sum(-1)).min(1)
        spread.append(nearest.mean())
    assert spread[0] > 1.5 * spread[1] > 3 * spread[2]


def test_equal_cases_and_a_constant_variable():
    values = np.array([[1.0, 5.0], [1.0, 5.0], [1.0, 6.0]])
    made = munge.munge(values, [0, 0], 9, np.random.default_rng(0), 1.0, 1.0)
    assert np.isfinite(made).all() and (made[:, 0] == 1).all()


def test_random_keeps_each_variable_and_breaks_their_ties():
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    values = np.stack([x, x, (x > 0).astype(float)], 1)
    made = munge.random(values, 20_000, rng)
    assert made.shape == (20_000, 3) and np.isin(made[:, 0], x).all()
    assert stats.ks_2samp(made[:, 0], x).pvalue > 0.01 and abs(made[:, 2].mean() - values[:, 2].mean()) < 0.02
    assert abs(np.corrcoef(made.T)[0, 1]) < 0.03 and np.corrcoef(values.T)[0, 1] > 0.999


def blobs(n=600, seed=0):
    """Two groups, told apart by a number and tied to a word."""
    rng = np.random.default_rng(seed)
    group = rng.integers(2, size=n)
    return np.stack([rng.normal(10 * group, 1), rng.normal(size=n), group.astype(float)], 1)


def test_mixture_keeps_what_the_groups_tie_together():
    values, rng = blobs(), np.random.default_rng(3)
    mixture = munge.NaiveBayesMixture(values, [0, 0, 2], rng)
    made = mixture.sample(5000, rng)
    right = (made[:, 0] > 5) == (made[:, 2] == 1)
    assert right.mean() > 0.98 and 0.4 < made[:, 2].mean() < 0.6
    broken = munge.random(values, 5000, rng)
    assert 0.4 < ((broken[:, 0] > 5) == (broken[:, 2] == 1)).mean() < 0.6
    assert set(made[:, 2]) == {0.0, 1.0} and stats.ks_2samp(made[:, 1], values[:, 1]).pvalue > 0.001


def test_likelihood_of_the_mixture_by_hand():
    mixture = munge.NaiveBayesMixture(blobs(), [0, 0, 2], np.random.default_rng(0))
    values = np.array([[0.3, -1.0, 0.0], [9.0, 0.5, 1.0], [5.0, 0.0, 0.0]])
    terms = np.stack(
        [
            weight
            * stats.norm(mean[0], sd[0]).pdf(values[:, 0])
            * stats.norm(mean[1], sd[1]).pdf(values[:, 1])
            * table[values[:, 2].astype(int)]
            for weight, mean, sd, table in zip(mixture.weights, mixture.means, mixture.deviations, mixture.tables[0], strict=True)
        ],
        1,
    )
    share, likelihood = mixture._logs(values)
    np.testing.assert_allclose(likelihood, np.log(terms.sum(1)), rtol=1e-9)
    np.testing.assert_allclose(share, terms / terms.sum(1, keepdims=True), rtol=1e-7)
    assert mixture.weights.sum() == pytest.approx(1) and all(table.sum(1) == pytest.approx(1) for table in mixture.tables)


def test_a_single_component_is_the_moments():
    values = np.random.default_rng(0).normal([3, -2], [1, 5], (500, 2))  # one normal distribution: no groups to be found
    mixture = munge.NaiveBayesMixture(values, [0, 0], np.random.default_rng(0))
    assert len(mixture.weights) == 1
    np.testing.assert_allclose(mixture.means[0], values.mean(0))
    np.testing.assert_allclose(mixture.deviations[0], values.std(0))
