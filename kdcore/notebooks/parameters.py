"""Checks of a notebook's parameters against those that it declares: papermill itself only warns about unknown ones."""

import ast
import difflib
import math
import sys
from pathlib import Path

from kdcore import validation
from kdcore.errors import KdcoreError
from kdcore.notebooks.cells import read

TYPES = {"str": str, "int": int, "float": int | float, "bool": bool}
OF_PAGE = ("budget", "seeds", "device", "engine", "results_dir")  # ``Page`` checks their values


def declared(path: Path) -> dict[str, str]:
    """Names in a notebook's cell tagged ``parameters``, each with its annotation ("" if it has none)."""
    for cell in read(path).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return _annotations(cell.source)
    raise KdcoreError(f"{path} has no cell tagged parameters: restore it from git")


def refuse_unknown(path: Path, values: dict) -> None:
    """Raises KdcoreError for a parameter that the notebook does not declare, or a value of another type."""
    _refuse(declared(path), values, path.name)


def refuse_injected() -> None:
    """The same inside a running notebook, for the parameters that papermill injected."""
    cells = getattr(sys.modules.get("__main__"), "In", None) or []
    injected = [i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if injected and injected[-1] >= 1:
        _refuse(_annotations(cells[injected[-1] - 1]), _values(cells[injected[-1]]), "this notebook")


def _refuse(known: dict[str, str], values: dict, where: str) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise KdcoreError(f"unknown parameter {name}: {where} has {', '.join(known)}{hint}")
        kind = TYPES.get(known[name])
        if name in OF_PAGE or kind is None:
            continue
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind) or value in (math.inf, -math.inf) or value != value:
            raise KdcoreError(f"the parameter {name} must be of type {known[name]}, not {validation.shown(value)}")


def _annotations(source: str) -> dict[str, str]:
    """{name: annotation} for the variables that a cell assigns."""
    names = {}
    for node in _statements(source):
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
                names[target.id] = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return names


def _values(source: str) -> dict:
    """{name: value} from the cell that papermill injects. A value that is not a literal (nan, infinity) counts as nan."""
    values = {}
    for node in _statements(source):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                values[node.targets[0].id] = math.nan
    return values


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []
