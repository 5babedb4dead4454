"""Plots that several papers use; a paper's own plots are in its folder.

Each function takes plain numbers (or a table's frame) and returns a matplotlib Figure.
"""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kdcore.report import select, statistics, words
from kdcore.report.drawing import BLUE, PALETTE, VERMILLION, WIDTH, heading, log_axis, name_lines, plot, sparse_ticks, wrapped


@plot
def paper_against_ours(frame: pd.DataFrame) -> Figure:
    """The rows of a table (``tables.table``): our mean with its 95 % interval, a dot below it for every seed, and the paper's
    number as a line under a diamond.

    The pale band is the paper's number -+ margin; a hollow diamond is the number of the table's reference. Each unit has its
    own panel. Rows that were not run are omitted; the heading counts those for which the paper reports a number.
    """
    not_run = int((frame["paper"].notna() & (frame["n"] == 0) & (frame["verdict"] != "quoted")).sum())
    frame = frame[frame["n"] > 0]
    groups = [(unit, frame[frame["unit"] == unit]) for unit in frame["unit"].unique()]
    labels = [wrapped(label, 36) for label in frame["label"]]
    step = 0.34 + 0.17 * max((label.count("\n") for label in labels), default=0)
    heights = [step * len(group) + 0.2 for _, group in groups]
    size = (WIDTH, sum(heights) + 0.55 * len(groups) + 1.0)
    figure, axes = plt.subplots(len(groups) or 1, 1, figsize=size, height_ratios=heights or None, squeeze=False, layout="constrained")
    for ax, (unit, group) in zip(axes[:, 0], groups, strict=False):
        for y, row in enumerate(group.to_dict("records")):
            values = [seed["value"] for seed in row["seeds"]]
            if not math.isnan(row["paper"]):
                if row["margin"] > 0 and frame.attrs["scale"] in select.COMPARED and not select.doubt(row):
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
            mark = f" [{select.doubt(row)}]" if select.doubt(row) else ""
            ax.text(1.015, y, row["verdict"] + mark, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, color="#333333")
        ax.set_yticks(range(len(group)), [wrapped(label, 36) for label in group["label"]])
        ax.set_ylim(len(group) - 0.45, -0.55)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(unit)
        ax.use_sticky_edges = False  # so that bands do not touch the axis
        ax.margins(x=0.04)
        ax.autoscale_view(scaley=False)
    about = frame.attrs
    rest = f"; {not_run} row{'s' if not_run > 1 else ''} not run" if not_run else ""
    heading(figure, f"{about['title']}\n(budget {about['budget']}{rest})")
    marks = [
        mpl.lines.Line2D([], [], marker="D", ls="", ms=6, color=VERMILLION, label="paper (band: margin)"),
        mpl.lines.Line2D([], [], marker="o", ms=7, lw=2.4, color=BLUE, label="ours: mean, 95 % interval"),
        mpl.lines.Line2D([], [], marker="o", ls="", ms=4, color=BLUE, alpha=0.55, mew=0, label="one seed"),
    ]
    if about["reference"]:
        marks.insert(1, mpl.lines.Line2D([], [], marker="D", ls="", ms=6, mfc="white", color=VERMILLION, label=about["reference"]))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


