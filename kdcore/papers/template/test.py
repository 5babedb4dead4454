"""KEY: the sheet's numbers, and what a trial trains."""

from dataclasses import replace

import pytest

from kdcore import papers, training
from kdcore.models import create

PAPER = papers.get("KEY")


def test_the_sheet_holds_the_papers_numbers():
    """Typed here from the paper, and nowhere else."""
    assert {row["arm"]: row["paper"] for row in PAPER.tables[0]["rows"]} == {"teacher": None, "student": None, "KD": None}


@pytest.mark.parametrize("arm", PAPER.arms)
def test_every_arm_trains(arm):
    config = PAPER.config("smoke", arm) | {"scale": 1e-4}  # a few steps
    trial, teacher = replace(PAPER.trial("smoke", arm, seed=0), config=config), config["teacher_network"]
    run = PAPER.prepare([trial], training.Context(), teacher and create(teacher).reset(1).state_dict())
    before = {name: value.clone() for name, value in run.model.student.named_parameters()}
    (result,) = run.train(training.Context())
    assert set(result["metrics"]) <= set(PAPER.module.METRICS)
    assert all((before[name] != value).any() for name, value in run.model.student.named_parameters())
    assert ("weights" in result) == (arm == "teacher")
