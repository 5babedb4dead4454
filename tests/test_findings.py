"""Findings: numbers worked by hand, words held to the records, and what a sheet may not say."""

import copy
import re
from pathlib import Path

import pytest
from records import KEY, made

from kdcore import checks, papers
from kdcore.papers import sheet, sheet_page
from kdcore.report import findings, formats
from kdcore.report.findings import UNTRUE
from kdcore.trials.store import Store

SMALL, KD = ([{"arms": [arm], "metric": "test_errors"}] for arm in ("small", "small with KD"))


def with_finding(**changes):
    """A paper whose one finding compares two arms: 139, 142 and 148 errors against 108, 100 and 112."""
    one = {
        "id": "gain",
        "budget": "fast",
        "text": "Soft targets take {gain} errors off.",
        "values": {"gain": {"left": SMALL[0], "right": KD[0], "above": 0}},
    }
    return papers.Paper(KEY, copy.deepcopy(papers.get(KEY).sheet) | {"findings": [one | changes]})


def records(paper, small=(139, 142, 148), kd=(108, 100, 112), budget="fast"):
    values = {"small": small, "small with KD": kd}
    return [made(paper.trial(budget, arm, seed), {"test_errors": value}) for arm, each in values.items() for seed, value in enumerate(each)]


def shown(text: str, of=None, **value) -> str:
    """The text of a finding; its differences are 31, 42 and 36, with mean 36.33 and squares 28.44 + 32.11 + 0.11 = 60.67."""
    paper = with_finding(text=text, values={"gain": {"left": SMALL[0], "right": KD[0]} | value} | (of or {}))
    (row,) = findings.findings(paper, records(paper)).to_dict("records")
    return row["text"]


def test_every_way_to_show_a_value_by_hand():
    assert shown("{gain}", above=0) == "36"
    assert shown("{gain:range}; {gain:each}", above=0) == "31 to 42; 31, 42 and 36"
    assert shown("{gain:spread}", above=0) == "5.5", "the root of 60.67 / 2"
    # t(2, 0.975) = 4.302653 times 5.5076 / sqrt(3) = 13.68
    assert shown("{gain:interval}", above=0) == "36 [23, 50]"
    assert shown("{gain:seeds}", above=31, of={"only": {"left": SMALL[0], "above": 0}}) == "2 of 3 seeds"
    assert shown("in {gain:seeds}", above=0) == "in all 3 seeds"
    assert shown("{gain:paper}", above=0) == "72", "146 - 74"
    assert set(re.findall(r'how == "(\w+)"', Path(findings.__file__).read_text(encoding="utf-8"))) | {""} == set(sheet.SHOWN)


def test_a_difference_that_no_bound_fixes_has_its_sign():
    assert shown("{gain}") == "+36"
    assert shown("{gain}", left=KD[0], right=SMALL[0]) == "\N{MINUS SIGN}36"
    assert shown("{gain:range}", left=KD[0], right=SMALL[0]) == "\N{MINUS SIGN}42 to \N{MINUS SIGN}31"


def test_one_side_alone_and_a_constant():
    paper = with_finding(
        text="{alone} errors, {over:each} more than 100",
        values={"alone": {"left": SMALL[0]}, "over": {"left": SMALL[0], "right": {"value": 100}, "above": 0}},
    )
    (row,) = findings.findings(paper, records(paper)).to_dict("records")
    assert row["text"] == "143 errors, 39, 42 and 48 more than 100"


@pytest.mark.parametrize(
    ("bounds", "against"),
    [
        ({"above": 0}, ""),
        ({"above": 36, "below": 37}, ""),
        ({"above": 37}, "gain is 36.33, the mean of 3 seeds, and not above 37"),
        ({"below": 36}, "gain is 36.33, the mean of 3 seeds, and not below 36"),
        ({"above": 40, "below": 50}, "gain is 36.33, the mean of 3 seeds, and not above 40 and below 50"),
        ({"above": 30, "of": "every"}, ""),
        ({"above": 31, "of": "every"}, "gain is in 2 of 3 seeds only above 31"),
        ({"below": 0, "of": "every"}, "gain is in none of 3 seeds only below 0"),
        ({"below": 6, "of": "spread"}, ""),
        ({"below": 5, "of": "spread"}, "gain is 5.508, the standard deviation of 3 seeds, and not below 5"),
    ],
)
def test_words_are_held_to_the_records(bounds, against):
    paper = with_finding(values={"gain": {"left": SMALL[0], "right": KD[0]} | bounds})
    mine = records(paper)
    (row,) = findings.findings(paper, mine).to_dict("records")
    assert row["untrue"] == against
    assert row["text"] == (UNTRUE if against else "") + "Soft targets take 36 errors off."
    assert [against in problem for problem in findings.problems(paper, mine)] == [True] * bool(against)
    assert (UNTRUE in formats.to_html(findings.findings(paper, mine))) == bool(against)


def test_a_finding_that_more_seeds_refute_is_never_silent():
    paper = with_finding()
    true, later = records(paper), records(paper, (139, 142, 148, 90, 91), (108, 100, 112, 200, 210))
    assert findings.problems(paper, true) == []
    (problem,) = findings.problems(paper, later)
    # 31, 42, 36, -110 and -119: the mean is -24
    assert problem == (
        f"{KEY}/sheet.yaml: finding gain is no longer true at budget fast "
        "(gain is \N{MINUS SIGN}24, the mean of 5 seeds, and not above 0): write what the records say now, and new bounds"
    )


