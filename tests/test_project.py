"""The project as a whole: requirements, sheets, generated files, layout."""

import re
from pathlib import Path

import pytest
import yaml

from kdcore import checks, papers
from kdcore.papers import sheet
from kdcore.trials.store import Store

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


def test_the_page_and_the_schema_of_sheets_are_up_to_date():
    assert checks.page_problems() == []


def test_sheets_have_one_order_and_fit_a_page():
    """Sections, and the keys of facts, budgets, tables and claims, in the order of the models; no line over 120 columns."""

    def ordered(entry, model):
        known = [field.alias or name for name, field in model.model_fields.items()]
        return list(entry) == sorted(entry, key=known.index)

    for key in papers.names():
        text, read = (papers.HERE / key / "sheet.yaml").read_text(), papers.get(key).sheet
        assert [number for number, line in enumerate(text.split("\n"), 1) if len(line) > 120] == [], key
        assert ordered(read, sheet.Sheet), key
        for model, entries in (
            (sheet.Fact, read["protocol"]),
            (sheet.Budget, read["budgets"].values()),
            (sheet.Table, read["tables"]),
            (sheet.Claim, read["claims"]),
            (sheet.Deviation, read["deviations"]),
            (sheet.Finding, read["findings"]),
            (sheet.Value, [value for each in read["findings"] for value in each["values"].values()]),
        ):
            assert [entry for entry in entries if not ordered(entry, model)] == [], key


@pytest.mark.parametrize("key", papers.names())
def test_every_metric_of_every_record_is_declared(key):
    paper = papers.get(key)
    measured = {name for record in Store(ROOT / "results").records(key) if record["status"] == "done" for name in record["metrics"]}
    assert bool(measured) == (ROOT / "results" / "records" / key).exists()  # a new paper has none yet
    assert measured <= set(paper.module.METRICS)
    assert all(isinstance(words, str) and words.strip() for words in paper.module.METRICS.values())
