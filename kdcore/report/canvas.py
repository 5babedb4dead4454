"""Figures as SVG and PNG with the same bytes on every machine: they contain no date or random id, and all coordinates are rounded.

An SVG follows the reader's theme, says in <title> and <desc> what it shows, and in <metadata> what it was made from, so that a file
that is out of date, damaged or edited by hand is noticed without drawing it again.
"""

import functools
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kdcore import paths
from kdcore.report.drawing import DARK, alt_of, rounded, style, title_of

DPI = 150  # for PNG
COLOURS = 128  # in the palette of a PNG, which makes it a quarter of the size, with no difference that one sees


def svg(figure: Figure, made_from: str = "", dark: bool = False) -> bytes:
    """The figure as SVG: coordinates to a hundredth of a point, ids numbered in order of appearance, text as text.

    made_from: a digest of what the figure shows (``origin.digest``). dark: always in the colours of a dark theme, instead of
    following the reader's theme.
    """
    data = io.BytesIO()
    with style():
        _lay_out(figure)
        FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None})
        lean = _lean(ElementTree.fromstring(settled(data.getvalue().decode())), title_of(figure), alt_of(figure), dark)
    return _sealed(lean, made_from).encode()


def png(figure: Figure, made_from: str = "") -> bytes:
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
    info = PngInfo()
    if made_from:
        info.add_text("Comment", _png_seal(small, made_from))
    small.save(data, "png", optimize=True, dpi=(DPI, DPI), pnginfo=info)
    return data.getvalue()


def write(path: Path, draw: Callable[[], Figure], made_from: str) -> None:
    """Draw a figure into a file, atomically: by its name a PNG, an SVG for a dark theme (``NAME_dark.svg``), or an SVG."""
    figure = draw()
    data = png(figure, made_from) if path.suffix == ".png" else svg(figure, made_from, dark=path.stem.endswith("_dark"))
    paths.write_bytes(path, data)


def trouble(path: Path, made_from: str) -> str:
    """What is wrong with a figure's file, in words: "missing", "out of date" if it was made from something else, or "damaged or edited
    by hand"; "" if it is as ``write`` left it."""
    if not path.exists():
        return "missing"
    try:
        data = paths.regular(path).read_bytes()
        if path.suffix == ".png":
            with Image.open(io.BytesIO(data)) as picture:
                seal, right = picture.info.get("Comment", ""), _png_seal(picture, made_from)
        else:
            text = data.decode()
            found = SEAL.search(text)
            seal = found[0] if found else ""
            right = SEAL.search(_sealed(SEAL.sub("<metadata/>", text, count=1), made_from))
            right = right[0] if right else None
    except (OSError, ValueError, TypeError, SyntaxError):  # of PIL, for damaged files
        return "damaged or edited by hand"
    if seal == right:
        return ""
    return "out of date" if f"made from {made_from}," not in seal else "damaged or edited by hand"


def alt(path: Path) -> str:
    """The alternative text that an SVG of ours holds; "" if the file is missing or holds none."""
    try:
        found = ElementTree.fromstring(path.read_text(encoding="utf-8")).find(f"{SVG}desc")
    except (OSError, ValueError, ElementTree.ParseError):
        return ""
    return "" if found is None else found.text or ""


def _sealed(text: str, made_from: str) -> str:
    """An SVG with digests of what it was made from and of its own text in place of its empty <metadata>."""
    own = hashlib.sha256(f"{made_from}\n{text}".encode()).hexdigest()[:16]
    return text.replace("<metadata/>", f"<metadata>made from {made_from}, text {own}</metadata>", 1)


def _png_seal(picture: Image.Image, made_from: str) -> str:
    return f"made from {made_from}, pixels {hashlib.sha256(picture.convert('RGB').tobytes()).hexdigest()[:16]}"


SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
ElementTree.register_namespace("", SVG[1:-1])
FORBIDDEN = r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]"  # anywhere in XML
SEAL = re.compile(r"<metadata>made from (?P<made_from>\w*), text \w+</metadata>")
FONTS = "DejaVu Sans,Verdana,Geneva,sans-serif"  # the first two have letters of nearly the same widths


