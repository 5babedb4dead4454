"""``kdcore check``: every yaml, record and generated file, and whether they agree."""

from pathlib import Path

from kdcore import notebooks, papers, report
from kdcore.errors import KdcoreError
from kdcore.trials.store import Store, read

MARKS = ("V", "C", "I", "M", "M?", "?")
SECTIONS = tuple(
    [
        "title",
        "authors",
        "year",
        "citation",
        "url",
        "short",
        "question",
        "protocol",
        "bfloat16",
        "config",
        "arms",
        "budgets",
        "tables",
        "claims",
        "deviations",
    ]
)


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
    """What is wrong in a paper's yaml: missing sections, unknown marks, arms, parameters or patterns that match nothing."""
    import fnmatch

    paper = papers.get(key)
    where, sheet = f"{key}.yaml", paper.sheet
    problems = [f"{where} lacks the section '{name}'" for name in SECTIONS if name not in sheet]
    if problems:
        return problems
    problems += [
        f"{where}: mark '{fact.get('mark')}' of protocol fact '{fact['what']}' is not one of {', '.join(MARKS)}"
        for fact in sheet["protocol"]
        if fact.get("mark") not in MARKS
    ]
    for name, budget in paper.budgets.items():
        for pattern in (*budget.get("arms", {}), *budget.get("only", [])):
            if not any(fnmatch.fnmatchcase(arm, pattern) for arm in paper.arms):
                problems.append(f"{where}: '{pattern}' in budget {name} matches no arm")
        for arm in paper.budget_arms(name):
            try:
                paper.trial(name, arm, 0)
            except KdcoreError as error:
                problems.append(str(error))
    for table in paper.tables:
        for row in table["rows"]:
            if row["arm"] is not None and row["arm"] not in paper.arms:
                problems.append(f"{where}: table {table['id']} names the arm '{row['arm']}', which is not there")
            if row["paper"] is not None and row.get("mark") not in MARKS:
                problems.append(f"{where}: the reported number of '{row['label']}' in table {table['id']} has no mark")
            if "reference" in row and "reference" not in table:
                problems.append(f"{where}: table {table['id']} does not say whose number the reference of '{row['label']}' is")
    for claim in sheet["claims"]:
        problems += [
            f"{where}: claim {claim['id']} names the arm '{arm}', which is not there"
            for side in ("left", "right")
            for arm in claim[side].get("arms", [])
            if arm not in paper.arms
        ]
    for claim in sheet["claims"]:
        if claim["relation"] not in ("<", "same") or (claim["relation"] == "same") != ("margin" in claim):
            problems.append(f"{where}: claim {claim['id']} needs the relation '<', or 'same' with a margin")
    if not (notebooks.root() / "notebooks" / f"{key}.ipynb").exists():
        problems.append(f"notebooks/{key}.ipynb is missing")
    return problems


def record_problems(results: Path) -> list[str]:
    """Records that cannot be read, stand in the wrong folder, or belong to no paper."""
    problems, store = [], Store(results)
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
    return problems
