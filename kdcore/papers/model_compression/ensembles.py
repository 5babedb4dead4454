"""Ensemble selection from a library of models (Caruana et al. 2004), for two classes.

A library consists of families: models of one kind that share work, such as the distances of all nearest-neighbour models or the
rounds of one boosted sequence. Each model gives the probability of the positive class; margins (of support vector machines and
boosted trees) are turned into probabilities by Platt's method on the hill-climbing cases.

    library = Library(x, y, hill_x, hill_y)
    for family, settings in plan(grids): library.add(library.grow(family, settings, seed))
    weights = select(library.hill, hill_y, rng, bags=20, share=0.5, start=25, steps=200)
    library.predict(cases, weights)
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import linear_kernel, polynomial_kernel, rbf_kernel
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier


@dataclass(frozen=True)
class Family:
    """Fitted models that share work.

    names: one per model. scores: cases [n, d] -> [n, models], probabilities of the positive class, or margins; can be pickled.
    parts: the contents of each model, to measure its size.
    """

    names: list[str]
    scores: Callable[[np.ndarray], np.ndarray]
    parts: list
    margins: bool = False


def _probabilities(models: list, cases: np.ndarray) -> np.ndarray:
    return np.concatenate([model.predict_proba(cases)[:, 1:] for model in models], 1)


def neighbours(x: np.ndarray, y: np.ndarray, seed: int, *, k: list[int], weights: list[str]) -> Family:
    """k nearest neighbours with equal votes ("uniform") or votes of 1 / distance ("distance")."""
    index = NearestNeighbors(n_neighbors=max(k), algorithm="brute").fit(x)
    kinds = [(count, weight) for weight in weights for count in k]
    names = [f"{count} neighbours, {weight}" for count, weight in kinds]
    return Family(names, partial(_votes, index, y, kinds), [(x, y)] * len(kinds))


def _votes(index: NearestNeighbors, y: np.ndarray, kinds: list[tuple[int, str]], cases: np.ndarray) -> np.ndarray:
    apart, near = index.kneighbors(cases)
    votes = {"uniform": np.ones_like(apart), "distance": 1 / np.maximum(apart, 1e-6)}
    sums = {weight: ((votes[weight] * y[near]).cumsum(1), votes[weight].cumsum(1)) for _, weight in kinds}
    return np.stack([sums[weight][0][:, count - 1] / sums[weight][1][:, count - 1] for count, weight in kinds], 1)


def support_vectors(x: np.ndarray, y: np.ndarray, seed: int, *, kernel: str, width: float, c: list[float]) -> Family:
    """Support vector machines with one kernel, whose matrix is computed once for all values of C.

    kernel: linear, poly2 or poly3 ((width <u, v> / d + 1)^2 or ^3), or rbf (exp(-width |u - v|^2 / d)), where d is the number
    of inputs.
    """
    products = partial(_products, kernel, width / x.shape[1])
    gram = products(x, x).astype(np.float64)
    fitted = [SVC(C=value, kernel="precomputed", cache_size=500, max_iter=100_000).fit(gram, y) for value in c]
    dual, bias = np.zeros((len(x), len(c)), x.dtype), np.array([model.intercept_[0] for model in fitted], x.dtype)
    for column, model in zip(dual.T, fitted, strict=True):
        column[model.support_] = model.dual_coef_[0]
    parts = [(x[model.support_], model.dual_coef_) for model in fitted]
    name = kernel if kernel == "linear" else f"{kernel} {width:g}"
    return Family([f"SVM {name}, C={value:g}" for value in c], partial(_margins, products, x, dual, bias), parts, margins=True)


def _products(kernel: str, gamma: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if kernel == "linear":
        return linear_kernel(u, v)
    return rbf_kernel(u, v, gamma) if kernel == "rbf" else polynomial_kernel(u, v, int(kernel.removeprefix("poly")), gamma, 1)


def _margins(products: Callable, x: np.ndarray, dual: np.ndarray, bias: np.ndarray, cases: np.ndarray) -> np.ndarray:
    return products(cases, x) @ dual + bias


def nets(x: np.ndarray, y: np.ndarray, seed: int, *, units: int, decay: float, epochs: list[int]) -> Family:
    """A net with one hidden layer after each of some numbers of epochs."""
    net, taken = MLPClassifier((units,), alpha=decay, random_state=seed), []
    for epoch in range(1, max(epochs) + 1):
        net.partial_fit(x, y, classes=[0, 1])
        if epoch in epochs:
            taken.append(copy.deepcopy(net))
    names = [f"net of {units}, decay {decay:g}, {epoch} epochs" for epoch in epochs]
    return Family(names, partial(_probabilities, taken), taken)


def trees(x: np.ndarray, y: np.ndarray, seed: int, *, criterion: str, leaf: int) -> Family:
    """A decision tree with at least ``leaf`` cases in each leaf."""
    model = DecisionTreeClassifier(criterion=criterion, min_samples_leaf=leaf, random_state=seed).fit(x, y)
    return Family([f"tree {criterion}, leaves of {leaf}"], partial(_probabilities, [model]), [model])


def bagged(x: np.ndarray, y: np.ndarray, seed: int, *, criterion: str, leaf: int, count: int) -> Family:
    """Bagged trees, grown on bootstrap samples."""
    tree = DecisionTreeClassifier(criterion=criterion, min_samples_leaf=leaf)
    model = BaggingClassifier(tree, count, random_state=seed).fit(x, y)
    return Family([f"bagged trees {criterion}, leaves of {leaf}"], partial(_probabilities, [model]), [model])


def forests(x: np.ndarray, y: np.ndarray, seed: int, *, features: float, leaf: int, count: int) -> Family:
    """A random forest that tries ``features`` times the square root of the number of inputs at each split."""
    tried = int(min(max(round(features * x.shape[1] ** 0.5), 1), x.shape[1]))
    model = RandomForestClassifier(count, max_features=tried, min_samples_leaf=leaf, random_state=seed).fit(x, y)
    return Family([f"forest, {tried} inputs a cut, leaves of {leaf}"], partial(_probabilities, [model]), [model])


def boosted(x: np.ndarray, y: np.ndarray, seed: int, *, criterion: str, depth: int, rounds: list[int]) -> Family:
    """AdaBoost with trees of a given depth (1: stumps) after each of some numbers of rounds, or fewer if it stops early."""
    tree = DecisionTreeClassifier(criterion=criterion, max_depth=depth)
    model = AdaBoostClassifier(tree, n_estimators=max(rounds), random_state=seed).fit(x, y)
    rounds = [count for count in rounds if count <= len(model.estimators_)] or [len(model.estimators_)]

    voices = model.estimator_weights_[: len(model.estimators_)]
    # one vote per leaf, on the low-level trees: scikit-learn's input checks for each tree take longer than its predictions
    leaves = [
        voice * np.where(part.tree_.value[:, 0, 1] > part.tree_.value[:, 0, 0], 1.0, -1.0)
        for part, voice in zip(model.estimators_, voices, strict=True)
    ]

    names = [f"boosted {criterion} of depth {depth}, {count} rounds" for count in rounds]
    sorts = [part.tree_ for part in model.estimators_[: max(rounds)]]
    return Family(names, partial(_rounds, sorts, leaves, voices, rounds), [model.estimators_[:count] for count in rounds], margins=True)


def _rounds(sorts: list, leaves: list[np.ndarray], voices: np.ndarray, rounds: list[int], cases: np.ndarray) -> np.ndarray:
    margin, scores = np.zeros(len(cases)), []
    for number, (tree, votes) in enumerate(zip(sorts, leaves, strict=False), 1):
        margin += votes[tree.apply(cases)]
        if number in rounds:
            scores.append(margin / voices[:number].sum())
    return np.stack(scores, 1)


def logistic(x: np.ndarray, y: np.ndarray, seed: int, *, c: float) -> Family:
    """Logistic regression with a ridge penalty of 1 / C."""
    model = LogisticRegression(C=c, max_iter=1000).fit(x, y)
    return Family([f"logistic regression, C={c:g}"], partial(_probabilities, [model]), [model])


def bayes(x: np.ndarray, y: np.ndarray, seed: int, *, smoothing: float) -> Family:
    """Gaussian naive Bayes, with ``smoothing`` times the largest variance added to all variances."""
    model = GaussianNB(var_smoothing=smoothing).fit(x, y)
    return Family([f"naive Bayes, smoothing {smoothing:g}"], partial(_probabilities, [model]), [model])


FAMILIES = {f.__name__: f for f in (neighbours, support_vectors, nets, trees, bagged, forests, boosted, logistic, bayes)}
# parameters whose list belongs to one family; every other list makes a grid of families
WHOLE = {"k", "weights", "epochs", "rounds"}


def plan(grids: list[dict]) -> Iterator[tuple[str, dict]]:
    """(family, settings) of every family of a library.

    grids: each {"family": its name, parameter: a value or a list to try}. Lists for the parameters in ``WHOLE``, and for C of
    support vector machines, are passed to one family.
    """
    for grid in grids:
        family = grid["family"]
        whole = WHOLE | ({"c"} if family == "support_vectors" else set())
        lists = {key: value for key, value in grid.items() if isinstance(value, list) and key not in whole}
        fixed = {key: value for key, value in grid.items() if key != "family" and key not in lists}
        for values in product(*lists.values()):
            yield family, fixed | dict(zip(lists, values, strict=True))


@dataclass(frozen=True)
class Grown:
    """A family in a library: slopes and offsets of Platt's method, its models' predictions for the hill-climbing cases
    [cases, models], and their sizes in bytes when pickled separately."""

    kind: str
    family: Family
    platt: tuple[np.ndarray, np.ndarray] | None
    hill: np.ndarray
    sizes: list[int]

    def probabilities(self, cases: np.ndarray) -> np.ndarray:
        return _calibrated(self.family.scores(cases), self.platt)


class Library:
    """Models fitted to cases x [n, d] with labels y [n] in {0, 1}, and their predictions for the hill-climbing cases.

    ``names`` and ``kinds``: one per model; ``hill``: predictions [hill-climbing cases, models].
    """

    CHUNK = 10_000  # cases at a time: kernel matrices of more would not fit in memory

    def __init__(self, x: np.ndarray, y: np.ndarray, hill_x: np.ndarray, hill_y: np.ndarray):
        self.x, self.y, self.hill_x, self.hill_y = (np.ascontiguousarray(part, np.float32) for part in (x, y, hill_x, hill_y))
        self.families: list[Grown] = []
        self.hill = np.empty((len(hill_x), 0))

    @property
    def names(self) -> list[str]:
        return [name for grown in self.families for name in grown.family.names]

    @property
    def kinds(self) -> list[str]:
        return [grown.kind for grown in self.families for _ in grown.family.names]

    def grow(self, family: str, settings: dict, seed: int) -> Grown:
        """Fit another family (a key of ``FAMILIES``), to be passed to ``add``; it can be pickled."""
        fitted = FAMILIES[family](self.x, self.y.astype(int), seed, **settings)
        scores = fitted.scores(self.hill_x)
        platt = _platt(scores, self.hill_y) if fitted.margins else None
        sizes = [len(pickle.dumps(part)) for part in fitted.parts]
        return Grown(family, replace(fitted, parts=[]), platt, _calibrated(scores, platt), sizes)

    def add(self, grown: Grown) -> None:
        """Add a family to the library."""
        self.families.append(grown)
        self.hill = np.concatenate([self.hill, grown.hill], 1)

    def predict(self, cases: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weighted mean of the models' probabilities: cases [n, d], weights [models] with sum 1 -> [n].

        Families whose weights are all 0 are skipped.
        """
        cases, total = np.ascontiguousarray(cases, np.float32), np.zeros(len(cases))
        for part in range(0, len(cases), self.CHUNK):
            chunk, first = cases[part : part + self.CHUNK], 0
            for grown in self.families:
                own = weights[first : first + len(grown.sizes)]
                if own.any():
                    total[part : part + len(chunk)] += grown.probabilities(chunk) @ own
                first += len(grown.sizes)
        return total

    def size_mb(self, weights: np.ndarray) -> float:
        """Size in megabytes of the models whose weight is not 0."""
        sizes = [size for grown in self.families for size in grown.sizes]
        return sum(size for size, weight in zip(sizes, weights, strict=True) if weight) / 1e6


