"""Plots in one style. Each function takes plain numbers (or a table's frame) and returns a matplotlib Figure.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color), told apart by the colour-blind; what a colour says, a label or a
marker says too.

The same numbers give the same bytes on every machine. Processors differ in the last digits of exp, log, a matrix product or
a fit; so what is drawn is rounded (``rounded``) before it is drawn, axes stand at rounded places, and the SVG's coordinates
are rounded and its ids numbered. There is no date and no random id.
"""

import base64
import functools
import io
import math
import re
import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kdcore import paths
from kdcore.report import statistics, tables

BLUE, VERMILLION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # without yellow, which is lost on white
WIDTH = 8.0  # inches: a notebook's width
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "lines.linewidth": 1.8,
    "svg.hashsalt": "kdcore",
    "svg.fonttype": "path",
    "axes.unicode_minus": True,
    "path.simplify": False,  # which points of a straight line may go, rounding errors would decide
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}
DPI = 150  # of a PNG
STRAIGHT = {"connectionstyle": "arc"}  # a line; the default is a curve whose middle lies on the line, or beside it by a rounding error
DIGITS = 9  # significant ones of what is drawn: far finer than a line is wide, far coarser than what processors differ by


@contextmanager
def style():
    """Everything drawn inside looks alike: matplotlib's defaults with ``STYLE`` over them, whatever the user's own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _styled(plot):
    """A plot function drawn in ``style()``, of rounded numbers; its figure is closed for pyplot, so that a notebook shows it once."""

    @functools.wraps(plot)
    def wrapped(*args, **kwargs) -> Figure:
        with style():
            figure = plot(*rounded(args), **rounded(kwargs))
            plt.close(figure)
            return figure

    return wrapped


def rounded(value):
    """``value`` with every float in it rounded to ``DIGITS`` significant digits: arrays, tensors, frames, and what is nested
    in lists, tuples and dicts (their keys stay)."""
    if isinstance(value, float | np.floating):
        return statistics.rounded(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rounded(each) for each in value)
    if isinstance(value, pd.DataFrame):
        frame = value.map(rounded)
        frame.attrs = value.attrs
        return frame
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value
    return np.array([statistics.rounded(each, DIGITS) for each in value.ravel().tolist()]).reshape(value.shape)


@_styled
def paper_against_ours(frame: pd.DataFrame) -> Figure:
    """The rows of a table (``tables.table``): our mean with its 95 % interval, every seed a dot below it, and the paper's
    number a line under a diamond.

    The pale band is the paper's number -+ margin; a hollow diamond is the table's other reference. Rows of different units
    stand in panels of their own. Rows that were not run stand in the table alone; the heading counts those with a number.
    """
    not_run = int((frame["paper"].notna() & (frame["n"] == 0) & (frame["verdict"] != "quoted")).sum())
    frame = frame[frame["n"] > 0]
    groups = [(unit, frame[frame["unit"] == unit]) for unit in frame["unit"].unique()]
    labels = [_wrapped(label, 36) for label in frame["label"]]
    step = 0.34 + 0.17 * max((label.count("\n") for label in labels), default=0)
    heights = [step * len(group) + 0.2 for _, group in groups]
    size = (WIDTH, sum(heights) + 0.55 * len(groups) + 1.0)
    figure, axes = plt.subplots(len(groups) or 1, 1, figsize=size, height_ratios=heights or None, squeeze=False, layout="constrained")
    for ax, (unit, group) in zip(axes[:, 0], groups, strict=False):
        for y, row in enumerate(group.to_dict("records")):
            values = [seed["value"] for seed in row["seeds"]]
            if not math.isnan(row["paper"]):
                if row["margin"] > 0 and frame.attrs["comparable"]:
                    low, width = row["paper"] - row["margin"], 2 * row["margin"]
                    ax.barh(y, width, left=low, height=0.5, color=VERMILLION, alpha=0.14, lw=0, zorder=1)
                ax.plot([row["paper"]] * 2, [y - 0.25, y + 0.25], color=VERMILLION, lw=1.4, zorder=3)
                ax.plot(row["paper"], y - 0.25, "D", ms=6, color=VERMILLION, zorder=3)
            if not math.isnan(row.get("reference", math.nan)):
                ax.plot(row["reference"], y - 0.25, "D", ms=6, mfc="white", color=VERMILLION, zorder=3)
            if values:
                ax.plot(values, [y + 0.18] * len(values), "o", ms=4, color=BLUE, alpha=0.55, mew=0, zorder=4)
                if not math.isnan(row["low"]):
                    ax.plot([row["low"], row["high"]], [y, y], color=BLUE, lw=2.4, solid_capstyle="butt", zorder=4)
                ax.plot(row["ours"], y, "o", ms=7, color=BLUE, zorder=5)
            ax.text(1.015, y, row["verdict"], transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, color="#333333")
        ax.set_yticks(range(len(group)), [_wrapped(label, 36) for label in group["label"]])
        ax.set_ylim(len(group) - 0.45, -0.55)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(unit)
        ax.use_sticky_edges = False  # a band must not end at the axis
        ax.margins(x=0.04)
        ax.autoscale_view(scaley=False)
    about = frame.attrs
    rest = f"; {not_run} row{'s' if not_run > 1 else ''} not run" if not_run else ""
    _heading(figure, f"{about['title']}\n(budget {about['budget']}{rest})")
    marks = [
        mpl.lines.Line2D([], [], marker="D", ls="", ms=6, color=VERMILLION, label="paper (band: margin)"),
        mpl.lines.Line2D([], [], marker="o", ms=7, lw=2.4, color=BLUE, label="ours: mean, 95 % interval"),
        mpl.lines.Line2D([], [], marker="o", ls="", ms=4, color=BLUE, alpha=0.55, mew=0, label="one seed"),
    ]
    if about["reference"]:
        marks.insert(1, mpl.lines.Line2D([], [], marker="D", ls="", ms=6, mfc="white", color=VERMILLION, label=about["reference"]))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


@_styled
def learning_curves(records_by_arm: dict[str, list[dict]], metric: str, title: str = "") -> Figure:
    """A metric of the history against the epoch: for each arm the mean over seeds, and a band from least to most.

    Epochs are counted through all stages. Several members in one trial count as their mean. More than seven arms are
    spread over panels; where a panel still holds more than seven, the bands would hide one another and are left out.
    Errors and losses have a log axis where they fall to a third or less.
    """
    curves = {arm: found for arm, records in records_by_arm.items() if (found := _histories(records, metric)) is not None}
    panels = -(-len(curves) // 9) if len(curves) > len(PALETTE) else 1
    size = -(-len(curves) // panels) if curves else 1
    parts = [list(curves.items())[i * size : (i + 1) * size] for i in range(panels)]
    lines = max((sum(_wrapped(arm, 30).count("\n") + 1 for arm, _ in part) for part in parts), default=1)
    height = max(3.0, 0.24 * lines + 0.5)
    figure, axes = plt.subplots(panels, 1, figsize=(WIDTH, height * panels + 0.5), squeeze=False, sharex=True, layout="constrained")
    everything = np.concatenate([values.ravel() for _, values in curves.values()]) if curves else np.ones(1)
    log = any(word in metric for word in ("error", "loss")) and everything.min() > 0 and everything.max() > 3 * everything.min()
    for ax, part in zip(axes[:, 0], parts, strict=True):
        # many arms are a sweep: an ordered scale says so, and stays readable without colour vision
        many = [mpl.colormaps["cividis"](x) for x in np.linspace(0, 0.78, len(part))]
        ends = []
        for (arm, (epochs, values)), colour in zip(part, PALETTE if len(part) <= len(PALETTE) else many, strict=False):
            mean = values.mean(0)
            ax.plot(epochs, mean, color=colour, marker="o" if len(epochs) == 1 else None)
            if len(values) > 1 and len(part) <= len(PALETTE):
                ax.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.16, lw=0)
            ends.append((epochs[-1], mean[-1], arm, colour))
        if log:
            _log_axis(ax.yaxis)
        ax.margins(x=0.01)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.set_ylabel(_wrapped(metric.replace("_", " "), 26))
        _direct_labels(ax, ends, height - 0.7)
    axes[-1, 0].set_xlabel("epoch")
    if title:
        _heading(figure, title)
    return figure


@_styled
def curve(x, lines: dict, marks: dict | None = None, *, xlabel: str = "", ylabel: str = "", title: str = "", log: bool = False) -> Figure:
    """Lines over one x [n]: the seeds thin, their mean thick; ``log`` for a logarithmic y.

    lines: {label: [seeds][n]}. marks: {label: x of a vertical line, or one for each seed (a line at their mean, a tick
    at each)}.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    x, shown = np.asarray(x, float), {}
    for (label, seeds), colour in zip(lines.items(), PALETTE, strict=False):
        seeds = np.atleast_2d(np.asarray(seeds, float))
        if len(seeds) > 1:
            ax.plot(x, seeds.T, color=colour, lw=0.8, alpha=0.45)
        (shown[label],) = ax.plot(x, seeds.mean(0), color=colour, lw=2.4)
    dashes = ((0, (6, 3)), (0, (1.5, 2)), (0, (7, 2, 1.5, 2)), "-")
    for i, (label, places) in enumerate((marks or {}).items()):
        places = np.atleast_1d(np.asarray(places, float))
        colour = PALETTE[::-1][i % len(PALETTE)]
        mark = ax.axvline(places.mean(), color=colour, lw=1.6, ls=dashes[i % len(dashes)])
        shown[f"{label}: {tables.number(places.mean(), 3)}"] = mark
        if len(places) > 1:
            ax.plot(places, np.full(len(places), 0.015 + 0.025 * i), "|", color=colour, ms=9, mew=1.4, transform=ax.get_xaxis_transform())
    if log:
        _log_axis(ax.yaxis)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.01)
    if title:
        _heading(figure, title)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2)
    return figure


