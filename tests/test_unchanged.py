"""A report that finds nothing changed does nothing; any change of what it reads, writes or runs on is noticed."""

import os
import subprocess
import sys

import pytest

from kdcore import cli, outputs, papers, unchanged
from kdcore.trials.store import Store
from tests.records import README, synthetic

PAPER = papers.get("hinton_mnist")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder with one record, beside a README."""
    folder = tmp_path / "results"
    store = Store(folder)
    for record in synthetic(PAPER, "fast", 1, ["small"]):
        store.put(record)
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(outputs, "_draw", lambda figures, origins: None)
    monkeypatch.setattr(unchanged, "PACKAGE", tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "module.py").write_text("1")
    return folder


def reported(folder, capsys, *words: str) -> str:
    assert cli.main(["report", "--results", str(folder), *words]) == 0
    return capsys.readouterr().out


def test_a_second_report_has_nothing_to_do(results, capsys, monkeypatch):
    assert "README.md" in reported(results, capsys)
    monkeypatch.setattr(outputs, "write", None)  # would be called
    assert reported(results, capsys) == f"nothing in {results} has changed since the last report\n"


@pytest.mark.parametrize(
    "changed", ["records/*/*.json", "records.csv", "README.md", "../README.md", "../code/module.py", "hinton_mnist.md"]
)
def test_a_change_of_any_file_is_noticed(changed, results, capsys):
    reported(results, capsys)
    (file,) = results.glob(changed) if not changed.startswith("..") else [results / changed]
    text = file.read_text()
    file.write_text(text + "\n")
    assert not unchanged.unchanged(results, "report")
    file.write_text(text)
    assert unchanged.unchanged(results, "report")
    file.rename(file.with_name("other" + file.suffix))
    assert not unchanged.unchanged(results, "report")


def test_another_version_is_noticed_and_so_is_another_kind_of_report(results, capsys, monkeypatch):
    reported(results, capsys)
    assert not unchanged.unchanged(results, "site") and not unchanged.unchanged(results, "smoke")
    monkeypatch.setattr(unchanged.platform, "python_version", lambda: "0")
    assert not unchanged.unchanged(results, "report")


def test_another_version_of_any_package_is_noticed(results, capsys, monkeypatch, tmp_path):
    reported(results, capsys)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    (tmp_path / "site-packages" / "mistune-99.dist-info").mkdir(parents=True)
    assert not unchanged.unchanged(results, "report")


def test_a_record_that_comes_during_a_report_is_not_taken_for_shown(results, capsys, monkeypatch):
    def draw(figures, origins):
        for record in synthetic(PAPER, "fast", 2, ["small"]):
            Store(results).put(record)

    monkeypatch.setattr(outputs, "_draw", draw)
    reported(results, capsys)
    assert (results / "records.csv").read_text().count("\n") == 2
    assert "README.md" in reported(results, capsys) and (results / "records.csv").read_text().count("\n") == 3
    assert "nothing" in reported(results, capsys)


def test_files_behind_links_count_and_circles_end(results, capsys, tmp_path):
    (results / "records").rename(tmp_path / "elsewhere")
    (results / "records").symlink_to(tmp_path / "elsewhere")
    (results / "circle").symlink_to(results)
    reported(results, capsys)
    assert "nothing" in reported(results, capsys)
    next((tmp_path / "elsewhere").rglob("*.json")).unlink()
    assert not unchanged.unchanged(results, "report")


def test_a_report_on_records_of_other_papers_writes_nothing(results, capsys):
    (results / "records" / PAPER.key).rename(results / "records" / "other")
    assert cli.main(["report", "--results", str(results)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"kdcore: no record in {results} is of ") and said.count("\n") == 1
    assert (results.parent / "README.md").read_text() == README and not (results / "tables").exists()


def test_other_papers_are_noticed_even_with_the_same_files(results, capsys, monkeypatch, tmp_path):
    reported(results, capsys)
    monkeypatch.setenv("KDCORE_PAPERS", str(tmp_path / "code"))
    assert not unchanged.unchanged(results, "report")


@pytest.mark.parametrize("kept", ["", "[]", "null", '{"report": 1}', "\0"])
def test_a_damaged_memory_means_a_new_report(kept, results, capsys):
    reported(results, capsys)
    (results / unchanged.KEPT).write_text(kept)
    assert "README.md" in reported(results, capsys) and "nothing" in reported(results, capsys)


def test_commands_that_train_nothing_start_without_pytorch():
    for words in (["--version"], ["report", "--help"], ["--help"]):
        lines = ["import sys", "from kdcore import cli", "try:", f"    cli.main({words})", "except SystemExit:", "    pass"]
        code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ, timeout=60)
