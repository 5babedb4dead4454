"""Methods: what a step moves and what it leaves alone, losses summed by hand, weights that count, what is refused."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from refusals import refused
from registry import (
    EVERY,
    GROUPS,
    KD,
    LABELS,
    METHODS,
    OF_FEATURES,
    OF_LOGITS,
    PAIRS,
    PRE,
    RESNETS,
    STAGED,
    WEIGHTS,
    Seen,
    X,
    equal,
    every,
    small,
    small_tapped,
    small_teacher,
    wider,
)  # fmt: skip
from runs import resumed
from steps import batch, gradients, moved, state, step
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdcore import losses, methods
from kdcore.methods import Knowledge, Tapped, freeze, soft_targets
from kdcore.models import create
from kdcore.training import Context, Stage, fit

CASES = [(name, None) for name in METHODS] + [(name, KD) for name, row in METHODS.items() if row.task]


def made(name, task=None):
    student, teacher, taps = METHODS[name].nets()
    torch.manual_seed(0)
    return METHODS[name].build(student, teacher, taps, **({"task": task} if task else {})), student, teacher


def batch_for(name, **options):
    return batch(METHODS[name].side, **options)


@pytest.mark.parametrize("name, task", CASES)
def test_a_step_trains_the_stages_parameters_and_nothing_else(name, task):
    method, student, teacher = made(name, task)
    frozen = state(teacher)
    for stage in method.stages:
        before, trained = state(method), {id(parameter) for parameter in stage.parameters}
        step(method, stage, *batch_for(name))
        names = {key for key, parameter in method.named_parameters() if id(parameter) in trained}
        assert {key for key, _ in method.named_parameters()} & moved(method, before) == names
        assert len(names) == len(stage.parameters), "all that is trained belongs to the method, and so to its checkpoint"
    assert {id(p) for p in stage.parameters} == {id(p) for p in student.parameters()}, "the last stage trains the whole student"
    assert moved(teacher, frozen) == set(), "neither weights nor BatchNorm statistics"
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in method.parameters()}


@pytest.mark.parametrize("name", STAGED)
def test_a_first_stage_ends_at_its_last_tap(name):
    """Later layers keep their weights and their BatchNorm statistics; those before have new ones."""
    method, student, _ = made(name)
    before = state(student)
    step(method, method.stages[0], *batch_for(name))
    later = {key for key in before if key.startswith(METHODS[name].later)}
    assert later and moved(student, before) == set(before) - later


def test_the_forward_pass_stops_where_it_is_told():
    x, _ = batch()
    for net in (create("resnet_14"), create("wrn_10_1"), create("densenet_bc_16_6")):
        logits, everything = copy.deepcopy(net).features(x)
        for wanted in ([next(iter(net.taps))], list(net.taps)[1:3]):
            stopped, taps = copy.deepcopy(net).features(x, until=wanted)
            assert stopped is None and set(wanted) <= set(taps)
            assert all(torch.equal(taps[tap], everything[tap]) for tap in taps)
            assert list(taps)[-1] in wanted and len(taps) < len(everything)
        with pytest.raises(ValueError, match="no tap 'group9': choose one of stem"):
            net.features(x, until=["stem", "group9"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name, task", CASES)
def test_the_loss_is_the_sum_by_hand(name, task):
    method, student, teacher = made(name, task)
    x, labels = batch_for(name, seed=3)
    method.train()
    taps, hand = METHODS[name].nets()[2], METHODS[name].hand
    assert set(hand) <= {stage.name for stage in method.stages}
    for stage in method.stages:
        expected = hand.get(stage.name, lambda seen: seen.task)(Seen.of(method, student, teacher, taps, x, labels, task))
        result = stage.loss(x, labels)
        assert result.dim() == 0 and result.item() == pytest.approx(expected.item(), rel=1e-9)
        assert x.grad is None and not x.requires_grad, "the caller's batch is left as it was"


@pytest.mark.usefixtures("float64")
def test_a_students_own_twin_teaches_it_nothing():
    """Student = teacher, both in eval mode: every distillation term but the boundary's is 0."""
    x, labels = batch()
    student = create("resnet_8").reset(1).eval()
    teacher = freeze(copy.deepcopy(student))
    for method in (
        methods.kd(student, teacher, soft_weight=1.0),
        methods.logit_mimic(student, teacher),
        methods.fitnets(student, teacher, hint="group2", guided="group2"),
        methods.fsp(student, teacher, pairs=PAIRS),
    ):
        assert method.stages[0].loss(x, labels).item() == pytest.approx(0, abs=1e-12)
    hard = losses.cross_entropy(student(x), labels).item()
    for method in (methods.attention_transfer(student, teacher, taps=GROUPS), methods.jacobian(student, teacher)):
        assert method.stages[0].loss(x, labels).item() == pytest.approx(hard, rel=1e-9)


