"""Losses against values worked by hand, a float64 implementation of their own, and the papers' limits and invariances."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from registry import LABELS, LOGITS, LOSSES, draws_like, sections
from torch.utils.checkpoint import checkpoint

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


@pytest.mark.usefixtures("float64")
def test_kd_by_hand():
    # teacher [0, 2 log 3] at T = 2 is softmax [0, log 3] = [1/4, 3/4]; student [0, 0] is [1/2, 1/2]:
    # KL = 1/4 log(1/2) + 3/4 log(3/2), times T^2 = 4
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    loss = losses.kd(torch.zeros(1, 2), torch.tensor([[0.0, 2 * LOG3]]), 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


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


@pytest.mark.usefixtures("float64")
def test_a_temperature_for_each_member():
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(3, 6, 10, generator=generator), torch.randn(6, 10, generator=generator)
    temperatures = [1.0, 4.0, 20.0]
    stacked = losses.kd(student, teacher, torch.tensor(temperatures).view(-1, 1, 1), reduction="none").mean(-1)
    alone = [losses.kd(student[k], teacher, t).item() for k, t in enumerate(temperatures)]
    assert stacked.tolist() == pytest.approx(alone, rel=1e-12)


def test_kd_refuses_other_classes_and_an_unknown_reduction():
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


# What all losses must be and do: one row of tests/registry.py, and none of it is missed.

LOGIT = [name for name, row in LOSSES.items() if row.shape == LOGITS]


def tensors(name, seed=0, dtype=torch.float32):
    """A student and a teacher of the shape that the loss takes, four cases each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(LOSSES[name].shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


def entropy64(logits, temperature=1.0):
    p = softmax64(logits, temperature)
    return -(p * np.log(p)).sum(-1).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_gives_the_float32_result_of_the_widened_input(name):
    student, teacher = tensors(name, dtype=torch.bfloat16)
    loss = LOSSES[name].call(student, teacher)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert torch.equal(loss, LOSSES[name].call(student.float(), teacher.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss, LOSSES[name].call(student.float(), teacher.float())), "no product in half precision"
    double = LOSSES[name].call(student.double(), teacher.double())
    assert double.dtype == torch.float64 and loss.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.cases])
def test_cases_kept_average_to_the_mean(name):
    student, teacher = tensors(name, dtype=torch.float64)
    per_case = LOSSES[name].call(student, teacher, reduction="none")
    assert per_case.shape == (4,)
    assert per_case.mean().item() == pytest.approx(LOSSES[name].call(student, teacher).item(), rel=1e-12)
    with pytest.raises(ValueError, match="reduction"):
        LOSSES[name].call(student, teacher, reduction="sum")


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.gradient])
def test_no_gradient_reaches_the_teacher_and_a_step_pulls_the_student(name):
    student, teacher = (tensor.requires_grad_() for tensor in tensors(name))
    before = LOSSES[name].call(student, teacher)
    before.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    with torch.no_grad():
        after = LOSSES[name].call(student - 0.01 * student.grad, teacher)
    assert after < before


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.gradient])
def test_gradients_are_finite_where_the_loss_is_least_and_where_all_is_zero(name):
    """At distance zero, and for a dead layer: a square root or a division there gives NaN, which no optimiser survives."""
    student, teacher = tensors(name)
    for own, target in ((teacher, teacher), (torch.zeros_like(student), teacher), (student, torch.zeros_like(teacher))):
        own = own.clone().requires_grad_()
        LOSSES[name].call(own, target).backward()
        assert own.grad.isfinite().all() and own.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", LOSSES)
def test_other_shapes_are_refused(name):
    student, teacher = tensors(name)
    for broken in (*LOSSES[name].misfits(teacher), teacher[:3], teacher[:1]):
        where = "" if name == "fsp" else re.escape(str(tuple(broken.shape)))  # FSP names the matrices, which differ
        refused(f"^teacher of shape {where}.* does not fit student", LOSSES[name].call, student, broken)
    deeper = teacher.unsqueeze(0)
    words = {"fsp": "first must be a map", "attention_transfer": "teacher must be a map"}
    refused(words.get(name.split()[0], "^teacher of shape .* does not fit student"), LOSSES[name].call, student, deeper)


@pytest.mark.parametrize("name", LOGIT)
def test_one_teacher_for_a_stack_of_students(name):
    student, teacher = tensors(name, dtype=torch.float64)
    other = tensors(name, seed=1, dtype=torch.float64)[0]
    stacked = LOSSES[name].call(torch.stack([student, other]), teacher, reduction="none")
    alone = [LOSSES[name].call(member, teacher, reduction="none") for member in (student, other)]
    assert torch.allclose(stacked, torch.stack(alone), rtol=1e-12)


@pytest.mark.parametrize(
    "loss", [losses.hint, losses.attention_transfer, lambda s, t, variant: losses.fitnets_kd(s, t, 3.0, variant=variant)]
)
def test_an_unknown_variant_is_refused(loss):
    with pytest.raises(ValueError, match="variant must be 'paper' or 'code', not 'mean'"):
        loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2), variant="mean")


# Ba & Caruana 2014


def test_logit_mimic_by_hand():
    # differences (1, 2) and (0, -4): halves of the squared lengths 5/2 and 8, mean 21/4
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert losses.logit_mimic(student, teacher).item() == 5.25
    assert losses.logit_mimic(student, student).item() == 0
    # the gradient is the difference over the cases: one step of length N is the teacher
    student.requires_grad_()
    losses.logit_mimic(student, teacher).backward()
    assert torch.equal(student.detach() - 2 * student.grad, teacher)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_logit_mimic_equals_its_float64_twin(seed):
    student, teacher = np.random.default_rng(seed).normal(0, 4, (2, 5, 10))
    expected = sum((s - t) ** 2 for z, v in zip(student, teacher, strict=True) for s, t in zip(z, v, strict=True)) / (2 * 5)
    assert losses.logit_mimic(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(expected, rel=1e-12)


# FitNets


def test_fitnets_kd_by_hand():
    # the teacher [0, 2 log 3] at T = 2 is [1/4, 3/4]; the student [0, 2 log 2] is [1/3, 2/3] at T = 2, [1/5, 4/5] at T = 1
    student, teacher = torch.tensor([[0.0, 2 * LOG2]]), torch.tensor([[0.0, 2 * LOG3]])
    paper, code = (losses.fitnets_kd(student, teacher, 2.0, variant=variant).item() for variant in ("paper", "code"))
    assert paper == pytest.approx(0.25 * math.log(3) + 0.75 * math.log(3 / 2), rel=1e-6)
    assert code == pytest.approx(0.25 * math.log(5) + 0.75 * math.log(5 / 4), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 3.0, 20.0]), st.sampled_from(["paper", "code"]))
