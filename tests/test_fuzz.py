"""Whatever is typed, written into a sheet or a record, or passed to a notebook: it works, or one sentence says why not.

A few examples each, the same ones on every machine; ``make fuzz`` (KDCORE_FUZZ=N) draws N new ones.
"""

import contextlib
import copy
import functools
import io
import math
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from kdcore import checks, cli, notebooks, papers, starting, validation
from kdcore.errors import KdcoreError
from kdcore.notebooks import batch, parameters
from kdcore.papers import problems as rules
from kdcore.report import claims, findings, formats, tables
from kdcore.trials import engine, plan, store
from kdcore.trials.store import Store

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("KDCORE_FUZZ", "0"))
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def examples(count):
    """So many examples in the tests, always the same; with KDCORE_FUZZ that many, drawn anew."""
    return settings(max_examples=EXAMPLES or count, derandomize=not EXAMPLES, **QUIET)


def sentence(error: KdcoreError) -> None:
    text = str(error)
    assert text and len(text) < 6000 and "\n" not in text and "Traceback" not in text, text


ODD = [
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "1e9",
    "inf",
    "nan",
    "True",
    "None",
    "٣",
    "٢/٣",
    "1_0",
    "0,0",
    "1" * 30,
    "\0",
    "\udce9",
    "%s",
    "{x}",
    "[/b]",
    "--",
    "x\ny",
]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(), max_size=12), st.integers().map(str), st.floats().map(str))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from(ODD), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)


GOOD = {
    "paper": ["hinton_mnist", "fsp", "born_again_trees"],
    "--budget": ["smoke", "laptop", "paper"],
    "--seeds": ["1", "0,3"],
    "--seed": ["0", "7"],
    "--device": ["cpu", "cuda", "cuda:0"],
    "--engine": ["local"],
    "--precision": ["auto", "float32"],
    "--jobs": ["2"],
    "--arm": ["small", "small with KD", "student 8"],
    "--order": ["value", "sheet"],
    "--shard": ["1/2", "2/2"],
    "--time-limit": ["5"],
    "--timeout": ["0.5"],
}
OPTIONS = {
    "plan": ["--budget", "--seeds", "--device", "--precision", "--jobs", "--arm"],
    "run": [
        "--budget",
        "--seeds",
        "--seed",
        "--device",
        "--precision",
        "--jobs",
        "--arm",
        "--order",
        "--shard",
        "--time-limit",
        "--timeout",
    ],
    "replicate": ["--budget", "--seeds", "--device", "--engine"],
    "report": [],
    "check": [],
}


