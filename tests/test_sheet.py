"""A paper's sheet: what is refused, what is derived, what it expands to."""

import copy
import json
import typing

import jsonschema
import pytest
from checkouts import ROOT

from kdcore import cli, papers
from kdcore.errors import KdcoreError
from kdcore.papers import sentences, sheet
from kdcore.trials import plan
from kdcore.trials.store import Store


def test_every_key_of_a_sheet_is_explained():
    for model in (sheet.Sheet, sheet.Config, *sheet.Model.__subclasses__()):
        assert model.__doc__ and all(field.description for field in model.model_fields.values()), model.__name__
    page = (ROOT / "docs" / "sheet.md").read_text()
    assert all(f"| `{key}` |" in page for key in sheet.KEYS) and all(f"| `{mark}` | " in page for mark in sheet.MARKS)
    assert set(sheet.MARKS) == set(typing.get_args(sheet.Mark))


def test_the_schema_takes_every_sheet_and_refuses_a_misspelt_key():
    validator = jsonschema.Draft202012Validator(json.loads((papers.HERE / "sheet.schema.json").read_text()))
    for key in papers.names():
        assert [error.message for error in validator.iter_errors(papers.get(key).sheet)] == []
    wrong = copy.deepcopy(papers.get("fsp").sheet)
    wrong["budgets"]["smoke"]["onlly"] = []
    assert any("onlly" in error.message for error in validator.iter_errors(wrong))


def at(sheet, path):
    for step in path:
        sheet = sheet[step]
    return sheet


GONE = object()


FACT, ROW, CLAIM, SMOKE = ("protocol", 0), ("tables", 0, "rows", 0), ("claims", 0), ("budgets", "smoke")


