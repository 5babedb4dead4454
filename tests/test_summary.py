"""What came out for a paper: effects, claims and distinct numbers, by hand."""

import copy
import math

import pytest
from records import KEY, judged, make_protocol, of_arm, synthetic

from kdcore import papers
from kdcore.errors import KdcoreError
from kdcore.report import claims, select, tables
from kdcore.report.evidence import Evidence
from kdcore.report.summary import MARKS, scales, summary


@pytest.fixture(scope="module")
def paper():
    return judged()


def kd(paper, budget: str, small: list[float], taught: list[float]) -> list[dict]:
    return of_arm(paper, budget, "small", small) + of_arm(paper, budget, "small with KD", taught)


def test_an_effect_by_hand(paper):
    # left - right: -32, -30, -34; standard error 2 / sqrt(3); the only claim tested, so the level is 95 %: t(2) = 4.302653
    result = summary(Evidence(paper, kd(paper, "fast", [140, 138, 142], [108, 108, 108])))
    (effect,) = result.effects
    half = 4.302653 * 2 / math.sqrt(3)
    assert (effect.claim, effect.text, effect.unit) == ("kd_helps", "soft targets instead of labels", "errors of 10,000")
    assert (effect.budget, effect.scale, effect.verdict, effect.n, effect.planned) == ("fast", "protocol", "holds", 3, 2)
    assert (effect.mean, effect.low, effect.high) == pytest.approx((-32, -32 - half, -32 + half), abs=1e-5)
    assert effect.paper == 74 - 146 and math.isnan(effect.paper_low) and math.isnan(effect.paper_high)
    assert effect.relative == pytest.approx(-3200 / 140) and effect.relative_paper == pytest.approx(-7200 / 146)
    assert (effect.relative_low, effect.relative_high) == pytest.approx((100 * effect.low / 140, 100 * effect.high / 140))


def test_an_effect_at_another_level_is_the_interval_of_its_verdict(paper):
    # two claims are tested: big_beats_small, p = 0, takes level 0.05 / 2; kd_helps, the last, 0.05. Swapped, kd_helps takes 0.05 / 2
    records = kd(paper, "fast", [140, 138, 142], [108, 108, 108]) + of_arm(paper, "fast", "cumbersome", [100, 98, 102])
    frame = claims.claims(paper, records, "fast").set_index("id")
    assert frame.loc["big_beats_small", ["p_alone", "level"]].tolist() == [0, 0.975] and frame.loc["kd_helps", "level"] == 0.95
    noisy = kd(paper, "fast", [140, 138, 142], [108, 108, 108]) + of_arm(paper, "fast", "cumbersome", [100, 140, 180])
    frame = claims.claims(paper, noisy, "fast").set_index("id")
    half = 6.205347 * 2 / math.sqrt(3)  # t(2, 0.9875)
    assert frame.loc["kd_helps", ["low", "high"]].tolist() == pytest.approx([-32 - half, -32 + half], abs=1e-5)
    assert summary(Evidence(paper, noisy)).effects[0].low == frame.loc["kd_helps", "low"]


def test_the_papers_own_effect_comes_from_its_tables():
    def own(key: str, claim: str) -> dict:
        sheet = papers.get(key)
        return claims.reported(sheet, next(each for each in sheet.sheet["claims"] if each["id"] == claim))

    assert own("hinton_mnist", "kd_helps")["reported"] == -72 and own("hinton_mnist", "unseen_3")["reported"] == 133 - 505
    # accuracies 88.70 and 87.91; the teacher's 91.75 stands beside 92.14, in a table of its own (another has 91.91)
    assert own("fsp", "fsp_helps")["reported"] == pytest.approx(-0.79) and own("fsp", "fsp_helps")["reported_right"] == pytest.approx(12.09)
    assert own("fsp", "fast_optimisation")["reported"] == pytest.approx(-0.39)
    # the mean of 37.11 and 36.99 against 21.54; a net without a number in the paper
    assert own("activation_boundaries", "best_with_one_percent")["reported"] == pytest.approx(21.54 - 37.05)
    assert math.isnan(own("born_again_networks", "ban_16_1")["reported"])
    whole = own("fisher_darts", "fisher_helps")
    assert whole["reported_low"] < 0 < whole["reported_high"] and whole["reported"] == pytest.approx(6.4033 - 8.47)