def test_fitnets_kd_equals_its_float64_twin(seed, temperature, variant):
    student, teacher = np.random.default_rng(seed).normal(0, 4, (2, 7, 10))
    q = softmax64(student, temperature if variant == "paper" else 1.0)
    expected = -(softmax64(teacher, temperature) * np.log(q)).sum(-1).mean()
    loss = losses.fitnets_kd(torch.tensor(student), torch.tensor(teacher), temperature, variant=variant)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_fitnets_kd_is_least_at_the_teacher_and_has_no_factor():
    rng = np.random.default_rng(6)
    student, teacher = (torch.tensor(logits) for logits in rng.normal(0, 3, (2, 4, 10)))
    lowest = entropy64(teacher.numpy(), 3.0)
    assert losses.fitnets_kd(teacher, teacher, 3.0).item() == pytest.approx(lowest, rel=1e-9)
    # the code's student is at T = 1: it matches the softened teacher when its logits are the teacher's divided by T
    assert losses.fitnets_kd(teacher / 3, teacher, 3.0, variant="code").item() == pytest.approx(lowest, rel=1e-9)
    gradients = []
    for temperature in (3.0, 6.0):
        z = student.clone().requires_grad_()
        losses.fitnets_kd(z, teacher, temperature).backward()
        p, q = softmax64(teacher.numpy(), temperature), softmax64(student.numpy(), temperature)
        assert np.allclose(z.grad.numpy(), (q - p) / temperature / 4, rtol=1e-9)
        gradients.append(z.grad)
    assert not torch.allclose(*gradients), "the temperature changes the gradient"


def test_hint_by_hand():
    # one case of 2 channels, 3 rows, 2 columns, all differences 2: 12 units of 4/2 each are 24; the code divides by C W = 4
    student, teacher = torch.zeros(1, 2, 3, 2), torch.full((1, 2, 3, 2), 2.0)
    assert losses.hint(student, teacher).item() == 24
    assert losses.hint(student, teacher, variant="code").item() == 6
    assert losses.hint(teacher, teacher).item() == losses.hint(teacher, teacher, variant="code").item() == 0
    assert losses.hint(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)).item() == 2.5
    with pytest.raises(ValueError, match="map"):
        losses.hint(torch.zeros(1, 2), torch.zeros(1, 2), variant="code")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_hint_equals_its_float64_twin(seed):
    student, teacher = np.random.default_rng(seed).normal(0, 2, (2, 3, 4, 5, 6))
    paper = sum(0.5 * np.linalg.norm((s - t).ravel()) ** 2 for s, t in zip(student, teacher, strict=True)) / 3
    # the authors' layout C, H, W, B: a sum over axis 1, then a mean over what is left
    code = (0.5 * (student - teacher) ** 2).transpose(1, 2, 3, 0).sum(1).mean()
    assert losses.hint(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(paper, rel=1e-12)
    assert losses.hint(torch.tensor(student), torch.tensor(teacher), variant="code").item() == pytest.approx(code, rel=1e-12)


# FSP


def fsp64(student, teacher, weights):
    """Loops over cases, pairs and channels; block maxima for the larger map of a pair."""

    def shrink(channel, size):
        k = len(channel) // size
        return np.array([[channel[y * k : (y + 1) * k, x * k : (x + 1) * k].max() for x in range(size)] for y in range(size)])

    def matrix(first, second):
        size = min(first.shape[-1], second.shape[-1])
        return [[(shrink(a, size) * shrink(b, size)).sum() / size**2 for b in second] for a in first]

    cases = len(student[0][0])
    total = 0.0
    for weight, own, target in zip(weights, student, teacher, strict=True):
        for n in range(cases):
            difference = np.subtract(matrix(own[0][n], own[1][n]), matrix(target[0][n], target[1][n]))
            total += weight * sum(g**2 for row in difference for g in row)
    return total / cases


def test_fsp_by_hand():
    # one channel each, 1 x 2 pixels: (1 * 3 + 2 * 4) / 2 = 5.5; two channels against one: (5.5, 1 * 3 / 2)
    first, second = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    assert losses.fsp_matrix(first, second).tolist() == [[[5.5]]]
    two = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])
    assert losses.fsp_matrix(two, second).tolist() == [[[5.5], [1.5]]]
    # a teacher of zeros: 5.5^2 + 1.5^2 = 32.5, and lambda = 2 for one of two such pairs
    zeros = torch.zeros_like(two)
    assert losses.fsp([(two, second)], [(zeros, second)]).item() == 32.5
    assert losses.fsp([(two, second)] * 2, [(zeros, second)] * 2, [1.0, 2.0]).item() == 97.5
    assert losses.fsp([(two, second)], [(two, second)]).item() == 0
    # the larger map is max-pooled: columns (1, 5) and (-7, -2) of 2 x 2 blocks
    large = torch.tensor([[[[1.0, 0.0, -7.0, -9.0], [5.0, 2.0, -8.0, -2.0]]]])
    assert losses.fsp_matrix(large, second).tolist() == losses.fsp_matrix(second, large).tolist() == [[[(5 * 3 - 2 * 4) / 2]]]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_fsp_equals_its_float64_twin(seed):
    rng = np.random.default_rng(seed)
    shapes = [((2, 3, 4, 4), (2, 5, 4, 4)), ((2, 3, 8, 8), (2, 2, 4, 4)), ((2, 2, 2, 2), (2, 3, 4, 4))]
    student, teacher = ([tuple(rng.normal(size=shape) for shape in pair) for pair in shapes] for _ in range(2))
    weights = rng.uniform(0.5, 2, 3)
    mine = losses.fsp(*([tuple(map(torch.tensor, pair)) for pair in net] for net in (student, teacher)), weights.tolist())
    assert mine.item() == pytest.approx(fsp64(student, teacher, weights), rel=1e-10)


