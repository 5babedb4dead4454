"""Born-again trees (Breiman & Shang 1996): CART, arcing, smearing, and a tree grown on the predictions of arced trees.

Cases are float32 [N, columns]. A column is a numeric variable, or one word of a one-hot nominal variable
(``kdcore.data.tabular.columns``), whose split is "this word against the rest". scikit-learn finds the splits; pruning is done
here, since the born-again tree has its own node costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.tree import DecisionTreeClassifier

BLOCK = 40_000  # smeared cases drawn and labelled at a time: tens of MB


@dataclass(frozen=True)
class Tree:
    """A binary tree; parents precede their children, the root is node 0.

    feature [nodes]: column of the split, -1 for a leaf. threshold: left is x <= threshold. left, right: children, -1 for
    a leaf. label: class of each node, including inner ones. cost: R(t), the node's share of all cases times its error.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    label: np.ndarray
    cost: np.ndarray

    @cached_property
    def parent(self) -> np.ndarray:
        """The parent of each node [nodes]; -1 for the root."""
        parent = np.full(len(self.feature), -1)
        inner = np.flatnonzero(self.feature >= 0)
        parent[self.left[inner]] = parent[self.right[inner]] = inner
        return parent

    @property
    def leaves(self) -> int:
        return int((self.feature < 0).sum())

    def reach(self, x: np.ndarray) -> np.ndarray:
        """Whether each case passes through each node: bool [nodes, N]."""
        reach = np.zeros((len(self.feature), len(x)), bool)
        reach[0] = True
        for node in np.flatnonzero(self.feature >= 0):
            goes_left = x[:, self.feature[node]] <= self.threshold[node]
            reach[self.left[node]] = reach[node] & goes_left
            reach[self.right[node]] = reach[node] & ~goes_left
        return reach

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The label of each case [N]."""
        node, cases = np.zeros(len(x), np.int64), np.arange(len(x))
        while (inner := self.feature[node] >= 0).any():
            goes_left = x[cases, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return self.label[node]

    def pruned(self, ends: np.ndarray) -> "Tree":
        """The tree in which the nodes ``ends`` (bool [nodes]) are leaves and everything below them is removed."""
        keep = np.zeros(len(self.feature), bool)
        keep[0] = True
        inner = (self.feature >= 0) & ~ends
        for node in np.flatnonzero(inner):  # parents first
            keep[[self.left[node], self.right[node]]] = keep[node]
        number = np.append(np.cumsum(keep) - 1, -1)  # the last entry is for "no child"
        cut = inner[keep]
        return Tree(
            feature=np.where(cut, self.feature[keep], -1),
            threshold=np.where(cut, self.threshold[keep], 0.0),
            left=np.where(cut, number[self.left[keep]], -1),
            right=np.where(cut, number[self.right[keep]], -1),
            label=self.label[keep],
            cost=self.cost[keep],
        )


def weakest_links(tree: Tree) -> np.ndarray:
    """For each node the complexity alpha at which it stops being an inner node: [nodes], -inf for a leaf.

        g(t) = (R(t) - R(T_t)) / (|T_t| - 1)

    The inner node with the smallest g becomes a leaf, repeatedly (Breiman et al. 1984, section 3.3). A branch that costs no
    less than its root is pruned at alpha = 0. Descendants of a node are pruned no later than the node.
    """
    alphas = np.full(len(tree.feature), -np.inf)
    alive = tree.feature >= 0
    branch, leaves = tree.cost.copy(), np.ones(len(tree.feature))
    for node in np.flatnonzero(alive)[::-1]:  # children first
        children = [tree.left[node], tree.right[node]]
        branch[node], leaves[node] = branch[children].sum(), leaves[children].sum()
    alpha = 0.0
    while alive.any():
        inner = np.flatnonzero(alive)
        links = (tree.cost[inner] - branch[inner]) / (leaves[inner] - 1)
        weakest = inner[links.argmin()]
        if links.min() > alpha + 1e-12:  # up to rounding errors
            alpha = links.min()
        more, fewer = tree.cost[weakest] - branch[weakest], leaves[weakest] - 1
        below = [weakest]
        for node in below:  # grows during the loop
            if alive[node]:
                alive[node], alphas[node] = False, alpha
                below += [tree.left[node], tree.right[node]]
        node = weakest
        while node >= 0:
            branch[node] += more
            leaves[node] -= fewer
            node = tree.parent[node]
    return alphas


def sequence(links: np.ndarray) -> np.ndarray:
    """The alphas of the nested subtrees T1 > T2 > ... > root, ascending from 0."""
    return np.unique(np.append(links[links > 0], 0.0))


def subtree_errors(tree: Tree, links: np.ndarray, alphas: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Number of cases of (x, y) that the subtree of each alpha misclassifies: [alphas]."""
    wrong = (tree.reach(x) & (tree.label[:, None] != y)).sum(1)
    above = np.append(links, np.inf)[tree.parent]  # the root has no parent
    # a node is a leaf of the subtree if it has been pruned and its parent has not
    ends = (links <= alphas[:, None]) & (alphas[:, None] < above)
    return ends @ wrong


