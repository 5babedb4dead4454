"""Hinton, Vinyals & Dean 2015: this paper's own figures."""

import math
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kdcore.report import select, statistics
from kdcore.report.drawing import BLUE, VERMILLION, WIDTH, heading, pixels, plot, power_of_ten, softmax, wrapped
from kdcore.report.figures import curve, error_against


def figures(records: list[dict]) -> dict:
    """Dark knowledge, errors against the bias shift and the temperature, and confusion matrices of the net that saw no 3."""
    by_arm = select.by_arm(records)
    tests = sum(map(sum, _first(by_arm, "small with KD, no 3s")["confusion_before"])) if "small with KD, no 3s" in by_arm else 0
    plots = {}
    if "cumbersome" in by_arm:
        plots["dark_knowledge"] = partial(
            gallery,
            _first(by_arm, "cumbersome")["gallery"],
            (1.0, 4.0, 20.0),
            "Dark knowledge: what the teacher says beyond the label",
        )
    for name, arm, what, title in (
        ("shift_3", "small with KD, no 3s", "added to the bias of class 3", "A net that never saw a 3: errors against the bias shift"),
        (
            "shift_78",
            "small with KD, only 7s and 8s",
            "added to the biases of 7 and 8",
            "A net that saw 7s and 8s alone: errors against the bias shift",
        ),
    ):
        if arm in by_arm:
            seeds = [record["metrics"] for record in by_arm[arm]]
            plots[name] = partial(
                curve,
                seeds[0]["shifts"],
                {"test errors (thin: each seed)": [m["shift_test_errors"] for m in seeds]},
                {
                    "chosen on held-out cases": [m["shift_heldout"] for m in seeds],
                    "chosen on the test set": [m["shift_test"] for m in seeds],
                },
                xlabel=what,
                ylabel=f"errors of {tests:,}" if tests else "errors",
                title=title,
                log=True,
            )
    if "small with KD, no 3s" in by_arm:
        for name, when, title in (
            ("confusion_without_3", "before", "The net that never saw a 3, before the shift"),
            ("confusion_without_3_shifted", "shift_heldout", "The net that never saw a 3, after the shift"),
        ):
            matrix = _first(by_arm, "small with KD, no 3s")[f"confusion_{when}"]
            plots[name] = partial(confusion, matrix, range(len(matrix)), title)
    sweeps: dict[str, dict[float, list]] = {}
    for arm, mine in by_arm.items():
        if " units, T=" in arm:
            cells = sweeps.setdefault(arm.partition(",")[0] + " a layer", {})
            cells[mine[0]["config"]["temperature"]] = [record["metrics"]["test_errors"] for record in mine]
    if sweeps:
        temperatures = sorted({t for cells in sweeps.values() for t in cells})
        plots["temperature"] = partial(
            error_against,
            temperatures,
            {width: [cells.get(t, []) for t in temperatures] for width, cells in sorted(sweeps.items(), reverse=True)},
            xlabel="temperature T",
            ylabel="test errors",
            title="Errors against temperature, for two widths",
        )
    return plots


def _first(by_arm: dict[str, list[dict]], arm: str) -> dict:
    """Metrics of an arm's first seed."""
    return by_arm[arm][0]["metrics"]


@plot
def gallery(entries: list[dict], temperatures=(1.0, 20.0), title: str = "") -> Figure:
    """A teacher's dark knowledge: for each entry a row with its image, hard label and softmax(logits / T) at each T.

    entries: {label, logits [C], image (base64 of uint8 of ``shape``, [H, W] or [3, H, W])}. At T = 1 the axis is
    logarithmic, so that the small probabilities can be seen; at a higher T it starts at 0.
    """
    columns = 2 + len(temperatures)
    figure, axes = plt.subplots(
        len(entries), columns, figsize=(WIDTH, 0.98 * len(entries) + 0.7), squeeze=False, width_ratios=[0.5, 1] + [1.5] * len(temperatures),
        layout="constrained",
    )  # fmt: skip
    softened = [softmax(np.array([entry["logits"] for entry in entries], float) / t) for t in temperatures]
    for number, (row, entry) in enumerate(zip(axes, entries, strict=True)):
        classes = np.arange(len(entry["logits"]))
        picture = pixels(entry["image"], entry["shape"])
        row[0].imshow(picture if picture.ndim == 2 else np.moveaxis(picture, 0, -1), cmap="gray_r", vmin=0, vmax=255)
        row[0].set_axis_off()
        colours = [VERMILLION if c == entry["label"] else BLUE for c in classes]
        row[1].bar(classes, classes == entry["label"], color=colours)
        row[1].set_ylim(0, 1.08)
        row[1].set_yticks([0, 1])
        for ax, temperature, probabilities in zip(row[2:], temperatures, softened, strict=True):
            if temperature == 1:
                # an even power of ten, so that there is a tick half way
                floor = 10.0 ** max(-12, 2 * (statistics.exponent(max(probabilities.min(), 1e-12)) // 2))
                ax.bar(classes, np.maximum(probabilities[number], floor) - floor, bottom=floor, color=colours)
                ax.set_yscale("log")
                ax.set_ylim(floor, 4)
                ax.yaxis.set_major_locator(FixedLocator([floor, math.sqrt(floor), 1]))
                ax.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
                ax.yaxis.set_minor_locator(NullLocator())
            else:
                ax.bar(classes, probabilities[number], color=colours)
                ax.set_ylim(0, 1.12 * probabilities.max())
                ax.yaxis.set_major_locator(MaxNLocator(nbins=3))
        for ax in row[1:]:
            ax.set_xticks(classes)
            ax.tick_params(axis="x", length=0, pad=1.5, labelsize=7.5)
            ax.tick_params(axis="y", length=0, pad=2, labelsize=8)
            ax.grid(axis="x", visible=False)
    heads = ["case", "hard label", *(f"softmax, T = {t:g}" + (" (log scale)" if t == 1 else "") for t in temperatures)]
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=10, fontweight="normal", loc="center")
    for ax in axes[-1, 1:]:
        ax.set_xlabel("class", fontsize=9.5)
    heading(figure, title)
    return figure


@plot
def confusion(matrix, classes, title: str = "") -> Figure:
    """Counts [label][prediction] as a heat map. Only mistakes are coloured; correct counts are given as numbers."""
    counts = np.asarray(matrix, float)
    mistakes = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    top = max(1.0, float(mistakes.max())) if len(counts) > 1 else 1.0
    side = max(4.6, 0.52 * len(counts) + 1.4)
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    colours = mpl.colormaps["Blues"].with_extremes(bad="#f1f1f1")
    ax.imshow(np.sqrt(mistakes / top), cmap=colours, vmin=0, vmax=1)  # sqrt spreads small counts and is exact on every machine
    size = 9.5 if len(counts) <= 12 else 6.5
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            right = i == j
            strong = not right and count > 0.35 * top
            text = f"{count:.0f}" if float(count).is_integer() else f"{count:.1f}"
            colour = "#8a8a8a" if right else "white" if strong else "#222222" if count else "#c4c4c4"
            ax.text(j, i, text, ha="center", va="center", fontsize=size - (len(text) > 4), color=colour)
    ax.set_xticks(range(len(counts)), classes)
    ax.set_yticks(range(len(counts)), classes)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("read as")
    ax.set_ylabel("label")
    heading(figure, f"{wrapped(title, 44)}: {counts.sum() - counts.trace():,.6g} mistakes")
    return figure