@_styled
def stretches(panels: dict[str, dict[str, tuple]], breaks=(), *, xlabel: str = "", title: str = "") -> Figure:
    """Lines whose points lie at places of their own, a panel for each measure over one x axis.

    panels: {measure: {label: (x [n], y [n])}}; a label looks the same in all panels. breaks: x of vertical lines.
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
    if title:
        _heading(figure, title)
    return figure


@_styled
def error_against(x_values, groups: dict, *, xlabel: str = "temperature", ylabel: str = "errors", title: str = "") -> Figure:
    """A measure against a swept variable (log axis), a panel for each group, each with its own scale.

    groups: {label: [seeds' values of x_values[0], of x_values[1], ...]}, an empty list where nothing was run. Every
    seed a dot (beside its place, to be seen), the means joined, with their 95 % intervals.
    """
    figure, axes = plt.subplots(len(groups), 1, figsize=(WIDTH, 2.7 * len(groups) + 0.7), squeeze=False, sharex=True, layout="constrained")
    for ax, (label, cells), colour in zip(axes[:, 0], groups.items(), PALETTE * 4, strict=False):
        known = [(x, values, *statistics.mean_interval(values)) for x, values in zip(x_values, cells, strict=True) if len(values)]
        ax.set_xscale("log")
        beside = mpl.transforms.offset_copy(ax.transData, figure, x=-6, units="points")
        for x, values, _, low, high in known:
            ax.plot([x] * len(values), values, "o", ms=4, color=colour, alpha=0.5, mew=0, transform=beside)
            if not math.isnan(low):
                ax.plot([x, x], [low, high], color=colour, lw=2, alpha=0.9, solid_capstyle="butt")
        ax.plot([k[0] for k in known], [k[2] for k in known], "-o", color=colour, ms=6, lw=1.6)
        seen = [value for _, values, *_ in known for value in values]
        if seen:
            ax.update_datalim([(known[0][0], min(seen)), (known[-1][0], max(seen))])
            ax.autoscale_view()
        ax.xaxis.set_major_locator(FixedLocator(list(x_values)))
        ax.xaxis.set_major_formatter(FuncFormatter(_sparse(x_values)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
        ax.set_title(label, fontweight="normal")
        ax.set_ylabel(ylabel)
    axes[-1, 0].set_xlabel(xlabel)
    if title:
        _heading(figure, title)
    return figure


@_styled
def lines_against(panels: dict[str, tuple[dict, dict]], *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """A measure against a swept variable (log axis) for several methods, beside fixed levels: a panel for each group.

    panels: {group: (lines {label: {x: [seeds' values]}}, levels {label: [seeds' values]})}. A line joins the means, with
    their 95 % intervals; a level is a grey, dashed line at its mean. A label looks the same in all panels.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 3.1 * rows + 0.9), squeeze=False, layout="constrained")
    colours = dict(zip(dict.fromkeys(label for lines, _ in panels.values() for label in lines), PALETTE * 4, strict=False))
    shown = {}
    for ax, (group, (lines, levels)) in zip(axes.flat, panels.items(), strict=False):
        ax.set_xscale("log")
        for (label, cells), marker in zip(lines.items(), "os^Dv" * 4, strict=False):
            points = [(x, *statistics.mean_interval(values)) for x, values in sorted(cells.items())]
            (shown[label],) = ax.plot([x for x, *_ in points], [mean for _, mean, *_ in points], f"-{marker}", color=colours[label], ms=5)
            for x, _, low, high in points:
                if not math.isnan(low):
                    ax.plot([x, x], [low, high], color=colours[label], lw=2, alpha=0.6, solid_capstyle="butt")
        for (label, values), dashes in zip(levels.items(), ((6, 2), (2, 2), (6, 2, 2, 2), (1, 1)) * 4, strict=False):
            shown[label] = ax.axhline(np.mean(values), color="#555555", lw=1.4, dashes=dashes)
        places = sorted({x for cells in lines.values() for x in cells})
        ax.xaxis.set_major_locator(FixedLocator(places))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelrotation=45 if len(places) > 6 else 0)
        ax.set_title(group, fontweight="normal")
        ax.set_ylabel(ylabel)
        ax.set_xlabel(xlabel)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(4, len(shown)))
    if title:
        _heading(figure, title)
    return figure


