"""Checks of a paper's sheet: first its structure (``papers.sheet``), then the references between its parts.

Only ``Paper`` and ``kdcore check`` import this module. A problem is one sentence: the place in the sheet, and what to write there.
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
from kdcore.papers.sheet import DERIVABLE, SHAPES, SHOWN, Config, Model, Ramp, Rates, Sheet

MOST_COMBINATIONS = 10_000  # rows or arms of one sweep
MOST_LAYERS = 10_000  # largest number in the name of a network
VARIABLE = r"[A-Za-z]\w*"  # what a placeholder names: "{0}" and "{a.b}" mean something else
SCALES = {"smoke": "demo", "paper": "protocol"}  # of the budgets whose names say it


def structure_problems(sheet: dict) -> list[str]:
    """Missing or unknown keys and values of a wrong type or range; if there are none, templates that cannot be filled in."""
    try:
        Sheet.model_validate(sheet)
    except ValidationError as error:
        by_place: dict[str, str] = {}
        # unknown keys first: one is often a missing key, misspelt; of several errors at one place, the first is enough
        for each in sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"):
            by_place.setdefault(place_of(sheet, each["loc"]) if each["type"] != "missing" else str(each["loc"]), sentence(sheet, each))
        return list(by_place.values())
    problems = [problem for name, settings in sheet["arms"].items() for problem in _arm_problems(name, settings)]
    for table in sheet["tables"]:
        for row in table["rows"]:
            where, sweep = f"{place_of(sheet, ('tables',))} '{table['id']}', row '{row['label']}'", row.get("sweep") or {}
            problems += _sweep_problems(where, sweep, [row["label"], row["arm"] or ""])
            for key in ("paper", "reference", "margin"):
                if isinstance(row.get(key), list) and not problems and len(row[key]) != _product(sweep):
                    problems.append(f"{where}: its sweep gives {_product(sweep)} rows, but '{key}' has {len(row[key])} numbers")
    if "sizes" in sheet and len(sheet["sizes"]) != (rows := sum(_product(row.get("sweep") or {}) for row in sheet["tables"][0]["rows"])):
        problems.append(f"sizes: there are {len(sheet['sizes'])} entries for the {rows} rows of the first table")
    for part in ("tables", "claims", "findings"):
        names = [entry["id"] for entry in sheet.get(part, [])]
        problems += [f"{part}: the id '{name}' is used twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    return problems


def _arm_problems(name: str, settings: dict) -> list[str]:
    if name != name.strip() or not name.isprintable():
        return [f"arms: the name {name!r} must be one line without leading or trailing spaces"]
    sweep = settings.get("sweep", {})
    if not isinstance(sweep, dict) or not all(
        isinstance(values, list) and values and all(isinstance(value, str | int | float) for value in values) for values in sweep.values()
    ):
        return [f"arms, '{name}': sweep must give each variable a list of values, such as {{width: [300, 30]}}"]
    return _sweep_problems(f"arms, '{name}'", sweep, _texts({"name": name} | settings | {"sweep": None}))


def _texts(settings: dict) -> list[str]:
    """The strings that a sweep fills in, in the same values as ``papers._filled``."""
    texts: list[str] = []
    waiting = list(settings.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            texts.append(value)
    return texts


def _product(sweep: dict) -> int:
    return functools.reduce(lambda count, values: count * len(values), sweep.values(), 1)


def _sweep_problems(where: str, sweep: dict, texts: list[str]) -> list[str]:
    """Placeholders that no variable fills, and sweeps that are too large."""
    if _product(sweep) > MOST_COMBINATIONS:
        return [f"{where}: its sweep has {_product(sweep):,} combinations, more than {MOST_COMBINATIONS:,}"]
    if odd := [name for name in sweep if not re.fullmatch(VARIABLE, name)]:
        return [f"{where}: its sweep names a variable {validation.shown(odd[0])}: use letters, digits and underscores, a letter first"]
    for text in texts:
        try:
            fields = list(string.Formatter().parse(text))
        except ValueError as error:
            return [f"{where}: '{text}' is not a valid template ({error}): write a literal brace twice"]
        for _, field, layout, conversion in fields:
            if field is not None and (field not in sweep or layout or conversion):
                known = f"must be one of {', '.join(sweep)}" if sweep else "has no sweep to fill it"
                return [f"{where}: the placeholder '{{{field}}}' of '{text}' {known}"]
    return []


def problems(paper) -> list[str]:
    """Everything that is wrong with a paper's sheet, one sentence each: its structure or, if that is right, its references."""
    first = structure_problems(paper.sheet) or _missing_parameters(paper)
    checks = (_budget_problems, _table_problems, _claim_problems, _margin_problems, _metric_problems, _finding_problems)
    return first or [problem for check in checks for problem in check(paper)]


