"""Whether anything changed since the last report: digests of every file that a report reads or writes, and what it runs on.

They are kept, as one digest, beside the results, outside git. A report that finds it unchanged has nothing to do, and need not even
import PyTorch.
"""

import hashlib
import json
import os
import platform
import secrets
import sys
from pathlib import Path

from kdcore import paths, validation

PACKAGE = Path(__file__).parent
KEPT = ".report.json"  # in the results folder
SMOKE, SITE = "smoke", "site"
READ = ("records", "executed", "smoke/records")  # in the results folder: what a report reads and never writes


def state(results: Path, what: str) -> dict[str, str]:
    """{file: its digest} of all that ``kdcore report`` (what: "report"; "site" with the site, "smoke" for a smoke run) reads and writes,
    and what it runs on."""
    left_out = {"report": {SMOKE, SITE}, "site": {SMOKE}, "smoke": {SITE}}[what]
    folders = [PACKAGE, results] + ([papers] if (papers := validation.other_papers()) else [])
    files = [path for folder in folders for path in _files(folder, left_out if folder == results else set())]
    files += [file] if (file := Path(_readme(results))).is_file() else []
    found = {"python": platform.python_version(), "packages": ", ".join(_packages()), "papers": str(papers)}
    return found | {str(path): _contents(path) for path in files}


def unchanged(results: Path, what: str) -> bool:
    """Whether the last report on this machine left everything as it is now."""
    try:
        return json.loads((results / KEPT).read_text())[what] == _digest(state(results, what))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remember(results: Path, what: str, before: dict[str, str]) -> None:
    """Keep the digest after a report; before: the state when it began. If what it reads has changed since, as by a record of a run that
    goes on, the report may not show it: then nothing is kept."""
    after = state(results, what)
    read = [str(results / name) + os.sep for name in READ]
    changed = {path for path, _ in before.items() ^ after.items()}
    if any(not path.startswith(str(results) + os.sep) or path.startswith(tuple(read)) for path in changed - {_readme(results)}):
        return
    try:
        kept = json.loads((results / KEPT).read_text())
    except (OSError, ValueError):
        kept = {}
    paths.write_text(results / KEPT, json.dumps((kept if isinstance(kept, dict) else {}) | {what: _digest(after)}))


def _readme(results: Path) -> str:
    return str(results.resolve().parent / "README.md")


def _digest(found: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _contents(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # just deleted, or without permission: never the same as before
        return secrets.token_hex()


def _packages() -> list[str]:
    """Every installed package with its version, by the names of their folders: far faster than asking for them."""
    names = {name for folder in map(Path, sys.path) if folder.is_dir() for name in os.listdir(folder)}
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


def _files(folder: Path, left_out: set[str]) -> list[Path]:
    """Every regular file below a folder, also by way of links, but for Python's own caches, what is hidden, and the folders in it that are
    left out."""
    found, known = [], {folder.resolve()}
    for where, folders, files in os.walk(folder, followlinks=True):
        outside = left_out if Path(where) == folder else set()
        folders[:] = sorted(name for name in folders if name not in outside and not name.startswith((".", "__pycache__")))
        for name in [name for name in folders if Path(where, name).is_symlink()]:
            if (real := Path(where, name).resolve()) in known or folder.resolve().is_relative_to(real):  # a circle
                folders.remove(name)
            known.add(real)
        found += [path for name in sorted(files) if not name.startswith(".") and (path := Path(where, name)).is_file()]
    return found