def test_fsp_depends_neither_on_the_order_of_images_nor_on_that_of_pixels():
    generator = torch.Generator().manual_seed(7)
    student, teacher = ([tuple(torch.randn(5, 3, 4, 4, generator=generator).double() for _ in range(2))] for _ in range(2))
    loss = losses.fsp(student, teacher).item()
    images, pixels = torch.randperm(5, generator=generator), torch.randperm(16, generator=generator)
    reordered = [[tuple(features[images] for features in pair) for pair in net] for net in (student, teacher)]
    assert losses.fsp(*reordered).item() == pytest.approx(loss, rel=1e-12)
    moved = [tuple(features.flatten(2)[..., pixels].view_as(features) for features in student[0])]
    assert losses.fsp(moved, teacher).item() == pytest.approx(loss, rel=1e-12)
    one_only = [(moved[0][0], student[0][1])]
    assert losses.fsp(one_only, teacher).item() != pytest.approx(loss, rel=1e-3), "the two maps of a pair are tied"


def test_fsp_weights_change_the_gradient():
    student, teacher = tensors("fsp", dtype=torch.float64)
    gradients = []
    for weight in (1.0, 3.0):
        s = student.clone().requires_grad_()
        losses.fsp(sections(s), sections(teacher), [weight]).backward()
        gradients.append(s.grad)
    assert torch.allclose(gradients[1], 3 * gradients[0], rtol=1e-12)


def test_fsp_refuses_what_does_not_fit():
    def m(*shape):
        return torch.zeros(shape)

    with pytest.raises(ValueError, match=r"first of shape \(1, 2, 6, 6\) does not fit second of shape \(1, 2, 4, 4\)"):
        losses.fsp_matrix(m(1, 2, 6, 6), m(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"first of shape \(1, 2, 4, 4\) does not fit second of shape \(2, 2, 4, 4\)"):
        losses.fsp_matrix(m(1, 2, 4, 4), m(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"teacher of shape \(1, 3, 2\) does not fit student of shape \(1, 2, 2\)"):
        losses.fsp([(m(1, 2, 4, 4), m(1, 2, 4, 4))], [(m(1, 3, 4, 4), m(1, 2, 4, 4))])
    pair = (m(1, 2, 4, 4), m(1, 2, 4, 4))
    for arguments in (([pair], [pair, pair]), ([pair], [pair], [1.0, 1.0]), ([], [])):
        with pytest.raises(ValueError, match="the same number"):
            losses.fsp(*arguments)


# Attention transfer


def test_attention_transfer_by_hand():
    # student: channels (1, 2) and (1, 0) at two pixels -> sums of squares 2, 4; teacher 3, 4 -> (0.6, 0.8)
    student = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])
    teacher = torch.tensor([[[[3.0**0.5, 2.0]]]])
    own = (2 / 20**0.5, 4 / 20**0.5)
    assert losses.attention_map(student).tolist() == [pytest.approx(own)]
    squares = (own[0] - 0.6) ** 2 + (own[1] - 0.8) ** 2
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(squares / 2, rel=1e-5)
    assert losses.attention_transfer(student, teacher, variant="paper").item() == pytest.approx(squares**0.5 / 2, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_attention_transfer_equals_its_float64_twin(seed):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(3, 2, 4, 5)), rng.normal(size=(3, 6, 4, 5))
    paper = code = 0.0
    for s, t in zip(student, teacher, strict=True):
        maps = [np.array([sum(value**2 for value in a[:, y, x]) for y in range(4) for x in range(5)]) for a in (s, t)]
        difference = maps[0] / math.sqrt((maps[0] ** 2).sum()) - maps[1] / math.sqrt((maps[1] ** 2).sum())
        paper += 0.5 * math.sqrt((difference**2).sum()) / 3
        code += (difference**2).sum() / (3 * 20)
    student, teacher = torch.tensor(student), torch.tensor(teacher)
    assert losses.attention_transfer(student, teacher, variant="paper").item() == pytest.approx(paper, rel=1e-10)
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(code, rel=1e-10)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_is_zero_at_the_teacher_and_blind_to_scale_sign_and_channels(variant):
    student, teacher = tensors("attention_transfer", dtype=torch.float64)
    s = teacher.clone().requires_grad_()
    loss = losses.attention_transfer(s, teacher, variant=variant)
    loss.backward()
    assert loss.item() == 0 and s.grad.abs().max() == 0, "and no NaN from the root at 0"
    loss = losses.attention_transfer(student, teacher, variant=variant).item()
    for same in (1e-3 * student, -student, student[:, [2, 0, 3, 1]], student.repeat(1, 2, 1, 1), 1e4 * student):
        assert losses.attention_transfer(same, teacher, variant=variant).item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_survives_a_dead_layer(variant):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    losses.attention_transfer(student, torch.ones(2, 3, 4, 4), variant=variant).backward()
    assert student.grad.isfinite().all()


# Activation boundaries


def test_activation_boundary_by_hand():
    # teacher on, off, off (0 is off), on; student 0.25, 0.5, -3, -1: (0.75^2, 1.5^2, 0, 2^2) = 6.8125, 2 on the wrong side
    student, teacher = torch.tensor([[0.25, 0.5, -3.0, -1.0]]), torch.tensor([[9.0, -0.1, 0.0, 0.1]])
    assert losses.activation_boundary(student, teacher).item() == 6.8125
    assert losses.activation_boundary_count(student, teacher).item() == 2
    # with margin 2: 1.75^2, 2.5^2, 0, 3^2
    assert losses.activation_boundary(student, teacher, margin=2.0).item() == 18.3125
    # over two cases: the mean of the sums
    both = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    assert losses.activation_boundary_count(*both).item() == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]))