def test_a_claim_counts_at_the_closest_scale_at_which_all_planned_seeds_ran():
    paper = papers.get(KEY)  # 3 seeds at laptop, 5 at fast, both of scale short, fast being closer
    laptop = kd(paper, "laptop", [140, 138, 142], [108, 108, 108])
    some = kd(paper, "fast", [140, 138, 142], [138, 138, 138])
    chosen = summary(Evidence(paper, laptop)).claims.set_index("id")
    assert chosen.loc["kd_helps", ["budget", "scale", "verdict"]].tolist() == ["laptop", "short", "holds"]
    assert chosen.loc["unseen_3", ["budget", "scale", "verdict"]].tolist() == ["", "", "not run"]
    both = summary(Evidence(paper, laptop + some))
    assert both.budgets == ["fast", "laptop"]
    assert both.claims.set_index("id").loc["kd_helps", ["budget", "verdict"]].tolist() == ["laptop", "holds"], "3 of 5 seeds are no verdict"
    alone = summary(Evidence(paper, some))
    assert alone.effects[0].verdict == "interim" and (alone.effects[0].n, alone.effects[0].planned) == (3, 5)
    full = summary(Evidence(paper, laptop + kd(paper, "fast", [140, 138, 142, 140, 140], [108, 108, 108, 108, 109])))
    assert full.effects[0].budget == "fast" and full.marks == {"holds": 1, "not run": 7} | dict.fromkeys(MARKS[1:4], 0)


def test_a_number_that_several_rows_repeat_counts_once():
    sheet = copy.deepcopy(papers.get(KEY).sheet)
    errors = sheet["tables"][0]
    sheet["tables"].append(
        copy.deepcopy(errors)
        | {"id": "again", "rows": [*copy.deepcopy(errors["rows"]), errors["rows"][1] | {"label": "small, elsewhere", "paper": 150}]}
    )
    make_protocol(sheet, "fast")
    sheet["budgets"]["fast"]["seeds"] = 2
    paper = papers.Paper(KEY, sheet)
    evidence = Evidence(paper, kd(paper, "fast", [145, 146, 147], [90, 91, 92]))
    shown = [frame for frame in evidence.frames("fast") if frame.attrs["id"] in ("errors", "again")]
    assert [list(frame["verdict"]) for frame in shown] == [
        ["not run", "reproduced", "worse"],
        ["not run", "reproduced", "worse", "reproduced"],
    ]
    numbers = summary(evidence).numbers
    # 146 and 150 are two numbers for the same arm: both agree; 74 is not reached. All others of the sheet were not run
    distinct = {(r["arm"], r["metric"], r["paper"]) for t in paper.tables for r in t["rows"] if r["paper"] is not None and r["arm"]}
    assert numbers == {"reproduced": 2, "worse": 1, "not run": len(distinct) - 3}


def test_scales_decide_what_gets_a_verdict():
    sheet = copy.deepcopy(papers.get(KEY).sheet)
    expected = {
        "protocol": (["undecided", "reproduced", "worse"], "holds"),
        "short": (["shorter run", "reproduced", "shorter run"], "holds"),
        "scaled": (["scaled down"] * 3, "holds"),
        "demo": (["demo"] * 3, "demo"),
    }
    make_protocol(sheet, "fast")
    del sheet["findings"]  # there are none at a demo
    for scale, (verdicts, verdict) in expected.items():
        sheet["budgets"]["fast"] |= {"scale": scale, "seeds": 3}
        paper = papers.Paper(KEY, copy.deepcopy(sheet))
        records = kd(paper, "fast", [145, 146, 147], [90, 91, 92]) + of_arm(paper, "fast", "cumbersome", [20, 60, 120])
        frame = tables.table(paper, "errors", records, "fast")
        assert list(frame["verdict"]) == verdicts and frame["difference"].notna().all() == (scale in ("protocol", "short"))
        assert claims.claims(paper, records, "fast").set_index("id").loc["kd_helps", "verdict"] == verdict
        fewer = [record for record in records if record["seed"] < 2]
        assert set(tables.table(paper, "errors", fewer, "fast")["verdict"]) == (
            {"interim"} if scale in ("protocol", "short") else set(verdicts)
        )
        assert claims.claims(paper, fewer, "fast").set_index("id").loc["kd_helps", "verdict"] == ("demo" if scale == "demo" else "interim")


