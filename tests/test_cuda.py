"""What only a GPU can show: the captured step trains as the eager one, without a host sync."""

import pytest
import torch

from kdcore import losses, methods, models
from kdcore.data.augment import Views
from kdcore.models import MLP
from kdcore.training import Context, Stage, Step, fit

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

X = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
Y = torch.randint(5, (400,), generator=torch.Generator().manual_seed(1))


def train(device: str, after_step: bool):
    net = MLP((20, 16, 5), members=3).reset([1, 2, 3]).to(device)
    x, y = X.to(device), Y.to(device)
    stage = Stage(
        name="train",
        epochs=4,
        indices=lambda generator: torch.randperm(400, generator=generator).view(8, 50),
        loss=lambda index: losses.cross_entropy(net(x[index]), y[index], reduction="none").mean(-1),
        schedule=lambda epoch: {"lr": 0.1 / (1 + epoch), "momentum": 0.5 + 0.1 * epoch},
        optimiser={"momentum": 0.5},
        after_step=(lambda: net.limit_norms(1.0)) if after_step else None,
    )
    return fit(net, [stage], dict, Context(device=device)), net


@pytest.mark.parametrize("after_step", [False, True])
def test_the_graph_trains_as_the_cpu_does(after_step):
    torch.backends.cuda.matmul.allow_tf32 = False
    (slow, a), (fast, b) = train("cpu", after_step), train("cuda", after_step)
    for one, other in zip(slow, fast, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert torch.allclose(a.weights[0], b.weights[0].cpu(), atol=1e-4)


def test_no_host_sync_in_the_loop():
    """B11: 50 steps under the driver's own watch."""
    net = MLP((20, 16, 5)).reset([1]).cuda()
    x, y = X.cuda(), Y.cuda()
    stage = Stage("s", 1, lambda g: None, lambda i: losses.cross_entropy(net(x[i]), y[i]), lambda e: {"lr": 0.1}, {"momentum": 0.9})
    step = Step(net, stage, "cuda")
    step.set({"lr": 0.1})
    assert run_without_sync(step, torch.randint(400, (50, 50), device="cuda"))


def run_without_sync(step: Step, rows: torch.Tensor) -> bool:
    """The loop raises on a sync; whether what it trained is sound, too."""
    step(rows[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in rows:
            step(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return torch.isfinite(step(rows[0])).all().item()


@pytest.mark.parametrize("tabled", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_host_sync_with_a_convolutional_net(tabled, precision):
    """B11, with augmentation and the teacher, as a table and live, in the step."""
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    views = Views(images.cuda(), 1, flip=True, memory_format=torch.channels_last)
    labels = torch.randint(10, (64,), device="cuda")
    student, teacher = (models.create("wrn_10_1").cuda().to(memory_format=torch.channels_last) for _ in range(2))
    method = methods.kd(student, methods.freeze(teacher))
    table = methods.LogitTable(teacher, views, 10)
    rows = views.draw(torch.randint(64, (50, 32)), torch.Generator().manual_seed(3)).cuda()
    with pytest.raises(ValueError, match="filled before it is read"):
        table(rows[0], views(rows[0]))
    table.fill()
    assert table.logits.isfinite().all()

    def loss(index):
        x = views(index)
        knowledge = methods.Knowledge(teacher, x, table(index, x) if tabled else None)
        return method.phases[0].loss(x, labels[index[:, 0]], knowledge)

    stage = Stage("s", 1, lambda g: None, loss, lambda e: {"lr": 0.01}, {"momentum": 0.9})
    step = Step(method.train(), stage, "cuda", precision)
    step.set({"lr": 0.01})
    assert run_without_sync(step, rows)
