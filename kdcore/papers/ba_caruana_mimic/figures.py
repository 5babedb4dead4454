"""Ba & Caruana 2014: this paper's own figures."""

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from kdcore import papers
from kdcore.report import statistics
from kdcore.report.drawing import BLUE, MUTED, PALETTE, VERMILLION, WIDTH, heading, log_axis, plot, power_of_ten, softmax, wrapped

HIDDEN = {"[10, 20, 30]": [10.0, 20.0, 30.0], "[-10, 0, 10]": [-10.0, 0.0, 10.0]}  # softmax cannot tell these apart (authors' slides)


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
            error_against_size,
            points,
            ylabel="test error (%)",
            title="Test error against size: shallow, deep and mimic nets",
        ),
        "softmax_hides": partial(logits_and_softmax, HIDDEN, "Logits that differ by a constant have the same softmax"),
    }


@plot
def error_against_size(points: list[dict], *, xlabel: str = "parameters", ylabel: str = "", title: str = "") -> Figure:
    """Errors against network size on log axes, the paper's and ours side by side: a marker for each kind of network, named in order
    below the axes.

    points: [{label, paper (size, error) or None, ours (size, [errors of the seeds]) or None}]. Each of our seeds is a dot,
    their mean a larger marker.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9 + 0.2 * len(points)), layout="constrained")
    marks, alt = [], []
    for number, point in enumerate(points):
        look = {"marker": "os^Dv<>pP*"[number % 10], "color": PALETTE[number % len(PALETTE)], "ls": "", "ms": 6.5, "mew": 0, "zorder": 3}
        marks.append(mpl.lines.Line2D([], [], **look, label=point["label"]))
        if point["paper"] is not None:
            axes[0].plot(*point["paper"], **look)
        if point["ours"] is not None:
            size, errors = point["ours"]
            axes[1].plot([size] * len(errors), errors, "o", ms=3, color=look["color"], alpha=0.5, mew=0)
            axes[1].plot(size, np.mean(errors), **look)
            reported = "" if point["paper"] is None else f", paper {point['paper'][1]:g}"
            alt.append(f"{point['label']}: ours {np.mean(errors):.3g}{reported}")
    for ax, name in zip(axes, ("paper", "ours (small dots: seeds)"), strict=True):
        log_axis(ax.yaxis)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(xlabel)
        ax.set_title(name)
        ax.margins(0.1)
    axes[0].set_ylabel(ylabel)
    figure.legend(handles=marks, loc="outside lower left", ncols=1)
    heading(figure, title, f"Test errors in percent, each on its own axes: {'; '.join(alt)}.")
    return figure


def _short(chance: float) -> str:
    """A probability for above a bar: "0.24", "4.5 × 10⁻⁵"."""
    digits = statistics.rounded(chance, 2)
    return f"{digits:g}" if digits >= 0.001 else power_of_ten(digits)


@plot
def logits_and_softmax(cases: dict[str, list[float]], title: str = "") -> Figure:
    """A row for each case with its logits and, on a log axis, its softmax, with the value at each bar. cases: {label: logits [C]}."""
    figure, axes = plt.subplots(len(cases), 2, figsize=(WIDTH, 1.6 * len(cases) + 0.4), squeeze=False, layout="constrained")
    ends = [value for logits in cases.values() for value in logits]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.2 * (high - low or 1.0)
    for (label, logits), row in zip(cases.items(), axes, strict=True):
        chances = np.maximum(softmax(np.array(logits, float)), 1e-300)
        places = np.arange(len(logits))
        row[0].bar(places, logits, color=BLUE)
        row[0].axhline(0, color=MUTED, lw=0.8)
        row[0].set_ylim(low - room, high + room)
        row[1].bar(places, chances, color=VERMILLION)
        row[1].set_yscale("log")
        row[1].yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        row[1].set_ylim(chances.min() / 30, 300)
        for place, logit, chance in zip(places, logits, chances, strict=True):
            row[0].annotate(
                f"{logit + 0.0:g}", (place, logit), (0, 7 if logit >= 0 else -8), textcoords="offset points", ha="center", va="center"
            )
            row[1].annotate(_short(chance), (place, chance), (0, 7), textcoords="offset points", ha="center", va="center")
        for ax in row:
            ax.set_xticks(places)
            ax.tick_params(length=0)
            ax.grid(axis="x", visible=False)
        row[0].set_ylabel(wrapped(label, 18))
    for ax, head in zip(axes[0], ("logits", "softmax (log scale)"), strict=True):
        ax.set_title(head)
    for ax in axes[-1]:
        ax.set_xlabel("class")
    chances = "; ".join(
        f"{label}: {', '.join(f'{chance:.3g}' for chance in softmax(np.array(each, float)))}" for label, each in cases.items()
    )
    heading(figure, title, f"Bars of logits and of their softmax, which is, for {chances}.")
    return figure
