"""The standard cells of a notebook: what they hold, what is not in step, and what is left alone."""

import copy

import nbformat
import pytest

from kdcore import checks, cli, papers
from kdcore.notebooks import cells


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """FSP, with a copy of its notebook that may be changed."""
    paper = papers.Paper("fsp")
    copy = tmp_path / "fsp.ipynb"
    copy.write_bytes(paper.notebook.read_bytes())
    monkeypatch.setattr(papers.Paper, "notebook", copy)
    monkeypatch.setattr(papers, "get", lambda key: paper)
    return paper


def change(paper, edit):
    notebook = nbformat.read(paper.notebook, 4)
    edit(notebook.cells)
    nbformat.write(notebook, paper.notebook)


def sources(paper):
    return {cell.id: cell.source for cell in nbformat.read(paper.notebook, 4).cells}


@pytest.mark.parametrize("key", papers.names())
def test_every_notebook_is_in_step_with_its_sheet(key):
    assert cells.problems(papers.get(key)) == []


def test_what_the_sheet_says_is_in_the_cells():
    made = {cell.id: cell for cell in cells.standard(papers.get("born_again_trees"))}
    assert made["parameters"].source.startswith('budget: str = "smoke"  # smoke, laptop or paper\n')
    assert made["parameters"].metadata == {"tags": ["parameters"]}
    assert [name for name in made if name.startswith("table-")] == ["table-test_errors", "table-sensitivity", "table-trees"]
    assert made["paper-against-ours"].source == 'page.figure("paper_test_errors")'
    assert "three runs" not in made["tables"].source and "Welch" not in made["verdict"].source
    runs = {cell.id: cell.source for cell in cells.standard(papers.get("fisher_darts"))}
    assert "deviation of 3 runs" in runs["tables"] and "Welch's test" in " ".join(runs["verdict"].split())


def test_without_a_number_of_the_papers_nothing_is_compared():
    sheet = copy.deepcopy(papers.get("fsp").sheet)
    del sheet["margins"]  # of reported numbers
    for row in (row for table in sheet["tables"] for row in table["rows"]):
        row["paper"] = None
    assert not {"plots", "paper-against-ours"} & {cell.id for cell in cells.standard(papers.Paper("fsp", sheet))}


def test_a_cell_that_is_not_in_step_is_named_and_mended(paper, capsys):
    before = sources(paper)
    table = next(iter(paper.tables))["id"]

    def edit(there):
        by_name = {cell.id: cell for cell in there}
        by_name["budget"].source = 'page.facts("protocol")'
        by_name["cell-00"].source += "\nA word more."
        there.remove(by_name[f"table-{table}"])
        there.append(nbformat.v4.new_code_cell('page.table("gone")', id="table-gone"))

    change(paper, edit)
    assert checks.sheet_problems("fsp") == [
        f"{paper.notebook} has no cell 'table-{table}': run kdcore notebook fsp",
        f"the cell 'budget' of {paper.notebook} does not agree with the sheet: run kdcore notebook fsp",
        f"the cell 'table-gone' of {paper.notebook} shows a table that is not in the sheet: run kdcore notebook fsp",
    ]
    assert cli.main(["notebook", "fsp"]) == 0
    assert capsys.readouterr().out == f"{paper.notebook}: table-gone, budget, table-{table}\n"
    after = sources(paper)
    assert after.pop("cell-00") == before.pop("cell-00") + "\nA word more.", "the notebook's own cells stay"
    assert after == before and cells.problems(paper) == []
    assert list(after).index(f"table-{table}") == list(after).index("tables") + 1, "behind the standard cell before it"
    assert cli.main(["notebook", "fsp"]) == 0
    assert capsys.readouterr().out == f"{paper.notebook}: agrees with its sheet\n"


def test_a_notebook_that_is_missing_or_none_is_told(paper):
    paper.notebook.write_text("{")
    assert checks.sheet_problems("fsp") == [f"{paper.notebook} is not a notebook (NotJSONError): restore it from git"]
    paper.notebook.unlink()
    assert checks.sheet_problems("fsp") == [
        f"{paper.notebook} is missing: restore it from git, or run kdcore notebook fsp, which starts a new one"
    ]
    assert {"claim", "equation", "easy-and-hard"} < set(cells.write(paper)), "its own cells are named, too"
    assert cells.problems(paper) == [] and "## Claim" in sources(paper)["claim"]
