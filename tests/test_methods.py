"""Methods: what a step moves and what it leaves alone, losses summed by hand, weights that count, connectors, taps of foreign nets."""

import copy
import io
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import registry
import torch
from registry import (
    GROUPS,
    KD,
    METHODS,
    PAIRS,
    PRE,
    RESNETS,
    SMALL,
    SMALL_TAPS,
    Seen,
    X,
    small,
    small_tapped,
    small_teacher,
)  # fmt: skip
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from kdcore import losses, methods
from kdcore.data.augment import Views
from kdcore.errors import Paused
from kdcore.methods import Knowledge, Tapped, freeze, soft_targets
from kdcore.models import create
from kdcore.training import Context, Stage, fit

WEIGHTS = [0.25, 0.5, 1.0]
LABELS = torch.tensor([1, 2, 3, 4])


def batch(size=16, count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator), torch.randint(10, (count,), generator=generator)


CASES = [(name, None) for name in METHODS] + [(name, KD) for name, row in METHODS.items() if row.task]
STAGED = [name for name, row in METHODS.items() if row.later]
EVERY = [name for name in METHODS if "," not in name]
OF_FEATURES = [name for name in EVERY if "taps" in METHODS[name].reads]
OF_LOGITS = [name for name in EVERY if name not in OF_FEATURES]


def every(name, student, teacher, **options):
    """A method of small networks."""
    return METHODS[name].build(student, teacher, SMALL, **options)


def resnets():
    return registry.resnets()[:2]


def wide():
    return registry.wide()[:2]


def made(name, task=None):
    student, teacher, taps = METHODS[name].nets()
    torch.manual_seed(0)
    return METHODS[name].build(student, teacher, taps, **({"task": task} if task else {})), student, teacher


