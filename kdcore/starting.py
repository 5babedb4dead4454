"""``kdcore new KEY``: a skeleton of a paper that passes ``kdcore check`` and its own test from the start."""

import importlib.util
import keyword
import os
import re
from pathlib import Path

from kdcore import papers, paths, validation
from kdcore.errors import KdcoreError
from kdcore.notebooks import cells

TEMPLATE = Path(__file__).parent / "papers" / "template"


def write(key: str) -> list[Path]:
    """Write a new paper's sheet, trial, test and notebook; return their paths. Raises KdcoreError for an invalid or existing key."""
    refuse(key)
    folder, other = papers.HERE / key, validation.other_papers()
    test = folder / f"test_{key}.py" if other else validation.checkout() / "tests" / f"test_{key}.py"
    files = {"template.yaml": folder / "sheet.yaml", "trial.py": folder / "trial.py", "test.py": test}
    notebook = (folder if other else validation.checkout() / "notebooks") / f"{key}.ipynb"
    if there := [path for path in (folder, test, notebook) if path.exists()]:
        raise KdcoreError(f"{there[0]} exists already: choose another key, or move it away")
    schema = os.path.relpath(Path(papers.__file__).parent / "sheet.schema.json", folder)
    for name, path in files.items():
        paths.write_text(path, (TEMPLATE / name).read_text(encoding="utf-8").replace("KEY", key).replace("SCHEMA", schema))
    cells.write(papers.get(key))
    return [*files.values(), notebook]


def refuse(key: str) -> None:
    """Raises KdcoreError for what cannot be the key of a new paper."""
    shown = validation.shown(key)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", key):
        raise KdcoreError(f"{shown} cannot be the key of a paper: use up to 40 lower-case letters, digits and underscores, a letter first")
    if keyword.iskeyword(key):
        raise KdcoreError(f"{key} is a reserved word of Python: choose another key")
    if key in papers.names():
        raise KdcoreError(f"a paper {key} exists already: choose another key")
    if key in ("sheet", "trial", "figures"):
        raise KdcoreError(f"{key} is the name of a file in every paper's folder: choose another key")
    if (package := importlib.util.find_spec(key)) and package.origin:  # without an origin: any folder
        raise KdcoreError(f"{key} is the name of a Python package that can be imported here: choose another key")
    own = Path(papers.__file__).parent
    if (own / key).exists() or (own / f"{key}.py").exists():
        raise KdcoreError(f"{key} is the name of a module in kdcore/papers: choose another key")
