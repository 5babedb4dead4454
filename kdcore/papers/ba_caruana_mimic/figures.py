"""Ba & Caruana 2014: this paper's own figures."""

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kdcore import papers
from kdcore.papers.ba_caruana_mimic.trial import HIDDEN
from kdcore.report.drawing import BLUE, VERMILLION, WIDTH, heading, log_axis, plot, power_of_ten, softmax, wrapped


def figures(records: list[dict]) -> dict:
    """Error against the number of parameters, the paper's and ours; differences of logits that softmax hides."""
    paper = papers.get("ba_caruana_mimic")
    (table,) = (table for table in paper.tables if table["id"] == "errors")
    points = []
    for row, size in zip(table["rows"], paper.sheet["sizes"], strict=True):
        mine = [record for record in records if record["arm"] == row["arm"]]
        point = {"label": f"{size['row']}, {size['layers']}", "paper": (size["parameters"], row["paper"]), "ours": None}
        if mine:
            nets = mine[0]["config"]["members"] if row["metric"] == "member_test_error_percent" else 1
            count = 1e6 * mine[0]["metrics"]["parameters_millions"] / nets
            point["ours"] = (count, [record["metrics"][row["metric"]] for record in mine])
        points.append(point)
    if all(point["ours"] is None for point in points):
        return {}
    return {
        "error_against_parameters": partial(
            error_against_size, points, xlabel="parameters", ylabel="% error", title="Error against the number of parameters"
        ),
        "softmax_hides": partial(logits_and_softmax, HIDDEN, "Two sets of logits, one softmax"),
    }


@plot
def error_against_size(points: list[dict], *, xlabel: str = "parameters", ylabel: str = "% error", title: str = "") -> Figure:
    """Errors against network size on log axes, the paper's and ours; networks are numbered, with a key below the axes.

    points: [{label, paper (size, error) or None, ours (size, [errors of the seeds]) or None}]. Each of our seeds is a dot,
    their mean a larger one.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6 + 0.2 * len(points)), layout="constrained")
    for number, point in enumerate(points, 1):
        side = 1 if number % 2 else -1  # numbers of neighbours of the same size would overlap
        where = {"textcoords": "offset points", "va": "center", "ha": "center", "fontsize": 9}
        if point["paper"] is not None:
            ax.plot(*point["paper"], "D", ms=6, color=VERMILLION, zorder=3)
            ax.annotate(str(number), point["paper"], (0, 10 * side), color="#8a3c00", **where)
        if point["ours"] is not None:
            size, errors = point["ours"]
            ax.plot([size] * len(errors), errors, "o", ms=4, color=BLUE, alpha=0.5, mew=0, zorder=4)
            ax.plot(size, np.mean(errors), "o", ms=7, color=BLUE, zorder=5)
            ax.annotate(str(number), (size, np.mean(errors)), (11 * side, 0), color="#004b77", **where)
    log_axis(ax.yaxis)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
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
    heading(figure, title)
    return figure


@plot
def logits_and_softmax(cases: dict[str, list[float]], title: str = "") -> Figure:
    """A row for each case with its logits and, on a log axis, its softmax, with the value at each bar. cases: {label: logits [C]}."""
    figure, axes = plt.subplots(len(cases), 2, figsize=(WIDTH, 1.9 * len(cases) + 0.6), squeeze=False, layout="constrained")
    ends = [value for logits in cases.values() for value in logits]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.2 * (high - low or 1.0)
    for (label, logits), row in zip(cases.items(), axes, strict=True):
        chances = np.maximum(softmax(np.array(logits, float)), 1e-300)
        places = np.arange(len(logits))
        row[0].bar(places, logits, color=BLUE)
        row[0].axhline(0, color="#555555", lw=0.8)
        row[0].set_ylim(low - room, high + room)
        row[1].bar(places, chances, color=VERMILLION)
        row[1].set_yscale("log")
        row[1].yaxis.set_major_formatter(FuncFormatter(power_of_ten))
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
        row[0].set_ylabel(wrapped(label, 18))
    for ax, head in zip(axes[0], ("logits", "softmax (log scale)"), strict=True):
        ax.set_title(head, fontsize=10, fontweight="normal", loc="center")
    for ax in axes[-1]:
        ax.set_xlabel("class")
    heading(figure, title)
    return figure