def batch_for(name, **options):
    return batch(METHODS[name].side, **options)


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def moved(net, before):
    return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def step(method, stage, x, labels, **options):
    method.train()
    stage.loss(x, labels, **options).backward()
    torch.optim.SGD(stage.parameters, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    method.zero_grad()


def gradients(method, stage, x, labels):
    method.train().zero_grad()
    stage.loss(x, labels).backward()
    return [None if p.grad is None else p.grad.clone() for p in stage.parameters]


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("name, task", CASES)
def test_a_step_trains_the_phases_parameters_and_nothing_else(name, task):
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
def test_a_first_phase_ends_at_its_last_tap(name):
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


# ---------------------------------------------------------------- losses by hand


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
        found = stage.loss(x, labels)
        assert found.dim() == 0 and found.item() == pytest.approx(expected.item(), rel=1e-9)
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


# ---------------------------------------------------------------- weights count


def combined(first, second, a, b):
    return [a * p + b * q for p, q in zip(first, second, strict=True)]


def close(found, expected):
    scale = max(q.abs().max().item() for q in expected)
    return all(torch.allclose(p, q, atol=1e-4 * scale) for p, q in zip(found, expected, strict=True))


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
    found = {}
    for weight in (0.0, 0.25, 1.0):
        method = build(*resnets(), weight)
        found[weight] = gradients(method, method.stages[0], x, labels)
    assert not close(found[0.25], found[0.0])
    assert close(found[0.25], combined(found[0.0], found[1.0], 0.75, 0.25))


def test_lambda_is_a_knob():
    x, labels = batch()
    method = methods.fitnets(*resnets(), hint="group2", guided="group2")
    found = {}
    for value in (0.0, 1.0, 4.0):
        method.stages[1].knobs["soft_weight"].fill_(value)
        found[value] = gradients(method, method.stages[1], x, labels)
    plain = methods.plain(method.student)
    assert close(found[0.0], gradients(plain, plain.stages[0], x, labels))
    assert not close(found[1.0], found[0.0])
    assert close(found[4.0], combined(found[0.0], found[1.0], -3, 4))


@pytest.mark.parametrize("build", [
    lambda s, t: methods.kd(s, t, soft_weight=0.0),
    lambda s, t: methods.attention_transfer(s, t, taps=GROUPS, beta=0.0),
    lambda s, t: methods.attention_transfer(s, t, taps=GROUPS, beta=0.0, task=soft_targets(4.0, 0.0)),
])  # fmt: skip
def test_no_weight_is_plain_training(build):
    trained = []
    for method in (methods.plain(resnets()[0]), build(*resnets())):
        for seed in range(3):
            step(method, method.stages[0], *batch(seed=seed))
        trained.append(method.student.state_dict())
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


def test_soft_targets_at_the_ends():
    assert [weight for weight, _ in soft_targets(4.0)] == [1.0], "no cross-entropy"
    assert [weight for weight, _ in soft_targets(4.0, 0.0)] == [1.0], "no soft targets"
    assert [weight for weight, _ in soft_targets(4.0, 0.75)] == [0.25, 0.75]


def test_soft_targets_send_no_gradient_into_the_teacher():
    student, teacher = resnets()
    x, labels = batch()
    knowledge = Knowledge(teacher, x, differentiable=True)
    method = methods.kd(student.eval(), teacher, soft_weight=1.0)
    (through,) = torch.autograd.grad(method.stages[0].loss(x, labels, knowledge), knowledge.logits, allow_unused=True)
    assert through is None


# ---------------------------------------------------------------- connectors, impossible pairs


def shapes(method):
    return [tuple(connector.weight.shape) if isinstance(connector, nn.Conv2d) else type(connector) for connector in method.connectors]


def test_connectors_stand_where_widths_differ():
    assert shapes(methods.fsp(*resnets(), pairs=PAIRS)) == [nn.Identity] * 6
    assert shapes(methods.activation_boundary(*resnets(), taps=PRE, weights=WEIGHTS)) == [nn.Identity] * 3
    widths = [16, 16, 32, 32, 64, 64]
    assert shapes(methods.fsp(*wide(), pairs=PAIRS)) == [(2 * width, width, 1, 1) for width in widths]
    # the stems of all WRNs are equally wide
    assert shapes(methods.fsp(*wide(), pairs=[("stem", "group1")])) == [nn.Identity, (32, 16, 1, 1)]
    connectors = methods.activation_boundary(*wide(), taps=PRE, weights=WEIGHTS).connectors
    for (layer, norm), width in zip(connectors, (16, 32, 64), strict=True):
        assert layer.weight.shape == (2 * width, width, 1, 1) and layer.bias is None and norm.num_features == 2 * width
        assert layer.weight.std().item() == pytest.approx((2 / (2 * width)) ** 0.5, rel=0.15), "fan-out, as the authors have it"


def test_a_tap_of_two_pairs_has_one_connector():
    assert len(methods.fsp(*wide(), pairs=[("group1", "group2"), ("group2", "group3")]).connectors) == 3


def test_the_regressor():
    student, teacher = wide()
    for hint, guided, shape in (
        ("group2", "group1", (64, 16, 17, 17)),  # 32 -> 16 pixels
        ("group3", "group2", (128, 32, 9, 9)),
        ("group3", "group1", (128, 16, 25, 25)),
        ("group2", "group2", (64, 32, 1, 1)),
    ):
        method = methods.fitnets(student, teacher, hint=hint, guided=guided)
        assert shapes(method) == [shape] and method.connectors[0].bias is not None
    assert shapes(methods.fitnets(*resnets(), hint="group2", guided="group2")) == [nn.Identity]
    own = nn.Conv2d(16, 64, 3, stride=2, padding=1)
    method = methods.fitnets(student, teacher, hint="group2", guided="group1", regressor=own)
    assert method.connectors[0] is own and all(any(p is q for q in method.stages[0].parameters) for p in own.parameters())


@pytest.mark.parametrize("build, words", [
    (lambda s, t: methods.fitnets(s, t, hint="group1", guided="group2"),
     r"student's 'group2' \(32 x 16 x 16\) is smaller than the teacher's 'group1' \(32 x 32 x 32\)"),
    (lambda s, t: methods.fitnets(s, t, hint="group9", guided="group2"), "the teacher has no tap 'group9': choose one of stem"),
    (lambda s, t: methods.fitnets(s, t, hint="group2", guided="middle"), "the student has no tap 'middle': choose one of stem"),
    (lambda s, t: methods.fsp(s, t, pairs=[("group1", "last")]), "the student has no tap 'last'"),
    (lambda s, t: methods.attention_transfer(s, t, taps=["layer1"]), "the student has no tap 'layer1'"),
    (lambda s, t: methods.activation_boundary(s, t, taps=["group1.before"], weights=[1]), "the student has no tap 'group1.before'"),
])  # fmt: skip
def test_impossible_pairs(build, words):
    with pytest.raises(ValueError, match=words):
        build(*wide())


def test_maps_of_different_sizes():
    shrinks = Tapped(nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.Flatten(), nn.Linear(384, 10)), {"group1": "0"}, torch.zeros(1, 3, 32, 32))
    teacher = freeze(create("resnet_8"))
    words = r"of tap 'group1' differ in size: student 6 x 8 x 8, teacher 16 x 32 x 32"
    with pytest.raises(ValueError, match=f"attention maps {words}"):
        methods.attention_transfer(shrinks, teacher, taps=["group1"])
    with pytest.raises(ValueError, match=f"activation boundaries {words}"):
        methods.activation_boundary(shrinks, teacher, taps=["group1"], weights=[1])