def combined(first, second, a, b):
    return [a * p + b * q for p, q in zip(first, second, strict=True)]


def close(results, expected):
    scale = max(q.abs().max().item() for q in expected)
    return all(torch.allclose(p, q, atol=1e-4 * scale) for p, q in zip(results, expected, strict=True))


@pytest.mark.parametrize("build", [
    lambda s, t, w: methods.kd(s, t, soft_weight=w),
    lambda s, t, w: methods.ban(s, t, label_weight=w),
    lambda s, t, w: methods.attention_transfer(s, t, taps=GROUPS, beta=1000 * w),
    lambda s, t, w: methods.jacobian(s, t, weight=w),
    lambda s, t, w: methods.jacobian(s, t, task=soft_targets(4.0, w)),
    lambda s, t, w: methods.fsp(s, t, pairs=PAIRS, weights=[w, 1.0, 1.0]),
    lambda s, t, w: methods.activation_boundary(s, t, taps=PRE, weights=[w, 1.0, 1.0]),
])  # fmt: skip
def test_a_weight_moves_the_gradient_linearly(build):
    x, labels = batch()
    results = {}
    for weight in (0.0, 0.25, 1.0):
        method = build(*equal(), weight)
        results[weight] = gradients(method, method.stages[0], x, labels)
    assert not close(results[0.25], results[0.0])
    assert close(results[0.25], combined(results[0.0], results[1.0], 0.75, 0.25))


def test_lambda_is_a_knob():
    x, labels = batch()
    method = methods.fitnets(*equal(), hint="group2", guided="group2")
    results = {}
    for value in (0.0, 1.0, 4.0):
        method.stages[1].knobs["soft_weight"].fill_(value)
        results[value] = gradients(method, method.stages[1], x, labels)
    plain = methods.plain(method.student)
    assert close(results[0.0], gradients(plain, plain.stages[0], x, labels))
    assert not close(results[1.0], results[0.0])
    assert close(results[4.0], combined(results[0.0], results[1.0], -3, 4))


@pytest.mark.parametrize("build", [
    lambda s, t: methods.kd(s, t, soft_weight=0.0),
    lambda s, t: methods.attention_transfer(s, t, taps=GROUPS, beta=0.0),
    lambda s, t: methods.attention_transfer(s, t, taps=GROUPS, beta=0.0, task=soft_targets(4.0, 0.0)),
])  # fmt: skip
def test_no_weight_is_plain_training(build):
    trained = []
    for method in (methods.plain(equal()[0]), build(*equal())):
        for seed in range(3):
            step(method, method.stages[0], *batch(seed=seed))
        trained.append(method.student.state_dict())
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


def test_soft_targets_at_the_ends():
    assert [weight for weight, _ in soft_targets(4.0)] == [1.0], "no cross-entropy"
    assert [weight for weight, _ in soft_targets(4.0, 0.0)] == [1.0], "no soft targets"
    assert [weight for weight, _ in soft_targets(4.0, 0.75)] == [0.25, 0.75]


def test_soft_targets_send_no_gradient_into_the_teacher():
    student, teacher = equal()
    x, labels = batch()
    knowledge = Knowledge(teacher, x, differentiable=True)
    method = methods.kd(student.eval(), teacher, soft_weight=1.0)
    (through,) = torch.autograd.grad(method.stages[0].loss(x, labels, knowledge), knowledge.logits, allow_unused=True)
    assert through is None


def test_as_many_weights_as_taps():
    with pytest.raises(ValueError, match="one weight per tap: 1 for 3 taps"):
        methods.activation_boundary(*equal(), taps=PRE, weights=[1.0])


