"""``kdcore new``: what it writes passes its own test and ``kdcore check`` at once; keys that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore import cli, papers, validation
from kdcore.errors import KdcoreError

ROOT = Path(__file__).parents[1]


def kdcore(*words, papers_in=None, program=("-m", "kdcore.cli")):
    """(exit code, output, errors) of a command with other papers than the suite's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"KDCORE_PAPERS": str(papers_in)} if papers_in else {})
    done = subprocess.run([sys.executable, *program, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_new_paper_passes_its_test_runs_and_is_checked(tmp_path):
    assert kdcore("plan", papers_in=tmp_path)[2] == f"kdcore: there is no paper in {tmp_path}: create one with kdcore new KEY\n"
    code, out, err = kdcore("new", "my_paper", papers_in=tmp_path)
    assert (code, err) == (0, "")
    assert out.split() == [str(tmp_path / "my_paper" / name) for name in ("sheet.yaml", "trial.py", "test_my_paper.py", "my_paper.ipynb")]
    code, out, _ = kdcore("-q", tmp_path / "my_paper", papers_in=tmp_path, program=("-m", "pytest", "-p", "no:cacheprovider"))
    assert code == 0 and "....  " in out, out
    assert kdcore("run", "my_paper", "--quiet", papers_in=tmp_path) == (0, "6 of 6 trials of my_paper at smoke are recorded\n", "")
    assert len(list((tmp_path / "results" / "smoke" / "records" / "my_paper").iterdir())) == 6
    assert kdcore("report", papers_in=tmp_path)[0] == 0
    assert kdcore("check", papers_in=tmp_path) == (0, "everything is valid and up to date\n", "")
    assert kdcore("new", "my_paper", papers_in=tmp_path)[2] == "kdcore: a paper my_paper exists already: choose another key\n"


@pytest.mark.parametrize(
    "broken, reason",
    [
        ("import kdcore.nothing", "line 1: ModuleNotFoundError: No module named 'kdcore.nothing'"),
        ("def f(:", "SyntaxError: "),
        ("1 / 0", "line 1: ZeroDivisionError: "),
    ],
)
def test_a_trial_that_cannot_be_imported_is_one_sentence(broken, reason, tmp_path):
    assert kdcore("new", "my_paper", papers_in=tmp_path)[0] == 0
    (tmp_path / "my_paper" / "trial.py").write_text(broken)
    for command in ("plan", "run"):
        code, _, err = kdcore(command, "my_paper", papers_in=tmp_path)
        assert code == 1 and err.count("\n") == 1 and err.startswith(f"kdcore: my_paper/trial.py cannot be imported ({reason}")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("VERSION = 1", ""), "my_paper/trial.py has no number VERSION"),
        (("VERSION = 1", "VERSION = 'a'"), "my_paper/trial.py has no number VERSION"),
        (("prepare = ", "prepaer = "), "my_paper/trial.py has no function prepare"),
        (("METRICS = ", "METRIC = "), "my_paper/trial.py has no dict METRICS"),
        (("VERSION = 1", "VERSION = 1\nraise SystemExit(0)"), "cannot be imported (line 7: SystemExit: 0)"),
    ],
)
def test_a_trial_py_that_lacks_a_part_is_told_without_a_record(change, sentence, tmp_path):
    assert kdcore("new", "my_paper", papers_in=tmp_path)[0] == 0
    path = tmp_path / "my_paper" / "trial.py"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    code, _, err = kdcore("check", papers_in=tmp_path)
    assert code == 1 and err.count("\n") == 1 and err.startswith("kdcore: my_paper/") and sentence in err


def test_in_the_checkout_its_notebook_and_test_lie_with_the_others(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "kdcore" / "papers"
    monkeypatch.setattr(papers, "HERE", folder)
    monkeypatch.setattr(papers, "__path__", [str(folder), *papers.__path__])
    monkeypatch.setattr(validation, "checkout", lambda: tmp_path)
    monkeypatch.delitem(sys.modules, "kdcore.papers.added", raising=False)
    assert cli.main(["new", "added"]) == 0
    expected = [folder / "added" / "sheet.yaml", folder / "added" / "trial.py", tmp_path / "tests" / "test_added.py"]
    assert capsys.readouterr().out.split() == [str(path) for path in (*expected, tmp_path / "notebooks" / "added.ipynb")]
    assert papers.names() == ["added"] and 'papers.get("added")' in (tmp_path / "tests" / "test_added.py").read_text()
    (folder / "added" / "sheet.yaml").unlink()
    assert cli.main(["new", "added"]) == 1
    assert capsys.readouterr().err == f"kdcore: {folder / 'added'} exists already: choose another key, or move it away\n"


@pytest.mark.parametrize("key", ["", "Upper", "9lives", "a-b", "a b", "x" * 41, "../up", "ümlaut"])
def test_keys_that_cannot_be(key, capsys):
    assert cli.main(["new", key]) == 1
    allowed = "use up to 40 lower-case letters, digits and underscores, a letter first"
    assert capsys.readouterr().err == f"kdcore: {validation.shown(key)} cannot be the key of a paper: {allowed}\n"


def test_keys_that_are_taken(capsys):
    for key, words in (
        ("fsp", "a paper fsp exists already"),
        ("images", "images is the name of a module in kdcore/papers"),
        ("class", "class is a reserved word of Python"),
        ("trial", "trial is the name of a file in every paper's folder"),
        ("torch", "torch is the name of a Python package that can be imported here"),
        ("test", "test is the name of a Python package that can be imported here"),
    ):
        assert cli.main(["new", key]) == 1
        assert capsys.readouterr().err == f"kdcore: {words}: choose another key\n"


@pytest.mark.parametrize(
    "value, words",
    [
        ("{}/missing", ", which does not exist: mkdir it"),
        ("{}/README.md", ""),
        ("{}:{}/fsp", ": choose one of them"),
        ("{}/fsp", ", the folder of a single paper: name the folder above it"),
        ("~nobody-of-this-name/x", " (Could not determine home directory.)"),
    ],
)
def test_a_folder_of_papers_that_is_none(value, words, tmp_path, monkeypatch):
    (tmp_path / "README.md").touch()
    (tmp_path / "fsp").mkdir()
    (tmp_path / "fsp" / "sheet.yaml").touch()
    value = value.replace("{}", str(tmp_path))
    monkeypatch.setenv("KDCORE_PAPERS", value)
    with pytest.raises(KdcoreError) as caught:
        validation.other_papers()
    rule = "KDCORE_PAPERS must name one folder of papers (KEY/sheet.yaml, KEY/trial.py), not"
    assert str(caught.value) == f"{rule} {validation.shown(value)}{words}"


def test_a_folder_of_papers_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDCORE_PAPERS", "~/mine")
    (tmp_path / "mine").mkdir()
    assert validation.other_papers() == (tmp_path / "mine").resolve()


def test_the_commands_refuse_a_folder_of_papers_in_one_sentence(tmp_path):
    code, out, err = kdcore("plan", papers_in=tmp_path / "missing")
    assert (code, out, err.count("\n")) == (1, "", 1) and "mkdir" in err
    assert kdcore("run", "fsp", papers_in=tmp_path)[2] == "kdcore: unknown paper 'fsp': there is no paper to choose from\n"
    assert kdcore("new", "my_paper", papers_in="/proc")[2].startswith(
        "kdcore: cannot write /proc/my_paper/sheet.yaml (No such file or directory): "
    )