def best_subtree(tree: Tree, x: np.ndarray, y: np.ndarray) -> Tree:
    """The subtree of the pruning sequence with the fewest errors on (x, y); at ties, the smallest."""
    links = weakest_links(tree)
    alphas = sequence(links)
    errors = subtree_errors(tree, links, alphas, x, y)
    return tree.pruned(links <= alphas[np.flatnonzero(errors == errors.min())[-1]])


def grow(x: np.ndarray, y: np.ndarray, seed: int) -> Tree:
    """scikit-learn's tree (Gini, grown until its leaves are pure), where R(t) is the share of all cases misclassified at t."""
    model = DecisionTreeClassifier(random_state=seed).fit(x, y)
    tree = model.tree_
    shares = tree.value[:, 0]
    return Tree(
        feature=np.where(tree.children_left >= 0, tree.feature, -1),
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        label=model.classes_[shares.argmax(1)],
        cost=(1 - shares.max(1)) * tree.n_node_samples / len(x),
    )


def cart(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, folds: int = 10) -> Tree:
    """CART: grown by Gini, pruned by error, with the subtree chosen by cross-validation (Breiman et al. 1984, section 3.4).

    Each subtree of the whole set's sequence is evaluated by the errors of the folds' trees, pruned at the geometric mean of
    its alpha and the next. The fewest errors win, without the one-standard-error rule; at ties, the smallest tree.
    """
    seeds = rng.integers(2**31, size=folds + 1)
    tree = grow(x, y, seeds[-1])
    links = weakest_links(tree)
    alphas = sequence(links)
    middles = np.append(np.sqrt(alphas[:-1] * alphas[1:]), 1.0)  # no link exceeds 1, which leaves the root alone
    fold = rng.permutation(len(x)) % folds
    errors = np.zeros(len(alphas), np.int64)
    for k in range(folds):
        held = fold == k
        part = grow(x[~held], y[~held], seeds[k])
        errors += subtree_errors(part, weakest_links(part), middles, x[held], y[held])
    return tree.pruned(links <= alphas[np.flatnonzero(errors == errors.min())[-1]])


