"""From records to tables, figures, the page and the README's scoreboard. Nothing here trains, and nothing knows a paper.

    report.write("results")                  # everything that is committed
    report.write("results", budget="smoke")  # tables and figures of a smoke run, in results/smoke
    report.stale("results")                  # what is not up to date

The same records give the same bytes.
"""

from pathlib import Path

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.report import figures, tables
from kdcore.report.site import write_site
from kdcore.trials.store import Store, order

MARKERS = ("<!-- scoreboard -->", "<!-- /scoreboard -->")


def write(results_dir: Path | str, budget: str | None = None) -> list[Path]:
    """Make everything that follows from the records; the paths written.

    By default tables and figures of every budget with records but smoke, the page, and the scoreboard of the README
    beside the results folder, where there is one. Files of an earlier report that nothing makes any more are removed.
    With budget="smoke" tables and figures of the smoke records alone, under ``smoke/``.
    Raises KdcoreError for a damaged record, or a README without markers.
    """
    store = Store(results_dir)
    written, everything = [], _findings(store)
    for found in everything:
        key, chosen = found.paper.key, _budgets(found, budget)
        mine = tables.write_tables(found, store, chosen)
        for name in chosen:
            folder = store.root(name) / "figures" / key
            for title, draw in _figures(found, name).items():
                mine += figures.save(draw(), folder, f"{name}_{title}")
        for path in _leftovers(found.paper, store, budget, mine):
            path.unlink()
        written += mine
    if budget is None:
        written.append(write_site(store, everything))
        if (readme := _readme(store)).exists():
            update_readme(readme, _block(everything))
            written.append(readme)
    return written


def stale(results_dir: Path | str, records: dict[str, list[dict]] | None = None) -> list[str]:
    """What is not up to date with the committed records, a sentence for each file: nothing is written.

    records: those of each paper, where they are read already. Tables and the README's scoreboard are compared word for word; figures
    and the page must be there.
    """
    store = Store(results_dir)
    problems, reported, everything = [], False, _findings(store, records)
    for found in everything:
        paper, chosen = found.paper, _budgets(found, None)
        expected = tables.texts(found, store, chosen)
        problems += [_problem(path, text) for path, text in expected.items() if _read(path) != text]
        drawn = [
            store.root(name) / "figures" / paper.key / f"{name}_{title}.{kind}"
            for name in chosen
            for title in _figures(found, name)
            for kind in ("svg", "png")
        ]
        problems += [_problem(path) for path in drawn if not path.exists()]
        left = _leftovers(paper, store, None, [*expected, *drawn])
        problems += [f"{path} follows from no record: kdcore report removes it" for path in left]
        reported = reported or bool(chosen)
    page = store.results / "index.html"
    problems += [_problem(page)] if reported and not page.exists() else []
    readme = _readme(store)
    if readme.exists():
        try:
            text = _text(readme)
            expected = with_block(text, _block(everything), readme)
        except KdcoreError as error:
            problems.append(str(error))
        else:
            problems += [_problem(readme, expected)] if expected != text else []
    return problems


def readme_block(store: Store) -> str:
    """The scoreboard in Markdown: a row for each paper and budget, smoke left out."""
    return _block(_findings(store))


def _findings(store: Store, records: dict[str, list[dict]] | None = None) -> list[tables.Findings]:
    read = store.records if records is None else lambda key: sorted(records.get(key, ()), key=order)
    return [tables.Findings(papers.get(key), read(key)) for key in papers.names()]


def _block(everything: list[tables.Findings]) -> str:
    return tables.scoreboard_markdown(tables.scoreboard(everything))


def _figures(found: tables.Findings, budget: str) -> dict:
    return figures.figures_of(found.paper, [record for record in found.records if record["budget"] == budget], found.frames(budget))


def update_readme(path: Path | str, block: str) -> None:
    """Put ``block`` between the scoreboard's markers of a Markdown file. Raises KdcoreError where a marker is missing."""
    path = Path(path)
    paths.write_text(path, with_block(_text(path), block, path))


def with_block(text: str, block: str, where: Path | str = "the README") -> str:
    """``text`` with ``block`` between the markers. Raises KdcoreError unless both stand there once, in their order."""
    start, end = MARKERS
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise KdcoreError(f"{where} must hold the lines {start} and {end}, once each and in this order: the scoreboard goes between them")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.partition(end)[2]}"


def _budgets(found: tables.Findings, budget: str | None) -> list[str]:
    """The budgets to report, of those with current records: all but smoke, or the one asked for."""
    return [name for name in found.budgets if (name != "smoke" if budget is None else name == budget)]


def _leftovers(paper, store: Store, budget: str | None, expected: list[Path]) -> list[Path]:
    """Tables and figures of earlier reports, by their names, that are not among ``expected``."""
    names = [name for name in paper.budgets if name != "smoke"] if budget is None else [budget]
    found = [
        path
        for name in names
        for folder, kinds in (("tables", ("csv", "md")), ("figures", ("svg", "png")))
        for kind in kinds
        for path in sorted((store.root(name) / folder / paper.key).glob(f"{name}_*.{kind}"))
    ]
    return [path for path in found if path not in expected]


def _readme(store: Store) -> Path:
    return store.results.resolve().parent / "README.md"


def _read(path: Path) -> str | None:
    """The text of a generated file; "" for what is none, which is out of date; None where nothing is."""
    try:
        return paths.regular(path).read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def _text(path: Path) -> str:
    try:
        return paths.regular(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KdcoreError(f"{path} cannot be read as UTF-8 text ({error}): restore it from git") from error


def _problem(path: Path, text: str | None = None) -> str:
    """What is wrong with a generated file: missing, or (where ``text`` is what it should hold) out of date."""
    return f"{path} is {'out of date' if text is not None and path.exists() else 'missing'}: run kdcore report"
