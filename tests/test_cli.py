"""The command line: words, exit codes, one sentence for what is wrong."""

import copy
import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from checkouts import ROOT, made_checkout

from kdcore import cli, papers, validation
from kdcore.notebooks import batch
from kdcore.papers.spec import Trial
from kdcore.trials import plan, process
from kdcore.trials.store import Store


def test_plan_shows_the_grid(tmp_path, capsys):
    assert cli.main(["plan", "hinton_mnist", "--budget", "fast", "--no-forecast", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "small with KD, only 7s and 8s" in shown and "GiB free" in shown


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["run", "hinton_minst"], "unknown paper 'hinton_minst': choose one of "),
        (["run", "hinton_mnist", "--budget", "tiny"], "has no budget 'tiny': choose one of smoke, laptop, fast, paper"),
        (["run", "hinton_mnist", "--arm", "big"], "has no arm 'big': choose one of cumbersome; small"),
        (["run", "hinton_mnist", "--device", "cuda:7"], "there is no device 'cuda:7'"),
        (["plan", "nothing"], "unknown paper 'nothing'"),
        (["replicate", "hinton_mnist", "--engine", "slurm"], "unknown engine 'slurm': choose one of local"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_1(words, complaint, tmp_path, capsys):
    assert cli.main([*words, "--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--seeds", text]
            for text in ("x", "-1", "", ",", "0,,1", "1_0", "٣", "1.5", "inf", "0", "1000000000000", "9" * 30, "0,4294967296")
        ),
        *(["--seed", text] for text in ("-1", "x", "1.0", "True", "", "4294967296")),
        ["--seeds", "2", "--seed", "0"],
        *(["--jobs", text] for text in ("0", "1.5", "inf", "nan", "-2", "99999", "1e1", "")),
        *(
            [limit, text]
            for limit in ("--timeout", "--time-limit")
            for text in ("-5", "0", "inf", "nan", "1e9", "1e999", "٣", "1_0", "", "ten")
        ),
        *(["--shard", text] for text in ("3/2", "0/2", "٢/٣", "1/0", "1", "/", "1/2/3", "-1/2", "1/9999999999", "")),
        *(["--device", text] for text in ("cuda:-1", "cuda:٣", "cuda:", "CUDA", "cuda: 0", "gpu", "cuda:00", "cuda:99999", "")),
        ["--precision", "float64"],
        ["--arm", "small", "--arm", "small"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "hinton_mnist", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("kdcore run: error: argument --")


@pytest.mark.parametrize("command", ["plan", "replicate"])
def test_a_paper_named_twice_is_wrong_usage(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "hinton_mnist", "fsp", "hinton_mnist"])
    assert caught.value.code == 2 and "paper 'hinton_mnist' is named twice" in capsys.readouterr().err


def test_the_largest_values_are_taken():
    words = [
        "--seed",
        "4294967295",
        "--jobs",
        "1024",
        "--timeout",
        "527040",
        "--time-limit",
        "1e-3",
        "--shard",
        "8/8",
        "--device",
        "cuda:15",
    ]
    options = cli.parser().parse_args(["run", "hinton_mnist", *words])
    assert (options.seed, options.jobs, options.timeout, options.time_limit) == ([4294967295], 1024, 527040, 0.001)
    assert (options.shard, options.device) == ((8, 8), "cuda:15")
    assert len(cli.parser().parse_args(["plan", "--seeds", "10000"]).seeds) == 10000


@pytest.mark.parametrize("typo, meant", [("hinton", "hinton_mnist"), ("fitnet", "fitnets"), ("born_again_tree", "born_again_trees")])
def test_a_misspelt_paper_gets_a_suggestion(typo, meant, tmp_path, capsys):
    assert cli.main(["plan", typo, "--results", str(tmp_path)]) == 1
    assert f"(did you mean '{meant}'?)" in capsys.readouterr().err


def test_replicate_refuses_before_it_runs_what_is_right(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "execute", lambda *_, **__: pytest.fail("executed"))
    for words, complaint in (
        (["hinton_mnist", "hinton"], "unknown paper 'hinton'"),
        (["hinton_mnist", "born_again_trees", "--budget", "fast"], "born_again_trees has no budget 'fast'"),
        (["hinton_mnist", "--engine", "ray"], "unknown engine 'ray'"),
        (["hinton_mnist", "--device", "cuda:99"], "there is no device 'cuda:99'"),
    ):
        assert cli.main(["replicate", *words, "--results", str(tmp_path / "results")]) == 1
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


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
    monkeypatch.setattr(process.Child, "ask", lambda *_: (_ for _ in ()).throw(process.ChildDied("error", "last\nin a\nlast")))
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


@pytest.mark.parametrize("command", ["check", "report"])
def test_nothing_is_not_valid(command, tmp_path, capsys):
    """A folder that is missing, empty, or a file: to find nothing wrong with no record is no success."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, complaint in {"typo": "there is no folder", "empty": "there is no record in", "file": "is not a folder"}.items():
        assert cli.main([command, "--results", str(tmp_path / name)]) == 1
        assert complaint in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_another_checkout_is_refused_and_a_namesake_is_none(tmp_path, monkeypatch, capsys):
    other = made_checkout(tmp_path / "other")
    monkeypatch.chdir(other / "notebooks")
    for words in (["plan", "fsp"], ["run", "fsp"], ["check"], ["report"], ["replicate", "fsp"]):
        assert cli.main(words) == 1
        err = capsys.readouterr().err
        assert f"this folder is in the checkout {other}, but the kdcore that runs belongs to {ROOT}" in err and err.count("\n") == 1
    monkeypatch.chdir(made_checkout(tmp_path / "namesake", "kdcore-of-somebody"))  # has the two folders, and is another project
    assert validation.checkout() == ROOT


@pytest.mark.parametrize("words", [["plan", "--no-forecast"], ["run", "--quiet"], ["replicate"]])
def test_a_file_in_the_place_of_the_results_is_refused(words, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main([words[0], "hinton_mnist", *words[1:], "--results", str(tmp_path / "file" / "below")]) == 1
    err = capsys.readouterr().err
    assert "file is not a folder" in err and err.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_refused_before_anything_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "file"))
    assert cli.main(["run", "hinton_mnist", "--arm", "small", "--seed", "0", "--quiet", "--results", str(tmp_path / "results")]) == 1
    assert "cannot write" in capsys.readouterr().err and not list(tmp_path.rglob("*.lease"))


def test_a_command_whose_library_is_missing_says_which(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["plan", "fsp", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "kdcore: this command needs rich.console, which is not installed: pip install -r requirements.txt\n"


def test_names_are_not_markup(tmp_path, monkeypatch, capsys):
    """rich would read [/b] as the end of bold, and fail."""
    sheet = copy.deepcopy(papers.get("hinton_mnist").sheet)
    sheet["arms"]["small [/b]"] = {}
    sheet["budgets"]["smoke"]["about"] = "[/i] about"
    paper = papers.Paper("hinton_mnist", sheet)
    monkeypatch.setattr(papers, "get", lambda key: paper)
    assert cli.main(["plan", "hinton_mnist", "--no-forecast", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "│ small [/b] " in shown and "[/i] about" in shown


def test_the_plan_of_a_large_grid_takes_time_in_proportion(tmp_path, monkeypatch):
    """2,500 trials: each record is looked for once, and no trial is compared with another."""
    looked, get = [], Store.get
    monkeypatch.setattr(Store, "get", lambda store, trial: (looked.append(trial.id), get(store, trial))[1])
    monkeypatch.setattr(Trial, "__eq__", lambda *_: pytest.fail("compared"))
    assert cli.main(["plan", "hinton_mnist", "--no-forecast", "--seeds", "100", "--results", str(tmp_path)]) == 0
    assert len(looked) == len(set(looked)) + 200 == 2700, "a trial that is a teacher too is looked for twice"


def test_windows_gets_one_sentence():
    code = "import sys; sys.platform = 'win32'; from kdcore import cli; sys.exit(cli.main(['plan', 'fsp']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("kdcore: kdcore does not run trials on Windows") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["", "plan", "run", "replicate", "report", "check", "notebook", "new"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and shown.startswith(f"usage: kdcore {command}".rstrip())
    assert "None" not in shown and "==SUPPRESS==" not in shown


def test_no_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and "replicate" in err and err.splitlines()[-1].startswith("kdcore: error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_one_sentence_and_exit_3(number, monkeypatch, capsys):
    def interrupted(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(plan, "make", interrupted)
    for words in (["run", "hinton_mnist"], ["replicate", "hinton_mnist"], ["plan", "hinton_mnist"]):
        assert cli.main(words) == 3
        assert capsys.readouterr().err == "kdcore: stopped; the same command resumes from here\n"


def test_read_only_results(tmp_path, capsys, monkeypatch):
    """The root may write where others may not: the answer of a read-only file system comes from a stand-in."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(validation.tempfile, "TemporaryFile", refuse)
    words = ["run", "hinton_mnist", "--arm", "small", "--seed", "0", "--results", str(tmp_path / "results"), "--quiet"]
    assert cli.main(words) == 1
    assert f"cannot write {tmp_path / 'results'} (Read-only file system): make it writable" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    declared = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert caught.value.code == 0 and capsys.readouterr().out == f"kdcore {declared[1]}\n"


@pytest.mark.parametrize("place", ["~nosuchuser/cache", "x" * 300, "/dev/null", "/dev/null/cache"])
def test_a_cache_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, place):
    monkeypatch.setenv("KDCORE_CACHE", place)
    assert cli.main(["plan", "fsp", "--no-forecast", "--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "set KDCORE_CACHE to a writable folder" in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "output, exit_code, sentence", [("/dev/full", 1, "No space left on device"), (None, 0, ""), ("pipe", 1, "the output was closed")]
)
def test_output_that_nobody_can_have(output, exit_code, sentence):
    """A full disk, an output that is closed, and a reader that has gone: success is not claimed, and no traceback shown."""
    words = "from kdcore import cli; cli.check = lambda options: print('all well') or 0; sys.exit(cli.main(['check']))"
    close = "import os, sys; os.close(1); sys.stdout = None; " if output is None else "import sys; "
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full" if output == "/dev/full" else write, "w") as stdout:
        ended = subprocess.run([sys.executable, "-c", close + words], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert ended.returncode == exit_code and sentence in ended.stderr and ended.stderr.count("\n") == (1 if sentence else 0)