def test_as_many_weights_as_taps():
    with pytest.raises(ValueError, match="one weight a tap: 1 for 3 taps"):
        methods.activation_boundary(*resnets(), taps=PRE, weights=[1.0])


# ---------------------------------------------------------------- the teacher's knowledge


class Counted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.taps, self.calls = net, net.taps, 0
        self.eval()

    def features(self, x):
        self.calls += 1
        return self.net.features(x)


@pytest.mark.usefixtures("float64")
def test_one_forward_pass_of_the_teacher_serves_several_students():
    x, labels = batch()
    teacher = Counted(resnets()[1])
    students = [create("resnet_8").reset(seed) for seed in (1, 2)]
    stages = [methods.kd(student, teacher).stages[0] for student in students]
    stages += (
        methods.fsp(students[0], teacher, pairs=PAIRS).stages[:1] + methods.attention_transfer(students[1], teacher, taps=GROUPS).stages
    )
    knowledge = Knowledge(teacher, x)
    shared = [stage.loss(x, labels, knowledge).item() for stage in stages]
    assert teacher.calls == 1
    assert shared == [pytest.approx(stage.loss(x, labels).item(), rel=1e-9) for stage in stages]
    assert teacher.calls == 1 + len(stages)
    assert not knowledge.logits.requires_grad


@pytest.mark.usefixtures("float64")
def test_jacobians_of_several_students_share_the_teacher():
    x, labels = batch()
    teacher = Counted(resnets()[1])
    stages = [methods.jacobian(create("resnet_8").reset(seed), teacher).stages[0] for seed in (1, 2)]
    knowledge = Knowledge(teacher, x, differentiable=True)
    shared = [stage.loss(x, labels, knowledge) for stage in stages]
    sum(shared).backward()
    assert teacher.calls == 1 and x.grad is None
    assert [loss.item() for loss in shared] == [pytest.approx(stage.loss(x, labels).item(), rel=1e-9) for stage in stages]
    with pytest.raises(ValueError, match="has no graph back to inputs"):
        stages[0].loss(x, labels, Knowledge(teacher, x))


def test_the_teacher_rests_where_no_term_asks_for_it():
    teacher = Counted(resnets()[1])
    student = resnets()[0]
    idle = [methods.plain(student, teacher), methods.kd(student, teacher, soft_weight=0.0)]
    idle += [methods.fsp(student, teacher, pairs=PAIRS), methods.activation_boundary(student, teacher, taps=PRE, weights=WEIGHTS)]
    for method in idle:
        method.stages[-1].loss(*batch())
    assert teacher.calls == 0


@pytest.mark.usefixtures("float64")
def test_given_logits_are_used():
    x, labels = batch()
    student, teacher = resnets()
    teacher, table = Counted(teacher), torch.randn(8, 10, generator=torch.Generator().manual_seed(5))
    expected = 0.1 * losses.cross_entropy(student(x), labels) + 0.9 * losses.kd(student(x), table, 4.0)
    stage = methods.kd(student, teacher).stages[0]
    assert stage.loss(x, labels, Knowledge(teacher, x, table)).item() == pytest.approx(expected.item(), rel=1e-9)
    assert teacher.calls == 0
    # features beside a table: one forward pass, the logits still the table's
    stage = methods.attention_transfer(student, teacher, taps=GROUPS, beta=0.0, task=soft_targets(4.0, 0.9)).stages[0]
    assert stage.loss(x, labels, Knowledge(teacher, x, table)).item() == pytest.approx(expected.item(), rel=1e-9)
    assert teacher.calls == 1


# ---------------------------------------------------------------- the boundary teacher in train mode


def boundary(batch_statistics=True):
    student, teacher = wide()
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
def test_another_teacher_of_the_second_phase():
    """As in the authors' code: the drifted statistics have no part in the soft targets."""
    student, drifting = wide()
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
    student, teacher = resnets()
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
    context = Context(checkpoint=tmp_path)

    def stop(row):
        context.deadline = 0 if row["done"] == pause_after else context.deadline

    context.report = stop
    with pytest.raises(Paused):
        run(context)
    resumed = run(Context(checkpoint=tmp_path))
    assert resumed[0] == whole[0]
    for found, expected in zip(resumed[1:], whole[1:], strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)


# ---------------------------------------------------------------- other people's networks


