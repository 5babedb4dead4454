"""What each page of the site shows, as plain data for its template."""

import dataclasses
import functools
import json
import re
from pathlib import Path

from markupsafe import Markup

from kdcore import sources
from kdcore.report import formats, select, tables, words
from kdcore.report.evidence import Evidence
from kdcore.report.pages import SCALES, SIGNS, total
from kdcore.report.site.charts import charts
from kdcore.report.site.mathml import mathml
from kdcore.report.summary import MARKS, scales, summary


def write(site, results: Path, everything: list[Evidence]) -> None:
    """Write all pages. site: a ``Site``; results: the folder with figures and executed notebooks."""
    summaries = {evidence.paper.key: summary(evidence) for evidence in everything}
    notebooks = {evidence.paper.key: path for evidence in everything if (path := _notebook(results, evidence.paper.key))}
    drawn = (path for path in sorted((results / "figures").rglob("*.svg")) if not path.stem.endswith("_dark"))
    figures = {path: _copied(site, results, path) for path in drawn}
    papers = [{"key": evidence.paper.key, "short": evidence.paper.sheet["short"]} for evidence in everything]
    site.page("index.html", "index.html.j2", **_index(results, summaries, notebooks, figures), papers=papers)
    for evidence in everything:
        paper = evidence.paper
        shown = _paper(evidence, summaries[paper.key], results, figures)
        site.page(f"papers/{paper.key}.html", "paper.html.j2", **shown, notebook=paper.key in notebooks)
        _write_records(site, results, evidence, shown["used"])
        if path := notebooks.get(paper.key):
            _write_notebook(site, path, paper)
    site.page("equations.html", "equations.html.j2", **_equations(everything, notebooks))


def anchor(*parts: str) -> str:
    """The id of what ``parts`` name, such as budget, table, arm and metric: "fast.errors.small+with+KD.test_errors".

    "+" stands for a space, and what may not stand in a link for itself as its code, so that two names never share an id.
    """
    return ".".join(re.sub(r"[^A-Za-z0-9_ =,()-]", lambda found: f"~{ord(found[0]):X}~", part).replace(" ", "+") for part in parts)


def _index(results: Path, summaries: dict, notebooks: dict, figures: dict) -> dict:
    """The scoreboard: papers by scale, and every claim once."""
    groups = [
        {
            "scale": scale,
            "rows": [{**_fields(each), "main": _main(each), "notebook": each.key in notebooks} for each in group],
        }
        for scale, group in scales(list(summaries.values())).items()
    ]
    claims = [
        {**_claim(row), "key": each.key, "short": each.short} for each in summaries.values() for row in each.claims.to_dict("records")
    ]
    claims.sort(key=lambda claim: MARKS.index(claim["verdict"]))  # decided ones first; the order of papers and claims within
    verdicts = [claim["verdict"] for claim in claims]
    counts = {mark: count for mark in MARKS if (count := verdicts.count(mark))}
    return {
        "groups": groups,
        "idle": [{"key": each.key, "short": each.short} for each in summaries.values() if not each.budgets],
        "claims": claims,
        "sentence": re.sub("|".join(f"{sign} " for sign in SIGNS.values()), "", total(list(summaries.values()))) if groups else "",
        "about": SCALES,
        "picture": figures.get(results / "figures" / "effects.svg"),
        "verdicts": list(counts),
        "scales": [group["scale"] for group in groups],
    }


def _paper(evidence: Evidence, about, results: Path, figures: dict) -> dict:
    """A paper's page. "used": {id of a record: [(label, link) of each number that it counts in]}."""
    paper, sheet = evidence.paper, evidence.paper.sheet
    records = {record["id"]: record for record in evidence.records}
    used: dict[str, list] = {}
    budgets = [_budget(evidence, budget, results, figures, records, used) for budget in about.budgets]
    known, stale = select.current(paper, _recorded(evidence))
    return {
        "key": paper.key,
        "sheet": {name: sheet[name] for name in ("title", "authors", "year", "citation", "url", "short", "question")},
        "about": {**_fields(about), "claims": [_claim(row) for row in about.claims.to_dict("records")]},
        "budgets": budgets,
        "notes": list(dict.fromkeys(note for budget in budgets for note in budget["notes"])),
        "first": next((name for name in paper.budgets if name != "smoke"), "smoke"),
        "protocol": tables.facts(paper, "protocol").to_dict("records"),
        "deviations": tables.facts(paper, "deviations").to_dict("records"),
        "failed": [
            {**{name: record[name] for name in ("id", "arm", "budget", "seed", "status")}, "message": record["metrics"].get("message", "")}
            for record in known
            if record["status"] != "done"
        ],
        "stale": [{name: record[name] for name in ("id", "arm", "budget", "seed")} for record in stale],
        "findings": evidence.findings.to_dict("records"),
        "used": used,
    }


