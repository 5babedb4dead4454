"""A frozen teacher: what several students share of it, and the table of its logits."""

import numpy
import pytest
import torch
from refusals import refused
from registry import GROUPS, PAIRS, PRE, WEIGHTS, equal, small
from steps import batch
from torch import nn

from kdcore import losses, methods
from kdcore.data.augment import Views
from kdcore.methods import Knowledge, LogitTable, freeze, soft_targets
from kdcore.models import create

IMAGES = torch.randint(4, (3, 1, 5, 5), generator=torch.Generator().manual_seed(0)).float()


class Teacher(torch.nn.Module):
    """Linear in the pixels, with whole numbers: its logits are exact in float16, and 257 and above are not in bfloat16."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randint(50, (4, 25), generator=torch.Generator().manual_seed(1)).float())
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return torch.nn.functional.linear(x.flatten(1), self.weight)


def tabled() -> tuple[Teacher, Views, LogitTable]:
    teacher, views = freeze(Teacher()), Views(IMAGES, 1, flip=True)
    return teacher, views, LogitTable(teacher, views, 4)


def every_view() -> torch.Tensor:
    """3 images x 3 x 3 windows x 2, in random order."""
    index = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3), torch.arange(2))
    return index[torch.randperm(54, generator=torch.Generator().manual_seed(2))]


def by_hand(index: torch.Tensor) -> torch.Tensor:
    """The logits of views made with NumPy, one after the other."""
    weight, logits = Teacher().weight.detach().numpy(), []
    for image, dy, dx, flip in index.tolist():
        pixels = IMAGES[image, 0].numpy()
        window = numpy.pad(pixels[:, ::-1] if flip else pixels, 1)[dy : dy + 5, dx : dx + 5]
        logits.append(weight @ window.ravel())
    return torch.from_numpy(numpy.stack(logits))


def test_table_never_mixes_views():
    _, views, table = tabled()
    index = every_view()
    assert len(by_hand(index).unique(dim=0)) == 54, "no two views may look alike here"
    for rows in index.split(5):
        assert torch.equal(table(rows, views(rows)), by_hand(rows))
    backwards = index.flip(0)  # all known by now
    assert torch.equal(table(backwards, views(backwards)), by_hand(backwards))


def test_table_filled_as_it_is_used_is_the_table_filled_ahead():
    (_, views, used), (_, _, ahead) = tabled(), tabled()
    for rows in every_view().split(7):
        used(rows, views(rows))
    progress = []
    ahead.fill(lambda done, total: progress.append((done, total)), batch_size=20)
    assert progress == [(20, 54), (40, 54), (54, 54)]
    assert torch.equal(used.logits, ahead.logits) and ahead.logits.isfinite().all()
    assert ahead.logits.dtype == torch.float16 and ahead.logits.numel() == 3 * 18 * 4


def test_teacher_is_asked_once_a_view():
    teacher, views, table = tabled()
    index = every_view()
    for rows in (index[:10], index[5:15], index[:15].flip(0)):
        table(rows, views(rows))
    assert teacher.seen == 15
    table.fill()
    assert teacher.seen == 54
    table(index, views(index))
    assert teacher.seen == 54


def test_table_is_filled_in_float32_whatever_the_step_trains_in():
    _, views, table = tabled()
    index = every_view()
    assert by_hand(index).max() > 256
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(table(index, views(index)), by_hand(index))


def test_table_rounds_to_float16_and_carries_no_gradient():
    teacher, views, table = tabled()
    with torch.no_grad():
        teacher.weight.add_(1 / 3)
    index = every_view()
    logits = Knowledge(None, None, table(index, views(index))).logits
    assert not logits.requires_grad
    torch.testing.assert_close(logits, teacher(views(index)), rtol=2**-11, atol=0)


def test_table_refuses_what_it_cannot_answer():
    teacher, views, table = tabled()
    with pytest.raises(ValueError, match="an index of 4 columns, not 3"):
        table(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 1, 5, 5))
    with pytest.raises(ValueError, match="eval mode"):
        LogitTable(teacher.train(), views, 4)


@pytest.mark.parametrize("way", ["asked in a step", "filled"])
def test_autocast_round_a_step_does_not_reach_the_table(way):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    teacher = freeze(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    views = Views(images, pad=1)
    table = LogitTable(teacher, views, 5)
    index = torch.tensor([[k, k % 3, (k + 1) % 3] for k in range(6)])
    x = views(index)
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.functional.linear(x.flatten(1), teacher[1].weight).dtype == torch.bfloat16, "autocast is on"
        if way == "filled":
            table.fill()
        result = table(index, x)
    weight, bias = (part.double() for part in teacher[1].parameters())
    exact = x.double().flatten(1) @ weight.T + bias
    # float16 keeps 11 bits, bfloat16 8
    assert result.dtype == torch.float32
    assert ((result.double() - exact).abs() <= 2**-11 * exact.abs() + 1e-5).all()


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
    teacher = Counted(equal()[1])
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
    teacher = Counted(equal()[1])
    stages = [methods.jacobian(create("resnet_8").reset(seed), teacher).stages[0] for seed in (1, 2)]
    knowledge = Knowledge(teacher, x, differentiable=True)
    shared = [stage.loss(x, labels, knowledge) for stage in stages]
    sum(shared).backward()
    assert teacher.calls == 1 and x.grad is None
    assert [loss.item() for loss in shared] == [pytest.approx(stage.loss(x, labels).item(), rel=1e-9) for stage in stages]
    with pytest.raises(ValueError, match="has no graph back to inputs"):
        stages[0].loss(x, labels, Knowledge(teacher, x))


def test_the_teacher_rests_where_no_term_asks_for_it():
    teacher = Counted(equal()[1])
    student = equal()[0]
    idle = [methods.plain(student, teacher), methods.kd(student, teacher, soft_weight=0.0)]
    idle += [methods.fsp(student, teacher, pairs=PAIRS), methods.activation_boundary(student, teacher, taps=PRE, weights=WEIGHTS)]
    for method in idle:
        method.stages[-1].loss(*batch())
    assert teacher.calls == 0


@pytest.mark.usefixtures("float64")
def test_given_logits_are_used():
    x, labels = batch()
    student, teacher = equal()
    teacher, table = Counted(teacher), torch.randn(8, 10, generator=torch.Generator().manual_seed(5))
    expected = 0.1 * losses.cross_entropy(student(x), labels) + 0.9 * losses.kd(student(x), table, 4.0)
    stage = methods.kd(student, teacher).stages[0]
    assert stage.loss(x, labels, Knowledge(teacher, x, table)).item() == pytest.approx(expected.item(), rel=1e-9)
    assert teacher.calls == 0
    # features beside a table: one forward pass, the logits still the table's
    stage = methods.attention_transfer(student, teacher, taps=GROUPS, beta=0.0, task=soft_targets(4.0, 0.9)).stages[0]
    assert stage.loss(x, labels, Knowledge(teacher, x, table)).item() == pytest.approx(expected.item(), rel=1e-9)
    assert teacher.calls == 1


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
    refused("this table takes 10 for each of 2", methods.LogitTable(freeze(small(classes=1)), views, 10), index, views(index))
    large = freeze(small())
    large[8].weight.mul_(1e6)
    refused("not finite in float16", methods.LogitTable(large, views, 10), index, views(index))