def torchvision_net(seed=0):
    torch.manual_seed(seed)
    return resnet18(num_classes=10)


def tapped(seed=0, taps=("layer1", "layer2", "layer3")):
    return Tapped(torchvision_net(seed), {tap: tap for tap in taps}, torch.zeros(1, 3, 64, 64))


def test_taps_of_a_torchvision_net():
    net = tapped(taps=("relu", "layer1", "layer2.0", "layer3", "avgpool", "fc"))
    assert net.taps == {"relu": (64, 32), "layer1": (64, 16), "layer2.0": (128, 8), "layer3": (256, 4), "avgpool": (512, 1), "fc": (10, 1)}
    x, _ = batch(64, 2)
    net.eval()
    logits, taps = net.features(x)
    assert torch.equal(logits, net.net(x)) and torch.equal(net(x), logits) and torch.equal(taps["fc"], logits)
    h = net.net.layer1(net.net.maxpool(net.net.relu(net.net.bn1(net.net.conv1(x)))))
    assert torch.equal(taps["layer1"], h) and torch.equal(taps["layer3"], net.net.layer3(net.net.layer2(h)))
    assert {tap: (tensor.shape[1], tensor.shape[-1] if tensor.dim() == 4 else 1) for tap, tensor in taps.items()} == net.taps
    assert all(not module._forward_hooks for module in net.modules()), "the user's net is left as it was"


def test_parameters_before_a_tap():
    net = tapped(taps=("relu", "layer2.0", "layer3", "fc"))
    names = {id(parameter): name for name, parameter in net.net.named_parameters()}
    before = {tap: [names[id(parameter)] for parameter in net.parameters_before(tap)] for tap in net.taps}
    every = list(names.values())
    early = ("conv1", "bn1")
    assert before["relu"] == [name for name in every if name.startswith(early)]
    assert before["layer2.0"] == [name for name in every if name.startswith((*early, "layer1", "layer2.0."))]
    assert before["layer3"] == [name for name in every if name.startswith((*early, "layer1", "layer2", "layer3"))]
    assert before["fc"] == every


def test_parameters_before_do_not_depend_on_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.second, self.first = nn.Linear(4, 2), nn.Conv2d(5, 4, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.head(self.second(self.first(x)).mean((2, 3)))

    net = Tapped(Backwards(), {"a": "first", "b": "second"}, torch.zeros(1, 3, 4, 4))
    assert [tuple(p.shape) for p in net.parameters_before("a")] == [(5, 3, 1, 1), (5,)]
    assert [tuple(p.shape) for p in net.parameters_before("b")] == [(4, 5, 1, 1), (4,), (5, 3, 1, 1), (5,)]


def test_wrapping_changes_nothing():
    net = torchvision_net()
    before = state(net)
    for training in (True, False):
        wrapped = Tapped(net.train(training), {"layer1": "layer1"}, torch.randn(1, 3, 64, 64))
        assert wrapped.training == wrapped.net.layer4.training == training
    assert moved(net, before) == set() and all(parameter.grad is None for parameter in net.parameters())
    twin = copy.deepcopy(wrapped)
    assert set(twin.features(torch.randn(2, 3, 64, 64))[1]) == {"layer1"}, "a copy taps itself"
    frozen = Tapped(freeze(net), {"layer1": "layer1"}, torch.zeros(1, 3, 64, 64))
    assert not frozen.training and frozen.taps == wrapped.taps


def test_a_plain_sequential():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    wrapped = Tapped(net, {"hidden1": "2", "hidden2.pre": "3"}, torch.zeros(1, 3, 2, 2))
    assert wrapped.taps == {"hidden1": (7, 1), "hidden2.pre": (5, 1)}
    x = torch.randn(4, 3, 2, 2)
    logits, taps = wrapped.features(x)
    assert torch.equal(taps["hidden1"], net[:3](x)) and torch.equal(taps["hidden2.pre"], net[:4](x)) and torch.equal(logits, net(x))
    stopped, taps = wrapped.features(x, until=["hidden1"])
    assert stopped is None and list(taps) == ["hidden1"]
    assert len(wrapped.parameters_before("hidden1")) == 2 and len(wrapped.parameters_before("hidden2.pre")) == 4


@pytest.mark.parametrize("name, words", [
    ("layer9", "the network has no module 'layer9': choose one of conv1, bn1"),
    ("bn1", "the output of 'bn1' is overwritten in place"),
    ("layer1.0.bn2", "the output of 'layer1.0.bn2' is overwritten in place"),
    ("layer1.0.relu", "module 'layer1.0.relu' runs more than once"),
])  # fmt: skip
def test_modules_that_cannot_be_tapped(name, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Tapped(torchvision_net(), {"tap": name}, torch.zeros(1, 3, 64, 64))


def test_an_output_that_is_no_map():
    net = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"the output of '1' is neither a map \[B, C, H, W\] nor a vector"):
        Tapped(net, {"a": "1"}, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("build", [
    lambda s, t: methods.fitnets(s, t, hint="layer2", guided="layer2"),
    lambda s, t: methods.fsp(s, t, pairs=[("layer1", "layer2")]),
    lambda s, t: methods.attention_transfer(s, t, taps=["layer1", "layer2"], task=KD),
    lambda s, t: methods.jacobian(s, t),
])  # fmt: skip
def test_methods_train_wrapped_nets(build):
    student, teacher = tapped(0, ("layer1", "layer2")), freeze(tapped(1, ("layer1", "layer2")))
    method, frozen = build(student, teacher), state(teacher)
    for stage in method.stages:
        before = state(student)
        step(method, stage, *batch(32, 4))
        later = {key for key in before if key.startswith(("net.layer3", "net.layer4", "net.fc"))}
        assert moved(student, before) == (set(before) - later if stage.loss.until else set(before))
    assert moved(teacher, frozen) == set()


def test_the_examples_of_the_readme_run(monkeypatch, tmp_path):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## As a library")[2].partition("## How it works")[0]
    code, distributed = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code.splitlines()) <= 25
    names: dict = {}
    exec(code, names)  # noqa: S102
    assert F.cross_entropy(names["student"](names["images"]), names["labels"]).isfinite()
    fresh = torchvision_net().state_dict()
    trained = names["student"].net.state_dict()
    assert all(trained[key].isfinite().all() for key in fresh)
    assert trained["bn1.num_batches_tracked"] > 0 and not names["teacher"].training
    assert names["teacher"].net.state_dict()["bn1.num_batches_tracked"] == 0, "the teacher is frozen"

    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)  # as torchrun sets them, for one process
    before = {key: value.clone() for key, value in trained.items()}
    try:
        exec(distributed, names)  # noqa: S102
    finally:
        torch.distributed.destroy_process_group()
    assert not torch.equal(names["student"].net.state_dict()["conv1.weight"], before["conv1.weight"])


