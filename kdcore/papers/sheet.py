"""What a paper's sheet holds, as pydantic models, and what its parts must have to do with each other.

Only ``Paper`` imports it, and does without where there is no pydantic: a machine that trains needs none. The sheet that the code
uses stays the plain dict; here it is only read. A problem is one sentence: the place in the sheet, and what to write there.
"""

import contextlib
import difflib
import fnmatch
import functools
import re
import string
from typing import Annotated, Any, Literal
from unittest import mock

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdcore import data, validation
from kdcore.errors import KdcoreError

MOST_COMBINATIONS = 10_000  # rows or arms that one sweep may stand for
MOST_LAYERS = 10_000  # any number in the name of a network

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # of a file
Metric = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mark = Literal["V", "C", "I", "M", "M?", "?"]
Sweep = Annotated[dict[Text, Annotated[list[str | float], Field(min_length=1)]], Field(min_length=1)]
Seeds = Annotated[int, Field(ge=1, le=validation.MOST_SEEDS)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Fact(Model):
    """One line of the protocol: what the paper says, what we do, and how sure that is (the marks stand on top of each sheet)."""

    what: Text
    paper: Text
    ours: Text
    mark: Mark
    source: Text


class Deviation(Model):
    what: Text
    paper: Text | Number
    ours: Text | Number
    why: Text


class Config(BaseModel):
    """Every parameter of an arm with its value at budget paper; what else there is, is the paper's own. teacher: an arm."""

    model_config = ConfigDict(extra="allow", strict=True)
    data: Text | None
    teacher: Text | None
    is_teacher: bool | Literal["derived"] = False
    teacher_network: Text | None = None

    @field_validator("is_teacher", mode="before")
    @classmethod
    def _derived(cls, value):
        if value != "derived" and not isinstance(value, bool):
            raise ValueError(f"write derived (or true, or false), not {validation.shown(value)}")
        return value


class Augmentation(Model):
    pad: Annotated[int, Field(ge=0)] = 0
    border: Literal["zero", "reflect"] | None = None
    flip: bool = False


class Moments(Model):
    """Of the channels, in units of 0..1."""

    mean: Annotated[list[Number], Field(min_length=1)]
    std: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]


class Ramp(Model):
    """From one value to another while the share of a stage that is over goes through the span."""

    start: Annotated[Number, Field(alias="from")]
    to: Number
    span: Annotated[list[Number], Field(min_length=2, max_length=2)]
    geometric: bool = False


class Rates(Model):
    """lr[i] until step until[i]."""

    lr: Annotated[list[Amount], Field(min_length=1)]
    until: Annotated[list[Amount], Field(min_length=1)]

    @model_validator(mode="after")
    def _as_many(self):
        if len(self.lr) != len(self.until) or self.until != sorted(self.until):
            raise ValueError("it needs as many rates as ends, and rising ends")
        return self


class Budget(Model):
    """about, time: shown to readers. only: patterns of the arms that it runs, all by default. arms: overrides by pattern."""

    about: Text
    comparable: bool = True
    time: Text
    seeds: Seeds
    only: Annotated[list[Text], Field(min_length=1)] = ["*"]
    config: dict[Text, Any] = {}
    arms: dict[Text, dict[Text, Any]] = {}


class Row(Model):
    """paper: the reported number, null where there is none, a list for a sweep. arm: null for a number that is quoted from others."""

    label: Text
    arm: Text | None
    sweep: Sweep | None = None
    paper: Number | None | list[Number | None]
    reference: Number | None | list[Number | None] = None
    std: Amount | None = None
    mark: Mark | None = None
    metric: Metric | None = None
    margin: Amount | None = None
    unit: Text | None = None


class Table(Model):
    id: Name
    title: Text
    number: int | Text | None = None
    source: Text
    reference: Text | None = None
    unit: Text
    metric: Metric
    margin: Amount
    curves: bool = True
    rows: Annotated[list[Row], Field(min_length=1)]


