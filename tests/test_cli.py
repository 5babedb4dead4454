"""The command line: words, exit codes, one sentence for what is wrong."""

import os
import subprocess
import sys

import pytest

from kdcore import cli
from kdcore.errors import KdcoreError
from kdcore.trials import runner


def test_plan_shows_the_grid(tmp_path, capsys):
    assert cli.main(["plan", "hinton_mnist", "--budget", "fast", "--no-forecast", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "small with KD, only 7s and 8s" in shown and "GiB free" in shown


def test_one_cell_can_be_run_again(tmp_path, capsys):
    words = ["run", "hinton_mnist", "--arm", "small", "--seed", "3", "--results", str(tmp_path), "--quiet"]
    assert cli.main(words) == 0
    assert "1 of 1 trials of hinton_mnist at smoke are recorded" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["run", "hinton_minst"], "unknown paper 'hinton_minst': choose one of "),
        (["run", "hinton_mnist", "--budget", "tiny"], "has no budget 'tiny': choose one of smoke, laptop, fast, paper"),
        (["run", "hinton_mnist", "--arm", "big"], "has no arm 'big': choose one of cumbersome; small"),
        (["run", "hinton_mnist", "--device", "cuda:7"], "device 'cuda:7' is not there"),
        (["plan", "nothing"], "unknown paper 'nothing'"),
        (["replicate", "hinton_mnist", "--engine", "slurm"], "unknown engine 'slurm': choose one of local"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_1(words, complaint, tmp_path, capsys):
    assert cli.main([*words, "--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("words", [["--seeds", "x"], ["--seeds", "-1"], ["--jobs", "0"], ["--shard", "3/2"], ["--time-limit", "-5"]])
def test_wrong_usage_exits_2(words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "hinton_mnist", *words])
    assert caught.value.code == 2


def test_seeds_and_shards():
    assert cli.seeds("3") == [0, 1, 2] and cli.seeds("0,4") == [0, 4] and cli.seeds("2,") == [2]
    assert cli.shard("2/8") == (2, 8)


def test_missing_data_is_refused_and_nothing_is_recorded(tmp_path):
    """No MNIST, no network: one sentence, exit 1, no failure record."""
    environment = os.environ | {
        "KDCORE_DATA": str(tmp_path / "nothing"),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    words = [sys.executable, "-m", "kdcore.cli", "run", "hinton_mnist", "--budget", "fast", "--arm", "small", "--seed", "0"]
    done = subprocess.run([*words, "--results", str(tmp_path / "results")], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "mnist is not in" in done.stderr and "KDCORE_DATA" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.lease"))


def test_a_plan_without_data_shows_what_is_missing(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path / "nothing"))
    assert cli.main(["plan", "hinton_mnist", "--budget", "fast", "--arm", "small", "--seeds", "2", "--results", str(tmp_path)]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith("kdcore: 'small' cannot be timed: mnist is not in") and captured.err.count("\n") == 1
    assert "│ small " in captured.out and "GiB free" in captured.out


def test_a_plan_tells_of_a_child_that_died(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(runner.Worker, "ask", lambda *_: (_ for _ in ()).throw(runner.ChildDied("error", "in a\nlast", False)))
    assert cli.main(["plan", "hinton_mnist", "--arm", "small", "--seeds", "1", "--results", str(tmp_path)]) == 1
    captured = capfd.readouterr()
    assert captured.err == "kdcore: 'small' cannot be timed: last\n" and "│ small " in captured.out


def test_a_damaged_record_stops_the_run_with_its_name(tmp_path, capsys):
    words = ["run", "hinton_mnist", "--arm", "small", "--seed", "0", "--results", str(tmp_path), "--quiet"]
    assert cli.main(words) == 0
    (record,) = tmp_path.rglob("*.json")
    record.write_text(record.read_text()[:100])
    assert cli.main(words) == 1
    assert str(record) in capsys.readouterr().err


def test_read_only_results(tmp_path, capsys):
    (tmp_path / "results").write_text("")  # even root cannot make a folder in a file
    words = ["run", "hinton_mnist", "--arm", "small", "--seed", "0", "--results", str(tmp_path / "results"), "--quiet"]
    assert cli.main(words) == 1
    assert "cannot write" in capsys.readouterr().err


def test_errors_are_for_people():
    assert issubclass(KdcoreError, Exception)
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