def _missing_parameters(paper) -> list[str]:
    """Parameters that the paper's trial.py reads as ``config["..."]`` but ``config`` lacks."""
    try:
        tree = ast.parse(Path(paper.module.__file__).read_text(encoding="utf-8"))
    except (SyntaxError, OSError, ImportError) as error:
        return [f"{paper.key}/trial.py cannot be read ({error})"]
    read = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        if "config" in (getattr(node.value, "id", None), getattr(node.value, "attr", None))
    }
    config = paper.sheet["config"]
    if "network" in config and any(settings.get("teacher") for settings in paper.arms.values()):
        read.add("is_teacher")
        if not any(isinstance(node, ast.FunctionDef) and node.name == "make_teacher" for node in ast.walk(tree)):
            read.add("teacher_network")  # ImageTrial.make_teacher reads it
    return [f"config: '{name}', which {paper.key}/trial.py reads, is missing" for name in sorted(read - set(config))]


def _budget_problems(paper) -> list[str]:
    """Patterns that match no arm, and arms of a budget that cannot train."""
    problems = _naming_problems(paper)
    config = paper.sheet["config"]
    problems += [
        f"trained: there is no parameter '{name}'{near(name, config)}" for name in paper.sheet.get("trained", []) if name not in config
    ]
    for name, budget in paper.budgets.items():
        if name in SCALES and budget["scale"] != SCALES[name]:
            problems.append(f"budgets, {name}, scale: write {SCALES[name]}, which this budget is by its name, not {budget['scale']}")
        for pattern in (*budget.get("arms", {}), *budget.get("only", [])):
            if not any(fnmatch.fnmatchcase(arm, pattern) for arm in paper.arms):
                problems.append(f"'{pattern}' in budget {name} matches no arm")
        run = set(paper.budget_arms(name))
        for arm in paper.arms:
            try:
                seeds = paper.seeds(name, arm)
                config = paper.resolved(name, arm)
            except KdcoreError as error:
                problems.append(str(error).removeprefix(f"{paper.key}/sheet.yaml "))
                continue
            where = f"arm '{arm}' at {name}"
            if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= validation.MOST_SEEDS:
                problems.append(f"{where}: seeds must be a number from 1 to {validation.MOST_SEEDS:,}, not {validation.shown(seeds)}")
            if arm in run:
                problems += [f"{where}: {problem}" for problem in _config_problems(paper, name, config)]
    return list(dict.fromkeys(problems)) or [*_scale_problems(paper), *_resampling_problems(paper), *_chain_problems(paper)]


def _scale_problems(paper) -> list[str]:
    """Budgets whose scale says more than they run: at protocol nothing may differ from budget paper, at short nothing ``trained``."""
    problems = []
    for name in [name for name, budget in paper.budgets.items() if budget["scale"] in ("protocol", "short") and "paper" in paper.budgets]:
        scale = paper.budgets[name]["scale"]
        for arm in paper.budget_arms(name):
            here, there = paper.resolved(name, arm), paper.resolved("paper", arm)
            fixed = here if scale == "protocol" else {*paper.sheet.get("trained", validation.TRAINED)} & {*here}
            if differs := [key for key in here if key in fixed and here[key] != there[key]]:
                problems.append(
                    f"budgets, {name}, scale: {scale} is not what it runs, as '{differs[0]}' of arm '{arm}' is not that of budget paper: "
                    f"write {'short, scaled' if scale == 'protocol' else 'scaled'} or demo"
                )
                break
    return problems