# ---------------------------------------------------------------- what is refused, by kind, over all methods


def refused(words, call, *arguments, **options):
    with pytest.raises(ValueError, match=words) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, "one sentence"


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


def test_a_table_needs_a_frozen_teacher_of_its_classes():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    views = Views(images, 0)
    index = torch.tensor([[0, 0, 0], [1, 0, 0]])
    for thaw in (lambda net: net.train(), lambda net: net[6].train(), lambda net: net[8].requires_grad_(True)):
        net = freeze(small())
        table = methods.LogitTable(net, views, 10)
        thaw(net)
        refused("call freeze", table, index, views(index))
        refused("call freeze", methods.LogitTable, net, views, 10)
    refused("10 for each of 2|10 logits for each of 2", methods.LogitTable(freeze(small(classes=1)), views, 10), index, views(index))
    large = freeze(small())
    large[8].weight.mul_(1e6)
    refused("not finite in float16", methods.LogitTable(large, views, 10), index, views(index))


@pytest.mark.parametrize("name", EVERY)
def test_a_student_that_nothing_would_train_is_refused(name):
    refused("train nothing|no gradient of the student", every, name, freeze(small_tapped()), small_teacher())
    student = small_tapped()
    method = every(name, student, small_teacher())
    student.requires_grad_(False)  # later
    refused("was the student frozen|no gradient of the student|depends on none", method.stages[-1].loss, X, LABELS)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_student_that_is_frozen_up_to_its_taps_is_refused(name):
    student = small_tapped()
    student.net[:3].requires_grad_(False)
    refused("train nothing|no gradient of the student", every, name, student, small_teacher())
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
    found = gradients(expected, expected.stages[0], X, LABELS)
    torch.manual_seed(0)
    method = methods.fitnets(small_tapped(), teacher, hint="b", guided="b", regressor=expected.connectors[0])
    for gradient, plain in zip(found, gradients(method, method.stages[0], X, LABELS), strict=True):
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
    assert "conv" not in moved(twin, state(method)) and any("statistics" in key for key in moved(twin, state(method)))


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
    (lambda s, t: every("fsp", s, t, weights=[]), "one weight a pair: 0 for 1"),
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
    (lambda s, t: methods.fsp(s, t, pairs=[("a", "b", "b")]), "other than two"),
    (lambda s, t: methods.fsp(s, t, pairs=[("a", "b"), ("a", "b")]), "twice"),
    (lambda s, t: methods.attention_transfer(s, t, taps=["b", ("b", "b")]), "twice"),
    (lambda s, t: methods.activation_boundary(s, t, taps=["b", "b"], weights=[1.0, 1.0]), "twice"),
    *((lambda s, t, name=name: every(name, s, t, task=[]), "task has no terms") for name in ("fitnets", "fsp", "jacobian")),
    (lambda s, t: methods.plain(s, task=[]), "task has no terms"),
    (lambda s, t: methods.plain(s, task=[(-1.0, methods.hard_labels()[0][1])]), "a weight of stage 'train'"),
    (lambda s, t: methods.stage("p", s, t, [], list(s.parameters())), "no terms"),
    (lambda s, t: methods.plain(s, task=[lambda batch: batch.logits.mean()]), "other than terms"),
    (lambda s, t: methods.attention_transfer(s, t, taps=None), "a list"),
    (lambda s, t: methods.attention_transfer(s, t, taps=[3]), "other than two"),
    (lambda s, t: methods.fsp(s, t, pairs=("a", "b")), "other than two"),
    (lambda s, t: every("fsp", s, t, weights=0.1), "a list of one weight a pair: 0.1 for 1"),
    (lambda s, t: methods.kd("student", t), "a student must be a torch.nn.Module, not str"),
    (lambda s, t: losses.fsp(None, None), "fsp takes lists"),
    (lambda s, t: methods.stage("p", s, t, methods.hard_labels(), []), "train nothing"),
    (lambda s, t: methods.stage("p", s, t, methods.hard_labels(), [nn.Parameter(torch.zeros(1))]), "train nothing"),
    (lambda s, t: every("fitnets", s, None), "give it a teacher"),
    (lambda s, t: methods.kd(s, lambda x: x), "must be a torch.nn.Module"),
    (lambda s, t: methods.kd(s, None).stages[0].loss(X, LABELS), "has no teacher"),
    (lambda s, t: methods.plain(s, task=[(1.0, lambda batch: batch.logits)]).stages[0].loss(X, LABELS), "must be scalars"),
    (lambda s, t: methods.plain(s, task=[(1.0, lambda batch: batch.logits.detach().mean())]).stages[0].loss(X, LABELS), "depends on no"),
    (lambda s, t: methods.StageLoss(methods.kd(s, t), methods.kd(s, t).stages[0]), "none of the method's"),
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


