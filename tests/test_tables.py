"""Tables and claims from records: the right ones, of one budget; and what a number looks like."""

import copy
import math
import re

import pytest
from matplotlib.text import Text
from records import KEY, judged, made, of_arm, synthetic

from kdcore import papers
from kdcore.errors import KdcoreError
from kdcore.report import catalogue, claims, figures, formats, select, tables, words


@pytest.fixture(scope="module")
def paper():
    return judged()


def test_table_joins_reported_and_measured_numbers(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "fast", "small with KD", [90, 91, 92])
    frame = tables.table(paper, "errors", records, "fast")
    assert list(frame["verdict"]) == ["not run", "reproduced", "worse"]
    cumbersome, small, distilled = frame.to_dict("records")
    assert (cumbersome["paper"], cumbersome["n"]) == (67, 0) and math.isnan(cumbersome["ours"])
    half = 4.302653 / math.sqrt(3)
    assert (small["ours"], small["low"], small["high"]) == pytest.approx((146, 146 - half, 146 + half), abs=1e-5)
    assert (small["difference"], small["n"], small["margin"], small["hours"], small["device"]) == (0, 3, 15, pytest.approx(0.3), "Test CPU")
    assert distilled["difference"] == 17
    assert [seed["value"] for seed in distilled["seeds"]] == [90, 91, 92]
    assert [seed["id"] for seed in distilled["seeds"]] == [paper.trial("fast", "small with KD", seed).id for seed in range(3)]
    assert frame.attrs["budget"] == "fast" and frame.attrs["hours"] == pytest.approx(0.6)


def test_a_second_reference_stands_beside_the_papers_number(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147])
    plain = tables.table(paper, "errors", records, "fast")
    assert "reference" not in plain.columns and "someone" not in formats.to_markdown(plain)
    sheet = select.table_of(paper, "errors")
    rows = [row | {"reference": 151.5} if row["arm"] == "small" else row for row in sheet["rows"]]
    frame = tables.table(paper, sheet | {"reference": "someone", "rows": rows}, records, "fast")
    assert [value for value in frame["reference"] if not math.isnan(value)] == [151.5]
    assert list(frame["verdict"]) == list(plain["verdict"]), "the verdict is on the paper's number"
    lines = formats.to_markdown(frame).splitlines()
    assert any(line.startswith("| row | paper | someone | ours") for line in lines) and any(
        "| 146 | 151.5 | 146 [" in line for line in lines
    )
    markup = formats.to_html(frame)
    assert markup.count("someone") == 1 and markup.count("151.5") == 1
    assert formats.to_csv(frame).splitlines()[0].split(",")[:4] == ["budget", "label", "paper", "reference"]
    texts = [text.get_text() for text in figures.paper_against_ours(frame).findobj(Text)]
    assert "someone" in texts


def test_no_reported_number_is_no_verdict(paper):
    frame = tables.table(paper, "temperature", of_arm(paper, "fast", "300 units, T=1", [90, 95]), "fast")
    row = frame[frame["arm"] == "300 units, T=1"].iloc[0]
    assert row["verdict"] == "no number" and row["ours"] == 92.5 and math.isnan(row["difference"])


@pytest.mark.parametrize("mark", ["M?", "?"])
def test_a_number_that_nobody_could_verify_is_shown_with_its_mark_and_gets_no_verdict(paper, mark):
    sheet = select.table_of(paper, "errors")
    rows = [row | {"mark": mark} if row["arm"] == "small" else row for row in sheet["rows"]]
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "fast", "small with KD", [73, 74, 75])
    frame = tables.table(paper, sheet | {"rows": rows}, records, "fast")
    assert list(frame["verdict"]) == ["not run", "unverified", "reproduced"]
    assert frame["paper"].tolist() == [67, 146, 74], "it is the same number"
    text = formats.to_markdown(frame)
    (line,) = (line for line in text.splitlines() if line.startswith("| small (2x800) "))
    assert f"| 146 [{mark}] | 146 [144, 148] |" in line and "| unverified |" in line
    assert text.count(f"[{mark}]: {formats.MARKS[mark]}; such a number gets no verdict.") == 1
    page = formats.to_html(frame)
    assert f">146 [{mark}]<" in page and "– unverified" in page and f"{formats.MARKS[mark]}; such a number gets no verdict." in page
    figure = figures.paper_against_ours(frame)
    assert "unverified" in [text.get_text() for text in figure.findobj(Text)]
    assert len(figure.axes[0].patches) == 1, "a band of the margin for the other row alone"
    known = tables.table(paper, sheet | {"rows": [row | {"mark": "M"} for row in sheet["rows"]]}, records, "fast")
    assert list(known["verdict"]) == ["not run", "reproduced", "reproduced"], "from memory is not yet doubtful"
    assert "[M]" not in formats.to_markdown(known)