def boundary(batch_statistics=True):
    student, teacher = wider()
    torch.manual_seed(0)
    return methods.activation_boundary(student, teacher, taps=PRE, weights=WEIGHTS, batch_statistics=batch_statistics), teacher


@pytest.mark.usefixtures("float64")
def test_the_boundary_teachers_statistics_drift_and_its_weights_do_not():
    method, teacher = boundary()
    before, weights = state(teacher), {key for key, _ in teacher.named_parameters()}
    x, labels = batch()
    step(method, method.stages[0], x, labels)
    assert moved(teacher, before) == set(before) - weights
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    # by hand: momentum 0.1 from 0, of the first BatchNorm's input
    assert torch.allclose(teacher.groups[0][0].norm1.running_mean, 0.1 * teacher.conv(x).mean((0, 2, 3)), rtol=1e-9)
    drifted = state(teacher)
    step(method, method.stages[1], x, labels)
    step(method, methods.kd(method.student, teacher).stages[0], x, labels)
    assert moved(teacher, drifted) == set(), "in the second stage the teacher is in eval mode"


@pytest.mark.usefixtures("float64")
def test_the_boundary_teacher_sees_the_batchs_statistics():
    method, teacher = boundary()
    x, labels = batch()
    twin = copy.deepcopy(teacher).train()
    method.train()
    own, known = method.student.features(x)[1], twin.features(x)[1]
    maps = zip(WEIGHTS, method.connectors, PRE, strict=True)
    expected = sum(w * losses.activation_boundary(connector(own[tap]), known[tap]) for w, connector, tap in maps)
    assert method.stages[0].loss(x, labels).item() == pytest.approx(expected.item(), rel=1e-9)
    still, _ = boundary(batch_statistics=False)
    assert still.train().stages[0].loss(x, labels).item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.usefixtures("float64")