def test_only_seeds_of_both_sides_count_and_none_are_not_shown():
    paper = with_finding(text="{gain:each}")
    mine = records(paper, (139, 142, 148), (108, 100))
    (row,) = findings.findings(paper, mine).to_dict("records")
    assert (row["text"], row["n"], row["planned"]) == ("31 and 42", 2, 5)
    assert findings.findings(paper, records(paper, (139,), ())).empty and findings.findings(paper, []).empty
    assert "No records yet" in formats.to_html(findings.findings(paper, []))
    assert findings.findings(paper, records(paper, budget="laptop")).empty


def of(arm="small", metric="test_errors", **more) -> dict:
    return {"gain": {"left": {"arms": [arm], "metric": metric}} | more}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"budget": "fasst"}, "finding gain names the budget 'fasst', which does not exist (did you mean 'fast'?)"),
        ({"values": of("smal")}, "finding gain: gain names the arm 'smal', which does not exist (did you mean 'small'?)"),
        ({"values": of(metric="test_error")}, "finding gain: trial.py does not measure 'test_error'"),
        ({"budget": "laptop", "values": of("30 units, T=4")}, "gain names the arm '30 units, T=4', which budget laptop does not run"),
        ({"text": "{gain} and {gian}"}, "finding gain: the placeholder '{gian}' has no value (did you mean 'gain'?)"),
        (
            {"text": "{gain:means}"},
            "'{gain:means}' shows nothing: write {gain}, or one of interval, range, each, spread, seeds, paper after",
        ),
        ({"text": "{gain.x}"}, "the placeholder '{gain.x}' has no value"),
        ({"text": "{gain!r}"}, "shows nothing"),
        ({"text": "{0}", "values": {"0": of()["gain"]}}, "finding gain: the value 0 needs a name that is not a number"),
        ({"text": "{gain:{gain}}"}, "'{gain:{gain}}' shows nothing"),
        ({"text": "{}"}, "the placeholder '{}' has no value"),
        ({"text": "{gain"}, "is not a valid template"),
        ({"text": "none", "values": of()}, "nothing shows the value gain: write {gain} in the text, or give it 'above' or 'below'"),
        ({"text": "{gain:seeds}", "values": of()}, "'{gain:seeds}' counts seeds within bounds: give gain 'above' or 'below'"),
        ({"text": "{gain:paper}", "values": of(metric="train_error_percent")}, "needs a reported number for every arm and metric of gain"),
        ({"values": {"gain": {"left": {"value": 3}}}}, "left is a constant: name its arms and metric"),
        ({"values": of(right=SMALL[0])}, "it subtracts a side from itself"),
        ({"values": of(above=3, below=3)}, "no number is above 3 and below 3"),
        ({"values": of(of="some")}, "write one of 'mean', 'every' or 'spread'"),
        ({"values": {}}, "it must not be empty"),
        ({"txt": "x"}, "unknown key 'txt' (did you mean 'text'?)"),
    ],
)
def test_what_a_finding_may_not_say(changes, complaint):
    with pytest.raises(papers.BadSheet) as caught:
        with_finding(**changes)
    assert complaint in caught.value.problems[0] and "\n" not in caught.value.problems[0]


def test_two_findings_of_one_name():
    one = {"id": "gain", "budget": "fast", "text": "{gain}", "values": {"gain": {"left": SMALL[0]}}}
    with pytest.raises(papers.BadSheet, match="findings: the id 'gain' is used twice"):
        papers.Paper(KEY, papers.get(KEY).sheet | {"findings": [one, one]})


def test_check_says_what_is_no_longer_true(tmp_path, monkeypatch):
    paper = with_finding(values={"gain": {"left": SMALL[0], "right": KD[0], "below": 0}})
    for each in records(paper):
        Store(tmp_path).put(each)
    monkeypatch.setattr(papers, "get", lambda key: paper)
    (problem,) = checks.record_problems(tmp_path)
    assert "finding gain is no longer true" in problem


TYPED = re.compile(r"\d+(?:\.\d+)? (?:points|errors|%)|\b0\.\d+")


@pytest.mark.parametrize("key", papers.names())
def test_sheets_type_no_result(key):
    """A finding's numbers of ours come from records: what is typed is a number of the protocol, or of the paper."""
    for finding in papers.get(key).sheet.get("findings", []):
        protocol = str({name: part for name, part in papers.get(key).sheet.items() if name not in ("findings", "deviations")})
        for text in (finding["text"], finding.get("why") or ""):
            assert not [number for number in TYPED.findall(text) if number not in protocol], finding["id"]
    assert not [each["what"] for each in papers.get(key).sheet["deviations"] if "result" in each["what"]]
    assert 1 <= len(papers.get(key).sheet["findings"]) <= 5


def test_the_page_of_sheets_explains_every_placeholder():
    page = next(text for path, text in sheet_page.pages().items() if path.name == "sheet.md")
    assert all(f"`{{name{how and ':'}{how}}}`" in page for how in sheet.SHOWN)
