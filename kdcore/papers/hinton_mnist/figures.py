"""Hinton, Vinyals & Dean 2015: this paper's own figures."""

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kdcore.report import select, statistics
from kdcore.report.drawing import BLUE, ON_DARK, ON_PALE, VERMILLION, WIDTH, heading, number_list, pixels, plot, power_of_ten, softmax
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
        (
            "shift_3",
            "small with KD, no 3s",
            "shift of the bias of class 3",
            "A net that never saw a 3: errors against the shift of its bias",
        ),
        (
            "shift_78",
            "small with KD, only 7s and 8s",
            "shift of the biases of classes 7 and 8",
            "A net that saw only 7s and 8s: errors against the shift of their biases",
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
            ("confusion_without_3", "before", "The net that never saw a 3, before its bias is raised"),
            ("confusion_without_3_shifted", "shift_heldout", "The net that never saw a 3, after its bias is raised"),
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
            ylabel="errors of 10,000",
            title="Test errors against temperature, for students of two widths",
        )
    return plots


def _first(by_arm: dict[str, list[dict]], arm: str) -> dict:
    """Metrics of an arm's first seed."""
    return by_arm[arm][0]["metrics"]


@plot
def gallery(entries: list[dict], temperatures=(1.0, 20.0), title: str = "") -> Figure:
    """A teacher's dark knowledge: for each entry a row with its image and softmax(logits / T) at each T, the label's class in
    another colour.

    entries: {label, logits [C], image (base64 of uint8 of ``shape``, [H, W] or [3, H, W])}. At T = 1 the axis is
    logarithmic, so that the small probabilities can be seen; at a higher T it starts at 0.
    """
    columns = 1 + len(temperatures)
    figure, axes = plt.subplots(
        len(entries), columns, figsize=(WIDTH, 0.82 * len(entries) + 0.75), squeeze=False, width_ratios=[0.42] + [1.5] * len(temperatures),
        layout="constrained",
    )  # fmt: skip
    softened = [softmax(np.array([entry["logits"] for entry in entries], float) / t) for t in temperatures]
    for number, (row, entry) in enumerate(zip(axes, entries, strict=True)):
        classes = np.arange(len(entry["logits"]))
        picture = pixels(entry["image"], entry["shape"])
        look = {"cmap": "gray_r", "vmin": 0, "vmax": 255, "interpolation": "none"}
        row[0].imshow(picture if picture.ndim == 2 else np.moveaxis(picture, 0, -1), **look)
        row[0].set_axis_off()
        colours = [VERMILLION if c == entry["label"] else BLUE for c in classes]
        for ax, temperature, probabilities in zip(row[1:], temperatures, softened, strict=True):
            if temperature == 1:
                # an even power of ten, so that there is a tick half way
                floor = 10.0 ** max(-12, 2 * (statistics.exponent(max(probabilities.min(), 1e-12)) // 2))
                ax.bar(classes, np.maximum(probabilities[number], floor) - floor, bottom=floor, color=colours)
                ax.set_yscale("log")
                ax.set_ylim(floor, 4)
                ax.yaxis.set_major_locator(FixedLocator([floor, 1]))
                ax.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
                ax.yaxis.set_minor_locator(NullLocator())
            else:
                ax.bar(classes, probabilities[number], color=colours)
                ax.set_ylim(0, 1.12 * probabilities.max())
                ax.yaxis.set_major_locator(MaxNLocator(nbins=2))
        for ax in row[1:]:
            ax.set_xticks(classes[::2] if len(entries) > 1 else classes)
            ax.tick_params(axis="x", length=0, pad=1.5, labelbottom=number == len(entries) - 1)
            ax.tick_params(axis="y", length=0, pad=2)
            ax.grid(axis="x", visible=False)
    for ax, t in zip(axes[0][1:], temperatures, strict=True):
        ax.set_title(f"T = {t:g}" + (", log axis" if t == 1 else ""), fontsize=9.5)
    for ax in axes[-1, 1:]:
        ax.set_xlabel("class")
    marks = [mpl.patches.Patch(color=VERMILLION, label="the label's class"), mpl.patches.Patch(color=BLUE, label="the other classes")]
    figure.legend(handles=marks, loc="outside lower center", ncols=2)
    chances = number_list([(entry["label"], softened[-1][i].tolist()[entry["label"]]) for i, entry in enumerate(entries)], 10)
    alt = f"Probabilities of the classes, softened with T = {', '.join(f'{t:g}' for t in temperatures)}, for {len(entries)} images."
    heading(figure, title, f"{alt} At T = {temperatures[-1]:g} the label's class gets, by label, {chances}.")
    return figure


@plot
def confusion(matrix, classes, title: str = "") -> Figure:
    """Counts [label][prediction] as a heat map. Only mistakes are coloured; correct counts are given as numbers."""
    counts = np.asarray(matrix, float)
    mistakes = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    top = max(1.0, float(mistakes.max())) if len(counts) > 1 else 1.0
    side = WIDTH - 0.4 if len(counts) > 6 else 3.6
    figure, ax = plt.subplots(figsize=(WIDTH, side), layout="constrained")
    colours = mpl.colormaps["Blues"].with_extremes(bad="#e9e9e9")
    # sqrt spreads small counts and is exact on every machine
    ax.imshow(np.sqrt(mistakes / top), cmap=colours, vmin=0, vmax=1, interpolation="none")
    size = 9 if len(counts) <= 12 else 6.5
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count or i == j:
                strong = i != j and count > 0.35 * top
                text = f"{count:.0f}" if float(count).is_integer() else f"{count:.1f}"
                colour = "#6a6a6a" if i == j else ON_DARK if strong else ON_PALE
                ax.text(j, i, text, ha="center", va="center", fontsize=size - (len(text) > 4), color=colour)
    ax.set_xticks(range(len(counts)), classes)
    ax.set_yticks(range(len(counts)), classes)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("read as")
    ax.set_ylabel("label")
    most = [divmod(int(place), len(counts)) for place in np.argsort(-mistakes.filled(0).ravel(), kind="stable")[:3]]
    worst = "; ".join(f"{classes[i]} read as {classes[j]}: {counts[i, j]:g}" for i, j in most if counts[i, j])
    total = f"{counts.sum() - counts.trace():,.6g} mistakes"
    heading(
        figure, f"{title}: {total}", f"Counts of test images by label and by what they are read as. The most frequent mistakes: {worst}."
    )
    return figure