def test_two_budgets_never_mix(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "laptop", "small", [200, 201])
    for budget, n, mean in (("fast", 3, 146), ("laptop", 2, 200.5), ("paper", 0, None)):
        row = tables.table(paper, "errors", records, budget).iloc[1]
        assert row["n"] == n and (mean is None or row["ours"] == mean)
        assert set(claims.claims(paper, records, budget)["n"]) == {0}
    with pytest.raises(ValueError, match="one budget"):
        catalogue.figures_of(paper, records)


def test_embedded_data_are_not_compared(paper):
    records = synthetic(paper, "smoke", 2)
    frame = tables.table(paper, "errors", records, "smoke")
    assert set(frame["verdict"]) == {"demo"} and frame["difference"].isna().all() and frame["ours"].notna().all()
    assert set(claims.claims(paper, records, "smoke")["verdict"]) == {"demo"}
    assert set(tables.table(paper, "errors", [], "smoke")["verdict"]) == {"not run"}


def test_unknown_names_are_said(paper):
    with pytest.raises(KdcoreError, match="no table 'nope'"):
        tables.table(paper, "nope", [], "fast")
    with pytest.raises(KdcoreError, match="no budget 'nope'"):
        tables.table(paper, "errors", [], "nope")
    with pytest.raises(KdcoreError, match="the sheet of hinton_mnist has no list 'protocoll': choose one of .* .did you mean 'protocol'"):
        tables.facts(paper, "protocoll")
    with pytest.raises(KdcoreError, match="no number 'test_errors'"):
        tables.table(paper, "errors", [made(paper.trial("fast", "small", 0), {"other": 1})], "fast")


def test_claims_are_paired_and_adjusted(paper):
    records = of_arm(paper, "fast", "small", [146, 147, 145, 300]) + of_arm(paper, "fast", "small with KD", [74, 76, 73])
    records += of_arm(paper, "fast", "cumbersome", [67, 68, 66])
    frame = claims.claims(paper, records, "fast").set_index("id")
    kd = frame.loc["kd_helps"]
    assert kd["n"] == 3 and kd["left"] == pytest.approx(74 + 1 / 3) and kd["right"] == 146  # seed 3 has no partner
    assert kd["verdict"] == "holds" and kd["p"] == pytest.approx(kd["p_alone"])  # the larger of the two tested
    assert frame.loc["big_beats_small", "p_alone"] == 0 and frame.loc["big_beats_small", "verdict"] == "holds"
    assert frame.loc["unseen_3", "verdict"] == "not run" and math.isnan(frame.loc["unseen_3", "p"])


def test_claim_against_a_constant_and_over_several_arms(paper):
    records = of_arm(paper, "fast", "small with KD, no 3s", [600, 601, 603], "class_errors")
    for record in records:
        record["metrics"]["class_errors_shift_heldout"] = 10
    for t, values in {"2.5": [500, 502], "3": [510, 512, 700], "4": [520, 522]}.items():
        records += of_arm(paper, "fast", f"30 units, T={t}", values)
    for t in (12, 20, 40):
        records += of_arm(paper, "fast", f"30 units, T={t}", [600, 603])
    frame = claims.claims(paper, records, "fast").set_index("id")
    assert frame.loc["unseen_3", "right"] == 505 and frame.loc["unseen_3", "verdict"] == "contradicted"
    low = frame.loc["low_t_small_net"]
    assert low["n"] == 2 and (low["left"], low["right"]) == (511, 601.5)  # seed 2 lacks two of its arms


def test_equivalence_claim(paper):
    records = of_arm(paper, "fast", "300 units, T=40", [100, 101, 99, 100]) + of_arm(paper, "fast", "300 units, T=12", [101, 100, 100, 99])
    row = claims.claims(paper, records, "fast").set_index("id").loc["high_t_alike"]
    assert row["verdict"] == "holds" and -10 < row["low"] < row["high"] < 10


def test_a_table_says_what_its_old_margins_gave():
    paper = judged()
    records = of_arm(paper, "fast", "small with KD, no 3s", [130, 132, 134])
    names = {name for table in paper.tables for row in table["rows"] if row["arm"] == "small with KD, no 3s" for name in [row["metric"]]}
    for record in records:
        record["metrics"] = dict.fromkeys(names, 14) | {"test_errors_shift_test": record["metrics"]["test_errors"]}
    frame = tables.table(paper, "omitted_3", records, "fast")
    # 130, 132, 134 against 109: 23 -+ 2.92 * 2 / sqrt(3) = 23 -+ 3.4 lies within 40, not within 15
    first = frame.attrs["margins"][0]
    label = "all errors, shift chosen on the test set (as in the paper)"
    assert first["old"] == 40 and (label, "reproduced", "worse") in first["rows"]
    text, page = formats.to_markdown(frame), formats.to_html(frame)
    for shown in (text, page):
        assert f"“{label}” reproduced (now worse)" in shown and "Until 28 November 2026 the margin of 4 rows" in shown
        assert "With it the verdicts would be the same." in shown
    scaled = copy.deepcopy(paper.sheet)
    scaled["budgets"]["fast"]["scale"] = "scaled"
    assert "Until" not in formats.to_markdown(tables.table(papers.Paper(KEY, scaled), "omitted_3", records, "fast")), (
        "no verdict, no margin"
    )


