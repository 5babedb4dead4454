"""One place that checks what people type: on the command line, as a notebook's parameters, in a call of ``plan.make`` or ``engine.run``.

Each function takes a value of any type and returns it in the form that the code works with, or raises KdcoreError: one sentence
that says what is wrong and what to write. It needs nothing but Python, so that a bare GPU machine has it too.
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

MOST_SEEDS = 10_000  # a count above it is a slip, such as a seed given to --seeds: its grid alone would fill the memory
LARGEST_SEED = 2**32 - 1  # what every random generator takes
MOST_JOBS = 1024  # processes on one machine
LONGEST = 366 * 24 * 3600  # seconds: a year; the clocks of threads overflow far above it
MOST_SHARDS = 1_000_000
PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("local",)


def seeds(value) -> list[int] | None:
    """None or 0: the budget's own number; n: seeds 0 to n - 1; a list: those, a repeated one once."""
    if value is None:
        return None
    if _is_integer(value):
        return list(range(integer(value, "the number of seeds", 0, MOST_SEEDS, "a single seed is written [N], or --seed N"))) or None
    if not isinstance(value, list | tuple | range):
        raise KdcoreError(f"seeds must be a number of seeds such as 5 or a list of seeds such as [0, 3, 4], not {shown(value)}")
    if not value:
        raise KdcoreError("the list of seeds is empty: name at least one, or leave it out for the budget's own number")
    if value[MOST_SEEDS:]:
        raise KdcoreError(f"{shown(value)} holds more than {MOST_SEEDS:,} seeds: ask for fewer at a time")
    return list(dict.fromkeys(integer(each, "a seed", 0, LARGEST_SEED) for each in value))


def jobs(value) -> int | None:
    """Processes at a time; None for one a core or one a GPU."""
    return None if value is None else integer(value, "the number of jobs", 1, MOST_JOBS)


def seconds(value, what: str) -> float | None:
    """A limit in seconds; None for none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= LONGEST or not math.isfinite(value):
        raise KdcoreError(f"{what} must be a time above 0 and at most a year, not {shown(value)}")
    return float(value)


def shard(value) -> tuple[int, int]:
    """(I, N): the I-th of N parts."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise KdcoreError(f"shard must be two numbers (I, N), not {shown(value)}")
    parts = integer(value[1], "the number of shards", 1, MOST_SHARDS)
    return integer(value[0], "the number of a shard", 1, parts), parts


def device(value) -> str:
    """cpu, cuda or cuda:N. Whether the machine has it, ``environment.devices`` says."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,3}))?", value):
        raise KdcoreError(f"device {shown(value)} is none: choose cpu, cuda (every GPU) or cuda:N such as cuda:0")
    return value


def precision(value) -> str:
    return one_of(value, "precision", PRECISIONS)


def engine(value) -> str:
    return one_of(value, "engine", ENGINES, "; on a cluster, `kdcore run --shard I/N` fills the records")


def arms(value) -> list[str] | None:
    """None for all arms, else a list of names; whether the paper has them, its sheet says."""
    return None if value is None else distinct(value, "arm")


def distinct(values, what: str) -> list[str]:
    """A list of different texts, one at least."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(each, str) for each in values):
        raise KdcoreError(f"{what}s must be a list of names with one at least, not {shown(values)}")
    for number, each in enumerate(values):
        if each in values[:number]:
            raise KdcoreError(f"{what} {shown(each)} is named twice: name it once")
    return list(values)


