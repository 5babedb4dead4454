"""Tables, figures, page and README from records: the right ones, of one budget, the same bytes each time."""

import base64
import csv
import dataclasses
import html
import io
import math
import os
import re
import shlex

import numpy as np
import pytest
from conftest import overlaps
from matplotlib.image import imread
from matplotlib.text import Text

from kdcore import cli, papers, report
from kdcore.errors import KdcoreError
from kdcore.papers.spec import Trial
from kdcore.report import canvas, catalogue, claims, figures, formats, readme, select, tables, words
from kdcore.report.evidence import Evidence
from kdcore.report.site import write_site
from kdcore.trials.store import Store

KEY = "hinton_mnist"
README = "# kdcore\n\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\n\nThe end.\n"


def made(trial: Trial, metrics: dict, status: str = "done", history: list | None = None) -> dict:
    """A valid record of a trial, as a worker would write it."""
    asked = dataclasses.asdict(trial)
    return asked | {
        "id": trial.id,
        "status": status,
        "metrics": metrics,
        "history": history or [],
        "cost": {"seconds": 360.0, "peak_memory_mb": 100.0, "device": "Test CPU"},
        "environment": {"python": "3"},
        "data": {"fingerprint": trial.data},
    }


def synthetic(paper, budget: str, seeds: int = 3, arms: list[str] | None = None) -> list[dict]:
    """Valid records of a budget's arms, near the reported numbers, with all that the sheet's tables and claims read."""
    wanted: dict = {}
    for table in paper.tables:
        for row in table["rows"]:
            value = row["paper"] if row["paper"] is not None else 100 + 7 * len(wanted)
            wanted.setdefault(row["arm"], {}).setdefault(row["metric"], (value, row["margin"] or 1))
    for claim in paper.sheet["claims"]:
        for side in (claim["left"], claim["right"]):
            for arm in side.get("arms", []):
                wanted.setdefault(arm, {}).setdefault(side["metric"], (50, 5))
    rng = np.random.default_rng(0)
    image = base64.b64encode(bytes(range(256)) * 3 + bytes(16)).decode()
    entries = [{"label": k, "logits": rng.normal(0, 4, 10).tolist(), "image": image, "shape": [28, 28]} for k in range(4)]
    counts = rng.integers(0, 1200, (10, 10)).tolist()
    curve = {"shifts": list(range(-5, 15)), "shift_test_errors": [100 + 5 * (x - 3) ** 2 for x in range(-5, 15)]}
    own = {
        "gallery": entries,
        "confusion_before": counts,
        "confusion_shift_heldout": counts,
        **curve,
        "shift_test": 3,
        "shift_heldout": 3.5,
    }
    records = []
    for arm in arms or paper.budget_arms(budget):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, *arm.encode()])
            metrics = own | {name: round(value + 0.2 * margin * rng.standard_normal(), 3) for name, (value, margin) in wanted[arm].items()}
            errors = 1 + rng.random() + 8 * np.exp(-np.arange(20) / 4) + 0.1 * rng.random(20)
            history = [{"stage": "train", "epoch": e + 1, "lr": 0.1, "loss": 1.0, "test_error_percent": x} for e, x in enumerate(errors)]
            records.append(made(paper.trial(budget, arm, seed), metrics, history=history))
    return records


def of_arm(paper, budget: str, arm: str, values: list[float], metric: str = "test_errors") -> list[dict]:
    """Records of one arm, a seed for each value of one metric."""
    return [made(paper.trial(budget, arm, seed), {metric: value}) for seed, value in enumerate(values)]


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "project" / "results")


@pytest.fixture
def full(paper, store):
    """A project with two arms at laptop, a failure, smoke records and a README."""
    for record in synthetic(paper, "laptop", 2, ["small", "small with KD"]) + synthetic(paper, "smoke", 2, ["small"]):
        store.put(record)
    store.put(made(paper.trial("laptop", "small", 9), {"message": "the loss is not <finite>"}, status="nan"))
    (store.results.parent / "README.md").write_text(README)
    return store