@pytest.mark.parametrize(
    "path, value, complaint",
    [
        (("title",), GONE, "the section 'title' is missing"),
        (("config", "teacher"), GONE, "config: 'teacher' is missing"),
        (("config", "data"), GONE, "config: 'data' is missing"),
        (("config", "momentum"), GONE, "config: 'momentum', which hinton_mnist/trial.py reads, is missing"),
        (("config", "is_teacher"), GONE, "config: 'is_teacher', which hinton_mnist/trial.py reads, is missing"),
        (("config", "batch_size"), 0, "batch_size 0: it must be greater than or equal to 1"),
        (("config", "batch_size"), 2.5, "batch_size 2.5: it must be a whole number"),
        (("titel",), "x", r"unknown key 'titel' \(did you mean 'title'\?\)"),
        (("protocol", 0, "sorce"), "x", r"protocol 'data': unknown key 'sorce' \(did you mean 'source'\?\)"),
        ((*ROW, "arms"), "x", r"rows 'cumbersome .*': unknown key 'arms' \(did you mean 'arm'\?\)"),
        ((*SMOKE, "about"), GONE, "budgets, smoke: 'about' is missing"),
        ((*SMOKE, "seeds"), GONE, "budgets, smoke: 'seeds' is missing"),
        ((*SMOKE, "scale"), GONE, "budgets, smoke: 'scale' is missing"),
        ((*SMOKE, "scale"), "short", "budgets, smoke, scale: write demo, which this budget is by its name, not short"),
        (("budgets", "paper", "scale"), "scaled", "budgets, paper, scale: write protocol, which this budget is by its name, not scaled"),
        (("budgets", "fast", "scale"), "shrt", "scale 'shrt': write one of 'protocol', .* .did you mean 'short'"),
        (("headline",), GONE, "headline: name the one to three claims that stand for the paper"),
        (("headline",), [], r"headline \[\]: it must not be empty"),
        (("headline",), ["kd_helps", "kd_helps"], "headline: it names 'kd_helps' twice"),
        (("headline",), ["kd_help"], "headline: there is no claim 'kd_help' .did you mean 'kd_helps'"),
        (("headline",), ["unseen_3"], "claim unseen_3 is in the headline: write its effect, in a few words"),
        (
            ("resampled",),
            {"repetitions": "epoch", "share": "lr", "values": "x"},
            "resampled: there is no parameter 'epoch' .did you mean 'epochs'",
        ),
        (
            ("resampled",),
            {"repetitions": "epochs", "share": "lr", "values": "x"},
            "resampled needs a whole number of test sets and a share between 0 and 1",
        ),
        (("trained",), ["netwrk"], "trained: there is no parameter 'netwrk'"),
        (("margins", 0, "tables"), ["omited_3"], "margins, entry 1: there is no table 'omited_3' .did you mean 'omitted_3'"),
        (("margins", 0, "rows"), ["all erors"], "margins, entry 1: no row with a reported number has a label like all erors"),
        (("margins", 0, "old"), 15, "margins, entry 1: the old margin of 'all errors before the shift', 15, is the one that it has"),
        (("margins", 0, "old"), GONE, "a margin that was changed has both old and since; one that stays has neither"),
        (
            ("tables", 0, "margin"),
            37,
            "table errors, row 'cumbersome .*': its margin, 37, is more than half of the effect that the paper reports for claim kd_helps"
            "|row 'small .*': its margin, 37, is more than half of .* claim kd_helps, 72: make it smaller, or say why",
        ),
        (("tables", 0, "better"), "less", "better 'less': write one of 'lower' or 'higher'"),
        ((*SMOKE, "time"), GONE, "budgets, smoke: 'time' is missing"),
        ((*SMOKE, "seeds"), 0, "budgets, smoke, seeds 0: it must be greater than or equal to 1"),
        ((*SMOKE, "seeds"), True, "budgets, smoke, seeds True: it must be a whole number"),
        ((*SMOKE, "onlly"), ["small"], r"budgets, smoke: unknown key 'onlly' \(did you mean 'only'\?\)"),
        ((*SMOKE, "only"), ["smal"], "'smal' in budget smoke matches no arm"),
        ((*SMOKE, "config", "data"), "digts", "data: unknown data set 'digts'"),
        ((*SMOKE, "arms", "small*", "seeds"), -1, "seeds must be a number from 1"),
        ((*SMOKE, "config", "epochs"), "25", "epochs must be a number that is not negative, not '25'"),
        ((*SMOKE, "config", "epochs"), -25, "epochs must be a number that is not negative, not -25"),
        ((*SMOKE, "only"), [], r"budgets, smoke, only \[\]: it must not be empty"),
        ((*SMOKE, "only"), [3], "budgets, smoke, only, entry 1 3: it must be text"),
        (("budgets", "smokee"), {}, "budgets: 'smokee' is not a valid key: write one of 'smoke', .* or 'paper' .did you mean 'smoke'"),
        (("arms",), {}, "arms {}: it must not be empty"),
        (("title",), "", "title '': it must not be empty"),
        (("title",), " ", "title ' ': it must not be blank"),
        ((*CLAIM, "source"), GONE, "claims 'kd_helps': 'source' is missing"),
        ((*CLAIM, "id"), GONE, r"claims, entry 1: 'id' is missing"),
        ((*CLAIM, "id"), "unseen_3", "claims: the id 'unseen_3' is used twice"),
        ((*CLAIM, "relation"), ">", "claims 'kd_helps', relation '>': write one of '<' or 'same'"),
        ((*CLAIM, "margin"), 3, "claims 'kd_helps': it needs the relation '<', or 'same' with a margin"),
        ((*CLAIM, "left"), {"value": 3, "metric": "m"}, "claims 'kd_helps', left: write {arms"),
        ((*CLAIM, "left", "arms"), ["smal"], r"claim kd_helps names the arm 'smal', which does not exist \(did you mean 'small'\?\)"),
        ((*ROW, "paper"), GONE, r"tables 'errors', rows 'cumbersome .*': 'paper' is missing"),
        ((*ROW, "arm"), GONE, "'arm' is missing"),
        ((*ROW, "paper"), "67", "paper '67': it must be a number"),
        ((*ROW, "paper"), [67, 68], "its sweep gives 1 rows, but 'paper' has 2 numbers"),
        ((*ROW[:2], "mark"), GONE, "the reported number has no mark: write mark: V, C, I,"),
        ((*ROW, "label"), "{width}", "the placeholder '{width}' of '{width}' has no sweep to fill it"),
        ((*ROW, "label"), "{width", "'{width' is not a valid template"),
        (("tables", 0, "margin"), GONE, "tables 'errors': 'margin' is missing"),
        (("tables", 0, "margin"), -1, "margin -1: it must be greater than or equal to 0"),
        (("tables", 1, "id"), "errors", "tables: the id 'errors' is used twice"),
        (("tables", 0, "id"), "../errors", "id '../errors': use letters, digits and underscores only"),
        (("arms", "cumbersome", "is_teacher"), False, "its teacher 'cumbersome' keeps no weights: write is_teacher: derived in config"),
        (("config", "is_teacher"), False, "its teacher 'cumbersome' keeps no weights: write is_teacher: derived in config"),
        (("config", "is_teacher"), "yes", "config, is_teacher: write derived .or true, or false., not 'yes'"),
        (("arms", "cumbersome", "teacher"), "cumbersome", "its teachers form a cycle"),
        (("arms", "small with KD", "teacher"), "cumbersom", r"its teacher 'cumbersom' is not an arm \(did you mean 'cumbersome'\?\)"),
        (("arms", "{width} units, T={temperature}", "sweep"), 3, "sweep must give each variable a list"),
        (("arms", "{width} units, T={temperature}", "sweep", "width"), [300, 300], "two are named '300 units, T=1'"),
        (("arms", "{width} units, T={temperature}", "sweep", "width"), list(range(2000)), "18,000 combinations, more than 10,000"),
        (("arms", "small", "lrr"), 1, "unknown parameters for 'small' at smoke: lrr .did you mean 'lr'"),
        (("arms", "small", "members"), [2], "hinton_mnist/trial.py cannot read its settings"),
        ((*FACT, "mark"), "sure", "protocol 'data', mark 'sure': write one of"),
        ((*ROW, "metric"), "test_erors", "table errors, .*: trial.py does not measure 'test_erors' .did you mean 'test_errors'"),
        ((*CLAIM, "left", "arms"), ["SMALL"], r"the arm 'SMALL', which does not exist \(did you mean 'small'\?\)"),
        ((*CLAIM, "left", "metric"), "accuracy", "claim kd_helps: trial.py does not measure 'accuracy'"),
        (("url",), "arxiv", "url 'arxiv': it must start with http:// or https://"),
        (("year",), "2015", "year '2015': it must be a whole number"),
    ],
)
def test_a_sheet_that_would_fail_late_fails_at_once(path, value, complaint):
    sheet = copy.deepcopy(papers.get("hinton_mnist").sheet)
    if value is GONE:
        del at(sheet, path[:-1])[path[-1]]
    else:
        at(sheet, path[:-1])[path[-1]] = value
    with pytest.raises(papers.BadSheet, match="^hinton_mnist/sheet.yaml: .*" + complaint) as caught:
        papers.Paper("hinton_mnist", sheet)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        ("trained",), ("sizes",), ("runs",), ("resampled",), ("headline",), ("tables", 0, "reference"), ("tables", 0, "better"),
        (*ROW, "metric"), (*ROW, "margin"), (*ROW, "unit"), (*ROW, "std"), (*ROW, "sweep"), (*CLAIM, "effect"), (*CLAIM, "left", "value"),
    ],
)  # fmt: skip
def test_an_optional_key_is_left_out_and_not_null(path):
    with pytest.raises(papers.BadSheet, match=rf"{path[-1]} None: "):
        changed_sheet("hinton_mnist", path, None)


