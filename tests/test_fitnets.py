"""Romero 2015: whether the sheet says what the deck says, what a trial does at every budget, and what it asked of the shared code."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import Arms, distinct_configs, noise_images, resumed, same

from kdcore import data, losses, papers
from kdcore.models import create
from kdcore.papers import images as on_images
from kdcore.papers.fitnets import trial as fitnets
from kdcore.papers.fitnets.schedule import ramp
from kdcore.papers.images import EVALUATED
from kdcore.report import formats, tables
from kdcore.training import Context

PAPER = papers.get("fitnets")
SIZES = {"mnist": (1, 28, 10), "digits": (1, 28, 10), "cifar100": (3, 32, 100), "digit_pairs": (3, 32, 100)}


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Eight random training images and four for testing instead of any data set; whitening by their channels' statistics."""

    def load(name):
        channels, side, classes = SIZES.get(name, (3, 32, 10))
        return noise_images(name, 8, 4, (channels, side, side), classes)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(on_images, "_whitening", lambda name, device: SimpleNamespace(apply=lambda images: images))


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch):
    monkeypatch.setattr(fitnets, "TIMED_ROUNDS", 1)


def small(name):
    """The same design, a sixteenth as wide."""
    return name and name.partition("/")[0] + "/16"


def config_of(budget, arm, **changes):
    config = PAPER.config(budget, arm)
    brief = {"epochs": 1, "hint_epochs": min(config["hint_epochs"], 2), "holdout": min(config["holdout"], 4), "batch_size": 4, "share": 1}
    nets = {key: small(config[key]) for key in ("network", "teacher_network")}
    return config | brief | nets | changes


def weights(config):
    if config["teacher"] is None:
        return None
    return create(config["teacher_network"], len(data.load(config["data"]).classes), irange=0.1).reset(7).state_dict()


ARMS = Arms("fitnets", config_of, weights)
prepared, run = ARMS.prepared, ARMS.run


def built(arm, context=None, **changes):
    """An arm's trial with its networks, method and stages."""
    config = config_of("paper", arm, **changes)
    trial = fitnets.Trial(config, context or Context(), weights(config))
    return trial, trial.run().stages


# Tables 1 and 2 typed here from the deck, the others from the paper's text, and nowhere else.
ACCURACIES = {
    "cifar10": {"FitNet 4": 91.61, "teacher": 90.18},
    "cifar100": {"FitNet 4 (CIFAR-100)": 64.96, "teacher (CIFAR-100)": 63.54},
}
QUOTED = {"cifar10": [84.6, 84.9, 85.8, 90.65, 91.2, 91.78, 88.2], "cifar100": [61.43, 64.32, 65.43]}
MNIST = {"teacher (MNIST)": 0.55, "student (MNIST), labels alone": 1.9, "student (MNIST), KD": 0.65, "FitNet (MNIST)": 0.51}
COMPRESSION = {"FitNet 1": 89.01, "FitNet 2": 91.06, "FitNet 3": 91.10, "FitNet 4": 91.61, "teacher": 90.18}


def test_the_sheet_holds_the_papers_numbers():
    sheets = {sheet["id"]: sheet["rows"] for sheet in PAPER.tables}
    for key, numbers in ACCURACIES.items():
        assert {row["arm"]: row["paper"] for row in sheets[key] if row["arm"]} == numbers
        assert [row["paper"] for row in sheets[key] if row["arm"] is None] == QUOTED[key]
    assert {row["arm"]: row["paper"] for row in sheets["mnist"]} == MNIST
    assert {row["arm"]: row["paper"] for row in sheets["compression"] if row["metric"] == "test_accuracy_percent"} == COMPRESSION


