"""Pydantic's errors about a sheet, each as one sentence: the place, in the sheet's own names, and what to write there."""

import difflib
import re

from kdcore import validation
from kdcore.papers.sheet import KEYS

WORDS = {
    "Input should be": "it must be",
    "valid string": "text",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid": "a",
    "String should": "it must",
    "have at least 1 item": "not be empty",
}


def sentence(sheet: dict, error: dict) -> str:
    """A pydantic error as a sentence: the place, in the sheet's own names, and what to write there."""
    place, kind, given = error["loc"], error["type"], error["input"]
    if kind == "missing":
        where = place_of(sheet, place[:-1])
        return f"{where}: '{place[-1]}' is missing" if where else f"the section '{place[-1]}' is missing"
    if kind == "extra_forbidden":
        where = place_of(sheet, place[:-1])
        return f"{where}{': ' if where else ''}unknown key '{place[-1]}'{near(str(place[-1]), KEYS)}"
    words = error["msg"].removeprefix("Value error, ")
    where = place_of(sheet, place)
    if kind == "value_error":
        return f"{where}{': ' if where else ''}{words}"
    if place[-1] == "[key]":
        return f"{place_of(sheet, place[:-2])}: '{place[-2]}' is not a valid key: {words}"
    if kind == "literal_error":
        words = f"write one of {error['ctx']['expected']}"
    else:
        for theirs, ours in WORDS.items():
            words = words.replace(theirs, ours)
        words = re.sub(r"dictionary( or instance of \w+)?", "mapping", words)
    return f"{where} {validation.shown(given)}: {words}"


def place_of(sheet: dict, place: tuple) -> str:
    """("tables", 0, "rows", 2, "margin") -> "tables 'errors', rows 'small', margin"."""
    words, here = [], sheet
    for step in place:
        here = here[step] if _holds(here, step) else None
        if isinstance(step, int):
            name = next((here[key] for key in ("id", "label", "what") if isinstance(here, dict) and isinstance(here.get(key), str)), None)
            words[-1:] = [f"{words[-1]} {validation.shown(name) if name else f'[{step}]'}" if words else f"[{step}]"]
        elif here is not None or not _branch(step):  # pydantic adds branches of unions, which are not in the sheet
            words.append(str(step))
    return ", ".join(words)


def _holds(here, step) -> bool:
    return (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int) and step < len(here))


def _branch(step) -> bool:
    return step in ("int", "float", "str", "constrained-str", "[key]") or "[" in str(step) or "(" in str(step)


def near(name: str, choices) -> str:
    closest = difflib.get_close_matches(name, [choice for choice in choices if choice != name], 1)
    return f" (did you mean '{closest[0]}'?)" if closest else ""