def one_of(value, what: str, choices: Iterable[str], more: str = "", start: str = "unknown {what} {value}") -> str:
    """``value``, which must be among ``choices``; a misspelt one gets the nearest of them as a suggestion."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    listed = ("; " if any("," in each for each in choices) else ", ").join(choices)
    raise KdcoreError(f"{start.format(what=what, value=shown(value))}: choose one of {listed}{more}{hint}")


# -- folders --------------------------------------------------------------------------------------------------------


def checkout() -> Path:
    """The checkout that this code is part of; for a kdcore installed elsewhere, the one around the working directory.

    Raises KdcoreError where there is none, or where the working directory is in another checkout than the code: its
    records would be made by code that is not its own.
    """
    own, here = _checkout(Path(__file__).resolve().parent), _checkout(Path.cwd())
    if own is not None and here not in (None, own):
        raise KdcoreError(
            f"this folder is in the checkout {here}, but the kdcore that runs is the one of {own}: use the Python in "
            f"{here}/.venv (any `make` target installs it; in Jupyter, its kernel), or leave the folder"
        )
    if own is None and here is None:
        raise KdcoreError("there is no checkout of the repository here: go into one, or name a folder for the records with --results DIR")
    return own or here


def _checkout(start: Path) -> Path | None:
    """The nearest folder at or above ``start`` that is a checkout of this project, known by its own files and not by its name."""
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
    """The folder of papers that ``$KDCORE_PAPERS`` names, to be used in place of the suite's own; None where it names none.

    Their notebooks lie beside their sheets, and their results in its ``results``: nothing of the checkout's own is touched.
    """
    value = os.environ.get("KDCORE_PAPERS")
    if not value:
        return None
    path = Path(value)
    if not path.is_dir():
        raise KdcoreError(f"KDCORE_PAPERS must name a folder of papers (KEY/sheet.yaml, KEY/trial.py), not {shown(value)}")
    return path.resolve()


def home() -> Path:
    """What a results folder is relative to: the checkout, or the folder of other papers."""
    return other_papers() or checkout()


def results(value=None) -> Path:
    """The folder of the records: by default ``results`` of the checkout, wherever in it one stands; a missing one is fine."""
    if value is None:
        return Path(os.path.relpath(home() / "results"))
    return folder(value)


def folder(value, cure: str = "name a folder for the results") -> Path:
    """A path that is, or could become, a folder. Raises KdcoreError for anything else, such as a file's."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise KdcoreError(f"the folder of the results must be a path such as results, not {shown(value)}")
    try:
        path = Path(os.fspath(value)).expanduser()
        there = next(each for each in (path, *path.parents) if _exists(each))
    except (OSError, ValueError, RuntimeError, TypeError) as error:  # too long, a null byte, an unknown ~user, bytes
        raise KdcoreError(f"the folder {shown(str(value))} cannot be used ({error}): {cure}") from error
    if not there.is_dir():
        raise KdcoreError(f"cannot write {path} ({there} is not a folder): {cure}")
    return path


def _exists(path: Path) -> bool:
    """As Path.exists, but a name that is too long or holds a null byte is an error rather than a file that is not there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def existing(value) -> Path:
    """A folder that is there: to check or report what is not there would find nothing wrong with nothing."""
    path = folder(value)
    if not path.is_dir():
        raise KdcoreError(f"there is no folder {path}: correct its name, or make its records with kdcore run")
    return path


def writable(value, cure: str = "make it writable, or pass another --results") -> Path:
    """A folder that can be written, made where it is missing; asked before anything trains."""
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
    """A number of seconds, 0 or more, that an environment variable may set."""
    text = os.environ.get(variable) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
        raise KdcoreError(f"{variable} must be a number of seconds such as {default:g}, not {shown(text)}")
    return float(text)


# -- from the command line's text -----------------------------------------------------------------------------------


def parsed_integer(text: str) -> int:
    """A whole number in plain digits: no sign, no underscore, no digits of other scripts, which int() would take."""
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(" ")):
        raise KdcoreError(f"{shown(text)} is not a whole number in digits, such as 5")
    return int(text)


def parsed_seeds(text: str) -> list[int]:
    """ "5" -> [0, 1, 2, 3, 4]; "0,3" or "3," -> those."""
    try:
        first, *rest = [parsed_integer(part) for part in text.removesuffix(",").split(",")]
    except KdcoreError:
        raise KdcoreError(f"{shown(text)} is neither a number of seeds (5) nor a list of seeds (0,3,4)") from None
    if "," in text:
        return seeds([first, *rest])
    integer(first, "the number of seeds", 1, MOST_SEEDS, "a single seed is written --seed N")
    return seeds(first)


def parsed_seed(text: str) -> int:
    return seeds([parsed_integer(text)])[0]


def parsed_jobs(text: str) -> int:
    return jobs(parsed_integer(text))


def parsed_minutes(text: str) -> float:
    """Minutes above 0, at most a year."""
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
    """A whole number from ``low`` to ``high`` (Python's or numpy's; True and 1.0 are none)."""
    if not _is_integer(value) or not low <= value <= high:
        raise KdcoreError(f"{what} must be a whole number from {low} to {high:,}, not {shown(value)}" + (f"; {hint}" if hint else ""))
    return int(value)


def _is_integer(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def shown(value) -> str:
    """A value as it stands in a sentence: short, on one line, in quotes where it is text."""
    try:
        text = f"'{value}'" if isinstance(value, str) and value.isprintable() else repr(value)
    except Exception:  # an integer of more digits than Python prints, an object whose repr fails
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:76]} ..."
