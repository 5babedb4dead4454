"""Shared by all plots: colours, style, headings, labels and ticks.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; whatever a colour says is
also said by a label or marker.

Processors differ in the last digits of exp, log, matrix products and fits, yet the same numbers must give the same figure on
all of them: numbers are rounded before they are drawn (``rounded``), and so are the limits of axes.
"""

import base64
import functools
import math
import os
import textwrap
from collections.abc import Callable
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kdcore.report import statistics, words

BLUE, VERMILLION = "#0072B2", "#D55E00"  # ours, the paper's
BACK, INK, MUTED, GRID = "#ffffff", "#222222", "#555555", "#e4e4e4"
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)  # without yellow, which is faint on white
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), "-")  # of the first lines in a panel
MARKERS = "osD^vP"
ON_DARK, ON_PALE = "#fcfcfc", "#1c1c1c"  # text on coloured areas, which stay as they are in a dark theme
DARK = {  # what replaces each colour in a dark theme
    BACK: "#0d1117",
    INK: "#e6edf3",
    MUTED: "#9aa4af",
    GRID: "#2a3038",
    BLUE: "#4aa3df",
    VERMILLION: "#f0883e",
    "#009E73": "#2fbf93",
    "#CC79A7": "#dd98c1",
    "#E69F00": "#f2b84b",
    "#56B4E9": "#a5d8ff",
}
WIDTH = 5.4  # inches: the smallest letters, of 9 points, still have 9 pixels on a phone 390 pixels wide
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": BACK,
    "savefig.facecolor": BACK,
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that letters are the same everywhere
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "lines.linewidth": 1.8,
    "svg.hashsalt": "kdcore",
    "svg.fonttype": "none",
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
    """Decorator for functions that draw a figure: rounds their arguments, applies ``style()``, puts the heading above the figure,
    and closes the figure in pyplot, so that a notebook shows it only once.

    The decorated function also takes ``note``, a line for below the title.
    """

    @functools.wraps(draw)
    def wrapper(*args, note: str = "", **kwargs) -> Figure:
        with style():
            figure = draw(*rounded(args), **rounded(kwargs))
            _head(figure, note)
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


def heading(figure: Figure, title: str, alt: str = "") -> None:
    """Give a figure its title, shown above it, and its alternative text: what it shows, in sentences with its main numbers."""
    figure.heading, figure.alt = title, alt


def title_of(figure: Figure) -> str:
    return getattr(figure, "heading", "")


def alt_of(figure: Figure) -> str:
    """The alternative text of a figure: its title, then what it shows."""
    title, alt = title_of(figure), getattr(figure, "alt", "")
    return " ".join(each for each in (title and (title if title.endswith("?") else f"{title.rstrip('.')}."), alt) if each)


def _head(figure: Figure, note: str) -> None:
    """Write title and note above the figure, which becomes higher by the room for them."""
    width, height = figure.get_size_inches()
    top = 0.08
    for text, size, letters, look in (
        (title_of(figure), 11, int(9.8 * width), {"fontweight": "bold"}),
        (note, 9, int(13.5 * width), {"color": MUTED}),
    ):
        if text:
            shown = wrapped(text, letters)
            place = figure.transFigure + mpl.transforms.ScaledTranslation(0.06, -top, figure.dpi_scale_trans)
            figure.text(0, 1, shown, transform=place, va="top", fontsize=size, linespacing=1.2, in_layout=False, **look)
            top += size / 72 * 1.25 * (shown.count("\n") + 1) + 0.03
    figure.set_size_inches(width, height + top)
    if (engine := figure.get_layout_engine()) is not None:
        engine.set(rect=(0, 0, 1, height / (height + top)))


def number_list(pairs, limit: int = 8) -> str:
    """(label, number) pairs in words for an alternative text: "a: 12.3; b: 4.5; and 3 more"."""
    pairs = [(label, value) for label, value in pairs if not math.isnan(value)]
    named = [f"{' '.join(str(label).split())}: {words.number(value, 3)}" for label, value in pairs[:limit]]
    return "; ".join(named + ([f"and {len(pairs) - limit} more"] if len(pairs) > limit else []))


def values_at(points) -> str:
    """(x, y) pairs in words for an alternative text: "12.3 at 1; 4.5 at 2"."""
    return "; ".join(f"{words.number(y, 3)} at {words.number(x, 3)}" for x, y in points if not math.isnan(y))


def short_labels(names) -> dict[str, str]:
    """Names of arms as labels of one figure: without what all of them begin or end with, which its title says; arrows as arrows."""
    names = list(names)
    start, end = 0, 0
    if len(names) > 1:
        start = max(
            os.path.commonprefix(names).rfind(mark) + len(mark) if mark in os.path.commonprefix(names) else 0 for mark in (": ", ", ")
        )
        tail = os.path.commonprefix([name[start:][::-1] for name in names])[::-1]
        end = max(len(tail) - tail.find(mark) if mark in tail else 0 for mark in (": ", ", ", " ("))
        if any(len(name) - start <= end for name in names):
            end = 0
    return {name: name[start : len(name) - end].replace("->", "\N{RIGHTWARDS ARROW}") for name in names}


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


def sparse_ticks(values, gap: float = 0.04) -> FuncFormatter:
    """A formatter for ticks of a log axis at ``values`` that omits labels too close to the previous one: less than ``gap`` of the
    axis."""
    places = sorted(float(value) for value in values)
    span = math.log(places[-1] / places[0]) or 1.0
    shown: list[float] = []
    for place in places:
        if not shown or math.log(place / shown[-1]) > gap * span:
            shown.append(place)
    return FuncFormatter(
        lambda value, _: (
            (f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}") if any(math.isclose(value, place) for place in shown) else ""
        )
    )