def test_activation_boundary_equals_its_float64_twin(seed, margin):
    student, teacher = np.random.default_rng(seed).normal(0, 2, (2, 3, 2, 4, 4))
    hinge = wrong = 0.0
    for s, t in zip(student.ravel(), teacher.ravel(), strict=True):
        hinge += (max(0.0, margin - s) if t > 0 else max(0.0, margin + s)) ** 2 / 3
        wrong += ((s > 0) != (t > 0)) / 3
    student, teacher = torch.tensor(student), torch.tensor(teacher)
    assert losses.activation_boundary(student, teacher, margin=margin).item() == pytest.approx(hinge, rel=1e-10)
    assert losses.activation_boundary_count(student, teacher).item() == pytest.approx(wrong, rel=1e-12)


def test_activation_boundary_is_zero_at_the_teacher_and_sees_only_its_signs():
    student, teacher = tensors("activation_boundary")
    assert losses.activation_boundary_count(teacher, teacher).item() == 0
    clear = teacher.sign() * (teacher.abs() + 1)
    assert losses.activation_boundary(clear, clear).item() == 0
    for loss in (losses.activation_boundary, losses.activation_boundary_count):
        for same in (1e-6 * teacher, 1e6 * teacher, clear):
            assert torch.equal(loss(student, same), loss(student, teacher))


def test_activation_boundary_moves_the_student_to_the_teachers_side():
    student, teacher = tensors("activation_boundary")
    student.requires_grad_()
    assert losses.activation_boundary_count(student, teacher).item() > 50
    optimiser = torch.optim.SGD([student], lr=1.0)
    for _ in range(20):
        optimiser.zero_grad()
        losses.activation_boundary(student, teacher).backward()
        optimiser.step()
    assert losses.activation_boundary_count(student, teacher).item() == 0
    assert not losses.activation_boundary_count(student, teacher).requires_grad


# Jacobian matching


def small_net(seed, inputs=6):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((inputs, 8), (8, 1)))
    return first.requires_grad_(), second.requires_grad_()


def run_net(net, x):
    return (torch.tanh(x.flatten(1) @ net[0]) @ net[1]).squeeze(1)


def jacobian64(student, teacher, x):
    """Gradients from central differences, case by case."""

    def direction(net, case):
        first, second = (weight.detach().numpy() for weight in net)
        f = lambda v: (np.tanh(v @ first) @ second).item()  # noqa: E731
        steps = np.eye(len(case)) * 1e-5
        gradient = np.array([(f(case + step) - f(case - step)) / 2e-5 for step in steps])
        return gradient / np.linalg.norm(gradient)

    return np.mean([((direction(student, case) - direction(teacher, case)) ** 2).sum() for case in x])


def test_jacobian_by_hand():
    # linear outputs have their weights as Jacobian: (3, 4) and (0, 2) -> (0.6, 0.8) and (0, 1): 0.36 + 0.04
    x = torch.tensor([[1.0, 1.0], [2.0, -1.0]], requires_grad=True)
    student, teacher = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([0.0, 2.0], requires_grad=True)
    loss = losses.jacobian(x @ student, x @ teacher, x)
    assert loss.item() == pytest.approx(0.4, rel=1e-6)
    assert losses.jacobian(x @ student, x @ student, x).item() == 0
    assert losses.jacobian(x @ student, x @ -student, x).item() == pytest.approx(4), "opposite directions: the largest value"
    # d/dw of 2 - 2 u.t, u = w / |w|: -2 (t - (u.t) u) / |w| = -2 ((0, 1) - 0.8 (0.6, 0.8)) / 5 = (0.192, -0.144)
    loss.backward()
    assert student.grad.tolist() == pytest.approx([0.192, -0.144], rel=1e-5)
    assert teacher.grad is None


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_jacobian_equals_finite_differences(seed):
    student, teacher = small_net(seed), small_net(seed + 1)
    x = np.random.default_rng(seed).normal(size=(4, 6))
    inputs = torch.tensor(x).view(4, 1, 2, 3).requires_grad_()
    loss = losses.jacobian(run_net(student, inputs), run_net(teacher, inputs), inputs)
    assert loss.item() == pytest.approx(jacobian64(student, teacher, x), rel=1e-5)


def test_jacobian_trains_the_student_and_not_the_teacher():
    student, teacher = small_net(0), small_net(1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    target = run_net(teacher, x)
    optimiser = torch.optim.Adam(student, lr=0.05)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = losses.jacobian(run_net(student, x), target, x)  # the teacher's graph serves every step
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.2 * history[0]
    assert all(weight.grad is None for weight in teacher)


def test_jacobian_is_blind_to_scale_and_keeps_its_cases():
    student, teacher = small_net(3), small_net(4)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    s, t = run_net(student, x), run_net(teacher, x)
    loss = losses.jacobian(s, t, x)
    assert losses.jacobian(1e3 * s, 1e-3 * t, x).item() == pytest.approx(loss.item(), rel=1e-10)
    per_case = losses.jacobian(s, t, x, reduction="none")
    assert per_case.shape == (5,) and per_case.mean().item() == pytest.approx(loss.item(), rel=1e-12)
    flat = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    losses.jacobian(x @ flat, t, x).backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().max() < 10, "a flat student has no direction and no explosion"


def test_jacobian_in_half_precision_and_under_autocast():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(8, 6, generator=generator).requires_grad_()
    first, second = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((6, 8), (8, 1)))
    teacher = tuple(weight.detach().flip(0) for weight in (first, second))
    s, t = run_net((first, second), x), run_net(teacher, x)
    loss = losses.jacobian(s, t, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.jacobian(s, t, x), loss), "the backward products of a float32 net stay float32"
        half = losses.jacobian(run_net((first, second), x), run_net(teacher, x), x)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(loss.item(), rel=0.05)
    half.backward()
    assert first.grad.isfinite().all() and first.grad.abs().sum() > 0
    # bf16 Jacobians, the weights of linear outputs, give the float32 result of the widened ones
    z = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    rows = [torch.tensor(row, dtype=torch.bfloat16, requires_grad=True) for row in ([0.1, 0.7, -0.3], [0.2, -0.5, 0.9])]
    loss = losses.jacobian(z @ rows[0], z @ rows[1], z)
    u, v = (row.detach().double().numpy() / np.linalg.norm(row.detach().double().numpy()) for row in rows)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(((u - v) ** 2).sum(), rel=1e-6)


