"""``kdcore check``: are all sheets, records and generated files valid and consistent?"""

import difflib
import re
from pathlib import Path

from kdcore import outputs, papers, validation
from kdcore.errors import KdcoreError
from kdcore.report import findings
from kdcore.trials.store import Store, read

MOST_BYTES = 500_000  # of a committed notebook: GitHub does not render much larger ones


def all_problems(results: Path) -> list[str]:
    """One sentence for each problem; empty if there is none."""
    # tables of an invalid sheet would only repeat its problems
    return paper_problems() or result_problems(results)


def paper_problems() -> list[str]:
    """Problems with the sheets, code and notebooks of all papers; no record is needed."""
    return [problem for key in papers.names() for problem in sheet_problems(key)]


def result_problems(results: Path) -> list[str]:
    """Problems with the records and with all that is generated from them."""
    problems, records = _read_all(results)
    problems += [] if validation.other_papers() else page_problems()
    problems += notebook_problems(results)
    try:
        problems += outputs.stale(results, records)
    except KdcoreError as error:  # the problems above prevent tables
        problems.append(str(error))
    return problems


def sheet_problems(key: str) -> list[str]:
    """Problems with a paper's sheet (``papers.problems``), its networks and equations, its own figures and its notebook."""
    from kdcore.notebooks import cells
    from kdcore.papers import equations
    from kdcore.papers import problems as rules

    try:
        paper = papers.get(key)
    except papers.BadSheet as error:
        return error.problems
    except KdcoreError as error:
        return [str(error)]
    wrong = rules.problems(paper) or [
        each for name in paper.budgets for each in rules.network_problems(paper, name, paper.budget_arms(name))
    ]
    if not wrong:
        try:
            paper.figures([])
        except Exception as error:  # for example a table or arm that the paper's own code expects in the sheet
            wrong.append(f"{key}/figures.py cannot draw its figures from it ({type(error).__name__}: {error})")
    problems = [f"{key}/sheet.yaml: {problem}" for problem in wrong]
    try:
        return problems + cells.problems(paper) + equations.problems(paper)
    except KdcoreError as error:
        return [*problems, str(error)]


def page_problems() -> list[str]:
    """Generated pages that are out of date: docs/sheet.md and the schema, docs/equations.md."""
    from kdcore.papers import equations, sheet_page

    root = validation.checkout()
    return sheet_page.outdated(root) + equations.outdated(root)


def metric_problems(paper, records: list[dict]) -> list[str]:
    """Metrics of rows and claims that no record of their arm has; arms without records are skipped."""
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
    """Files among the records that are damaged, misnamed, in the wrong folder or no records; and metrics of the sheets that no
    record has."""
    return _read_all(results)[0]


def notebook_problems(results: Path) -> list[str]:
    """One sentence for each executed notebook in a results folder that GitHub would not render."""
    sizes = {path: path.stat().st_size for path in sorted((results / "executed").glob("*.ipynb")) if path.is_file()}
    return [
        f"{path} has {size // 1000} KB, and GitHub renders only notebooks that are smaller than {MOST_BYTES // 1000} KB: "
        "draw fewer or simpler figures in it, and run kdcore replicate"
        for path, size in sizes.items()
        if size >= MOST_BYTES
    ]


def _read_all(results: Path) -> tuple[list[str], dict[str, list[dict]]]:
    """Problems with the records, and the valid records of each paper."""
    problems, records, store = [], {}, Store(results)
    for root in (store.root(""), store.root("smoke")):
        for folder in _entries(root / "records"):
            if not folder.is_dir():
                problems.append(f"{folder} is not the folder of a paper's records: move or delete it")
            elif folder.name not in papers.names():
                problems.append(f"{folder} holds records of no paper (they are {', '.join(papers.names())}): move or delete it")
            else:
                for path in _entries(folder):
                    content = _read(path, root, store)
                    if isinstance(content, dict):
                        records.setdefault(folder.name, []).append(content)
                    elif content:
                        problems.append(content)
    for key, valid in records.items():
        wrong = metric_problems(papers.get(key), valid)
        problems += wrong or findings.problems(papers.get(key), valid)
    return problems, records


def _read(path: Path, root: Path, store: Store) -> dict | str | None:
    """The record in a file, or what is wrong with it; None for a file that may be there."""
    if path.suffix == ".lease" and ID.fullmatch(path.stem):  # of a run, or left by one that was killed, and harmless
        return None
    if path.suffix != ".json" or not ID.fullmatch(path.stem) or not path.is_file():
        return f"{path} is not a record (a record's name is its id, 12 hex digits, and .json): move or delete it"
    try:
        record = read(path)
    except KdcoreError as error:
        return str(error)
    if record["paper"] != path.parent.name or store.root(record["budget"]) != root:
        return f"the record {path} belongs elsewhere (paper {record['paper']}, budget {record['budget']}): move or delete it"
    return record


ID = re.compile(r"[0-9a-f]{12}")


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, except git's own files; none if the folder does not exist."""
    return sorted(path for path in folder.iterdir() if path.name not in (".gitignore", ".gitkeep")) if folder.is_dir() else []
