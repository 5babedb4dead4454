"""The project as a whole: requirements, sheets, generated files, layout."""

import re
from pathlib import Path

import pytest
import yaml

from kdcore import checks, papers
from kdcore.errors import KdcoreError

ROOT = Path(__file__).parents[1]


def pinned(lines) -> list[str]:
    return sorted(line.strip() for line in lines if re.match(r"\s*[A-Za-z0-9_.-]+==", line))


def test_conda_and_pip_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(line for line in pip if line != "-e .") == pinned(requirements)
    assert all("==" in line for line in requirements if line and not line.startswith("#")), "direct dependencies are pinned"


def test_top_level_is_what_the_readme_promises():
    for name in (
        "README.md",
        "requirements.txt",
        "environment.yml",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        "notebooks",
        "kdcore",
        "results",
        "tests",
    ):
        assert (ROOT / name).exists(), name
    readme = (ROOT / "README.md").read_text()
    assert "make replicate" in readme and "make test" in readme


def test_sheets_are_valid():
    for key in papers.names():
        assert checks.sheet_problems(key) == []


def test_a_broken_sheet_is_told(monkeypatch):
    paper = papers.get("hinton_mnist")
    monkeypatch.setitem(paper.sheet["protocol"][0], "mark", "sure")
    monkeypatch.setitem(paper.budgets["smoke"]["arms"], "smal", {"epochs": 1})
    monkeypatch.setitem(paper.sheet["claims"][0]["left"], "arms", ["tiny"])
    monkeypatch.setitem(paper.tables[0]["rows"][0], "reference", 3)
    text = " ".join(checks.sheet_problems("hinton_mnist"))
    assert "does not say whose number the reference of" in text
    assert "mark 'sure'" in text and "'smal' in budget smoke matches no arm" in text and "names the arm 'tiny'" in text


def test_unknown_parameters_in_a_sheet_are_told(monkeypatch):
    paper = papers.Paper("hinton_mnist")
    monkeypatch.setattr(papers, "get", lambda key: paper)
    monkeypatch.setitem(paper.budgets["smoke"]["arms"], "small", {"epoch": 1})
    assert any("unknown parameters for 'small' at smoke: epoch" in problem for problem in checks.sheet_problems("hinton_mnist"))


def test_a_stray_record_is_told(tmp_path):
    folder = tmp_path / "records" / "hinton_mnist"
    folder.mkdir(parents=True)
    (folder / "0123456789ab.json").write_text("{")
    (problem,) = checks.record_problems(tmp_path)
    assert "0123456789ab.json is damaged" in problem


def test_sweeps_expand():
    arms = papers._expanded({"a {x}, {y}": {"sweep": {"x": [1, 2], "y": [0.5]}, "layers": [8, "{x}"], "t": "{y}", "name": "x"}, "b": {}})
    assert arms == {
        "a 1, 0.5": {"layers": [8, 1], "t": 0.5, "name": "x"},
        "a 2, 0.5": {"layers": [8, 2], "t": 0.5, "name": "x"},
        "b": {},
    }


def test_seeds_of_a_budget():
    paper = papers.get("hinton_mnist")
    assert (paper.seeds("fast", "small"), paper.seeds("fast", "30 units, T=4")) == (5, 3)
    assert len(paper.trials("fast")) == 5 * 5 + 3 * 20
    assert [trial.seed for trial in paper.trials("fast")] == sorted(trial.seed for trial in paper.trials("fast"))


def test_numbers_of_a_swept_row():
    paper = papers.Paper("hinton_mnist")
    row = {"label": "{a} and {b}", "arm": "small", "sweep": {"a": [1, 2], "b": [3, 4]}, "paper": [10, 11, None, 13], "reference": 5}
    paper.sheet["tables"] = [{"id": "t", "metric": "m", "unit": "u", "margin": 1, "reference": "someone", "rows": [row]}]
    rows = paper.tables[0]["rows"]
    assert [(r["label"], r["paper"], r["reference"]) for r in rows] == [
        ("1 and 3", 10, 5), ("1 and 4", 11, 5), ("2 and 3", None, 5), ("2 and 4", 13, 5),
    ]  # fmt: skip
    paper = papers.Paper("hinton_mnist")
    paper.sheet["tables"] = [{"id": "t", "metric": "m", "unit": "u", "margin": 1, "rows": [row | {"paper": [10, 11]}]}]
    with pytest.raises(KdcoreError, match="the row '{a} and {b}' stands for 4 rows and has 2 numbers in 'paper'"):
        _ = paper.tables