SIDE = {"arms": ["glass"], "metric": "cart_error_percent"}


def finding(**keys):
    return {"id": "one", "budget": "paper", "text": "{a}", "values": {"a": {"left": SIDE}}} | keys


@pytest.mark.parametrize(
    "path, value, complaint",
    [
        (("trained",), ["data", "data"], "trained: it names 'data' twice"),
        (("margins", 0, "rows"), ["sonar*", "sonar*"], r"margins, entry 1, rows: it names 'sonar\*' twice"),
        (("margins", 1), papers.get("born_again_trees").sheet["margins"][0], "margins, entry 2: it is there twice"),
        (("headline",), ["better_than_cart"] * 2, "headline: it names 'better_than_cart' twice"),
        (("resampled", "values"), "repetition", "resampled: trial.py does not measure 'repetition' .did you mean 'repetitions'"),
        (("budgets", "laptop", "config"), {"data": "wine"}, "scale: short is not what it runs, as 'data' of arm 'breast cancer' is not"),
        (("budgets", "laptop"), {"scale": "protocol", "config": {"trees": 9}}, "protocol is not .*'trees'.*: write short, scaled or demo"),
        ((*CLAIM, "left", "metric"), "cart_leaves", "claim better_than_cart compares 'cart_leaves', in leaves, with .*, in % error"),
        (("findings",), [finding(budget="smoke")], "finding one is about budget smoke, whose scale is demo"),
        (("findings",), [finding(values={"a": {"left": SIDE, "of": "every"}})], "values, a: 'of' says what the bounds apply to"),
        (("findings",), [finding(text="{a b}", values={"a b": {"left": SIDE}})], "'a b' is not a valid key: use letters, digits and under"),
        (("findings",), [finding(text="{a!r}")], "'{a!r}' shows nothing: write {a}, or one of"),
        (("findings",), [finding(text="{a:al}")], "'{a:al}' shows nothing: write {a}, or one of"),
        (("arms",), {"{0}": {"data": "glass", "sweep": {"0": [1]}}}, "its sweep names a variable '0': use letters"),
        (("arms",), {"{a.b}": {"data": "glass", "sweep": {"a.b": [1]}}}, "its sweep names a variable 'a.b': use letters"),
        ((*ROW, "sweep"), {"0": ["glass"]}, "tables 'test_errors', row .*: its sweep names a variable '0': use letters"),
    ],
)  # fmt: skip
def test_what_is_judged_says_what_it_is(path, value, complaint):
    with pytest.raises(papers.BadSheet, match="^born_again_trees/sheet.yaml: .*" + complaint) as caught:
        changed_sheet("born_again_trees", path, value)
    assert "\n" not in str(caught.value)


