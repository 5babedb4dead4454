"""What a figure is made from, as a digest: the numbers and words that it shows, the code that draws it, and matplotlib's version.

A figure that still has the digest of its origin need not be drawn again (``canvas.trouble``).
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

PACKAGE = Path(__file__).parents[1]
# A figure gets what these say as arguments, which are part of its digest: names of papers must be looked up before anything is drawn.
OUTSIDE = ("kdcore.papers",)


def digest(draw: Callable) -> str:
    """The digest of what ``draw`` will show, 16 hex digits: of its function, its arguments and its code.

    draw: a function of a module, or ``functools.partial`` of one (or of another partial). Numbers count to 9 significant digits,
    as they are drawn. Raises ValueError for a function within a function, or an argument that has no lasting text.
    """
    parts: list[str] = [mpl.__version__]
    modules: set[str] = {"kdcore.report.canvas"}
    _add(draw, parts, modules)
    parts += [f"{name} {code(name)}" for name in sorted(modules)]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]


def _add(value, parts: list[str], modules: set[str]) -> None:
    """Append the lasting text of ``value``, and collect the modules of its functions."""
    if value is None or isinstance(value, bool | int | str):
        parts.append(repr(value))
    elif isinstance(value, float):
        parts.append(f"{value + 0.0:.8e}")
    elif isinstance(value, np.generic):
        _add(value.item(), parts, modules)
    elif isinstance(value, list | tuple | range):
        parts.append(f"{len(value)} values")
        for each in value:
            _add(each, parts, modules)
    elif isinstance(value, dict):
        parts.append(f"{len(value)} items")
        for key, each in value.items():
            _add(key, parts, modules)
            _add(each, parts, modules)
    elif isinstance(value, np.ndarray):
        _add([value.shape, value.ravel().tolist()], parts, modules)
    elif isinstance(value, pd.DataFrame):
        _add([value.attrs, list(value.columns), *(value[name].tolist() for name in value.columns)], parts, modules)
    elif isinstance(value, functools.partial):
        _add([value.func, list(value.args), value.keywords], parts, modules)
    elif is_dataclass(value) and not isinstance(value, type):
        _add({each.name: getattr(value, each.name) for each in fields(value)}, parts, modules)
    elif callable(value) and getattr(sys.modules.get(value.__module__), value.__qualname__, None) is value:
        parts.append(f"{value.__module__}.{value.__qualname__}")
        modules.add(value.__module__)
    else:
        raise ValueError(f"a figure is drawn by a module's function, or a partial of one, from numbers and words; not from {value!r}")


@functools.cache
def code(module: str) -> str:
    """A digest of the sources of a module and of all modules of the package that it imports, itself or by way of others."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _sources(module).items()}
    return hashlib.sha256(str(sorted(digests.items())).encode()).hexdigest()


def _sources(module: str) -> dict[str, Path]:
    """{name: file} of a module and everything of the package that it imports; a module of elsewhere has only itself."""
    known: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or name in known:
            continue
        known[name] = path
        if name.partition(".")[0] == PACKAGE.name:
            waiting += [each for each in _imports(path) if each not in OUTSIDE]
    return known


def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    if top != PACKAGE.name:
        there = getattr(sys.modules.get(module), "__file__", None)
        return Path(there) if there else None
    base = PACKAGE.joinpath(*rest)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@functools.cache
def _imports(path: Path) -> list[str]:
    """What a module of the package imports from the package; names that are no modules are harmless."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.partition(".")[0] == PACKAGE.name]
