"""Plots that several papers use; a paper's own plots are in its folder.

Each function takes plain numbers (or a table's frame) and returns a matplotlib Figure. Ours are blue circles, the paper's
vermillion diamonds.
"""

import math
from collections import Counter

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kdcore.report import select, statistics, words
from kdcore.report.drawing import (
    BACK,
    BLUE,
    DASHES,
    GRID,
    MARKERS,
    MUTED,
    PALETTE,
    VERMILLION,
    WIDTH,
    heading,
    log_axis,
    number_list,
    plot,
    short_labels,
    sparse_ticks,
    values_at,
    wrapped,
)

LETTERS = int(12.6 * WIDTH)  # of a label of 9 points across a figure
LINE, LANE, GAP = 0.165, 0.27, 0.1  # inches: a line of a label, the marks below it, the space before the next label


@plot
def paper_against_ours(frame: pd.DataFrame) -> Figure:
    """The rows of a table (``tables.table``): our mean with its 95 % interval, a dot for every seed, and the paper's number.

    The pale band is the paper's number -+ margin. Each unit has its own panel; numbers of a smaller scale than the paper's stand
    beside the paper's, each on its own axis. Rows that were not run are omitted.
    """
    about, frame = frame.attrs, frame[frame["n"] > 0]
    together = about["scale"] in select.COMPARED
    groups = [(unit, select.rows(frame[frame["unit"] == unit])) for unit in frame["unit"].unique()]
    heights = [sum(LINE * (_label(row).count("\n") + 1) + LANE + GAP for row in rows) for _, rows in groups]
    columns = 1 if together else 2
    figure, axes = plt.subplots(
        len(groups) or 1, columns, figsize=(WIDTH, sum(heights) + 0.6 * len(groups) + 0.35), height_ratios=heights or None, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (unit, rows), height, (left, *right) in zip(groups, heights, axes, strict=False):
        ours = right[0] if right else left
        y = 0.0
        for row in rows:
            label = _label(row)
            box = {"fc": BACK, "ec": "none", "pad": 0.4}
            text = {"va": "top", "linespacing": 1.15, "fontsize": 9, "bbox": box, "in_layout": False}
            left.text(0, y, label, transform=left.get_yaxis_transform(), **text)
            if together:
                left.text(1, y, row["verdict"], ha="right", transform=left.get_yaxis_transform(), **text | {"color": MUTED})
            y += LINE * (label.count("\n") + 1) + LANE / 2
            _papers_number(left, row, y, together)
            _our_numbers(ours, row, y)
            y += LANE / 2 + GAP
        for ax in (left, *right):
            ax.set_ylim(height, 0)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.set_xlabel(_with_unit(unit) if together else f"{'paper' if ax is left else 'ours'}: {_with_unit(unit)}")
            ax.use_sticky_edges = False  # so that bands do not touch the axis
            ax.margins(x=0.05)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=7 if together else 4))
            ax.xaxis.set_major_formatter(FuncFormatter(_plain_tick))
            ax.autoscale_view(scaley=False)
        left.set_zorder(1)  # labels reach across both columns
    shown = select.rows(frame)
    marks = [_mark("o", BLUE, "ours: mean, 95 % interval", lw=2.4, ms=6.5), _mark("o", BLUE, "ours: one seed", ms=3.5, alpha=0.55, mew=0)]
    known = [row for row in shown if not math.isnan(row["paper"])]
    if any(not select.doubt(row) for row in known):
        marks.append(_mark("D", VERMILLION, "paper" + (" (band: margin)" if together and any(row["margin"] > 0 for row in known) else "")))
    if any(select.doubt(row) for row in known):
        marks.append(_mark("D", VERMILLION, "paper: a number that could not be verified", mfc=BACK))
    if any(not math.isnan(row.get("reference", math.nan)) for row in shown):
        marks.append(_mark("s", VERMILLION, about["reference"], mfc=BACK))
    _legend(figure, marks, [mark.get_label() for mark in marks])
    heading(figure, about["title"], _beside(shown, words.listed(dict.fromkeys(unit for unit, _ in groups))))
    return figure


def _beside(rows: list[dict], units: str) -> str:
    """What ``paper_against_ours`` shows, for its alternative text: not the numbers, which the table beside it has."""
    both = [row for row in rows if not math.isnan(row["paper"]) and not math.isnan(row["low"])]
    places = Counter("below" if row["paper"] < row["low"] else "above" if row["paper"] > row["high"] else "inside" for row in both)
    text = f"Our means with 95 % intervals beside the paper's numbers, in {units}; the table has the values."
    if both:
        found = [f"{places[place]} {place}" for place in ("inside", "above", "below") if places[place]]
        text += f" The paper's numbers against our intervals: {words.listed(found)}."
    return text