def contents(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- tables ---------------------------------------------------------------------------------------------------------


def test_table_joins_reported_and_measured_numbers(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "fast", "small with KD", [90, 91, 92])
    frame = tables.table(paper, "errors", records, "fast")
    assert list(frame["verdict"]) == ["not run", "reproduced", "above"]
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
        "| 146 | 151.5 | 146.0 [" in line for line in lines
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
    assert f"| 146 [{mark}] | 146.0 [144, 148] |" in line and "| unverified |" in line
    assert text.count(f"[{mark}]: {formats.MARKS[mark]}; such a number gets no verdict.") == 1
    page = formats.to_html(frame)
    assert f">146 [{mark}]<" in page and "– unverified" in page and f"{formats.MARKS[mark]}; such a number gets no verdict." in page
    headline = readme.headline(frame).split("\n")
    assert headline[0] == f"small (2x800): 146.0 [144, 148] (paper 146 [{mark}])"
    assert words.counts(frame["verdict"], tables.VERDICTS) == "1 reproduced, 1 not run", "no verdict is counted"
    figure = figures.paper_against_ours(frame)
    assert f"unverified [{mark}]" in [text.get_text() for text in figure.findobj(Text)]
    assert len(figure.axes[0].patches) == 1, "a band of the margin for the other row alone"
    known = tables.table(paper, sheet | {"rows": [row | {"mark": "M"} for row in sheet["rows"]]}, records, "fast")
    assert list(known["verdict"]) == ["not run", "reproduced", "reproduced"], "from memory is not yet doubtful"
    assert "[M]" not in formats.to_markdown(known)


def test_stale_and_failed_records_stay_out(paper):
    good = of_arm(paper, "fast", "small", [145, 146, 147])
    trial = paper.trial("fast", "small", 3)
    earlier = made(dataclasses.replace(trial, version=trial.version - 1), {"test_errors": 900})
    changed = made(dataclasses.replace(trial, config=trial.config | {"epochs": 1}), {"test_errors": 900})
    gone = made(dataclasses.replace(trial, arm="an arm that was renamed"), {"test_errors": 900})
    failed = made(paper.trial("fast", "small", 4), {"message": "out of memory"}, status="oom")
    known, stale = select.current(paper, [earlier, *good, changed, gone, failed])
    assert known == [*good, failed] and stale == [earlier, changed, gone]
    row = tables.table(paper, "errors", [earlier, *good, changed, gone, failed], "fast").iloc[1]
    assert row["n"] == 3 and row["ours"] == 146


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
    assert set(frame["verdict"]) == {"not comparable"} and frame["difference"].isna().all() and frame["ours"].notna().all()
    assert set(claims.claims(paper, records, "smoke")["verdict"]) == {"not comparable"}
    assert set(tables.table(paper, "errors", [], "smoke")["verdict"]) == {"not run"}


def test_unknown_names_are_said(paper):
    with pytest.raises(KdcoreError, match="no table 'nope'"):
        tables.table(paper, "nope", [], "fast")
    with pytest.raises(KdcoreError, match="no budget 'nope'"):
        tables.table(paper, "errors", [], "nope")
    with pytest.raises(KdcoreError, match="no number 'test_errors'"):
        tables.table(paper, "errors", [made(paper.trial("fast", "small", 0), {"other": 1})], "fast")


# -- claims ---------------------------------------------------------------------------------------------------------


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


# -- budgets and scoreboard -------------------------------------------------------------------------------------------


def test_budget_table_says_what_changes(paper):
    changes = tables.budget_table(paper, "laptop")
    asked = {(row["parameter"], row["paper"], row["here"]) for row in changes.to_dict("records")}
    for arm in paper.budget_arms("laptop"):
        here, there = paper.config("laptop", arm), paper.config("paper", arm)
        for parameter in here:
            assert ((parameter, str(there[parameter]), str(here[parameter])) in asked) == (here[parameter] != there[parameter])
    assert "{width} units, T={temperature}" in changes.set_index("parameter").loc["arms left out", "arms"]
    assert tables.budget_table(paper, "paper").empty
    for budget in paper.budgets:
        for _, row in tables.budget_table(paper, budget).iterrows():
            assert row["arms"] and row["paper"] != row["here"]


def test_scoreboard(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "fast", "small with KD", [74, 75])
    evidence = Evidence(paper, records + synthetic(paper, "smoke", 2, ["small"]))
    (row,) = readme.scoreboard([evidence]).to_dict("records")
    assert row["budget"] == "fast" and row["seeds"] == "2 to 3" and row["device"] == "Test CPU"
    lines = row["headline"].split("\n")
    assert lines[0] == "small (2x800): 146.0 [144, 148] (paper 146)"  # the sheet has it second: a row that was run comes first
    assert "not run" not in lines[1] and "not run" in lines[2]
    total = len(paper.sheet["claims"])
    assert row["claims"] == f"holds 1 of {total} ({total - 1} not run)"
    assert row["verdicts"].startswith("2 reproduced, ")
    assert "<br>" in readme.block([evidence]) and "\n\n" not in readme.block([evidence])


def test_without_records_everything_works(paper, store):
    for sheet in paper.tables:
        assert set(tables.table(paper, sheet, [], "fast")["verdict"]) == {"not run"}
    assert set(claims.claims(paper, [], "fast")["verdict"]) == {"not run"}
    assert catalogue.figures_of(paper, []) == {}
    assert report.stale(store.results) == []
    assert report.write(store.results) == [store.results / "index.html"]
    assert report.write(store.results, budget="smoke") == []
    assert report.stale(store.results) == []
    assert "No records yet" in readme.block(report.gather(store))
    assert f"kdcore run {KEY}" in (store.results / "index.html").read_text()


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


def test_other_numbers_of_any_size():
    assert [words.reported(x) for x in (math.nan, math.inf, -math.inf, -0.0, 1e300, -3.5)] == ["", "∞", "−∞", "0", "1e+300", "−3.5"]
    assert words.reported(8.5, 1e-9) == "8.5 ± 1e-09"
    assert [words.hours(x) for x in (0, 0.004, 0.01, 3.456, 1e20, math.inf)] == ["0", "< 0.01", "0.01", "3.5", "1e+20", "∞"]
    assert [words.p_value(x) for x in (math.nan, 0.0, 1e-300, 0.0123, 0.999, 1.0)] == ["", "< 0.001", "< 0.001", "0.012", "1", "1"]
    assert [formats._csv_cell(x) for x in (math.nan, -0.0, 1e300, -5e-324, 0.1 + 0.2)] == ["", "0", "1e+300", "-4.94066e-324", "0.3"]


@pytest.mark.parametrize("values", [[1e308, 1.5e308], [5e-324, 1e-323], [-0.0, 0.0], [1e16, 1e16 + 4], [1e-200, 1e200]])
def test_a_table_of_any_numbers_can_be_made(paper, values):
    frame = tables.table(paper, "errors", of_arm(paper, "fast", "small", values), "fast")
    for text in (formats.to_markdown(frame), formats.to_html(frame, details=True), formats.to_csv(frame)):
        assert "nan" not in re.sub("[a-z]nan", "", text) and "−0 " not in text and len(max(text.split(), key=len)) < 200


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (146.24, 139.2, 153.3, "146.2 [139, 153]"),
        (91.61, 91.58, 91.64, "91.61 [91.58, 91.64]"),
        (67, 67, 67, "67.00 [67.0, 67.0]"),
        (12.5, math.nan, math.nan, "12.5"),
        (math.nan, math.nan, math.nan, ""),
        (-0.5, -1.25, 0.25, "−0.5000 [−1.25, 0.25]"),
        (1e300, -1e300, 3e300, "1e+300 [−1e+300, 3e+300]"),
        (1e-20, 0.0, 2e-20, "1e-20 [0, 2e-20]"),
        (math.inf, -math.inf, math.inf, "∞ [−∞, ∞]"),
        (5.0, math.nan, math.inf, "5"),
        (-0.0, -0.0, 0.0, "0.000 [0.00, 0.00]"),
    ],
)
def test_estimate(mean, low, high, text):
    assert words.estimate(mean, low, high) == text