def _resampling_problems(paper) -> list[str]:
    """Parameters that ``resampled`` names and that do not describe random test sets."""
    named = paper.sheet.get("resampled") or {}
    wanted = [named[key] for key in ("repetitions", "share") if named]
    problems = [
        f"resampled: there is no parameter '{name}'{near(name, paper.sheet['config'])}"
        for name in wanted
        if name not in paper.sheet["config"]
    ]
    for budget in paper.budgets if named and not problems else ():
        for arm in paper.budget_arms(budget):
            config = paper.resolved(budget, arm)
            count, share = config[named["repetitions"]], config[named["share"]]
            if not (isinstance(count, int) and count >= 1 and isinstance(share, float) and 0 < share < 1):
                return [
                    f"arm '{arm}' at {budget}: resampled needs a whole number of test sets and a share between 0 and 1, "
                    f"not {validation.shown(count)} and {validation.shown(share)}"
                ]
    return problems


def _naming_problems(paper) -> list[str]:
    """Names that more than one arm has once templates are filled in."""
    from kdcore.papers import _combinations

    names = [name.format(**values) for name, own in paper.sheet["arms"].items() for values in _combinations(own.get("sweep") or {})]
    return [f"arms: two are named '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]


def _config_problems(paper, budget: str, config: dict) -> list[str]:
    """Entries of a resolved configuration that would prevent a trial, whatever the paper."""
    problems = []
    try:
        Config.model_validate(config)
    except ValidationError as error:
        return [sentence(config, each) for each in error.errors(include_url=False)]
    for key, value in config.items():
        if key not in DERIVABLE and (expected := _unlike(paper.sheet["config"][key], value)):
            problems.append(f"{key} must be {expected}, not {validation.shown(value)}")
        if isinstance(value, dict) and (shape := _shape(key, value)):
            try:
                shape.model_validate(value)
            except ValidationError as error:
                problems += [f"{key}: {sentence(value, each)}" for each in error.errors(include_url=False)]
            else:
                if shape is Rates:
                    problems += [f"{key}: {problem}" for problem in _unused_rates(value, config.get("scale", 1), every=budget != "smoke")]
    try:
        data.fingerprint(config["data"])
    except KdcoreError as error:
        problems.append(f"data: {error}")
    if (teacher := config["teacher"]) is None:
        return problems
    if teacher not in paper.arms:
        return [*problems, f"its teacher '{teacher}' is not an arm{near(teacher, paper.arms)}"]
    try:
        theirs = paper.resolved(budget, teacher)
    except KdcoreError:  # reported for that arm
        return problems
    if theirs.get("is_teacher") is False:
        problems.append(f"its teacher '{teacher}' keeps no weights: write is_teacher: derived in config, and no other value for that arm")
    own, named = theirs.get("network"), config.get("teacher_network")
    if "teacher_network" in config and named != own:
        problems.append(
            f"teacher_network is {validation.shown(named)}, but its teacher '{teacher}' trains {validation.shown(own)} there: "
            "leave teacher_network out"
        )
    return problems


def _shape(key: str, value: dict) -> type[Model] | None:
    """The model of a dict in a configuration, if several papers share its form; None for a paper's own."""
    if key in SHAPES:
        return SHAPES[key]
    if {"from", "to", "span"} & set(value):
        return Ramp
    return Rates if "until" in value or isinstance(value.get("lr"), list) else None


def _unused_rates(rates: dict, scale, every: bool) -> list[str]:
    """Learning rates that are never used after ``images.piecewise`` has rounded their ends; ``_unlike`` checks the type of scale. Unless
    ``every`` one must be used (the few steps of smoke need not), only a length of nothing is a problem."""
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return []
    ends = [0, *(round(scale * end) for end in rates["until"])]
    if not every:
        return [] if ends[-1] else [f"nothing is trained (until {rates['until'][-1]:g} times scale {scale:g} is no step): raise scale"]
    return [
        f"the rate {rate:g} is never used (until {until:g} times scale {scale:g}, it lasts from {start} to {end}): raise scale, or drop it"
        for rate, until, start, end in zip(rates["lr"], rates["until"], ends, ends[1:], strict=False)
        if start == end
    ]


def _unlike(default, value) -> str | None:
    """What a value should be to match its default, or None if it does. null, lists and dicts match more than one kind."""
    if isinstance(default, bool):
        return None if value is None or isinstance(value, bool | str) else "true or false"
    if isinstance(default, int | float) and (isinstance(value, bool | str) or isinstance(value, int | float) and value < 0 <= default):
        return "a number that is not negative" if default >= 0 else "a number"
    return "text" if isinstance(default, str) and isinstance(value, bool) else None


def network_problems(paper, budget: str, arms) -> list[str]:
    """Networks of a budget's arms that cannot be built. A separate check, since large networks take a second."""
    by_name = {}
    for arm in arms:
        config = paper.resolved(budget, arm)
        for key in ("network", "teacher_network"):
            if (name := config.get(key)) is not None and name not in by_name:
                by_name[name] = (problem := _unbuildable(name)) and f"arm '{arm}' at {budget}: {key}: {problem}"
    return [problem for problem in by_name.values() if problem]


@functools.cache
def _unbuildable(name: str) -> str | None:
    """Why a network cannot be built, or None. It is built on the meta device, without memory or weights."""
    import torch

    from kdcore import models

    if any(len(digits) > 9 or int(digits) > MOST_LAYERS for digits in re.findall("[0-9]+", name)):
        return f"'{name}' contains a number above {MOST_LAYERS:,}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        for family in {models.Network, *models.FAMILIES.values()}:
            stack.enter_context(mock.patch.object(family, "reset", lambda net, seed: net))
        try:
            models.create(name)
        except KdcoreError as error:
            return str(error)
        except Exception as error:  # such as a size that overflows in torch
            return f"cannot build network '{name}' ({error})"
    return None


def _chain_problems(paper) -> list[str]:
    """Cycles of teachers, and configurations that make the paper's ``cohort`` fail."""
    for budget in paper.budgets:
        configs = {arm: paper.resolved(budget, arm) for arm in paper.arms}
        for arm in paper.budget_arms(budget):
            chain = [arm]
            while (teacher := configs[chain[-1]]["teacher"]) is not None:
                if teacher in chain:
                    return [f"arm '{arm}' at {budget}: its teachers form a cycle ({' <- '.join([*chain, teacher])})"]
                chain.append(teacher)
            try:
                paper.cohort(configs[arm])
            except Exception as error:  # whatever a paper's own code raises
                why = f"{type(error).__name__}: {error}"
                return [f"arm '{arm}' at {budget}: {paper.key}/trial.py cannot read its settings ({why})"]
    return []


def _table_problems(paper) -> list[str]:
    problems = []
    for table in paper.tables:
        problems += _repeated_rows(table)
        for row in table["rows"]:
            where = f"table {table['id']}, row '{row['label']}'"
            if row["arm"] is not None and row["arm"] not in paper.arms:
                problems.append(f"{where} names the arm '{row['arm']}', which does not exist{near(row['arm'], paper.arms)}")
            if row["paper"] is not None and row.get("mark") is None:
                problems.append(
                    f"{where}: the reported number has no mark: write mark: V, C, I, M, M? or ? (docs/sheet.md) here or in its table"
                )
            if "reference" in row and "reference" not in table:
                problems.append(f"table {table['id']} has no 'reference' to say whose number the row '{row['label']}' refers to")
            if row.get("std") is not None and row["paper"] is None:
                problems.append(f"{where}: a standard deviation without a reported number")
    return problems


def _repeated_rows(table: dict) -> list[str]:
    shown = [(row["label"], row["metric"]) for row in table["rows"]]
    twice = [each for each in dict.fromkeys(shown) if shown.count(each) > 1]
    return [f"table {table['id']} shows '{metric}' of '{label}' twice" for label, metric in twice]


def _margin_problems(paper) -> list[str]:
    """Entries of ``margins`` that concern no row or say what is not so, and margins that cannot tell the sides of a claim apart."""
    entries = paper.sheet.get("margins", [])
    if twice := [number for number, entry in enumerate(entries, 1) if entry in entries[: number - 1]]:
        return [f"margins, entry {twice[0]}: it is there twice"]
    problems, ids = [], {table["id"]: table for table in paper.tables}
    for number, entry in enumerate(entries, 1):
        where = f"margins, entry {number}"
        if unknown := [name for name in entry["tables"] if name not in ids]:
            problems.append(f"{where}: there is no table '{unknown[0]}'{near(unknown[0], ids)}")
            continue
        rows = [row for name in entry["tables"] for row in ids[name]["rows"] if any(each is entry for each in paper.margins_of(name, row))]
        if not rows:
            problems.append(f"{where}: no row with a reported number has a label like {' or '.join(entry.get('rows', ['*']))}")
        problems += [
            f"{where}: the old margin of '{row['label']}', {entry['old']:g}, is the one that it has: write the margin before"
            for row in rows
            if entry.get("old") == row["margin"]
        ][:1]
    for claim in paper.sheet["claims"]:
        sides = paper.reported(claim)
        if sides is None or claim["relation"] == "same":
            continue
        effect = abs(_mean(sides[0]) - _mean(sides[1]))
        for table in paper.tables:
            for row in table["rows"]:
                wide = row["margin"] > effect / 2 * (1 + 1e-9) and row["paper"] is not None and _measures(claim, row)
                if wide and not paper.margins_of(table["id"], row):
                    problems.append(
                        f"table {table['id']}, row '{row['label']}': its margin, {row['margin']:g}, is more than half of the effect that "
                        f"the paper reports for claim {claim['id']}, {effect:.3g}: make it smaller, or say why it stays in margins"
                    )
    return problems


def _mean(side: list[tuple[float, float]]) -> float:
    return sum(number for number, _ in side) / len(side)


def _measures(claim: dict, row: dict) -> bool:
    """Whether a row shows what a side of a claim compares, or the accuracy where that is the error."""
    metrics = (row["metric"], row["metric"].replace("accuracy_percent", "error_percent"))
    return any(row["arm"] in (side.get("arms") or ()) and side["metric"] in metrics for side in (claim["left"], claim["right"]))


def _claim_problems(paper) -> list[str]:
    effects = {claim["id"]: claim.get("effect") for claim in paper.sheet["claims"]}
    if effects and not paper.sheet.get("headline"):
        return ["headline: name the one to three claims that stand for the paper"]
    problems = [
        f"headline: there is no claim '{name}'{near(name, effects)}"
        if name not in effects
        else f"claim {name} is in the headline: write its effect, in a few words"
        for name in paper.sheet.get("headline", [])
        if not effects.get(name)
    ]
    units: dict[str, set[str]] = {}
    for row in (row for table in paper.tables for row in table["rows"]):
        units.setdefault(row["metric"], set()).add(row["unit"])
    for where, pair in _pairs(paper):
        metrics = [side["metric"] for side in (pair["left"], pair.get("right") or {}) if "metric" in side]
        left, right = (units.get(metric, set()) for metric in (metrics[0], metrics[-1]))
        if left and right and not left & right:
            problems.append(f"{where} compares '{metrics[0]}', in {min(left)}, with '{metrics[-1]}', in {min(right)}")
    return problems + [
        f"claim {claim['id']} names the arm '{arm}', which does not exist{near(arm, paper.arms)}"
        for claim in paper.sheet["claims"]
        for arm in paper.compared(claim)
        if arm not in paper.arms
    ]


def _finding_problems(paper) -> list[str]:
    """Budgets and arms that do not exist, and placeholders and values that do not fit one another."""
    problems = []
    for finding in paper.sheet.get("findings", []):
        where, budget = f"finding {finding['id']}", finding["budget"]
        if budget not in paper.budgets:
            problems.append(f"{where} names the budget '{budget}', which does not exist{near(budget, paper.budgets)}")
            continue
        if paper.budgets[budget]["scale"] == "demo":
            problems.append(f"{where} is about budget {budget}, whose scale is demo: nothing follows from its records")
            continue
        run = paper.budget_arms(budget)
        for name, value in finding["values"].items():
            for arm in paper.compared(value):
                if arm not in paper.arms:
                    problems.append(f"{where}: {name} names the arm '{arm}', which does not exist{near(arm, paper.arms)}")
                elif arm not in run:
                    problems.append(f"{where}: {name} names the arm '{arm}', which budget {budget} does not run")
        problems += [f"{where}: {problem}" for problem in _placeholder_problems(paper, finding)]
    return problems


def _placeholder_problems(paper, finding: dict) -> list[str]:
    values, used, problems = finding["values"], set(), []
    for text in (finding["text"], finding.get("paper") or "", finding.get("why") or ""):
        try:
            fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            return [f"'{text}' is not a valid template ({error}): write a literal brace twice"]
        for name, how, conversion in fields:
            used.add(name)
            if name not in values:
                problems.append(f"the placeholder '{{{name}}}' has no value{near(name, values)}")
            elif how not in SHOWN or conversion:
                known = ", ".join(filter(None, SHOWN))
                written = name + (f"!{conversion}" if conversion else "") + (f":{how}" if how else "")
                problems.append(f"'{{{written}}}' shows nothing: write {{{name}}}, or one of {known} after a colon")
            elif how == "seeds" and not _bounded(values[name]):
                problems.append(f"'{{{name}:seeds}}' counts seeds within bounds: give {name} 'above' or 'below'")
            elif how == "paper" and paper.reported(values[name]) is None:
                problems.append(f"'{{{name}:paper}}' needs a reported number for every arm and metric of {name}: no table has them all")
    for name, value in values.items():
        if name.isdigit():
            problems.append(f"the value {name} needs a name that is not a number")
        if name not in used and not _bounded(value):
            problems.append(f"nothing shows the value {name}: write {{{name}}} in the text, or give it 'above' or 'below'")
    return problems


def _bounded(value: dict) -> bool:
    return value.get("above") is not None or value.get("below") is not None


def _metric_problems(paper) -> list[str]:
    """Metrics of rows and claims that no trial of the paper measures."""
    measured, version = (getattr(paper.module, name, None) for name in ("METRICS", "VERSION"))
    where, missing = f"{paper.key}/trial.py", []
    if not isinstance(measured, dict):
        missing.append(f"{where} has no dict METRICS: write METRICS = {{name: what it is and its unit}}")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        missing.append(f"{where} has no number VERSION: write VERSION = 1, and raise it when results change")
    if not callable(getattr(paper.module, "prepare", None)):
        missing.append(f"{where} has no function prepare: prepare(trials, context, teacher_weights) returns a kdcore.training.Run")
    if missing:
        return missing
    problems = [
        f"{where}: trial.py does not measure '{metric}'{near(metric, measured)}; its METRICS lists what it does"
        for where, _, metric in used_metrics(paper)
        if metric not in measured
    ]
    if (named := paper.sheet.get("resampled")) and named["values"] not in measured:
        problems.append(
            f"resampled: trial.py does not measure '{named['values']}'{near(named['values'], measured)}; its METRICS lists what it does"
        )
    return list(dict.fromkeys(problems))


def _pairs(paper) -> list[tuple[str, dict]]:
    """(place in the sheet, what it compares) of every claim and every value of a finding."""
    claims = [(f"claim {claim['id']}", claim) for claim in paper.sheet["claims"]]
    findings = paper.sheet.get("findings", [])
    return claims + [(f"finding {finding['id']}", value) for finding in findings for value in finding["values"].values()]


def used_metrics(paper) -> list[tuple[str, str | None, str]]:
    """(place in the sheet, arm, metric) of every row and of every side of a claim or a finding."""
    rows = [(f"table {table['id']}, row '{row['label']}'", row["arm"], row["metric"]) for table in paper.tables for row in table["rows"]]
    return rows + [
        (where, arm, side["metric"])
        for where, pair in _pairs(paper)
        for side in (pair["left"], pair.get("right") or {})
        for arm in side.get("arms") or []
    ]