@_styled
def clouds(panels: dict[str, np.ndarray], title: str = "") -> Figure:
    """Points [n, 2] side by side on the same axes, a panel for each name."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    size = (WIDTH, WIDTH / columns * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for ax, (name, points) in zip(axes.flat, panels.items(), strict=False):
        ax.plot(points[:, 0], points[:, 1], ".", ms=2.5, color=BLUE, alpha=0.5, mew=0, rasterized=True)  # else megabytes of SVG
        ax.set_title(name, fontweight="normal")
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    if title:
        _heading(figure, title)
    return figure


@_styled
def boundaries(panels: dict[str, tuple], across, up, points, labels, title: str = "") -> Figure:
    """What nets of two inputs make of a plane: the class that each decides for in pale colours, the boundary of each neuron a
    thin line, and the points they learned from. Nets side by side.

    panels: {name: (classes [n, m], pre-activations [neurons, n, m])}; across [m], up [n]: the ticks of the grid; points [N, 2],
    labels [N]: from 0.
    """
    count = int(max(labels)) + 1
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, WIDTH / len(panels) + 1.1), squeeze=False, sharey=True, layout="constrained"
    )
    pale = mpl.colors.ListedColormap([[1 - 0.3 * (1 - part) for part in mpl.colors.to_rgb(colour)] for colour in PALETTE[:count]])
    for ax, (name, (classes, neurons)) in zip(axes[0], panels.items(), strict=True):
        ax.pcolormesh(across, up, classes, cmap=pale, vmin=0, vmax=count - 1, shading="nearest", rasterized=True)
        for neuron in neurons:
            if neuron.min() < 0 < neuron.max():  # the others have no boundary here
                ax.contour(across, up, neuron, levels=[0.0], colors="#333333", linewidths=0.6)
        for number, marker in zip(range(count), "os^Dv<>" * count, strict=False):
            chosen = points[labels == number]
            ax.plot(chosen[:, 0], chosen[:, 1], marker, ms=2, color=PALETTE[number], mew=0, alpha=0.7, rasterized=True)
        ax.set_title(name, fontsize=10, fontweight="normal")
        ax.grid(False)
    if title:
        _heading(figure, title)
    return figure


@_styled
def outlines(trees: dict[str, list[dict]], title: str = "") -> Figure:
    """Decision trees side by side, each an indented list: a line for each branch, a leaf's line ends with its class.

    trees: {name: [{depth, condition, cases, class (None for an inner node)}, ...]}, each branch before its sister.
    """
    classes = sorted({line["class"] for lines in trees.values() for line in lines} - {None})
    colours = dict(zip(classes, PALETTE * len(classes), strict=False))
    height, indent = 0.165, 0.13  # inches: of a line, of a level
    rows = max(len(lines) for lines in trees.values())
    figure, axes = plt.subplots(1, len(trees), figsize=(WIDTH, height * rows + 1.0), squeeze=False, layout="constrained")
    width = WIDTH / len(trees) - 0.2
    for ax, (name, lines) in zip(axes[0], trees.items(), strict=True):
        last: dict[int, int] = {}
        for y, line in enumerate(lines):
            depth, label = line["depth"], line["class"]
            last[depth] = y
            if depth:
                x = (depth - 0.75) * indent
                ax.plot([x, x, depth * indent], [last[depth - 1] + 0.3, y, y], color="#9a9a9a", lw=0.8, solid_joinstyle="miter")
            text = (
                (line["condition"] or "all cases") + (f" \N{RIGHTWARDS ARROW} {label}" if label is not None else "") + f" ({line['cases']})"
            )
            colour = "#222222" if label is None else [0.75 * part for part in mpl.colors.to_rgb(colours[label])]
            weight = "normal" if label is None else "bold"
            ax.text((depth + 0.2) * indent, y, text, va="center", fontsize=7.5, color=colour, fontweight=weight)
        leaves = sum(line["class"] is not None for line in lines)
        ax.set_title(f"{name}: {leaves} {'leaf' if leaves == 1 else 'leaves'}", fontsize=10.5)
        ax.set_xlim(0, width)
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_axis_off()
    if title:
        _heading(figure, _wrapped(title, 90))
    return figure


@_styled
def confusion(matrix, classes, title: str = "") -> Figure:
    """Counts [label][prediction] as a heat map. The colour scale is that of the mistakes; what is right is only written."""
    counts = np.asarray(matrix, float)
    mistakes = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    top = max(1.0, float(mistakes.max())) if len(counts) > 1 else 1.0
    side = max(4.6, 0.52 * len(counts) + 1.4)
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    colours = mpl.colormaps["Blues"].with_extremes(bad="#f1f1f1")
    ax.imshow(np.sqrt(mistakes / top), cmap=colours, vmin=0, vmax=1)  # the root spreads the small counts, and is exact everywhere
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
    if title:
        _heading(figure, f"{_wrapped(title, 44)}: {counts.sum() - counts.trace():,.6g} mistakes")
    return figure


@_styled
def gallery(entries: list[dict], temperatures=(1.0, 20.0), title: str = "") -> Figure:
    """What a teacher says beyond the label: a row for each entry with picture, hard label and softmax(logits / T) for each T.

    entries: {label, logits [C], image (base64 of uint8 of ``shape``, [H, W] or [3, H, W])}. At T = 1 the axis is
    logarithmic, as the small probabilities are what there is to see; above, it starts at 0.
    """
    columns = 2 + len(temperatures)
    figure, axes = plt.subplots(
        len(entries), columns, figsize=(WIDTH, 0.98 * len(entries) + 0.7), squeeze=False, width_ratios=[0.5, 1] + [1.5] * len(temperatures),
        layout="constrained",
    )  # fmt: skip
    softened = [_softmax(np.array([entry["logits"] for entry in entries], float) / t) for t in temperatures]
    for number, (row, entry) in enumerate(zip(axes, entries, strict=True)):
        classes = np.arange(len(entry["logits"]))
        pixels = _pixels(entry["image"], entry["shape"])
        row[0].imshow(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1), cmap="gray_r", vmin=0, vmax=255)
        row[0].set_axis_off()
        colours = [VERMILLION if c == entry["label"] else BLUE for c in classes]
        row[1].bar(classes, classes == entry["label"], color=colours)
        row[1].set_ylim(0, 1.08)
        row[1].set_yticks([0, 1])
        for ax, temperature, probabilities in zip(row[2:], temperatures, softened, strict=True):
            if temperature == 1:
                # an even power, so that a tick stands half way
                floor = 10.0 ** max(-12, 2 * (statistics.exponent(max(probabilities.min(), 1e-12)) // 2))
                ax.bar(classes, np.maximum(probabilities[number], floor) - floor, bottom=floor, color=colours)
                ax.set_yscale("log")
                ax.set_ylim(floor, 4)
                ax.yaxis.set_major_locator(FixedLocator([floor, math.sqrt(floor), 1]))
                ax.yaxis.set_major_formatter(FuncFormatter(_power))
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
    if title:
        _heading(figure, title)
    return figure


@_styled
def matrices(panels: dict[str, list], columns, title: str = "") -> Figure:
    """Matrices as heat maps: a row for each panel, a column for each section, one colour scale for all rows of a column.

    panels: {label: [matrix of columns[0], of columns[1], ...]}, each [rows][columns] of numbers. The colours of a column run
    from the least (or 0, if that is less) to the largest value in it.
    Raises ValueError where a panel has not one matrix for each column.
    """
    if wrong := [label for label, row in panels.items() if len(row) != len(columns)]:
        raise ValueError(f"'{wrong[0]}' has {len(panels[wrong[0]])} matrices for {len(columns)} columns")
    side = (WIDTH - 0.6) / len(columns)
    size = (WIDTH, side * len(panels) + 1.4)
    figure, axes = plt.subplots(len(panels), len(columns), figsize=size, squeeze=False, layout="constrained")
    for c, (column, name) in enumerate(zip(axes.T, columns, strict=True)):
        shown = [np.asarray(row[c], float) for row in panels.values()]
        low, high = min(0.0, *(matrix.min() for matrix in shown)), max(matrix.max() for matrix in shown)
        for ax, matrix in zip(column, shown, strict=True):
            image = ax.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        height, width = shown[0].shape
        column[0].set_title(f"{name} ({height} x {width})", fontsize=10, fontweight="normal", loc="center")
        bar = figure.colorbar(image, ax=column, location="bottom", fraction=0.03, pad=0.01, aspect=16)
        bar.ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
        bar.outline.set_visible(False)
    for ax, label in zip(axes[:, 0], panels, strict=True):
        ax.set_ylabel(_wrapped(label, 22))
    if title:
        _heading(figure, title)
    return figure


@_styled
def scatter(groups: dict[str, list[tuple[float, float]]], *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """A measure against another: a point for each pair (x, y), a colour and a marker for each group; from three groups on the
    least-squares line through all points, in its 95 % band: the bootstrap draws groups, whose points are not independent.
    The points set the axes: a band over few groups is wide, and may leave the figure."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    found = pd.DataFrame([(label, *point) for label, points in groups.items() for point in points], columns=["group", "x", "y"])
    shown = {}
    if len(groups) > 2 and found["x"].nunique() > 1:
        import seaborn  # slow to import

        look = {"scatter": False, "color": "#777777", "line_kws": {"lw": 1.2}}
        seaborn.regplot(found, x="x", y="y", units="group", seed=0, truncate=True, ax=ax, **look)
        (line,), (band,) = ax.lines, ax.collections  # a thousand fits, each with its processor's last digits
        shown["line through all, 95 % band"] = line
        line.set_data(rounded(line.get_xdata()), rounded(line.get_ydata()))
        band.set_verts([rounded(path.vertices) for path in band.get_paths()])
    for (label, points), colour, marker in zip(groups.items(), PALETTE * 4, "os^Dv<>ph" * 4, strict=False):
        (shown[label],) = ax.plot(*zip(*points, strict=True), marker, color=colour, ms=7, alpha=0.8, mew=0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.08)
    if len(found):
        room = 0.15 * ((found["y"].max() - found["y"].min()) or 1.0)
        ax.set_ylim(found["y"].min() - room, found["y"].max() + room)
    if title:
        _heading(figure, title)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(3, max(1, len(shown))))
    return figure