def test_jacobian_refuses_what_has_no_gradient():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    good = x @ weight
    with pytest.raises(ValueError, match=r"student of shape \(2, 1\) is not one scalar per case of inputs of shape \(2, 3\)"):
        losses.jacobian(good.unsqueeze(1), good, x)
    with pytest.raises(ValueError, match=r"teacher of shape \(1,\)"):
        losses.jacobian(good, good[:1], x)
    with pytest.raises(ValueError, match="teacher has no graph back to inputs"):
        losses.jacobian(good, good.detach(), x)
    with pytest.raises(ValueError, match="student has no graph back to inputs"):
        losses.jacobian(x.detach() @ weight, good, x)


# Born-again networks


def test_ban_by_hand():
    # teacher [1/4, 3/4], student [1/3, 2/3]
    loss = losses.ban(torch.tensor([[0.0, LOG2]]), torch.tensor([[0.0, LOG3]]))
    assert loss.item() == pytest.approx(0.25 * math.log(3) + 0.75 * math.log(3 / 2), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_ban_and_cwtm_equal_their_float64_twins(seed):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 4, (2, 5, 10))
    labels = rng.integers(0, 10, 5)
    p, q = softmax64(teacher), softmax64(student)
    soft = -sum(p[n, i] * math.log(q[n, i]) for n in range(5) for i in range(10)) / 5
    total = sum(max(p[n]) for n in range(5))
    weighted = -sum(max(p[n]) / total * math.log(q[n, labels[n]]) for n in range(5))
    student, teacher = torch.tensor(student), torch.tensor(teacher)
    assert losses.ban(student, teacher).item() == pytest.approx(soft, rel=1e-9)
    assert losses.cwtm(student, teacher, torch.tensor(labels)).item() == pytest.approx(weighted, rel=1e-9)


def test_ban_is_least_at_the_teacher():
    rng = np.random.default_rng(8)
    student, teacher = (torch.tensor(logits) for logits in rng.normal(0, 3, (2, 4, 10)))
    z = teacher.clone().requires_grad_()
    lowest = losses.ban(z, teacher)
    lowest.backward()
    assert lowest.item() == pytest.approx(entropy64(teacher.numpy()), rel=1e-9)
    assert z.grad.abs().max() < 1e-12
    assert losses.ban(student, teacher) > lowest


def test_cwtm_by_hand():
    # teachers [1/4, 3/4] and [1/2, 1/2]: weights 3/5 and 2/5; students [1/3, 2/3] and [1/4, 3/4] with labels 0 (the
    # teacher is wrong) and 1: 0.6 log 3 + 0.4 log(4/3)
    student, teacher = torch.tensor([[0.0, LOG2], [0.0, LOG3]]), torch.tensor([[0.0, LOG3], [0.0, 0.0]])
    labels = torch.tensor([0, 1])
    loss = losses.cwtm(student, teacher, labels)
    assert loss.item() == pytest.approx(0.6 * math.log(3) + 0.4 * math.log(4 / 3), rel=1e-6)
    # a teacher equally sure of every case leaves the plain loss, and certainty of the right label leaves nothing
    even = losses.cwtm(student, torch.tensor([[0.0, 2.0], [2.0, 0.0]]), labels)
    assert even.item() == pytest.approx((math.log(3) + math.log(4 / 3)) / 2, rel=1e-6)
    assert losses.cwtm(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), teacher, labels).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"labels of shape \(1,\) does not fit student of shape \(2, 2\)"):
        losses.cwtm(student, teacher, labels[:1])


def test_cwtm_weights_change_the_gradient():
    """Each case's gradient is w_n (q - y), the weight being the teacher's confidence over the minibatch's."""
    student, teacher = tensors("cwtm", dtype=torch.float64)
    student.requires_grad_()
    losses.cwtm(student, teacher, LABELS).backward()
    confidence = softmax64(teacher.numpy()).max(-1)
    expected = (confidence / confidence.sum())[:, None] * (softmax64(student.detach().numpy()) - np.eye(3)[LABELS])
    assert np.allclose(student.grad.numpy(), expected, rtol=1e-9)


def test_permuted_predictions_keep_the_top_and_shuffle_the_rest_evenly():
    teacher = torch.tensor([[1.0, 9.0, 2.0, 3.0]]).expand(6000, 4)
    permuted = losses.permuted_predictions(teacher, draws_like(teacher, 0))
    assert (permuted[:, 1] == 9).all()
    rest = permuted[:, [0, 2, 3]].long()
    assert torch.equal(rest.sort(-1).values, torch.tensor([[1, 2, 3]]).expand(6000, 3))
    orders, counts = (rest * torch.tensor([100, 10, 1])).sum(-1).unique(return_counts=True)
    assert orders.tolist() == [123, 132, 213, 231, 312, 321]
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum().item()
    assert chi_square < 15.09  # 99 % quantile of chi-square with 5 degrees of freedom: 15.086
    assert not torch.equal(permuted, losses.permuted_predictions(teacher, draws_like(teacher, 1)))


def test_permuted_predictions_by_hand():
    """Places 0, 2, 3 take the others in the order of their draws 0.5, 0.1, 0.7: those of places 2, 0, 3. The top's draw is ignored."""
    for ignored in (0.0, 0.3, 0.99):
        draws = torch.tensor([[0.5, ignored, 0.1, 0.7]])
        assert losses.permuted_predictions(torch.tensor([[1.0, 9.0, 2.0, 3.0]]), draws).tolist() == [[2.0, 9.0, 1.0, 3.0]]
    # the same draws with another class on top: places 1, 2, 3 with draws 0.3, 0.1, 0.7 take those of 2, 1, 3
    draws = torch.tensor([[0.5, 0.3, 0.1, 0.7]])
    assert losses.permuted_predictions(torch.tensor([[9.0, 1.0, 2.0, 3.0]]), draws).tolist() == [[9.0, 2.0, 1.0, 3.0]]