def test_overlapping_test_sets_widen_tables_and_claims():
    paper = papers.get("born_again_trees")
    # ten test sets of a tenth in each trial: the means' variance is multiplied by (1 / 3 + 10 / 9) instead of 1 / 3
    assert select.overlap(paper, "paper", ["sonar"]) == pytest.approx(10 / 9) and select.overlap(
        paper, "smoke", ["glass"]
    ) == pytest.approx(2 / 9)
    assert select.overlap(papers.get(KEY), "paper", ["small"]) == 0
    records = of_arm(paper, "paper", "sonar", [24, 26, 28], "born_again_error_percent")
    for record, cart in zip(records, (31, 32, 36), strict=True):
        record["metrics"] |= {name: cart for name in ("cart_error_percent", "arced_error_percent", "decrease_percent")}
    row = tables.table(
        paper, {**paper.tables[0], "rows": [r for r in paper.tables[0]["rows"] if r["arm"] == "sonar"]}, records, "paper"
    ).iloc[0]
    half = 4.302653 * 2 * math.sqrt(1 / 3 + 10 / 9)
    assert (row["ours"], row["low"], row["high"]) == pytest.approx((26, 26 - half, 26 + half), abs=1e-5)
    frame = claims.claims(paper, records, "paper").set_index("id")
    test = frame.loc["better_than_cart_sonar"]  # differences -7, -6, -8: s = 1; the level is 97.5 %: two claims of one p
    assert (test["difference"], test["low"]) == pytest.approx((-7, -7 - 6.205347 * math.sqrt(1 / 3 + 10 / 9)), abs=1e-5)


def test_where_records_hold_single_test_sets_these_are_tested():
    paper = papers.get("born_again_trees")
    records = of_arm(paper, "paper", "sonar", [2, 4], "born_again_error_percent")
    sets = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    for record, values in zip(records, sets, strict=True):
        record["metrics"]["repetitions"] = {"born_again_error_percent": values, "cart_error_percent": [9.0, 9.0, 9.0]}
        record["metrics"] |= {"cart_error_percent": 9.0, "arced_error_percent": 1.0, "decrease_percent": 20.0}
    (found,), overlap = select.samples(paper, "paper", records, {"arms": ["sonar"], "metric": "born_again_error_percent"})
    assert found[1, 2] == 6.0 and len(found) == 6 and overlap == pytest.approx(1 / 9)
    # six sets: mean 3, squares 4 + 1 + 0 + 1 + 1 + 9 = 16, s^2 = 16 / 5; t(5, 0.975) = 2.570582
    frame = tables.table(paper, "test_errors", records, "paper").set_index("label")
    half = 2.570582 * math.sqrt(16 / 5 * (1 / 6 + 1 / 9))
    assert frame.loc["sonar: BA-CART", ["n", "ours", "low", "high"]].tolist() == pytest.approx([2, 3, 3 - half, 3 + half], abs=1e-5)
    assert select.samples(paper, "paper", records, {"arms": ["sonar"], "metric": "decrease_percent"})[1] == pytest.approx(10 / 9)
    records[0]["metrics"]["repetitions"]["born_again_error_percent"] = [1.0, None, 3.0]
    with pytest.raises(KdcoreError, match="has a test set without a number 'born_again_error_percent'"):
        tables.table(paper, "test_errors", records, "paper")
    records[0]["metrics"]["repetitions"]["born_again_error_percent"] = sets[0]
    claim = claims.claims(paper, records, "paper").set_index("id").loc["better_than_cart_sonar"]
    # differences from 9 have the same spread; t = 6 / sqrt(0.8889) = 6.364, and Holm's level for the first of two is 97.5 %
    assert claim["n"] == 2 and claim["difference"] == -6 and claim["high"] == pytest.approx(-6 + 3.163381 * half / 2.570582, abs=1e-5)


def test_summaries_of_all_papers_and_of_none():
    empty = summary(Evidence(papers.get(KEY), []))
    assert empty.budgets == [] and empty.scale == "" and empty.marks["not run"] == 8 and set(empty.numbers) == {"not run"}
    assert (empty.effects[0].verdict, empty.effects[0].paper, empty.seeds, empty.devices, empty.hours) == ("not run", -72, (0, 0), "", 0)
    smoke = summary(Evidence(papers.get(KEY), synthetic(papers.get(KEY), "smoke", 2, ["small"])))
    assert smoke.budgets == [] and smoke.seeds == (0, 0), "a demonstration is no result"
    trees = summary(Evidence(papers.get("born_again_trees"), of_arm(papers.get("born_again_trees"), "paper", "sonar", [], "x")))
    paper = papers.get("fsp")
    short = summary(Evidence(paper, synthetic(paper, "laptop", 3)))
    groups = scales([empty, trees, short])
    assert list(groups) == ["short"] and groups["short"] == [short]
    assert sum(short.marks.values()) == len(paper.sheet["claims"]) == len(short.claims)