class Side(Model):
    """Of a claim: the mean of a metric over arms, or a constant value."""

    arms: Annotated[list[Text], Field(min_length=1)] | None = None
    metric: Metric | None = None
    value: Number | None = None

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.value is None) == (self.arms is None) or (self.arms is None) != (self.metric is None):
            raise ValueError("write {arms: [...], metric: ...} or {value: ...}")
        if self.arms and len(set(self.arms)) < len(self.arms):
            raise ValueError("it names an arm twice")
        return self


class Claim(Model):
    """relation "<": left is smaller; "same": they differ by less than margin."""

    id: Name
    text: Text
    source: Text
    left: Side
    relation: Literal["<", "same"]
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    right: Side

    @model_validator(mode="after")
    def _margin(self):
        if (self.relation == "same") != (self.margin is not None):
            raise ValueError("it needs the relation '<', or 'same' with a margin")
        if self.left.arms is None and self.right.arms is None:
            raise ValueError("it compares two constants: name the arms of a side")
        return self


class Size(Model):
    """A network of the first table: its size as the paper prints it, and as it is."""

    row: Text
    layers: Text
    parameters_printed: Annotated[Text, Field(alias="parameters printed")]
    parameters: Amount
    hidden_units_printed: Annotated[Text, Field(alias="hidden units printed")]
    hidden_units: Annotated[Amount, Field(alias="hidden units")]
    note: Text


class Sheet(Model):
    """sizes: one for each row of the first table, for the paper's own figure. runs: how many runs the paper's means and standard
    deviations are of."""

    title: Text
    authors: Text
    year: Annotated[int, Field(ge=1900, le=2100)]
    citation: Text
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    short: Text
    question: Text
    protocol: Annotated[list[Fact], Field(min_length=1)]
    sizes: list[Size] | None = None
    bfloat16: bool
    config: Config
    arms: Annotated[dict[Text, dict[Text, Any]], Field(min_length=1)]
    budgets: Annotated[dict[Literal["smoke", "laptop", "fast", "paper"], Budget], Field(min_length=1)]
    runs: Annotated[int, Field(ge=2)] | None = None
    tables: Annotated[list[Table], Field(min_length=1)]
    claims: list[Claim]
    deviations: list[Deviation]


DERIVABLE = {"is_teacher", "teacher_network"}  # what ``Paper.resolved`` finds out where config says ``derived``
SHAPES = {"augmentation": Augmentation, "normalisation": Moments}
KEYS = sorted({field.alias or name for model in Model.__subclasses__() for name, field in model.model_fields.items()})


def structure_problems(sheet: dict) -> list[str]:
    """Keys that are missing or unknown, and values of a wrong type or range; then templates that cannot be filled in."""
    try:
        Sheet.model_validate(sheet)
    except ValidationError as error:
        found: dict[str, str] = {}
        # an unknown key first, for a missing one beside it is its correction; where one of several types fits, the first says enough
        for each in sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"):
            found.setdefault(_place(sheet, each["loc"]) if each["type"] != "missing" else str(each["loc"]), _sentence(sheet, each))
        return list(found.values())
    problems = [problem for name, settings in sheet["arms"].items() for problem in _arm_problems(name, settings)]
    for table in sheet["tables"]:
        for row in table["rows"]:
            where, sweep = f"{_place(sheet, ('tables',))} '{table['id']}', row '{row['label']}'", row.get("sweep") or {}
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
    found = structure_problems(paper.sheet)
    return found or [*_budget_problems(paper), *_table_problems(paper), *_claim_problems(paper), *_metric_problems(paper)]


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
        return [_sentence(config, each) for each in error.errors(include_url=False)]
    for key, value in config.items():
        if key not in DERIVABLE and (problem := _unlike(paper.sheet["config"][key], value)):
            found.append(f"{key} must be {problem}, not {validation.shown(value)}")
        if isinstance(value, dict) and (shape := _shape(key, value)):
            try:
                shape.model_validate(value)
            except ValidationError as error:
                found += [f"{key}: {_sentence(value, each)}" for each in error.errors(include_url=False)]
            else:
                if shape is Rates and budget != "smoke":  # whose few steps need not have them all
                    found += [f"{key}: {problem}" for problem in _unused_rates(value, config.get("scale", 1))]
    try:
        data.fingerprint(config["data"])
    except KdcoreError as error:
        found.append(f"data: {error}")
    if not isinstance(config.get("network"), str | None):
        found.append(f"network must be a text, not {validation.shown(config['network'])}")
    if (teacher := config["teacher"]) is None:
        return found
    if teacher not in paper.arms:
        return [*found, f"its teacher '{teacher}' is no arm{_near(teacher, paper.arms)}"]
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
    return Ramp if {"from", "to", "span"} & set(value) else Rates if {"lr", "until"} <= set(value) else None


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
                paper.module.cohort(configs[arm])
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
                found.append(f"{where} names the arm '{row['arm']}', which is not there{_near(row['arm'], paper.arms)}")
            if row["paper"] is not None and row.get("mark") is None:
                found.append(f"{where}: the reported number has no mark")
            if "reference" in row and "reference" not in table:
                found.append(f"table {table['id']} does not say whose number the reference of '{row['label']}' is")
            if row.get("std") is not None and row["paper"] is None:
                found.append(f"{where}: a standard deviation without a number")
    return found