def changed_sheet(key, path, value):
    """The paper with another value at a place of its sheet; a mapping is added to the one that is there."""
    sheet = copy.deepcopy(papers.get(key).sheet)
    there = at(sheet, path[:-1])
    there[path[-1]] = there[path[-1]] | value if path[:1] == ("budgets",) and path[-1] == "laptop" else value
    return papers.Paper(key, sheet)


def test_a_hint_at_what_is_meant_or_at_all_that_there_is():
    assert sentences.near("Sp", ["KD", "SP"]) == " (did you mean 'SP'?)"
    assert sentences.near("other", ["KD", "SP"]) == " (choose one of KD; SP)"
    assert sentences.near("other", [str(number) for number in range(13)]) == sentences.near("other", []) == ""


def test_what_follows_from_the_arms_is_derived():
    sheet = copy.deepcopy(papers.get("fsp").sheet)
    sheet["arms"]["three of FSP 26"]["teacher"] = "student 8"
    paper = papers.Paper("fsp", sheet)
    derived = {arm: (paper.config("smoke", arm)["is_teacher"], paper.config("smoke", arm)["teacher_network"]) for arm in paper.arms}
    assert derived["teacher 26"] == (True, None) and derived["student 8"] == (True, None)
    assert derived["FSP 8"] == (False, "resnet_14"), "the network that its teacher has at this budget"
    assert paper.config("paper", "FSP 8")["teacher_network"] == "resnet_26"
    assert derived["three of FSP 26"] == (False, "resnet_8")
    assert derived["26, a third of the steps"] == (False, None)
    assert derived["teacher 32 (CIFAR-100)"] == (True, "resnet_8"), "what a budget writes stays"
    assert "is_teacher" not in papers.get("model_compression").config("smoke", "adult: ensemble"), "a paper without it has none"


