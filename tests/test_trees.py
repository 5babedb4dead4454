"""Trees against values worked by hand, scikit-learn's pruning, and twins that enumerate or reject instead of computing."""

import itertools
import math

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from kdcore.papers.born_again_trees import trees


def tree_of(feature, left, right, cost, label=None, threshold=None) -> trees.Tree:
    nodes = len(feature)
    return trees.Tree(
        np.array(feature),
        np.array(threshold or [0.5] * nodes),
        np.array(left),
        np.array(right),
        np.array(label or [0] * nodes),
        np.array(cost, float),
    )


def noisy(cases=120, columns=4, seed=0):
    """Cases whose class follows from two columns, a quarter of the labels drawn at random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(cases, columns)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    return x, np.where(rng.random(cases) < 0.25, rng.integers(3, size=cases), y)


def test_the_weakest_links_by_hand():
    #        0: .5           g(1) = (.2 - .1) / 1 = .1; g(0) = (.5 - .2) / 2 = .15: node 1 falls first.
    #     1: .2   2: .1      then g(0) = (.5 - .3) / 1 = .2
    #  3: .05  4: .05
    tree = tree_of([0, 1, -1, -1, -1], [1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [0.5, 0.2, 0.1, 0.05, 0.05])
    links = trees.weakest_links(tree)
    assert links[:2] == pytest.approx([0.2, 0.1]) and (links[2:] == -np.inf).all()
    assert trees.sequence(links) == pytest.approx([0, 0.1, 0.2])
    assert [tree.pruned(links <= alpha).leaves for alpha in (0, 0.1, 0.2)] == [3, 2, 1]
    assert tree.pruned(links <= 0.1).cost.tolist() == [0.5, 0.2, 0.1]


def test_a_branch_dearer_than_its_root_falls_at_once():
    tree = tree_of([0, 1, -1, -1, -1], [1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [0.5, 0.2, 0.1, 0.15, 0.15])
    links = trees.weakest_links(tree)
    assert links[1] == 0 and links[0] == pytest.approx(0.2)
    # a weak root takes its branches along
    tree = tree_of([0, 1, -1, -1, -1], [1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [0.31, 0.2, 0.1, 0.05, 0.05])
    assert trees.weakest_links(tree)[:2] == pytest.approx([0.055, 0.055])


@pytest.mark.parametrize("seed", range(5))
def test_with_its_node_costs_the_sequence_is_scikit_learns(seed):
    """scikit-learn prunes by impurity: given that as R(t), the alphas and the sizes of all subtrees must be its own."""
    x, y = noisy(seed=seed)
    model = DecisionTreeClassifier(random_state=0).fit(x, y)
    path = model.cost_complexity_pruning_path(x, y)
    nodes = model.tree_
    tree = trees.Tree(
        np.where(nodes.children_left >= 0, nodes.feature, -1),
        nodes.threshold,
        nodes.children_left,
        nodes.children_right,
        nodes.value[:, 0].argmax(1),
        nodes.impurity * nodes.n_node_samples / len(x),
    )
    links = trees.weakest_links(tree)
    alphas = trees.sequence(links)
    assert len(alphas) == len(np.unique(path.ccp_alphas.round(10)))
    assert alphas == pytest.approx(np.unique(path.ccp_alphas.round(10)), abs=1e-9)
    for alpha in (alphas[:-1] + alphas[1:]) / 2:
        theirs = DecisionTreeClassifier(random_state=0, ccp_alpha=alpha).fit(x, y)
        mine = tree.pruned(links <= alpha)
        assert mine.leaves == theirs.get_n_leaves()
        assert (mine.predict(x) == theirs.predict(x)).all()


def test_the_subtrees_are_nested_and_their_errors_counted_right():
    x, y = noisy()
    test_x, test_y = noisy(seed=9)
    tree = trees.grow(x, y, 0)
    links = trees.weakest_links(tree)
    alphas = trees.sequence(links)
    errors = trees.subtree_errors(tree, links, alphas, test_x, test_y)
    inner_before = None
    for alpha, count in zip(alphas, errors, strict=True):
        pruned = tree.pruned(links <= alpha)
        assert (pruned.predict(test_x) != test_y).sum() == count
        inner = set(np.flatnonzero((tree.feature >= 0) & ~(links <= alpha)).tolist())
        assert inner_before is None or inner < inner_before
        inner_before = inner
    assert inner_before == set(), "the last is the root alone"
    best = trees.best_subtree(tree, test_x, test_y)
    assert (best.predict(test_x) != test_y).sum() == errors.min()
    assert best.leaves == tree.pruned(links <= alphas[np.flatnonzero(errors == errors.min())[-1]]).leaves


def test_of_subtrees_with_equal_errors_the_smallest_is_taken():
    # node 1 is cut into leaves of one class: nothing is gained on any case, though the costs would keep the cut
    tree = tree_of([0, 1, -1, -1, -1], [1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [0.5, 0.2, 0.1, 0.05, 0.05], label=[0, 0, 1, 0, 0])
    x = np.array([[0, 0], [0, 1], [1, 0]], np.float32)
    assert trees.best_subtree(tree, x, np.array([0, 0, 1])).leaves == 2
    assert trees.best_subtree(tree, x, np.array([0, 0, 0])).leaves == 1


def test_a_grown_tree_is_scikit_learns():
    x, y = noisy()
    theirs, mine = DecisionTreeClassifier(random_state=3).fit(x, y), trees.grow(x, 10 + y, 3)
    assert (mine.predict(x) == 10 + theirs.predict(x)).all() and mine.leaves == theirs.get_n_leaves()
    assert mine.cost[0] == pytest.approx(1 - np.bincount(y).max() / len(y)), "the error of the most frequent class"
    assert (mine.reach(x)[mine.feature < 0].sum(0) == 1).all(), "each case is in one leaf"


@pytest.mark.parametrize("seed", range(8))
def test_cross_validation_against_a_twin(seed):
    """The same choice with whole trees pruned and asked, fold by fold."""
    x, y = noisy(seed=seed)
    chosen = trees.cart(x, y, np.random.default_rng(5), folds=4)
    rng = np.random.default_rng(5)
    seeds = rng.integers(2**31, size=5)
    fold = rng.permutation(len(x)) % 4
    whole = trees.grow(x, y, seeds[4])
    alphas = trees.sequence(trees.weakest_links(whole))
    errors = []
    for i, alpha in enumerate(alphas):
        middle = math.sqrt(alpha * alphas[i + 1]) if i + 1 < len(alphas) else math.inf
        missed = 0
        for k in range(4):
            part = trees.grow(x[fold != k], y[fold != k], seeds[k])
            missed += (part.pruned(trees.weakest_links(part) <= middle).predict(x[fold == k]) != y[fold == k]).sum()
        errors.append(missed)
    best = max(i for i, count in enumerate(errors) if count == min(errors))
    assert chosen.leaves == whole.pruned(trees.weakest_links(whole) <= alphas[best]).leaves
    assert 1 < chosen.leaves < whole.leaves, "noise is pruned, what there is to learn is not"


def test_arc_x4_by_hand():
    # 1 + m^4 of 0, 1, 2 mistakes: 1, 2, 17
    assert trees.arc_x4_chances(np.array([0.0, 1.0, 2.0])) == pytest.approx([0.05, 0.1, 0.85])


def test_arc_fs_by_hand():
    equal, wrong = np.full(4, 0.25), np.array([True, False, False, False])
    weight, chances = trees.arc_fs_step(equal, wrong)  # e = 1/4, b = 3
    assert weight == pytest.approx(math.log(3)) and chances == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert chances[wrong].sum() == pytest.approx(0.5), "the next tree finds the last one no better than chance"
    weight, chances = trees.arc_fs_step(chances, wrong)  # e = 1/2: anew, without a vote
    assert weight == 0 and chances.tolist() == [0.25] * 4
    weight, chances = trees.arc_fs_step(np.array([0.7, 0.1, 0.1, 0.1]), ~np.ones(4, bool))  # e = 0, taken as 1/8
    assert weight == pytest.approx(math.log(7)) and chances.tolist() == [0.25] * 4


@pytest.mark.parametrize("arc", [trees.arc_x4, trees.arc_fs])
def test_committees(arc):
    x, y = noisy(200)
    test_x = noisy(2000, seed=7)[0]
    test_y = (test_x[:, 0] > 0).astype(int) + (test_x[:, 1] > 0.5)
    committee = arc(x, y, 3, np.random.default_rng(0), trees=30)
    again = arc(x, y, 3, np.random.default_rng(0), trees=30)
    assert (committee.predict(test_x) == again.predict(test_x)).all() and len(committee.trees) == 30
    one = trees.grow(x, y, 0)
    assert (committee.predict(test_x) != test_y).mean() < (one.predict(test_x) != test_y).mean()


def test_votes_count_by_their_weight():
    x = np.array([[0.0], [1.0]], np.float32)
    committee = trees.Committee(2)
    for labels, weight in (([0, 0], 1.0), ([0, 0], 1.0), ([1, 1], 1.5)):
        assert committee.add(x, np.array(labels), np.ones(2), 0).tolist() == labels
        committee.weights[-1] = weight
    assert committee.predict(x).tolist() == [0, 0]
    committee.weights[-1] = 2.5
    assert committee.predict(x).tolist() == [1, 1]
    committee.weights[-1] = 2.0
    assert committee.predict(x).tolist() == [0, 0], "of equals the first"


def test_a_case_drawn_no_time_is_not_seen():
    x, y = np.array([[0.0], [1.0], [2.0]], np.float32), np.array([0, 0, 1])
    assert trees.Committee(2).add(x, y, np.array([2.0, 1.0, 0.0]), 0).tolist() == [0, 0, 0]


def one_per_column(x, alternate) -> trees.Smearing:
    return trees.Smearing(np.asarray(x, np.float32), np.arange(np.shape(x)[1]), alternate)


def test_nothing_alternates_at_0_and_everything_at_1():
    x = np.repeat(np.arange(50.0)[:, None], 3, 1)  # three equal columns
    rng = np.random.default_rng(0)
    for alternate, together in ((0.0, 1.0), (1.0, 1 / 50), (0.5, 0.25 + 0.75 / 50)):
        cases = one_per_column(x, alternate).draw(20_000, one_per_column(x, alternate).everywhere, rng)
        # two columns are equal where both are kept, or by chance
        assert (cases[:, 0] == cases[:, 1]).mean() == pytest.approx(together, abs=4 * math.sqrt(0.25 / 20_000))


def test_each_replaced_variable_has_a_donor_of_its_own():
    """Cases (0, 0) and (1, 1), half of the variables replaced. Two values of a case are equal where both are kept (1/4) or by
    chance in half of the rest: 5/8. With one donor for both, as in generalizedtrees, also where both are replaced: 6/8."""
    smearing = one_per_column([[0.0, 0.0], [1.0, 1.0]], 0.5)
    cases = smearing.draw(40_000, smearing.everywhere, np.random.default_rng(0))
    assert (cases[:, 0] == cases[:, 1]).mean() == pytest.approx(5 / 8, abs=4 * math.sqrt(0.25 / 40_000))


@pytest.mark.parametrize("alternate", [0.0, 0.25, 0.5, 1.0])
def test_each_variable_keeps_its_marginal(alternate):
    x = np.random.default_rng(1).integers(0, 4, (30, 3)) ** 2
    smearing = one_per_column(x, alternate)
    cases = smearing.draw(40_000, smearing.everywhere, np.random.default_rng(0))
    for column in range(3):
        for value in (0, 1, 4, 9):
            share = (x[:, column] == value).mean()
            assert (cases[:, column] == value).mean() == pytest.approx(share, abs=4 * math.sqrt(0.25 / 40_000))


def test_the_columns_of_a_variable_stay_together():
    words = np.eye(4)[np.random.default_rng(0).integers(4, size=40)]
    x = np.concatenate([words, np.arange(40.0)[:, None]], 1).astype(np.float32)
    smearing = trees.Smearing(x, np.array([0, 0, 0, 0, 1]), 0.5)
    cases = smearing.draw(5000, smearing.everywhere, np.random.default_rng(0))
    assert (cases[:, :4].sum(1) == 1).all() and set(np.unique(cases[:, :4])) == {0.0, 1.0}
    kept = (cases[:, :4] == words[cases[:, 4].astype(int)]).all(1)
    assert not kept.all(), "the number does not hold on to its word"


@pytest.mark.parametrize("alternate", [0.0, 0.3, 0.5, 1.0])
def test_cases_of_a_region_are_those_that_would_reach_it(alternate):
    """Share and law against smearing everywhere and throwing away what falls outside."""
    x = np.array([[1, 1, 0], [2, 1, 1], [3, 2, 0], [4, 2, 1], [5, 3, 0], [6, 3, 1], [6, 1, 1]], np.float32)
    smearing = one_per_column(x, alternate)
    region = smearing.everywhere.cut(0, x[:, 0] > 1.5).cut(1, x[:, 1] <= 2.5).cut(0, x[:, 0] <= 5.5)
    everywhere = smearing.draw(300_000, smearing.everywhere, np.random.default_rng(0))
    inside = everywhere[(everywhere[:, 0] > 1.5) & (everywhere[:, 0] <= 5.5) & (everywhere[:, 1] <= 2.5)]
    assert smearing.share(region) == pytest.approx(len(inside) / len(everywhere), abs=4 * math.sqrt(0.25 / 300_000))
    drawn = smearing.draw(100_000, region, np.random.default_rng(1))

    def shares(cases):
        values, counts = np.unique(cases, axis=0, return_counts=True)
        return dict(zip(map(tuple, values.tolist()), counts / len(cases), strict=True))

    expected, ours = shares(inside), shares(drawn)
    assert set(ours) == set(expected)
    bound = 4 * math.sqrt(0.25 / len(inside) + 0.25 / len(drawn))
    assert all(ours[case] == pytest.approx(expected[case], abs=bound) for case in expected)


def every_smeared_case(x, alternate):
    """(case, probability) of all that smearing can give: origins, and for each variable kept or any donor."""
    n = len(x)
    for origin in range(n):
        options = [[(x[origin, v], 1 - alternate)] + [(x[d, v], alternate / n) for d in range(n)] for v in range(x.shape[1])]
        for choice in itertools.product(*options):
            yield [value for value, _ in choice], math.prod(chance for _, chance in choice) / n


def gini(weights, labels):
    total = weights.sum()
    return total - sum(weights[labels == c].sum() ** 2 for c in np.unique(labels)) / total if total else 0.0


def test_node_costs_and_the_first_cut_against_enumeration():
    x = np.array([[0, 3, 1], [1, 0, 4], [2, 5, 0], [3, 1, 3], [4, 4, 2], [5, 2, 5]], np.float32)

    def predict(cases):
        return np.where(cases[:, 0] > 2.5, 1 + (cases[:, 1] > 2.5), 2 * (cases[:, 2] > 3.5))

    tree = trees.born_again(one_per_column(x, 0.5), predict, 3, 8000, np.random.default_rng(0))
    cases, chances = (np.array(part) for part in zip(*every_smeared_case(x, 0.5), strict=True))
    labels = predict(cases)
    assert chances.sum() == pytest.approx(1)
    cuts = {
        (column, cut + 0.5): gini(chances[below], labels[below]) + gini(chances[~below], labels[~below])
        for column in range(3)
        for cut in range(5)
        for below in [cases[:, column] <= cut + 0.5]
    }
    assert min(cuts, key=cuts.get) == (tree.feature[0], tree.threshold[0])
    assert tree.leaves > 3
    reach, originals = tree.reach(cases), tree.reach(x)
    for node in range(len(tree.feature)):
        inside = chances[reach[node]]
        p_t = inside.sum()
        p_j = np.bincount(labels[reach[node]], inside, 3) / p_t
        assert tree.cost[node] == pytest.approx((1 - p_j.max()) * p_t, abs=4 * p_t * math.sqrt(0.25 / 8000))
        assert originals[node].any(), "a child without an original case is never made"


def test_a_committee_that_is_a_cut_is_found_again():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    tree = trees.born_again(one_per_column(x, 0.5), lambda cases: (cases[:, 3] > 0.1).astype(int), 2, 500, np.random.default_rng(0))
    assert tree.leaves == 2 and tree.feature[0] == 3
    below, above = x[x[:, 3] <= 0.1, 3].max(), x[x[:, 3] > 0.1, 3].min()
    assert below <= tree.threshold[0] < above
    assert tree.cost[1:].tolist() == [0, 0]


def test_growth_ends_where_a_child_would_hold_no_original_case():
    # all originals lie on the diagonal, and the labels depend on whether a case does: x1 > x0 holds none of them
    x = np.repeat(np.array([[0.0], [1.0]]), 2, 1)

    def predict(cases):
        return (cases[:, 1] != cases[:, 0]).astype(int)

    tree = trees.born_again(one_per_column(x, 0.5), predict, 2, 4000, np.random.default_rng(0))
    assert tree.leaves == 2, "one cut keeps an original on both sides; the next would not"
    alone = trees.born_again(one_per_column(x[:1], 0.5), predict, 2, 100, np.random.default_rng(0))
    assert alone.leaves == 1


def test_admissible_cuts_keep_an_original_case_on_either_side():
    # The originals have x0 = x1. Of those with x0 = 0, x2 tells class 0 from 1; but among the smeared cases there, x1
    # (which sets made-up cases of class 2 apart, 31 %) is the better cut: Gini 0.69 x 0.5 = 0.35, against 0.43 for x2.
    x = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]], np.float32)

    def predict(cases):
        return np.where(cases[:, 0] > 0.5, 3, np.where(cases[:, 1] > 0.5, 2, cases[:, 2].astype(int)))

    any_cut, admissible = (
        trees.born_again(one_per_column(x, 0.5), predict, 4, 4000, np.random.default_rng(0), admissible=a) for a in (False, True)
    )
    assert any_cut.feature.tolist() == [0, -1, -1]
    assert admissible.feature.tolist() == [0, 2, -1, -1, -1]
    assert admissible.predict(x).tolist() == [0, 1, 3, 3]


def test_the_same_random_numbers_give_the_same_tree():
    x, y = noisy()
    committee = trees.arc_x4(x, y, 3, np.random.default_rng(0), trees=10)

    def grown(seed):
        return trees.born_again(one_per_column(x, 0.5), committee.predict, 3, 200, np.random.default_rng(seed))

    one, two, other = grown(0), grown(0), grown(1)
    assert all(np.array_equal(getattr(one, key), getattr(two, key)) for key in ("feature", "threshold", "label", "cost"))
    assert not np.array_equal(one.cost, other.cost)