def test_a_scaled_table_names_what_was_trained():
    paper = papers.get("activation_boundaries")
    table = tables.table(paper, "fast", [], "laptop")
    expected = (
        "Title and labels are those of the protocol. Trained here: data cifar10; network wrn_10_1 (protocol: wrn_16_2); "
        "teacher network wrn_10_2 (protocol: wrn_22_4); percent 10 (protocol: 100)."
    )
    assert expected in formats.to_html(table) and expected.replace("_1 ", "_1 ") in formats.to_markdown(table)
    tested = formats.to_markdown(claims.claims(paper, [], "laptop"))
    assert (
        "Trained here: data cifar10, digits; network wrn_10_1 (protocol: wrn_16_2), wrn_16_2;" in tested
        and "Title and labels" not in tested
    )
    assert tables.trained(paper, "laptop", ["toy"]) == [], "the toy is trained as in the protocol"
    assert tables.trained(paper, "fast", ["teacher"]) == tables.trained(paper, "paper", ["teacher"]) == []


def test_no_scaled_run_is_red():
    paper = papers.get("fitnets")
    worse = {"FitNet 4": [41, 42, 43, 42, 42, 42], "teacher": [24, 25, 24, 25, 24, 25]}
    records = [record for arm, values in worse.items() for record in of_arm(paper, "laptop", arm, values, "test_error_percent")]
    for record in records:
        record["metrics"]["test_accuracy_percent"] = 100 - record["metrics"]["test_error_percent"]
    page = formats.to_html(tables.table(paper, "cifar10", records, "laptop")).partition("</style>")[2]
    tested = formats.to_html(claims.claims(paper, records, "laptop")).partition("</style>")[2]
    assert "scaled down" in page and "kd-off" not in page and "✗ contradicted" in tested and "kd-off" not in tested
    assert "Budget <b>laptop</b> (scaled down)" in tested and "97.5 %" not in page


