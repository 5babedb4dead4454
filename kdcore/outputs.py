"""Writes results/: tables, figures, the page and the README's scoreboard, from the records of all papers.

    outputs.write("results")                  # everything that is committed
    outputs.write("results", budget="smoke")  # tables and figures of a smoke run, in results/smoke
    outputs.stale("results")                  # what is out of date

The same records give the same bytes.
"""

from pathlib import Path

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.report import canvas, readme
from kdcore.report.catalogue import figures_of
from kdcore.report.evidence import Evidence
from kdcore.report.formats import to_csv, to_markdown
from kdcore.report.site import write_site
from kdcore.trials.store import Store, order


def write(results_dir: Path | str, budget: str | None = None) -> list[Path]:
    """Write everything that follows from the records; return the paths.

    By default: tables and figures of every budget with records except smoke, the page, and the scoreboard in the README beside
    the results folder, if there is one. Files of earlier reports that no longer follow from any record are removed.
    budget="smoke": only tables and figures of the smoke records, in ``smoke/``.
    Raises KdcoreError for a damaged record, or a README without markers.
    """
    store = Store(results_dir)
    written, everything = [], gather(store)
    for evidence in everything:
        chosen, mine = _budgets(evidence, budget), []
        for path, text in _texts(evidence, store, chosen).items():
            paths.write_text(path, text)
            mine.append(path)
        for name in chosen:
            for title, draw in _figures(evidence, name).items():
                mine += canvas.save(draw(), _figure_folder(evidence, store, name), f"{name}_{title}")
        for path in _leftovers(evidence.paper, store, budget, mine):
            path.unlink()
        written += mine
    if budget is None:
        written.append(write_site(store.results, everything))
        if (file := _readme(store)).exists():
            readme.update(file, readme.block(everything))
            written.append(file)
    return written


def stale(results_dir: Path | str, records: dict[str, list[dict]] | None = None) -> list[str]:
    """One sentence for each file that is out of date with the records; nothing is written.

    records: those of each paper, if already read. Tables and the README's scoreboard are compared word for word; figures and the
    page only have to exist.
    """
    store = Store(results_dir)
    problems, reported, everything = [], False, gather(store, records)
    for evidence in everything:
        chosen = _budgets(evidence, None)
        texts = _texts(evidence, store, chosen)
        problems += [_problem(path, text) for path, text in texts.items() if _read(path) != text]
        files = [
            _figure_folder(evidence, store, name) / f"{name}_{title}.{kind}"
            for name in chosen
            for title in _figures(evidence, name)
            for kind in ("svg", "png")
        ]
        problems += [_problem(path) for path in files if not path.exists()]
        left = _leftovers(evidence.paper, store, None, [*texts, *files])
        problems += [f"{path} follows from no record: run kdcore report to remove it" for path in left]
        reported = reported or bool(chosen)
    page = store.results / "index.html"
    problems += [_problem(page)] if reported and not page.exists() else []
    file = _readme(store)
    if file.exists():
        try:
            text = readme.text_of(file)
            expected = readme.with_block(text, readme.block(everything), file)
        except KdcoreError as error:
            problems.append(str(error))
        else:
            problems += [_problem(file, expected)] if expected != text else []
    return problems


def gather(store: Store, records: dict[str, list[dict]] | None = None) -> list[Evidence]:
    """The evidence of every paper. records: those of each paper, if already read."""
    read = store.records if records is None else lambda key: sorted(records.get(key, ()), key=order)
    return [Evidence(papers.get(key), read(key)) for key in papers.names()]


def _budgets(evidence: Evidence, budget: str | None) -> list[str]:
    """The budgets with current records to report: all but smoke, or the given one."""
    return [name for name in evidence.budgets if (name != "smoke" if budget is None else name == budget)]


def _texts(evidence: Evidence, store: Store, chosen: list[str]) -> dict[Path, str]:
    """Tables and claims of the ``chosen`` budgets, ``tables/KEY/BUDGET_TABLE.csv`` and ``.md``: {path: contents}."""
    texts = {}
    for budget in chosen:
        for frame in evidence.shown(budget):
            folder, name = store.root(budget) / "tables" / evidence.paper.key, f"{budget}_{frame.attrs['id']}"
            texts[folder / f"{name}.csv"] = to_csv(frame)
            texts[folder / f"{name}.md"] = to_markdown(frame)
    return texts


def _figures(evidence: Evidence, budget: str) -> dict:
    return figures_of(evidence.paper, evidence.of_budget(budget), evidence.frames(budget))


def _figure_folder(evidence: Evidence, store: Store, budget: str) -> Path:
    return store.root(budget) / "figures" / evidence.paper.key


def _leftovers(paper, store: Store, budget: str | None, expected: list[Path]) -> list[Path]:
    """Tables and figures of earlier reports, recognised by name, that are not among ``expected``."""
    names = [name for name in paper.budgets if name != "smoke"] if budget is None else [budget]
    there = [
        path
        for name in names
        for folder, kinds in (("tables", ("csv", "md")), ("figures", ("svg", "png")))
        for kind in kinds
        for path in sorted((store.root(name) / folder / paper.key).glob(f"{name}_*.{kind}"))
    ]
    return [path for path in there if path not in expected]


def _readme(store: Store) -> Path:
    return store.results.resolve().parent / "README.md"


def _read(path: Path) -> str | None:
    """The text of a generated file; None if it does not exist, "" (which counts as out of date) if it is not text."""
    try:
        return paths.regular(path).read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def _problem(path: Path, text: str | None = None) -> str:
    """The problem with a generated file: missing or, if the expected ``text`` is given, out of date."""
    return f"{path} is {'out of date' if text is not None and path.exists() else 'missing'}: run kdcore report"