def test_dkpp_by_hand():
    # two classes: nothing to permute, so the value is BAN's: teacher [1/4, 3/4], student [1/3, 2/3]
    loss = losses.dkpp(torch.tensor([[0.0, LOG2]]), torch.tensor([[0.0, LOG3]]), torch.tensor([[0.9, 0.1]]))
    assert loss.item() == pytest.approx(0.25 * math.log(3) + 0.75 * math.log(3 / 2), rel=1e-6)
    # three classes, teacher [1/10, 2/10, 7/10], student [1/7, 2/7, 4/7]: kept or swapped, as the draws say
    student, teacher = torch.tensor([[0.0, LOG2, math.log(4)]]), torch.tensor([[0.0, LOG2, math.log(7)]])
    top = 0.7 * math.log(7 / 4)
    kept = top + 0.1 * math.log(7) + 0.2 * math.log(7 / 2)
    swapped = top + 0.2 * math.log(7) + 0.1 * math.log(7 / 2)
    assert losses.dkpp(student, teacher, torch.tensor([[0.1, 0.2, 0.0]])).item() == pytest.approx(kept, rel=1e-6)
    assert losses.dkpp(student, teacher, torch.tensor([[0.2, 0.1, 0.0]])).item() == pytest.approx(swapped, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_dkpp_is_the_cross_entropy_to_one_of_the_permutations(seed):
    """Four classes have 3! = 6 permutations that keep the largest: each case's loss is that of one of them."""
    student, teacher = np.random.default_rng(seed).normal(0, 3, (2, 5, 4))
    values = losses.dkpp(torch.tensor(student), torch.tensor(teacher), draws_like(torch.tensor(teacher), seed), reduction="none")
    p, log_q = softmax64(teacher), np.log(softmax64(student))
    for n, value in enumerate(values.tolist()):
        top = int(p[n].argmax())
        others = [i for i in range(4) if i != top]
        candidates = [
            -(p[n, top] * log_q[n, top] + sum(p[n, i] * log_q[n, j] for i, j in zip(order, others, strict=True)))
            for order in itertools.permutations(others)
        ]
        assert min(abs(value - candidate) for candidate in candidates) < 1e-9


def test_dkpp_is_least_at_the_permuted_teacher():
    teacher = tensors("dkpp", dtype=torch.float64)[1]
    permuted = losses.permuted_predictions(teacher, draws_like(teacher, 3))
    loss = losses.dkpp(permuted, teacher, draws_like(teacher, 3))
    assert loss.item() == pytest.approx(entropy64(teacher.numpy()), rel=1e-9)


WITH_LABELS = {
    "cross_entropy": lambda s, y: losses.cross_entropy(s, y),
    "cwtm": lambda s, y: losses.cwtm(s, torch.zeros_like(s), y),
}


def two(name, *batch):
    shape = (*batch, LOSSES[name].shape[-1]) if batch else LOSSES[name].shape
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.mark.parametrize("name", LOGIT)
@pytest.mark.parametrize("shapes", [
    ((4, 3), (4, 1, 3)),  # would be 4 x 4 pairs
    ((4, 3), (1, 3)),
    ((1, 3), (4, 3)),
    ((4, 3), (2, 4, 3)),  # a stack of teachers for one student
    ((2, 4, 3), (1, 4, 3)),
    ((2, 4, 3), (2, 1, 3)),
    ((4, 3), (3,)),
    ((3,), (3,)),
    ((4, 3), (5, 3)),
    ((4, 3), (4, 2)),
])  # fmt: skip
def test_only_missing_leading_axes_of_the_teacher_are_broadcast(name, shapes):
    student, teacher = map(torch.randn, shapes)
    who = "student" if student.dim() < 2 else "teacher"
    words = f"^{who} must be logits" if teacher.dim() < 2 else "^teacher of shape .* does not fit student of shape"
    refused(words, LOSSES[name].call, student, teacher)


@pytest.mark.parametrize("name", LOSSES)
def test_empty_batches_are_refused(name):
    student, teacher = two(name)
    refused("is empty", LOSSES[name].call, student[:0], teacher[:0])
    if name not in LOGIT:
        refused("is empty", LOSSES[name].call, student[:, :0], teacher[:, :0])
        refused("is empty", LOSSES[name].call, student[:, :, :0], teacher[:, :, :0])
    else:
        refused("is empty", LOSSES[name].call, student[:, :0], teacher[:, :0])


@pytest.mark.parametrize("name", [*LOGIT, *WITH_LABELS])
def test_one_logit_is_no_softmax(name):
    z = torch.randn(4, 1)
    call = LOSSES[name].call if name in LOSSES else lambda s, t: WITH_LABELS[name](s, torch.zeros(4, dtype=torch.int64))
    refused("one class.*two logits", call, z, z + 1)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("change, words", [
    (lambda tensor: tensor.long(), "must hold floating-point numbers, not torch.int64"),
    (lambda tensor: tensor > 0, "must hold floating-point numbers, not torch.bool"),
    (lambda tensor: tensor.to(torch.complex64), "must hold floating-point numbers, not torch.complex64"),
    (lambda tensor: tensor.tolist(), "must be a tensor, not list"),
])  # fmt: skip
def test_what_is_no_floating_point_tensor_is_refused(name, change, words):
    student, teacher = two(name)
    calls = {"fsp": losses.fsp_matrix, "dkpp": lambda s, t: losses.dkpp(s, t, torch.rand(4, 3))}
    for wrong in ((change(student), teacher), (student, change(teacher))):
        refused(words, calls.get(name, LOSSES[name].call), *wrong)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("fsp")])
def test_tensors_on_two_devices_are_refused(name):
    student, teacher = two(name)
    draws = torch.rand(4, 3)
    call = (lambda s, t: losses.dkpp(s, t, draws)) if name == "dkpp" else LOSSES[name].call
    refused("move both to one device", call, student, teacher.to("meta"))