def test_the_papers_protocol():
    for arm in PAPER.arms:
        config = PAPER.config("paper", arm)
        mnist, teacher, code = "MNIST" in arm, arm.startswith("teacher"), "code" in arm
        assert config["data"] == ("mnist" if mnist else "cifar100" if "CIFAR-100" in arm else "cifar10")
        assert config["normalisation"] == ({"mean": [0.0], "std": [1.0]} if mnist else "whitened")
        assert config["augmentation"] == ({"pad": 0} if mnist else {"pad": 8 if teacher or code else 0, "flip": True})
        assert (config["rule"], config["batch_size"], config["irange"]) == ("sgd" if teacher else "rmsprop", 128, 0.005)
        assert config["conv_rate"] == (1.0 if mnist else 0.05)
        assert (config["input_dropout"], config["hidden_dropout"]) == ((0.2, 0.5) if teacher else (0, 0))
        assert config["epochs"] == (474 if teacher and not mnist else 200 if teacher else 250 if mnist else 288 if code else 500)
        if not teacher:
            assert config["lr"] == (0.0005 if mnist else 0.005)
            assert (config["hint_epochs"], config["holdout"], config["patience"]) == (500, 10_000, 100)
            assert config["variant"] == ("code" if code else "paper")
    assert {arm: PAPER.config("paper", arm)["hint"] for arm in COMPRESSION if arm != "teacher"} == {
        f"FitNet {n}": ["conv2", guided] for n, guided in zip((1, 2, 3, 4), ("conv6", "conv6", "conv8", "conv11"), strict=True)
    }
    assert PAPER.config("paper", "FitNet (MNIST)")["hint"] == ["conv2", "conv4"]
    assert PAPER.config("paper", "FitNet 4, released code")["network"] == "fitnet_4_released"
    for budget in ("fast", "paper"):
        assert all(PAPER.config(budget, f"FitNet {n}")["network"] == f"fitnet_{n}" for n in (1, 2, 3, 4))


