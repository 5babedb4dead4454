"""fit(): the update rule by hand, exact resume, evaluation mode, failures, forecasts."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import resumed
from torch import nn

from kdcore import models
from kdcore.errors import Paused, TrialFailed
from kdcore.models import MLP
from kdcore.training import Context, Run, Stage, fit, forecast, loop, seed_of

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def batches(generator):
    return torch.randperm(len(X), generator=generator).view(4, 10)


def forgetting(*epochs):
    """A ``before_epoch`` that gives these epochs a fresh optimiser."""
    return lambda step, epoch: step.forget() if epoch in epochs else None


def problem(epochs=4, rate=0.1, dropout=0.5, stages=1, **stage):
    """A small net with dropout, its stages and its evaluation."""
    net = MLP((6, 8, 2), hidden_dropout=dropout).reset([1])
    made = [
        Stage(
            name=f"part {i}",
            epochs=epochs,
            indices=batches,
            loss=lambda index: nn.functional.cross_entropy(net(X[index]), Y[index]),
            schedule=lambda epoch: {"lr": rate / (1 + epoch)},
            optimiser={"momentum": 0.9},
            **stage,
        )
        for i in range(stages)
    ]
    return net, made, lambda: {"test_error_percent": 100 * (net(X).argmax(-1) != Y).double().mean()}


def test_sgd_with_momentum_by_hand():
    """One weight, loss = w x: v <- p v + x, w <- w - lr v."""
    w = nn.Module()
    w.value = nn.Parameter(torch.tensor([1.0]))
    stage = Stage(
        "one",
        epochs=2,
        indices=lambda g: torch.tensor([[2], [3]]),
        loss=lambda i: w.value * i,
        schedule=lambda e: {"lr": (0.1, 0.01)[e]},
        optimiser={"momentum": 0.5},
    )
    history = fit(w, [stage], dict)
    # gradients 2, 3, 2, 3; v = 2, 4, 4, 5; w = 1 - .2 - .4 - .04 - .05
    assert w.value.item() == pytest.approx(0.31)
    # losses before each step: 2 * 1, 3 * .8 | 2 * .4, 3 * .36
    assert [row["loss"] for row in history] == [[pytest.approx(2.2)], [pytest.approx(0.94)]]
    assert [row["lr"] for row in history] == [0.1, 0.01]


def test_momentum_moves_with_the_schedule():
    w = nn.Module()
    w.value = nn.Parameter(torch.tensor([0.0]))
    stage = Stage(
        "one",
        epochs=2,
        indices=lambda g: torch.tensor([[1]]),
        loss=lambda i: w.value * i,
        schedule=lambda e: {"lr": 1.0, "momentum": (0.5, 0.25)[e]},
        optimiser={"momentum": 0.5},
    )
    fit(w, [stage], dict)
    assert w.value.item() == pytest.approx(-1 - 1.25)


def test_momentum_forgotten_by_hand():
    """One step an epoch, gradient 1, momentum 0.5: v = 1, 1.5 | 1, 1.5 where the third epoch begins anew."""
    w = nn.Module()
    w.value = nn.Parameter(torch.tensor([0.0]))
    stage = Stage(
        "one",
        epochs=4,
        indices=lambda g: torch.tensor([[1]]),
        loss=lambda i: w.value * i,
        schedule=lambda e: {"lr": 1.0},
        optimiser={"momentum": 0.5},
        before_epoch=forgetting(0, 2),
    )
    fit(w, [stage], dict)
    assert w.value.item() == pytest.approx(-5.0)


@pytest.mark.parametrize("pause_after", [1, 2, 3])
def test_momentum_is_forgotten_once_over_a_pause(tmp_path, pause_after):
    def run(context):
        net, stages, evaluate = problem(before_epoch=forgetting(2))
        return fit(net, stages, evaluate, context), net

    history, whole = run(Context())
    again, net = resumed(run, tmp_path, pause_after)
    assert again == history
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))
    kept, stages, evaluate = problem()
    assert fit(kept, stages, evaluate)[-1]["loss"] != history[-1]["loss"]


def test_what_is_measured_and_the_last_epoch():
    net, stages, evaluate = problem(epochs=7, measured=[2, 5])
    assert ["test_error_percent" in row for row in fit(net, stages, evaluate)] == [False, False, True, False, False, True, True]
    net, stages, evaluate = problem(epochs=7, measured=[2, 5], stop=lambda history: len(history) == 2)
    assert ["test_error_percent" in row for row in fit(net, stages, evaluate)] == [True, True], "what may end a stage must be known"
    net, stages, evaluate = problem(epochs=5, measured=(0, 2))
    assert ["test_error_percent" in row for row in fit(net, stages, evaluate)] == [True, False, True, False, True]


def test_fused_training_equals_a_plain_float64_loop():
    net, stages, evaluate = problem(epochs=3, dropout=0.0)
    w = [p.detach().double().numpy().copy() for p in net.parameters()]  # [1, 8, 6], [1, 2, 8], [1, 8], [1, 2]
    w1, w2, b1, b2 = w[0][0], w[1][0], w[2][0], w[3][0]
    v = [np.zeros_like(a) for a in (w1, b1, w2, b2)]
    x, y = X.double().numpy(), Y.numpy()
    for epoch in range(3):
        order = batches(torch.Generator().manual_seed(seed_of(0, "order", 0, epoch))).numpy()
        for index in order:
            h = x[index] @ w1.T + b1
            a = np.maximum(h, 0)
            z = a @ w2.T + b2
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            dz = (p - np.eye(2)[y[index]]) / len(index)
            dh = (dz @ w2) * (h > 0)
            gradients = [dh.T @ x[index], dh.sum(0), dz.T @ a, dz.sum(0)]
            for value, moment, gradient in zip((w1, b1, w2, b2), v, gradients, strict=True):
                moment *= 0.9
                moment += gradient
                value -= 0.1 / (1 + epoch) * moment
    fit(net, stages, evaluate)
    assert np.allclose(net.weights[0][0].detach().numpy(), w1, atol=1e-5)
    assert np.allclose(net.biases[1][0].detach().numpy(), b2, atol=1e-5)


def test_a_stage_of_steps_counts_steps():
    """7 steps of 4 an epoch: the schedule sees every step, the second epoch is cut short, and its loss is its own mean."""
    w, seen = nn.Module(), []
    w.value = nn.Parameter(torch.tensor([0.0]))
    rows = torch.arange(4).unsqueeze(1)
    stage = Stage(
        "s",
        epochs=None,
        indices=lambda g: rows,
        loss=lambda i: w.value * i,
        schedule=lambda step: (seen.append(step), {"lr": 1.0 if step < 5 else 0.1})[1],
        steps=7,
    )
    history = fit(w, [stage], dict)
    assert seen == list(range(7))
    # gradients 0 1 2 3 | 0 1 2, the last two at a rate of 0.1
    assert w.value.item() == pytest.approx(-6 - 0.3)
    # losses w i before each step: 0, 0, -1 2, -3 3 | 0, -6, -6.1 2
    assert [row["loss"] for row in history] == [[pytest.approx(-11 / 4)], [pytest.approx(-18.2 / 3)]]
    assert [row["lr"] for row in history] == [1.0, 0.1]
    with pytest.raises(ValueError, match="either epochs or steps"):
        fit(w, [Stage("s", loss=lambda i: w.value * i, indices=lambda g: rows, schedule=lambda e: {"lr": 1.0})])
    with pytest.raises(ValueError, match="would train nothing"):
        fit(w, [Stage("s", loss=lambda i: w.value * i, indices=lambda g: rows, schedule=lambda e: {"lr": 1.0}, steps=0)])
    with pytest.raises(ValueError, match="has no schedule"):
        fit(w, [Stage("s", loss=lambda i: w.value * i, indices=lambda g: rows, epochs=1)])


def test_a_knob_moves_the_loss():
    w = nn.Module()
    w.value = nn.Parameter(torch.tensor(0.0))
    weight = torch.zeros(())
    stage = Stage(
        "s",
        epochs=3,
        indices=lambda g: torch.zeros(1, 1),
        loss=lambda i: w.value * weight,
        schedule=lambda e: {"lr": 1.0, "weight": 10.0**e},
        knobs={"weight": weight},
    )
    fit(w, [stage], dict)
    assert w.value.item() == pytest.approx(-111)


def test_clipping_is_of_the_norm_of_all_gradients_together():
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
    stage = Stage(
        "s", epochs=1, indices=lambda g: torch.zeros(1, 1), loss=lambda i: 3 * net.a + 4 * net.b, schedule=lambda e: {"lr": 1.0}, clip=1.0
    )
    fit(net, [stage], dict)
    assert (net.a.item(), net.b.item()) == (pytest.approx(-0.6, abs=1e-5), pytest.approx(-0.8, abs=1e-5))


def test_bfloat16_is_for_the_products_alone():
    net, (stage,), evaluate = problem(epochs=1, dropout=0.0)
    seen = []
    stage.loss = lambda index: (seen.append(z := net(X[index])), nn.functional.cross_entropy(z.float(), Y[index]))[1]
    (half,) = fit(net, [stage], lambda: seen.append(net(X)) or {}, Context(precision="bfloat16"))
    assert [z.dtype for z in seen] == [torch.bfloat16] * 4 + [torch.float32], "evaluation is float32"
    assert all(p.dtype == torch.float32 for p in net.parameters())
    net, (stage,), evaluate = problem(epochs=1, dropout=0.0)
    (full,) = fit(net, [stage], dict)
    assert half["loss"] != full["loss"] and half["loss"] == pytest.approx(full["loss"], rel=0.01)  # 8 bits of mantissa


def test_resume_inside_a_stage_of_steps_is_exact(tmp_path):
    def run(context):
        net, (stage,), evaluate = problem()
        stage.epochs, stage.steps, stage.schedule = None, 14, lambda step: {"lr": 0.1 / (1 + step)}
        history = fit(net, [stage], evaluate, context)
        return history, net

    whole, a = run(Context())
    with pytest.raises(Paused):
        run(Context(checkpoint=tmp_path, deadline=0))
    resumed, b = run(Context(checkpoint=tmp_path))
    assert resumed == whole and len(whole) == 4
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_dropout_is_on_in_every_epoch_and_off_in_evaluation():
    net, stages, _ = problem(epochs=3)
    flags = []
    plain = stages[0].loss
    stages[0].loss = lambda index: (flags.append(net.training), plain(index))[1]
    fit(net, stages, lambda: flags.append(net.training) or {})
    assert flags == ([True] * 4 + [False]) * 3


@pytest.mark.parametrize("stages, pause_after", [(1, 1), (1, 3), (2, 1), (2, 3), (2, 4), (2, 5)])  # 4 epochs a stage
def test_resume_is_exact(tmp_path, monkeypatch, stages, pause_after):
    net, made, evaluate = problem(stages=stages)
    whole = fit(net, made, evaluate)
    final = [p.detach().clone() for p in net.parameters()]

    class Kill(Exception):
        pass

    def killed(row):
        if row["done"] == pause_after + 1:
            raise Kill

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    net, made, evaluate = problem(stages=stages)
    with pytest.raises(Kill):
        fit(net, made, evaluate, Context(checkpoint=tmp_path, report=killed))
    net, made, evaluate = problem(stages=stages)
    torch.manual_seed(999)  # what is left in the generators does not matter
    again = fit(net, made, evaluate, Context(checkpoint=tmp_path))
    assert json.dumps(again) == json.dumps(whole)
    assert all(torch.equal(a, b) for a, b in zip(final, net.parameters(), strict=True))


def test_resume_is_exact_for_a_channels_last_net(tmp_path):
    """The fused update takes momenta in the memory order of the weights, and says nothing where it is another."""
    images, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2

    def run(context):
        net = models.create("resnet_8", 2).to(memory_format=torch.channels_last)
        stage = Stage(
            "train",
            epochs=3,
            indices=lambda generator: torch.randperm(16, generator=generator).view(2, 8),
            loss=lambda index: nn.functional.cross_entropy(net(images[index].contiguous(memory_format=torch.channels_last)), labels[index]),
            schedule=lambda epoch: {"lr": 0.1},
            optimiser={"momentum": 0.9},
        )
        return fit(net, [stage], dict, context), net.state_dict()

    history, whole = run(Context())
    with pytest.raises(Paused):
        run(Context(checkpoint=tmp_path, deadline=0))
    again, resumed = run(Context(checkpoint=tmp_path))
    assert again == history
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_checkpoint_at_the_end_trains_nothing_more(tmp_path):
    net, made, evaluate = problem()
    whole = fit(net, made, evaluate, Context(checkpoint=tmp_path))
    fresh, made, evaluate = problem()
    made[0].loss = lambda index: pytest.fail("trained again")
    assert fit(fresh, made, evaluate, Context(checkpoint=tmp_path)) == whole
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))


def test_a_deadline_ends_a_run_after_an_epoch_and_what_is_left_is_trained_later(tmp_path):
    rows = []

    def run(context):
        net, made, evaluate = problem()
        return fit(net, made, evaluate, context)

    with pytest.raises(Paused):
        run(Context(checkpoint=tmp_path, deadline=0, report=rows.append))
    assert [row["done"] for row in rows] == [1], "however short the time"
    assert len(run(Context(checkpoint=tmp_path, report=rows.append))) == 4
    assert [row["done"] for row in rows] == [1, 2, 3, 4], "no epoch twice"


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "bit", "another cohort", "another network"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_run_starts_over(tmp_path, damage):
    folder, words = tmp_path / "cohort", []
    net, made, evaluate = problem()
    whole = fit(net, made, evaluate)
    net, made, evaluate = problem()
    with pytest.raises(Paused):
        fit(net, made, evaluate, Context(checkpoint=folder, deadline=0))
    path = folder / "state.safetensors"
    content = path.read_bytes()
    if damage == "another cohort":
        path = (tmp_path / "other").joinpath(path.name)
        path.parent.mkdir()
    changed = {
        "truncate": content[:-40],
        "garbage": b"not a checkpoint",
        "empty": b"",
        "bit": content[:-7] + bytes([content[-7] ^ 8]) + content[-6:],
    }
    path.write_bytes(changed.get(damage, content))
    net, made, evaluate = problem()
    if damage == "another network":  # of which the first parameters fit
        net = MLP((6, 8, 3)).reset([1])
        made[0].loss, made[0].epochs = (lambda index: nn.functional.cross_entropy(net(X[index]), Y[index])), 1
        fresh = [p.detach().clone() for p in MLP((6, 8, 3)).reset([1]).parameters()]
        made[0].before_epoch = lambda *_: [torch.testing.assert_close(p, q) for p, q in zip(net.parameters(), fresh, strict=True)]
        fit(net, made, dict, Context(checkpoint=path.parent, say=words.append))
    else:
        assert fit(net, made, evaluate, Context(checkpoint=path.parent, say=words.append)) == whole
    (said,) = words
    assert str(path) in said and "was moved to state.safetensors.damaged: the trial starts over" in said
    assert path.with_name("state.safetensors.damaged").exists()


def test_parts_of_a_trial_are_kept_and_only_missing_ones_made(tmp_path):
    made, rows, words = [], [], []

    def run(context):
        return [context.keep(f"part-{i}", lambda i=i: (made.append(i), {"part": [i, i / 3]})[1], lambda part: part) for i in range(3)]

    folder = tmp_path / "cohort"
    with pytest.raises(Paused):
        run(Context(checkpoint=folder, deadline=0, report=rows.append))
    assert made == [0] and rows == [{"part": [0, 0.0]}], "it goes on by a part however short the time"
    whole = run(Context(checkpoint=folder, report=rows.append))
    assert whole == [{"part": [i, i / 3]} for i in range(3)] and made == [0, 1, 2] and len(rows) == 3
    path = folder / "part-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run(Context(checkpoint=folder, say=words.append)) == whole and made == [0, 1, 2, 1]
    assert "part-1.safetensors is damaged" in words[0] and path.with_name("part-1.safetensors.damaged").read_bytes() == content
    os.replace(path, folder / "part-0.safetensors")
    assert run(Context(checkpoint=folder, say=words.append)) == whole and len(words) == 2, "the file of another part is refused"
    assert run(Context()) == whole


def test_seconds_and_cpu_seconds_are_carried_over_a_pause(tmp_path):
    def run(context):
        net, made, evaluate = problem()
        return fit(net, made, evaluate, context)

    first = Context(checkpoint=tmp_path, deadline=0)
    first.started -= 1000
    first.cpu_started -= 300
    with pytest.raises(Paused):
        run(first)
    time.sleep(0.3)  # is no time of the processor
    second = Context(checkpoint=tmp_path)
    before = second.cpu_seconds
    run(second)
    assert 1000 < second.seconds < 1100 and 300 <= second.cpu_seconds < 400 and before < 100
    kept = Context(checkpoint=tmp_path / "kept")
    kept.started -= 500
    kept.keep("a", list)
    again = Context(checkpoint=tmp_path / "kept")
    again.keep("a", list)
    again.keep("b", list)
    assert 500 < again.seconds < 600


def test_nan_loss_ends_the_trial():
    net, made, evaluate = problem(rate=1e30)
    with pytest.raises(TrialFailed, match="not finite in epoch") as caught:
        fit(net, made, evaluate)
    assert caught.value.status == "nan"


def test_only_the_stages_parameters_move():
    net = MLP((6, 8, 2)).reset([1])
    head = [net.weights[1], net.biases[1]]
    _, made, _ = problem()
    made[0].loss = lambda index: nn.functional.cross_entropy(net(X[index]), Y[index])
    made[0].parameters = head
    before = [p.detach().clone() for p in net.parameters()]
    fit(net, made, dict)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [any(p is h for h in head) for p in net.parameters()]


def test_a_stack_trains_like_its_members_alone():
    def run(seeds, members):
        net = MLP((6, 8, 2), members=members).reset(seeds)

        def loss(index):
            logits = net(X[index]).flatten(0, -2)
            return nn.functional.cross_entropy(logits, Y[index].repeat(members or 1), reduction="none").view(-1, 10).mean(-1)

        history = fit(
            net, [Stage("s", epochs=3, indices=batches, loss=loss, schedule=lambda e: {"lr": 0.1}, optimiser={"momentum": 0.9})], dict
        )
        return net, history

    stack, together = run([1, 2], 2)
    for k, seed in enumerate([1, 2]):
        alone, single = run([seed], None)
        assert torch.allclose(stack.weights[0][k], alone.weights[0][0], atol=1e-6)
        assert together[-1]["loss"][k] == pytest.approx(single[-1]["loss"][0], rel=1e-5)


def test_seeds_depend_on_every_part():
    seeds = {seed_of(*parts) for parts in [(0,), (1,), (0, "a"), (0, "b"), ("0", "a"), (0, "a", 0)]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_forecast_is_of_all_epochs_and_leaves_nothing(tmp_path, monkeypatch):
    """On a clock that a step moves by 2 s and a measurement by 5: 10 epochs of 4 steps and 10 measurements, or 3 of them."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def of(**options):
        net, made, evaluate = problem(epochs=10, **options)
        plain = made[0].loss
        made[0].loss = lambda index: (now.__setitem__(0, now[0] + 2), plain(index))[1]
        run = Run(None, net, made, lambda: now.__setitem__(0, now[0] + 5) or evaluate())
        return forecast(run, Context(checkpoint=tmp_path))

    assert of() == pytest.approx(10 * 4 * 2 + 10 * 5) and of(measured=(2, 5)) == pytest.approx(10 * 4 * 2 + 3 * 5)
    assert not list(tmp_path.iterdir())
    assert forecast(Run(None, estimate=lambda: 12.5), Context()) == 12.5


