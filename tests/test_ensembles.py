"""Ensemble selection: hand-worked choices, guarantees, and every family against scikit-learn's own answer."""

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from kdcore import papers
from kdcore.papers.model_compression import ensembles

ALL = {"bags": 1, "share": 1.0}


@pytest.fixture(scope="module")
def cases():
    x, y = make_classification(360, 6, n_informative=4, flip_y=0.1, random_state=0)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    return x[:200], y[:200], x[200:], y[200:]


def test_rmse_by_hand():
    y = np.array([1, 0])
    assert ensembles.rmse(np.array([0.6, 0.8]), y) == pytest.approx(np.sqrt((0.16 + 0.64) / 2))
    assert ensembles.rmse(np.array([[0.6, 1], [0.8, 0]]), y) == pytest.approx([np.sqrt(0.4), 0])


def test_models_that_make_up_for_each_other_share_the_weight():
    y = np.array([1, 0])
    predictions = np.array([[0.6, 1.0, 0.0], [0.0, 0.4, 1.0]])  # alone 0.283, 0.283, 1; the first two together 0.2
    weights = ensembles.select(predictions, y, np.random.default_rng(0), **ALL, start=1, steps=10)
    assert weights == pytest.approx([0.5, 0.5, 0])


def test_a_model_can_be_chosen_again():
    # y = 0: 0.1 and -0.3 cancel as 3 to 1
    weights = ensembles.select(np.array([[0.1, -0.3]]), np.zeros(1), np.random.default_rng(0), **ALL, start=1, steps=10)
    assert weights == pytest.approx([0.75, 0.25])


def test_sorted_initialisation_takes_the_best_together():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    good = y[:, None] + rng.normal(0, 0.3, (400, 6))
    predictions = np.concatenate([good, rng.random((400, 20))], 1)
    weights = ensembles.select(predictions, y, rng, **ALL, start=25, steps=0)
    assert (weights[:6] == pytest.approx(1 / 6)) and not weights[6:].any()


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_than_its_best_model_on_the_hill(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=50)
    predictions = np.clip(y[:, None] * 0.4 + rng.random((50, 30)) * 0.6, 0, 1)
    weights = ensembles.select(predictions, y, rng, **ALL, start=5, steps=30)
    assert ensembles.rmse(predictions @ weights, y) <= ensembles.rmse(predictions, y).min()
    bagged = ensembles.select(predictions, y, rng, bags=7, share=0.5, start=5, steps=30)
    assert bagged.sum() == pytest.approx(1) and (bagged >= 0).all()
    # a mean's error is at most the largest: a bag of half the models is no worse than the median model
    assert ensembles.rmse(predictions @ bagged, y) < np.median(ensembles.rmse(predictions, y))


POLYNOMIAL = {"kernel": "poly", "coef0": 1}


@pytest.mark.parametrize(
    "kernel, options",
    [("linear", {"kernel": "linear"}), ("poly2", POLYNOMIAL | {"degree": 2}), ("poly3", POLYNOMIAL | {"degree": 3}), ("rbf", {})],
)
def test_support_vectors_are_scikit_learns(cases, kernel, options):
    x, y, other, _ = cases
    family = ensembles.support_vectors(x, y, 0, kernel=kernel, width=3.0, c=[0.1, 10])
    for column, c in zip(family.scores(other).T, (0.1, 10), strict=True):
        expected = SVC(C=c, gamma=3.0 / x.shape[1], **options).fit(x, y).decision_function(other)
        np.testing.assert_allclose(column, expected, atol=2e-3 * np.abs(expected).max())
    assert family.margins and len(family.names) == 2


def test_neighbours_are_scikit_learns(cases):
    x, y, other, _ = cases
    family = ensembles.neighbours(x, y, 0, k=[1, 5], weights=["uniform", "distance"])
    kinds = [(1, "uniform"), (5, "uniform"), (1, "distance"), (5, "distance")]
    for column, (k, weights) in zip(family.scores(other).T, kinds, strict=True):
        expected = KNeighborsClassifier(k, weights=weights).fit(x, y).predict_proba(other)[:, 1]
        np.testing.assert_allclose(column, expected, atol=1e-5)