# ---------------------------------------------------------------- connectors: device, type, rank, sides, names


def connectors(build, student, teacher):
    return [tuple(p.shape) for p in build(student, teacher).connectors.parameters()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_connectors_are_of_the_students_type(name, dtype):
    student, teacher = (Tapped(small(width, seed=width).to(dtype), SMALL_TAPS, X[:1].to(dtype)) for width in (4, 6))
    method = every(name, student, freeze(teacher))
    assert {p.dtype for p in method.parameters()} == {dtype}
    for stage in method.stages:
        stage.loss(X.to(dtype), LABELS).backward()


@pytest.mark.parametrize("name", OF_FEATURES)
def test_connectors_are_on_the_students_device_and_drawn_alike_everywhere(name):
    x = torch.empty(1, 3, 8, 8, device="meta")
    student, teacher = (Tapped(small(width).to("meta"), SMALL_TAPS, x) for width in (4, 6))
    method = every(name, student, freeze(teacher))
    assert {p.device.type for p in method.parameters()} == {"meta"}
    own = nn.Conv2d(4, 6, 1)
    assert methods.fitnets(student, teacher, hint="b", guided="b", regressor=own).connectors[0].weight.is_meta
    states = []
    for dtype in (torch.float32, torch.float64):
        student, teacher = (Tapped(small(width).to(dtype), SMALL_TAPS, X[:1].to(dtype)) for width in (4, 6))
        torch.manual_seed(3)
        states.append(every(name, student, freeze(teacher)).connectors.state_dict())
    assert all(torch.equal(states[0][key].double(), states[1][key].double()) for key in states[0])


def oblong(width, kernel=3, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, kernel, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.LazyLinear(10))
    net(torch.zeros(1, 3, 8, 12))
    return net


def test_maps_that_are_not_square():
    x, labels = torch.randn(4, 3, 8, 12), LABELS
    student = Tapped(oblong(4), {"one": "0", "two": "2"}, x[:1])
    teacher = freeze(Tapped(oblong(6, seed=1), {"one": "0", "two": "2"}, x[:1]))
    assert student.taps["one"] == (4, (8, 12)) and student.taps["two"].shape == (4, 4, 6)
    assert connectors(lambda s, t: methods.fitnets(s, t, hint="two", guided="one"), student, teacher) == [(6, 4, 5, 7), (6,)]
    narrow = freeze(Tapped(oblong(6, kernel=(3, 5), seed=1).requires_grad_(False), {"one": "0"}, x[:1]))
    assert narrow.taps["one"].shape == (6, 8, 10)
    assert connectors(lambda s, t: methods.fitnets(s, t, hint="one", guided="one"), student, narrow)[0] == (6, 4, 1, 3)
    refused(r"differ in size: student 4 x 8 x 12, teacher 6 x 8 x 10; resize", methods.attention_transfer, student, narrow, taps=["one"])
    for build in (
        lambda s, t: methods.fitnets(s, t, hint="two", guided="one", weight=1e-3),
        lambda s, t: methods.fsp(s, t, pairs=[("one", "two")]),
        lambda s, t: methods.attention_transfer(s, t, taps=["one", "two"]),
        lambda s, t: methods.activation_boundary(s, t, taps=["one"], weights=[0.1]),
    ):
        method = build(student, teacher)
        for stage in method.stages:
            method.zero_grad()
            stage.loss(x, labels).backward()
            assert all(p.grad is not None for p in stage.parameters)


def test_taps_of_other_names():
    """The same losses and gradients as with equal names, in every method."""
    mine = Tapped(small(), {f"my {tap}": name for tap, name in SMALL_TAPS.items()}, X[:1])
    teacher = small_teacher()
    pair = {tap: (f"my {tap}", tap) for tap in SMALL_TAPS}
    others = SMALL._replace(maps=[pair["b"]], pre=[pair["b"]], pairs=[(pair["a"], pair["b"])], guided="my b")
    for name in OF_FEATURES:
        found = []
        for taps, student in ((SMALL, small_tapped()), (others, mine)):
            torch.manual_seed(4)
            method = METHODS[name].build(student, teacher, taps)
            found.append(gradients(method, method.stages[0], X, LABELS))
        assert all(torch.equal(p, q) for p, q in zip(*found, strict=True)), name
    # one layer of the student may learn from two of the teacher, each through a connector of its own
    method = methods.activation_boundary(mine, freeze(small_tapped(6)), taps=[("my b", "b")], weights=[1.0])
    assert len(method.connectors) == 1
    refused("the teacher has no tap 'my b'", methods.attention_transfer, mine, teacher, taps=["my b"])


def test_attention_between_maps_of_different_size():
    student, teacher = small_tapped(), small_teacher()
    refused(
        'differ in size: student 4 x 4 x 4, teacher 6 x 8 x 8; resize="pool"',
        methods.attention_transfer,
        student,
        teacher,
        taps=[("b", "a")],
    )
    method = methods.attention_transfer(student, teacher, taps=[("b", "a")], resize="pool", beta=10.0)
    own, known = student.features(X)[1]["b"], teacher.features(X)[1]["a"]
    energy = known.square().sum(1).unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1)  # windows of 2 x 2
    distance = (F.normalize(own.square().sum(1).flatten(1)) - F.normalize(energy)).square().mean()
    expected = losses.cross_entropy(student(X), LABELS) + 10 * distance
    assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)