def test_a_teacher_is_the_network_that_its_arm_trains():
    sheet = copy.deepcopy(papers.get("fsp").sheet)
    sheet["arms"]["FSP 8"]["teacher_network"] = "resnet_32"
    complaint = "teacher_network is 'resnet_32', but its teacher 'teacher 26' trains 'resnet_14' there: leave teacher_network out"
    with pytest.raises(papers.BadSheet, match=complaint):
        papers.Paper("fsp", sheet)


@pytest.mark.parametrize("name", ["resnet_9", "wrn_17_2", "resnett_8", "wrn_28_99999999999", "0k-3"])
def test_a_network_that_cannot_be_built_is_told_before_anything_trains(name, tmp_path, monkeypatch):
    sheet = copy.deepcopy(papers.get("fsp").sheet)
    sheet["budgets"]["smoke"]["arms"]["student 8"] = {"network": name}
    paper = papers.Paper("fsp", sheet)
    monkeypatch.setattr(papers, "get", lambda key: paper)
    with pytest.raises(papers.BadSheet, match="arm 'student 8' at smoke: network: "):
        plan.make("fsp", "smoke", ["student 8"], [0], Store(tmp_path))
    assert plan.make("fsp", "smoke", ["teacher 26"], [0], Store(tmp_path)).jobs, "nothing else is held up"


