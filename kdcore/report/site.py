"""The page: one HTML file that needs no network, made from records, sheets and the figures that ``report.write`` drew."""

import base64
import re
from pathlib import Path

from kdcore import papers, paths
from kdcore.report import tables
from kdcore.trials.store import Store


def write_site(store: Store, found: list[tables.Findings] | None = None) -> Path:
    """Write ``index.html`` into the results folder: scoreboard, and for each paper its claims, tables, figures, protocol
    and deviations. Figures are those that lie in ``figures/KEY``. found: of all papers, read here by default. Returns the path."""
    found = found or [tables.Findings(papers.get(key), store.records(key)) for key in papers.names()]
    template = tables.environment().get_template("site.html.j2")
    board = tables.to_html(tables.scoreboard(found), details=True, style=False)
    page = template.render(papers=[_paper(each, store) for each in found], scoreboard=board)
    path = store.results / "index.html"
    paths.write_text(path, re.sub(r"\n\s*\n+", "\n", page))
    return path


def _paper(findings: tables.Findings, store: Store) -> dict:
    paper = findings.paper
    known, stale = tables.current(paper, [record for record in findings.records if record["budget"] != "smoke"])
    executed = [path for path in sorted((store.results / "executed").glob(f"{paper.key}*")) if path.suffix in (".ipynb", ".html")]
    return {
        "paper": paper,
        "sheet": paper.sheet,
        "protocol": tables.to_html(tables.facts(paper, "protocol"), style=False),
        "deviations": tables.to_html(tables.facts(paper, "deviations"), style=False),
        "stale": len(stale),
        "failed": [record for record in known if record["status"] != "done"],
        "notebooks": [path.relative_to(store.results).as_posix() for path in executed],
        "budgets": [_budget(findings, store, budget) for budget in findings.budgets if budget != "smoke"],
    }


def _budget(findings: tables.Findings, store: Store, budget: str) -> dict:
    paper = findings.paper
    drawn = {path.stem.removeprefix(f"{budget}_"): path for path in sorted((store.results / "figures" / paper.key).glob(f"{budget}_*.svg"))}
    figures = {
        name: {"words": name.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()} for name, path in drawn.items()
    }
    *frames, claims = findings.shown(budget)
    shown = [
        {"html": tables.to_html(frame, details=True, style=False), "figure": figures.pop(f"paper_{frame.attrs['id']}", None)}
        for frame in frames
    ]
    learning = [figures.pop(name) for name in list(figures) if name.startswith("learning_")]
    return {
        "name": budget,
        **paper.budget(budget),
        "claims": tables.to_html(claims, style=False),
        "tables": shown,
        "figures": list(figures.values()),
        "learning": learning,
        "changes": tables.to_html(tables.budget_table(paper, budget), style=False),
    }
