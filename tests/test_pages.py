"""The pages for GitHub and records.csv: what they say follows from the records, and nothing in a sheet or record breaks them."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import KEY, made, of_arm, synthetic
from scipy import stats

from kdcore import outputs, papers
from kdcore.errors import KdcoreError
from kdcore.report import pages, readme, records, tables
from kdcore.report.evidence import Evidence
from kdcore.trials.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


@pytest.fixture(scope="module")
def committed():
    """The evidence of one paper's committed records, and their JSON, read without kdcore."""
    raw = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "records" / KEY).glob("*.json"))]
    return Evidence(papers.get(KEY), Store(ROOT / "results").records(KEY)), raw


def board(*everything, results=Path("results"), figures=()):
    return pages.Board(list(everything), results, list(figures))


# ---------------------------------------------------------------- records.csv


def read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), float_precision="round_trip")


def test_a_table_cell_follows_from_records_csv(committed):
    """Mean and interval of a cell, by pandas and scipy from the file alone."""
    evidence, _ = committed
    frame = read(records.to_csv([evidence]))
    errors = frame[(frame.budget == "fast") & (frame.arm == "small with KD") & (frame.status == "done")].test_errors
    mean, half = errors.mean(), stats.t.ppf(0.975, len(errors) - 1) * errors.std() / np.sqrt(len(errors))
    (row,) = tables.table(evidence.paper, "errors", evidence.records, "fast").query("arm == 'small with KD'").to_dict("records")
    assert len(errors) == row["n"] > 1
    assert (row["ours"], row["low"], row["high"]) == pytest.approx((mean, mean - half, mean + half), rel=1e-9)


def test_every_scalar_of_every_record_is_in_records_csv_bit_for_bit(committed):
    evidence, raw = committed
    frame = read(text := records.to_csv([evidence])).set_index("id")
    assert len(frame) == len(raw) and records.to_csv([evidence]) == text
    for record in raw:
        row = frame.loc[record["id"]]
        assert (row["paper"], row["arm"], row["budget"], row["seed"]) == (KEY, record["arm"], record["budget"], record["seed"])
        assert row["scale"] == evidence.paper.sheet["budgets"][record["budget"]]["scale"] and row["status"] == "done"
        assert row["seconds"] == record["cost"]["seconds"] and row["commit"] == record["environment"]["commit"]
        assert row["teacher"] == record["teacher"] or (record["teacher"] is None and pd.isna(row["teacher"]))
        for name in frame.columns[len(records.COLUMNS) - 1 :]:
            value = record["metrics"].get(name)
            assert row[name] == value if isinstance(value, int | float) else pd.isna(row[name]), (name, value)


def test_columns_are_the_described_ones_then_all_metrics_sorted(committed):
    evidence, raw = committed
    header = next(csv.reader(io.StringIO(records.to_csv([evidence]))))
    scalars = {name for record in raw for name, value in record["metrics"].items() if isinstance(value, int | float | str)}
    assert header == [*records.COLUMNS, *sorted(scalars)]
    page = pages.index(board(evidence, results=ROOT / "results"))
    assert [name for name in header if f"| `{name}` | " not in page] == [], "each is described in results/README.md"


def test_awkward_values_survive_pandas(paper):
    """A failure called nan, which pandas takes for a missing value; a metric named like another column; floats of all sizes."""
    values = {"seed": 5, "test_errors": 0.1 + 0.2, "small": 5e-324, "zero": -0.0, "text": 'a "b",\nc', "truth": True, "list": [1]}
    done = made(paper.trial("fast", "small", 0), values)
    failed = made(paper.trial("fast", "small", 1), {"message": "the loss is not finite"}, status="nan")
    stale = made(dataclasses.replace(paper.trial("fast", "small", 2), version=99), {"test_errors": 1})
    smoke = made(paper.trial("smoke", "small", 0), {"test_errors": 1})
    text = records.to_csv([Evidence(paper, [done, failed, stale, smoke])])
    one, two = read(text).to_dict("records")
    assert (one["seed"], one["metric_seed"]) == (0, 5) and one["test_errors"] == 0.1 + 0.2 and one["small"] == 5e-324
    assert one["text"] == 'a "b",\nc' and one["truth"] is True and "-0.0" not in text and "list" not in one
    assert two["status"] == "failed: nan" and np.isnan(two["test_errors"]) and "message" not in two