def test_shared_settings_have_a_shape():
    for key, path, value, complaint in (
        ("fitnets", ("config", "augmentation", "flipp"), True, "augmentation: unknown key 'flipp' .did you mean 'flip'"),
        ("fitnets", ("config", "soft_weight", "spann"), [0, 1], "soft_weight: unknown key 'spann'"),
        ("fsp", ("config", "train"), {"rl": [1], "until": [1]}, "train: 'lr' is missing, and 'rl' is unknown .did you mean 'lr'"),
        ("fsp", ("config", "train", "until"), [1, 2], "train: .*one end for each rate"),
        (
            "fsp",
            ("budgets", "fast", "config", "scale"),
            1e-5,
            "at fast: train: the rate 0.1 .*32000 times scale 1e-05, it lasts from 0 to 0",
        ),
        ("fsp", ("config", "train", "until"), [32000, 32000, 64000], "at laptop: train: the rate 0.01 is never used .*from 2000 to 2000"),
        ("fsp", ("config", "augmentation", "pad"), -4, "pad -4: it must be greater than or equal to 0"),
    ):
        sheet = copy.deepcopy(papers.get(key).sheet)
        at(sheet, path[:-1])[path[-1]] = value
        with pytest.raises(papers.BadSheet, match=complaint):
            papers.Paper(key, sheet)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "is empty"),
        ("- 1", "is not a mapping"),
        ("a: 1\na: 2", "line 2 is not valid YAML: the key 'a' is given twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4 is not valid YAML: the key 'b' is given twice"),
        ("a: {b: 1, b: 2}", "the key 'b' is given twice"),
        ("a:\n\tb: 1", "is not valid YAML"),
        ("a: [1", "is not valid YAML"),
        ("1: 2", "the key 1 must be text"),
        ("a: {yes: 1}", "a: the key True must be text"),
        ("a: .inf", "a: inf is not a finite number"),
        ("a: [1, .nan]", r"a \[1\]: nan is not a finite number"),
        ("a: 123456789012345678901234567890", "is not a finite number"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 2015-03-09", "is a date"),
        ("a: !!set {b}", "is a set"),
        ("a: !!python/object:os.system {}", "is not valid YAML"),
        ("? [a]\n: 1", "is not valid YAML"),
        ("a: &a [*a]", "more than .* levels; does an alias contain itself"),
        ("a: " + "[" * 1200, "nested too deep"),
        ("a: &a0 [1]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)), "more than 100,000 values"),
        (
            "a: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 50)}]}}\n" for i in range(9)),
            "its merges are too large",
        ),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        (b"a: \xff", r"is not UTF-8 \(byte 3\)"),
        ("a: \0", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_sheet_is_told(text, complaint, tmp_path):
    path = tmp_path / "sheet.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KdcoreError, match=f"^{tmp_path.name}/sheet.yaml.*" + complaint) as caught:
        papers.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_merges_may_be_overridden(tmp_path):
    (tmp_path / "sheet.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")
    assert papers.read(tmp_path / "sheet.yaml")["b"] == {"x": 1, "y": 3}


def test_a_broken_sheet_stops_every_command(tmp_path, monkeypatch, capsys):
    """As a person would break it: in the file."""
    text = (ROOT / "kdcore" / "papers" / "hinton_mnist" / "sheet.yaml").read_text()
    (tmp_path / "hinton_mnist").mkdir()
    (tmp_path / "hinton_mnist" / "sheet.yaml").write_text(text.replace("    time: under a minute on 2 cores\n", "", 1))
    monkeypatch.setattr(papers, "HERE", tmp_path)
    papers._paper.cache_clear()
    (tmp_path / "results" / "records" / "hinton_mnist").mkdir(parents=True)
    (tmp_path / "results" / "records" / "hinton_mnist" / "0123456789ab.json").write_text("{}")
    try:
        for command in ("plan", "run", "replicate", "report", "check"):
            words = [command, *(["hinton_mnist"] if command in ("plan", "run", "replicate") else [])]
            assert cli.main([*words, "--results", str(tmp_path / "results")]) == 1
            assert capsys.readouterr().err == "kdcore: hinton_mnist/sheet.yaml: budgets, smoke: 'time' is missing\n"
    finally:
        papers._paper.cache_clear()


def test_a_metric_that_is_measured_and_not_declared_makes_no_record(monkeypatch):
    paper = papers.get("fsp")
    paper.refuse_undeclared([{"metrics": {"test_errors": 3}}])
    with pytest.raises(KdcoreError, match=r"^fsp/trial.py measures novelty, which its METRICS does not declare"):
        paper.refuse_undeclared([{"metrics": {"test_errors": 3}}, {"metrics": {"novelty": 1.0}}])
    monkeypatch.delattr(paper.module, "METRICS")
    with pytest.raises(papers.BadSheet, match="fsp/trial.py has no dict METRICS: write METRICS = {name: "):
        papers.Paper("fsp")


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


def test_a_row_has_the_mark_of_its_table_or_its_own():
    paper = papers.get("fitnets")
    rows = {row["label"]: row for row in next(table for table in paper.tables if table["id"] == "compression")["rows"]}
    assert rows["FitNet 1: accuracy"]["mark"] == "V" and rows["FitNet 1: times as fast as the teacher"]["mark"] == "M"
    assert all(
        "mark" not in row for paper in map(papers.get, papers.names()) for t in paper.tables for row in t["rows"] if row["paper"] is None
    )


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
    with pytest.raises(KdcoreError, match="the sweep of row '{a} and {b}' gives 4 rows, but 'paper' has 2 numbers"):
        _ = paper.tables


def changed(key, change):
    """The first problem of a paper's sheet after a change to it."""
    sheet = copy.deepcopy(papers.get(key).sheet)
    change(sheet)
    with pytest.raises(papers.BadSheet) as caught:
        papers.Paper(key, sheet)
    return caught.value.problems[0]


def test_what_would_train_nothing_or_compare_nothing_is_refused():
    assert changed("fsp", lambda sheet: sheet["budgets"]["smoke"]["config"].update(scale=1e-9)).endswith("is no step): raise scale")
    assert "scale -1.0: it must be greater than 0" in changed("fsp", lambda sheet: sheet["config"].update(scale=-1.0))
    assert "scale 'big'" in changed("fsp", lambda sheet: sheet["config"].update(scale="big"))
    assert "config: 'teacher_network'" in changed("fsp", lambda sheet: sheet["config"].pop("teacher_network"))
    assert changed("fsp", lambda sheet: sheet["claims"][0].update(right=sheet["claims"][0]["left"])).endswith("compares a side with itself")
    twice = changed("fsp", lambda sheet: sheet["tables"][0]["rows"].append(sheet["tables"][0]["rows"][0]))
    assert twice.startswith("fsp/sheet.yaml: table cifar10 shows 'test_accuracy_percent' of ") and twice.endswith("twice")
