"""Furlanello et al. 2018: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kdcore.papers.born_again_networks.importance import BINS
from kdcore.report import select
from kdcore.report.drawing import PALETTE, WIDTH, heading, plot
from kdcore.report.figures import curve


def figures(records: list[dict]) -> dict:
    """The parts of BAN's gradient, the weights of CWTM, and the history of generations that are one and the same object."""
    by_arm = select.by_arm(records)
    plots = {}
    if arm := next((arm for arm in by_arm if arm.endswith(": BAN")), None):
        parts = _gradient_parts([record["history"] for record in by_arm[arm]])
        title = f"What BAN's gradient consists of, {arm.removesuffix(': BAN')}"
        plots["dark_knowledge"] = partial(stretches, parts, xlabel="epoch", title=title)
    if arm := next((arm for arm in by_arm if arm.endswith(": CWTM")), None):
        seeds = [record["metrics"]["importance"] for record in by_arm[arm]]
        middles = [(place + 0.5) / BINS for place in range(BINS)]
        lines = {
            "weight that CWTM gives": [_numbers(each["cwtm_weight"]) for each in seeds],
            "weight of the true class in BAN's first gradient": [_numbers(each["true_class_weight"]) for each in seeds],
            "share of the training cases": [[count / sum(each["cases"]) for count in each["cases"]] for each in seeds],
        }
        plots["importance"] = partial(
            curve, middles, lines, xlabel="the teacher's confidence", ylabel="weight, share", title=f"Importance weights, {arm}"
        )
    coded = [record["history"] for record in by_arm.get("ResNet, as coded", [])]
    intended = [by_arm.get(f"ResNet, as intended: generation {number}", []) for number in (1, 2, 3)]
    if coded and all(intended):
        together = [[row for record in parts for row in record["history"]] for parts in zip(*intended, strict=False)]
        panels = {}
        for label, key in (("test error, %", "test_error_percent"), ("KL from the teacher", "divergence_from_teacher")):
            panels[label] = {name: _by_generation(rows[0], key) for name, rows in (("as coded", coded), ("as intended", together))}
        title = "Three generations of which two never begin"
        plots["generations"] = partial(stretches, panels, (1, 2), xlabel="generations", title=title)
    return plots


def _gradient_parts(histories: list[list[dict]]) -> dict:
    """The parts of BAN's gradient against the epoch, means over seeds, and the share of the true class in the first two."""
    keys = ("gradient_true_class", "gradient_other_classes", "gradient_labels")
    # the epochs at which every seed was evaluated
    measured = [(epoch, rows) for epoch, rows in enumerate(zip(*histories, strict=True), 1) if all(keys[0] in row for row in rows)]
    true, others, labels = ([sum(row[key] for row in rows) / len(rows) for _, rows in measured] for key in keys)
    epochs, share = [epoch for epoch, _ in measured], [one / (one + other) for one, other in zip(true, others, strict=True)]
    sizes = {"true class, teacher": (epochs, true), "other classes, teacher": (epochs, others), "true class, labels": (epochs, labels)}
    return {"size of the gradient": sizes, "share of the true class": {"true class, teacher": (epochs, share)}}


def _numbers(values: list) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _by_generation(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    """A measure against the number of completed generations, out of three, where it was measured."""
    places = [3 * (number + 1) / len(history) for number in range(len(history))]
    return [x for x, row in zip(places, history, strict=True) if key in row], [row[key] for row in history if key in row]


@plot
def stretches(panels: dict[str, dict[str, tuple]], breaks=(), *, xlabel: str = "", title: str = "") -> Figure:
    """Lines with their own x values, one panel for each measure over a shared x axis.

    panels: {measure: {label: (x [n], y [n])}}; a label has the same style in all panels. breaks: x of vertical lines.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(WIDTH, 2.6 * len(panels) + 0.6), squeeze=False, sharex=True, layout="constrained")
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    looks, shown = dict(zip(labels, zip(PALETTE, ("-", "--", ":", "-.") * 2, strict=False), strict=False)), {}
    for ax, (measure, lines) in zip(axes[:, 0], panels.items(), strict=True):
        for label, (x, y) in lines.items():
            colour, dashes = looks[label]
            (shown[label],) = ax.plot(x, y, dashes, color=colour, lw=1.6)
        for place in breaks:
            ax.axvline(place, color="#555555", lw=0.9, zorder=1)
        ax.set_ylabel(measure)
        ax.margins(x=0.01)
    axes[-1, 0].set_xlabel(xlabel)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(3, len(shown)))
    heading(figure, title)
    return figure
