"""The standard cells of notebooks, generated from the paper's sheet: ``kdcore notebook KEY`` writes them, ``kdcore check`` compares.

A standard cell is recognised by its id ("budget", "table-errors"); every other cell is the notebook's own and is left alone.
"""

import textwrap
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kdcore import paths
from kdcore.errors import KdcoreError

TABLE = "table-"  # followed by the id of a table: the id of its cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def standard(paper) -> list[NotebookNode]:
    """The standard cells of a paper's notebook, in order."""
    names, runs = list(paper.budgets), paper.sheet.get("runs")
    chosen = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    sizes = [f"- `{name}` ({budget['time']}): {budget['about'].rstrip('.')}." for name, budget in paper.budgets.items()]
    compared = next((table["id"] for table in paper.tables if any(row["paper"] is not None for row in table["rows"])), None)
    quoted = any(row["arm"] is None for table in paper.tables for row in table["rows"])
    tables = [
        "Each table is shown per budget, committed records first.",
        *([f"Paper: mean and standard deviation of {runs} runs."] if runs else []),
        "Ours: mean and 95 % t-interval over seeds. The verdict compares the 90 % interval of the difference with the margin in the last",
        "column.",
        *(['Rows marked "quoted" are numbers that the paper takes from others.'] if quoted else []),
    ]
    claims = "A claim holds when the interval of the paired difference lies on its side of 0; Holm's correction sets the level."
    welch = f" The last two columns test it on the paper's own means and standard deviations: Welch's test with {runs} runs, uncorrected."
    plots = [_words("plots", "## Plots\n\n### Paper against ours\n\nEach dot is a seed."),
             _code("paper-against-ours", f'page.figure("paper_{compared}")')] if compared else []  # fmt: skip
    cells = [
        _words("setup", "## Setup\n\nThe next cell holds the parameters. The budgets:\n\n" + "\n".join(map(_wrapped, sizes))),
        _code(
            "parameters",
            f'budget: str = "{names[0]}"  # {chosen}',
            "seeds: int = 0  # how many seeds; 0 for the budget's own number",
            'device: str = "cpu"  # cpu, cuda or cuda:N',
            'engine: str = "local"  # local: child processes on this machine',
            'results_dir: str = "results"  # the folder of the records, relative to the checkout',
        ),
        _code(
            "page",
            "from kdcore import notebooks",
            "",
            f'page = notebooks.Page("{paper.key}", budget=budget, seeds=seeds, device=device, engine=engine, results_dir=results_dir)',
            "page.run()",
        ),
        _words("budget-words", "What this budget changes in the paper's protocol:"),
        _code("budget", 'page.facts("budget")'),
        _words(
            "protocol-words",
            "The protocol, fact by fact. Marks: V read in the named source, C computed, I inferred, M from memory, ? not stated anywhere.",
        ),
        _code("protocol", 'page.facts("protocol")'),
        _words("tables", "## Tables\n\n" + _wrapped(" ".join(tables))),
        *(_code(TABLE + table["id"], f'page.table("{table["id"]}")') for table in paper.tables),
        *plots,
        _words("verdict", "## Verdict\n\n" + _wrapped(claims + (welch if runs else ""))),
        _code("claims", "page.claims()"),
        *([_words("findings-words", "### What came out"), _code("findings", "page.findings()")] if paper.sheet.get("findings") else []),
        _words("deviations-words", "### Where this replication departs from the paper"),
        _code("deviations", 'page.facts("deviations")'),
    ]
    cells[1].metadata.tags = ["parameters"]
    return cells


def started(paper) -> NotebookNode:
    """A new notebook: the standard cells, and placeholders for what has to be written around them."""
    sheet = paper.sheet
    title = f"# {sheet['title']}\n\n{sheet['authors']} {sheet['year']}.\n\n## Claim\n\n{sheet['question']}"
    first = [
        _words("claim", title),
        _words("equation", "## Equation\n\nWrite each equation that the code has, with its number, and where it stands in the code."),
    ]
    last = _words("easy-and-hard", "## What was easy, what was hard\n\n**Easy.** ...\n\n**Hard.** ...")
    notebook = new_notebook(cells=[*first, *standard(paper), last], metadata=METADATA)
    notebook.nbformat_minor = 5
    return notebook


def problems(paper) -> list[str]:
    """One sentence for each cell that does not agree with the sheet."""
    path = paper.notebook
    mend = f"run kdcore notebook {paper.key}"
    if not path.exists():
        return [f"{path} is missing: restore it from git, or {mend}, which starts a new one"]
    notebook, expected = read(path), {cell.id: cell for cell in standard(paper)}
    there = {cell.id: cell for cell in notebook.cells}
    wrong = [f"{path} has no cell '{name}': {mend}" for name in expected if name not in there]
    wrong += [
        f"the cell '{name}' of {path} does not agree with the sheet: {mend}"
        for name, cell in expected.items()
        if name in there and not _equal(there[name], cell)
    ]
    return wrong + [f"the cell '{name}' of {path} shows a table that is not in the sheet: {mend}"
                    for name in there if name.startswith(TABLE) and name not in expected]  # fmt: skip


def write(paper) -> list[str]:
    """Update the standard cells of a paper's notebook from its sheet, or write a new notebook if there is none. Returns the ids of
    cells that were added, changed or removed."""
    path = paper.notebook
    if not path.exists():
        _save(path, new := started(paper))
        return [cell.id for cell in new.cells]
    notebook, expected = read(path), standard(paper)
    changed, known = [], {cell.id for cell in expected}
    cells = [cell for cell in notebook.cells if not cell.id.startswith(TABLE) or cell.id in known]
    changed += [cell.id for cell in notebook.cells if cell.id.startswith(TABLE) and cell.id not in known]
    place = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells)) - 1  # before the first cell that runs
    for cell in expected:
        old = next((i for i, each in enumerate(cells) if each.id == cell.id), None)
        if old is None:
            cells.insert(place := place + 1, cell)
            changed.append(cell.id)
            continue
        if not _equal(cells[old], cell):
            cells[old] = cell
            changed.append(cell.id)
        place = old
    if changed:
        notebook.cells = cells
        _save(path, notebook)
    return changed


def read(path: Path) -> NotebookNode:
    """Read a notebook. Raises KdcoreError for a file that is not one."""
    try:
        return nbformat.read(paths.regular(path), 4)
    except Exception as error:  # whatever nbformat raises for a broken file
        raise KdcoreError(f"{path} is not a notebook ({type(error).__name__}): restore it from git") from error


def _save(path: Path, notebook: NotebookNode) -> None:
    paths.write_text(path, nbformat.writes(notebook) + "\n")


def _equal(one: NotebookNode, other: NotebookNode) -> bool:
    """Whether two cells are equal, apart from what editors keep in their metadata."""
    parts = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in (one, other)]
    return parts[0] == parts[1]


def _words(name: str, text: str) -> NotebookNode:
    return new_markdown_cell(text, id=name)


def _code(name: str, *lines: str) -> NotebookNode:
    return new_code_cell("\n".join(lines), id=name)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent="  " if text.startswith("- ") else "")