@st.composite
def command_lines(draw):
    """A command with some of its options, most values as they should be, one or another not."""

    def value(kind):
        return draw(TEXTS if draw(st.integers(0, 4)) == 0 else st.sampled_from(GOOD[kind]))

    command = draw(st.sampled_from(sorted(OPTIONS)))
    words = [command]
    if OPTIONS[command]:
        words += [value("paper") for _ in range(draw(st.integers(0 if command != "run" else 1, 2)))]
    for option in draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=4)) if OPTIONS[command] else []:
        words += [option, value(option)]
    if draw(st.integers(0, 9)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(TEXTS))
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@examples(60)
@given(words=command_lines())
def test_command_lines(words, folder):
    """Everything but the training: parsed, planned, shown, and refused with exit code 1 or 2."""
    out, err = io.StringIO(), io.StringIO()
    if words[0] in OPTIONS:
        words = [words[0], "--results", str(folder / "results"), *(["--no-forecast"] if words[0] == "plan" else []), *words[1:]]
    with (
        mock.patch.object(validation, "MOST_SEEDS", 5),
        mock.patch.object(checks, "paper_problems", lambda: []),  # no command line changes it, and it knows the sheets' own seeds
        mock.patch.object(engine, "run", lambda planned, *_, **__: engine.Outcome()),
        mock.patch.object(batch, "execute", lambda *_, **__: None),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = cli.main(words)
        except SystemExit as exit:
            code = exit.code
            assert (code == 2) == ("error: " in err.getvalue()), "or it is help, or the version"
    said = err.getvalue()
    told = {0: said == "" or said.startswith("usage"), 1: said.startswith("kdcore: ") and said.count("\n") == 1, 2: "error: " in said}
    assert told[code], (code, said)


@examples(60)
@given(key=TEXTS | st.sampled_from([*GOOD["paper"], "images", "new", "sheet"]))
def test_keys_of_new_papers(key):
    """Taken, or one that a module can have."""
    try:
        starting.refuse(key)
    except KdcoreError as error:
        assert "\n" not in str(error)
    else:
        assert key.isidentifier() and key.isascii() and key not in papers.names()


@pytest.fixture(scope="module", autouse=True)
def loaded():
    for key in papers.names():
        papers.get(key)


def places(value, at=()):
    """The paths of everything inside a sheet."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


@functools.cache
def known_places(key):
    return list(places(papers.get(key).sheet))


@functools.cache
def some_records(key):
    """Committed records of a paper, a few of each budget."""
    results = {}
    for record in Store(ROOT / "results").records(key):
        results.setdefault((record["budget"], record["arm"]), record)
    return list(results.values())[:40]


@st.composite
def sheets(draw):
    """(key, a sheet with one or two things deleted, renamed, retyped or doubled, what was done)."""
    key = draw(st.sampled_from(papers.names()))
    sheet, done = copy.deepcopy(papers.get(key).sheet), []
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        path = draw(st.sampled_from(known_places(key)))
        parent = sheet
        for step in path[:-1]:
            parent = (
                parent[step]
                if isinstance(parent, dict) and step in parent or isinstance(parent, list) and step in range(len(parent))
                else {}
            )
        there = path[-1] in (parent if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ())
        if not there:
            continue
        change = draw(st.sampled_from(["delete", "rename", "set", "double"]))
        if change == "delete":
            del parent[path[-1]]
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([path[-1][:-1], path[-1] + path[-1][-1], "x"]))] = parent.pop(path[-1])
        elif change == "double" and isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        else:
            parent[path[-1]] = draw(PLAIN)
        done.append((change, path))
    return key, sheet, done


@examples(30)
@given(changed=sheets())
def test_sheets(changed):
    """A changed sheet is refused with the place, or everything that is made of a sheet can be made of it."""
    key, sheet, _ = changed
    try:
        paper = papers.Paper(key, sheet)
        for budget in paper.budgets:
            trials = paper.trials(budget, seeds=[0])
            assert all(len(trial.id) == 12 for trial in trials)
            paper.cohorts(trials)
            for table in paper.tables:
                formats.to_markdown(tables.table(paper, table, some_records(key), budget))
            formats.to_markdown(claims.claims(paper, some_records(key), budget))
            tables.budget_table(paper, budget)
            rules.network_problems(paper, budget, paper.budget_arms(budget)[:2])
        tables.facts(paper, "protocol"), tables.facts(paper, "deviations")
        formats.to_html(findings.findings(paper, some_records(key)))
    except KdcoreError as error:
        sentence(error)


@examples(25)
@given(data=st.data())
def test_sheets_as_files(data, folder):
    """Bytes cut out, put in or repeated anywhere in the yaml."""
    key = data.draw(st.sampled_from(papers.names()))
    text = (papers.HERE / key / "sheet.yaml").read_bytes()[:6000]
    start = data.draw(st.integers(0, len(text)))
    end = start + data.draw(st.integers(0, 40))
    new = data.draw(
        st.one_of(st.binary(max_size=6), st.just(text[start:end] * 2), st.sampled_from([b"\t", b"&a ", b"*a", b"<<: ", b"[", b"}", b"- "]))
    )
    path = folder / "sheet.yaml"
    path.write_bytes(text[:start] + new + text[end:])
    try:
        papers.Paper(key, papers.read(path))
    except KdcoreError as error:
        sentence(error)


@examples(40)
@given(data=st.data())
def test_records(data):
    """A record with something changed, and a digest that fits it: refused, or tables can be made with it."""
    key = data.draw(st.sampled_from(papers.names()))
    record = copy.deepcopy(data.draw(st.sampled_from(some_records(key))))
    path = data.draw(st.sampled_from(list(places(record))))
    parent = record
    for step in path[:-1]:
        parent = parent[step]
    if data.draw(st.booleans()):
        del parent[path[-1]]
    else:
        parent[path[-1]] = data.draw(PLAIN)
    try:
        content = store.dumps(record).encode()
    except (TypeError, ValueError, KeyError):  # nothing that could be written
        return
    try:
        result = store.loads(content, "the record x")
        paper = papers.get(key)
        for table in paper.tables:
            formats.to_markdown(tables.table(paper, table, [result], result["budget"]))
        claims.claims(paper, [result], result["budget"])
    except KdcoreError as error:
        sentence(error)


@examples(25)
@given(data=st.data())
def test_records_as_files(data):
    """One change of the bytes of a record is always refused."""
    content = store.dumps(data.draw(st.sampled_from(some_records("hinton_mnist")))).encode()
    start = data.draw(st.integers(0, len(content) - 1))
    changed = content[:start] + data.draw(st.binary(max_size=4)) + content[start + data.draw(st.integers(0, 9)) :]
    if changed != content:
        with pytest.raises(KdcoreError) as caught:
            store.loads(changed, "the record x")
        sentence(caught.value)


PARAMETERS = {"budget": "smoke", "seeds": 1, "device": "cpu", "engine": "local", "results_dir": "no/such/folder"}


@examples(60)
@given(changes=st.dictionaries(st.sampled_from(sorted(PARAMETERS)), st.one_of(PLAIN, TEXTS), max_size=2))
def test_notebook_parameters(changes):
    try:
        page = notebooks.Page("hinton_mnist", **PARAMETERS | changes)
        assert page.seeds is None or all(type(seed) is int for seed in page.seeds)
        if page.seeds is None or len(page.seeds) < 20:
            plan.make("hinton_mnist", page.budget, ["small"], page.seeds, page.store)
    except KdcoreError as error:
        sentence(error)
    assert not (ROOT / "no").exists(), "to open a page writes nothing"


@examples(60)
@given(name=st.sampled_from(["budget", "seeds", "lr", "nothing"]), value=PLAIN)
@example(name="lr", value=True)
@example(name="lr", value=1)
def test_injected_parameters(name, value):
    cells = ["", "budget: str = 'smoke'\nseeds: int = 0\nlr: float = 0.1", f"# Parameters\n{name} = {PythonTranslator.translate(value)}\n"]
    with mock.patch.object(sys.modules["__main__"], "In", cells, create=True):
        try:
            parameters.refuse_injected()
            taken = True
        except KdcoreError as error:
            sentence(error)
            taken = False
    if name == "lr":
        assert taken == (type(value) is int or (type(value) is float and math.isfinite(value)))
    else:
        assert taken == (name != "nothing"), "the page looks at a budget and at seeds"