def test_another_teacher_of_the_second_stage():
    """As in the authors' code: the drifted statistics have no part in the soft targets."""
    student, drifting = wider()
    rested = copy.deepcopy(drifting)
    torch.manual_seed(0)
    task = soft_targets(3.0, 1.0)
    method = methods.activation_boundary(
        student, drifting, taps=PRE, weights=WEIGHTS, batch_statistics=True, task=task, task_teacher=rested
    )
    before = state(rested)
    x, labels = batch()
    step(method, method.stages[0], x, labels)
    assert moved(rested, before) == set() and moved(drifting, before)
    loss = method.eval().stages[1].loss(x, labels).item()
    expected, other = (losses.kd(student(x), teacher(x), 3.0).item() for teacher in (rested, drifting))
    assert loss == pytest.approx(expected, rel=1e-9) and loss != pytest.approx(other, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_task_of_ones_own():
    """FitNets' second stage, and plain training, with soft targets in the place of their own loss."""
    student, teacher = equal()
    x, labels = batch()
    expected = losses.kd(student(x), teacher(x), 3.0).item()
    task = soft_targets(3.0, 1.0)
    assert methods.plain(student, teacher, task=task).stages[0].loss(x, labels).item() == pytest.approx(expected, rel=1e-9)
    method = methods.fitnets(student, teacher, hint="group2", guided="group2", weight=0.25, task=task)
    assert method.stages[1].loss(x, labels).item() == pytest.approx(expected, rel=1e-9)
    assert not any(stage.knobs for stage in method.stages) and [stage.name for stage in method.stages] == ["hint", "train"]
    whole = methods.fitnets(student, teacher, hint="group2", guided="group2", weight=1.0).stages[0].loss(x, labels)
    assert method.stages[0].loss(x, labels).item() == pytest.approx(0.25 * whole.item(), rel=1e-9)


@pytest.mark.parametrize("pause_after", [1, 2, 3])  # inside the boundary stage, at its end, in the second stage
def test_a_resumed_run_goes_on_with_the_drifted_statistics(tmp_path, pause_after):
    x, labels = batch(count=16)

    def run(context):
        method, teacher = boundary()
        stages = [
            Stage(
                name=stage.name,
                epochs=2,
                indices=lambda generator: torch.randperm(16, generator=generator).view(2, 8),
                loss=lambda index, stage=stage: stage.loss(x[index], labels[index]),
                schedule=lambda epoch: {"lr": 0.01},
                optimiser={"momentum": 0.9},
                parameters=stage.parameters,
            )
            for stage in (method.stages[0], *methods.kd(method.student, teacher).stages)
        ]
        return fit(method, stages, dict, context), state(method), state(teacher)

    whole = run(Context())
    again = resumed(run, tmp_path, pause_after)
    assert again[0] == whole[0]
    for own, expected in zip(again[1:], whole[1:], strict=True):
        assert all(torch.equal(own[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("thaw", [
    lambda net: net.train(),
    lambda net: net.net[6].train(),  # its dropout alone
    lambda net: net.net.requires_grad_(True),
    lambda net: net.net[8].bias.requires_grad_(True),
])  # fmt: skip
def test_a_teacher_that_is_not_frozen_is_refused(name, thaw):
    teacher = small_teacher()
    thaw(teacher)
    refused("call freeze", every, name, small_tapped(), teacher)
    frozen = small_teacher()
    method = every(name, small_tapped(), frozen)
    for stage in method.stages:
        stage.loss(X, LABELS)
    thaw(frozen)  # later
    refused("call freeze", method.stages[0].loss, X, LABELS)
    refused("call freeze", Knowledge, frozen, X)
    knowledge = Knowledge(freeze(frozen), X)
    thaw(frozen)
    refused("call freeze", lambda: knowledge.logits)


def test_a_boundary_teacher_must_be_frozen_too_and_so_must_that_of_the_task():
    build = methods.activation_boundary
    options = {"taps": ["b"], "weights": [1.0]}
    refused("eval mode", build, small_tapped(), small_teacher().train(), batch_statistics=True, **options)
    refused("eval mode", build, small_tapped(), small_teacher(), task_teacher=small_teacher().train(), **options)
    method = build(small_tapped(), small_teacher(), batch_statistics=True, **options)
    refused("batch_statistics=True", method.stages[0].loss, X, LABELS, Knowledge(small_teacher(), X))


@pytest.mark.parametrize("name", EVERY)
def test_a_student_that_is_its_own_teacher_says_so(name):
    student = small_tapped()
    refused("call freeze", every, name, student, student)
    terms = soft_targets(4.0, 0.5)
    stage = methods.stage("train", student, student, terms, list(student.parameters()), live_teacher=True)
    with torch.no_grad():
        expected = 0.5 * losses.cross_entropy(student(X), LABELS)
    assert stage.loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.training, "in its own mode"


UNTRAINED, UNREACHED = "would train nothing of the student", "no gradient of the student reaches tap 'b'"


@pytest.mark.parametrize("name", EVERY)
def test_a_student_that_nothing_would_train_is_refused(name):
    alone = name in OF_FEATURES and name not in STAGED  # one stage that needs a tap
    refused(UNREACHED if alone else UNTRAINED, every, name, freeze(small_tapped()), small_teacher())
    student = small_tapped()
    method = every(name, student, small_teacher())
    student.requires_grad_(False)  # later
    refused(UNREACHED if alone else "was the student frozen", method.stages[-1].loss, X, LABELS)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_student_that_is_frozen_up_to_its_taps_is_refused(name):
    student = small_tapped()
    student.net[:3].requires_grad_(False)
    refused(UNTRAINED if name in STAGED else UNREACHED, every, name, student, small_teacher())
    student.net[0].requires_grad_(True)
    for stage in every(name, student, small_teacher()).stages:
        own = {id(p) for p in stage.parameters}
        assert all(id(p) in own for p in student.net[0].parameters()), "thawed after Tapped() looked"
        assert not any(id(p) in own for p in student.net[2].parameters()), "what is frozen is no part of a stage"


def test_a_student_in_a_checkpoint():
    class Checkpointed(nn.Module):
        def __init__(self, reentrant, always=True):
            super().__init__()
            self.net, self.reentrant, self.always = small(), reentrant, always

        def forward(self, x):
            h = self.net[:1](x)
            middle = self.net[1:4]
            h = checkpoint(middle, h, use_reentrant=self.reentrant) if self.training or self.always else middle(h)
            return self.net[4:](h)

    teacher = small_teacher()

    def fitnets(student):
        return methods.fitnets(Tapped(student, {"b": "net.2"}, X[:1]), teacher, hint="b", guided="b")

    refused("use_reentrant=False", fitnets, Checkpointed(True))
    refused("use_reentrant=False", fitnets(Checkpointed(True, always=False)).train().stages[0].loss, X, LABELS)
    expected = fitnets(Checkpointed(False).eval())
    result = gradients(expected, expected.stages[0], X, LABELS)
    torch.manual_seed(0)
    method = methods.fitnets(small_tapped(), teacher, hint="b", guided="b", regressor=expected.connectors[0])
    for gradient, plain in zip(result, gradients(method, method.stages[0], X, LABELS), strict=True):
        assert torch.allclose(gradient, plain, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_of_a_method_trains_itself(name, how):
    method = every(name, small_tapped(), small_teacher())
    if how == "deepcopy":
        twin = copy.deepcopy(method)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(method))
    else:
        file = io.BytesIO()
        torch.save(method, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    before = state(method)
    torch.manual_seed(5)
    losses_of_twin = []
    for stage in twin.stages:
        trained = {id(p) for p in stage.parameters}
        names = {key for key, p in twin.named_parameters() if id(p) in trained}
        start = state(twin)
        losses_of_twin.append(stage.loss(X, LABELS).item())
        torch.manual_seed(5)
        step(twin, stage, X, LABELS)
        assert {key for key, _ in twin.named_parameters()} & moved(twin, start) == names and len(names) == len(stage.parameters)
    assert moved(method, before) == set() and all(p.grad is None for p in method.parameters())
    torch.manual_seed(5)
    assert method.stages[0].loss(X, LABELS).item() == losses_of_twin[0]


def test_a_term_that_holds_a_module_cannot_be_copied():
    student, extra = small_tapped(), nn.Linear(10, 10)
    method = methods.plain(student, task=[(1.0, lambda batch: losses.cross_entropy(extra(batch.logits), batch.labels))])
    for how in (copy.deepcopy, pickle.dumps):
        refused("holds a Linear that a copy would share", how, method)
    task = [(1.0, partial(with_module, module=extra))]
    twin = copy.deepcopy(methods.plain(student, task=task))
    twin.stages[0].loss(X, LABELS).backward()
    assert extra.weight.grad is None and twin.stages[0].loss.terms[0][1].keywords["module"].weight.grad is not None


def with_module(batch, module):
    return losses.cross_entropy(module(batch.logits), batch.labels)


def test_fsp_may_start_at_a_frozen_layer():
    student = small_tapped()
    student.net[0].requires_grad_(False)
    method = methods.fsp(student, small_teacher(), pairs=[("a", "b")], weights=[1.0])
    before = state(student)
    step(method, method.stages[0], X, LABELS)
    assert moved(student, before) == {"net.2.weight", "net.2.bias"}


def test_copies_keep_knobs_and_drifting_statistics_together():
    method = copy.deepcopy(every("fitnets", small_tapped(), small_teacher()))
    values = []
    for value in (0.0, 4.0):
        method.stages[1].knobs["soft_weight"].fill_(value)
        values.append(method.stages[1].loss(X, LABELS).item())
    assert values[1] > values[0] + 1, "the copy's knob is that of its terms"
    method, teacher = boundary()
    twin, before = copy.deepcopy(method), state(teacher)
    step(twin, twin.stages[0], *batch())
    assert moved(teacher, before) == set(), "the copy's teacher drifts, not the original's"
    drifted = dict(twin.stages[0].loss.teacher.named_buffers())
    assert all(any(own is buffer for buffer in drifted.values()) for own in twin.statistics.buffers())
    statistics = {key for key in state(twin) if key.startswith("statistics.")}
    assert statistics and statistics <= moved(twin, state(method)), "all of them, and the original's checkpoint keeps its own"


@pytest.mark.parametrize("call, words", [
    (lambda s, t: methods.kd(s, t, temperature=0.0), "temperature"),
    (lambda s, t: methods.kd(s, t, temperature=float("nan")), "temperature"),
    (lambda s, t: methods.kd(s, t, soft_weight=90), "soft_weight must be a finite number from 0 to 1, not 90"),
    (lambda s, t: methods.kd(s, t, soft_weight=-0.1), "soft_weight"),
    (lambda s, t: methods.kd(s, t, soft_weight=float("nan")), "soft_weight"),
    (lambda s, t: soft_targets(-4.0, 0.5), "temperature"),
    (lambda s, t: soft_targets(4.0, 1.5), "soft_weight"),
    (lambda s, t: methods.ban(s, t, label_weight=-1.0), "label_weight"),
    (lambda s, t: methods.jacobian(s, t, weight=float("inf")), "weight"),
    (lambda s, t: every("fitnets", s, t, weight=-1.0), "weight"),
    (lambda s, t: every("fitnets", s, t, temperature=0), "temperature"),
    (lambda s, t: every("fitnets", s, t, variant="codes"), "variant"),
    (lambda s, t: every("fsp", s, t, weights=[-1.0]), "a weight"),
    (lambda s, t: every("fsp", s, t, weights=[]), "one weight per pair: 0 for 1"),
    (lambda s, t: every("attention_transfer", s, t, beta=-1.0), "beta"),
    (lambda s, t: every("attention_transfer", s, t, variant="print"), "variant"),
    (lambda s, t: every("attention_transfer", s, t, resize="crop"), "resize"),
    (lambda s, t: every("attention_transfer", s, t, skip_tokens=1), "skip_tokens"),
    (lambda s, t: every("activation_boundary", s, t, margin=-1.0), "margin"),
    (lambda s, t: methods.activation_boundary(s, t, taps=["b"], weights=[float("nan")]), "a weight"),
    (lambda s, t: methods.activation_boundary(s, t, taps=[], weights=[]), "at least one"),
    (lambda s, t: methods.attention_transfer(s, t, taps=[]), "at least one"),
    (lambda s, t: methods.attention_transfer(s, t, taps="b"), "a list"),
    (lambda s, t: methods.fsp(s, t, pairs=[]), "at least one"),
    (lambda s, t: methods.fsp(s, t, pairs=[("a", "b", "b")]), "that is not a pair"),
    (lambda s, t: methods.fsp(s, t, pairs=[("a", "b"), ("a", "b")]), "twice"),
    (lambda s, t: methods.attention_transfer(s, t, taps=["b", ("b", "b")]), "twice"),
    (lambda s, t: methods.activation_boundary(s, t, taps=["b", "b"], weights=[1.0, 1.0]), "twice"),
    *((lambda s, t, name=name: every(name, s, t, task=[]), "task has no terms") for name in ("fitnets", "fsp", "jacobian")),
    (lambda s, t: methods.plain(s, task=[]), "task has no terms"),
    (lambda s, t: methods.plain(s, task=[(-1.0, methods.hard_labels()[0][1])]), "a weight of stage 'train'"),
    (lambda s, t: methods.stage("p", s, t, [], list(s.parameters())), "no terms"),
    (lambda s, t: methods.plain(s, task=[lambda batch: batch.logits.mean()]), "needs a list of terms"),
    (lambda s, t: methods.attention_transfer(s, t, taps=None), "a list"),
    (lambda s, t: methods.attention_transfer(s, t, taps=[3]), "that is not a pair"),
    (lambda s, t: methods.fsp(s, t, pairs=("a", "b")), "that is not a pair"),
    (lambda s, t: every("fsp", s, t, weights=0.1), "a list with one weight per pair: 0.1 for 1"),
    (lambda s, t: methods.kd("student", t), "a student must be a torch.nn.Module, not str"),
    (lambda s, t: losses.fsp(None, None), "fsp takes lists"),
    (lambda s, t: methods.stage("p", s, t, methods.hard_labels(), []), "train nothing"),
    (lambda s, t: methods.stage("p", s, t, methods.hard_labels(), [nn.Parameter(torch.zeros(1))]), "train nothing"),
    (lambda s, t: every("fitnets", s, None), "give it a teacher"),
    (lambda s, t: methods.kd(s, lambda x: x), "must be a torch.nn.Module"),
    (lambda s, t: methods.kd(s, None).stages[0].loss(X, LABELS), "has no teacher"),
    (lambda s, t: methods.plain(s, task=[(1.0, lambda batch: batch.logits)]).stages[0].loss(X, LABELS), "must be scalars"),
    (lambda s, t: methods.plain(s, task=[(1.0, lambda batch: batch.logits.detach().mean())]).stages[0].loss(X, LABELS), "depends on no"),
    (lambda s, t: methods.StageLoss(methods.kd(s, t), methods.kd(s, t).stages[0]), "does not belong to the method"),
])  # fmt: skip
def test_numbers_and_lists_out_of_range(call, words):
    refused(words, call, small_tapped(), small_teacher())


@pytest.mark.parametrize("name", EVERY)
def test_labels_and_batches_that_do_not_fit_are_refused_by_the_stage(name):
    stage = every(name, small_tapped(), small_teacher()).stages[-1]
    if "labels" in METHODS[name].reads:
        for labels in (LABELS[:1], LABELS.float(), F.one_hot(LABELS, 10), LABELS + 10, -LABELS):
            refused("labels", stage.loss, X, labels)
    if "logits" in METHODS[name].reads:
        refused("does not fit student", stage.loss, X, LABELS, Knowledge(small_teacher(), X[:2]))
        refused("does not fit student", stage.loss, X, LABELS, Knowledge(None, X, torch.zeros(1, 10)))


def test_a_jacobian_through_a_hard_sigmoid_is_refused():
    net = small()
    net[5] = nn.Hardsigmoid()
    refused("second derivative", methods.jacobian(net, small_teacher()).stages[0].loss, X, LABELS)
    methods.jacobian(small(), freeze(net)).stages[0].loss(X, LABELS).backward()  # of a teacher one is enough


USUAL = RESNETS._replace(pre=PRE, weights=[0.00075, 0.0015, 0.003])  # the weights of the authors of activation boundaries


@pytest.mark.parametrize("name", [name for name in EVERY if name != "plain"])
def test_no_default_explodes_at_the_rate_of_the_readme(name):
    """50 steps at 0.01 with momentum 0.9: finite, and lower at the end of each stage than at its start."""
    student, teacher = create("resnet_8").reset(1), create("resnet_8").reset(2)
    x, labels = batch(8, 8)
    teacher.train()  # statistics of data, as a trained teacher has them
    with torch.no_grad():
        for _ in range(30):
            teacher(x)
    torch.manual_seed(0)
    for stage in (method := METHODS[name].build(student, freeze(teacher), USUAL).train()).stages:
        optimiser = torch.optim.SGD(stage.parameters, lr=0.01, momentum=0.9)
        values = []
        for _ in range(50):
            optimiser.zero_grad()
            loss = stage.loss(x, labels)
            loss.backward()
            optimiser.step()
            values.append(loss.item())
        assert method.training and all(value < 1e4 for value in values), (stage.name, values)
        assert max(values[-3:]) < values[0], (stage.name, values[0], values[-3:])


def test_the_default_weight_of_fsp_is_the_suites():
    student, teacher = equal()
    results = [
        gradients(method, method.stages[0], *batch())
        for method in (methods.fsp(student, teacher, pairs=PAIRS), methods.fsp(student, teacher, pairs=PAIRS, weights=[0.01] * 3))
    ]
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_a_hint_weighs_half_the_mean_over_its_units_unless_told_otherwise():
    student, teacher = small_tapped(), small_teacher()
    for variant in ("paper", "code"):
        method = methods.fitnets(student, teacher, hint="b", guided="b", variant=variant)
        with torch.no_grad():
            own, known = method.connectors[0](student.eval().features(X)[1]["b"]), teacher.features(X)[1]["b"]
            expected = 0.5 * (own - known).square().mean()
            assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_defaults_do_not_explode_at_a_usual_rate(name):
    """With a teacher whose activations are as large as a trained one's."""
    teacher = small_teacher()
    with torch.no_grad():
        teacher.net[0].weight.mul_(4)
    for stage in every(name, small_tapped(), teacher).stages:
        optimiser, first = torch.optim.SGD(stage.parameters, lr=0.01, momentum=0.9), stage.loss(X, LABELS).item()
        for _ in range(30):
            optimiser.zero_grad()
            loss = stage.loss(X, LABELS)
            loss.backward()
            optimiser.step()
        assert loss.item() < 3 * first


@pytest.mark.parametrize("name", EVERY)
def test_inputs_of_another_type_device_or_kind_than_the_networks(name):
    method = every(name, small_tapped(), small_teacher())
    for x, words in ((X.double(), "is float32 on cpu, but its input is float64"), ("x", "a tensor")):
        refused(words, method.stages[0].loss, x, LABELS)
    refused("move both to one dtype and device", lambda: every(name, small_tapped().double(), small_teacher()).stages[0].loss(X, LABELS))


@pytest.mark.parametrize("name", EVERY)
def test_batches_and_networks_made_in_inference_mode(name):
    with torch.inference_mode():
        x, labels = X.clone(), LABELS.clone()
        student = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    if name in OF_LOGITS:
        refused("made under torch.inference_mode", every, name, student, small_teacher())
    method = every(name, small_tapped().eval(), small_teacher())
    torch.manual_seed(0)
    loss = method.stages[0].loss(x, labels)
    loss.backward()
    torch.manual_seed(0)
    assert loss.item() == method.stages[0].loss(X, LABELS).item()


def test_fsp_from_a_frozen_layer_but_not_from_one_out_of_reach():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 10)

        def forward(self, x):
            x = self.first(x)  # in train mode alone, as most networks do it
            x = checkpoint(self.last, x, use_reentrant=True) if self.training else self.last(x)
            return self.head(x.mean((2, 3)))

    def wrapped():
        return Tapped(Checkpointed(), {"first": "first", "last": "last"}, X[:1])

    method = methods.fsp(wrapped().train(), freeze(wrapped()), pairs=[("first", ("last", "first"))])
    refused("use_reentrant=False", method.stages[0].loss, X, LABELS)
    method.student.eval()
    method.student.net.first.requires_grad_(False)
    method.stages[0].loss(X, LABELS).backward()
    assert method.student.net.last.weight.grad.any() and method.student.net.first.weight.grad is None


def test_what_is_no_stage_and_no_student():
    method = methods.plain(small_tapped())
    refused("does not belong to the method", methods.StageLoss, method, None)
    refused("does not belong to the method", methods.StageLoss, None, method.stages[0])
    refused("a student must be a torch.nn.Module", every, "fsp", None, small_teacher())


def test_a_scripted_teacher():
    teacher = freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 10))))
    assert methods.kd(small_tapped(), teacher).stages[0].loss(X, LABELS).isfinite()
    refused("scripted", Tapped, teacher, {"a": "1"}, X[:1])
    assert all(row.match == "" for row in Tapped.suggest(teacher, teacher, X[:1]))