def _label(row: dict) -> str:
    return wrapped(short_labels([row["label"]])[row["label"]], LETTERS - 16)


def _papers_number(ax, row: dict, y: float, together: bool) -> None:
    if not math.isnan(row["paper"]):
        doubt = select.doubt(row)
        if together and row["margin"] > 0 and not doubt:
            ax.barh(y, 2 * row["margin"], left=row["paper"] - row["margin"], height=0.24, color=VERMILLION, alpha=0.16, lw=0, zorder=1)
        ax.plot(row["paper"], y - 0.05 * together, "D", ms=5.5, color=VERMILLION, mfc=BACK if doubt else VERMILLION, zorder=3)
    if not math.isnan(row.get("reference", math.nan)):
        ax.plot(row["reference"], y - 0.05 * together, "s", ms=5.5, mfc=BACK, color=VERMILLION, zorder=3)


def _our_numbers(ax, row: dict, y: float) -> None:
    values = [seed["value"] for seed in row["seeds"]]
    ax.plot(values, [y + 0.11] * len(values), "o", ms=3.5, color=BLUE, alpha=0.55, mew=0, zorder=4)
    if not math.isnan(row["low"]):
        ax.plot([row["low"], row["high"]], [y + 0.02] * 2, color=BLUE, lw=2.4, solid_capstyle="butt", zorder=4)
    ax.plot(row["ours"], y + 0.02, "o", ms=6.5, color=BLUE, zorder=5)


def _plain_tick(value: float, _=None) -> str:
    """A tick in plain words: 150000 -> "0.15 M"."""
    return f"{value / 1e6:,.10g} M" if abs(value) >= 99_999 else words.reported(statistics.rounded(value, 6))


def _with_unit(unit: str) -> str:
    """A unit of a sheet as the label of an axis: "% error" -> "error (%)"."""
    return f"{unit[2:]} (%)" if unit.startswith("% ") and not unit.startswith("% of ") else unit


def _mark(marker: str, colour: str, label: str, *, lw: float = 0.0, ms: float = 5.5, **look):
    return mpl.lines.Line2D([], [], marker=marker, ls="-" if lw else "", lw=lw, ms=ms, color=colour, label=label, **look)


def _legend(figure: Figure, marks, labels) -> None:
    """A legend below the axes, in as many columns as fit."""
    labels = [wrapped(label, LETTERS - 8) for label in labels]
    longest = max(max(map(len, label.split("\n"))) for label in labels)
    columns = max(1, min(len(labels), int(LETTERS / (longest + 7))))
    figure.legend(marks, labels, loc="outside lower center", ncols=columns, columnspacing=1.4, borderpad=0.2)


