"""The results page: one self-contained HTML file, made from records, sheets and the figures that ``kdcore.outputs.write`` drew."""

import base64
import re
from pathlib import Path

from kdcore import paths
from kdcore.report import select, tables
from kdcore.report.evidence import Evidence
from kdcore.report.formats import environment, to_html


def write_site(results: Path, everything: list[Evidence]) -> Path:
    """Write ``index.html`` into the results folder: the scoreboard, and each paper's claims, tables, figures, protocol and
    deviations. Figures are read from ``figures/KEY``. everything: the evidence of all papers. Returns the path."""
    template = environment().get_template("site.html.j2")
    page = template.render(papers=[_paper(each, results) for each in everything], scoreboard="")
    path = results / "index.html"
    paths.write_text(path, re.sub(r"\n\s*\n+", "\n", page))
    return path


def _paper(evidence: Evidence, results: Path) -> dict:
    paper = evidence.paper
    known, stale = select.current(paper, [record for record in evidence.records if record["budget"] != "smoke"])
    executed = [path for path in sorted((results / "executed").glob(f"{paper.key}*")) if path.suffix in (".ipynb", ".html")]
    return {
        "paper": paper,
        "sheet": paper.sheet,
        "protocol": to_html(tables.facts(paper, "protocol"), style=False),
        "deviations": to_html(tables.facts(paper, "deviations"), style=False),
        "stale": len(stale),
        "failed": [record for record in known if record["status"] != "done"],
        "notebooks": [path.relative_to(results).as_posix() for path in executed],
        "budgets": [_budget(evidence, results, budget) for budget in evidence.budgets if budget != "smoke"],
    }


def _budget(evidence: Evidence, results: Path, budget: str) -> dict:
    paper = evidence.paper
    files = {path.stem.removeprefix(f"{budget}_"): path for path in sorted((results / "figures" / paper.key).glob(f"{budget}_*.svg"))}
    figures = {
        name: {"words": name.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()} for name, path in files.items()
    }
    *frames, claims = evidence.shown(budget)
    shown = [
        {"html": to_html(frame, details=True, style=False), "figure": figures.pop(f"paper_{frame.attrs['id']}", None)} for frame in frames
    ]
    learning = [figures.pop(name) for name in list(figures) if name.startswith("learning_")]
    return {
        "name": budget,
        **paper.budget(budget),
        "claims": to_html(claims, style=False),
        "tables": shown,
        "figures": list(figures.values()),
        "learning": learning,
        "changes": to_html(tables.budget_table(paper, budget), style=False),
    }
