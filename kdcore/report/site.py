"""The page: one HTML file that needs no network, made from records, sheets and the figures that ``report.write`` drew."""

import base64
import re
from pathlib import Path

from kdcore import papers, paths
from kdcore.report import tables
from kdcore.trials.store import Store


def write_site(store: Store) -> Path:
    """Write ``index.html`` into the results folder: scoreboard, and for each paper its claims, tables, figures, protocol
    and deviations. Figures are those that lie in ``figures/KEY``. Returns the path."""
    shown = [_paper(papers.get(key), store) for key in papers.names()]
    board = tables.scoreboard([(each["paper"], each["records"]) for each in shown])
    template = tables.environment().get_template("site.html.j2")
    page = template.render(papers=shown, scoreboard=tables.to_html(board, details=True, style=False))
    path = store.results / "index.html"
    paths.write_text(path, re.sub(r"\n\s*\n+", "\n", page))
    return path


def _paper(paper, store: Store) -> dict:
    records = [record for record in store.records(paper.key) if record["budget"] != "smoke"]
    known, stale = tables.current(paper, records)
    executed = [path for path in sorted((store.results / "executed").glob(f"{paper.key}*")) if path.suffix in (".ipynb", ".html")]
    return {
        "paper": paper,
        "sheet": paper.sheet,
        "records": records,
        "protocol": tables.to_html(tables.facts(paper, "protocol"), style=False),
        "deviations": tables.to_html(tables.facts(paper, "deviations"), style=False),
        "stale": len(stale),
        "failed": [record for record in known if record["status"] != "done"],
        "notebooks": [path.relative_to(store.results).as_posix() for path in executed],
        "budgets": [_budget(paper, store, records, budget) for budget in tables.budgets(paper, records)],
    }


def _budget(paper, store: Store, records: list[dict], budget: str) -> dict:
    drawn = {path.stem.removeprefix(f"{budget}_"): path for path in sorted((store.results / "figures" / paper.key).glob(f"{budget}_*.svg"))}
    figures = {
        name: {"words": name.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()} for name, path in drawn.items()
    }
    shown = []
    for sheet in tables.tables_of(paper, budget):
        frame = tables.table(paper, sheet, records, budget)
        shown.append({"html": tables.to_html(frame, details=True, style=False), "figure": figures.pop(f"paper_{sheet['id']}", None)})
    learning = [figures.pop(name) for name in list(figures) if name.startswith("learning_")]
    return {
        "name": budget,
        **paper.budget(budget),
        "claims": tables.to_html(tables.claims(paper, records, budget), style=False),
        "tables": shown,
        "figures": list(figures.values()),
        "learning": learning,
        "changes": tables.to_html(tables.budget_table(paper, budget), style=False),
    }
