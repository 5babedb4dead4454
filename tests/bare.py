"""A machine with torch, numpy, scikit-learn, safetensors and PyYAML alone, as a Python process sees it."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = (
    "IPython", "jinja2", "jupyter", "jupyter_client", "matplotlib", "nbclient", "nbformat", "pandas", "papermill", "psutil", "pydantic",
    "pytest", "rich", "seaborn",
)  # fmt: skip
SITE = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {ABSENT} else find(name, *rest)
"""


def environment(folder: Path) -> dict[str, str]:
    """The environment of processes that lack all that a bare machine lacks, and of their children; ``folder`` is for its file."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
