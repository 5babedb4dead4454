"""Numbers computed from logits, by hand."""

import pytest
import torch
from torch.nn import functional as F

from kdcore import losses, metrics


def test_the_shift_changes_only_the_logits_of_its_class():
    logits = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.2, 0.1, 0.0]])
    labels = torch.tensor([2, 1, 2])
    before = logits.clone()
    # case 0 turns right at > 0.5, case 2 at > 0.2, case 1 turns wrong at > 1.5
    assert metrics.shift_errors(logits, labels, [2], [0.0, 0.3, 0.6, 2.0]) == [2, 1, 0, 1]
    assert torch.equal(logits, before)
    # lowering two classes leaves the third alone
    assert metrics.shift_errors(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0]), [1, 2], [-1.5, -2.5]) == [1, 0]


def test_the_best_shift_is_the_middle_of_the_best():
    assert metrics.best_shift([5, 3, 3, 3, 4], [0.0, 0.1, 0.2, 0.3, 0.4]) == 0.2
    assert metrics.best_shift([5, 1, 3], [-1.0, 0.0, 1.0]) == 0.0


def test_confusion_counts():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    assert metrics.confusion(logits, torch.tensor([0, 1, 2, 2])) == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_gradient_parts_by_hand():
    """Student [1/2, 1/4, 1/4], teacher [1/4, 1/4, 1/2], label 0: 1/4 on the true class, 1/4 on the others, 1/2 for the label."""
    student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    results = {key: value.item() for key, value in metrics.gradient_parts(student, teacher, torch.tensor([0])).items()}
    assert results == pytest.approx({"gradient_true_class": 0.25, "gradient_other_classes": 0.25, "gradient_labels": 0.5})
    # label 1, where student and teacher agree: the wrong classes are all there is
    results = {key: value.item() for key, value in metrics.gradient_parts(student, teacher, torch.tensor([1])).items()}
    assert results == pytest.approx({"gradient_true_class": 0.0, "gradient_other_classes": 0.5, "gradient_labels": 0.75})


def test_gradient_parts_are_those_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    z = student.clone().requires_grad_()
    losses.ban(z, teacher, reduction="none").sum().backward()
    sizes, true = z.grad.abs(), F.one_hot(labels, 4).bool()
    result = metrics.gradient_parts(student, teacher, labels)
    assert result["gradient_true_class"].item() == pytest.approx(sizes[true].mean().item())
    assert result["gradient_other_classes"].item() == pytest.approx(sizes[~true].sum().item() / 5)
    assert result["gradient_true_class"] <= result["gradient_other_classes"]
    # a teacher that is certain of the label is the label
    sure = metrics.gradient_parts(student, 100.0 * true, labels)
    assert sure["gradient_true_class"].item() == pytest.approx(result["gradient_labels"].item())
    assert sure["gradient_other_classes"].item() == pytest.approx(result["gradient_labels"].item())


def test_top_wrong_by_hand():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    assert metrics.top_wrong(logits, torch.tensor([1, 2, 3]), 2).tolist() == [False, True, False]
    assert torch.equal(metrics.top_wrong(logits, torch.tensor([0, 2, 1]), 1), metrics.wrong(logits, torch.tensor([0, 2, 1])))