@_styled
def spread(rows: list[dict], *, xlabel: str = "", title: str = "") -> Figure:
    """How much single runs differ: the paper's mean -+ one standard deviation, and beside it ours with a dot for every seed. Both
    panels have one scale, each its own origin: a spread is as wide here as there, wherever the errors lie.

    rows: [{label, paper (mean, standard deviation) or None, ours [a value for each seed]}].
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.5 * len(rows) + 1.5), sharey=True, layout="constrained")
    reach: tuple[list, list] = ([], [])
    for y, row in enumerate(rows):
        if row["paper"] is not None:
            mean, std = row["paper"]
            axes[0].errorbar(mean, y, xerr=std, fmt="D", ms=6, color=VERMILLION, capsize=3)
            reach[0].extend((mean - std, mean + std))
        if ours := row["ours"]:
            std = np.std(ours, ddof=1) if len(ours) > 1 else None
            axes[1].errorbar(np.mean(ours), y - 0.1, xerr=std, fmt="o", ms=7, color=BLUE, capsize=3)
            axes[1].plot(ours, [y + 0.2] * len(ours), "o", ms=4, color=BLUE, alpha=0.55, mew=0)
            reach[1].extend((*ours, np.mean(ours) - (std or 0), np.mean(ours) + (std or 0)))
    width = 1.15 * max([1.0, *(max(values) - min(values) for values in reach if values)])
    for ax, values in zip(axes, reach, strict=True):
        middle = (max(values) + min(values)) / 2 if values else width / 2
        ax.set_xlim(middle - width / 2, middle + width / 2)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(xlabel)
    axes[0].set_yticks(range(len(rows)), [_wrapped(row["label"], 36) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    marks = [
        mpl.lines.Line2D([], [], marker="D", ms=6, color=VERMILLION, label="paper: mean, standard deviation"),
        mpl.lines.Line2D([], [], marker="o", ms=7, color=BLUE, label="ours: the same"),
        mpl.lines.Line2D([], [], marker="o", ls="", ms=4, color=BLUE, alpha=0.55, mew=0, label="one seed"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    if title:
        _heading(figure, title)
    return figure


@_styled
def growth(paths: dict[str, list[dict]], title: str = "") -> Figure:
    """How networks were grown, a panel for each path: the groups of every module (a row) after each step (a column).

    paths: {name: [{module, size, groups {module: number}}, ...]}. A dot marks the module that the step halved, grey one that has
    nothing to halve.
    """
    height = 0.8 + 0.27 * max(len(path[0]["groups"]) for path in paths.values())
    figure, axes = plt.subplots(len(paths), 1, figsize=(WIDTH, height * len(paths) + 0.4), squeeze=False, layout="constrained")
    top = max(2, *(groups for path in paths.values() for groups in path[0]["groups"].values()))
    for ax, (name, path) in zip(axes[:, 0], paths.items(), strict=True):
        modules = list(path[0]["groups"])
        values = np.array([[step["groups"][module] for step in path] for module in modules], float)
        grown = [step["module"] for step in path]
        fixed = np.array([module not in grown and row.max() == 1 for module, row in zip(modules, values, strict=True)])
        colours = mpl.colormaps["cividis_r"].with_extremes(bad="#efefef")
        extent = (0.5, len(path) + 0.5, len(modules) - 0.5, -0.5)
        shown = np.ma.masked_array(rounded(np.log(values) / math.log(top)), np.broadcast_to(fixed[:, None], values.shape))
        ax.imshow(shown, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
        for (y, x), value in np.ndenumerate(values):
            if grown[x] == modules[y]:
                ax.plot(x + 1, y, "o", ms=5, mfc="white", mec="black", mew=0.8)
            elif not fixed[y] and values.size <= 400:
                colour = "white" if value > math.sqrt(top) else "#222222"
                ax.text(x + 1, y, f"{value:g}", ha="center", va="center", fontsize=7, color=colour)
        ax.set_yticks(range(len(modules)), modules)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        ax.grid(False)
        ax.set_title(f"{name}: {len(path)} steps, to a size of {path[-1]['size']:,}", fontweight="normal")
    axes[-1, 0].set_xlabel("step (dot: the cell that grows; numbers: groups of its convolutions, 1 for full ones; grey: none to grow)")
    if title:
        _heading(figure, title)
    return figure


@_styled
def attention(entries: dict[str, list[dict]], title: str = "") -> Figure:
    """Where nets look: a row for each picture and layer, a column for each net.

    entries: {net: [{image (base64 of uint8), shape [3, H, W], maps [{values (base64 of uint8), shape [h, w]}]}]}, of the same
    pictures in all nets.
    """
    first = next(iter(entries.values()))
    rows = [(picture, layer) for picture, entry in enumerate(first) for layer in range(len(entry["maps"]))]
    columns = len(entries) + 1
    side = min(1.0, WIDTH / columns)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(max(4.0, side * columns), side * len(rows) + 0.9), squeeze=False, layout="constrained"
    )
    for row, (picture, layer) in zip(axes, rows, strict=True):
        row[0].imshow(np.moveaxis(_pixels(first[picture]["image"], first[picture]["shape"]), 0, -1))
        for ax, found in zip(row[1:], entries.values(), strict=True):
            each = found[picture]["maps"][layer]
            ax.imshow(_pixels(each["values"], each["shape"]), cmap="inferno", vmin=0, vmax=255)
        row[0].set_ylabel("{} x {}".format(*first[picture]["maps"][layer]["shape"]), fontsize=9)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
    for ax, head in zip(axes[0], ["picture", *entries], strict=True):
        ax.set_title(_wrapped(head, 10), fontsize=9, fontweight="normal", loc="center")
    if title:
        _heading(figure, title)
    return figure


@_styled
def cells(kinds: dict[str, list[tuple[str, int]]], title: str = "") -> Figure:
    """Cells of an architecture search, a panel for each kind. A column is a map that goes down: the two inputs, four nodes. An
    arrow is an operation, from the map that it takes to the node that it makes, the sum of two. The nodes are the output.

    kinds: {kind: [(operation, the node that it takes), ...]}, 8 each, as a genotype has them.
    """
    figure, axes = plt.subplots(len(kinds), 1, figsize=(WIDTH, 3.1 * len(kinds) + 0.4), squeeze=False, layout="constrained")
    look = {"fc": "#eef3f8", "ec": "#555555", "zorder": 3}
    word = {"fontsize": 9.5, "ha": "center", "va": "center", "zorder": 4}
    for ax, (kind, edges) in zip(axes[:, 0], kinds.items(), strict=True):
        bottom = len(edges) + 0.2
        for column, name in enumerate(("c(k-2)", "c(k-1)", "0", "1", "2", "3")):
            if column < 2:
                top, last = -1.0, max((row for row, (_, source) in enumerate(edges) if source == column), default=-1.0)
                ax.text(column, top, name, **word, bbox={"boxstyle": "round,pad=0.35"} | look)
            else:
                top, last = 2 * column - 3.5, bottom  # between its two operations
                ax.add_patch(mpl.patches.Rectangle((column - 0.07, top - 0.8), 0.14, 1.6, **look))
                ax.text(column, top, name, **word)
            ax.plot([column, column], [top, last], color="#bbbbbb", lw=1.2, zorder=1)
        for row, (name, source) in enumerate(edges):
            node, colour = 2 + row // 2, PALETTE[row % 2]
            arrow = STRAIGHT | {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (node - 0.07, row), (source, row), arrowprops=arrow, zorder=2)
            ax.plot(source, row, "o", ms=4, color=colour, zorder=2)
            dark = [0.6 * part for part in mpl.colors.to_rgb(colour)]
            ax.text(node - 0.52, row, name, color=dark, **word | {"fontsize": 7.5}, bbox={"fc": "white", "ec": "none", "pad": 0.6})
        ax.plot([2, 5], [bottom, bottom], color="#bbbbbb", lw=1.2, zorder=1)
        ax.text(3.5, bottom, "c(k): the four nodes side by side", **word, bbox={"boxstyle": "round,pad=0.35"} | look)
        ax.set_xlim(-0.5, 5.5)
        ax.set_ylim(bottom + 0.6, -1.6)
        ax.set_axis_off()
        ax.set_title(f"{kind} cells", fontweight="normal")
    if title:
        _heading(figure, title)
    return figure


@_styled
def error_against_size(points: list[dict], *, xlabel: str = "parameters", ylabel: str = "% error", title: str = "") -> Figure:
    """Errors of nets against their size, both on log axes: the paper's and ours, each net under a number of its own.

    points: [{label, paper (size, error) or None, ours (size, [seeds' errors]) or None}]. Every seed of ours is a dot, their
    mean a larger one.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6 + 0.2 * len(points)), layout="constrained")
    for number, point in enumerate(points, 1):
        side = 1 if number % 2 else -1  # neighbours of one size would write over each other
        where = {"textcoords": "offset points", "va": "center", "ha": "center", "fontsize": 9}
        if point["paper"] is not None:
            ax.plot(*point["paper"], "D", ms=6, color=VERMILLION, zorder=3)
            ax.annotate(str(number), point["paper"], (0, 10 * side), color="#8a3c00", **where)
        if point["ours"] is not None:
            size, errors = point["ours"]
            ax.plot([size] * len(errors), errors, "o", ms=4, color=BLUE, alpha=0.5, mew=0, zorder=4)
            ax.plot(size, np.mean(errors), "o", ms=7, color=BLUE, zorder=5)
            ax.annotate(str(number), (size, np.mean(errors)), (11 * side, 0), color="#004b77", **where)
    _log_axis(ax.yaxis)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(_power))
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(0.08)
    marks = [
        mpl.lines.Line2D([], [], marker="D", ls="", ms=6, color=VERMILLION, label="paper"),
        mpl.lines.Line2D([], [], marker="o", ls="", ms=7, color=BLUE, label="ours: mean (small: one seed)"),
    ]
    ax.legend(handles=marks, loc="best")
    key = "\n".join(f"{number:>2}  {point['label']}" for number, point in enumerate(points, 1))
    figure.supxlabel(key, x=0.08, ha="left", fontsize=9, linespacing=1.35)
    if title:
        _heading(figure, title)
    return figure


@_styled
def logits_and_softmax(cases: dict[str, list[float]], title: str = "") -> Figure:
    """For each case a row: its logits, and its softmax on a log axis, each bar with its value. cases: {label: logits}."""
    figure, axes = plt.subplots(len(cases), 2, figsize=(WIDTH, 1.9 * len(cases) + 0.6), squeeze=False, layout="constrained")
    ends = [value for logits in cases.values() for value in logits]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.2 * (high - low or 1.0)
    for (label, logits), row in zip(cases.items(), axes, strict=True):
        chances = np.maximum(_softmax(np.array(logits, float)), 1e-300)
        places = np.arange(len(logits))
        row[0].bar(places, logits, color=BLUE)
        row[0].axhline(0, color="#555555", lw=0.8)
        row[0].set_ylim(low - room, high + room)
        row[1].bar(places, chances, color=VERMILLION)
        row[1].set_yscale("log")
        row[1].yaxis.set_major_formatter(FuncFormatter(_power))
        row[1].set_ylim(chances.min() / 30, 300)
        for place, logit, chance in zip(places, logits, chances, strict=True):
            row[0].annotate(
                f"{logit + 0.0:g}", (place, logit), (0, 7 if logit >= 0 else -8), textcoords="offset points", ha="center", va="center"
            )
            row[1].annotate(f"{chance:.3g}", (place, chance), (0, 7), textcoords="offset points", ha="center", va="center")
        for ax in row:
            ax.set_xticks(places)
            ax.tick_params(length=0)
            ax.grid(axis="x", visible=False)
        row[0].set_ylabel(_wrapped(label, 18))
    for ax, head in zip(axes[0], ("logits", "softmax (log scale)"), strict=True):
        ax.set_title(head, fontsize=10, fontweight="normal", loc="center")
    for ax in axes[-1]:
        ax.set_xlabel("class")
    if title:
        _heading(figure, title)
    return figure


def figures_of(paper, records: list[dict], frames: list[pd.DataFrame] | None = None) -> dict[str, Callable[[], Figure]]:
    """Every figure of a paper at one budget: what draws it, by name; {} without current results.

    ``paper_TABLE`` for each table with reported numbers, then what the paper's module offers as ``figures(records)``
    (given current, done records; functions without arguments, too), then ``learning_TABLE`` for the arms of each table
    (not of one whose sheet says ``curves: false``) and each measure of the history. Nothing is drawn before it is called: to
    know the names costs nothing. frames: the tables of these records, where they are made already.
    Raises ValueError for records of two budgets.
    """
    if len(found := {record["budget"] for record in records}) > 1:
        raise ValueError(f"one figure, one budget: not {', '.join(sorted(found))}")
    done = [record for budget in found for record in tables.results(paper, records, budget)]
    if not done:
        return {}
    (budget,) = found
    figures = {}
    made = {frame.attrs["id"]: frame for frame in frames or ()}
    for sheet in paper.tables:
        frame = made[sheet["id"]] if sheet["id"] in made else tables.table(paper, sheet, records, budget)
        if (frame["paper"].notna() & (frame["n"] > 0)).any():
            figures[f"paper_{sheet['id']}"] = functools.partial(paper_against_ours, frame)
    figures |= {name: functools.partial(_of_budget, draw, budget) for name, draw in paper.figures(done).items()}
    drawn, of_arm = set(), tables.of_arms(done)
    for sheet in paper.tables:
        arms = tuple(dict.fromkeys(row["arm"] for row in sheet["rows"]))
        by_arm = {arm: of_arm[arm] for arm in arms if arm in of_arm}
        if arms in drawn or not by_arm or not sheet.get("curves", True):
            continue
        drawn.add(arms)
        names = _measures(by_arm)
        for metric in names:
            name = f"learning_{sheet['id']}" + (f"_{metric}" if len(names) > 1 else "")
            title = f"{sheet['title']}: while training\n(budget {budget})"
            figures[name] = functools.partial(learning_curves, by_arm, metric, title)
    return figures


def svg(figure: Figure) -> bytes:
    """The figure as SVG: coordinates to a thousandth of a point, ids numbered in their order."""
    drawn = io.BytesIO()
    with style():
        _lay_out(figure)
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    return _settled(drawn.getvalue().decode()).encode()


def png(figure: Figure) -> bytes:
    """The figure as PNG, ``DPI`` dots an inch."""
    drawn, dpi = io.BytesIO(), figure.dpi
    with style():
        _lay_out(figure)
        figure.dpi = DPI
        _GridCanvas(figure).print_png(drawn)
        figure.dpi = dpi
    return drawn.getvalue()


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write ``name.svg`` and ``name.png`` into ``folder``, each atomically; the paths."""
    written = []
    for kind, draw in (("svg", svg), ("png", png)):
        path, data = Path(folder) / f"{name}.{kind}", draw(figure)
        paths.write_atomically(path, lambda temporary, data=data: Path(temporary).write_bytes(data))
        written.append(path)
    return written


def _lay_out(figure: Figure) -> None:
    """Find the places of a figure's axes once, for the SVG and the PNG; rounded, as they come of products of matrices.

    At the PNG's resolution: at a coarser one letters are narrower, and a label would reach the figure's edge."""
    if (engine := figure.get_layout_engine()) is None:
        return
    for ax in figure.axes:
        ax.set_xlim(rounded(ax.get_xlim()))
        ax.set_ylim(rounded(ax.get_ylim()))
    dpi, figure.dpi = figure.dpi, DPI
    engine.execute(figure)
    figure.dpi = dpi
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.set_position(np.round(ax.get_position(original=True).bounds, 6), which="original")


class _GridCanvas(FigureCanvasAgg):
    def get_renderer(self):
        self.renderer = _GridRenderer(*self.figure.bbox.size, self.figure.dpi)
        return self.renderer


class _GridRenderer(RendererAgg):
    """Agg, given points on a grid of 1/128 of a pixel. To stroke a straight line of many points it decides at each by the sign of a
    rounding error on which side the next one lies, and a pixel's grey tells."""

    def __init__(self, width, height, dpi):
        super().__init__(width, height, dpi)
        agg = self._renderer  # whose methods the base class makes this object's own
        self.draw_path_collection = functools.partial(RendererBase.draw_path_collection, self)
        self.draw_image = lambda gc, x, y, image: agg.draw_image(gc, _on_grid(x), _on_grid(y), image)
        self.draw_markers = lambda gc, marker, place, path, transform, face=None: agg.draw_markers(
            gc, marker, place, _path_on_grid(path, transform), mpl.transforms.IdentityTransform(), face
        )

    def draw_path(self, gc, path, transform, rgbFace=None):
        super().draw_path(gc, _path_on_grid(path, transform), mpl.transforms.IdentityTransform(), rgbFace)

    def draw_text(self, gc, x, y, *args, **kwargs):
        super().draw_text(gc, float(_on_grid(x)), float(_on_grid(y)), *args, **kwargs)


def _on_grid(pixels):
    # halves and other round places, which are common, must not lie between two points of the grid: hence the odd number
    return np.floor(np.asarray(pixels, float) * 128 + 0.6234567) / 128


def _path_on_grid(path, transform):
    moved = path.transformed(transform)
    moved.vertices = _on_grid(moved.vertices)
    return moved


def _settled(text: str) -> str:
    """An SVG with its coordinates rounded to 3 decimals, and its ids, hashes of unrounded ones, numbered instead."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)  # not even a comment may hold them
    names: dict[str, str] = {}

    def settle(found: re.Match) -> str:
        if found["number"]:
            return f"{round(float(found['number']), 3) + 0.0:.3f}".rstrip("0").rstrip(".")
        if found["id"]:
            return names.setdefault(found["id"], f"{found['kind']}{len(names)}")
        return found[0]

    # base64 and comments stay as they are, and so do factors of scale and rotation
    kept = r"<!--.*?-->|base64,[^\"]*|(?:scale|rotate|matrix)\([^)]*\)"
    return re.sub(
        rf"{kept}|(?P<number>-?\d+\.\d{{4,}}|(?<![\w.])-0(?![\w.]))|(?<=[\"#])(?P<id>(?P<kind>[A-Za-z_]+[0-9_]*_|[a-z]+?)[0-9a-f]{{10}})(?=[\")])",
        settle,
        text,
        flags=re.S,
    )


def _histories(records: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Epochs [n] and values [seeds, n] of the records that have the metric, at the epochs where each of them has it; None
    where none has it."""
    found = [{i: float(np.mean(row[metric])) for i, row in enumerate(record["history"]) if metric in row} for record in records]
    found = [values for values in found if values]
    places = [i for i in found[0] if all(i in values for values in found)] if found else []
    return (np.array(places) + 1, np.array([[values[i] for i in places] for values in found])) if places else None


def _measures(records_by_arm: dict[str, list[dict]]) -> list[str]:
    """What the histories hold beside stage, epoch, rate and training loss, in order of appearance."""
    rows = [row for records in records_by_arm.values() for record in records for row in record["history"]]
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("stage", "epoch", "lr", "loss")]


