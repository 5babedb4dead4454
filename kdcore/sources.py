"""Where code stands and which notebook cell teaches an equation: looked up in the package and in notebooks by dotted name and LaTeX."""

import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def look_up(name: str):
    """The module, class or function with a dotted name, without wrappers. Raises LookupError if there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if attribute not in vars(found):
                raise LookupError(name)
            found = inspect.unwrap(vars(found)[attribute])
            for within in ("__func__", "fget", "func"):  # of a class method, a property, a cached property
                found = getattr(found, within, found)
        return found
    raise LookupError(name)


def place(name: str) -> tuple[str, int]:
    """(file relative to the repository, line of its def or class) of a dotted name in kdcore. Raises LookupError if there is none."""
    found = look_up(name)
    source, line = ([], 1) if inspect.ismodule(found) else inspect.getsourcelines(found)
    line += next((count for count, text in enumerate(source) if re.match(r"\s*(async def|def|class)\b", text)), 0)  # below decorators
    return str(Path(inspect.getsourcefile(found)).relative_to(ROOT)), line


def code(name: str) -> str:
    """The source of a dotted name, without common indentation. Raises LookupError if there is none."""
    return textwrap.dedent(inspect.getsource(look_up(name)))


def cell(notebook: Path, latex: str) -> tuple[int, str] | None:
    """(number from 1, heading above it) of a notebook's first cell that shows an equation; None if there is none."""
    cells, heading = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.is_file() else [], ""
    for count, each in enumerate(cells, 1):
        source = "".join(each["source"])
        if each["cell_type"] != "markdown":
            continue
        heading = next((line.lstrip("# ") for line in source.split("\n") if line.startswith("#")), heading)
        if "".join(latex.split()) in "".join(source.split()):
            return count, heading
    return None
