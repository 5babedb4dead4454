"""Breiman & Shang 1996, "Born again trees".

An arm is a data set, a trial a block of repetitions. Each repetition draws its own test set; CART, the arced trees and every
born-again tree are grown on the rest, so that all of them are compared on the same cases.
"""

import time
from functools import partial

import numpy as np
import sklearn
from torch import Tensor

from kdcore.data import tabular
from kdcore.papers.born_again_trees import trees
from kdcore.training import Context, Run, seed_of

VERSION = 1
VARIANTS = ["replace_0.25", "keep_0.25", "arc_fs", "admissible", "smeared_100", "smeared_300", "smeared_3000"]
METRICS = {
    "cart_error_percent": "% of the test cases: one pruned CART tree",
    "cart_leaves": "leaves of the CART tree",
    "arced_error_percent": "% of the test cases: the vote of the arced trees",
    "born_again_error_percent": "% of the test cases: the born-again tree",
    "born_again_leaves": "leaves of the born-again tree",
    "born_again_train_error_percent": "% of the training cases: the born-again tree",
    "agreement_percent": "% of the test cases that the born-again tree classifies like the arced trees",
    "decrease_percent": "reduction of the error from CART to the born-again tree, in % of CART's error",
    "repetitions": "dict: the metrics of each repetition",
    "trees": "dict: trees of the first repetition, for the figure",
} | {
    f"{what}_{variant}": f"% of the {cases} cases: {tree}, variant {variant} of the config"
    for what, cases, tree, variants in (
        ("arced_error_percent", "test", "the arced trees", ["arc_fs"]),
        ("born_again_error_percent", "test", "the born-again tree", VARIANTS),
        ("born_again_train_error_percent", "training", "the born-again tree", VARIANTS),
    )
    for variant in variants
}
ARCING = {"arc-x4": trees.arc_x4, "arc-fs": trees.arc_fs}


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    """The run of a block of repetitions; a trial includes all methods, and has no teacher."""
    (trial,) = trials
    config, table = trial.config, tabular.load(trial.config["data"])
    columns = tabular.columns(table)

    def repeat(number: int) -> tuple[dict, dict]:
        return repetition(table, columns, config, context.seed, number)

    def estimate() -> float:
        started = time.monotonic()
        repeat(0)
        return (time.monotonic() - started) * config["repetitions"]

    def finish(history: list[dict]) -> list[dict]:
        numbers = range(config["repetitions"])
        made = [
            context.keep(f"repetition-{number}", partial(repeat, number), partial(_reported, number, len(numbers))) for number in numbers
        ]
        metrics = together([row for row, _ in made])
        if config["keep_trees"]:
            _, metrics["trees"] = made[0]
        return [{"metrics": metrics, "history": history}]

    return Run(finish, estimate=estimate)


def _reported(number: int, total: int, made: tuple[dict, dict]) -> dict:
    row, _ = made
    return {
        "stage": "repetitions",
        "epoch": number + 1,
        "loss": row["born_again_train_error_percent"] / 100,
        "test_error_percent": row["born_again_error_percent"],
        "done": number + 1,
        "total": total,
    }


def together(rows: list[dict]) -> dict:
    """Means of the metrics over repetitions, and the single values as ``repetitions``."""
    metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    metrics["decrease_percent"] = decrease(metrics["cart_error_percent"], metrics["born_again_error_percent"])
    metrics["repetitions"] = {name: [round(row[name], 4) for row in rows] for name in rows[0]}
    return metrics


def decrease(cart: float, born_again: float) -> float:
    """Reduction of the error from CART to the born-again tree, in percent of CART's error (0 if that is 0)."""
    return 100 * (cart - born_again) / cart if cart else 0.0


def split(cases: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sorted case numbers (training, test), where the test set is a random ``share`` of all cases, rounded down."""
    order = rng.permutation(cases)
    tests = int(cases * share)
    return np.sort(order[tests:]), np.sort(order[:tests])


# checking the parameters of thousands of small trees would take as long as growing them
@sklearn.config_context(skip_parameter_validation=True, assume_finite=True)
def repetition(table: tabular.Tabular, columns: tabular.Columns, config: dict, seed: int, number: int) -> tuple[dict, dict]:
    """(metrics, trees ready to be drawn) of one repetition.

    The variants differ from the born-again tree only in the settings of ``config["variants"]``: split and random numbers are the
    same.
    """
    rng = {what: np.random.default_rng(seed_of(seed, what, number)) for what in ("split", "cart", *ARCING)}
    train, test = split(len(table.labels), config["test_share"], rng["split"])
    x, classes = columns.filled(train), len(table.classes)
    x, y, test_x, test_y = x[train], table.labels[train], x[test], table.labels[test]

    def error(model, cases=test_x, labels=test_y) -> float:
        return 100 * float(np.mean(model.predict(cases) != labels))

    committees: dict = {}

    def committee(settings: dict):
        name = settings["arcing"]
        if name not in committees:
            committees[name] = ARCING[name](x, y, classes, rng[name], settings["trees"])
        return committees[name]

    def born_again(settings: dict) -> trees.Tree:
        smearing = trees.Smearing(x, columns.variable, settings["alternate"])
        own = np.random.default_rng(seed_of(seed, "smearing", number))
        grown = trees.born_again(smearing, committee(settings).predict, classes, settings["smeared"], own, settings["admissible"])
        return trees.best_subtree(grown, x, y)

    cart, arced, reborn = trees.cart(x, y, rng["cart"], config["folds"]), committee(config), born_again(config)
    row = {
        "cart_error_percent": error(cart),
        "arced_error_percent": error(arced),
        "born_again_error_percent": error(reborn),
        "born_again_train_error_percent": error(reborn, x, y),
        "agreement_percent": 100 * float(np.mean(reborn.predict(test_x) == arced.predict(test_x))),
        "cart_leaves": cart.leaves,
        "born_again_leaves": reborn.leaves,
    }
    for name, changes in config["variants"].items():
        variant = born_again(config | changes)
        row[f"born_again_error_percent_{name}"] = error(variant)
        row[f"born_again_train_error_percent_{name}"] = error(variant, x, y)
        if "arcing" in changes:
            row[f"arced_error_percent_{name}"] = error(committee(config | changes))
    drawn = {name: outline(tree, columns, table, x) for name, tree in (("born-again tree", reborn), ("CART", cart))}
    return row, drawn


def outline(tree: trees.Tree, columns: tabular.Columns, table: tabular.Tabular, x: np.ndarray) -> list[dict]:
    """A tree as an indented list, each branch before its sibling: {depth, condition, cases, class (None for an inner node)}.

    x: the training cases, counted in ``cases``.
    """
    cases = tree.reach(x).sum(1)
    lines, waiting = [], [(0, 0, "")]
    while waiting:
        node, depth, condition = waiting.pop()
        inner = tree.feature[node] >= 0
        label = None if inner else table.classes[tree.label[node]]
        lines.append({"depth": depth, "condition": condition, "cases": int(cases[node]), "class": label})
        if inner:
            low, high = columns.conditions(int(tree.feature[node]), float(tree.threshold[node]))
            waiting += [(int(tree.right[node]), depth + 1, high), (int(tree.left[node]), depth + 1, low)]
    return lines
