"""Every command line of the README and of the pages on running and on the library is run, with the smallest arguments that keep its
meaning; a new one must be given its test here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import bare
import nbformat
import pytest
import torch
import yaml
from steps import state
from torch.nn import functional as F

from kdcore import cli, notebooks

ROOT = Path(__file__).parents[1]
README, RUNNING, LIBRARY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/running.md", "docs/library.md"))
PAGES = README + RUNNING + LIBRARY
BIN = Path(sys.executable).parent

AT_ONCE = ["--time-limit", "1e-9"]  # the plan is made and nothing starts: exit code 3, as for any time that is up


def commands():
    """The lines of fenced blocks and the inline code that somebody could type, without comments."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", PAGES, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", PAGES)
    stripped = [re.split(r"\s+# ", line)[0].strip() for line in lines]
    return list(
        dict.fromkeys(line for line in stripped if re.match(r"(make|kdcore|papermill|pip|jupyter|python|\S*/python) \S|kdcore$", line))
    )


def make(line, wanted):
    """The target exists, its programs too, and what it calls of kdcore can be parsed."""
    done = subprocess.run([*shlex.split(line), "-n", "-o", ".venv/ready"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and wanted in done.stdout, done.stderr
    for program, rest in re.findall(r"\.venv/bin/(\S+)([^\n;|]*)", done.stdout):
        assert (BIN / program).exists(), program
        if program == "kdcore" and "$" not in rest:
            cli.parser().parse_args(shlex.split(rest))


def plans(line, tmp_path):
    assert cli.main([*shlex.split(line)[1:], "--no-forecast", "--results", str(tmp_path)]) == 0


def stopped_run(line, tmp_path):
    """At budget smoke, and with no time: everything but the training."""
    words = shlex.split(line)[1:]
    cli.parser().parse_args(words)
    if "--time-limit" in words:
        words[words.index("--time-limit") + 1] = AT_ONCE[1]
    else:
        words += AT_ONCE
    words[words.index("--budget") + 1] = "smoke"
    words += ["--arm", "small"] if "fsp" not in words else []
    assert cli.main([*words, "--quiet", "--results", str(tmp_path)]) == 3


def bare_run(line, tmp_path):
    """One cell, on a machine that has torch, numpy, scikit-learn, safetensors and PyYAML alone, in the command line and in its children."""
    words = [sys.executable, "-m", "kdcore.cli", *shlex.split(line)[1:], "--results", str(tmp_path / "results")]
    done = subprocess.run(words, capture_output=True, text=True, env=bare.environment(tmp_path / "site"))
    assert done.returncode == 0 and not done.stderr
    *started, ended = done.stdout.splitlines()
    assert ended == "1 of 1 trials of hinton_mnist at smoke are recorded" and "small with KD, seed 3 done in " in started[-1]
    assert len(list(tmp_path.rglob("*.json"))) == 2, "its teacher's too"


def checks_or_reports(line, tmp_path):
    """On an empty folder, which it refuses: test_report.py and test_checks.py have the rest."""
    assert cli.main([*shlex.split(line)[1:], "--results", str(tmp_path)]) == 1


def inject(line, tmp_path):
    """papermill takes the parameters, and the notebook would take them: nothing is executed."""
    words = shlex.split(line)
    words[2] = str(tmp_path / words[2])
    subprocess.run([BIN / words[0], *words[1:], "--prepare-only", "--no-progress-bar"], cwd=ROOT, check=True, capture_output=True)
    (cell,) = (c for c in nbformat.read(words[2], 4).cells if "injected-parameters" in c.metadata.get("tags", []))
    values = {}
    exec(cell.source, values)
    page = notebooks.Page(
        "hinton_mnist", budget=values["budget"], seeds=values["seeds"], device="cpu", engine="local", results_dir="results"
    )
    assert (page.budget, page.seeds) == ("fast", [0, 1, 2])


def parses(line, tmp_path):
    """test_starting.py runs it, in a folder of its own."""
    assert cli.parser().parse_args(shlex.split(line)[1:]).paper == "my_paper"


def shows_help(line, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0


def made(wanted):
    return lambda line, tmp_path: make(line, wanted)


RUN = {
    "make replicate": made("kdcore replicate  --budget smoke  --engine local --device cpu"),
    "make replicate PAPER=hinton_mnist": made("kdcore replicate hinton_mnist --budget smoke"),
    "make replicate BUDGET=fast PAPER=hinton_mnist SEEDS=3": made("kdcore replicate hinton_mnist --budget fast --seeds 3 --engine local"),
    "make test": made("pytest"),
    "make lab": made("jupyter lab"),
    "make check": made("kdcore check"),
    "make portable": made("kdcore run"),
    "make damage": made("tests/test_damage.py"),
    "make kill": made("kill_9"),
    "make fuzz": made("KDCORE_FUZZ=1000 .venv/bin/pytest tests/test_fuzz.py"),
    "make bench": made("-m benchmarks"),
    "make report": made("kdcore report"),
    "make gpu": made("gpu"),
    "kdcore": shows_help,
    "kdcore plan hinton_mnist --budget fast": plans,
    "kdcore run hinton_mnist --budget fast --time-limit 600": stopped_run,
    'kdcore run hinton_mnist --arm "small with KD" --seed 3': bare_run,
    "kdcore run hinton_mnist --budget paper --shard 2/8": stopped_run,
    "kdcore run hinton_mnist fsp --budget paper --order value --time-limit 60": stopped_run,
    "kdcore report": checks_or_reports,
    "kdcore check": checks_or_reports,
    "kdcore new my_paper": parses,
    "python -m kdcore.cli run ...": shows_help,  # bare_run runs it
    "papermill notebooks/hinton_mnist.ipynb out.ipynb -p budget fast -p seeds 3": inject,
}


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme(line, tmp_path):
    assert line in RUN, f"the README says `{line}`: add to RUN how a test runs it"
    RUN[line](line, tmp_path)


def test_the_commands_are_found():
    assert len(commands()) > 12 and "make test" in commands() and "kdcore run hinton_mnist --budget paper --shard 2/8" in commands()


@pytest.mark.parametrize(
    "variables, exit_code, sentence",
    [
        ("SEEDS=x", 2, "kdcore replicate: error: argument --seeds: 'x' is neither"),
        ("SEEDS=1000000000000", 2, "kdcore replicate: error: argument --seeds: the number of seeds must be"),
        ("PAPER=typo", 1, "kdcore: unknown paper 'typo'"),
        ("BUDGET=typo", 1, "kdcore: activation_boundaries has no budget 'typo'"),
        ("ENGINE=slurm", 1, "kdcore: unknown engine 'slurm'"),
        ("DEVICE=cuda:x", 2, "kdcore replicate: error: argument --device: unknown device 'cuda:x'"),
    ],
)
def test_make_ends_in_one_sentence(variables, exit_code, sentence, capsys):
    """The first line of its recipe, as make would run it; usage stands above the sentence where it is wrong."""
    done = subprocess.run(["make", "replicate", variables, "-n", "-o", ".venv/ready"], cwd=ROOT, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if "kdcore replicate" in line)
    try:
        code = cli.main(shlex.split(line)[1:])
    except SystemExit as exit:
        code = exit.code
    assert code == exit_code and capsys.readouterr().err.splitlines()[-1].startswith(sentence)


def test_the_readme_is_short_and_its_first_screen_answers():
    """A title, what it is, the answer, the picture and the commands: no other prose before them."""
    before, _, rest = README.partition("<!-- scoreboard -->")
    assert len(before.split("\n")) < 12 and rest.partition("<!-- /scoreboard -->")[2].index("## Two commands") < 700
    written = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", README, flags=re.DOTALL)
    assert len(written.split("\n")) < 150
    hours = re.findall(r"[^.]*\b(?:\d+|a|an|one|two|seven) (?:hours?|minutes?)\b", re.sub(r"```.*?```", "", written, flags=re.DOTALL))
    assert hours == [], "times are generated, between the markers"


def test_the_clone_line_has_the_address_of_the_citation():
    """Where none is given, the page says where its reader finds it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"git clone {citation.get('repository-code', 'ADDRESS')} kdcore && cd kdcore" in README


def test_the_examples_run(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (distributed,) = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)
    assert len(code.splitlines()) <= 25
    names: dict = {}
    exec(code, names)  # noqa: S102
    assert F.cross_entropy(names["student"](names["images"]), names["labels"]).isfinite()
    trained = names["student"].net.state_dict()
    assert all(value.isfinite().all() for value in trained.values())
    assert trained["bn1.num_batches_tracked"] > 0 and not names["teacher"].training
    assert names["teacher"].net.state_dict()["bn1.num_batches_tracked"] == 0, "the teacher is frozen"

    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)  # as torchrun sets them, for one process
    before = state(names["student"].net)
    try:
        exec(distributed, names)  # noqa: S102
    finally:
        torch.distributed.destroy_process_group()
    assert not torch.equal(names["student"].net.state_dict()["conv1.weight"], before["conv1.weight"])
