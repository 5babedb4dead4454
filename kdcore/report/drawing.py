"""Shared by all plots: colours, style, headings, labels and ticks.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; whatever a colour says is
also said by a label or marker.

Processors differ in the last digits of exp, log, matrix products and fits, yet the same numbers must give the same figure on
all of them: numbers are rounded before they are drawn (``rounded``), and so are the limits of axes.
"""

import base64
import functools
import math
import textwrap
from collections.abc import Callable
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kdcore.report import statistics

BLUE, VERMILLION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # without yellow, which is faint on white
WIDTH = 8.0  # inches: a notebook's width
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that letters are the same everywhere
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
    "path.simplify": False,  # otherwise rounding errors decide which points of a straight line are dropped
    "text.parse_math": False,  # a dollar sign in a name is only a dollar sign
}
STRAIGHT = {"connectionstyle": "arc"}  # matplotlib's default is a curve whose middle lies on the line only up to rounding
DIGITS = 9  # significant digits of drawn numbers: much finer than the width of a line, much coarser than differences of processors


@contextmanager
def style():
    """A context with matplotlib's defaults and ``STYLE``, independent of the user's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def plot(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator for functions that draw a figure: rounds their arguments, applies ``style()``, and closes the figure in pyplot,
    so that a notebook shows it only once."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with style():
            figure = draw(*rounded(args), **rounded(kwargs))
            plt.close(figure)
            return figure

    return wrapper


def rounded(value):
    """``value`` with every float in it rounded to ``DIGITS`` significant digits, including those in arrays, frames, lists, tuples
    and values of dicts; anything else is returned unchanged."""
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
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.array([statistics.rounded(each, DIGITS) for each in value.ravel().tolist()]).reshape(value.shape)
    return value


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis of ``logits`` [..., C], rounded."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return rounded(powers / powers.sum(-1, keepdims=True))


def pixels(text: str, shape: list[int]) -> np.ndarray:
    """The image [*shape] (uint8) that a record keeps as base64."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def heading(figure: Figure, text: str) -> None:
    """Put ``text`` above the whole figure, aligned left and wrapped to its width; nothing for ""."""
    if text:
        letters = int(10 * figure.get_figwidth())  # per line
        text = "\n".join(wrapped(line, letters) for line in text.split("\n"))
        figure.suptitle(text, x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def wrapped(text: str, width: int) -> str:
    """``text`` wrapped into lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(str(text), width)) or str(text)


def log_axis(axis) -> None:
    """Make a y axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float, _=None) -> str:
    """A tick of a log axis: "10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT THREE}" for a power of ten, else "2 × 10\N{SUPERSCRIPT THREE}"."""
    exponent = statistics.exponent(value)
    digits = f"{exponent}".translate(str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"))
    factor = f"{value / 10.0**exponent:.3g}"
    return f"10{digits}" if factor == "1" else f"{factor} \N{MULTIPLICATION SIGN} 10{digits}"


def sparse_ticks(values) -> FuncFormatter:
    """A formatter for ticks of a log axis at ``values`` that omits labels too close to the previous one (less than 4 % of the
    axis)."""
    places = sorted(float(value) for value in values)
    span = math.log(places[-1] / places[0]) or 1.0
    shown: list[float] = []
    for place in places:
        if not shown or math.log(place / shown[-1]) > 0.04 * span:
            shown.append(place)
    return FuncFormatter(lambda value, _: f"{value:g}" if any(math.isclose(value, place) for place in shown) else "")


def name_lines(ax, ends: list[tuple], height: float) -> None:
    """Label each line at the right edge in its colour, moving labels apart that would overlap.

    ends: (x, y, label, colour) of each line's last point; height: of the axes, in inches.
    """
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        low, high = math.log(low), math.log(high)
        place = [(math.log(y) - low) / (high - low) for _, y, _, _ in ends]
    else:
        place = [(y - low) / (high - low) for _, y, _, _ in ends]
    line = 0.165 / height
    sizes = [line * (wrapped(label, 30).count("\n") + 1) for _, _, label, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: place[i])
    floor = 0.0
    for i in order:  # upwards, each above the previous one
        place[i] = max(place[i], floor + sizes[i] / 2)
        floor = place[i] + sizes[i] / 2
    ceiling = 1.0
    for i in reversed(order):  # then down again from the top
        place[i] = min(place[i], ceiling - sizes[i] / 2)
        ceiling = place[i] - sizes[i] / 2
    for (x, y, label, colour), where in zip(ends, place, strict=True):
        # from the middle of the label's left edge, not clipped at its box
        leader = STRAIGHT | {"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkA": 2, "relpos": (0, 0.5), "patchA": None}
        text = {"color": darker(colour), "va": "center", "fontsize": 9, "linespacing": 1.05}
        ax.annotate(wrapped(label, 30), (x, y), (1.03, where), textcoords="axes fraction", arrowprops=leader, **text)


def darker(colour, factor: float = 0.6) -> list[float]:
    """A darker shade [r, g, b] of a colour, for legible text."""
    return [factor * part for part in mpl.colors.to_rgb(colour)]
