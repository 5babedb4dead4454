"""Validation of user input: on the command line, as parameters of a notebook, in calls of ``plan.make`` or ``engine.run``.

Each function takes a value of any type and returns it in the form that the code works with, or raises KdcoreError, with one
sentence that says what is wrong and what to write. Only the standard library is imported, so that it runs on a bare GPU machine.
"""

import difflib
import errno
import math
import numbers
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kdcore.errors import KdcoreError

MOST_SEEDS = 10_000  # a larger count is a mistake, such as a seed given to --seeds: its grid alone would fill the memory
DOUBTFUL = ("M?", "?")  # marks of unverified reported numbers, which are shown but get no verdict
TRAINED = ("data", "network", "teacher_network", "share")  # parameters that say what is trained on what, unless a sheet says more
LARGEST_SEED = 2**32 - 1  # the largest that every random generator accepts
MOST_JOBS = 1024  # processes on one machine
LONGEST = 366 * 24 * 3600  # seconds: a year; thread timeouts overflow far above it
MOST_SHARDS = 1_000_000
PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("local",)


def seeds(value) -> list[int] | None:
    """A list of seeds: from n, 0 to n - 1; from a list, the same without repeats. None or 0: the budget's default (None)."""
    if value is None:
        return None
    if _is_integer(value):
        return list(range(integer(value, "the number of seeds", 0, MOST_SEEDS, "write a single seed as [N], or --seed N"))) or None
    if not isinstance(value, list | tuple | range):
        raise KdcoreError(f"seeds must be a number of seeds such as 5 or a list of seeds such as [0, 3, 4], not {shown(value)}")
    if not value:
        raise KdcoreError("the list of seeds is empty: name at least one, or leave it out for the budget's default")
    if value[MOST_SEEDS:]:
        raise KdcoreError(f"{shown(value)} has more than {MOST_SEEDS:,} seeds: ask for fewer at a time")
    return list(dict.fromkeys(integer(each, "a seed", 0, LARGEST_SEED) for each in value))


def jobs(value) -> int | None:
    """Number of processes at a time; None: one per core or per GPU."""
    return None if value is None else integer(value, "the number of jobs", 1, MOST_JOBS)


def seconds(value, what: str) -> float | None:
    """A time limit in seconds; None: no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= LONGEST or not math.isfinite(value):
        raise KdcoreError(f"{what} must be above 0 and at most a year, not {shown(value)}")
    return float(value)


def shard(value) -> tuple[int, int]:
    """(I, N): part I of N, from 1."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise KdcoreError(f"shard must be two numbers (I, N), not {shown(value)}")
    parts = integer(value[1], "the number of shards", 1, MOST_SHARDS)
    return integer(value[0], "the number of a shard", 1, parts), parts


def device(value) -> str:
    """cpu, cuda or cuda:N; ``environment.devices`` checks that the machine has it."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,3}))?", value):
        raise KdcoreError(f"unknown device {shown(value)}: choose cpu, cuda (every GPU) or cuda:N such as cuda:0")
    return value


def precision(value) -> str:
    return one_of(value, "precision", PRECISIONS)


def engine(value) -> str:
    return one_of(value, "engine", ENGINES, "; on a cluster, `kdcore run --shard I/N` fills the records")


def arms(value) -> list[str] | None:
    """A list of names of arms; None: all. The paper's sheet checks that they exist."""
    return None if value is None else distinct(value, "arm")