def test_soft_targets_with_a_weight_of_the_labels_of_its_own():
    """CE + 16 KL at T = 4 without T^2, as Park et al. 2019 add them up: T^2 KL with the weight 1 beside the labels' 1."""
    student, teacher = equal()
    x, labels = batch()
    method = methods.plain(student, teacher, task=soft_targets(4.0, 1.0, label_weight=1.0))
    logits, targets = student(x).double(), teacher(x).double()
    kl = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(targets / 4, 1), reduction="batchmean")
    assert method.stages[0].loss(x, labels).item() == pytest.approx((F.cross_entropy(logits, labels) + 16 * kl).item(), rel=1e-4)
    assert len(soft_targets(4.0, 0.0, label_weight=1.0)) == len(soft_targets(4.0, 3.0, label_weight=0.0)) == 1
    for wrong in ({"soft_weight": -1.0, "label_weight": 1.0}, {"label_weight": -1.0}, {"soft_weight": 2.0}):
        with pytest.raises(ValueError, match="weight must be a finite number"):
            soft_targets(4.0, **wrong)


@pytest.mark.usefixtures("float64")
def test_attention_transfer_between_taps_of_different_names():
    student, teacher = create("wrn_10_1"), methods.freeze(create("densenet_bc_10_6"))
    x, labels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    method = methods.attention_transfer(student, teacher, taps=[("group2.sum", "stage2")], beta=10.0)
    logits, own = student.features(x)
    expected = losses.cross_entropy(logits, labels) + 10 * losses.attention_transfer(own["group2.sum"], teacher.features(x)[1]["stage2"])
    assert method.stages[0].loss(x, labels).item() == pytest.approx(expected.item(), rel=1e-9)
    with pytest.raises(ValueError, match="taps 'group1.sum' and 'stage2' differ in size: student 16 x 32 x 32, teacher"):
        methods.attention_transfer(student, teacher, taps=[("group1.sum", "stage2")])
    with pytest.raises(ValueError, match="the teacher has no tap 'group1.sum'"):
        methods.attention_transfer(student, teacher, taps=["group1.sum"])