class Committee:
    """Trees that vote: ``predict`` returns the class with the largest weight, at ties the first."""

    def __init__(self, classes: int):
        self.classes, self.trees, self.weights = classes, [], []

    def add(self, x: np.ndarray, y: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
        """Grow a tree until its leaves are pure, on cases repeated ``counts`` [N] times; return its predictions for ``x`` [N].

        Its vote has weight 1 unless ``weights[-1]`` is changed.
        """
        drawn = counts > 0
        model = DecisionTreeClassifier(random_state=seed).fit(x[drawn], y[drawn], counts[drawn])
        tree = (model.tree_, model.classes_[model.tree_.value[:, 0].argmax(1)])
        self.trees.append(tree)
        self.weights.append(1.0)
        return _answers(tree, x)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predicted classes [N] of cases x (float32 [N, columns], contiguous)."""
        votes, cases = np.zeros((len(x), self.classes)), np.arange(len(x))
        for tree, weight in zip(self.trees, self.weights, strict=True):
            votes[cases, _answers(tree, x)] += weight
        return votes.argmax(1)


def _answers(tree: tuple, x: np.ndarray) -> np.ndarray:
    grown, labels = tree
    return labels[grown.apply(x)]


def arc_x4(x: np.ndarray, y: np.ndarray, classes: int, rng: np.random.Generator, trees: int = 50) -> Committee:
    """Arcing by counting mistakes, with equal votes (Breiman 1996, "Bias, variance, and arcing classifiers").

        p(n) = (1 + m(n)^4) / sum,    m(n): number of trees so far that misclassify case n

    Each tree is grown on N cases drawn with replacement with these probabilities.
    """
    committee, missed = Committee(classes), np.zeros(len(x))
    for _ in range(trees):
        missed += committee.add(x, y, _drawn(arc_x4_chances(missed), rng), int(rng.integers(2**31))) != y
    return committee


def arc_x4_chances(missed: np.ndarray) -> np.ndarray:
    """p(n) from m(n) [N]."""
    chances = 1 + missed**4
    return chances / chances.sum()


def arc_fs(x: np.ndarray, y: np.ndarray, classes: int, rng: np.random.Generator, trees: int = 50) -> Committee:
    """Arcing after Freund and Schapire (Breiman 1996): as ``arc_x4``, with

        e = sum of p(n) over the cases that the tree misclassifies,    b = (1 - e) / e,
        p(n) <- p(n) b^d(n) / sum,    d(n): 1 if it is wrong,    votes of weight log b

    If e is 0 or at least 1/2, the probabilities are reset to equal ones. The paper does not give the tree's vote in this case:
    here e = 0 is taken as 1 / 2N, and a tree with e >= 1/2 has no vote.
    """
    committee, chances = Committee(classes), np.full(len(x), 1 / len(x))
    for _ in range(trees):
        wrong = committee.add(x, y, _drawn(chances, rng), int(rng.integers(2**31))) != y
        committee.weights[-1], chances = arc_fs_step(chances, wrong)
    return committee


def arc_fs_step(chances: np.ndarray, wrong: np.ndarray) -> tuple[float, np.ndarray]:
    """(weight of the tree's vote, probabilities for the next) from the probabilities and mistakes [N] of a tree."""
    error, equal = chances[wrong].sum(), np.full(len(chances), 1 / len(chances))
    if error >= 0.5:
        return 0.0, equal
    if error == 0:
        return float(np.log(2 * len(chances) - 1)), equal
    odds = (1 - error) / error
    chances = chances * np.where(wrong, odds, 1.0)
    return float(np.log(odds)), chances / chances.sum()


def _drawn(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Number of times that each case is drawn in N draws with replacement: [N]."""
    return rng.multinomial(len(chances), chances).astype(np.float64)


@dataclass(frozen=True)
class Region:
    """The region of a node: for each variable, which of the N training cases have a value inside it.

    allowed: bool [variables, N]. order: case numbers, with the allowed ones first. count [variables]: number of allowed ones.
    """

    allowed: np.ndarray
    order: np.ndarray
    count: np.ndarray

    def cut(self, variable: int, passes: np.ndarray) -> "Region":
        """The part of the region in which a variable's value is that of a training case in ``passes`` (bool [N])."""
        allowed, order, count = self.allowed.copy(), self.order.copy(), self.count.copy()
        allowed[variable] &= passes
        order[variable] = np.argsort(~allowed[variable], kind="stable")
        count[variable] = allowed[variable].sum()
        return Region(allowed, order, count)


class Smearing:
    """New cases near the training cases (Breiman & Shang 1996): draw a training case; independently, each of its variables keeps
    its value or, with probability ``alternate``, takes that of another randomly drawn training case.

    x: float32 [N, columns]. variable [columns]: index of each column's variable; all columns of a variable are drawn together.
    """

    def __init__(self, x: np.ndarray, variable: np.ndarray, alternate: float):
        self.x, self.variable, self.alternate = x, variable, alternate
        shape = (int(variable.max()) + 1, len(x))
        everyone = np.broadcast_to(np.arange(len(x)), shape).copy()
        self.everywhere = Region(np.ones(shape, bool), everyone, np.full(shape[0], len(x)))

    def chances(self, region: Region) -> np.ndarray:
        """For each training case, the probability that a case smeared from it lies in the region: [N].

        The variables are independent: prod over v of ((1 - p) [x_v is allowed] + p F_v), where F_v is the share of training
        cases whose value is allowed.
        """
        share = self.alternate * region.count / len(self.x)
        return np.prod(np.where(region.allowed, 1 - self.alternate, 0.0) + share[:, None], axis=0)

    def share(self, region: Region) -> float:
        """The probability that a smeared case lies in the region: p_t, exactly."""
        return float(self.chances(region).mean())

    def draw(self, count: int, region: Region, rng: np.random.Generator) -> np.ndarray:
        """Draw ``count`` smeared cases that lie in the region: float32 [count, columns].

        The distribution is that of smearing until ``count`` cases have reached the node, but the cost does not depend on how
        few do: draw the origin by its probability, then each variable conditional on an allowed value.
        """
        chances = np.cumsum(self.chances(region))
        origin = np.searchsorted(chances, rng.random(count) * chances[-1], side="right")
        share = self.alternate * region.count / len(self.x)  # if 0, the value must be kept
        kept = 1 - self.alternate
        keep = np.where(region.allowed, kept / (kept + share[:, None]), 0.0).T[origin]  # [count, variables]
        u = rng.random(keep.shape)
        # u beyond its threshold is uniform as well: it picks the donor
        pick = ((u - keep) / np.maximum(1 - keep, 1e-12) * region.count).astype(np.int64)
        pick = np.clip(pick, 0, region.count - 1)
        donor = np.where(u < keep, origin[:, None], region.order[np.arange(len(region.count)), pick])
        return self.x[donor[:, self.variable], np.arange(len(self.variable))]


def born_again(smearing: Smearing, predict: Callable, classes: int, count: int, rng: np.random.Generator, admissible: bool = False) -> Tree:
    """Grow a tree on smeared cases labelled by ``predict`` (Breiman & Shang 1996).

    Each node is split by the Gini criterion on ``count`` newly drawn cases, so that a deep node has as many as the root.
    R(t) = (1 - max_j p_j(t)) p_t, with p_j the shares of the labels among them and p_t the probability of t. A node is a
    leaf if all labels agree, or if the best split would leave a child without an original training case.
    admissible: consider only splits with an original case on either side; a node without any is a leaf.
    """
    x, variable = smearing.x, smearing.variable
    feature, threshold, left, right, label, cost = [-1], [0.0], [-1], [-1], [0], [0.0]
    level = [(0, smearing.everywhere, np.ones(len(x), bool))]
    size = max(1, BLOCK // count)
    while level:
        below = []
        for block in (level[i : i + size] for i in range(0, len(level), size)):
            cases = np.concatenate([smearing.draw(count, region, rng) for _, region, _ in block])
            labels = predict(cases)
            for number, (node, region, originals) in enumerate(block):
                mine = slice(number * count, (number + 1) * count)
                shares = np.bincount(labels[mine], minlength=classes) / count
                label[node], cost[node] = int(shares.argmax()), (1 - shares.max()) * smearing.share(region)
                if shares.max() == 1:
                    continue
                seen = x[originals]
                # clipped to the range of the original cases, the new cases can only be split inside it
                offered = np.clip(cases[mine], seen.min(0), seen.max(0)) if admissible else cases[mine]
                cut = _cut(offered, labels[mine], rng)
                if cut is None:
                    continue
                goes_left = x[:, cut[0]] <= cut[1]
                if not (originals & goes_left).any() or not (originals & ~goes_left).any():
                    continue
                feature[node], threshold[node] = cut
                for child, side in ((left, goes_left), (right, ~goes_left)):
                    child[node] = len(feature)
                    below.append((len(feature), region.cut(variable[cut[0]], side), originals & side))
                    for values, empty in ((feature, -1), (threshold, 0.0), (left, -1), (right, -1), (label, 0), (cost, 0.0)):
                        values.append(empty)
        level = below
    return Tree(*(np.array(values) for values in (feature, threshold, left, right, label, cost)))


def _cut(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[int, float] | None:
    """(column, threshold) of the best split by the Gini criterion; None if there is none."""
    tree = DecisionTreeClassifier(max_depth=1, random_state=int(rng.integers(2**31))).fit(x, y).tree_
    return (int(tree.feature[0]), float(tree.threshold[0])) if tree.node_count > 1 else None
