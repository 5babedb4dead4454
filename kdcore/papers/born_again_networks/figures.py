"""Furlanello et al. 2018: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kdcore.report import select
from kdcore.report.drawing import DASHES, MUTED, PALETTE, WIDTH, heading, number_list, plot


def figures(records: list[dict]) -> dict:
    """The parts of BAN's gradient, the weights of CWTM, and the history of generations that are one and the same object."""
    by_arm = select.by_arm(records)
    plots = {}
    if arm := next((arm for arm in by_arm if arm.endswith(": BAN")), None):
        parts = _gradient_parts([record["history"] for record in by_arm[arm]])
        title = f"{_words(arm)}: the parts of the gradient of BAN"
        plots["dark_knowledge"] = partial(stretches, parts, xlabel="epoch", title=title)
    if arm := next((arm for arm in by_arm if arm.endswith(": CWTM")), None):
        seeds = [record["metrics"]["importance"] for record in by_arm[arm]]
        bins = len(seeds[0]["cases"])
        middles = [(place + 0.5) / bins for place in range(bins)]
        lines = {
            "weight that CWTM gives": [_numbers(each["cwtm_weight"]) for each in seeds],
            "weight of the true class in BAN's first gradient": [_numbers(each["true_class_weight"]) for each in seeds],
        }
        cases = [[100 * count / sum(each["cases"]) for count in each["cases"]] for each in seeds]
        panels = {
            "weight of a case": {label: (middles, _means(values)) for label, values in lines.items()},
            "cases (%)": {"training cases": (middles, _means(cases))},
        }
        title = f"{_words(arm)}: weights of cases, by the teacher's confidence"
        plots["importance"] = partial(stretches, panels, xlabel="the teacher's probability of its top class", title=title)
    coded = [record["history"] for record in by_arm.get("ResNet, as coded", [])]
    intended = [by_arm.get(f"ResNet, as intended: generation {number}", []) for number in (1, 2, 3)]
    if coded and all(intended):
        together = [[row for record in parts for row in record["history"]] for parts in zip(*intended, strict=False)]
        panels = {}
        for label, key in (("test error (%)", "test_error_percent"), ("KL from the teacher (nats)", "divergence_from_teacher")):
            panels[label] = {name: _by_generation(rows[0], key) for name, rows in (("as coded", coded), ("as intended", together))}
        title = "Three generations of which, as coded, two never begin"
        plots["generations"] = partial(stretches, panels, (1, 2), xlabel="generations completed", title=title)
    return plots


def _gradient_parts(histories: list[list[dict]]) -> dict:
    """The parts of BAN's gradient against the epoch, means over seeds, and the share of the true class in the first two."""
    keys = ("gradient_true_class", "gradient_other_classes", "gradient_labels")
    # the epochs at which every seed was evaluated
    measured = [(epoch, rows) for epoch, rows in enumerate(zip(*histories, strict=True), 1) if all(keys[0] in row for row in rows)]
    true, others, labels = ([sum(row[key] for row in rows) / len(rows) for _, rows in measured] for key in keys)
    epochs, share = [epoch for epoch, _ in measured], [100 * one / (one + other) for one, other in zip(true, others, strict=True)]
    sizes = {
        "true class, from the teacher": (epochs, true),
        "other classes, from the teacher": (epochs, others),
        "true class, from labels": (epochs, labels),
    }
    return {"size of the part": sizes, "true class (%)": {"true class, from the teacher": (epochs, share)}}


def _words(arm: str) -> str:
    """An arm's network and data as papers write them: "wrn_16_1 on cifar10: BAN" -> "WRN-16-1 on CIFAR-10"."""
    network, data = arm.partition(":")[0].split(" on ")
    kind, *numbers = network.replace("densenet_bc", "DenseNet-BC").split("_")
    return f"{'-'.join([kind.upper() if kind == 'wrn' else kind, *numbers])} on {data.replace('cifar', 'CIFAR-')}"


def _means(seeds: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*seeds, strict=True)]


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
    figure, axes = plt.subplots(len(panels), 1, figsize=(WIDTH, 2.1 * len(panels) + 0.6), squeeze=False, sharex=True, layout="constrained")
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    looks, shown, alt = dict(zip(labels, zip(PALETTE, DASHES, strict=False), strict=False)), {}, []
    for ax, (measure, lines) in zip(axes[:, 0], panels.items(), strict=True):
        for label, (x, y) in lines.items():
            colour, dashes = looks[label]
            (shown[label],) = ax.plot(x, y, ls=dashes, color=colour, lw=1.8)
        for place in breaks:
            ax.axvline(place, color=MUTED, lw=0.9, zorder=1)
        ax.set_ylabel(measure)
        ax.margins(x=0.02)
        alt.append(f"{measure}, at the right end: {number_list([(label, y[-1]) for label, (_, y) in lines.items()])}")
    axes[-1, 0].set_xlabel(xlabel)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=1 if max(map(len, shown)) > 16 else 3)
    heading(figure, title, f"Against {xlabel}: {'. '.join(alt)}.")
    return figure