def test_other_tensors_on_two_devices_are_refused():
    z, labels, maps = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(2, 3, 4, 4)
    refused("labels is on cpu and student on meta", losses.cross_entropy, z.to("meta"), labels)
    refused("draws is on meta", losses.permuted_predictions, z, z.to("meta"))
    refused("second is on meta", losses.fsp_matrix, maps, maps.to("meta"))


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("labels, words", [
    (torch.tensor([1]), "does not fit"),
    (torch.tensor(1), "does not fit"),
    (torch.tensor([[1], [0], [2], [1]]), "does not fit"),
    (torch.tensor([1, 0, 2, 1, 0]), "does not fit"),
    (torch.zeros(0, dtype=torch.int64), "does not fit"),
    (torch.tensor([1.0, 0.0, 2.0, 1.0]), "class numbers.*float32"),
    (torch.eye(3)[[1, 0, 2, 1]], "class numbers"),
    (torch.eye(3, dtype=torch.int64)[[1, 0, 2, 1]], "does not fit"),
    (torch.tensor([True, False, True, True]), "class numbers.*bool"),
    (torch.tensor([1, 0, 2, 1], dtype=torch.int32), "class numbers.*int32"),
    ([1, 0, 2, 1], "class numbers.*list"),
    (torch.tensor([1, 0, 3, 1]), "from 0 to 2"),
    (torch.tensor([1, 0, -1, 1]), "from 0 to 2"),
    (torch.tensor([1, 0, -100, 1]), "from 0 to 2"),
])  # fmt: skip
def test_labels_that_are_no_class_numbers_are_refused(name, labels, words):
    refused(words, WITH_LABELS[name], torch.randn(4, 3), labels)


def test_labels_of_a_stack():
    student, labels = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 2, 1])
    alone = torch.stack([losses.cross_entropy(member, labels) for member in student]).mean()
    for own in (labels, labels.expand(2, 4)):
        assert losses.cross_entropy(student, own).item() == pytest.approx(alone.item(), rel=1e-6)
    refused("does not fit", losses.cross_entropy, student, labels.unsqueeze(0))


NUMBERS = [0.0, -1.0, math.nan, math.inf, -math.inf, 1e-30, 1e30, True, "4", None]


@pytest.mark.parametrize("value", [*NUMBERS, *(torch.tensor(v) for v in (0.0, -1.0, math.nan, math.inf)), torch.tensor([[[1.0]], [[0.0]]])])
def test_temperatures_out_of_range_are_refused(value):
    student, teacher = two("kd", 2, 4)
    refused("temperature must be a finite number above 0", losses.kd, student, teacher, value)
    if not isinstance(value, torch.Tensor):
        for variant in ("paper", "code"):
            refused("temperature must be", losses.fitnets_kd, student, teacher, value, variant=variant)


@pytest.mark.parametrize("shape", [(3,), (2, 1, 3), (3, 1, 1), (1, 2, 1, 1), (4,)])
def test_a_temperature_that_fits_no_axis_is_refused(shape):
    student, teacher = two("kd", 2, 4)
    refused("temperature of shape", losses.kd, student, teacher, torch.ones(shape))
    refused("temperature of shape", losses.fitnets_kd, student, teacher, torch.ones(shape))
    for loss in (losses.kd, losses.fitnets_kd):
        assert loss(student, teacher, torch.full((2, 1, 1), 3.0)) == loss(student, teacher, 3.0)


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, "1", None, True, torch.tensor(-1.0), torch.ones(2)])
def test_weights_and_margins_out_of_range_are_refused(value):
    maps = two("activation_boundary")
    refused("margin must be a finite number of 0 or more", losses.activation_boundary, *maps, margin=value)
    refused("a weight of fsp must be", losses.fsp, sections(maps[0]), sections(maps[1]), [value])


def test_a_number_on_a_device_is_not_read(monkeypatch):
    """Reading it would stop an accelerator at every step: nothing on a hot path does."""
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("a value was read"))
    student, teacher, labels = torch.randn(4, 3, device="meta"), torch.randn(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64)
    losses.kd(student, teacher, torch.ones((), device="meta"))
    losses.cwtm(student, teacher, labels.to("meta"))
    maps = torch.randn(2, 3, 4, 4, device="meta")
    losses.fsp([(maps, maps)], [(maps, maps)], [torch.ones((), device="meta")])
    for name, row in LOSSES.items():
        if name not in ("cwtm", "dkpp"):  # the rows' own labels and draws are on the CPU
            row.call(torch.randn(row.shape, device="meta"), torch.randn(row.shape, device="meta"))


def test_losses_run_on_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for name, row in LOSSES.items():
            if name not in ("cwtm", "dkpp"):  # the rows' own labels and draws are real
                assert row.call(torch.randn(row.shape, device="cuda"), torch.randn(row.shape, device="cuda")).shape == ()
        z, labels = torch.randn(4, 3, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
        assert losses.cwtm(z, z, labels).shape == losses.dkpp(z, z, torch.rand_like(z)).shape == ()
        assert losses.kd(z, z, torch.ones((), device="cuda")).device.type == "cuda"


@pytest.mark.parametrize("form", ["features", "student", "teacher"])
def test_attention_of_a_single_position_is_refused(form):
    one, more = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 4, 4)
    if form == "features":
        refused("one position", losses.attention_map, one)
        refused("one position", losses.attention_map, torch.randn(2, 1, 8))
    else:
        own, target = (one, more) if form == "student" else (more, one)
        refused("one position", losses.attention_transfer, own, target, resize="pool")
        refused("one position", losses.attention_transfer, one, one)
        refused("resize", losses.attention_transfer, own, target)


def test_a_jacobian_of_one_value_is_refused():
    x = torch.randn(4, 1, requires_grad=True)
    refused("one value per case", losses.jacobian, (2 * x).squeeze(1), (3 * x).squeeze(1), x)
    refused("is empty", losses.jacobian, x[:0, 0], x[:0, 0], x[:0])


def test_fsp_pairs_are_sections():
    maps = torch.randn(2, 3, 4, 4)
    refused("give pairs, not 1 and 2 maps", losses.fsp, [(maps,)], [(maps, maps)])
    refused("does not fit second", losses.fsp_matrix, torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 8))
    double = losses.fsp_matrix(maps.double(), maps)
    assert double.dtype == torch.float64 and torch.allclose(double.float(), losses.fsp_matrix(maps, maps), rtol=1e-5)