def distinct(values, what: str) -> list[str]:
    """A list of at least one string, all different."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(each, str) for each in values):
        raise KdcoreError(f"{what}s must be a list of at least one name, not {shown(values)}")
    for number, each in enumerate(values):
        if each in values[:number]:
            raise KdcoreError(f"{what} {shown(each)} is named twice: name it once")
    return list(values)


def one_of(value, what: str, choices: Iterable[str], more: str = "", start: str = "unknown {what} {value}") -> str:
    """``value``, which must be one of ``choices``; for a misspelt one the message suggests the closest."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    if not choices:
        raise KdcoreError(f"{start.format(what=what, value=shown(value))}: there is no {what} to choose from")
    near = closest(value, choices) if isinstance(value, str) else None
    hint = f" (did you mean '{near}'?)" if near else ""
    listed = ("; " if any("," in each for each in choices) else ", ").join(choices)
    raise KdcoreError(f"{start.format(what=what, value=shown(value))}: choose one of {listed}{more}{hint}")


def closest(value: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that a misspelt value is most like, upper or lower case; None if it is like none."""
    by_letters = {each.lower(): each for each in reversed(list(choices))}
    near = difflib.get_close_matches(value.lower(), by_letters, 1, cutoff)
    return by_letters[near[0]] if near else None


# -- folders --------------------------------------------------------------------------------------------------------


def checkout() -> Path:
    """The checkout that this code belongs to; for an installed kdcore, the one that contains the working directory.

    Raises KdcoreError if there is none, or if the working directory is in a different checkout from the code, which would
    then write records into a checkout that it does not belong to.
    """
    own, here = _checkout(Path(__file__).resolve().parent), _checkout(Path.cwd())
    if own is not None and here not in (None, own):
        raise KdcoreError(
            f"this folder is in the checkout {here}, but the kdcore that runs belongs to {own}: use the Python in "
            f"{here}/.venv (any `make` target installs it; in Jupyter, its kernel), or leave the folder"
        )
    if own is None and here is None:
        raise KdcoreError("there is no checkout of the repository here: change to one, or give a folder for the records with --results DIR")
    return own or here


def _checkout(start: Path) -> Path | None:
    """The nearest folder at or above ``start`` that is a checkout of this project, recognised by its files, not its name."""
    for folder in (start, *start.parents):
        try:
            text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        named = re.search(r"""^name\s*=\s*["']kdcore["']\s*$""", text, re.MULTILINE)
        if named and (folder / "kdcore" / "papers").is_dir() and (folder / "notebooks").is_dir():
            return folder
    return None


def other_papers() -> Path | None:
    """The folder of papers to use in place of the suite's own, from ``$KDCORE_PAPERS``; None if that is not set.

    Their notebooks are beside their sheets and their results in the folder's ``results``; the checkout is not touched.
    """
    value = os.environ.get("KDCORE_PAPERS")
    if not value:
        return None
    rule = f"KDCORE_PAPERS must name one folder of papers (KEY/sheet.yaml, KEY/trial.py), not {shown(value)}"
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # an unknown ~user
        raise KdcoreError(f"{rule} ({error})") from error
    if not path.is_dir():
        several = os.pathsep in value and not path.exists()
        raise KdcoreError(
            rule if path.exists() else f"{rule}: choose one of them" if several else f"{rule}, which does not exist: mkdir it"
        )
    if (path / "sheet.yaml").exists():
        raise KdcoreError(f"{rule}, the folder of a single paper: name the folder above it")
    return path.resolve()


def home() -> Path:
    """The folder that contains ``results``: the checkout, or the folder of other papers."""
    return other_papers() or checkout()


def results(value=None) -> Path:
    """The results folder, which need not exist: by default ``results`` of the checkout, from any folder in it."""
    if value is None:
        return Path(os.path.relpath(home() / "results"))
    return folder(value)


def folder(value, cure: str = "name a folder for the results") -> Path:
    """A path that is, or could become, a folder. Raises KdcoreError for anything else, such as the path of a file."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise KdcoreError(f"the results folder must be a path such as results, not {shown(value)}")
    try:
        path = Path(os.fspath(value)).expanduser()
        there = next(each for each in (path, *path.parents) if _exists(each))
    except (OSError, ValueError, RuntimeError, TypeError) as error:  # too long, a null byte, an unknown ~user, bytes
        raise KdcoreError(f"the folder {shown(str(value))} cannot be used ({error}): {cure}") from error
    if not there.is_dir():
        raise KdcoreError(f"cannot write {path} ({there} is not a folder): {cure}")
    return path


def _exists(path: Path) -> bool:
    """Like Path.exists, but raises for a name that is too long or contains a null byte instead of reporting it as missing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def existing(value) -> Path:
    """A folder that exists: checking or reporting a missing one would succeed vacuously."""
    path = folder(value)
    if not path.is_dir():
        raise KdcoreError(f"there is no folder {path}: correct its name, or make its records with kdcore run")
    return path


def writable(value, cure: str = "make it writable, or pass another --results") -> Path:
    """A writable folder, created if missing; checked before anything trains."""
    path = folder(value)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=".tmp-"):
            pass
    except OSError as error:
        cure = "free some disk space" if error.errno == errno.ENOSPC else cure
        raise KdcoreError(f"cannot write {path} ({error.strerror}): {cure}") from error
    return path


def environment_seconds(variable: str, default: float) -> float:
    """A number of seconds, 0 or more, from an environment variable, else ``default``."""
    text = os.environ.get(variable) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
        raise KdcoreError(f"{variable} must be a number of seconds such as {default:g}, not {shown(text)}")
    return float(text)


# -- from the command line's text -----------------------------------------------------------------------------------


def parsed_integer(text: str) -> int:
    """A whole number in plain digits: no sign, underscore or digits of other scripts, which int() would accept."""
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(" ")):
        raise KdcoreError(f"{shown(text)} is not a whole number in digits, such as 5")
    return int(text)


