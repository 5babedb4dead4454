"""Losses against values worked by hand, a float64 implementation of their own, and the paper's limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcore import losses

LOG2, LOG3 = math.log(2), math.log(3)


def softmax64(z, temperature=1.0):
    """An implementation that shares nothing with the code under test: float64 numpy, straight from the definition."""
    z = np.asarray(z, np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kd64(student, teacher, temperature):
    p, q = softmax64(teacher, temperature), softmax64(student, temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()


def test_cross_entropy_by_hand():
    # softmax([0, log 3]) = [1/4, 3/4]
    logits = torch.tensor([[0.0, LOG3], [0.0, LOG3]])
    assert losses.cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    per_case = losses.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    assert per_case.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_kd_by_hand():
    # teacher [0, 2 log 3] at T = 2 is softmax [0, log 3] = [1/4, 3/4]; student [0, 0] is [1/2, 1/2]:
    # KL = 1/4 log(1/2) + 3/4 log(3/2), times T^2 = 4
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    loss = losses.kd(torch.zeros(1, 2), torch.tensor([[0.0, 2 * LOG3]]), 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.5, 4.0, 20.0, 40.0]))
def test_kd_equals_its_float64_twin(seed, temperature):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 4, (7, 10)), rng.normal(0, 4, (7, 10))
    mine = losses.kd(torch.tensor(student), torch.tensor(teacher), temperature).item()
    assert mine == pytest.approx(kd64(student, teacher, temperature), rel=1e-9)
    single = losses.kd(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32), temperature).item()
    assert single == pytest.approx(mine, rel=2e-4, abs=1e-5)


def test_kd_is_zero_where_student_equals_teacher():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    assert losses.kd(logits, logits, 20.0).item() == pytest.approx(0, abs=1e-6)
    assert losses.kd(logits, logits + 3, 20.0).item() == pytest.approx(0, abs=1e-4), "a constant on all logits changes nothing"


def test_gradient_is_the_papers():
    """Eq. 2: dC/dz_i = (q_i - p_i) / T; the factor T^2 makes it T (q_i - p_i), and the mean divides by the cases."""
    rng = np.random.default_rng(1)
    student, teacher, temperature = rng.normal(0, 3, (4, 10)), rng.normal(0, 3, (4, 10)), 5.0
    z = torch.tensor(student, requires_grad=True)
    losses.kd(z, torch.tensor(teacher), temperature).backward()
    expected = temperature * (softmax64(student, temperature) - softmax64(teacher, temperature)) / 4
    assert np.allclose(z.grad.numpy(), expected, rtol=1e-9)


def test_high_temperature_limit():
    """Eq. 4: as T grows the gradient tends to (z - v) / N for zero-mean logits over N classes."""
    rng = np.random.default_rng(2)
    student, teacher = (logits - logits.mean(-1, keepdims=True) for logits in rng.normal(0, 1, (2, 3, 10)))
    errors = []
    for temperature in (10, 100, 1000):
        z = torch.tensor(student, requires_grad=True)
        losses.kd(z, torch.tensor(teacher), temperature, reduction="none").sum().backward()
        errors.append(np.abs(z.grad.numpy() - (student - teacher) / 10).max())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


def test_gradient_keeps_its_size_over_temperatures():
    """What the factor T^2 is for (section 2): without it the gradient at T = 20 would be 400 times smaller."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(8, 10, generator=generator), torch.randn(8, 10, generator=generator)
    norms = []
    for temperature in (5.0, 20.0):
        z = student.clone().requires_grad_()
        losses.kd(z, teacher, temperature).backward()
        norms.append(z.grad.norm().item())
    assert 0.5 < norms[0] / norms[1] < 2


def test_a_temperature_for_each_member():
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(3, 6, 10, generator=generator), torch.randn(6, 10, generator=generator)
    temperatures = [1.0, 4.0, 20.0]
    stacked = losses.kd(student, teacher, torch.tensor(temperatures).view(-1, 1, 1), reduction="none").mean(-1)
    alone = [losses.kd(student[k], teacher, t).item() for k, t in enumerate(temperatures)]
    assert stacked.tolist() == pytest.approx(alone, rel=1e-6)


def test_teacher_gets_no_other_gradient_than_asked_and_shapes_must_agree():
    with pytest.raises(ValueError, match="class counts"):
        losses.kd(torch.zeros(2, 10), torch.zeros(2, 9), 2.0)
    with pytest.raises(ValueError, match="reduction"):
        losses.kd(torch.zeros(2, 10), torch.zeros(2, 10), 2.0, reduction="sum")


def test_half_precision_is_widened():
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(4, 10, generator=generator), torch.randn(4, 10, generator=generator)
    loss = losses.kd(student.bfloat16(), teacher.bfloat16(), 20.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(kd64(student.bfloat16().float().numpy(), teacher.bfloat16().float().numpy(), 20.0), rel=1e-3)