def one(epochs=2, **options):
    """Two weights with gradients 2 and 3, in turn; the rate is 0.1, then 0.01."""
    net = nn.Module()
    net.first, net.second = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    stage = Stage(
        name="one",
        epochs=epochs,
        indices=lambda generator: torch.tensor([[2], [3]]),
        loss=lambda index: (net.first + net.second) * index,
        schedule=lambda epoch: {"lr": (0.1, 0.01, 0.001)[epoch]},
        **options,
    )
    return net, stage


def test_rmsprop_and_factors_of_the_rate_by_hand():
    net, stage = one(rule=torch.optim.RMSprop, optimiser={"alpha": 0.9, "eps": 1e-5}, rate_factors=[1.0, 0.05])
    fit(net, [stage], dict)
    square, moved = 0.0, 0.0
    for rate, gradient in ((0.1, 2.0), (0.1, 3.0), (0.01, 2.0), (0.01, 3.0)):
        square = 0.9 * square + 0.1 * gradient**2
        moved += rate * gradient / (square**0.5 + 1e-5)
    assert net.first.item() == pytest.approx(1 - moved, rel=1e-5)
    assert net.second.item() == pytest.approx(1 - 0.05 * moved, rel=1e-5)


def test_a_stage_ends_when_it_is_told_to():
    net, stage = one(3, watch=lambda: {"seen": 2 if net.first < 0.5 else 1}, stop=lambda history: history[-1]["seen"] >= 2)
    first = replace(stage, name="a", indices=lambda generator: torch.tensor([[2]]), schedule=lambda epoch: {"lr": 0.15})
    fresh = lambda step, epoch: net.first.data.fill_(5.0) if epoch == 0 else None  # noqa: E731
    last = replace(first, name="b", watch=None, stop=None, before_epoch=fresh)
    reports = []
    history = fit(net, [first, last], lambda: {"value": net.first.clone()}, Context(report=reports.append))
    # 1 - 0.3 = 0.7 goes on, 0.4 ends it
    assert [(row["stage"], row["epoch"]) for row in history] == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    assert [row.get("value") for row in history] == [None, None, *(pytest.approx([5 - 0.3 * n]) for n in (1, 2, 3))]
    assert [row["total"] for row in reports] == [6, 5, 5, 5, 5] and [row["done"] for row in reports] == [1, 2, 3, 4, 5]


def test_rmsprop_resumes_exactly(tmp_path):
    def build():
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        stage = Stage(
            name="s",
            epochs=3,
            indices=lambda generator: torch.randperm(8, generator=generator).view(2, 4),
            loss=lambda index: net(x[index]).square().mean(),
            schedule=lambda epoch: {"lr": 0.01},
            optimiser={"alpha": 0.9},
            rule=torch.optim.RMSprop,
            rate_factors=[0.5, 1.0],
        )
        return net, stage

    def run(context):
        net, stage = build()
        fit(net, [stage], dict, context)
        return net

    whole, net = run(Context()), resumed(run, tmp_path, 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))