def _budget(evidence: Evidence, budget: str, results: Path, figures: dict, records: dict, used: dict) -> dict:
    """A budget's part of a paper's page; adds to ``used``."""
    paper = evidence.paper
    folder = results / "figures" / paper.key
    mine = {
        path.stem.removeprefix(f"{budget}_"): figures[path]
        for path in figures
        if path.parent == folder and path.stem.startswith(f"{budget}_")
    }
    mine = {name: {**figure, "words": name.replace("_", " ")} for name, figure in mine.items()}
    *frames, claims = evidence.shown(budget)
    shown = [_table(frame, paper.key, records, used) | {"figure": mine.pop(f"paper_{frame.attrs['id']}", None)} for frame in frames]
    learning = [mine.pop(name) for name in list(mine) if name.startswith("learning_")]
    return {
        "name": budget,
        **{name: paper.budget(budget)[name] for name in ("scale", "about", "time")},
        "claims": [
            {**row, "scale": claims.attrs["scale"], "anchor": anchor(budget, "claim", row["id"])} for row in claims.to_dict("records")
        ],
        "notes": [note for note in (words.corrected(claims.attrs), *words.notes(claims.attrs)) if note],
        "tables": shown,
        "figures": list(mine.values()),
        "learning": learning,
        "changes": tables.budget_table(paper, budget).to_dict("records"),
    }


def _table(frame, key: str, records: dict, used: dict) -> dict:
    """A table with a link, and the evidence, of each number; adds to ``used``."""
    about, rows, known = frame.attrs, [], set()
    for row in frame.to_dict("records"):
        name = anchor(about["budget"], about["id"], row["arm"] or row["label"], row["metric"])
        name += "" if name not in known else f".{len(known)}"
        known.add(name)
        for seed in row["seeds"]:
            used.setdefault(seed["id"], []).append([f"{about['title']}: {row['label']}", f"papers/{key}.html#{name}"])
        seeds = [{**seed, **_origin(records[seed["id"]])} for seed in row["seeds"]]
        rows.append({**row, "anchor": name, "seeds": seeds, "mark": select.doubt(row)})
    return {
        **about,
        "remarks": [words.trained(about), formats.marks_note(rows), words.corrected(about)],
        "notes": words.notes(about),
        "anchor": anchor(about["budget"], about["id"]),
        "rows": rows,
        "units": list(dict.fromkeys(row["unit"] for row in rows)),
    }


def _claim(row: dict) -> dict:
    """A claim at the closest scale at which it was run, with its permalink."""
    return {**row, "anchor": anchor("claim", row["id"])}


def _origin(record: dict) -> dict:
    """Where a record comes from: processor and commit."""
    return {"processor": select.ran_on(record), "commit": (record["environment"].get("commit") or "")[:7]}


def _recorded(evidence: Evidence) -> list[dict]:
    """The records that have a page: all but smoke."""
    return [record for record in evidence.records if record["budget"] != "smoke"]


def _write_records(site, results: Path, evidence: Evidence, used: dict) -> None:
    """A page for each record. used: as of ``_paper``."""
    paper, recorded = evidence.paper, _recorded(evidence)
    by_id = {record["id"]: record for record in recorded}
    current = {record["id"] for record in select.current(paper, recorded)[0]}
    for record in recorded:
        name = f"{paper.key}/{record['id']}"
        site.page(
            f"records/{name}.html",
            "record.html.j2",
            functools.partial(_record, record),
            key=paper.key,
            short=paper.sheet["short"],
            declared=paper.module.METRICS,
            digest=_digest(results / "records" / f"{name}.json"),
            mixed=select.mixed_processors(record, by_id),
            teacher=record["teacher"] if record["teacher"] in by_id else None,
            used=used.get(record["id"], []),
            current=record["id"] in current,
        )


