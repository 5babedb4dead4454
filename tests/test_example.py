"""The example paper of docs/adding_a_paper.md: its own tests, every command, and whether the document shows its files."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example"


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KDCORE_PAPERS": str(EXAMPLE)}
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_papers_own_test():
    assert "12 passed" in run("pytest", "-p", "no:cacheprovider", EXAMPLE / "rkd", "-o", "addopts=")


def test_every_command_works_on_it_and_touches_nothing_else(tmp_path):
    """The notebook, one seed, on embedded data: 7 arms, then report and check."""
    there = sorted((ROOT / "results").rglob("*rkd*"))
    where = ("--results", tmp_path / "results")
    assert "Park 2019, RKD" in run("kdcore.cli", "plan", "--no-forecast", *where)
    assert "rkd: 7 trials at budget smoke" in run("kdcore.cli", "replicate", "rkd", "--seeds", "1", *where)
    executed = (tmp_path / "results" / "smoke" / "executed" / "rkd.ipynb").read_text()
    assert "77.76" in executed and "image/png" in executed
    run("kdcore.cli", "report", *where)
    assert run("kdcore.cli", "check", *where) == "everything is valid and up to date\n"
    assert sorted((ROOT / "results").rglob("*rkd*")) == there and "rkd" not in (ROOT / "README.md").read_text()


def test_the_document_shows_the_files():
    text = (ROOT / "docs" / "adding_a_paper.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^`(docs/example/\S+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert list(shown) == [f"docs/example/rkd/{name}" for name in ("sheet.yaml", "loss.py", "trial.py", "test_rkd.py")]
    for path, content in shown.items():
        assert content == (ROOT / path).read_text(encoding="utf-8"), f"{path} has changed: show it as it is"