def _claim_problems(paper) -> list[str]:
    return [
        f"claim {claim['id']} names the arm '{arm}', which is not there{_near(arm, paper.arms)}"
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
        f"{where}: trial.py measures no '{metric}'{_near(metric, measured)}; its METRICS lists what it does"
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


def _near(name: str, choices) -> str:
    near = difflib.get_close_matches(name, list(choices), 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


# -- sentences ------------------------------------------------------------------------------------------------------


WORDS = {
    "Input should be": "it must be",
    "valid string": "text",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid": "a",
    "String should": "it must",
    "have at least 1 item": "not be empty",
}


def _sentence(sheet: dict, error: dict) -> str:
    """A pydantic error as a sentence: the place, in the sheet's own names, and what to write."""
    place, kind, given = error["loc"], error["type"], error["input"]
    if kind == "missing":
        where = _place(sheet, place[:-1])
        return f"{where}: '{place[-1]}' is missing" if where else f"the section '{place[-1]}' is missing"
    if kind == "extra_forbidden":
        where = _place(sheet, place[:-1])
        return f"{where}{': ' if where else ''}'{place[-1]}' is no key of it{_near(str(place[-1]), KEYS)}"
    words = error["msg"].removeprefix("Value error, ")
    where = _place(sheet, place)
    if kind == "value_error":
        return f"{where}: {words}"
    if place[-1] == "[key]":
        return f"{_place(sheet, place[:-2])}: '{place[-2]}' is no name there: {words}"
    if kind == "literal_error":
        words = f"write one of {error['ctx']['expected']}"
    else:
        for theirs, ours in WORDS.items():
            words = words.replace(theirs, ours)
        words = re.sub(r"dictionary( or instance of \w+)?", "mapping", words)
    return f"{where} {validation.shown(given)}: {words}"


def _place(sheet: dict, place: tuple) -> str:
    """("tables", 0, "rows", 2, "margin") -> "tables 'errors', rows 'small', margin"."""
    words, here = [], sheet
    for step in place:
        here = here[step] if _holds(here, step) else None
        if isinstance(step, int):
            name = next((here[key] for key in ("id", "label", "what") if isinstance(here, dict) and isinstance(here.get(key), str)), None)
            words[-1:] = [f"{words[-1]} {validation.shown(name) if name else f'[{step}]'}" if words else f"[{step}]"]
        elif here is not None or not _branch(step):  # a branch of a union is pydantic's, not the sheet's
            words.append(str(step))
    return ", ".join(words)


def _holds(here, step) -> bool:
    return (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int) and step < len(here))


def _branch(step) -> bool:
    return step in ("int", "float", "str", "constrained-str", "[key]") or "[" in str(step) or "(" in str(step)