# -- files ----------------------------------------------------------------------------------------------------------


def test_report_is_deterministic_and_current(paper, full):
    project = full.results.parent
    written = report.write(full.results)
    assert all(path.exists() for path in written)
    first = contents(project)
    assert f"results/tables/{KEY}/laptop_errors.csv" in first and f"results/figures/{KEY}/laptop_paper_errors.svg" in first
    assert f"results/tables/{KEY}/laptop_temperature.csv" not in first  # the budget runs none of its rows
    assert not any("smoke" in name for name in first if "/records/" not in name)
    assert report.stale(full.results) == []

    extra = full.results / "tables" / KEY / "laptop_gone.csv"
    extra.write_text("of an earlier sheet")
    edited = full.results / "tables" / KEY / "laptop_errors.md"
    edited.write_text("typed by hand")
    (full.results / "figures" / KEY / "laptop_paper_errors.png").unlink()
    (project / "README.md").write_text(README)
    problems = "\n".join(report.stale(full.results))
    assert len(problems.splitlines()) == 4
    for name, what in (
        (extra, "follows from no record"),
        (edited, "out of date"),
        ("paper_errors.png", "missing"),
        ("README.md", "out of date"),
    ):
        assert re.search(f"{re.escape(str(name))} (is )?{what}", problems)

    report.write(full.results)
    assert contents(project) == first  # the same bytes, and the leftover gone


