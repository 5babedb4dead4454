"""``kdcore check``: every yaml, record and generated file, and whether they agree."""

import difflib
from pathlib import Path

from kdcore import papers, report, validation
from kdcore.errors import KdcoreError
from kdcore.trials.store import Store, read


def all_problems(results: Path) -> list[str]:
    """One sentence for each thing that is wrong; empty where all is well."""
    problems = []
    for key in papers.names():
        problems += sheet_problems(key)
    if not problems:  # tables of a broken sheet would only repeat its faults
        problems += record_problems(results)
        problems += report.stale(results)
    return problems


def sheet_problems(key: str) -> list[str]:
    """What is wrong in a paper's yaml (``papers.sheet``), in the networks that it names, its own figures and its notebook."""
    from kdcore.papers import sheet

    try:
        paper = papers.get(key)
    except papers.BadSheet as error:
        return error.problems
    except KdcoreError as error:
        return [str(error)]
    found = sheet.problems(paper) or [
        each for name in paper.budgets for each in sheet.network_problems(paper, name, paper.budget_arms(name))
    ]
    if not found and hasattr(paper.module, "figures"):
        try:
            paper.module.figures([])
        except Exception as error:  # a table, arm or number that the paper's own code looks for in the sheet
            found.append(f"{key}.py cannot draw its figures from it ({type(error).__name__}: {error})")
    problems = [f"{key}.yaml: {problem}" for problem in found]
    if not (validation.checkout() / "notebooks" / f"{key}.ipynb").exists():
        problems.append(f"notebooks/{key}.ipynb is missing")
    return problems


def metric_problems(paper, records: list[dict]) -> list[str]:
    """Metrics of rows and claims that no record of their arm has; of an arm without records nothing is known."""
    known: dict[str, set[str]] = {}
    for record in records:
        if record["status"] == "done":
            numbers = {name for name, value in record["metrics"].items() if isinstance(value, int | float) and not isinstance(value, bool)}
            known.setdefault(record["arm"], set()).update(numbers)
    wanted = [(f"table {table['id']}, row '{row['label']}'", row["arm"], row["metric"]) for table in paper.tables for row in table["rows"]]
    for claim in paper.sheet["claims"]:
        for side in (claim["left"], claim["right"]):
            wanted += [(f"claim {claim['id']}", arm, side["metric"]) for arm in side.get("arms") or []]
    problems = []
    for where, arm, metric in wanted:
        there = known.get(arm, set())
        if there and metric not in there:
            near = difflib.get_close_matches(metric, sorted(there), 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            problems.append(f"{paper.key}.yaml: {where}: the records of arm '{arm}' have no number '{metric}'{hint}")
    return list(dict.fromkeys(problems))


def record_problems(results: Path) -> list[str]:
    """Records that cannot be read, stand in the wrong folder, or belong to no paper; and metrics that none of them has."""
    problems, store, found = [], Store(results), {}
    for root in (store.root(""), store.root("smoke")):
        for path in sorted((root / "records").glob("*/*.json")):
            try:
                record = read(path)
            except KdcoreError as error:
                problems.append(str(error))
                continue
            if record["paper"] != path.parent.name or record["paper"] not in papers.names() or store.root(record["budget"]) != root:
                problems.append(
                    f"the record {path} belongs elsewhere (paper {record['paper']}, budget {record['budget']}): move or delete it"
                )
                continue
            found.setdefault(record["paper"], []).append(record)
    for key, records in found.items():
        problems += metric_problems(papers.get(key), records)
    return problems