@plot
def effects(groups: dict[str, list[dict]], title: str = "") -> Figure:
    """The headline effects of all papers: ours with its interval, and the paper's own, as a change of the error in percent of the
    baseline. Intervals may reach beyond the figure.

    groups: {scale in words: [{paper, effect, verdict, n, ours (mean, low, high), reported (nan if unknown)}]}.
    """
    rows = [row for group in groups.values() for row in group]
    line, lane, head = 0.17, 0.3, 0.3  # inches
    labels = {id(row): wrapped(f"{row['paper']}: {row['effect']}", LETTERS) for row in rows}
    height = sum(head + sum(line * (labels[id(row)].count("\n") + 1) + lane for row in group) for group in groups.values()) + 0.25
    figure, ax = plt.subplots(figsize=(WIDTH, height + 0.8), layout="constrained")
    box = {"fc": BACK, "ec": "none", "pad": 0.4}
    text = {"va": "top", "fontsize": 9, "linespacing": 1.15, "transform": ax.get_yaxis_transform(), "bbox": box, "in_layout": False}
    ends = [value for row in rows for value in (row["ours"][0], row["reported"]) if not math.isnan(value)]
    ends += [min(max(value, -60.0), 60.0) for row in rows for value in row["ours"][1:] if not math.isnan(value)]
    low, high = min([-5.0, *ends]), max([5.0, *ends])
    ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    ax.axvline(0, color=MUTED, lw=1.2, zorder=1)
    way = {"textcoords": "offset points", "va": "top", "color": MUTED, "fontsize": 9}
    ax.annotate("\N{LEFTWARDS ARROW} fewer errors", (0, 0), (-5, -2), ha="right", **way)
    ax.annotate("more errors \N{RIGHTWARDS ARROW}", (0, 0), (5, -2), ha="left", **way)
    y = 0.2
    for name, group in groups.items():
        ax.text(0, y + 0.06, _capital(name), **text | {"fontweight": "bold", "fontsize": 9.5})
        y += head
        for row in group:
            ax.text(0, y, labels[id(row)], **text)
            y += line * (labels[id(row)].count("\n") + 1) + 0.11
            mean, low, high = row["ours"]
            if not math.isnan(row["reported"]):
                ax.plot(row["reported"], y, "D", ms=6.5, color=VERMILLION, mec=BACK, mew=0.7, zorder=6)
            if not math.isnan(low):
                ax.plot([low, high], [y, y], color=BLUE, lw=2.6, solid_capstyle="butt", zorder=4)
            ax.plot(mean, y, "o", ms=7, color=BLUE, zorder=5)
            look = text | {"va": "center", "color": MUTED, "in_layout": True}
            ax.text(1.015, y, f"{row['verdict']}, n = {row['n']}", **look)
            y += lane - 0.11
    ax.set_ylim(y, 0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("change of the error, in % of the baseline's")
    marks = [_mark("o", BLUE, "ours, with its interval", lw=2.6, ms=7), _mark("D", VERMILLION, "paper", ms=6.5)]
    _legend(figure, marks, [mark.get_label() for mark in marks])
    numbers = "; ".join(
        f"{row['paper']}, {row['effect']}: ours {words.estimate(*row['ours'], signed=True)}"
        + (f", paper {words.number(row['reported'], 3, signed=True)}" if not math.isnan(row["reported"]) else "")
        + f", {row['verdict']}"
        for row in rows
    )
    heading(figure, title, f"Change of the error in percent of the baseline's, by paper: {numbers}.")
    return figure


@plot
def learning_curves(curves: dict[str, tuple], measure: str, title: str = "") -> Figure:
    """A measure against the epoch: for each arm the mean over seeds, with a band from minimum to maximum.

    curves: {arm: (epochs [n], values [seeds, n])} (``histories``). Epochs are counted through all stages. More than four arms have a
    panel each, where the others are grey: lines, or the range of more than nine. Errors and losses that fall to a third or less have
    a log axis.
    """
    labels = short_labels(curves)
    everything = np.concatenate([np.ravel(values) for _, values in curves.values()]) if curves else np.ones(1)
    log = any(word in measure for word in ("error", "loss")) and everything.min() > 0 and everything.max() > 3 * everything.min()
    means = {arm: (np.asarray(epochs), np.mean(values, 0)) for arm, (epochs, values) in curves.items()}
    if len(curves) > 4:
        columns = 2 if max(map(len, labels.values())) > 22 else 3
        lines = max(wrapped(label, 62 // columns).count("\n") + 1 for label in labels.values())
        rows = -(-len(curves) // columns)
        size = (WIDTH, rows * (1.15 + 0.16 * lines) + 0.4)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
        panels = [(ax, [arm]) for ax, arm in zip(axes.flat, curves, strict=False)]
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_visible(False)
    else:
        figure, ax = plt.subplots(figsize=(WIDTH, 3.3), layout="constrained")
        panels, columns = [(ax, list(curves))], 1
    shown = {}
    for place, (ax, arms) in enumerate(panels):
        if len(panels) > 9:  # so many lines would hide one another
            ax.fill_between(*_envelope(list(means.values())), color=GRID, lw=0, zorder=1)
        elif len(panels) > 1:
            for epochs, mean in means.values():
                ax.plot(epochs, mean, color=GRID, lw=1.0, zorder=1)
        for arm, colour, dashes in zip(arms, PALETTE, DASHES, strict=False):
            epochs, values = curves[arm]
            label = f"{labels[arm]}: {words.number(means[arm][1][-1], 3)}"
            if len(values) > 1:
                ax.fill_between(epochs, np.min(values, 0), np.max(values, 0), color=colour, alpha=0.16, lw=0, zorder=2)
            look = {"color": colour, "ls": dashes, "zorder": 3, "marker": "o" if len(epochs) == 1 else None}
            (shown[label],) = ax.plot(epochs, means[arm][1], **look)
            if len(panels) > 1:
                ax.set_title(wrapped(label, 62 // columns), fontsize=9)
        if log:
            log_axis(ax.yaxis)
        ax.margins(x=0.02)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8 if columns == 1 else 4, min_n_ticks=1))
        if place >= len(panels) - columns:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
        if len(panels) == 1:
            ax.set_ylabel(wrapped(measure, 30))
    if len(panels) == 1 and shown:
        _legend(figure, shown.values(), shown.keys())
    what = f"{_capital(measure)} while training"
    ends = number_list([(labels[arm], mean[-1]) for arm, (_, mean) in means.items()])
    heading(figure, f"{what}: {title}" if title else what, f"{_capital(measure)} after the last epoch, mean over seeds: {ends}.")
    return figure


def _envelope(lines: list[tuple]) -> tuple[list[int], list[float], list[float]]:
    """Every epoch of any of the lines, with the smallest and the largest value there."""
    values: dict[int, list[float]] = {}
    for epochs, means in lines:
        for epoch, mean in zip(epochs.tolist(), means.tolist(), strict=True):
            values.setdefault(epoch, []).append(mean)
    return sorted(values), [min(values[x]) for x in sorted(values)], [max(values[x]) for x in sorted(values)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@plot
def curve(x, lines: dict, marks: dict | None = None, *, xlabel: str = "", ylabel: str = "", title: str = "", log: bool = False) -> Figure:
    """Lines over one x [n]: thin for each seed, thick for their mean; ``log``: logarithmic y axis.

    lines: {label: [seeds][n]}. marks: {label: x of a vertical line, or one x per seed (a line at their mean, a tick at each)}.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.3), layout="constrained")
    x, shown, ends = np.asarray(x, float), {}, []
    for (label, seeds), colour, dashes in zip(lines.items(), PALETTE, DASHES, strict=False):
        seeds = np.atleast_2d(np.asarray(seeds, float))
        if len(seeds) > 1:
            ax.plot(x, seeds.T, color=colour, lw=0.8, alpha=0.45)
        mean = seeds.mean(0)
        (shown[label],) = ax.plot(x, mean, color=colour, lw=2.2, ls=dashes)
        known = np.flatnonzero(~np.isnan(mean))
        if len(known):
            first, least, last = known[0], known[np.argmin(mean[known])], known[-1]
            ends.append(f"{label}: {values_at([(x[i], mean[i]) for i in dict.fromkeys((first, least, last))])}")
    dashes = ((0, (6, 3)), (0, (1.5, 2)), (0, (7, 2, 1.5, 2)), "-")
    for i, (label, places) in enumerate((marks or {}).items()):
        places = np.atleast_1d(np.asarray(places, float))
        colour = (VERMILLION, "#009E73", "#CC79A7")[i % 3]
        mark = ax.axvline(places.mean(), color=colour, lw=1.6, ls=dashes[i % len(dashes)])
        shown[f"{label}: {words.number(places.mean(), 3)}"] = mark
        ends.append(f"{label}: {words.number(places.mean(), 3)}")
        if len(places) > 1:
            ax.plot(places, np.full(len(places), 0.015 + 0.025 * i), "|", color=colour, ms=9, mew=1.4, transform=ax.get_xaxis_transform())
    if log:
        log_axis(ax.yaxis)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.02)
    heading(figure, title, f"{_capital(ylabel)} against {xlabel}. {'. '.join(ends)}." if xlabel else "")
    if shown:
        _legend(figure, shown.values(), shown.keys())
    return figure


@plot
def error_against(x_values, groups: dict, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """A measure against a swept variable (log axis), with one panel per group, each with its own scale.

    groups: {label: [values of the seeds at x_values[0], at x_values[1], ...]}, with empty lists where nothing was run. Every seed
    is a dot, shifted sideways for visibility; means are joined and have 95 % intervals.
    """
    figure, axes = plt.subplots(len(groups), 1, figsize=(WIDTH, 1.9 * len(groups) + 0.4), squeeze=False, sharex=True, layout="constrained")
    alt = []
    for ax, (label, cells) in zip(axes[:, 0], groups.items(), strict=False):
        known = [(x, values, *statistics.mean_interval(values)) for x, values in zip(x_values, cells, strict=True) if len(values)]
        ax.set_xscale("log")
        beside = mpl.transforms.offset_copy(ax.transData, figure, x=-6, units="points")
        for x, values, _, low, high in known:
            ax.plot([x] * len(values), values, "o", ms=3.5, color=BLUE, alpha=0.5, mew=0, transform=beside)
            if not math.isnan(low):
                ax.plot([x, x], [low, high], color=BLUE, lw=2, alpha=0.9, solid_capstyle="butt")
        ax.plot([k[0] for k in known], [k[2] for k in known], "-o", color=BLUE, ms=5.5, lw=1.6)
        seen = [value for _, values, *_ in known for value in values]
        if seen:
            ax.update_datalim([(known[0][0], min(seen)), (known[-1][0], max(seen))])
            ax.autoscale_view()
            alt.append(f"{label}: {values_at([(k[0], k[2]) for k in known])}")
        ax.xaxis.set_major_locator(FixedLocator(list(x_values)))
        ax.xaxis.set_major_formatter(sparse_ticks(x_values))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        ax.set_title(label)
        ax.set_ylabel(ylabel)
    axes[-1, 0].set_xlabel(xlabel)
    marks = [_mark("o", BLUE, "mean, 95 % interval", lw=2, ms=5.5), _mark("o", BLUE, "one seed", ms=3.5, alpha=0.5, mew=0)]
    _legend(figure, marks, [mark.get_label() for mark in marks])
    heading(figure, title, f"{_capital(ylabel)} against {xlabel}, means. {'. '.join(alt)}." if alt else "")
    return figure


@plot
def lines_against(
    panels: dict[str, tuple[dict, dict]], *, xlabel: str = "", ylabel: str = "", title: str = "", zero: bool = False
) -> Figure:
    """A measure against a swept variable (log axis) for several methods and fixed levels, with one panel per group.

    panels: {group: (lines {label: {x: [values of the seeds]}}, levels {label: [values of the seeds]})}. A line joins the means,
    with their 95 % intervals; a level is a grey dashed line at its mean. A label has the same style in all panels. zero: panels
    share their y axis, with a line at 0.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (WIDTH, 2.1 * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=zero, layout="constrained")
    labels = dict.fromkeys(label for lines, _ in panels.values() for label in lines)
    looks = dict(zip(labels, zip(PALETTE, MARKERS * 2, DASHES, strict=False), strict=False))
    shown, alt = {}, []
    for place, (ax, (group, (lines, levels))) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        ax.set_xscale("log")
        for label, cells in lines.items():
            colour, marker, dashes = looks[label]
            points = [(x, *statistics.mean_interval(values)) for x, values in sorted(cells.items())]
            xs, means = [x for x, *_ in points], [mean for _, mean, *_ in points]
            (shown[label],) = ax.plot(xs, means, ls=dashes, marker=marker, color=colour, ms=4.5, lw=1.6)
            for x, _, low, high in points:
                if not math.isnan(low):
                    ax.plot([x, x], [low, high], color=colour, lw=2, alpha=0.6, solid_capstyle="butt")
            ends = list(zip(xs, means, strict=True))
            alt.append(f"{group}, {label}: {values_at(ends if len(ends) < 4 else [ends[0], ends[-1]])}")
        for (label, values), dashes in zip(levels.items(), ((6, 2), (2, 2), (6, 2, 2, 2), (1, 1)) * 4, strict=False):
            shown[label] = ax.axhline(np.mean(values), color=MUTED, lw=1.4, dashes=dashes)
            alt.append(f"{group}, {label}: {words.number(float(np.mean(values)), 3)}")
        if zero:
            ax.axhline(0, color=MUTED, lw=1.0, zorder=1)
        places = sorted({x for cells in lines.values() for x in cells})
        ax.xaxis.set_major_locator(FixedLocator(places))
        ax.xaxis.set_major_formatter(sparse_ticks(places, 0.13))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
        ax.set_title(group)
        if place % columns == 0:
            ax.set_ylabel(ylabel)
        if place >= len(panels) - columns:
            ax.set_xlabel(xlabel)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    _legend(figure, shown.values(), shown.keys())
    more = f" And {len(alt) - 12} more lines." if len(alt) > 12 else ""
    heading(figure, title, f"{_capital(ylabel)} against {xlabel}, means. {'. '.join(alt[:12])}.{more}")
    return figure


def histories(records: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Epochs [n] and values [seeds, n] of the records with the metric, at the epochs where all of them have it; None if there
    are none."""
    seeds = [{i: float(np.mean(row[metric])) for i, row in enumerate(record["history"]) if metric in row} for record in records]
    seeds = [values for values in seeds if values]
    places = [i for i in seeds[0] if all(i in values for values in seeds)] if seeds else []
    return (np.array(places) + 1, np.array([[values[i] for i in places] for values in seeds])) if places else None