def test_smoke_report_touches_nothing_committed(full):
    before = contents(full.results.parent)
    written = report.write(full.results, budget="smoke")
    assert written and all((full.results / "smoke") in path.parents for path in written)
    after = contents(full.results.parent)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("results/smoke/") for name in set(after) - set(before))


def test_written_tables_can_be_read(paper, full):
    report.write(full.results)
    folder = full.results / "tables" / KEY
    rows = list(csv.DictReader((folder / "laptop_errors.csv").open()))
    assert [row["label"] for row in rows] == [row["label"] for row in paper.tables[0]["rows"]]
    assert {row["budget"] for row in rows} == {"laptop"} and rows[0]["ours"] == "" and rows[1]["n"] == "2"
    small = [record["metrics"]["test_errors"] for record in full.records(KEY, "laptop") if record["arm"] == "small" and record["seed"] < 9]
    assert rows[1]["seeds"] == " ".join(f"{seed}:{value:.6g}" for seed, value in enumerate(small))
    assert float(rows[1]["ours"]) == pytest.approx(np.mean(small), rel=1e-5)
    text = (folder / "laptop_errors.md").read_text()
    assert "Budget **laptop**" in text and "Test CPU" in text
    lengths = {line.count(" | ") for line in text.splitlines() if line.startswith("|")}
    assert len(lengths) == 1


def test_readme_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(README)
    for _ in range(2):  # a second time changes nothing
        readme.update(path, "| new |")
        assert path.read_text() == "# kdcore\n\n<!-- scoreboard -->\n\n| new |\n\n<!-- /scoreboard -->\n\nThe end.\n"
    for broken in ("no marker", "<!-- scoreboard -->", "<!-- /scoreboard --><!-- scoreboard -->", README + README):
        path.write_text(broken)
        with pytest.raises(KdcoreError, match="must hold the lines <!-- scoreboard --> and <!-- /scoreboard -->"):
            readme.update(path, "| new |")
        assert path.read_text() == broken


# -- page -----------------------------------------------------------------------------------------------------------


def test_page_stands_alone_and_its_links_lead_somewhere(paper, full):
    folder = full.results / "figures" / KEY
    canvas.save(figures.curve([0, 1], {"a": [[1, 2]]}), folder, "laptop_shift")
    (full.results / "executed").mkdir()
    (full.results / "executed" / f"{KEY}.ipynb").write_text("{}")
    page = write_site(full, report.gather(full)).read_text()
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
    assert "<script" not in page and "<link" not in page and "url(" not in page and "@import" not in page
    links = re.findall(r'href="([^"]*)"', page)
    assert f"executed/{KEY}.ipynb" in links
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page
        elif not link.startswith("https:"):
            assert (full.results / link).exists(), link
    # one failure and four results, each with its record
    assert len({link for link in links if link.startswith("records/")}) == 5
    assert "the loss is not &lt;finite&gt;" in page and "<finite>" not in page
    for line in set(re.findall(r"<code>(kdcore run .*?--seed \d+)</code>", page)):
        words = shlex.split(line.replace("&#34;", '"'))
        options = cli.parser().parse_args(words[1:])
        assert options.paper == [KEY] and full.get(paper.trial(options.budget, options.arm[0], options.seed[0])) is not None
    for row in paper.sheet["deviations"]:
        assert html.escape(row["what"]).replace("&#x27;", "&#39;") in page