def parsed_seeds(text: str) -> list[int]:
    """ "5" -> [0, 1, 2, 3, 4]; "0,3" -> [0, 3]; "3," -> [3]."""
    try:
        first, *rest = [parsed_integer(part) for part in text.removesuffix(",").split(",")]
    except KdcoreError:
        raise KdcoreError(f"{shown(text)} is neither a number of seeds (5) nor a list of seeds (0,3,4)") from None
    if "," in text:
        return seeds([first, *rest])
    integer(first, "the number of seeds", 1, MOST_SEEDS, "write a single seed as --seed N")
    return seeds(first)


def parsed_seed(text: str) -> int:
    return seeds([parsed_integer(text)])[0]


def parsed_jobs(text: str) -> int:
    return jobs(parsed_integer(text))


def parsed_minutes(text: str) -> float:
    """A number of minutes, above 0 and at most a year."""
    value = float(text) if re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?", text.strip(" ")) else math.nan
    if not 0 < value * 60 <= LONGEST:
        raise KdcoreError(f"{shown(text)} is not a number of minutes above 0 and at most {LONGEST // 60:,} (a year)")
    return int(value) if value == int(value) else value


def parsed_shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8)."""
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise KdcoreError(f"{shown(text)} is not I/N with 1 <= I <= N, like 2/8")
    part, _, parts = text.partition("/")
    if not 1 <= int(part) <= int(parts) <= MOST_SHARDS:
        raise KdcoreError(f"{shown(text)} is not I/N with 1 <= I <= N, like 2/8")
    return int(part), int(parts)


# -- helpers --------------------------------------------------------------------------------------------------------


def integer(value, what: str, low: int, high: int, hint: str = "") -> int:
    """A whole number from ``low`` to ``high``, Python's or NumPy's; True and 1.0 do not count."""
    if not _is_integer(value) or not low <= value <= high:
        raise KdcoreError(f"{what} must be a whole number from {low} to {high:,}, not {shown(value)}" + (f"; {hint}" if hint else ""))
    return int(value)


def _is_integer(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def shown(value) -> str:
    """A value as a message shows it: short, on one line, in quotes if it is text."""
    try:
        text = f"'{value}'" if isinstance(value, str) and value.isprintable() else repr(value)
    except Exception:  # an integer with more digits than Python prints, an object whose repr fails
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:76]} ..."
