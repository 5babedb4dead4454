"""What is wrong with a paper's sheet: its structure (``papers.sheet``), then what its parts have to do with each other.

Only ``Paper`` and ``kdcore check`` import it. A problem is one sentence: the place in the sheet, and what to write there.
"""

import ast
import contextlib
import fnmatch
import functools
import re
import string
from pathlib import Path
from unittest import mock

from pydantic import ValidationError

from kdcore import data, validation
from kdcore.errors import KdcoreError
from kdcore.papers.sentences import near, place_of, sentence
from kdcore.papers.sheet import DERIVABLE, SHAPES, Config, Model, Ramp, Rates, Sheet

MOST_COMBINATIONS = 10_000  # rows or arms that one sweep may stand for
MOST_LAYERS = 10_000  # any number in the name of a network


def structure_problems(sheet: dict) -> list[str]:
    """Keys that are missing or unknown, and values of a wrong type or range; then templates that cannot be filled in."""
    try:
        Sheet.model_validate(sheet)
    except ValidationError as error:
        found: dict[str, str] = {}
        # an unknown key first, for a missing one beside it is its correction; where one of several types fits, the first says enough
        for each in sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"):
            found.setdefault(place_of(sheet, each["loc"]) if each["type"] != "missing" else str(each["loc"]), sentence(sheet, each))
        return list(found.values())
    problems = [problem for name, settings in sheet["arms"].items() for problem in _arm_problems(name, settings)]
    for table in sheet["tables"]:
        for row in table["rows"]:
            where, sweep = f"{place_of(sheet, ('tables',))} '{table['id']}', row '{row['label']}'", row.get("sweep") or {}
            problems += _sweep_problems(where, sweep, [row["label"], row["arm"] or ""])
            for key in ("paper", "reference"):
                if isinstance(row.get(key), list) and not problems and len(row[key]) != _product(sweep):
                    problems.append(f"{where}: it stands for {_product(sweep)} rows and has {len(row[key])} numbers in '{key}'")
    if "sizes" in sheet and len(sheet["sizes"]) != (rows := sum(_product(row.get("sweep") or {}) for row in sheet["tables"][0]["rows"])):
        problems.append(f"sizes: there are {len(sheet['sizes'])} for the {rows} rows of the first table")
    for part in ("tables", "claims"):
        names = [entry["id"] for entry in sheet[part]]
        problems += [f"{part}: the id '{name}' is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    return problems


def _arm_problems(name: str, settings: dict) -> list[str]:
    if name != name.strip() or not name.isprintable():
        return [f"arms: the name {name!r} must be one line without spaces at its ends"]
    sweep = settings.get("sweep", {})
    if not isinstance(sweep, dict) or not all(
        isinstance(values, list) and values and all(isinstance(value, str | int | float) for value in values) for values in sweep.values()
    ):
        return [f"arms, '{name}': sweep must give each variable a list of values, such as {{width: [300, 30]}}"]
    return _sweep_problems(f"arms, '{name}'", sweep, _texts({"name": name} | settings | {"sweep": None}))


def _texts(settings: dict) -> list[str]:
    """The strings that a sweep fills in: as ``papers._filled`` walks them."""
    found: list[str] = []
    waiting = list(settings.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            found.append(value)
    return found


def _product(sweep: dict) -> int:
    return functools.reduce(lambda count, values: count * len(values), sweep.values(), 1)


def _sweep_problems(where: str, sweep: dict, texts: list[str]) -> list[str]:
    """Placeholders that no variable fills, and sweeps without end."""
    if _product(sweep) > MOST_COMBINATIONS:
        return [f"{where}: its sweep stands for {_product(sweep):,} combinations, more than {MOST_COMBINATIONS:,}"]
    for text in texts:
        try:
            fields = list(string.Formatter().parse(text))
        except ValueError as error:
            return [f"{where}: '{text}' is no template ({error}): write a brace twice to mean itself"]
        for _, field, layout, conversion in fields:
            if field is not None and (field not in sweep or layout or conversion):
                known = f"one of {', '.join(sweep)}" if sweep else "nothing, for there is no sweep"
                return [f"{where}: the placeholder '{{{field}}}' of '{text}' must be {known}"]
    return []


def problems(paper) -> list[str]:
    """Everything that is wrong with a paper's sheet: its structure, then what its parts refer to. One sentence each."""
    found = structure_problems(paper.sheet) or _missing_parameters(paper)
    return found or [*_budget_problems(paper), *_table_problems(paper), *_claim_problems(paper), *_metric_problems(paper)]


def _missing_parameters(paper) -> list[str]:
    """Parameters that the paper's trial.py reads, as ``config["..."]``, and that ``config`` does not have."""
    try:
        tree = ast.parse(Path(paper.module.__file__).read_text(encoding="utf-8"))
    except (SyntaxError, OSError, ImportError) as error:
        return [f"kdcore/papers/{paper.key}/trial.py cannot be read ({error})"]
    read = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        if "config" in (getattr(node.value, "id", None), getattr(node.value, "attr", None))
    }
    config = paper.sheet["config"]
    if "network" in config and any(settings.get("teacher") for settings in paper.arms.values()):
        read.add("is_teacher")
    return [f"config: '{name}' is missing, which {paper.key}/trial.py reads" for name in sorted(read - set(config))]


def _budget_problems(paper) -> list[str]:
    """Patterns that match nothing, and arms that a budget runs and that could not train."""
    found = _naming_problems(paper)
    for name, budget in paper.budgets.items():
        for pattern in (*budget.get("arms", {}), *budget.get("only", [])):
            if not any(fnmatch.fnmatchcase(arm, pattern) for arm in paper.arms):
                found.append(f"'{pattern}' in budget {name} matches no arm")
        run = set(paper.budget_arms(name))
        for arm in paper.arms:
            try:
                seeds = paper.seeds(name, arm)
                config = paper.resolved(name, arm)
            except KdcoreError as error:
                found.append(str(error).removeprefix(f"{paper.key}/sheet.yaml "))
                continue
            where = f"arm '{arm}' at {name}"
            if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= validation.MOST_SEEDS:
                found.append(f"{where}: seeds must be a number from 1 to {validation.MOST_SEEDS:,}, not {validation.shown(seeds)}")
            if arm in run:
                found += [f"{where}: {problem}" for problem in _config_problems(paper, name, config)]
    return list(dict.fromkeys(found)) or _chain_problems(paper)


def _naming_problems(paper) -> list[str]:
    """Templates of arms that give the same name."""
    from kdcore.papers import _combinations

    names = [name.format(**values) for name, own in paper.sheet["arms"].items() for values in _combinations(own.get("sweep") or {})]
    return [f"arms: there are two named '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]


def _config_problems(paper, budget: str, config: dict) -> list[str]:
    """What a resolved configuration has that no trial could be made of, whatever the paper."""
    found = []
    try:
        Config.model_validate(config)
    except ValidationError as error:
        return [sentence(config, each) for each in error.errors(include_url=False)]
    for key, value in config.items():
        if key not in DERIVABLE and (problem := _unlike(paper.sheet["config"][key], value)):
            found.append(f"{key} must be {problem}, not {validation.shown(value)}")
        if isinstance(value, dict) and (shape := _shape(key, value)):
            try:
                shape.model_validate(value)
            except ValidationError as error:
                found += [f"{key}: {sentence(value, each)}" for each in error.errors(include_url=False)]
            else:
                if shape is Rates and budget != "smoke":  # whose few steps need not have them all
                    found += [f"{key}: {problem}" for problem in _unused_rates(value, config.get("scale", 1))]
    try:
        data.fingerprint(config["data"])
    except KdcoreError as error:
        found.append(f"data: {error}")
    if (teacher := config["teacher"]) is None:
        return found
    if teacher not in paper.arms:
        return [*found, f"its teacher '{teacher}' is no arm{near(teacher, paper.arms)}"]
    try:
        theirs = paper.resolved(budget, teacher)
    except KdcoreError:  # said of that arm
        return found
    if theirs.get("is_teacher") is False:
        found.append(f"its teacher '{teacher}' keeps no weights: write is_teacher: derived in config, and no other value for that arm")
    own, named = theirs.get("network"), config.get("teacher_network")
    if "teacher_network" in config and named != own:
        found.append(
            f"teacher_network is {validation.shown(named)}, but its teacher '{teacher}' trains {validation.shown(own)} there: "
            "leave teacher_network out"
        )
    return found


def _shape(key: str, value: dict) -> type[Model] | None:
    """What a dict in a configuration must hold, where several papers share it; the rest is the paper's own."""
    if key in SHAPES:
        return SHAPES[key]
    if {"from", "to", "span"} & set(value):
        return Ramp
    return Rates if "until" in value or isinstance(value.get("lr"), list) else None


def _unused_rates(rates: dict, scale) -> list[str]:
    """Rates that are never used, as ``images.piecewise`` rounds their ends; what scale must be otherwise, ``_unlike`` says."""
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return []
    ends = [0, *(round(scale * end) for end in rates["until"])]
    return [
        f"the rate {rate:g} is never used (until {until:g}, times scale {scale:g}: from {start} to {end}): raise scale, or drop the rate"
        for rate, until, start, end in zip(rates["lr"], rates["until"], ends, ends[1:], strict=False)
        if start == end
    ]


def _unlike(default, value) -> str | None:
    """What a value should be to be of its default's kind; None where it is. null, lists and dicts stand for more than one kind."""
    if isinstance(default, bool):
        return None if value is None or isinstance(value, bool | str) else "true or false"
    if isinstance(default, int | float) and (isinstance(value, bool | str) or isinstance(value, int | float) and value < 0 <= default):
        return "a number that is not negative" if default >= 0 else "a number"
    return "a text" if isinstance(default, str) and isinstance(value, bool) else None


def network_problems(paper, budget: str, arms) -> list[str]:
    """Networks of a budget's arms that cannot be built. Apart from the rest, because it takes a second for the large ones."""
    found = {}
    for arm in arms:
        config = paper.resolved(budget, arm)
        for key in ("network", "teacher_network"):
            if (name := config.get(key)) is not None and name not in found:
                found[name] = (problem := _unbuildable(name)) and f"arm '{arm}' at {budget}: {key}: {problem}"
    return [problem for problem in found.values() if problem]


@functools.cache
def _unbuildable(name: str) -> str | None:
    """Why there is no network of a name; it is built without memory and without weights."""
    import torch

    from kdcore import models

    if any(len(digits) > 9 or int(digits) > MOST_LAYERS for digits in re.findall("[0-9]+", name)):
        return f"'{name}' has a number above {MOST_LAYERS:,}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        for family in {models.Network, *models.FAMILIES.values()}:
            stack.enter_context(mock.patch.object(family, "reset", lambda net, seed: net))
        try:
            models.create(name)
        except KdcoreError as error:
            return str(error)
        except Exception as error:  # a size that torch cannot count, say
            return f"cannot build network '{name}' ({error})"
    return None


def _chain_problems(paper) -> list[str]:
    """Teachers in a circle; and configurations that the paper's module cannot read, by the function that groups its trials."""
    for budget in paper.budgets:
        configs = {arm: paper.resolved(budget, arm) for arm in paper.arms}
        for arm in paper.budget_arms(budget):
            chain = [arm]
            while (teacher := configs[chain[-1]]["teacher"]) is not None:
                if teacher in chain:
                    return [f"arm '{arm}' at {budget}: its teachers go in a circle ({' <- '.join([*chain, teacher])})"]
                chain.append(teacher)
            try:
                paper.cohort(configs[arm])
            except Exception as error:  # whatever a paper's own code makes of it
                why = f"{type(error).__name__}: {error}"
                return [f"arm '{arm}' at {budget}: kdcore/papers/{paper.key}/trial.py cannot read its settings ({why})"]
    return []


def _table_problems(paper) -> list[str]:
    found = []
    for table in paper.tables:
        for row in table["rows"]:
            where = f"table {table['id']}, row '{row['label']}'"
            if row["arm"] is not None and row["arm"] not in paper.arms:
                found.append(f"{where} names the arm '{row['arm']}', which is not there{near(row['arm'], paper.arms)}")
            if row["paper"] is not None and row.get("mark") is None:
                found.append(
                    f"{where}: the reported number has no mark: write mark: V, C, I, M, M? or ? (docs/sheet.md) here or in its table"
                )
            if "reference" in row and "reference" not in table:
                found.append(f"table {table['id']} does not say whose number the reference of '{row['label']}' is")
            if row.get("std") is not None and row["paper"] is None:
                found.append(f"{where}: a standard deviation without a number")
    return found


def _claim_problems(paper) -> list[str]:
    return [
        f"claim {claim['id']} names the arm '{arm}', which is not there{near(arm, paper.arms)}"
        for claim in paper.sheet["claims"]
        for side in ("left", "right")
        for arm in claim[side].get("arms") or []
        if arm not in paper.arms
    ]


def _metric_problems(paper) -> list[str]:
    """Metrics of rows and claims that no trial of the paper measures."""
    measured = getattr(paper.module, "METRICS", None)
    if not isinstance(measured, dict):
        return [f"kdcore/papers/{paper.key}/trial.py has no METRICS: write METRICS = {{name: what it is and its unit}}"]
    found = [
        f"{where}: trial.py measures no '{metric}'{near(metric, measured)}; its METRICS lists what it does"
        for where, _, metric in used_metrics(paper)
        if metric not in measured
    ]
    return list(dict.fromkeys(found))


def used_metrics(paper) -> list[tuple[str, str | None, str]]:
    """(place in the sheet, arm, metric) of every row and of every side of a claim."""
    rows = [(f"table {table['id']}, row '{row['label']}'", row["arm"], row["metric"]) for table in paper.tables for row in table["rows"]]
    return rows + [
        (f"claim {claim['id']}", arm, claim[side]["metric"])
        for claim in paper.sheet["claims"]
        for side in ("left", "right")
        for arm in claim[side].get("arms") or []
    ]
