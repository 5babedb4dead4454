"""Tables and claims as CSV, Markdown and HTML."""

import csv
import functools
import io
import math
from pathlib import Path

import jinja2
import pandas as pd

from kdcore.report import select, words

MARKS = {"M?": "from memory, with low confidence", "?": "no source states it"}  # marks of numbers that get no verdict


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV: six significant digits, empty cells for missing numbers, seeds as "0:146 1:139", and a last column, mixed:
    the seeds whose student and teacher ran on different processors."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    claims = frame.attrs["kind"] == "claims"  # which have that column already
    writer.writerow(["budget", *frame.columns, *(() if claims else ("mixed",))])
    for row in select.rows(frame):
        mixed = () if claims else (_csv_cell(select.mixed_seeds(row)),)
        writer.writerow([frame.attrs["budget"], *map(_csv_cell, row.values()), *mixed])
    return out.getvalue()


def to_markdown(frame: pd.DataFrame) -> str:
    """A table as Markdown: title, budget, numbers, device and hours, and which seeds mix processors."""
    about = frame.attrs
    title, source, budget, what = (
        words.markdown(text) for text in (f"{about['short']}: {about['title']}", words.source(about), about["budget"], about["about"])
    )
    scale, compared = words.SCALES[about["scale"]], words.COMPARISON[about["scale"]]
    lines = [f"# {title}", "", f"{source}{' ' if source else ''}Budget **{budget}** ({scale}): {what}. {compared}".rstrip(), ""]
    return "\n".join([*lines, body(frame), ""])


def body(frame: pd.DataFrame) -> str:
    """What ``to_markdown`` has under the title: what was trained, the numbers, their cost, and notes."""
    about = frame.attrs
    numbers = _claims_table(frame) if about["kind"] == "claims" else _numbers_table(frame)
    blocks = [words.markdown(each) for each in (words.cost(about), marks_note(select.rows(frame)), words.corrected(about))]
    blocks = [words.markdown(words.trained(about)), numbers, *blocks]
    name = "text" if about["kind"] == "claims" else "label"
    pairs = [
        f"{row[name].rstrip('.')} (seed{'s' * (len(seeds) > 1)} {words.listed(seeds)})"
        for row in select.rows(frame)
        if (seeds := select.mixed_seeds(row))
    ]
    blocks += [words.markdown(f"Student and teacher ran on different processors: {'; '.join(pairs)}.")] if pairs else []
    if notes := words.notes(about):
        blocks += ["<details><summary>Earlier margins and tests</summary>", *map(words.markdown, notes), "</details>"]
    return "\n\n".join(filter(None, blocks))


def to_html(frame: pd.DataFrame) -> str:
    """Any frame of the report as HTML for a notebook, with its style sheet and verdicts as badges."""
    kind = frame.attrs["kind"]
    template = environment().get_template("tables.html.j2")
    return template.render(rows=select.rows(frame), about=frame.attrs, kind=kind)


@functools.cache
def environment() -> jinja2.Environment:
    """The Jinja environment for this folder's templates, with functions that format numbers. All output is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: words.plain(value) if type(value) is str else value,
    )
    templates.globals |= {
        "words": words,
        "mixed_seeds": select.mixed_seeds,
        "marks_note": marks_note,
        "doubt": select.doubt,
        "compared": select.COMPARED,
    }
    return templates


def marks_note(rows: list[dict]) -> str:
    """A sentence that explains the doubtful marks in a table; "" if there are none."""
    marks = dict.fromkeys(select.doubt(row) for row in rows if "mark" in row and not math.isnan(row["paper"]))
    known = [f"[{mark}]: {MARKS[mark]}" for mark in marks if mark]
    return f"{'; '.join(known)}; such a number gets no verdict." if known else ""


def _numbers_table(frame: pd.DataFrame) -> str:
    others = [frame.attrs["reference"]] if frame.attrs["reference"] else []
    header = ["row", "paper", *others, "ours [95 % interval]", "n", "difference", "margin", "verdict", "unit"]
    rows = [
        [
            row["label"],
            words.reported(row["paper"], row.get("std"), select.doubt(row)),
            *(words.reported(row["reference"]) for _ in others),
            words.estimate(row["ours"], row["low"], row["high"]),
            words.of_planned(row["n"], row["planned"]),
            words.difference(row["difference"], row["ours"], row["low"], row["high"]),
            words.reported(row["margin"]) if frame.attrs["scale"] in select.COMPARED and not math.isnan(row["paper"]) else "",
            row["verdict"],
            row["unit"],
        ]
        for row in select.rows(frame)
    ]
    return words.markdown_table(header, rows)


def _claims_table(frame: pd.DataFrame) -> str:
    rows = select.rows(frame)
    own, tested = words.known(rows, "reported"), words.known(rows, "reported_p")
    header = ["claim", "left", "right", "left - right", "level", "n", "p (Holm)", "verdict"]
    header += [*(["the paper's own left - right"] if own else []), *(["p"] if tested else [])]
    table = [
        [
            row["text"],
            words.number(row["left"]),
            words.number(row["right"]),
            words.estimate(row["difference"], row["low"], row["high"], signed=True),
            words.level(row["level"]) if row["n"] > 1 else "",
            words.of_planned(row["n"], row["planned"]),
            words.p_value(row["p"]),
            row["verdict"],
        ]
        for row in rows
    ]
    if own:
        for cells, row in zip(table, rows, strict=True):
            interval = words.estimate(row["reported"], row["reported_low"], row["reported_high"], signed=True)
            cells += [interval, *([words.p_value(row["reported_p"])] if tested else [])]
    return words.markdown_table(header, table)


def _csv_cell(value) -> str:
    if isinstance(value, list):
        return " ".join(f"{each['seed']}:{_csv_cell(each['value'])}" if isinstance(each, dict) else str(each) for each in value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value + 0.0:.6g}"  # no sign on a zero
    return words.plain(value)
