"""Park 2019: the losses, computed by hand, and the sum that each arm trains."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdcore import losses, papers, training
from kdcore.models import create
from kdcore.papers.rkd.loss import angle_wise, distance_wise

PAPER = papers.get("rkd")
TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5: their mean is 4; cosines 0, 3/5, 4/5
EVEN = torch.eye(3)  # sides alike; cosines 1/2


def test_the_sheet_holds_the_papers_numbers():
    """Typed from memory: see their mark."""
    assert [row["paper"] for row in PAPER.tables[0]["rows"]] == [77.76, 71.26, 72.27, 72.97, 72.97, 74.26, 74.66]


def test_losses_of_two_triangles_by_hand():
    distances = 2 * sum(0.5 * (side / 4 - 1) ** 2 for side in (3, 4, 5)) / 9
    corners = 2 * sum(0.5 * (cosine - 0.5) ** 2 for cosine in (0, 0.6, 0.8)) / 27
    assert distance_wise(EVEN, TRIANGLE).item() == pytest.approx(distances, rel=1e-5)
    assert angle_wise(EVEN, TRIANGLE).item() == pytest.approx(corners, rel=1e-5)


def test_relations_stay_where_features_are_moved_turned_and_scaled():
    turned = 5 * TRIANGLE @ torch.tensor([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]]) + 1  # into a space of three dimensions
    assert distance_wise(TRIANGLE, turned) < 1e-10 > angle_wise(TRIANGLE, turned)


def test_two_images_at_one_place_have_a_finite_gradient():
    student = TRIANGLE[[0, 0, 1, 2]].requires_grad_()
    (distance_wise(student, torch.eye(4)) + angle_wise(student, torch.eye(4))).backward()
    assert student.grad.isfinite().all() and student.grad.any()


def test_features_that_do_not_fit_are_refused():
    for student, teacher in ((EVEN, EVEN[:2]), (EVEN[0], EVEN[0]), (EVEN[:1], EVEN[:1])):
        for loss in (distance_wise, angle_wise):
            with pytest.raises(ValueError, match="the features must be"):
                loss(student, teacher)


@pytest.mark.parametrize("arm", PAPER.arms)
def test_what_an_arm_adds_up(arm):
    config = PAPER.config("smoke", arm) | {"scale": 1e-4}  # a few steps
    trial, teacher = replace(PAPER.trial("smoke", arm, seed=0), config=config), config["teacher_network"]
    run = PAPER.prepare([trial], training.Context(), teacher and create(teacher).reset(1).state_dict())
    x, labels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    logits, taps = run.model.student.features(x)
    expected = F.cross_entropy(logits, labels)
    if teacher:
        targets, theirs = create(teacher).reset(1).eval().features(x)
        pooled = F.normalize(taps["pooled"]), F.normalize(theirs["pooled"])
        expected = expected + config["soft_weight"] * losses.kd(logits, targets, 4.0)
        expected = expected + config["distance_weight"] * distance_wise(*pooled) + config["angle_weight"] * angle_wise(*pooled)
    assert run.stages[0].loss(x, labels).item() == pytest.approx(expected.item(), rel=1e-4)
    assert run.train(training.Context())[0]["metrics"].keys() <= PAPER.module.METRICS.keys()
