"""Furlanello et al. 2018: figures of this paper alone."""

from functools import partial

from kdcore.papers.born_again_networks.importance import BINS
from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """Dark knowledge under the light, the weights of CWTM, and what becomes of generations that are one object."""
    by_arm: dict[str, list[dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    drawn = {}
    if arm := next((arm for arm in by_arm if arm.endswith(": BAN")), None):
        drawn["dark_knowledge"] = partial(draw.stretches, _light([record["history"] for record in by_arm[arm]]), xlabel="epoch", title=arm)
    if arm := next((arm for arm in by_arm if arm.endswith(": CWTM")), None):
        found = [record["metrics"]["importance"] for record in by_arm[arm]]
        middles = [(place + 0.5) / BINS for place in range(BINS)]
        lines = {
            "weight that CWTM gives": [_numbers(each["cwtm_weight"]) for each in found],
            "weight of the true class in BAN's first gradient": [_numbers(each["true_class_weight"]) for each in found],
            "share of the training cases": [[count / sum(each["cases"]) for count in each["cases"]] for each in found],
        }
        drawn["importance"] = partial(
            draw.curve, middles, lines, xlabel="the teacher's confidence", ylabel="weight, share", title=f"Importance weights, {arm}"
        )
    coded = [record["history"] for record in by_arm.get("ResNet, as coded", [])]
    intended = [by_arm.get(f"ResNet, as intended: generation {number}", []) for number in (1, 2, 3)]
    if coded and all(intended):
        together = [[row for record in parts for row in record["history"]] for parts in zip(*intended, strict=False)]
        panels = {}
        for label, key in (("test error, %", "test_error_percent"), ("KL from the teacher", "divergence_from_teacher")):
            panels[label] = {name: _by_generation(rows[0], key) for name, rows in (("as coded", coded), ("as intended", together))}
        title = "Three generations of which two never begin"
        drawn["generations"] = partial(draw.stretches, panels, (1, 2), xlabel="generations", title=title)
    return drawn


def _light(histories: list[list[dict]]) -> dict:
    """The parts of BAN's gradient against the epoch, means over seeds, and how much of the first two is the true class's."""
    keys = ("gradient_true_class", "gradient_other_classes", "gradient_labels")
    # epochs that were measured in every seed
    measured = [(epoch, rows) for epoch, rows in enumerate(zip(*histories, strict=True), 1) if all(keys[0] in row for row in rows)]
    true, others, labels = ([sum(row[key] for row in rows) / len(rows) for _, rows in measured] for key in keys)
    epochs, share = [epoch for epoch, _ in measured], [one / (one + other) for one, other in zip(true, others, strict=True)]
    sizes = {"true class, teacher": (epochs, true), "other classes, teacher": (epochs, others), "true class, labels": (epochs, labels)}
    return {"size of the gradient": sizes, "share": {"true class, teacher": (epochs, share)}}


def _numbers(values: list) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _by_generation(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    """A measure against the generations that are over, three in all, where it was measured."""
    places = [3 * (number + 1) / len(history) for number in range(len(history))]
    return [x for x, row in zip(places, history, strict=True) if key in row], [row[key] for row in history if key in row]
