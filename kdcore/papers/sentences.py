"""Pydantic's errors about a sheet, each as one sentence: the place, in the sheet's own names, and what to write there."""

import re

from kdcore import validation
from kdcore.papers.sheet import BLANK, KEYS, PATTERNS, Sheet

WORDS = {
    "Input should be": "it must be",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid": "a",
}
MOST_LISTED = 12  # of the names to choose from, where none is like the misspelt one


def sentence(sheet: dict, error: dict) -> str:
    """A pydantic error as a sentence: the place, in the sheet's own names, and what to write there."""
    place, kind, given = error["loc"], error["type"], error["input"]
    if kind == "missing":
        where = place_of(sheet, place[:-1])
        misspelt = validation.closest(str(place[-1]), [key for key in given if key not in KEYS], 0.5)
        more = f", and '{misspelt}' is unknown (did you mean '{place[-1]}'?)" if misspelt else ""
        section = "" if where or place[-1] not in Sheet.model_fields else "the section "
        return f"{where}{': ' if where else ''}{section}'{place[-1]}' is missing{more}"
    if kind == "extra_forbidden":
        where = place_of(sheet, place[:-1])
        return f"{where}{': ' if where else ''}unknown key '{place[-1]}'{near(str(place[-1]), KEYS)}"
    words = error["msg"].removeprefix("Value error, ")
    where = place_of(sheet, place)
    if kind == "value_error":
        return f"{where}{': ' if where else ''}{words}"
    if place[-1] == "[key]":
        allowed = error["ctx"]["expected"] if kind == "literal_error" else ""
        words = f"write one of {allowed}{_near_literal(given, allowed)}" if allowed else PATTERNS[error["ctx"].get("pattern", BLANK)]
        return f"{place_of(sheet, place[:-2])}: '{place[-2]}' is not a valid key: {words}"
    if kind == "literal_error":
        words = f"write one of {error['ctx']['expected']}{_near_literal(given, error['ctx']['expected'])}"
    elif kind == "string_pattern_mismatch":
        words = PATTERNS[error["ctx"]["pattern"]]
    elif kind in ("too_short", "string_too_short"):
        least = error["ctx"]["min_length"]
        words = "it must not be empty" if least == 1 else f"it must have at least {least} entries"
    elif kind == "too_long":
        words = f"it must have at most {error['ctx']['max_length']} entries"
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
            if name and words:
                words[-1] += f" {validation.shown(name)}"
            else:
                words.append(f"entry {step + 1}")
        elif here is not None or not _branch(step):  # pydantic adds branches of unions, which are not in the sheet
            words.append(str(step))
    return ", ".join(words)


def _holds(here, step) -> bool:
    return (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int) and step < len(here))


def _branch(step) -> bool:
    return step in ("int", "float", "str", "[key]") or str(step).startswith("constrained-") or "[" in str(step) or "(" in str(step)


def near(name: str, choices) -> str:
    """A hint at the choice that is meant or, if none is like the name and they are few, at all of them."""
    others = [choice for choice in choices if choice != name]
    if closest := validation.closest(name, others):
        return f" (did you mean '{closest}'?)"
    return f" (choose one of {'; '.join(others)})" if 0 < len(others) <= MOST_LISTED else ""


def _near_literal(given, expected: str) -> str:
    closest = validation.closest(given, re.findall(r"'([^']*)'", expected)) if isinstance(given, str) else None
    return f" (did you mean '{closest}'?)" if closest else ""