def _pixels(text: str, shape: list[int]) -> np.ndarray:
    """What a record keeps of a picture: base64 of uint8."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return rounded(powers / powers.sum(-1, keepdims=True))


def _heading(figure: Figure, text: str) -> None:
    letters = int(10 * figure.get_figwidth())  # that fit into a line
    text = "\n".join(_wrapped(line, letters) for line in text.split("\n"))
    figure.suptitle(text, x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def _of_budget(draw: Callable[[], Figure], budget: str) -> Figure:
    """The figure that ``draw`` gives, its budget in the heading, so that it says what it shows wherever it is copied to."""
    figure = draw()
    with style():
        _heading(figure, f"{figure.get_suptitle()}\n(budget {budget})".strip())
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(str(text), width)) or str(text)


def _log_axis(axis) -> None:
    """A log axis with plain numbers at 1, 2 and 5 of each decade."""
    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _power(value: float, _=None) -> str:
    """A tick of a log axis: "10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT THREE}" for a power of ten, else "2 x 10..." in the same way."""
    exponent = statistics.exponent(value)
    digits = f"{exponent}".translate(str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"))
    factor = f"{value / 10.0**exponent:.3g}"
    return f"10{digits}" if factor == "1" else f"{factor} \N{MULTIPLICATION SIGN} 10{digits}"


def _sparse(values):
    """A tick formatter that leaves a label out where it would touch the one before (less than 4 % of a log axis apart)."""
    places = sorted(float(value) for value in values)
    span = math.log(places[-1] / places[0]) or 1.0
    shown: list[float] = []
    for place in places:
        if not shown or math.log(place / shown[-1]) > 0.04 * span:
            shown.append(place)
    return lambda value, _: f"{value:g}" if any(math.isclose(value, place) for place in shown) else ""


def _direct_labels(ax, ends: list[tuple], height: float) -> None:
    """Name each line at the right edge, in its colour, moved apart where names would overlap.

    ends: (x, y, label, colour); height: of the axes, in inches.
    """
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        low, high = math.log(low), math.log(high)
        place = [(math.log(y) - low) / (high - low) for _, y, _, _ in ends]
    else:
        place = [(y - low) / (high - low) for _, y, _, _ in ends]
    line = 0.165 / height
    sizes = [line * (_wrapped(label, 30).count("\n") + 1) for _, _, label, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: place[i])
    floor = 0.0
    for i in order:  # upwards: each above the one before
        place[i] = max(place[i], floor + sizes[i] / 2)
        floor = place[i] + sizes[i] / 2
    ceiling = 1.0
    for i in reversed(order):  # and down again from the top
        place[i] = min(place[i], ceiling - sizes[i] / 2)
        ceiling = place[i] - sizes[i] / 2
    for (x, y, label, colour), where in zip(ends, place, strict=True):
        # from the middle of the name's left edge, not clipped at its box
        leader = STRAIGHT | {"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkA": 2, "relpos": (0, 0.5), "patchA": None}
        dark = [0.6 * part for part in mpl.colors.to_rgb(colour)]  # the pale ones would be hard to read as letters
        text = {"color": dark, "va": "center", "fontsize": 9, "linespacing": 1.05}
        ax.annotate(_wrapped(label, 30), (x, y), (1.03, where), textcoords="axes fraction", arrowprops=leader, **text)
