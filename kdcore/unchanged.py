"""Whether anything changed since the last report: a digest of every file that a report reads or writes, and of what it runs on.

It is kept beside the results, outside git. A report that finds it unchanged has nothing to do, and need not even import PyTorch.
"""

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

from kdcore import paths, validation

PACKAGE = Path(__file__).parent
KEPT = ".report.json"  # in the results folder
DRAWN_WITH = ("matplotlib", "numpy", "pandas", "scipy", "jinja2", "nbconvert")
SMOKE, SITE = "smoke", "site"


def digest(results: Path, what: str) -> str:
    """Of the files that ``kdcore report`` (what: "report"; "site" with the site, "smoke" for a smoke run) reads and writes."""
    left_out = {"report": {SMOKE, SITE}, "site": {SMOKE}, "smoke": {SITE}}[what]
    folders = [PACKAGE, results] + ([papers] if (papers := validation.other_papers()) else [])
    files = [path for folder in folders for path in _files(folder, left_out if folder == results else set())]
    files += [file] if (file := results.resolve().parent / "README.md").is_file() else []
    parts = [platform.python_version(), *(f"{name} {metadata.version(name)}" for name in DRAWN_WITH)]
    parts += [f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def unchanged(results: Path, what: str) -> bool:
    """Whether the last report on this machine left everything as it is now."""
    try:
        return json.loads((results / KEPT).read_text())[what] == digest(results, what)
    except (OSError, ValueError, KeyError, TypeError, metadata.PackageNotFoundError):
        return False


def remember(results: Path, what: str) -> None:
    """Keep the digest after a report."""
    try:
        kept = json.loads((results / KEPT).read_text())
    except (OSError, ValueError):
        kept = {}
    paths.write_text(results / KEPT, json.dumps((kept if isinstance(kept, dict) else {}) | {what: digest(results, what)}))


def _files(folder: Path, left_out: set[str]) -> list[Path]:
    """Every regular file below a folder, but for Python's own caches, what is hidden, and the folders in it that are left out."""
    found = []
    for where, folders, files in os.walk(folder):
        outside = left_out if Path(where) == folder else set()
        folders[:] = sorted(name for name in folders if name not in outside and not name.startswith((".", "__pycache__")))
        found += [path for name in sorted(files) if not name.startswith(".") and (path := Path(where, name)).is_file()]
    return found