@plot
def learning_curves(records_by_arm: dict[str, list[dict]], metric: str, title: str = "") -> Figure:
    """A metric of the history against the epoch: for each arm the mean over seeds, with a band from minimum to maximum.

    Epochs are counted through all stages. The members of a trial count as their mean. More than seven arms are spread over
    panels; a panel that still has more than seven has no bands, which would hide one another. Errors and losses that fall to a
    third or less have a log axis.
    """
    curves = {arm: seeds for arm, records in records_by_arm.items() if (seeds := histories(records, metric)) is not None}
    panels = -(-len(curves) // 9) if len(curves) > len(PALETTE) else 1
    size = -(-len(curves) // panels) if curves else 1
    parts = [list(curves.items())[i * size : (i + 1) * size] for i in range(panels)]
    lines = max((sum(wrapped(arm, 30).count("\n") + 1 for arm, _ in part) for part in parts), default=1)
    height = max(3.0, 0.24 * lines + 0.5)
    figure, axes = plt.subplots(panels, 1, figsize=(WIDTH, height * panels + 0.5), squeeze=False, sharex=True, layout="constrained")
    everything = np.concatenate([values.ravel() for _, values in curves.values()]) if curves else np.ones(1)
    log = any(word in metric for word in ("error", "loss")) and everything.min() > 0 and everything.max() > 3 * everything.min()
    for ax, part in zip(axes[:, 0], parts, strict=True):
        # many arms are a sweep: an ordered colour scale shows this, and can be read without colour vision
        many = [mpl.colormaps["cividis"](x) for x in np.linspace(0, 0.78, len(part))]
        ends = []
        for (arm, (epochs, values)), colour in zip(part, PALETTE if len(part) <= len(PALETTE) else many, strict=False):
            mean = values.mean(0)
            ax.plot(epochs, mean, color=colour, marker="o" if len(epochs) == 1 else None)
            if len(values) > 1 and len(part) <= len(PALETTE):
                ax.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.16, lw=0)
            ends.append((epochs[-1], mean[-1], arm, colour))
        if log:
            log_axis(ax.yaxis)
        ax.margins(x=0.01)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.set_ylabel(wrapped(metric.replace("_", " "), 26))
        name_lines(ax, ends, height - 0.7)
    axes[-1, 0].set_xlabel("epoch")
    heading(figure, title)
    return figure


@plot
def curve(x, lines: dict, marks: dict | None = None, *, xlabel: str = "", ylabel: str = "", title: str = "", log: bool = False) -> Figure:
    """Lines over one x [n]: thin for each seed, thick for their mean; ``log``: logarithmic y axis.

    lines: {label: [seeds][n]}. marks: {label: x of a vertical line, or one x per seed (a line at their mean, a tick at each)}.
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
        shown[f"{label}: {words.number(places.mean(), 3)}"] = mark
        if len(places) > 1:
            ax.plot(places, np.full(len(places), 0.015 + 0.025 * i), "|", color=colour, ms=9, mew=1.4, transform=ax.get_xaxis_transform())
    if log:
        log_axis(ax.yaxis)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.01)
    heading(figure, title)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2)
    return figure


@plot
def error_against(x_values, groups: dict, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """A measure against a swept variable (log axis), with one panel per group, each with its own scale.

    groups: {label: [values of the seeds at x_values[0], at x_values[1], ...]}, with empty lists where nothing was run. Every seed
    is a dot, shifted sideways for visibility; means are joined and have 95 % intervals.
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
        ax.xaxis.set_major_formatter(sparse_ticks(x_values))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
        ax.set_title(label, fontweight="normal")
        ax.set_ylabel(ylabel)
    axes[-1, 0].set_xlabel(xlabel)
    heading(figure, title)
    return figure


@plot
def lines_against(panels: dict[str, tuple[dict, dict]], *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """A measure against a swept variable (log axis) for several methods and fixed levels, with one panel per group.

    panels: {group: (lines {label: {x: [values of the seeds]}}, levels {label: [values of the seeds]})}. A line joins the means,
    with their 95 % intervals; a level is a grey dashed line at its mean. A label has the same style in all panels.
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
    heading(figure, title)
    return figure


def histories(records: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Epochs [n] and values [seeds, n] of the records with the metric, at the epochs where all of them have it; None if there
    are none."""
    seeds = [{i: float(np.mean(row[metric])) for i, row in enumerate(record["history"]) if metric in row} for record in records]
    seeds = [values for values in seeds if values]
    places = [i for i in seeds[0] if all(i in values for values in seeds)] if seeds else []
    return (np.array(places) + 1, np.array([[values[i] for i in places] for values in seeds])) if places else None