class TinyViT(nn.Module):
    """4 patches and a class token."""

    def __init__(self, width, depth, seed=0, classes=10):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.start = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.start.expand(len(x), -1, -1), patches], 1))[:, 0])


def transformers(**options):
    student = Tapped(TinyViT(8, 1), {"block": "encoder.layers.0", "logits": "head", "embed": "embed"}, X[:1])
    taps = {"block": "encoder.layers.1", "logits": "head", "embed": "embed"}
    return student, freeze(Tapped(TinyViT(12, 2, seed=1, **options), taps, X[:1]))


def test_tokens_of_transformers():
    student, teacher = transformers()
    assert student.taps["block"].shape == (5, 8) and teacher.taps["block"] == (12, 5) and student.taps["logits"].shape == (10,)
    method = methods.fitnets(student, teacher, hint="block", guided="block", weight=1.0)
    (regressor,) = method.connectors
    own, known = student.features(X)[1]["block"], teacher.features(X)[1]["block"]
    expected = 0.5 * (known - own @ regressor.weight.T - regressor.bias).square().sum((1, 2)).mean()
    assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)
    before = state(student)
    step(method, method.stages[0], X, LABELS)
    assert moved(student, before) == {key for key in before if "head" not in key}, "the pass ends at the tap"

    for skip in (0, 1):
        student, teacher = transformers()
        method = methods.attention_transfer(student, teacher, taps=["block"], skip_tokens=skip)
        own, known = (F.normalize(net.features(X)[1]["block"][:, skip:].square().sum(2)) for net in (student, teacher))
        expected = losses.cross_entropy(student(X), LABELS) + 1000 * (own - known).square().mean()
        assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-4)
    refused("one position", methods.attention_transfer, student, teacher, taps=["block"], skip_tokens=4)
    refused("skip_tokens", methods.attention_transfer, student, teacher, taps=["block"], skip_tokens=-1)
    refused("FSP is defined for maps", methods.fsp, student, teacher, pairs=[("block", "block")])
    refused("not for tokens", methods.activation_boundary, student, teacher, taps=["block"], weights=[1.0])
    refused("two maps or the tokens", methods.attention_transfer, student, teacher, taps=[("block", "embed")])
    refused("two maps or the tokens", methods.attention_transfer, student, teacher, taps=["logits"])
    refused("no regressor leads", methods.fitnets, student, teacher, guided="block", hint="embed")
    refused("defined for maps", methods.fitnets, student, teacher, guided="block", hint="block", variant="code")
    longer = freeze(Tapped(TinyViT(12, 1), {"block": "encoder.layers.0"}, torch.zeros(1, 3, 12, 8)))
    refused("differs in their number", methods.attention_transfer, student, longer, taps=["block"])
    refused("no regressor leads", methods.fitnets, student, longer, guided="block", hint="block")