def _digest(path: Path) -> str:
    """The digest in the last line of a record's file, which reading it has checked."""
    return re.search(r'"digest": "(\w+)"', path.read_bytes()[-100:].decode())[1]


def _record(record: dict) -> dict:
    """What a record's page shows of the record itself."""
    metrics = sorted(record["metrics"].items())
    return {
        "record": record,
        "metrics": [
            [name, f"{value:.12g}" if isinstance(value, float) else _value(value)]
            for name, value in metrics
            if not isinstance(value, list | dict)
        ],
        "lists": [[name, _value(value)] for name, value in metrics if isinstance(value, list | dict)],
        "environment": [[name, _value(value)] for name, value in sorted(record["environment"].items())],
        "config": [[name, _value(value)] for name, value in sorted(record["config"].items())],
        "charts": charts(record["history"]),
        "history": _history(record["history"]),
        "processor": select.ran_on(record),
    }


def _value(value) -> str:
    """A value of a record as text: numbers as they are, lists and settings as JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _history(rows: list[dict]) -> str:
    """A history as comma-separated values."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return "\n".join(",".join(line) for line in (columns, *([_value(row.get(key, "")) for key in columns] for row in rows))) if rows else ""


def _equations(everything: list[Evidence], notebooks: dict) -> dict:
    rows = []
    for evidence in everything:
        paper = evidence.paper
        for equation in paper.sheet.get("equations", []):
            lesson = sources.cell(notebooks[paper.key], equation["latex"]) if paper.key in notebooks else None
            code = []
            for name in equation["code"]:
                file, line = sources.place(name)
                code.append({"name": name, "file": file, "line": line, "text": sources.code(name)})
            rows.append(
                {
                    "key": paper.key,
                    "short": paper.sheet["short"],
                    "anchor": anchor(paper.key, equation["what"]),
                    **{name: equation[name] for name in ("what", "number", "mark", "latex")},
                    "math": mathml(equation["latex"], block=True),
                    "code": code,
                    "lesson": lesson,
                }
            )
    return {"equations": rows, "shorts": {row["key"]: row["short"] for row in rows}}


def _notebook(results: Path, key: str) -> Path | None:
    """A paper's executed notebook."""
    path = results / "executed" / f"{key}.ipynb"
    return path if path.is_file() else None


def _write_notebook(site, path: Path, paper) -> None:
    content = path.read_text(encoding="utf-8")

    def make() -> dict:
        from kdcore.report.site.notebook import convert  # nbconvert takes a second to import

        return convert(content)

    site.page(f"notebooks/{paper.key}.html", "notebook.html.j2", make, key=paper.key, short=paper.sheet["short"], content=content)


def _copied(site, results: Path, path: Path) -> dict:
    """Copy a figure into the site: {src, width, height}, in CSS pixels."""
    name = path.relative_to(results).as_posix()
    site.copy(name, path)
    text = path.read_text(encoding="utf-8", errors="replace")
    size = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', text)
    width, height = (round(float(each) * 4 / 3) for each in size.groups()) if size else (640, 480)
    alt = re.search(r"<desc[^>]*>([^<]+)</desc>", text)
    return {
        "src": name,
        "adapts": "prefers-color-scheme" in text,
        "width": width,
        "height": height,
        "alt": Markup(alt[1]).unescape() if alt else None,
    }


def _main(about) -> dict | None:
    """The first effect of a summary that was run, else the first."""
    effects = sorted(about.effects, key=lambda effect: not effect.n)
    return dataclasses.asdict(effects[0]) if effects else None


def _fields(about) -> dict:
    """A summary as plain data, without its table of claims."""
    fields = {field.name: getattr(about, field.name) for field in dataclasses.fields(about) if field.name != "claims"}
    return fields | {"effects": [dataclasses.asdict(effect) for effect in about.effects], "seeds": list(about.seeds)}