def test_budget_table_says_what_changes(paper):
    changes = tables.budget_table(paper, "laptop")
    asked = {(row["parameter"], row["paper"], row["here"]) for row in changes.to_dict("records")}
    for arm in paper.budget_arms("laptop"):
        here, there = paper.config("laptop", arm), paper.config("paper", arm)
        for parameter in here:
            assert ((parameter, str(there[parameter]), str(here[parameter])) in asked) == (here[parameter] != there[parameter])
    assert "300 units, T=1 … 30 units, T=40 (18 arms)" in changes.set_index("parameter").loc["arms left out", "arms"]
    for key in papers.names():
        other = papers.get(key)
        shown = " ".join(" ".join(tables.budget_table(other, budget)["arms"]) for budget in other.budgets)
        assert "{" not in shown, "a template is for the sheet's author"
    assert tables.budget_table(paper, "paper").empty
    for budget in paper.budgets:
        for _, row in tables.budget_table(paper, budget).iterrows():
            assert row["arms"] and row["paper"] != row["here"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (146.234, "146.2"),
        (0.0123456, "0.01235"),
        (67.0, "67"),
        (12345.6, "12,346"),
        (9999.6, "10,000"),
        (-7.6, "−7.6"),
        (0, "0"),
        (math.nan, ""),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (-0.0, "0"),
        (-0.00001, "−0.00001"),
        (1000, "1000"),
        (999.96, "1000"),
        (1.5e20, "1.5e+20"),
        (-1e300, "−1e+300"),
        (2.5e-13, "2.5e-13"),
        (-5e-324, "−4.941e-324"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


def test_difference_has_the_decimals_of_ours():
    assert words.difference(3.536 - 3.5, 3.536) == "+0.036"
    assert words.difference(-0.052, 13.95) == "−0.05"
    assert words.difference(25.0, 92.0) == "+25"
    assert words.difference(-0.001, 146.2) == "0"
    assert words.difference(math.nan, 92.0) == ""
    assert words.difference(math.inf, 92.0) == "+∞" and words.difference(1e20, math.inf) == "+1e+20"
    assert words.difference(-0.0, 0.0) == "0"
    assert words.difference(-33.22, 14.08, 13.2, 15.0) == "−33.2" and words.difference(0.6136, 6.714, 3.54, 9.89) == "+0.61"


def test_other_numbers_of_any_size():
    assert [words.reported(x) for x in (math.nan, math.inf, -math.inf, -0.0, 1e300, -3.5)] == ["", "∞", "−∞", "0", "1e+300", "−3.5"]
    assert words.reported(8.5, 1e-9) == "8.5 ± 1e-09"
    assert [words.hours(x) for x in (0, 0.004, 0.01, 3.456, 1e20, math.inf)] == ["0", "< 0.01", "0.01", "3.5", "1e+20", "∞"]
    assert [words.p_value(x) for x in (math.nan, 0.0, 1e-300, 0.0123, 0.999, 1.0)] == ["", "< 0.001", "< 0.001", "0.012", "1", "1"]
    assert [formats._csv_cell(x) for x in (math.nan, -0.0, 1e300, -5e-324, 0.1 + 0.2)] == ["", "0", "1e+300", "-4.94066e-324", "0.3"]


@pytest.mark.parametrize("values", [[1e308, 1.5e308], [5e-324, 1e-323], [-0.0, 0.0], [1e16, 1e16 + 4], [1e-200, 1e200]])
def test_a_table_of_any_numbers_can_be_made(paper, values):
    frame = tables.table(paper, "errors", of_arm(paper, "fast", "small", values), "fast")
    for text in (formats.to_markdown(frame), formats.to_html(frame), formats.to_csv(frame)):
        assert "nan" not in re.sub("[a-z]nan", "", text) and "−0 " not in text and len(max(text.split(), key=len)) < 200


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (146.24, 139.2, 153.3, "146 [139, 153]"),
        (91.61, 91.58, 91.64, "91.61 [91.58, 91.64]"),
        (67, 67, 67, "67.0 [67.0, 67.0]"),
        (12.5, math.nan, math.nan, "12.5"),
        (math.nan, math.nan, math.nan, ""),
        (-0.5, -1.25, 0.25, "−0.50 [−1.25, 0.25]"),
        (1e300, -1e300, 3e300, "1e+300 [−1e+300, 3e+300]"),
        (1e-20, 0.0, 2e-20, "1e-20 [0, 2e-20]"),
        (math.inf, -math.inf, math.inf, "∞ [−∞, ∞]"),
        (5.0, math.nan, math.inf, "5"),
        (-0.0, -0.0, 0.0, "0.00 [0.00, 0.00]"),
    ],
)
def test_estimate(mean, low, high, text):
    assert words.estimate(mean, low, high) == text


def test_html_for_notebooks_says_the_verdict_in_words(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147])
    html = formats.to_html(tables.table(paper, "errors", records, "fast"))
    assert "✓ reproduced" in html and "– not run" in html and "146 [144, 148]" in html and "Budget <b>fast</b>" in html
    assert "<details>" not in html and html.count("<style>") == 1
    html = formats.to_html(claims.claims(paper, records, "fast"))
    assert "test_errors of small with KD &lt; test_errors of small" in html
    assert "What this budget changes: nothing" in formats.to_html(tables.budget_table(paper, "paper"))
    plain = (tables.budget_table(paper, "laptop"), tables.facts(paper, "protocol"))
    for frame in plain:
        html = formats.to_html(frame).partition("</style>")[2]
        assert "<style>" not in html and html.count("<tr>") == len(frame) + 1
    assert "we use" in formats.to_html(plain[1]) and paper.sheet["protocol"][0]["ours"] in formats.to_html(plain[1])


def test_standard_deviations_stand_beside_reported_numbers():
    assert words.reported(8.47, 1.11) == "8.47 \u00b1 1.11" and words.reported(8.47) == "8.47" == words.reported(8.47, math.nan)
    frame = tables.table(papers.get("fisher_darts"), "teachers", [], "paper")
    assert frame["std"].tolist()[:2] == [1.11, 0.30] and list(frame.columns)[:3] == ["label", "paper", "std"]
    assert "8.47 \u00b1 1.11" in formats.to_markdown(frame) and "8.47 \u00b1 1.11" in formats.to_html(frame)
    assert "std" not in tables.table(papers.get("fsp"), "cifar10", [], "paper"), "other papers' tables are as before"


def test_cpu_time_is_shown_where_every_record_has_it():
    paper = papers.get(KEY)
    records = of_arm(paper, "fast", "small", [145, 146])
    assert "CPU time" not in formats.to_markdown(tables.table(paper, "errors", records, "fast"))
    records[0]["cost"]["cpu_seconds"] = 700.0
    frame = tables.table(paper, "errors", records, "fast")
    assert "CPU time" not in formats.to_markdown(frame), "the sum would be of one of two"