def test_the_analysis_in_the_readme_runs(project, monkeypatch, capsys):
    """The means that it prints are those of the records."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (project / "results" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(project)
    exec(code, names := {})
    done = [record for record in Store(project / "results").records(KEY) if record["arm"] == "small"]
    assert len(names["done"]) == 4 and "small with KD" in (printed := capsys.readouterr().out)
    assert f"{np.mean([record['metrics']['test_errors'] for record in done]):.3f}"[:6] in printed


# ---------------------------------------------------------------- the answer


def test_the_sentence_counts_claims(paper):
    """Five seeds: KD makes 40 errors fewer than labels, and 7 fewer than the large net; everything else was not run."""
    evidence = Evidence(paper, [
        *of_arm(paper, "fast", "small", [140, 141, 142, 143, 144]),
        *of_arm(paper, "fast", "small with KD", [100, 101, 102, 103, 104.5]),
        *of_arm(paper, "fast", "cumbersome", [150, 130, 144, 139, 147]),
    ])  # fmt: skip
    first, _, *scales = pages.sentence(board(evidence)).split("\n")
    total = len(paper.sheet["claims"])
    assert first == (
        f"**Of {total} claims in 1 paper, ✅ 1 holds and ❌ none is contradicted; ❔ 1 is undecided (the runs cannot tell) "
        f"and ⬜ {total - 2} are not run.**"
    )
    assert scales == ["- **shorter training** (the same networks and data): ✅ 1 holds, ❔ 1 undecided"]


def test_the_scoreboard_shows_the_effect_beside_the_papers(paper, tmp_path):
    evidence = Evidence(paper, [
        *of_arm(paper, "fast", "small", [140, 141, 142, 143, 144]),
        *of_arm(paper, "fast", "small with KD", [108, 109, 110, 111, 112]),
    ])  # fmt: skip
    (tmp_path / "executed").mkdir()
    assert "executed" not in pages.scoreboard(board(evidence, results=tmp_path))
    (tmp_path / "executed" / f"{KEY}.ipynb").write_text("{}")
    header, _, group, row = (
        line[2:-2].split(" | ") for line in pages.scoreboard(board(evidence, results=tmp_path), "results/").split("\n")
    )
    cells = dict(zip(header, row, strict=True))
    assert cells["paper"] == f"[Hinton 2015, MNIST](results/{KEY}.md)" and cells["notebook"] == f"[executed](results/executed/{KEY}.ipynb)"
    assert cells["ours [interval]"].startswith("✅ −32") and cells["the paper's"] == "−72", "146 - 74 errors in Table 1"
    assert cells["claims"] == f"✅ 1, ⬜ {len(paper.sheet['claims']) - 1}"
    assert group == ["**shorter training**", "", "", "", "", ""]


def test_without_records_the_answer_is_a_command(paper):
    empty = board(Evidence(paper, []))
    assert pages.answer(empty).startswith("No records yet: `kdcore run PAPER")
    assert "not run" in pages.scoreboard(empty) and paper.budgets["fast"]["time"] in pages.times(empty)


def test_the_picture_has_a_dark_variant_where_it_is_drawn(paper):
    evidence = Evidence(paper, synthetic(paper, "fast", 5))
    assert pages.picture(board(evidence)) == ""
    light = pages.picture(board(evidence, figures=["figures/effects"]), "results/")
    assert "<source" not in light and 'src="results/figures/effects.svg"' in light and 'alt="Change of the error' in light
    both = pages.picture(board(evidence, figures=["figures/effects", "figures/effects_dark"]))
    assert 'prefers-color-scheme: dark)" srcset="figures/effects_dark.svg"' in both


def test_times_are_measured_or_the_sheets(paper):
    """Ten trials of six minutes on one thread take half an hour on two cores, on two threads a whole one; on a GPU they are told apart."""
    trials = of_arm(paper, "fast", "small", [140, 141, 142, 143, 144]) + of_arm(paper, "fast", "cumbersome", [90, 91, 92, 93, 94])

    def row(threads, gpu=None):
        for record in trials:
            record["environment"] |= {"threads": threads, "gpu": gpu}
            record["cost"] |= {"device": gpu or "Test CPU"}
        header, _, row = (line[2:-2].split(" | ") for line in pages.times(board(Evidence(paper, trials))).split("\n"))
        return dict(zip(header, row, strict=True))

    planned = sum(paper.seeds("fast", arm) for arm in paper.budget_arms("fast"))
    assert row(1)["`fast`"] == f"**30 minutes**, 5 seeds, 10 of {planned} trials" and row(1)["measured on"] == "Test CPU"
    assert row(2)["`fast`"].startswith("**1 hour**, ") and row(8)["`fast`"] == row(2)["`fast`"]
    assert row(1, "Test GPU")["`fast`"].startswith("**1 hour** of one GPU")
    assert row(1)["`laptop`"] == paper.budgets["laptop"]["time"], "as the sheet says"


# ---------------------------------------------------------------- results/KEY.md


def test_a_papers_page_shows_every_table_claim_and_figure(paper, tmp_path):
    evidence = Evidence(paper, synthetic(paper, "fast", 5) + synthetic(paper, "laptop", 3) + synthetic(paper, "smoke", 1))
    figures = [f"figures/{KEY}/{name}" for name in ("fast_paper_errors", "fast_shift_3", "fast_learning_errors", "laptop_paper_errors")]
    page = pages.of_paper(board(evidence, results=tmp_path, figures=figures), evidence)
    for claim in paper.sheet["claims"]:
        assert page.count(f"| {claim['text']}<br>") == 1
    for table in paper.tables:
        assert page.count(f"### {table['title']}\n") >= 1
    images = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page)
    assert sorted(path for _, path in images) == sorted(f"{stem}.svg" for stem in figures) and all(
        alt.startswith(paper.sheet["short"]) for alt, _ in images
    )
    assert page.count("<details") == page.count("</details>") and "smoke" not in page
    assert page.index("Budget <b>fast</b>") < page.index("Budget <b>laptop</b>"), "the closest to the protocol first"
    assert f"kdcore replicate {KEY} --budget fast" in page


@pytest.mark.parametrize(
    "text", ["a [b](http://e.example) c", "x | y", "]( x", "<b>&amp;", "`code", "\\", "\\]", "$x$", "*a* _b_", "line\nbreak"]
)
def test_nothing_in_a_sheet_breaks_a_page(text, tmp_path):
    """As title, label, unit, effect and device: tables keep their columns, and no link, formula or tag comes of it."""
    paper = papers.Paper(KEY)
    sheet = paper.sheet
    for key in ("short", "title", "authors", "citation", "question"):
        sheet[key] = text
    for claim in sheet["claims"]:
        claim["text"] = claim["effect"] = text
    for table in sheet["tables"]:
        table["title"] = table["unit"] = text
    evidence = Evidence(paper, synthetic(paper, "fast", 2))
    for record in evidence.records:
        record["cost"]["device"] = text
    made = board(evidence, results=tmp_path, figures=[f"figures/{KEY}/fast_paper_errors"])
    own = re.escape(sheet["url"])
    for page in (pages.answer(made), pages.times(made), pages.index(made), pages.of_paper(made, evidence)):
        prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
        assert "e.example" not in " ".join(re.findall(r"(?<!\\)\]\((?!#)([^)]*)\)", prose)) and "<b>&amp;" not in prose
        for group in re.findall(r"(?:^\|.*\n?)+", prose, re.MULTILINE):
            columns = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in group.strip().split("\n")}
            assert len(columns) == 1, group
        assert not re.search(r"(?<!\\)\$", re.sub(own, "", prose))


def test_the_first_page_names_what_is_contradicted(paper):
    worse = of_arm(paper, "fast", "small with KD", [150, 152, 151, 149, 150]) + of_arm(paper, "fast", "small", [100, 101, 99, 100, 102])
    for values, named in ((worse, True), ([record | {"metrics": {"test_errors": 100}} for record in worse], False)):
        page = pages.answer(board(Evidence(paper, values)), "results/")
        line = f"soft targets than with labels alone. ([{paper.sheet['short']}](results/{KEY}.md), shorter training)"
        assert (line in page) == ("**Contradicted:**" in page) == named


# ---------------------------------------------------------------- written and checked


@pytest.fixture
def project(paper, tmp_path):
    store = Store(tmp_path / "results")
    for record in synthetic(paper, "fast", 2, ["small", "small with KD"]):
        store.put(record)
    marked = "\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in readme.PARTS)
    (tmp_path / "README.md").write_text(f"# kdcore\n\n{marked}\n\nThe end.\n")
    outputs.write(store.results)
    return tmp_path


def test_whatever_was_typed_is_told(project):
    results = project / "results"
    assert outputs.stale(results) == []
    for path in (results / "records.csv", results / "README.md", results / f"{KEY}.md", project / "README.md"):
        good = path.read_text(encoding="utf-8")
        digit = max(found.start() for found in re.finditer(r"\d", good[: good.find("The end.")]))
        path.write_text(good[:digit] + str((int(good[digit]) + 1) % 10) + good[digit + 1 :], encoding="utf-8")
        assert outputs.stale(results) == [f"{path} is out of date: run kdcore report"]
        path.write_text(good, encoding="utf-8")
    (results / "records.csv").unlink()
    assert outputs.stale(results) == [f"{results / 'records.csv'} is missing: run kdcore report"]


def test_every_link_of_the_pages_leads_somewhere(project):
    for page in (project / "results" / "README.md", project / "results" / f"{KEY}.md", project / "README.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text):
            path, _, heading = target.partition("#")
            assert path.startswith("https://") or (page.parent / path).exists(), (page, target)
            assert not heading or f"\n## {heading.capitalize()}\n" in (page.parent / path).read_text(encoding="utf-8")


def test_the_markers_of_a_page():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y --><!-- /y -->\nc"
    once = readme.with_parts(text, {"x": "| new |", "y": "2"})
    assert once == "a\n<!-- x -->\n\n| new |\n\n<!-- /x -->\nb\n<!-- y -->\n\n2\n\n<!-- /y -->\nc"
    assert readme.with_parts(once, {"x": "| new |", "y": "2"}) == once
    for broken in ("no marker", "<!-- x -->", "<!-- /x --><!-- x -->", text + text):
        with pytest.raises(KdcoreError, match="must contain the lines <!-- x --> and <!-- /x -->"):
            readme.with_parts(broken, {"x": "| new |"})
