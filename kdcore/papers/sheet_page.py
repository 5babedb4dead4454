"""``docs/sheet.md`` and ``kdcore/papers/sheet.schema.json``, made of the models in ``papers.sheet``.

python -m kdcore.papers.sheet_page    # writes both anew; kdcore check says when they are not up to date
"""

import itertools
import json
from pathlib import Path

from pydantic import BaseModel

from kdcore import papers, paths, validation
from kdcore.papers import sheet

COMMAND = "python -m kdcore.papers.sheet_page"
EDITORS = "# yaml-language-server: $schema=../sheet.schema.json"  # the first line of every sheet

# heading, models, and an example: (paper, section, what its entry begins with)
PARTS = [
    ("The whole", [sheet.Sheet], None),
    ("protocol", [sheet.Fact], ("fsp", "protocol", "- what: batch size")),
    ("equations", [sheet.Equation], ("fsp", "equations", "- what: FSP loss")),
    ("config", [sheet.Config, sheet.Augmentation, sheet.Moments, sheet.Rates, sheet.Ramp], ("fsp", "config", "")),
    ("arms", [], ("hinton_mnist", "arms", '"{width} units')),
    ("budgets", [sheet.Budget], ("hinton_mnist", "budgets", "laptop")),
    ("tables", [sheet.Table, sheet.Row], ("hinton_mnist", "tables", "- id: errors")),
    ("claims", [sheet.Claim, sheet.Side], ("hinton_mnist", "claims", "- id: high_t_alike")),
    ("deviations", [sheet.Deviation], ("hinton_mnist", "deviations", "- what: hard weight")),
    ("sizes", [sheet.Size], None),
]

INTRODUCTION = f"""\
<!-- Made of the models in kdcore/papers/sheet.py by `{COMMAND}`. Change them, not this page. -->

# A paper's sheet

`kdcore/papers/KEY/sheet.yaml` holds everything that is known of a paper and everything that we run for it: its protocol
beside ours, each way to train a model, budgets, reported numbers, claims, and where we depart from it. Tables, claims and
notebooks follow from it and from the records.

It is checked whenever a paper is opened, so before anything trains: a key that is missing, unknown or misspelt, a value of the
wrong type or out of range, an arm, data set, network or metric that does not exist, a learning rate that is never used. `kdcore
check` lists all problems of all sheets, one sentence each. Editors with the
[YAML language server](https://github.com/redhat-developer/yaml-language-server) complete and check as you type: the first line
of a sheet is `{EDITORS}`.

`{COMMAND}` makes this page and the schema anew; `kdcore check` says when they are not up to date.

What is written once is not repeated: `is_teacher` and `teacher_network` are `derived`, a row takes its table's `metric`, `unit`,
`margin` and `mark`, a sweep stands for many arms, and an anchor (`&name`, `*name`, `<<: *name`) for settings that are merely equal.

The configuration of a trial is `config`, then what its arm sets, then what its budget sets for all arms, then what the budget sets for
patterns that match the arm, each over what came before. All of it is part of the trial's id: whoever changes a value makes new trials.
"""

ARMS = """\
From the name of an arm to the parameters that it sets otherwise than `config`, where every parameter must stand. With a `sweep`, an
arm stands for one of each combination of its variables: `{variable}` in the name and in the settings is filled in, and a setting
that is `"{variable}"` alone becomes the value itself, a number for a number. Names of arms in a budget may be patterns as in a
shell: `*`, `?`, `[...]`.
"""

MARKS = """\
How sure a fact or a reported number is. A number that is not verified is shown with its mark.

| mark | meaning |
| --- | --- |
"""


def pages() -> dict[Path, str]:
    """{path from the root of the repository: what should stand there}."""
    schema = sheet.Sheet.model_json_schema()
    schema["$comment"] = f"Made by {COMMAND}"
    return {
        Path("docs/sheet.md"): _page(schema),
        Path("kdcore/papers/sheet.schema.json"): json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
    }


