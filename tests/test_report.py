"""What a report writes: tables, figures, pages and the README's generated parts, the same bytes each time."""

import csv
import os
import re

import numpy as np
import pytest
from records import KEY, README, contents, made, synthetic

from kdcore import outputs, papers
from kdcore.errors import KdcoreError
from kdcore.report import catalogue, claims, readme, tables
from kdcore.trials.store import Store


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "project" / "results")


@pytest.fixture
def full(paper, store):
    """A project with two arms at laptop, a failure, smoke records and a README."""
    for record in synthetic(paper, "laptop", 2, ["small", "small with KD"]) + synthetic(paper, "smoke", 2, ["small"]):
        store.put(record)
    store.put(made(paper.trial("laptop", "small", 9), {"message": "the loss is not <finite>"}, status="nan"))
    (store.results.parent / "README.md").write_text(README)
    return store


def test_without_records_everything_works(paper, store):
    for sheet in paper.tables:
        assert set(tables.table(paper, sheet, [], "fast")["verdict"]) == {"not run"}
    assert set(claims.claims(paper, [], "fast")["verdict"]) == {"not run"}
    assert catalogue.figures_of(paper, []) == {}
    assert outputs.stale(store.results) == []
    assert outputs.write(store.results) == []
    assert outputs.write(store.results, budget="smoke") == []
    assert outputs.stale(store.results) == []
    assert not list(store.results.glob("*.md")) and not (store.results / "records.csv").exists()


def test_report_is_deterministic_and_current(paper, full):
    project = full.results.parent
    written = outputs.write(full.results)
    assert all(path.exists() for path in written)
    first = contents(project)
    assert f"results/tables/{KEY}/laptop_errors.csv" in first and f"results/figures/{KEY}/laptop_paper_errors.svg" in first
    assert f"results/tables/{KEY}/laptop_temperature.csv" not in first  # the budget runs none of its rows
    assert not any("smoke" in name for name in first if "/records/" not in name)
    assert outputs.stale(full.results) == []

    extra = full.results / "tables" / KEY / "laptop_gone.csv"
    extra.write_text("of an earlier sheet")
    edited = full.results / "tables" / KEY / "laptop_errors.md"
    edited.write_text("typed by hand")
    (full.results / "figures" / KEY / "laptop_paper_errors.svg").unlink()
    (project / "README.md").write_text(README)
    problems = "\n".join(outputs.stale(full.results))
    assert len(problems.splitlines()) == 5
    for name, what in (
        (extra, "follows from no record"),
        (edited, "out of date"),
        ("paper_errors.svg", "missing"),
        (f"{KEY}.md", "out of date"),  # it tells what that figure shows
        ("README.md", "out of date"),
    ):
        assert re.search(f"{re.escape(str(name))} (is )?{what}", problems)

    outputs.write(full.results)
    assert contents(project) == first  # the same bytes, and the leftover gone


def test_smoke_report_touches_nothing_committed(full):
    before = contents(full.results.parent)
    written = outputs.write(full.results, budget="smoke")
    assert written and all((full.results / "smoke") in path.parents for path in written)
    after = contents(full.results.parent)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("results/smoke/") for name in set(after) - set(before))


def test_written_tables_can_be_read(paper, full):
    outputs.write(full.results)
    folder = full.results / "tables" / KEY
    rows = list(csv.DictReader((folder / "laptop_errors.csv").open()))
    assert [row["label"] for row in rows] == [row["label"] for row in paper.tables[0]["rows"]]
    assert {row["budget"] for row in rows} == {"laptop"} and rows[0]["ours"] == "" and rows[1]["n"] == "2"
    small = [record["metrics"]["test_errors"] for record in full.records(KEY, "laptop") if record["arm"] == "small" and record["seed"] < 9]
    assert rows[1]["seeds"] == " ".join(f"{seed}:{value:.6g}" for seed, value in enumerate(small))
    assert float(rows[1]["ours"]) == pytest.approx(np.mean(small), rel=1e-5)
    text = (folder / "laptop_errors.md").read_text()
    assert "Budget **laptop**" in text and "Test CPU" in text
    lengths = {line.count(" | ") for line in text.splitlines() if line.startswith("|")}
    assert len(lengths) == 1


def test_generated_files_that_are_no_text_are_out_of_date(tmp_path):
    for name, make in {"bytes": lambda p: p.write_bytes(b"\xff\xfe"), "folder": os.mkdir, "pipe": os.mkfifo}.items():
        make(tmp_path / name)
        assert outputs._read(tmp_path / name) == ""
        with pytest.raises(KdcoreError, match=f"{tmp_path / name} cannot be read as UTF-8 text"):
            readme.text_of(tmp_path / name)
    assert outputs._read(tmp_path / "missing") is None
