"""Figures as SVG and PNG with the same bytes on every machine: they contain no date or random id, and all coordinates are rounded."""

import functools
import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from kdcore import paths
from kdcore.report.drawing import rounded, style

DPI = 150  # for PNG
COLOURS = 128  # in the palette of a PNG, which makes it a quarter of the size, with no difference that one sees


def svg(figure: Figure) -> bytes:
    """The figure as SVG: coordinates to a thousandth of a point, ids numbered in order of appearance."""
    data = io.BytesIO()
    with style():
        _lay_out(figure)
        FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None})
    return settled(data.getvalue().decode()).encode()


def png(figure: Figure) -> bytes:
    """The figure as PNG with ``DPI`` dots per inch and a palette of ``COLOURS``."""
    data, dpi = io.BytesIO(), figure.dpi
    with style():
        _lay_out(figure)
        figure.dpi = DPI
        canvas = _GridCanvas(figure)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        figure.dpi = dpi
    small = pixels.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(data, "png", optimize=True, dpi=(DPI, DPI))
    return data.getvalue()


def files(stem: Path) -> list[Path]:
    """The files of a figure: ``stem`` with each suffix."""
    return [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure's ``files``, each atomically; return the paths."""
    for path, draw in zip(written := files(stem), (svg, png), strict=True):
        paths.write_bytes(path, draw(figure))
    return written


def settled(text: str) -> str:
    """An SVG with coordinates rounded to 3 decimals and numbered ids in place of matplotlib's, which are hashes of unrounded
    coordinates."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)  # XML does not allow these anywhere
    names: dict[str, str] = {}

    def settle(match: re.Match) -> str:
        if match["number"]:
            return f"{round(float(match['number']), 3) + 0.0:.3f}".rstrip("0").rstrip(".")
        if match["id"]:
            return names.setdefault(match["id"], f"{match['kind']}{len(names)}")
        return match[0]

    # base64, comments, and factors of scale and rotation are left alone
    kept = r"<!--.*?-->|base64,[^\"]*|(?:scale|rotate|matrix)\([^)]*\)"
    return re.sub(
        rf"{kept}|(?P<number>-?\d+\.\d{{4,}}|(?<![\w.])-0(?![\w.]))|(?<=[\"#])(?P<id>(?P<kind>[A-Za-z_]+[0-9_]*_|[a-z]+?)[0-9a-f]{{10}})(?=[\")])",
        settle,
        text,
        flags=re.S,
    )


def _lay_out(figure: Figure) -> None:
    """Lay out a figure's axes once for both SVG and PNG, at rounded positions, since these come from matrix products.

    The layout is made at the PNG's resolution: at a coarser one letters are narrower, and a label could reach the edge."""
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
    """Agg with points on a grid of 1/128 of a pixel. Otherwise, along a straight line of many points, the sign of rounding errors
    decides on which side of each point the next one lies, and shows in the grey of a pixel."""

    def __init__(self, width, height, dpi):
        super().__init__(width, height, dpi)
        agg = self._renderer  # the base class copies its methods to this object
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
    # the odd offset keeps halves and other round positions, which are common, away from the middle between grid points
    return np.floor(np.asarray(pixels, float) * 128 + 0.6234567) / 128


def _path_on_grid(path, transform):
    moved = path.transformed(transform)
    moved.vertices = _on_grid(moved.vertices)
    return moved