def _calibrated(scores: np.ndarray, platt: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    if platt is None:
        return scores
    slope, offset = platt
    return 1 / (1 + np.exp(-np.clip(slope * scores + offset, -30, 30)))


def _platt(margins: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slopes, offsets) [models] of the logistic curves that turn margins [n, models] into probabilities (Platt 1999)."""
    scale = np.maximum(np.abs(margins).max(0), 1e-12)
    fitted = [LogisticRegression(C=1e4).fit(column[:, None], y) for column in (margins / scale).T]
    return np.array([f.coef_[0, 0] for f in fitted]) / scale, np.array([f.intercept_[0] for f in fitted])


def rmse(predictions: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root mean squared error against the 0/1 targets: [n] -> a number, [n, models] -> one per model."""
    return np.sqrt(np.mean((predictions.T - y) ** 2, -1))


def select(
    predictions: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, bags: int, share: float, start: int, steps: int
) -> np.ndarray:
    """Weights [models], with sum 1, of an ensemble selected by its RMSE on the hill-climbing cases (Caruana et al. 2004).

    predictions: of the models, [n, models]; y [n]. Each of ``bags`` selections considers a random ``share`` of the models. It
    starts with the k best of them, where k <= ``start`` minimises the RMSE (sorted initialisation), then ``steps`` times adds
    the model that helps most, possibly a repeated one (selection with replacement), and keeps the best ensemble on the way. The
    ensembles of all bags are averaged.
    """
    total = np.zeros(predictions.shape[1])
    for _ in range(bags):
        models = rng.permutation(predictions.shape[1])[: max(1, round(share * predictions.shape[1]))]
        total[models] += _climb(predictions[:, models], y, start, steps) / bags
    return total


def _climb(predictions: np.ndarray, y: np.ndarray, start: int, steps: int) -> np.ndarray:
    order = np.argsort(rmse(predictions, y), kind="stable")[:start]
    together = predictions[:, order].cumsum(1) / np.arange(1, len(order) + 1)
    count = int(rmse(together, y).argmin()) + 1
    picks = list(order[:count])
    total = predictions[:, picks].sum(1)
    best, kept = rmse(total / count, y), count
    for _ in range(steps):
        errors = rmse((total[:, None] + predictions) / (len(picks) + 1), y)
        picks.append(int(errors.argmin()))
        total += predictions[:, picks[-1]]
        if errors.min() < best:
            best, kept = errors.min(), len(picks)
    return np.bincount(picks[:kept], minlength=predictions.shape[1]) / kept