def test_html_for_notebooks_says_the_verdict_in_words(paper):
    records = of_arm(paper, "fast", "small", [145, 146, 147])
    html = formats.to_html(tables.table(paper, "errors", records, "fast"))
    assert "✓ reproduced" in html and "– not run" in html and "146.0 [144, 148]" in html and "Budget <b>fast</b>" in html
    assert "<details>" not in html and html.count("<style>") == 1
    html = formats.to_html(claims.claims(paper, records, "fast"))
    assert "test_errors of small with KD &lt; test_errors of small" in html
    assert "What this budget changes: nothing" in formats.to_html(tables.budget_table(paper, "paper"))
    plain = (tables.budget_table(paper, "laptop"), tables.facts(paper, "protocol"), readme.scoreboard([Evidence(paper, records)]))
    for frame in plain:
        html = formats.to_html(frame, style=False)
        assert "<style>" not in html and html.count("<tr>") == len(frame) + 1
    assert "we use" in formats.to_html(plain[1]) and paper.sheet["protocol"][0]["ours"] in formats.to_html(plain[1])


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_legible(paper, monkeypatch):
    found = {name: draw() for name, draw in catalogue.figures_of(paper, synthetic(paper, "fast", 2)).items()}
    assert list(found)[0] == "paper_errors" and {"learning_errors", "learning_temperature"} <= set(found)
    assert all("(budget fast)" in figure.get_suptitle() for figure in found.values())
    found["sparse"] = figures.error_against(
        [1, 1.01, 2, 40], {"a": [[1, 2], [3, 4], [], [5]], "b": [[], [], [], []]}, title="Ticks that would touch"
    )
    found["marks"] = figures.curve([0, 1, 2], {"a": np.ones((3, 3)), "b": [[1, 2, 3]]}, {"one": 1.0, "each": [1, 1.1]}, ylabel="errors")
    found["arms"] = figures.learning_curves(
        {f"an arm with a name so long that it takes two lines, {i}": synthetic(paper, "fast", 2, ["small"]) for i in range(12)},
        "test_error_percent",
    )
    for name, figure in found.items():
        assert overlaps(figure, monkeypatch) == [], name


def test_saved_figures_have_the_same_bytes(tmp_path):
    def draw():
        return figures.error_against([1, 2, 4], {"a": [[1, 2], [3, 4], [5, 6]]})

    one, two = tmp_path / "one", tmp_path / "two"
    assert [path.name for path in canvas.save(draw(), one, "t")] == ["t.svg", "t.png"]
    canvas.save(draw(), two, "t")
    assert contents(one) == contents(two) and b"<dc:date>" not in (one / "t.svg").read_bytes()


def test_no_label_reaches_the_edge_of_a_saved_figure(paper):
    """Letters are not as wide at every resolution."""
    frame = tables.table(paper, "errors", synthetic(paper, "fast", 2), "fast")
    frame["label"] = [
        "student of thirty-six letters, alone",
        "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii",
        "MWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMW",
    ][: len(frame)]
    pixels = imread(io.BytesIO(canvas.png(figures.paper_against_ours(frame))))[..., :3].min(-1) < 0.5
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    assert rows[0] >= 4 and columns[0] >= 4 and rows[-1] < len(pixels) - 4 and columns[-1] < pixels.shape[1] - 4


def test_figures_of_asks_the_papers_module(paper, monkeypatch):
    records = of_arm(paper, "fast", "small", [145, 146])
    failed = made(paper.trial("fast", "small", 7), {"message": "killed"}, status="killed")
    seen = []
    own = figures.curve([0, 1], {"a": [[1, 2]]}, title="Own")
    monkeypatch.setattr(paper, "figures", lambda found: seen.extend(found) or {"own": lambda: own})
    found = catalogue.figures_of(paper, [*records, failed])
    assert list(found) == ["paper_errors", "own"]
    assert found["own"]().get_suptitle() == "Own\n(budget fast)"
    assert seen == records


def test_a_long_title_stays_inside_its_figure():
    title = "Test RMSE: the mimic net, its ensemble, the best net and the best single model: while training"
    figure = figures.curve([1, 2], {"line": [[1.0, 2.0]]}, title=f"{title}\n(budget paper)")
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert figure.get_suptitle().replace("\n", " ") == f"{title} (budget paper)"
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_learning_curves_of_seeds_that_were_measured_at_other_epochs():
    """The mean is over the same epochs of each: those where all were measured."""
    often = [{"error": float(epoch)} for epoch in range(1, 7)]
    seldom = [{}, {}, {"error": 13.0}, {}, {}, {"error": 16.0}]
    records = [{"history": often}, {"history": seldom}, {"history": [{}]}]
    epochs, values = figures.histories(records, "error")
    assert (epochs.tolist(), values.tolist()) == ([3, 6], [[3.0, 6.0], [13.0, 16.0]])
    assert figures.histories(records[2:], "error") is None


def test_generated_files_that_are_no_text_are_out_of_date(tmp_path):
    for name, make in {"bytes": lambda p: p.write_bytes(b"\xff\xfe"), "folder": os.mkdir, "pipe": os.mkfifo}.items():
        make(tmp_path / name)
        assert report._read(tmp_path / name) == ""
        with pytest.raises(KdcoreError, match=f"{tmp_path / name} cannot be read as UTF-8 text"):
            readme.update(tmp_path / name, "block")
    assert report._read(tmp_path / "missing") is None