def _lean(root: ElementTree.Element, title: str, alt: str, dark: bool) -> str:
    """matplotlib's SVG without what no viewer needs, at about a quarter of its size: attributes in place of styles, no ids that
    nothing refers to, no groups that say nothing. Every text gets the width that it was laid out for, in whatever font it is shown.
    """
    referred = set(re.findall(r"#(\w+)", " ".join(value for each in root.iter() for value in each.attrib.values())))
    prefix = hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:6]  # several figures may stand in one page
    lean = _element(root, referred, f"k{prefix}-")[0]
    lean.attrib |= {"role": "img", "font-family": FONTS, "stroke-linejoin": "round"}
    colours = {each.get(name, "").lower() for each in lean.iter() for name in ("fill", "stroke")}
    swaps = {light.lower(): night for light, night in DARK.items() if light.lower() in colours}
    if dark:
        for each in lean.iter():
            each.attrib |= {
                name: swaps.get(each.attrib[name].lower(), each.attrib[name]) for name in ("fill", "stroke") if name in each.attrib
            }
    texts = {"title": title, "desc": alt, "metadata": None}
    if not dark:
        rules = "".join(f'[fill="{light}"]{{fill:{night}}}[stroke="{light}"]{{stroke:{night}}}' for light, night in swaps.items())
        texts["style"] = f"@media(prefers-color-scheme:dark){{{rules}}}"
    for place, (tag, text) in enumerate((tag, text) for tag, text in texts.items() if text != ""):
        element = ElementTree.Element(f"{SVG}{tag}")
        element.text = text and re.sub(FORBIDDEN, "", text)
        lean.insert(place, element)
    for each in lean:
        each.tail = "\n"
    return ElementTree.tostring(lean, encoding="unicode").replace("<metadata />", "<metadata/>") + "\n"


def _element(element: ElementTree.Element, referred: set[str], prefix: str) -> list[ElementTree.Element]:
    """The lean elements in place of one of matplotlib's: itself, its children if it says nothing itself, or none."""
    tag = element.tag.removeprefix(SVG)
    if tag in ("metadata", "style"):
        return []
    given = {name: value for name, value in element.attrib.items() if name not in ("style", "version")}
    for rule in element.get("style", "").split(";"):
        name, _, value = (part.strip() for part in rule.partition(":"))
        if name and name != "font-family" and (name, value) not in DEFAULTS:
            given[name] = value.removesuffix("px") if name == "font-size" else value
    if LINK in given:
        given["href"] = given.pop(LINK)
    if "id" in given:
        given["id"] = prefix + given["id"] if given["id"] in referred else ""
    for name in ("href", "clip-path"):
        if name in given and not given[name].startswith("data:"):
            given[name] = given[name].replace("#", f"#{prefix}")
    if "d" in given:
        given["d"] = re.sub(r"\s*([A-Za-z])\s*", r"\1", given["d"]).strip().replace("\n", " ")
    if "href" in given and given["href"].startswith("data:"):
        given["href"] = re.sub(r"\s", "", given["href"])
    if tag == "text":
        _place(given, element.text or "")
    lean = ElementTree.Element(element.tag, {name: value for name, value in given.items() if value != ""})
    lean.text = element.text if tag == "text" else None
    lean.extend(each for child in element for each in _element(child, referred, prefix))
    if tag in ("g", "defs") and (not lean.attrib or not len(lean)):
        return list(lean) if tag == "g" else [lean] if len(lean) else []
    return [lean]


DEFAULTS = {("text-anchor", "start"), ("stroke-linecap", "butt"), ("stroke-linejoin", "round"), ("stroke-opacity", "1")}


def _place(given: dict[str, str], text: str) -> None:
    """Set a text's place and width in ``given``, its attributes."""
    turn = given.pop("transform", "")
    if moved := re.fullmatch(r"translate\(([-\d.]+) ([-\d.]+)\)", turn):
        given["x"], given["y"] = moved.groups()
    elif turn and not re.match(r"rotate\(-?0 ", turn):
        given["transform"] = turn
    if len(text) > 1:
        font = FontProperties(size=float(given["font-size"]), weight=given.get("font-weight", "normal"))
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
        given["textLength"] = f"{width:.1f}"


def settled(text: str) -> str:
    """An SVG with coordinates rounded to 2 decimals and numbered ids in place of matplotlib's, which are hashes of unrounded
    coordinates."""
    text = re.sub(FORBIDDEN, "", text)
    names: dict[str, str] = {}

    def settle(match: re.Match) -> str:
        if match["number"]:
            return f"{round(float(match['number']), 2) + 0.0:.2f}".rstrip("0").rstrip(".")
        if match["id"]:
            return names.setdefault(match["id"], f"{match['kind']}{len(names)}")
        return match[0]

    # texts, base64, comments, and factors of scale and rotation are left alone
    kept = r"(?<=>)[^<>]+(?=<)|<!--.*?-->|base64,[^\"]*|(?:scale|rotate|matrix)\([^)]*\)"
    return re.sub(
        rf"{kept}|(?P<number>-?\d+\.\d{{3,}}|(?<![\w.])-0(?![\w.]))|(?<=[\"#])(?P<id>(?P<kind>[A-Za-z_]+[0-9_]*_|[a-z]+?)[0-9a-f]{{10}})(?=[\")])",
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