def test_boosted_rounds_are_scikit_learns(cases):
    x, y, other, _ = cases
    family = ensembles.boosted(x, y, 3, criterion="gini", depth=2, rounds=[2, 8])
    model = AdaBoostClassifier(DecisionTreeClassifier(max_depth=2), n_estimators=8, random_state=3).fit(x, y)
    stages = list(model.staged_decision_function(other))
    for column, stage in zip(family.scores(other).T, (stages[1], stages[7]), strict=True):
        np.testing.assert_allclose(2 * column, stage, atol=1e-9)  # it counts a vote for one side and against the other
    assert [len(part) for part in family.parts] == [2, 8]


def test_boosting_that_ends_early_has_fewer_models():
    x = np.arange(20, dtype=np.float32)[:, None]
    family = ensembles.boosted(x, (x[:, 0] > 9).astype(int), 0, criterion="gini", depth=1, rounds=[1, 4, 16])
    assert len(family.names) == 1 and family.scores(x).shape == (20, 1)


def test_snapshots_of_a_net_are_nets_trained_so_long(cases):
    x, y, other, _ = cases
    both = ensembles.nets(x, y, 1, units=4, decay=0.01, epochs=[2, 6]).scores(other)
    short = ensembles.nets(x, y, 1, units=4, decay=0.01, epochs=[2]).scores(other)
    assert np.array_equal(both[:, 0], short[:, 0]) and not np.array_equal(both[:, 0], both[:, 1])


def test_margins_become_probabilities_that_fit(cases):
    """At Platt's optimum the mean probability is the share of positives, and errors and margins are uncorrelated."""
    x, y, hill_x, hill_y = cases
    library = ensembles.Library(x, y, hill_x, hill_y)
    library.add(library.grow("support_vectors", {"kernel": "rbf", "width": 0.5, "c": [1, 10]}, 0))
    margins = library.families[0].family.scores(hill_x)
    for column, margin in zip(library.hill.T, margins.T, strict=True):
        assert column.mean() == pytest.approx(hill_y.mean(), abs=2e-3)
        assert np.mean((column - hill_y) * margin / np.abs(margin).max()) == pytest.approx(0, abs=2e-3)
        assert (np.diff(column[np.argsort(margin)]) >= 0).all()


def test_a_library_predicts_the_weighted_mean(cases, monkeypatch):
    x, y, hill_x, hill_y = cases
    library = ensembles.Library(x, y, hill_x, hill_y)
    for family, settings in ensembles.plan(papers.get("model_compression").config("smoke", "letter.p1: ensemble")["library"]):
        library.add(library.grow(family, settings, 0))
    models = library.hill.shape[1]
    assert len(library.names) == len(library.kinds) == models and np.isfinite(library.hill).all()
    assert library.hill.min() >= 0 and library.hill.max() <= 1
    weights = np.random.default_rng(0).random(models)
    weights[::2] = 0
    weights /= weights.sum()
    monkeypatch.setattr(ensembles.Library, "CHUNK", 37)  # the parts of many cases are joined
    np.testing.assert_allclose(library.predict(hill_x, weights), library.hill @ weights, atol=1e-6)
    only = np.zeros(models)
    only[3] = 1
    np.testing.assert_allclose(library.predict(hill_x, only), library.hill[:, 3], atol=1e-6)
    assert 0 < library.size_mb(only) < library.size_mb(weights)


def test_a_plan_is_the_product_of_its_lists():
    grids = [{"family": "trees", "criterion": ["gini", "entropy"], "leaf": [1, 4]},
             {"family": "support_vectors", "kernel": "rbf", "width": [1, 3], "c": [1, 10]},
             {"family": "logistic", "c": [1, 10]}]  # fmt: skip
    planned = list(ensembles.plan(grids))
    assert planned[:2] == [("trees", {"criterion": "gini", "leaf": 1}), ("trees", {"criterion": "gini", "leaf": 4})]
    assert planned[4:6] == [("support_vectors", {"kernel": "rbf", "width": w, "c": [1, 10]}) for w in (1, 3)]
    assert planned[6:] == [("logistic", {"c": 1}), ("logistic", {"c": 10})]


def test_the_papers_library_has_300_models():
    count = 0
    for family, settings in ensembles.plan(papers.get("model_compression").config("paper", "adult: ensemble")["library"]):
        assert family in ensembles.FAMILIES
        whole = [value for value in settings.values() if isinstance(value, list)]
        count += int(np.prod([len(value) for value in whole]))
    assert 300 <= count < 400
