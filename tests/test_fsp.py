"""Yim 2017: whether the sheet says what the deck says, and what a trial does at every budget."""

import json

import numpy as np
import pytest
import torch
from runs import Arms, distinct_configs, noise_images, resumed, same
from texts import overlaps

from kdcore import data, losses, papers
from kdcore.models import create
from kdcore.papers.fsp import trial as fsp
from kdcore.papers.fsp.figures import matrices
from kdcore.papers.images import ImageTrial, piecewise
from kdcore.training import Context

PAPER = papers.get("fsp")
STEPS = 1 / 40_000  # of all lengths: one or two steps a stage


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Eight random training images and four for testing instead of any data set."""

    monkeypatch.setattr(data, "load", lambda name: noise_images(name, 8, 4))


def config_of(budget, arm, **changes):
    return PAPER.config(budget, arm) | {"batch_size": 4, "scale": STEPS} | changes


def weights(config):
    if config["teacher"] is None:
        return None
    return create(config["teacher_network"], len(data.load(config["data"]).classes)).reset(7).state_dict()


ARMS = Arms("fsp", config_of, weights, "laptop")
prepared, run = ARMS.prepared, ARMS.run


# Tables 3 and 4, typed here from the deck and nowhere else.
DECK = {
    "cifar10": {"teacher 26": 91.91, "student 8": 87.91, "KD 8": None, "FitNet 8": 88.57, "FSP 8": 88.70},
    "cifar100": {
        "teacher 32 (CIFAR-100)": 64.06,
        "student 14 (CIFAR-100)": 58.65,
        "FitNet 14 (CIFAR-100)": 61.28,
        "FSP 14 (CIFAR-100)": 63.33,
    },
}


def test_the_sheet_holds_the_papers_numbers():
    tables = {table["id"]: {row["arm"]: row["paper"] for row in table["rows"]} for table in PAPER.tables}
    assert {key: tables[key] for key in DECK} == DECK
    assert {(table["id"], table["number"]) for table in PAPER.tables if table["id"] in DECK} == {("cifar10", 3), ("cifar100", 4)}
    assert tables["fast"] == {"teacher 26": 91.75, "26, a third of the steps": None, "FSP 26, a third of the steps": 92.14}
    assert tables["ensembles"] == {"three of 26": 93.48, "three of FSP 26": 93.26}
    metrics = {table["id"]: {row["metric"] for row in table["rows"]} for table in PAPER.tables}
    assert metrics.pop("ensembles") == {"ensemble_test_accuracy_percent"}
    assert list(metrics.values()) == [{"test_accuracy_percent"}] * 4


def lengths(config):
    return {
        key: piecewise(config[key]["lr"], config[key]["until"], config["scale"])[1]
        for key in ("pretrain", "train")
        if config[key] is not None
    }


# Steps of the stages before the last and of the last: the paper's, a sixteenth and a quarter of them.
COUNTS = {
    ("paper", "teacher 26"): {"train": 64_000},
    ("paper", "student 8"): {"train": 64_000},
    ("paper", "KD 8"): {"train": 64_000},
    ("paper", "FitNet 8"): {"pretrain": 35_000, "train": 64_000},
    ("paper", "FSP 8"): {"pretrain": 21_000, "train": 64_000},
    ("paper", "26, a third of the steps"): {"train": 21_000},
    ("paper", "FSP 26, a third of the steps"): {"pretrain": 21_000, "train": 21_000},
    ("paper", "FitNet 14 (CIFAR-100)"): {"pretrain": 35_000, "train": 64_000},
    ("paper", "FSP 14 (CIFAR-100)"): {"pretrain": 32_000, "train": 64_000},
    ("paper", "32, a third of the steps (CIFAR-100)"): {"train": 21_000},
    ("fast", "teacher 26"): {"train": 16_000},
    ("fast", "FitNet 8"): {"pretrain": 8_750, "train": 16_000},
    ("fast", "FSP 8"): {"pretrain": 5_250, "train": 16_000},
    ("fast", "FSP 14 (CIFAR-100)"): {"pretrain": 8_000, "train": 16_000},
    ("laptop", "student 8"): {"train": 4_000},
    ("laptop", "FitNet 8"): {"pretrain": 2_188, "train": 4_000},  # 2187.5
    ("laptop", "FSP 26, a third of the steps"): {"pretrain": 1_312, "train": 1_312},  # 1312.5
    ("smoke", "FSP 8"): {"pretrain": 21, "train": 64},
    ("smoke", "FSP 14 (CIFAR-100)"): {"pretrain": 6, "train": 13},
    ("smoke", "32, a third of the steps (CIFAR-100)"): {"train": 4},
}


@pytest.mark.parametrize("budget, arm", COUNTS)
def test_steps_of_each_budget(budget, arm):
    assert lengths(PAPER.config(budget, arm)) == COUNTS[budget, arm]


def test_every_stage_of_every_budget_has_steps():
    assert all(min(lengths(PAPER.config(budget, arm)).values()) > 0 for budget in PAPER.budgets for arm in PAPER.budget_arms(budget))


def test_no_budget_but_smoke_changes_more_than_the_length():
    for budget in ("laptop", "fast"):
        for arm in PAPER.budget_arms(budget):
            ours, theirs = PAPER.config(budget, arm), PAPER.config("paper", arm)
            assert {key for key in ours if ours[key] != theirs[key]} == {"scale"}, (budget, arm)


def test_the_papers_protocol():
    for arm in PAPER.arms:
        config = PAPER.config("paper", arm)
        cifar100, third = "CIFAR-100" in arm, "a third" in arm or arm == "three of FSP 26"
        assert config["data"] == ("cifar100" if cifar100 else "cifar10")
        assert config["augmentation"] == ({"pad": 0} if cifar100 else {"pad": 4, "flip": False})
        assert config["train"] == {"lr": [0.1, 0.01, 0.001], "until": [11_000, 16_000, 21_000] if third else [32_000, 48_000, 64_000]}
        assert (config["momentum"], config["weight_decay"], config["scale"]) == (0.9, 1e-4, 1)
        if config["method"] == "fsp":
            until = [16_000, 24_000, 32_000] if cifar100 else [11_000, 16_000, 21_000]
            assert config["pretrain"] == {"lr": [1e-3, 1e-4, 1e-5], "until": until}
        if config["method"] in ("kd", "fitnets"):
            assert (config["pretrain"] is None) == (config["method"] == "kd")
        if config["method"] == "fitnets":
            assert config["pretrain"] == {"lr": [1e-4, 1e-5], "until": [25_000, 35_000]}
            assert (config["temperature"], config["soft_weight"], config["hint"]) == (3.0, [4.0, 1.0], "group2")
        if config["teacher"] is not None:
            teacher = PAPER.config("paper", config["teacher"])
            assert teacher["network"] == config["teacher_network"] and teacher["data"] == config["data"] and teacher["is_teacher"]
    networks = {arm: PAPER.config("paper", arm)["network"] for arm in PAPER.arms}
    assert [networks[arm] for arm in ("teacher 26", "student 8", "FSP 26, a third of the steps")] == ["resnet_26", "resnet_8", "resnet_26"]
    assert [networks[f"{arm} (CIFAR-100)"] for arm in ("teacher 32", "student 14")] == ["resnet_32x4", "resnet_14x4"]


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm):
    """Its own nets, stages and losses, for a step or two; budgets that differ in lengths alone are one."""
    result, spy = run(arm, budget=budget)
    config = config_of(budget, arm)
    names = {"plain": ["train"], "kd": ["kd"], "fitnets": ["hint", "kd"], "fsp": ["fsp", "train"]}[config["method"]]
    if isinstance(config["init"], list):
        names = [f"{name}, net {k}" for k in (1, 2, 3) for name in names]
    assert list(dict.fromkeys(row["stage"] for row in result["history"])) == names == [stage.name for stage in spy.stages]
    steps = list(lengths(config).values()) * (len(names) // len(lengths(config)))
    assert [stage.steps for stage in spy.stages] == steps == [len(seen) for seen in spy.seen]
    assert set(result["metrics"]) >= METRICS and all(torch.tensor(row["loss"]).isfinite() for row in result["history"])
    assert ("weights" in result) == config["is_teacher"]
    assert ("fsp_matrices" in result["metrics"]) == config["keep_matrices"]
    json.dumps([result["metrics"], result["history"]])


METRICS = {"test_errors", "test_error_percent", "test_accuracy_percent", "best_test_error_percent", "train_error_percent"}


def test_arms_of_a_seed_start_alike_and_see_the_same_last_batches():
    runs = {arm: run(arm)[1] for arm in ("student 8", "FitNet 8", "FSP 8")}
    plain, other = runs["student 8"], run("student 8", Context(seed=1))[1]
    assert len(plain.seen[-1]) == 2 and plain.seen[-1] != other.seen[-1]
    assert any(not torch.equal(plain.start[key], other.start[key]) for key in plain.start)
    for arm, spy in runs.items():
        assert all(torch.equal(spy.start[key], plain.start[key]) for key in plain.start), arm
        assert spy.seen[-1] == plain.seen[-1], arm
        assert all(len(index) == 4 and {row[1] <= 8 for row in index} == {True} for seen in spy.seen for index in seen)
    third = {arm: run(arm, network="resnet_8", teacher_network="resnet_8")[1] for arm in PAPER.arms if "26, a third" in arm}
    assert len({json.dumps(spy.seen[-1]) for spy in third.values()}) == 1 and len(third) == 2


def test_three_nets_and_their_ensemble(monkeypatch):
    """Nets of their own weights and batches; means and the ensemble against the logits that the nets gave, computed anew."""
    given = []
    told = ImageTrial.logits
    monkeypatch.setattr(
        ImageTrial, "logits", lambda self, net, views: (given.append((net, views, told(self, net, views))), given[-1][2])[1]
    )
    result, spy = run("three of FSP 26", network="resnet_8", teacher_network="resnet_8", fsp_weight=0.01)
    firsts = [net.student.groups[0][0].conv1.weight for net in spy.model]
    assert len(firsts) == 3 and all(not torch.equal(firsts[i], firsts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert len({json.dumps(seen) for seen in spy.seen}) == 6
    labels = data.load("cifar10").test_labels
    logits = [[said for net, views, said in given if net is mine.student and len(views.windows) == 4][-1] for mine in spy.model]
    probabilities = torch.stack([torch.softmax(said.double(), 1) for said in logits]).mean(0)
    wrong = [100 * (said.argmax(1) != labels).double().mean().item() for said in (probabilities, *logits)]
    metrics = result["metrics"]
    assert metrics["ensemble_test_error_percent"] == wrong[0] == 100 - metrics["ensemble_test_accuracy_percent"]
    assert metrics["test_error_percent"] == pytest.approx(sum(wrong[1:]) / 3)
    ends = [row["fsp_distance"] for row in result["history"] if row["stage"].startswith("fsp")]
    assert metrics["fsp_distance_after_stage_1"] == pytest.approx(sum(ends) / 3)


def test_the_control_is_a_fitnet_without_its_hint():
    (alone, first), (_, fitnet) = run("KD 8"), run("FitNet 8")
    assert [row["stage"] for row in alone["history"]] == ["kd"] and first.seen == fitnet.seen[1:]
    assert [first.stages[0].schedule(step) for step in (0, 1)] == [fitnet.stages[1].schedule(step) for step in (0, 1)]
    assert len(first.stages[0].parameters) == len(list(first.model.student.parameters()))


def test_fsp_26_does_not_start_at_the_teachers_initial_weights():
    starts = [run(arm, network="resnet_14")[1].start for arm in ("teacher 26",)]
    starts += [run("FSP 26, a third of the steps", network="resnet_14", teacher_network="resnet_14")[1].start]
    assert all(not torch.equal(starts[0][key], starts[1][key]) for key in starts[0] if "conv" in key)
    for budget in PAPER.budgets:
        inits = [PAPER.config(budget, arm)["init"] for arm in ("teacher 26", "FSP 26, a third of the steps")]
        assert inits[0] != inits[1], budget


def test_the_first_stage_trains_what_its_loss_reaches():
    for arm, untouched in (("FSP 8", ("linear",)), ("FitNet 8", ("groups.2", "linear"))):
        _, spy = run(arm)
        names = {id(parameter): name for name, parameter in spy.model.student.named_parameters()}
        trained = {names.get(id(parameter)) for parameter in spy.stages[0].parameters}
        assert trained == {name for name in names.values() if not name.startswith(untouched)}
        assert len(spy.stages[1].parameters) == len(names)


def test_rates_of_the_stages():
    result, spy = run("FitNet 8", scale=1 / 1000, teacher_network="resnet_8", batch_size=2)  # 35 and 64 steps
    first, last = spy.stages
    assert [first.schedule(step)["lr"] for step in (0, 24, 25, 34)] == [1e-4, 1e-4, 1e-5, 1e-5]
    assert [last.schedule(step)["lr"] for step in (0, 31, 32, 47, 48, 63)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    # lambda falls from 4 linearly, and would reach 1 after the last step
    assert [last.schedule(step)["soft_weight"] for step in (0, 32, 63)] == [4.0, 2.5, pytest.approx(1 + 3 / 64)]
    assert last.knobs["soft_weight"].item() == pytest.approx(1 + 3 / 64)
    for stage in spy.stages:
        assert stage.optimiser == {"momentum": 0.9, "weight_decay": 1e-4}
    assert [row["epoch"] for row in result["history"]] == [*range(1, 10), *range(1, 17)]  # four steps an epoch


def test_the_first_stage_and_its_matrices():
    """Long enough to see the loss fall; what the figure draws is the mean of eq. 1 over the test images."""
    result, _ = run("FSP 8", scale=1 / 1000, teacher_network="resnet_8", fsp_weight=1.0)  # 21 steps, then 64
    rows = [row for row in result["history"] if row["stage"] == "fsp"]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert result["metrics"]["fsp_distance_after_stage_1"] == rows[-1]["fsp_distance"]
    matrices = result["metrics"]["fsp_matrices"]
    assert list(matrices) == ["teacher", "student before", "student after stage 1", "student at the end"]
    assert "fsp_matrices" not in rows[-1], "the matrices stand once in the record"
    assert [len(matrix) for matrix in matrices["teacher"]] == [len(matrix[0]) for matrix in matrices["teacher"]] == [16, 32, 64]
    teacher = create("resnet_8").reset(7).eval()
    images = data.load("cifar10").test_images.double() / 255
    pixels = data.load("cifar10").train_images.double() / 255
    x = (images - pixels.mean((0, 2, 3)).view(3, 1, 1)) / pixels.std((0, 2, 3), unbiased=False).view(3, 1, 1)
    _, taps = teacher.features(x.float())
    expected = torch.einsum("nihw,njhw->ij", taps["group2.first"], taps["group2"]) / (4 * 16 * 16)
    assert torch.allclose(torch.tensor(matrices["teacher"][1]), expected, rtol=6e-3, atol=1e-5), "three digits"


def test_the_watched_distance_is_the_loss():
    run = prepared("FSP 8", teacher_network="resnet_8").run
    pixels = data.load("cifar10").train_images.double() / 255
    mean, deviation = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), unbiased=False, keepdim=True)
    x = ((data.load("cifar10").test_images.double() / 255 - mean) / deviation).float()
    own, target = (net.eval().features(x)[1] for net in (run.model.student, create("resnet_8").reset(7)))
    expected = losses.fsp(*([(taps[first], taps[last]) for first, last in fsp.PAIRS] for taps in (own, target)))
    with torch.no_grad():
        watched = run.evaluate()
    assert watched["fsp_distance"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(watched) == {"fsp_distance", "test_error_percent"}
    assert set(prepared("student 8").run.evaluate()) == {"test_error_percent"}


@pytest.mark.parametrize("arm, pauses", [("student 8", [1]), ("FitNet 8", [1, 2, 4]), ("FSP 8", [1, 2, 4]), ("three of 26", [4, 7])])
def test_resume_is_exact_in_every_stage(tmp_path, arm, pauses):
    """Two epochs of two steps in the first stage, four in the last; paused within each and between, the record is the same."""
    changes = {"scale": 1 / 8000, "teacher_network": "resnet_8", "network": "resnet_8"}
    whole, trained = run(arm, **changes)
    assert len(whole["history"]) == {"student 8": 4, "three of 26": 12}.get(arm, 6)
    for pause_after in pauses:
        result, again = resumed(lambda context: run(arm, context, **changes), tmp_path / str(pause_after), pause_after)
        assert same(result, whole), pause_after
        weights = again.model.state_dict()
        assert all(torch.equal(weights[key], value) for key, value in trained.model.state_dict().items())


def test_figures_from_a_record():
    (result, _) = run("FSP 8")
    record = {"arm": "FSP 8", "metrics": result["metrics"], "history": result["history"]}
    drawn = papers.get("fsp").figures([{"arm": "student 8", "metrics": {}}, record])
    assert list(drawn) == ["fsp_matrices"]
    assert sum(bool(ax.images) for ax in drawn["fsp_matrices"]().axes) == 12
    assert papers.get("fsp").figures([]) == {}


def test_matrices_of_a_column_share_their_colours(monkeypatch):
    rng = np.random.default_rng(0)
    panels = {label: [rng.random((n, n)) * n for n in (16, 32, 64)] for label in ("teacher", "student at the end")}
    panels["teacher"][1][3, 4], panels["student at the end"][1][0, 0] = 99.0, -7.0
    figure = matrices(panels, ("group1", "group2", "group3"), "FSP matrices")
    maps = [ax.images[0] for ax in figure.axes if ax.images]
    assert [image.get_array().shape[0] for image in maps] == [16, 32, 64] * 2
    assert np.allclose(maps[1].get_array(), panels["teacher"][1], rtol=1e-8, atol=0)  # drawn numbers are rounded
    limits = [image.get_clim() for image in maps]
    assert limits[:3] == limits[3:] and limits[1] == (-7.0, 99.0)
    assert limits[0] == pytest.approx((0.0, max(panel[0].max() for panel in panels.values())), rel=1e-8), "colours start at 0"
    assert len(figure.axes) == 6 + 3, "a colour bar for each column"
    assert overlaps(figure, monkeypatch) == []
    with pytest.raises(ValueError, match="'teacher' has 3 matrices for 2 columns"):
        matrices(panels, ("group1", "group2"))
