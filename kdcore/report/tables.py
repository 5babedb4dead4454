"""Records and reported numbers, joined into tables. Every function meets a paper only through its sheet.

A table is a DataFrame; what belongs to all of it (title, source, budget, device, hours) is in its ``attrs``. It holds
the numbers of one budget, never of two.
"""

import csv
import functools
import io
import math
import re
import shlex
from functools import cached_property
from pathlib import Path

import jinja2
import pandas as pd

from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.report import statistics
from kdcore.trials.store import Store

# and, which are none: "no number" in the paper; "quoted", a number of others' work or of data that is not public
VERDICTS = ("reproduced", "above", "below", "inconclusive", "not run", "not comparable")
CLAIM_VERDICTS = ("holds", "contradicted", "inconclusive", "not run", "not comparable")
HEADLINE_ROWS = 6


# -- which records count --------------------------------------------------------------------------------------------


def current(paper, records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Records split into (current, stale): stale is what the paper's yaml or code no longer asks for in this form."""

    def asked_for(record: dict) -> bool:
        try:
            return paper.trial(record["budget"], record["arm"], record["seed"]).id == record["id"]
        except KdcoreError:  # an arm or budget that is gone
            return False

    kept = [asked_for(record) for record in records]
    return [r for r, k in zip(records, kept, strict=True) if k], [r for r, k in zip(records, kept, strict=True) if not k]


def results(paper, records: list[dict], budget: str) -> list[dict]:
    """The records that may stand in a table of ``budget``: current and done, in the order of the sheet's arms and seed."""
    paper.budget(budget)  # says which budgets there are
    order = {arm: number for number, arm in enumerate(paper.arms)}
    found, _ = current(paper, [record for record in records if record["budget"] == budget])
    return sorted((r for r in found if r["status"] == "done"), key=lambda record: (order[record["arm"]], record["seed"]))


def of_arms(records: list[dict]) -> dict[str, list[dict]]:
    """{arm: its records}, in the order in which they come."""
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(record["arm"], []).append(record)
    return found


def find(paper, table: dict | str) -> dict:
    """A table of the paper's sheet by its id. Raises KdcoreError for an unknown one."""
    if isinstance(table, dict):
        return table
    for found in paper.tables:
        if found["id"] == table:
            return found
    raise KdcoreError(f"{paper.key} has no table '{table}': choose one of {', '.join(t['id'] for t in paper.tables)}")


def tables_of(paper, budget: str) -> list[dict]:
    """The paper's tables that have a row which ``budget`` runs."""
    arms = set(paper.budget_arms(budget))
    return [table for table in paper.tables if any(row["arm"] in arms for row in table["rows"])]


def measured(record: dict, metric: str) -> float:
    """A record's metric. Raises KdcoreError where the record has no such number."""
    value = record["metrics"].get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KdcoreError(
            f"the records of {record['paper']} / {record['arm']} have no number '{metric}': correct it in {record['paper']}/sheet.yaml"
        )
    return value


def ran_on(record: dict) -> str:
    """The name of the processor, or GPU, that a trial ran on."""
    device, where = record["cost"]["device"], record["environment"]
    return device if device == where.get("gpu") else where.get("processor") or device


def mixed(record: dict, records: dict[str, dict]) -> str:
    """Where teacher and student of a record ran on different processors, which: "teacher on A, student on B"; else "".

    records: those of the paper by their id. Seeds are comparable across arms on one processor: another one rounds differently, and a
    chain of training steps makes that a difference of as much as another seed's.
    """
    teacher = record["environment"].get("teacher_processor")
    if teacher is None and record["teacher"] in records:
        teacher = ran_on(records[record["teacher"]])
    return "" if teacher in (None, ran_on(record)) else f"teacher on {teacher}, student on {ran_on(record)}"


# -- tables ---------------------------------------------------------------------------------------------------------


def table(paper, table: dict | str, records: list[dict], budget: str) -> pd.DataFrame:
    """One table of the paper at one budget, a row for each of the sheet's rows.

    table: an entry of ``paper.tables``, or its id. records: any of the paper's; what is of another budget, failed or
    stale is left out. Columns: label, arm, metric, mark; paper (the reported number, nan where there is none), reference
    (the same, of whom the table's ``reference`` names; only in such a table), ours (mean over seeds), low, high (95 %
    t-interval), n, difference (ours - paper), margin, all in ``unit``; verdict
    (``statistics.cell_verdict``, "quoted" for a row without an arm, "not comparable" at a budget that says so); hours (wall time of
    these records' trials, one process each) and cpu_hours (CPU time of all their threads, nan where a record has none); device;
    seeds ([{seed, value, id, seconds, cpu_seconds (None where there is none), mixed}], id being the record's, mixed as ``mixed``
    says). Where a row of the sheet has ``std``, the standard deviation of the reported number, it is a column behind paper.
    A row that neither the paper has a number for nor the budget an arm is left out.
    Raises KdcoreError for an unknown table, budget or metric.
    """
    sheet = find(paper, table)
    done, by_id = results(paper, records, budget), {record["id"]: record for record in records}
    by_arm = of_arms(done)
    comparable = paper.budget(budget).get("comparable", True)
    runs, rows = {None, *paper.budget_arms(budget)}, []
    shown = [row for row in sheet["rows"] if row["paper"] is not None or row["arm"] in runs] or sheet["rows"]
    for row in shown:
        found = by_arm.get(row["arm"], [])
        values = [measured(record, row["metric"]) for record in found]
        mean, low, high = statistics.mean_interval(values)
        verdict = statistics.cell_verdict(values, row["paper"], row["margin"]) if row["arm"] is not None else "quoted"
        rows.append(
            {
                "label": row["label"],
                "paper": _float(row["paper"]),
                **({"reference": _float(row.get("reference"))} if "reference" in sheet else {}),
                "ours": mean,
                "low": low,
                "high": high,
                "n": len(values),
                "difference": mean - _float(row["paper"]) if comparable else math.nan,
                "margin": _float(row["margin"]),
                "verdict": verdict if comparable or verdict in ("not run", "quoted") else "not comparable",
                "unit": row["unit"],
                "hours": _hours(found),
                "cpu_hours": _cpu_hours(found),
                "device": _devices(found),
                "arm": row["arm"] or "",
                "metric": row["metric"],
                "mark": row.get("mark", ""),
                "seeds": [
                    {
                        "seed": r["seed"],
                        "value": v,
                        "id": r["id"],
                        "seconds": r["cost"]["seconds"],
                        "cpu_seconds": r["cost"].get("cpu_seconds"),
                        "mixed": mixed(r, by_id),
                    }
                    for r, v in zip(found, values, strict=True)
                ],
            }
        )
    frame = pd.DataFrame(rows)
    if any("std" in row for row in shown):
        frame.insert(2, "std", [_float(row.get("std")) for row in shown])
    arms = set(frame["arm"])
    frame.attrs = _attrs(paper, budget, [record for record in done if record["arm"] in arms]) | {
        "kind": "table",
        "id": sheet["id"],
        "title": sheet["title"],
        "number": sheet.get("number"),
        "source": sheet["source"],
        "reference": sheet.get("reference"),
    }
    return frame


def claims(paper, records: list[dict], budget: str) -> pd.DataFrame:
    """The paper's claims at one budget, a row each.

    A side is, seed by seed, the mean of a metric over its arms (seeds that lack one of them do not count), or a
    constant. Columns: id, text, source, relation, margin; left, right (means over the shared seeds), difference with
    low, high (left - right; 95 % interval, for "same" 90 %), n (seeds), p (adjusted by Holm over the paper's claims
    that could be tested), p_alone, verdict, left_side, right_side (what was compared, in words), mixed (the seeds of which a student
    and its teacher ran on different processors). Where the sheet says of how
    many ``runs`` its reported means and standard deviations are: reported, reported_low, reported_high, reported_p, the same of
    the paper's own numbers (``statistics.reported_test``, not adjusted), nan where it has none for a side.
    """
    done, by_id = results(paper, records, budget), {record["id"]: record for record in records}
    comparable = paper.budget(budget).get("comparable", True)
    strangers = {(record["arm"], record["seed"]) for record in done if mixed(record, by_id)}
    rows = []
    for claim in paper.sheet.get("claims", []):
        arms = [arm for side in ("left", "right") for arm in claim[side].get("arms", ())]
        sides = [_by_seed(done, claim[side]) for side in ("left", "right")]
        seeds = sorted(set.intersection(*(set(side) for side in sides if side is not None)))
        left, right = (
            [side[s] if side is not None else claim[name]["value"] for s in seeds]
            for side, name in zip(sides, ("left", "right"), strict=True)
        )
        test = statistics.claim_test(left, right, claim["relation"], claim.get("margin"))
        rows.append(
            {
                "id": claim["id"],
                "text": claim["text"],
                "source": claim["source"],
                "relation": claim["relation"],
                "margin": _float(claim.get("margin")),
                "left": statistics.mean_interval(left)[0],
                "right": statistics.mean_interval(right)[0],
                "difference": test["mean"],
                "low": test["low"],
                "high": test["high"],
                "n": test["n"],
                "p_alone": test["p"],
                "left_side": _side(claim["left"]),
                "right_side": _side(claim["right"]),
                "mixed": [seed for seed in seeds if any((arm, seed) in strangers for arm in arms)],
                "sides": (left, right),
                **_reported_claim(paper, claim),
            }
        )
    for row, p in zip(rows, statistics.holm(row["p_alone"] for row in rows), strict=True):
        left, right = row.pop("sides")
        row["p"] = p
        verdict = statistics.claim_verdict(left, right, row["relation"], p, None if math.isnan(row["margin"]) else row["margin"])
        row["verdict"] = verdict if comparable or verdict == "not run" else "not comparable"
    columns = [
        "id", "text", "left", "right", "relation", "margin", "difference", "low", "high", "n", "p", "p_alone", "verdict", "left_side",
        "right_side", "source", "mixed", *(("reported", "reported_low", "reported_high", "reported_p") if "runs" in paper.sheet else ()),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = _attrs(paper, budget, done) | {"kind": "claims", "id": "claims", "title": "Claims", "number": None, "source": ""}
    return frame


def budget_table(paper, budget: str) -> pd.DataFrame:
    """What ``budget`` changes against budget "paper": parameter, paper (its value there), here, arms (which, in words).

    A row for each group of arms with the same change; no row for the budget "paper" itself.
    """
    arms = paper.budget_arms(budget)
    changes: dict = {}
    if "paper" in paper.budgets and budget != "paper":
        for arm in arms:
            there = paper.config("paper", arm) | {"seeds": paper.seeds("paper", arm)}
            here = paper.config(budget, arm) | {"seeds": paper.seeds(budget, arm)}
            for parameter in there:
                if there[parameter] != here[parameter]:
                    key = (parameter, _words(there[parameter]), _words(here[parameter]))
                    changes.setdefault(key, []).append(arm)
    order = {parameter: number for number, parameter in enumerate(["seeds", *paper.sheet["config"]])}
    rows = [
        {"parameter": parameter, "paper": there, "here": here, "arms": _named(paper, group, arms)}
        for (parameter, there, here), group in sorted(changes.items(), key=lambda item: order[item[0][0]])
    ]
    if left_out := [arm for arm in paper.arms if arm not in arms]:
        rows.append({"parameter": "arms left out", "paper": "run", "here": "not run", "arms": _named(paper, left_out, list(paper.arms))})
    frame = pd.DataFrame(rows, columns=["parameter", "paper", "here", "arms"])
    frame.attrs = _attrs(paper, budget, []) | {
        "kind": "budget",
        "id": "budget",
        "title": "What this budget changes",
        "number": None,
        "source": "",
    }
    return frame


def facts(paper, part: str) -> pd.DataFrame:
    """A list of the sheet as it stands there: part "protocol" (what the paper says, what we do) or "deviations"."""
    headings = {"protocol": {"paper": "paper says", "ours": "we use"}}.get(part, {})
    frame = pd.DataFrame(paper.sheet[part]).fillna("").rename(columns=headings)
    frame = frame.map(lambda value: fixed(value, 0) if isinstance(value, int) and not isinstance(value, bool) else value)
    frame.attrs = {"kind": "facts"}
    return frame


class Findings:
    """What follows from one paper's records, each table made once for all that show it: files, figures, page and scoreboard.

    records: any of the paper's.
    """

    def __init__(self, paper, records: list[dict]):
        self.paper, self.records = paper, records
        self._frames: dict[str, list[pd.DataFrame]] = {}

    @cached_property
    def budgets(self) -> list[str]:
        """The budgets that have results, in the order of the sheet."""
        return budgets(self.paper, self.records)

    def frames(self, budget: str) -> list[pd.DataFrame]:
        """Every table of the sheet at a budget, and last the claims."""
        if budget not in self._frames:
            made = [table(self.paper, each, self.records, budget) for each in self.paper.tables]
            self._frames[budget] = [*made, claims(self.paper, self.records, budget)]
        return self._frames[budget]

    def shown(self, budget: str) -> list[pd.DataFrame]:
        """Those with a row that the budget runs, and the claims."""
        ids = {each["id"] for each in tables_of(self.paper, budget)} | {"claims"}
        return [frame for frame in self.frames(budget) if frame.attrs["id"] in ids]


def scoreboard(found: list) -> pd.DataFrame:
    """A row for each paper and budget that has current records, the smoke budget left out.

    found: ``Findings``, or (paper, records) pairs. Columns: paper, key, budget, headline (the rows of the first table with results,
    one a line), claims, verdicts (both as counts, in words), seeds, device, hours (wall time, failed trials included).
    """
    rows = []
    for each in found:
        findings = each if isinstance(each, Findings) else Findings(*each)
        paper = findings.paper
        for budget in findings.budgets:
            if budget == "smoke":
                continue
            known, _ = current(paper, [record for record in findings.records if record["budget"] == budget])
            done = [record for record in known if record["status"] == "done"]
            *frames, tested = findings.frames(budget)
            others = _counts(tested["verdict"], CLAIM_VERDICTS[1:])
            counts = pd.Series([record["arm"] for record in done], dtype=object).value_counts()
            rows.append(
                {
                    "paper": paper.sheet["short"],
                    "key": paper.key,
                    "budget": budget,
                    "headline": _headline(next((frame for frame in frames if frame["n"].any()), frames[0])),
                    "claims": f"holds {(tested['verdict'] == 'holds').sum()} of {len(tested)}" + (f" ({others})" if others else ""),
                    "verdicts": _counts(pd.concat([frame["verdict"] for frame in frames]), VERDICTS),
                    "seeds": _range(counts),
                    "device": _devices(done),
                    "hours": _hours(known),
                }
            )
    return pd.DataFrame(rows, columns=["paper", "key", "budget", "headline", "claims", "verdicts", "seeds", "device", "hours"])


def budgets(paper, records: list[dict]) -> list[str]:
    """The budgets that have results, in the order of the sheet."""
    return [budget for budget in paper.budgets if results(paper, records, budget)]


# -- writers --------------------------------------------------------------------------------------------------------


def texts(findings: Findings, store: Store, chosen: list[str]) -> dict[Path, str]:
    """The tables and claims of the ``chosen`` budgets as files: {path: contents}; the same bytes for the same records."""
    found = {}
    for budget in chosen:
        for frame in findings.shown(budget):
            folder, name = store.root(budget) / "tables" / findings.paper.key, f"{budget}_{frame.attrs['id']}"
            found[folder / f"{name}.csv"] = to_csv(frame)
            found[folder / f"{name}.md"] = to_markdown(frame)
    return found


def write_tables(findings: Findings, store: Store, chosen: list[str]) -> list[Path]:
    """Write every table of the ``chosen`` budgets as ``tables/KEY/BUDGET_TABLE.csv`` and ``.md``; the paths."""
    found = texts(findings, store, chosen)
    for path, text in found.items():
        paths.write_text(path, text)
    return list(found)


def to_csv(frame: pd.DataFrame) -> str:
    """A table for machines: six significant digits, empty where there is no number, seeds as "0:146 1:139", and last, mixed: the
    seeds of which a student and its teacher ran on different processors."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tested = frame.attrs["kind"] == "claims"
    writer.writerow(["budget", *frame.columns, *(() if tested else ("mixed",))])
    for row in frame.to_dict("records"):
        writer.writerow([frame.attrs["budget"], *map(_csv_cell, row.values()), *(() if tested else (_csv_cell(strange(row)),))])
    return out.getvalue()


def strange(row: dict) -> list[int]:
    """The seeds of a row of a table or of the claims of which a student and its teacher ran on different processors."""
    return row["mixed"] if "mixed" in row else [each["seed"] for each in row["seeds"] if each["mixed"]]


def to_markdown(frame: pd.DataFrame) -> str:
    """A table for readers on GitHub: title, budget, numbers, device and hours, and which of them mix processors."""
    about = frame.attrs
    title, source, budget, what = (
        markdown(text) for text in (f"{about['short']}: {about['title']}", place(about), about["budget"], about["about"])
    )
    lines = [f"# {title}", "", f"{source}{' ' if source else ''}Budget **{budget}**: {what}.", ""]
    if about["kind"] == "claims":
        own = "reported" in frame
        header = [
            "claim",
            "left",
            "right",
            "left - right",
            "n",
            "p (Holm)",
            "verdict",
            *(["the paper's own left - right", "p"] if own else []),
        ]
        rows = [
            [
                r["text"], number(r["left"]), number(r["right"]), estimate(r["difference"], r["low"], r["high"], signed=True), r["n"],
                p_value(r["p"]), r["verdict"],
                *([estimate(r["reported"], r["reported_low"], r["reported_high"], signed=True), p_value(r["reported_p"])] if own else []),
            ]
            for r in frame.to_dict("records")
        ]  # fmt: skip
    else:
        others = [about["reference"]] if about["reference"] else []
        header = ["row", "paper", *others, "ours [95 % interval]", "n", "difference", "margin", "verdict", "unit"]
        rows = [
            [
                r["label"], reported(r["paper"], r.get("std")), *(reported(r["reference"]) for _ in others),
                estimate(r["ours"], r["low"], r["high"]), r["n"], difference(r["difference"], r["ours"]), reported(r["margin"]),
                r["verdict"], r["unit"],
            ]
            for r in frame.to_dict("records")
        ]  # fmt: skip
    lines += [markdown_table(header, rows), "", markdown(foot(about)), ""]
    name = "text" if about["kind"] == "claims" else "label"
    pairs = [
        f"{row[name].rstrip('.')} (seed{'s' * (len(seeds) > 1)} {_listed(seeds)})"
        for row in frame.to_dict("records")
        if (seeds := strange(row))
    ]
    lines += [markdown(f"Student and teacher ran on different processors: {'; '.join(pairs)}."), ""] if pairs else []
    return "\n".join(lines)


def scoreboard_markdown(frame: pd.DataFrame) -> str:
    """The scoreboard as a Markdown table; a sentence where there is no record yet."""
    if frame.empty:
        return "No records yet: `kdcore run PAPER --budget laptop` makes the first."
    header = ["paper", "budget", "ours: mean [95 % interval] (paper)", "claims", "numbers", "seeds", "device", "hours of wall time"]
    columns = ["paper", "budget", "headline", "claims", "verdicts", "seeds", "device"]
    return markdown_table(header, [[*(row[c] for c in columns), hours(row["hours"])] for row in frame.to_dict("records")])


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A Markdown table of plain texts, all escaped; line breaks in a cell stay line breaks."""
    lines = [[markdown(cell, "<br>") for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text) -> str:
    """``text`` with one kind of line break, and a replacement character for what controls a terminal or the order of letters."""
    text = re.sub(r"\r\n?|[\v\f\x85\u2028\u2029]", "\n", str(text))
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def markdown(text, line_break: str = " ") -> str:
    """Any text as Markdown that shows it as it is, in one line: no markup, table, formula or comment begins in it.

    Characters that mean nothing where they stand are left alone, so that the source stays legible.
    """
    text = re.sub(r"([\\`*|~$#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[]|^\s*\[(?=.*\]:)", r"\\\g<0>", plain(text))
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return re.sub(r"\s*\n\s*", line_break, text.strip())


def to_html(frame: pd.DataFrame, details: bool = False, style: bool = True) -> str:
    """Any frame of this module as HTML for a notebook or the page: verdicts as badges (worded too).

    details: each number opens to its seeds, their records and commands. style: bring the style sheet along (the page
    has it once).
    """
    kind = frame.attrs.get("kind", "scoreboard")
    template = environment().get_template("tables.html.j2")
    return template.render(rows=frame.to_dict("records"), about=frame.attrs, kind=kind, details=details, style=style)


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this folder, with the words for numbers that they use. Everything is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    words = (number, reported, estimate, difference, p_value, hours, foot, place, command, strange, _listed)
    found.globals |= {function.__name__.strip("_"): function for function in words}
    return found


def command(key: str, budget: str, arm: str, seed: int) -> str:
    """The command line that runs one trial; what a shell would read anything into is quoted for it."""
    quoted = f'"{arm}"' if not re.search(r"""["$`\\!]|[^ -~]""", arm) else shlex.quote(arm)
    return f"kdcore run {key} --budget {budget} --arm {quoted} --seed {seed}"


# -- numbers in words -----------------------------------------------------------------------------------------------


def number(value: float, significant: int = 4, signed: bool = False) -> str:
    """``value`` with about ``significant`` digits, whole digits never rounded off, zeros at the end left out.

    146.234 -> "146.2", 0.012345 -> "0.01235", 67.0 -> "67"; "" for nan.
    """
    return _short(fixed(value, _decimals(value, significant), signed))


def fixed(value: float, decimals: int, signed: bool = False) -> str:
    """``value`` with so many ``decimals``, a real minus sign, commas from 10,000 on, and a plus where ``signed``; "" for nan. What would
    need more than 12 decimals, or has more than 15 whole digits, is written as 1.234e+20."""
    if math.isnan(value):
        return ""
    sign = "+" if signed else ""
    if math.isinf(value):
        text = f"{value:{sign}}".replace("inf", "\N{INFINITY}")
    elif abs(value) >= 1e15 or (value and decimals > 12):
        text = f"{value:{sign}.4g}"
    else:
        text = f"{value:{sign}{',' if abs(round(value, decimals)) >= 10_000 else ''}.{decimals if decimals <= 12 else 0}f}"
        text = text if text.strip("+-0.") else text.strip("+-")  # no sign on a zero
    return _minus(text)


def difference(value: float, ours: float) -> str:
    """Ours minus the paper's, with a sign, and no more decimals than ours is given with."""
    return _short(fixed(value, _decimals(ours, 4), signed=True))


def _short(text: str) -> str:
    """A number in words without the zeros at its end."""
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _minus(text: str) -> str:
    """A number in words with a minus sign for its hyphen, but in an exponent."""
    return re.sub(r"^-", "\N{MINUS SIGN}", text)


def _decimals(value: float, significant: int) -> int:
    """Decimals that give ``value`` so many significant digits; whole digits are never rounded off."""
    return max(0, significant - 1 - (statistics.exponent(value) if value and math.isfinite(value) else 0))


def estimate(mean: float, low: float, high: float, signed: bool = False) -> str:
    """A mean with its interval: "146.2 [139, 153]"; the mean alone where there is no interval, "" where there is no mean."""
    if math.isnan(low) or math.isnan(high):
        return number(mean, signed=signed)
    # the ends have as many decimals as show the width, the same for both
    width = max(0, -statistics.exponent(high - low)) if 0 < high - low < math.inf else 0
    ends = max(width, min(_decimals(low, 3), _decimals(high, 3)))
    return f"{fixed(mean, max(ends, _decimals(mean, 4)), signed)} [{fixed(low, ends)}, {fixed(high, ends)}]"


def reported(value: float, std: float | None = None) -> str:
    """A number as the paper prints it: "146", "47.3", "8.47 ± 1.11" with its standard deviation; "" for nan."""
    if not math.isfinite(value):
        return fixed(value, 0)
    text = _minus(f"{value + 0.0:.12g}")  # no sign on a zero
    return text if std is None or math.isnan(std) else f"{text} \N{PLUS-MINUS SIGN} {std:g}"


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.995 else "1"


def hours(value: float) -> str:
    return number(value, 2) if not value < 0.01 else "< 0.01" if value else "0"


def foot(about: dict) -> str:
    """What a table's numbers cost, and on what."""
    if not about["device"]:
        return "Not run yet."
    cpu = f" ({hours(about['cpu_hours'])} of CPU time)" if not math.isnan(about["cpu_hours"]) else ""
    return f"{hours(about['hours'])} hours of wall time{cpu} of one process on {about['device']}."


def place(about: dict) -> str:
    """Where the paper's numbers stand: "Table 1 (section 3). "."""
    if not about["source"]:
        return ""
    return f"Table {about['number']} ({about['source']}). " if about["number"] is not None else f"Source: {about['source']}. "


def _attrs(paper, budget: str, records: list[dict]) -> dict:
    return {
        "paper": paper.key,
        "short": paper.sheet["short"],
        "budget": budget,
        "about": paper.budget(budget)["about"],
        "comparable": paper.budget(budget).get("comparable", True),
        "device": _devices(records),
        "hours": _hours(records),
        "cpu_hours": _cpu_hours(records),
    }


def _float(value) -> float:
    return math.nan if value is None else float(value)


def _hours(records: list[dict]) -> float:
    return sum(record["cost"]["seconds"] for record in records) / 3600


def _cpu_hours(records: list[dict]) -> float:
    """nan unless every record has CPU seconds."""
    spent = [record["cost"].get("cpu_seconds", math.nan) for record in records] or [math.nan]
    return sum(spent) / 3600


def _devices(records: list[dict]) -> str:
    return ", ".join(sorted({record["cost"]["device"] for record in records}))


def _by_seed(records: list[dict], side: dict) -> dict[int, float] | None:
    """{seed: mean of the metric over the side's arms}, for the seeds that have all of them; None for a constant."""
    if "value" in side:
        return None
    values: dict = {}
    for record in records:
        if record["arm"] in side["arms"]:
            values.setdefault(record["seed"], []).append(measured(record, side["metric"]))
    return {seed: sum(found) / len(found) for seed, found in values.items() if len(found) == len(side["arms"])}


def _reported_claim(paper, claim: dict) -> dict[str, float]:
    """What the paper's own means and standard deviations say of a claim; nothing where the sheet has no ``runs``."""
    if "runs" not in paper.sheet:
        return {}
    known = {
        (row["arm"], row["metric"]): (row["paper"], row["std"])
        for each in paper.tables
        for row in each["rows"]
        if row.get("std") is not None
    }
    sides = [[known.get((arm, claim[side]["metric"])) for arm in claim[side].get("arms", ())] for side in ("left", "right")]
    found = dict.fromkeys(("mean", "low", "high", "p"), math.nan)
    if all(side and None not in side for side in sides):
        found = statistics.reported_test(*sides, paper.sheet["runs"], claim["relation"], claim.get("margin"))
    return {"reported": found["mean"], **{f"reported_{key}": found[key] for key in ("low", "high", "p")}}


def _side(side: dict) -> str:
    if "value" in side:
        return reported(side["value"])
    return f"{side['metric']} of {' and '.join(side['arms'])}"


def _words(value) -> str:
    return "none" if value is None else str(value)


def _named(paper, group: list[str], among: list[str]) -> str:
    """A group of arms in few words: "all", "all but cumbersome", or their names, a whole sweep by the name of its template."""
    names, others = _names(paper, group), _names(paper, [arm for arm in among if arm not in group])
    if not others and len(among) > 1:
        return "all"
    return "all but " + "; ".join(others) if len(others) < len(names) else "; ".join(names)


def _names(paper, arms: list[str]) -> list[str]:
    """Names of arms, those of a sweep, or of a sweep with one variable fixed, as one: "300 units, T={temperature}"."""
    names, left = [], list(arms)
    templates = []
    for template, settings in paper.sheet["arms"].items():
        sweep = settings.get("sweep", {})
        fixed_one = [template.replace(f"{{{name}}}", str(value)) for name, values in sweep.items() for value in values]
        templates += [template, *fixed_one]
    for template in templates:
        pattern = re.sub(r"\\{.*?\\}", ".+", re.escape(template))
        swept = [arm for arm in paper.arms if re.fullmatch(pattern, arm)]
        if "{" in template and set(swept) <= set(left):
            names.append(template)
            left = [arm for arm in left if arm not in swept]
    return [*left, *names]


def _counts(found: pd.Series, verdicts: tuple) -> str:
    """How often each of ``verdicts`` was found: "3 reproduced, 1 above"."""
    return ", ".join(f"{count} {verdict}" for verdict in verdicts if (count := int((found == verdict).sum())))


def _range(counts: pd.Series) -> str:
    if counts.empty:
        return "0"
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def _headline(frame: pd.DataFrame) -> str:
    """The rows of a table, one a line, those that were run first: "small: 146.2 [139, 153] (paper 146)"."""
    lines, own = [], frame[frame["verdict"] != "quoted"]
    for row in own.sort_values("n", key=lambda n: n == 0, kind="stable").to_dict("records"):
        ours = estimate(row["ours"], row["low"], row["high"]) or "not run"
        lines.append(f"{row['label']}: {ours}" + (f" (paper {reported(row['paper'])})" if not math.isnan(row["paper"]) else ""))
    more = len(lines) - HEADLINE_ROWS
    return "\n".join(lines[:HEADLINE_ROWS] + ([f"and {more} more rows"] if more > 0 else []))


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _csv_cell(value) -> str:
    if isinstance(value, list):
        return " ".join(f"{each['seed']}:{_csv_cell(each['value'])}" if isinstance(each, dict) else str(each) for each in value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value + 0.0:.6g}"  # no sign on a zero
    return plain(value)