@pytest.mark.parametrize("draws, words", [
    (torch.rand(4, 2), "do not fit teacher"), (torch.rand(3), "must be random numbers"), (torch.rand(4, 3).half(), "float16"),
    (torch.randint(5, (4, 3)), "floating-point"), (torch.rand(1, 4, 3), "do not fit"),
])  # fmt: skip
def test_draws_that_do_not_fit_are_refused(draws, words):
    refused(words, losses.dkpp, torch.randn(4, 3), torch.randn(4, 3), draws)


def test_attention_maps_of_different_size_are_pooled_by_hand():
    # 2 x 4 positions, sums of squares (1, 3, 5, 7) in both rows: windows of 2 x 2 have the means 2 and 6
    large = torch.tensor([1.0, 3.0, 5.0, 7.0]).sqrt().expand(1, 1, 2, 4)
    small = torch.tensor([[[[0.0, 1.0]]]])
    own = np.array([2, 6]) / math.sqrt(40)
    expected = own[0] ** 2 + (own[1] - 1) ** 2
    for student, teacher in ((large, small), (small, large)):
        result = losses.attention_transfer(student, teacher, resize="pool").item()
        assert result == pytest.approx(expected / 2, rel=1e-5)
        paper = losses.attention_transfer(student, teacher, resize="pool", variant="paper").item()
        assert paper == pytest.approx(math.sqrt(expected) / 2, rel=1e-5)
    # a larger height and a smaller width: both are pooled
    tall = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).sqrt().view(1, 1, 2, 2)
    wide = torch.tensor([[3.0, 3.0, 9.0, 9.0]]).sqrt().view(1, 1, 1, 4)  # both become 1 x 2: (3, 5) against (3, 9)
    a, b = np.array([3, 5]) / math.sqrt(34), np.array([3, 9]) / math.sqrt(90)
    assert losses.attention_transfer(tall, wide, resize="pool").item() == pytest.approx(((a - b) ** 2).sum() / 2, rel=1e-5)
    student, teacher = tensors("attention_transfer")
    assert torch.equal(losses.attention_transfer(student, teacher, resize="pool"), losses.attention_transfer(student, teacher))
    refused("resize must be None or 'pool', not 'mean'", losses.attention_transfer, large, small, resize="mean")
    refused('resize="pool"', losses.attention_transfer, large, small)


def test_attention_over_tokens_by_hand():
    # two tokens: sums of squares 1 + 4 and 9 + 0 against 3 and 4
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([[[3.0**0.5], [2.0]]])
    own = np.array([5, 9]) / math.sqrt(106)
    expected = ((own - np.array([0.6, 0.8])) ** 2).sum()
    assert losses.attention_map(student).tolist() == [pytest.approx(own.tolist())]
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(expected / 2, rel=1e-4)
    # a map is the tokens of its positions
    a, b = tensors("attention_transfer")
    flat = [tensor.flatten(2).transpose(1, 2) for tensor in (a, b)]
    assert losses.attention_transfer(*flat).item() == pytest.approx(losses.attention_transfer(a, b).item(), rel=1e-5)
    refused("does not fit", losses.attention_transfer, flat[0], b)
    refused("does not fit", losses.attention_transfer, flat[0], flat[1][:, 1:], resize="pool")


@pytest.mark.parametrize("activation, good", [
    (torch.nn.Hardsigmoid, False), (torch.nn.Sigmoid, True), (torch.nn.ReLU, True), (torch.nn.Hardswish, True), (torch.nn.Hardtanh, True),
    (torch.nn.GELU, True), (torch.nn.SiLU, True), (torch.nn.ELU, True), (torch.nn.Softplus, True),
])  # fmt: skip
def test_a_student_without_second_derivatives_is_refused(activation, good):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), activation(), torch.nn.Linear(8, 1))
    x = torch.randn(4, 6, requires_grad=True)
    teacher = x.square().sum(1)
    if good:
        losses.jacobian(net(x).squeeze(1), teacher, x).backward()
        assert net[0].weight.grad.abs().sum() > 0
    else:
        refused("Jacobian matching cannot differentiate twice", losses.jacobian, net(x).squeeze(1), teacher, x)
        losses.jacobian(teacher, net(x).squeeze(1), x)  # as a teacher it may stay: nothing is differentiated twice


def test_a_function_that_is_differentiable_once_is_refused():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient * ctx.saved_tensors[0]

    weight = torch.randn(6, requires_grad=True)
    x = torch.randn(4, 6, requires_grad=True)
    refused("'Square' that Jacobian", losses.jacobian, Square.apply(x * weight).sum(1), x.square().sum(1), x)
    refused("'Square' that Jacobian", losses.jacobian, Square.apply(Square.apply(x * weight)).sum(1), x.square().sum(1), x)


def test_an_input_gradient_that_nothing_moves_is_refused():
    x, frozen = torch.randn(4, 6, requires_grad=True), torch.randn(6)
    refused("depends on none of its parameters", losses.jacobian, x @ frozen, x.square().sum(1), x)


def test_sparse_tensors_are_refused():
    refused("student must be dense", losses.kd, torch.eye(3).to_sparse(), torch.eye(3), 4.0)


def test_labels_and_teachers_made_in_inference_mode():
    with torch.inference_mode():
        teacher, labels, wrong = torch.randn(4, 3), LABELS.clone(), LABELS + 3
    student = torch.randn(4, 3, requires_grad=True)
    for loss, arguments in ((losses.cross_entropy, ()), (losses.cwtm, (teacher,))):
        (gradient,) = torch.autograd.grad(loss(student, *arguments, labels), student)
        copies = [each.clone() for each in arguments]
        (expected,) = torch.autograd.grad(loss(student, *copies, LABELS), student)
        assert torch.equal(gradient, expected)
    refused("labels must lie from 0 to 2", losses.cross_entropy, student, wrong)


def test_a_jacobian_through_a_reentrant_checkpoint_is_refused():
    inputs, weight = torch.randn(4, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    student = checkpoint(lambda x: (x @ weight).tanh(), inputs, use_reentrant=True)
    refused("use_reentrant=False", losses.jacobian, student, (inputs**2).sum(1), inputs)