def outdated(root: Path) -> list[str]:
    """A sentence for each page that is missing or not what the models say, and each sheet without the line for editors."""
    problems = []
    for path, text in pages().items():
        there = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else None
        if there != text:
            problems.append(f"{path} is {'missing' if there is None else 'not up to date'}: run {COMMAND}")
    for key in papers.names():
        with open(papers.HERE / key / "sheet.yaml", encoding="utf-8") as file:
            if file.readline().rstrip() != EDITORS:
                problems.append(f"{key}/sheet.yaml: its first line must be {EDITORS}")
    return problems


def write(root: Path) -> None:
    for path, text in pages().items():
        (root / path).parent.mkdir(exist_ok=True)
        paths.write_text(root / path, text)


def _page(schema: dict) -> str:
    parts = [INTRODUCTION]
    for heading, models, example in PARTS:
        parts.append(f"## {heading}\n")
        if heading == "arms":
            parts.append(ARMS)
        for number, model in enumerate(models):
            if number:
                parts.append(f"### {_heading(model)}\n")
            parts += [_docstring(model), _keys(model, schema)]
        if example:
            parts.append(f"From `{example[0]}`:\n\n```yaml\n{_example(*example)}\n```\n")
    marks = "".join(f"| `{mark}` | {meaning} |\n" for mark, meaning in sheet.MARKS.items())
    return "\n".join([*parts, "## Marks\n", MARKS + marks])


def _heading(model: type[BaseModel]) -> str:
    """A model as an entry of its section: "Row", or the key that holds it."""
    keys = {shape: key for key, shape in sheet.SHAPES.items()}
    return f"{keys[model]} (in several papers)" if model in keys else model.__name__


def _docstring(model: type[BaseModel]) -> str:
    return " ".join(model.__doc__.replace("``", "`").split()) + "\n"


def _keys(model: type[BaseModel], schema: dict) -> str:
    """The table of a model's keys."""
    own = schema if model is sheet.Sheet else schema["$defs"].get(model.__name__) or model.model_json_schema()
    lines = ["| key | value | |", "| --- | --- | --- |"]
    for field in model.model_fields.values():
        name = field.alias or next(key for key, each in model.model_fields.items() if each is field)
        what = " ".join((field.description or "").replace("``", "`").split())
        value = _words(own["properties"][name], schema)
        if not field.is_required():
            value = value.removesuffix(" or null") + ", optional"
        lines.append(f"| `{name}` | {value} | {what} |")
    return "\n".join(lines) + "\n"


def _words(entry: dict, schema: dict) -> str:
    """A JSON schema's type in a word or two."""
    if "anyOf" in entry:
        words = list(dict.fromkeys(_words(each, schema) for each in entry["anyOf"]))
        return " or ".join(sorted(words, key=lambda word: word == "null"))
    if "$ref" in entry:
        return f"a {entry['$ref'].rpartition('/')[2]}"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{each}`" for each in entry.get("enum", [entry.get("const")]))
    kind = entry.get("type")
    if kind == "array":
        return f"list of {_words(entry['items'], schema).removeprefix('a ').replace(' or null', '')}s"
    return {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping"}.get(kind, kind)


def _example(key: str, section: str, start: str) -> str:
    """The raw text of an entry of a section: its lines until the next one of the same depth; the whole section for no ``start``."""
    text = (papers.HERE / key / "sheet.yaml").read_text(encoding="utf-8").split("\n")
    first = text.index(f"{section}:")
    lines = list(itertools.takewhile(lambda line: line[:1] in ("", " "), text[first + 1 :]))
    if start:
        first = next(number for number, line in enumerate(lines) if line.startswith(f"  {start}"))
        rest = [number for number in range(first + 1, len(lines)) if lines[number][:3].strip()]
        lines = lines[first : rest[0] if rest else None]
    return "\n".join([f"{section}:", *lines]).rstrip()


if __name__ == "__main__":
    write(validation.checkout())
