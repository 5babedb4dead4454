"""Which records count, and pairs of student and teacher that ran on different processors."""

import dataclasses

import pytest
from records import KEY, made, of_arm

from kdcore import papers
from kdcore.report import claims, formats, select, tables
from kdcore.trials.store import Store


def pair(paper, seed: int, student: str, teacher: str | None, noted: str | None = None) -> list[dict]:
    """A teacher's record (none where ``teacher`` is None) and its student's."""
    small, big = paper.trial("fast", "small with KD", seed), paper.trial("fast", "cumbersome", seed)
    assert small.teacher == big.id
    records = [made(small, {"test_errors": 90 + seed})] + ([made(big, {"test_errors": 70})] if teacher else [])
    for record, where in zip(records, (student, teacher), strict=False):
        record["environment"] |= {"processor": where}
        record["cost"] |= {"device": where, "cpu_seconds": 720.0}
    records[0]["environment"]["teacher_processor"] = noted
    return records


def test_a_pair_that_mixes_processors_is_marked():
    paper = papers.get(KEY)
    records = [
        *pair(paper, 0, "Intel", "Intel"),
        *pair(paper, 1, "Intel", "AMD"),  # the teacher's record says so
        *pair(paper, 2, "Intel", None),  # nothing says so
        *pair(paper, 3, "Intel", None, "AMD"),  # its own record says so
        *pair(paper, 4, "Intel", "AMD", "Intel"),  # trained again since: the student's own word counts
    ]
    frame = tables.table(paper, "errors", records, "fast")
    row = frame[frame["arm"] == "small with KD"].iloc[0]
    assert [each["mixed"] for each in row["seeds"]] == ["", "teacher on AMD, student on Intel", "", "teacher on AMD, student on Intel", ""]
    assert (row["cpu_hours"], row["hours"]) == (pytest.approx(1.0), pytest.approx(0.5))
    lines = formats.to_csv(frame).splitlines()
    assert lines[0].endswith(",seeds,mixed") and [line.rsplit(",", 1)[1] for line in lines[1:]] == ["", "", "1 3"]
    assert "Student and teacher ran on different processors: small with KD (T=20) (seeds 1, 3)." in formats.to_markdown(frame)
    assert "of CPU time) of one process" in formats.to_markdown(frame)
    assert "mixed processors: seeds 1, 3" in formats.to_html(frame), "a notebook says it too"
    tested = claims.claims(paper, records + of_arm(paper, "fast", "small", [140, 141, 142, 143, 144]), "fast").set_index("id")
    assert tested.loc["kd_helps", "mixed"] == [1, 3]
    plain = formats.to_html(tables.table(paper, "errors", pair(paper, 0, "Intel", "Intel"), "fast"))
    assert "mixed" not in plain and "different processors" not in formats.to_markdown(frame[frame["arm"] == "cumbersome"])


def test_on_a_gpu_the_gpu_counts():
    paper = papers.get(KEY)
    records = pair(paper, 0, "Intel", "AMD")
    for record in records:
        record["environment"]["gpu"] = record["cost"]["device"] = "H100"
    by_id = {record["id"]: record for record in records}
    assert select.mixed_processors(records[0], by_id) == ""
    records[1]["cost"]["device"] = "AMD"  # the teacher was trained on the processor of a machine with a GPU
    assert select.mixed_processors(records[0], by_id) == "teacher on AMD, student on H100"


def test_committed_pairs_that_mix():
    store, pairs = Store(papers.HERE.parents[1] / "results"), 0
    for key in papers.names():
        records = [record for record in store.records(key) if record["budget"] != "smoke"]
        by_id = {record["id"]: record for record in records}
        pairs += sum(bool(select.mixed_processors(record, by_id)) for record in records)
    assert pairs >= 9


def test_stale_and_failed_records_stay_out():
    paper = papers.get(KEY)
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