def test_vectors_have_linear_connectors():
    student, teacher = transformers(classes=12)
    method = methods.fitnets(student, teacher, guided="logits", hint="logits", task=methods.hard_labels())
    assert [tuple(p.shape) for p in method.connectors.parameters()] == [(12, 10), (12,)]
    step(method, method.stages[0], X, LABELS)
    method = methods.activation_boundary(student, teacher, taps=["logits"], weights=[1.0], task=methods.hard_labels())
    ((layer, norm),) = method.connectors
    assert layer.weight.shape == (12, 10) and layer.bias is None and isinstance(norm, nn.BatchNorm1d)
    step(method, method.stages[0], X, LABELS)
    same = methods.fitnets(*transformers(), guided="logits", hint="logits")
    assert shapes(same) == [nn.Identity]


# ---------------------------------------------------------------- defaults


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
    student, teacher = resnets()
    found = [
        gradients(method, method.stages[0], *batch())
        for method in (methods.fsp(student, teacher, pairs=PAIRS), methods.fsp(student, teacher, pairs=PAIRS, weights=[0.01] * 3))
    ]
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


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
    for x, words in ((X.double(), "is float32 on cpu, what it is given is float64"), ("x", "a tensor")):
        refused(words, method.stages[0].loss, x, LABELS)
    refused("bring both to one type and device", lambda: every(name, small_tapped().double(), small_teacher()).stages[0].loss(X, LABELS))


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
    refused("none of the method's", methods.StageLoss, method, None)
    refused("none of the method's", methods.StageLoss, None, method.stages[0])
    refused("a student must be a torch.nn.Module", every, "fsp", None, small_teacher())


def test_a_scripted_teacher():
    teacher = freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 10))))
    assert methods.kd(small_tapped(), teacher).stages[0].loss(X, LABELS).isfinite()
    refused("scripted", Tapped, teacher, {"a": "1"}, X[:1])
    assert all(row.match == "" for row in Tapped.suggest(teacher, teacher, X[:1]))


def test_soft_targets_with_a_weight_of_the_labels_of_its_own():
    """CE + 16 KL at T = 4 without T^2, as Park et al. 2019 add them up: T^2 KL with the weight 1 beside the labels' 1."""
    student, teacher = resnets()
    x, labels = batch()
    method = methods.plain(student, teacher, task=soft_targets(4.0, 1.0, label_weight=1.0))
    logits, targets = student(x).double(), teacher(x).double()
    kl = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(targets / 4, 1), reduction="batchmean")
    assert method.stages[0].loss(x, labels).item() == pytest.approx((F.cross_entropy(logits, labels) + 16 * kl).item(), rel=1e-4)
    assert len(soft_targets(4.0, 0.0, label_weight=1.0)) == len(soft_targets(4.0, 3.0, label_weight=0.0)) == 1
    for wrong in ({"soft_weight": -1.0, "label_weight": 1.0}, {"label_weight": -1.0}, {"soft_weight": 2.0}):
        with pytest.raises(ValueError, match="weight must be a finite number"):
            soft_targets(4.0, **wrong)