def test_schedules_by_hand():
    teacher = PAPER.config("paper", "teacher")
    at = lambda key, epoch, config: ramp(config[key], epoch / config["epochs"])  # noqa: E731
    # pylearn2: linear from 0.17 at epoch 0 to a hundredth of it at 500; momentum 0.5 at epoch 1, 0.65 at 250
    assert at("lr", 0, teacher) == 0.17 and at("lr", 250, teacher) == pytest.approx(0.17 * (1 - 0.99 * 250 / 500), rel=1e-3)
    assert at("momentum", 0, teacher) == 0.5 and at("momentum", 300, teacher) == 0.65
    assert at("momentum", 125.5, teacher) == pytest.approx(0.575, abs=2e-4)
    mnist = PAPER.config("paper", "teacher (MNIST)")
    assert at("lr", 100, mnist) == pytest.approx(0.05 / 1.00004 ** (468 * 100), rel=2e-3)
    paper, code = PAPER.config("paper", "FitNet 4"), PAPER.config("paper", "FitNet 4, released code")
    assert [at("soft_weight", epoch, paper) for epoch in (0, 250, 500)] == [4.0, 2.5, 1.0]
    # the code's step is 3 / 396 an epoch from epoch 5 on: at the last of 288 epochs lambda is 4 - 284 * 3 / 396 = 1.848
    assert at("soft_weight", 4, code) == pytest.approx(4, abs=1e-3)
    assert at("soft_weight", 288, code) == pytest.approx(4 - 284 * 3 / 396, abs=1e-3)
    assert ramp({"from": 8.0, "to": 2.0, "span": [0, 1], "geometric": True}, 0.5) == pytest.approx(4.0)
    assert [ramp({"from": 1.0, "to": 0.0, "span": [0.25, 0.75]}, share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    assert ramp(0.3, 0.9) == 0.3


def test_students_of_a_budget_have_the_teachers_network():
    for budget in PAPER.budgets:
        for arm in PAPER.budget_arms(budget):
            config = PAPER.config(budget, arm)
            if config["teacher"] is not None:
                teacher = PAPER.config(budget, config["teacher"])
                assert teacher["is_teacher"] and teacher["network"] == config["teacher_network"], (budget, arm)
                assert teacher["data"] == config["data"] and teacher["normalisation"] == config["normalisation"]


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm):
    """Its own losses, stages and optimiser on thin nets, for a few steps; budgets that differ in lengths alone are one."""
    result, spy = run(arm, budget=budget)
    config = config_of(budget, arm)
    hints = ["hint search", "hint"] if config["holdout"] else ["hint"]
    expected = {"plain": ["train"], "kd": ["kd"], "fitnets": [*hints, "kd"]}[config["method"]]
    assert list(dict.fromkeys(row["stage"] for row in result["history"])) == expected == [stage.name for stage in spy.stages]
    assert all(np.isfinite(row["loss"]) for row in result["history"])
    assert ("weights" in result) == config["is_teacher"]
    assert ("speed_up" in result["metrics"]) == config["time_nets"]
    assert result["metrics"]["multiply_adds"] > result["metrics"]["parameters"] > 0
    json.dumps([result["metrics"], result["history"]])


def test_arms_of_a_seed_start_alike_and_see_the_same_last_batches():
    arms = ("FitNet 4", "FitNet 4, labels alone", "FitNet 4, KD without hints")
    runs = {arm: run(arm)[1] for arm in arms}
    first, other = runs["FitNet 4"], run("FitNet 4", Context(seed=1))[1]
    assert len(first.seen[-1]) == 2 and first.seen[-1] != other.seen[-1]
    assert any(not torch.equal(first.start[key], other.start[key]) for key in first.start)
    for arm, spy in runs.items():
        assert all(torch.equal(spy.start[key], first.start[key]) for key in first.start), arm
        assert spy.seen[-1] == first.seen[-1], arm


def test_the_search_sees_a_part_and_the_hint_stage_starts_anew_on_all():
    spy = prepared("FitNet (MNIST)", hint_epochs=3, patience=3, holdout=4)
    states = lambda: {key: value.clone() for key, value in spy.model.state_dict().items()}  # noqa: E731
    built, told, starts = states(), spy.stages[1].before_epoch, []
    spy.stages[1].before_epoch = lambda step, epoch: (starts.append(states()), told(step, epoch), starts.append(states()))
    (result,) = spy.train()
    search, hint, _ = spy.seen
    assert len({row[0] for index in search for row in index}) == 4, "four of eight images are held out"
    assert {row[0] for index in hint for row in index} == set(range(8))
    searched, start, *later = starts
    assert all(torch.equal(start[key], value) for key, value in built.items())
    assert not torch.equal(searched["connectors.0.weight"], start["connectors.0.weight"]), "the search has moved it"
    assert 0.04 < built["connectors.0.weight"].abs().max() <= 0.05
    for before, after in zip(later[::2], later[1::2], strict=True):
        assert all(torch.equal(before[key], value) for key, value in after.items()), "once, not in each epoch"
    losses_held = [row["held_out_hint_loss"] for row in result["history"] if row["stage"] == "hint search"]
    assert len(losses_held) == 3
    assert result["metrics"]["hint_epochs"] == 1 + int(np.argmin(losses_held)) == len(hint) // 2
    measured = {row["stage"]: set(row) - {"stage", "epoch", "lr", "loss"} for row in result["history"]}
    assert measured == {"hint search": {"held_out_hint_loss"}, "hint": {"test_hint_loss"}, "kd": {"test_error_percent"}}


def rows_of(*held, hints=0):
    return [{"stage": "hint search", "held_out_hint_loss": value} for value in held] + [{"stage": "hint"}] * hints


def test_when_the_search_ends_and_how_long_the_hint_stage_takes():
    assert not fitnets._stale(2, rows_of(3.0, 2.0, 2.5)) and fitnets._stale(2, rows_of(3.0, 2.0, 2.5, 2.0))
    assert not fitnets._stale(2, rows_of(3.0)) and not fitnets._stale(2, rows_of(3.0, 2.0, 2.5, 1.9))
    assert not fitnets._as_long(rows_of(3.0, 2.0, 2.5, hints=1)) and fitnets._as_long(rows_of(3.0, 2.0, 2.5, hints=2))


def test_the_held_out_loss_is_the_hint_loss_of_the_images_themselves(monkeypatch):
    trial, _ = built("FitNet (MNIST)", irange=0.1)
    cases = torch.tensor([5, 0, 2])
    x = data.load("mnist").train_images[cases].float() / 255
    with torch.no_grad():
        regressed = trial.method.connectors[0](trial.student.features(x)[1]["conv4"])
        expected = losses.hint(regressed, trial.teacher.features(x)[1]["conv2"]).item()
        monkeypatch.setitem(EVALUATED, "cpu", 2)
        measured = trial.hint_loss("loss", trial.views, trial.train_labels, cases)
    assert measured["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_first_stage_trains_what_its_loss_reaches_at_its_own_rates():
    spy = prepared("FitNet 4")
    names = {id(p): name for name, p in spy.model.named_parameters()}
    factors = [
        {names[id(p)]: factor for p, factor in zip(stage.parameters, stage.rate_factors, strict=True)}
        for stage in (spy.stages[0], spy.stages[-1])
    ]
    guided = {f"student.convs.{i}.{what}" for i in range(11) for what in ("weight", "bias")}
    assert factors[0] == dict.fromkeys(guided, 0.05) | {"connectors.0.weight": 1.0, "connectors.0.bias": 1.0}
    assert factors[1] == {name: 0.05 if "convs" in name else 1.0 for name in names.values() if "student" in name}
    assert spy.model.connectors[0].weight.shape[1:] == (5, 2, 2), "from 8x8 to 7x7"


def test_norms_are_limited_after_each_step():
    _, spy = run("FitNet (MNIST)", lr=0.5, irange=1.0)
    for conv in (*spy.model.student.convs, *spy.model.connectors):
        assert torch.linalg.vector_norm(conv.weight.flatten(1), dim=1).max() <= conv.layer.limit * 1.0001
    assert spy.model.connectors[0].layer.limit == 0.9


@pytest.mark.usefixtures("float64")
def test_variants_differ_in_stage_2():
    """On the same nets and batch: the code's soft term leaves the student as it is, so that its gradient is another."""
    gradients = {}
    for variant in ("paper", "code"):
        trial, _ = built("student (MNIST), KD", variant=variant, irange=0.2)
        trial.teacher.load_state_dict(create("maxout_mnist/16", irange=0.2).state_dict())
        (stage,) = trial.method.stages
        x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(4)
        for weight in (0.0, 4.0):
            stage.knobs["soft_weight"].fill_(weight)
            gradients[variant, weight] = torch.autograd.grad(stage.loss(x, labels), trial.student.linear.bias)[0]
        logits, target = trial.student(x), trial.teacher(x)
        q = (logits / (3 if variant == "paper" else 1)).log_softmax(1)
        by_hand = -logits.log_softmax(1)[range(4), labels].mean() - 4 * ((target / 3).softmax(1) * q).sum(1).mean()
        assert stage.loss(x, labels).item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert torch.allclose(gradients["paper", 0.0], gradients["code", 0.0]), "labels alone"
    assert not torch.allclose(gradients["paper", 4.0], gradients["paper", 0.0]), "the weight changes the gradient"
    assert not torch.allclose(gradients["paper", 4.0], gradients["code", 4.0], rtol=0.1)


def test_a_table_of_logits_stands_for_the_teacher():
    trial, (stage,) = built("student (MNIST), KD", epochs=3)
    index = trial.views.plain(torch.tensor([3, 1]))
    x, _, knowledge = stage.batch(index)
    assert knowledge.teacher is None and torch.allclose(knowledge.logits, trial.teacher(x), atol=1e-3)
    assert trial.table().full
    once, (stage,) = built("student (MNIST), KD", epochs=1)
    assert once.table() is None and len(stage.batch(index)) == 2, "one pass costs as much as the table"
    assert built("student (MNIST), labels alone", epochs=3)[0].table() is None
    assert built("student (MNIST), KD", Context(rehearsal=True), epochs=3)[0].table() is None
    crops, _ = built("FitNet 4, released code", epochs=288)
    assert crops.views.count == 2 * 17**2 and crops.table() is None


@pytest.mark.parametrize("pauses", [1, 2, 3, 4])
def test_resume_is_exact_in_every_stage(tmp_path, pauses):
    """Search, hint stage and KD of one or more epochs; paused within each and between, the record is the same."""
    changes = {"hint_epochs": 2, "patience": 1, "epochs": 2, "is_teacher": True, "irange": 0.1, "lr": 0.01}
    whole, _ = run("FitNet (MNIST)", **changes)
    again, _ = resumed(lambda context: run("FitNet (MNIST)", context, **changes), tmp_path, pauses)
    assert same(again, whole) and whole["weights"]


def test_figures_from_records():
    drawn = papers.get("fitnets").figures([{"arm": "FitNet 4", "budget": "laptop"}])  # which leaves the other arm out
    assert list(drawn) == ["soft_weight"]
    ends = [line.get_ydata()[-1] for line in drawn["soft_weight"]().axes[0].lines]
    assert ends == [1.0, pytest.approx(1.848, abs=1e-3)]
    assert papers.get("fitnets").figures([{"arm": "FitNet (MNIST)", "budget": "fast"}]) == papers.get("fitnets").figures([]) == {}


def test_quoted_rows_are_shown_and_judged_by_nobody():
    frame = tables.table(PAPER, "cifar10", [], "laptop")
    assert frame["verdict"].tolist() == ["not run"] * 2 + ["quoted"] * 7
    assert frame["paper"].tolist()[2:] == QUOTED["cifar10"] and set(frame["arm"][2:]) == {""}
    assert "quoted" in formats.to_markdown(frame) and "None" not in formats.to_csv(frame)
