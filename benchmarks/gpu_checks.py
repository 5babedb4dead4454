"""Checks that need a GPU, as functions that raise AssertionError, so that they also run on machines without pytest.

for name, check in CHECKS.items():
    check()
"""

import itertools
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn

from kdcore import losses, methods, models
from kdcore.data.augment import Views
from kdcore.errors import Paused
from kdcore.models import MLP
from kdcore.training import Context, Stage, Step, fit

X = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
Y = torch.randint(5, (400,), generator=torch.Generator().manual_seed(1))


def close(found, expected, tolerance: float) -> None:
    """Raises AssertionError if numbers differ by more than ``tolerance``, relative to the expected ones."""
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= tolerance * abs(other), f"{one} is not {other} within {tolerance:g}"


def trained(device: str, *, after_step: bool = False, dropout: float = 0.0, context: Context | None = None) -> tuple[list[dict], nn.Module]:
    """History and net of a short run whose momentum changes, so that its graph is captured again in each epoch."""
    net = MLP((20, 16, 5), members=3, hidden_dropout=dropout).reset([1, 2, 3]).to(device)
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
    context = context or Context(device=device)
    history = fit(net, [stage], dict, context)
    assert context.eager is None, context.eager
    return history, net


def graph_trains_as_the_cpu(after_step: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    (slow, a), (fast, b) = trained("cpu", after_step=after_step), trained("cuda", after_step=after_step)
    for one, other in zip(slow, fast, strict=True):
        close(other["loss"], one["loss"], 1e-4)
    assert torch.allclose(a.weights[0], b.weights[0].cpu(), atol=1e-4)


def graph_trains_as_eager_steps(rule: type[torch.optim.Optimizer]) -> None:
    """Dropout draws the same numbers in both; weights, statistics and moments agree after 12 steps with two shapes."""
    found, x, y = [], X.cuda(), Y.cuda()
    for eager in (False, True):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 5)).cuda()
        loss = lambda i, net=net: losses.cross_entropy(net(x[i]), y[i])  # noqa: E731
        stage = Stage("s", epochs=1, indices=lambda g: None, loss=loss, schedule=lambda e: {}, clip=1.0, rule=rule)
        step = Step(net, stage, "cuda")
        step.eager = eager
        rows = torch.randint(400, (12, 50), generator=torch.Generator().manual_seed(6)).cuda()
        seen = []
        for number, row in enumerate(rows):
            if number % 4 == 0:
                torch.manual_seed(number)
                step.set({"lr": 0.01 * (1 + number)})
            seen.append(step(row[: 50 if number < 8 else 30]).item())
        assert step.eager == eager
        found.append((seen, {key: value.double().cpu() for key, value in (net.state_dict() | step.state()).items()}))
    (graph, one), (plain, other) = found
    close(graph, plain, 1e-5)
    for key in other:
        assert torch.allclose(one[key], other[key], atol=1e-5), key


def resume_is_exact() -> None:
    """A run with dropout and momentum that pauses in the middle ends with the same weights as one that does not."""
    history, whole = trained("cuda", dropout=0.3)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(device="cuda", checkpoint=Path(folder))
        context.report = lambda row: setattr(context, "deadline", 0 if row["done"] == 2 else context.deadline)
        with suppress(Paused):
            trained("cuda", dropout=0.3, context=context)
        again, resumed = trained("cuda", dropout=0.3, context=Context(device="cuda", checkpoint=Path(folder)))
    assert again == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def failed_recording_goes_on() -> None:
    """A loss that reads a value cannot be captured: its steps run eagerly, dropout included, and later graphs are captured again."""
    net = nn.Sequential(nn.Linear(20, 16), nn.Dropout(0.5), nn.Linear(16, 5)).cuda()
    x, y = X.cuda(), Y.cuda()

    def loss(index):
        found = losses.cross_entropy(net(x[index]), y[index])
        assert found.item() >= 0  # a host sync
        return found

    said: list[str] = []
    stage = Stage(
        "s",
        epochs=2,
        indices=lambda g: torch.randperm(400, generator=g).view(8, 50),
        loss=loss,
        schedule=lambda e: {"lr": 0.1},
        optimiser={"momentum": 0.9},
    )
    fit(net, [stage], dict, Context(device="cuda", say=said.append))
    assert len(said) == 1, said
    trained("cuda", dropout=0.3)


def no_host_sync_in_the_loop() -> None:
    """50 steps in CUDA's own sync debug mode."""
    net = MLP((20, 16, 5)).reset([1]).cuda()
    x, y = X.cuda(), Y.cuda()
    stage = Stage(
        "s",
        epochs=1,
        indices=lambda g: None,
        loss=lambda i: losses.cross_entropy(net(x[i]), y[i]),
        schedule=lambda e: {"lr": 0.1},
        optimiser={"momentum": 0.9},
    )
    step = Step(net, stage, "cuda")
    step.set({"lr": 0.1})
    run_without_sync(step, torch.randint(400, (50, 50), device="cuda"))


def run_without_sync(step: Step, rows: torch.Tensor) -> None:
    """The loop raises on a sync; its losses must be finite as well."""
    step(rows[0])
    assert not step.eager, "the step was not captured"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in rows:
            step(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(step(rows[0])).all().item()


def no_host_sync_with_a_convolutional_net(tabled: bool, precision: str) -> None:
    """With augmentation in the step, and the teacher as a table or live."""
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    views = Views(images.cuda(), 1, flip=True, memory_format=torch.channels_last)
    labels = torch.randint(10, (64,), device="cuda")
    student, teacher = (models.create("wrn_10_1").cuda().to(memory_format=torch.channels_last) for _ in range(2))
    method = methods.kd(student, methods.freeze(teacher))
    table = methods.LogitTable(teacher, views, 10)
    rows = views.draw(torch.randint(64, (50, 32)), torch.Generator().manual_seed(3)).cuda()
    try:
        table(rows[0], views(rows[0]))
    except ValueError as error:
        assert "filled before it is read" in str(error)
    else:
        raise AssertionError("a table on a GPU was read before it was filled")
    table.fill()
    assert table.logits.isfinite().all()

    def loss(index):
        x = views(index)
        knowledge = methods.Knowledge(teacher, x, table(index, x) if tabled else None)
        return method.stages[0].loss(x, labels[index[:, 0]], knowledge)

    stage = Stage("s", epochs=1, indices=lambda g: None, loss=loss, schedule=lambda e: {"lr": 0.01}, optimiser={"momentum": 0.9})
    step = Step(method.train(), stage, "cuda", precision)
    step.set({"lr": 0.01})
    run_without_sync(step, rows)


CHECKS = {
    **{f"the graph trains as the CPU does, after_step={each}": partial(graph_trains_as_the_cpu, each) for each in (False, True)},
    **{
        f"the graph trains as eager steps do, {rule.__name__}": partial(graph_trains_as_eager_steps, rule)
        for rule in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop)
    },
    "a resumed run is exact": resume_is_exact,
    "no host sync in the loop": no_host_sync_in_the_loop,
    **{
        f"no host sync with a convolutional net, tabled={tabled}, {precision}": partial(
            no_host_sync_with_a_convolutional_net, tabled, precision
        )
        for tabled, precision in itertools.product((True, False), ("float32", "bfloat16"))
    },
    "a recording that fails goes on eagerly": failed_recording_goes_on,  # last, because it breaks off a capture on purpose
}
