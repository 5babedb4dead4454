"""``kdcore check``: every yaml, record and generated file, and whether they agree."""

import difflib
import re
from pathlib import Path

from kdcore import outputs, papers, validation
from kdcore.errors import KdcoreError
from kdcore.trials.store import Store, read


def all_problems(results: Path) -> list[str]:
    """One sentence for each thing that is wrong; empty where all is well."""
    problems = []
    for key in papers.names():
        problems += sheet_problems(key)
    if not problems:  # tables of a broken sheet would only repeat its faults
        problems, records = _read_all(results)
        problems += [] if validation.other_papers() else page_problems()
        try:
            problems += outputs.stale(results, records)
        except KdcoreError as error:  # no table can be made of what is told above
            problems.append(str(error))
    return problems


def sheet_problems(key: str) -> list[str]:
    """What is wrong in a paper's sheet (``papers.problems``), the networks and equations that it names, its own figures, its notebook."""
    from kdcore.notebooks import cells
    from kdcore.papers import equations
    from kdcore.papers import problems as rules

    try:
        paper = papers.get(key)
    except papers.BadSheet as error:
        return error.problems
    except KdcoreError as error:
        return [str(error)]
    found = rules.problems(paper) or [
        each for name in paper.budgets for each in rules.network_problems(paper, name, paper.budget_arms(name))
    ]
    if not found:
        try:
            paper.figures([])
        except Exception as error:  # a table, arm or number that the paper's own code looks for in the sheet
            found.append(f"{key}.py cannot draw its figures from it ({type(error).__name__}: {error})")
    problems = [f"{key}/sheet.yaml: {problem}" for problem in found]
    try:
        return problems + cells.problems(paper) + equations.problems(paper)
    except KdcoreError as error:
        return [*problems, str(error)]


def page_problems() -> list[str]:
    """Whether docs/sheet.md and the schema are what the models of a sheet say, and docs/equations.md what sheets, code and notebooks do."""
    from kdcore.papers import equations, sheet_page

    root = validation.checkout()
    return sheet_page.outdated(root) + equations.outdated(root)


def metric_problems(paper, records: list[dict]) -> list[str]:
    """Metrics of rows and claims that no record of their arm has; of an arm without records nothing is known."""
    from kdcore.papers import problems as rules

    known: dict[str, set[str]] = {}
    for record in records:
        if record["status"] == "done":
            numbers = {name for name, value in record["metrics"].items() if isinstance(value, int | float) and not isinstance(value, bool)}
            known.setdefault(record["arm"], set()).update(numbers)
    problems = []
    for where, arm, metric in rules.used_metrics(paper):
        there = known.get(arm, set())
        if there and metric not in there:
            near = difflib.get_close_matches(metric, sorted(there), 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            problems.append(f"{paper.key}/sheet.yaml: {where}: the records of arm '{arm}' have no number '{metric}'{hint}")
    return list(dict.fromkeys(problems))


def record_problems(results: Path) -> list[str]:
    """What lies among the records and is none: damaged, under another name than its id, in the wrong folder, or no record at all; and
    metrics of the sheets that no record has."""
    return _read_all(results)[0]


def _read_all(results: Path) -> tuple[list[str], dict[str, list[dict]]]:
    """What is wrong among the records, and those of each paper with which nothing is."""
    problems, records, store = [], {}, Store(results)
    for root in (store.root(""), store.root("smoke")):
        for folder in _entries(root / "records"):
            if not folder.is_dir():
                problems.append(f"{folder} is not the folder of a paper's records: move or delete it")
            elif folder.name not in papers.names():
                problems.append(f"{folder} holds records of no paper (they are {', '.join(papers.names())}): move or delete it")
            else:
                for path in _entries(folder):
                    found = _read(path, root, store)
                    if isinstance(found, dict):
                        records.setdefault(folder.name, []).append(found)
                    elif found:
                        problems.append(found)
    for key, found in records.items():
        problems += metric_problems(papers.get(key), found)
    return problems, records


def _read(path: Path, root: Path, store: Store) -> dict | str | None:
    """The record in a file, or what is wrong with it; None for a file that may lie there."""
    if path.suffix == ".lease" and ID.fullmatch(path.stem):  # of a run, or left by one that was killed: it does no harm
        return None
    if path.suffix != ".json" or not ID.fullmatch(path.stem) or not path.is_file():
        return f"{path} is not a record (a record is called by its id, 12 hex digits, and .json): move or delete it"
    try:
        record = read(path)
    except KdcoreError as error:
        return str(error)
    if record["paper"] != path.parent.name or store.root(record["budget"]) != root:
        return f"the record {path} belongs elsewhere (paper {record['paper']}, budget {record['budget']}): move or delete it"
    return record


ID = re.compile(r"[0-9a-f]{12}")


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, but for git's own files; nothing where there is no folder."""
    return sorted(path for path in folder.iterdir() if path.name not in (".gitignore", ".gitkeep")) if folder.is_dir() else []
