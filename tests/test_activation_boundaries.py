"""Heo 2019: whether the sheet says what the deck says, what a trial does at every budget, and the toy."""

import json
import math

import pytest
import torch
from runs import Arms, distinct_configs, noise_images, resumed, same

from kdcore import data, losses, papers
from kdcore.methods import freeze
from kdcore.models import WideResNet, count_parameters, create
from kdcore.papers.activation_boundaries import figures, toy
from kdcore.papers.activation_boundaries import trial as ab
from kdcore.training import Context
from kdcore.training.step import Step

PAPER = papers.get("activation_boundaries")
TINY = "wrn_10_1"


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Twenty random training images, two of each class, and four for testing instead of any data set."""

    monkeypatch.setattr(data, "load", lambda name: noise_images(name, 20, 4, labels=torch.arange(24) % 10))


def small(config):
    """The same with the least nets, an epoch a stage at most, of two steps: what is left apart is the method and its settings."""
    if config["method"] == "toy":
        return config | {"epochs": "1+1", "evaluate_every": 1, "network": TINY, "batch_size": 4}
    before, last = map(int, config["epochs"].split("+"))
    teacher = config["teacher"] and {"teacher": "teacher", "teacher_network": TINY}
    lengths = {"epochs": f"{min(before, 1)}+{min(last, 1)}", "evaluate_every": 1, "batch_size": 4, "percent": 20}
    return config | {"data": "cifar10", "network": TINY, "teacher_network": None} | lengths | (teacher or {})


def config_of(budget, arm, **changes):
    return small(PAPER.config(budget, arm)) | changes


def weights(config):
    return None if config["teacher"] is None else create(config["teacher_network"]).reset(7).state_dict()


ARMS = Arms("activation_boundaries", config_of, weights)
prepared, run = ARMS.prepared, ARMS.run


def stages_of(arm, student, teacher, **changes):
    """The stages of an arm's method, as the paper has it, for these nets."""
    return method_of(PAPER.config("paper", arm) | changes, student, teacher).stages


def method_of(config, student, teacher):
    trial = ab.Trial(config, Context())
    trial.student, trial.teacher = student, teacher
    return trial.make_method()


METHODS = ["none", "KD", "FITNET + KD", "FSP + KD", "AT + KD", "Jacobian + KD", "AB + KD"]
EPOCHS = ["1+1", "1+5", "3+12", "5+25", "10+50", "20+100"]
# Typed here from the deck and nowhere else: rows are methods; the last row is the presenter's.
FAST = """
43.37 17.72 11.76 8.63 7.41 6.47
48.42 19.80 12.09 8.66 6.80 6.19
48.16 19.82 11.10 8.38 7.02 6.28
43.51 19.29 11.15 8.48 6.87 6.22
37.66 14.14 8.35 6.68 5.94 5.80
38.46 14.29 8.37 6.98 5.98 5.77
16.39 11.16 6.95 6.08 5.72 5.58
19.17 10.89 7.22 6.30 5.92 5.77
"""
LITTLE = """
73.83 48.41 28.12 21.76 15.26 6.47
74.62 48.34 28.13 21.21 14.62 6.19
74.81 49.91 27.28 21.42 14.52 6.28
73.96 47.98 26.90 20.80 13.85 6.22
67.54 37.11 18.86 15.61 9.94 5.80
68.65 36.99 18.34 15.03 9.83 5.77
50.32 21.54 14.99 13.09 9.16 5.58
- 20.61 13.44 12.15 8.84 5.77
"""
# Columns are methods without "none", then the presenter's.
SIZES = {
    "27.9": "22.98 23.34 22.99 18.06 18.28 14.05 13.58",
    "25.2": "20.48 19.98 19.78 14.81 14.41 11.62 11.43",
    "16.1": "21.21 21.42 20.80 15.61 15.03 13.09 12.15",
    "1.8": "29.57 29.18 28.70 29.44 28.70 23.27 22.30",
    "100": "18.29 17.91 17.81 12.03 11.28 6.63 6.01",
}
PAIRS = [("22_4", "10_4"), ("16_4", "16_2"), ("22_4", "16_2"), ("22_4", "10_1"), ("16_4", "16_4")]


def table(name):
    (sheet,) = (each for each in PAPER.tables if each["id"] == name)
    return sheet


def numbers(text):
    return [[None if word == "-" else float(word) for word in line.split()] for line in text.strip().splitlines()]


@pytest.mark.parametrize("name, text", [("fast", FAST), ("little_data", LITTLE)])
def test_the_sheet_holds_the_decks_columns(name, text):
    *expected, presenter = numbers(text)
    rows = table(name)["rows"]
    assert [row["paper"] for row in rows] == [value for line in expected for value in line]
    assert [row["label"].split(", ")[0] for row in rows] == [method for method in METHODS for _ in range(6)]
    assert [row["reference"] for row in rows if row["label"].startswith("AB")] == presenter
    assert not any("reference" in row for row in rows if not row["label"].startswith("AB"))


def test_the_cells_are_those_of_their_arms():
    for row in table("fast")["rows"]:
        config = PAPER.config("paper", row["arm"])
        assert row["label"] == f"{config['method']}, {config['epochs']}" and config["percent"] == 100
    for row in table("little_data")["rows"]:
        config = PAPER.config("paper", row["arm"])
        assert row["label"] == f"{config['method']}, {config['percent']:g} %" and config["epochs"] == "20+100"
    assert {PAPER.config("paper", row["arm"])["network"] for name in ("fast", "little_data") for row in table(name)["rows"]} == {"wrn_16_2"}


def test_the_sheet_holds_the_decks_pairs():
    rows = table("sizes")["rows"]
    expected = [[float(word) for word in line.split()] for line in SIZES.values()]
    assert [row["paper"] for row in rows] == [value for line in expected for value in line[:-1]]
    assert [row["reference"] for row in rows] == [value for line in expected for value in (*[None] * 5, line[-1])]
    configs = [PAPER.config("paper", row["arm"]) for row in rows]
    assert [config["method"] for config in configs] == METHODS[1:] * 5 and {config["percent"] for config in configs} == {10}
    pairs = [(config["teacher_network"], config["network"]) for config in configs]
    assert pairs == [(f"wrn_{teacher}", f"wrn_{student}") for teacher, student in PAIRS for _ in range(6)]
    assert {config["epochs"] for config in configs} == {"20+100"}


def test_the_published_ratios_come_out():
    """Counted anew; and the record's metric is the sheet's."""
    for row, ratio, (teacher, student) in zip(table("ratios")["rows"], SIZES, PAIRS, strict=True):
        counts = [count_parameters(create(f"wrn_{name}")) for name in (student, teacher)]
        assert row["paper"] == float(ratio) == round(100 * counts[0] / counts[1], 1)
        config = PAPER.config("paper", row["arm"])
        assert (config["network"], config["teacher_network"]) == (f"wrn_{student}", f"wrn_{teacher}")
    result, _ = run("AB + KD, 1+1", teacher_network="wrn_10_2")
    assert result["metrics"]["size_ratio_percent"] == pytest.approx(100 * 77_850 / count_parameters(create("wrn_10_2")))


def test_one_teacher_serves_all_methods_of_a_seed():
    for budget in PAPER.budgets:
        for seed in (0, 1):
            trials = [PAPER.trial(budget, arm, seed) for arm in PAPER.budget_arms(budget)]
            known = {trial.config["teacher_network"]: set() for trial in trials if trial.teacher}
            for trial in trials:
                if trial.teacher:
                    known[trial.config["teacher_network"]].add(trial.teacher)
                    assert PAPER.teacher_of(trial).config["network"] == trial.config["teacher_network"]
                    assert PAPER.teacher_of(trial).config["init"] != trial.config["init"]
            assert known and all(len(ids) == 1 for ids in known.values())


def test_the_order_is_teachers_columns_sizes_seeds():
    trials = PAPER.trials("paper")
    first = [trial.arm for trial in trials if trial.seed == 0]
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    assert first[:2] == ["teacher", "teacher 16-4"]
    places = [first.index(f"AB + KD, {column}") for column in (*EPOCHS, "0.1 %", "1 %", "5 %", "10 %", "20 %", "22-4 to wrn_10_4")]
    assert places == sorted(places)


def test_larger_budgets_keep_the_papers_settings():
    """laptop and fast change nets, lengths and shares, never a weight, a rate or a quirk."""
    allowed = {"network", "teacher_network", "epochs", "percent", "batch_size", "evaluate_every"}
    for budget in ("laptop", "fast"):
        for arm in PAPER.budget_arms(budget):
            ours, theirs = PAPER.config(budget, arm), PAPER.config("paper", arm)
            assert {key for key in ours if ours[key] != theirs[key]} <= allowed, (budget, arm)


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm):
    """Its own method and settings, for a step or two; budgets that differ in lengths, shares and nets alone are one."""
    result, spy = run(arm, budget=budget)
    config = config_of(budget, arm)
    before = {"FITNET + KD": ["hint"], "FSP + KD": ["fsp"], "AB + KD": ["boundary"]}.get(config["method"], [])
    if config["method"] != "toy":
        assert [stage.name for stage in spy.stages] == [*before, "train"]
        epochs = sum(map(int, config["epochs"].split("+")))
        assert len(result["history"]) == epochs
        assert result["metrics"]["test_errors"] in range(5)
    assert all(math.isfinite(row["loss"]) for row in result["history"])
    assert ("weights" in result) == config["is_teacher"]
    json.dumps([result["metrics"], result["history"]])


@pytest.mark.parametrize("teacher, student", PAIRS)
def test_every_method_fits_every_pair(teacher, student):
    """Connectors stand where the widths differ and only there; nets are built, not run."""
    net, large = (create(f"wrn_{name}") for name in (student, teacher))
    own, target = ([16 * int(name.split("_")[1]) * k for k in (1, 2, 4)] for name in (student, teacher))
    products = [a * b for a, b in zip(own, target, strict=True)]
    expected = {
        "FITNET + KD": products[1] + target[1],  # with a bias
        "FSP + KD": 2 * sum(products),
        "AB + KD": sum(products) + 2 * sum(target),  # with BatchNorm
    }
    for method in METHODS[1:]:
        built = method_of(PAPER.config("paper", "KD, 1+1") | {"method": method}, net, freeze(large))
        assert count_parameters(built) - count_parameters(net) == (expected.get(method, 0) if own != target else 0), method


# Epochs, from 1, at which the authors' program makes a new optimiser: worked out by hand from its rounding.
DROPS = {1: [], 5: [3, 4, 5], 12: [5, 9, 11], 25: [9, 16, 21], 50: [16, 31, 41], 100: [31, 61, 81], 200: [61, 121, 161]}


def forgetting(spy, stage, epochs):
    """The epochs, from 0, before which a stage's momenta are zero again."""
    step, fresh = Step(spy.model, stage, "cpu"), []
    step(stage.indices(torch.Generator().manual_seed(0))[0])
    ones = {name: torch.ones_like(value) for name, value in step.state().items()}
    assert len(ones) == len(stage.parameters)
    for epoch in range(epochs):
        step.load(ones)
        if stage.before_epoch is not None:
            stage.before_epoch(step, epoch)
        if all((value == 0).all() for value in step.state().values()):
            fresh.append(epoch)
    return fresh


@pytest.mark.parametrize("epochs", DROPS)
def test_rates_of_the_classification(epochs):
    spy = prepared("KD, 1+1", epochs=f"0+{epochs}")
    (stage,) = spy.stages
    rates = [stage.schedule(epoch)["lr"] for epoch in range(epochs)]
    assert rates == [pytest.approx(0.1 / 5 ** sum(drop <= epoch for drop in DROPS[epochs])) for epoch in range(1, epochs + 1)]
    assert [epoch + 1 for epoch in forgetting(spy, stage, epochs)] == DROPS[epochs]
    assert stage.epochs == epochs and stage.optimiser == {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


def test_rates_of_the_first_stage():
    for arm, factor in (("AB + KD, 20+100", 1.0), ("AB + KD, 1 %, rate dropped in stage 1", 0.2), ("AB + KD, 1 %, clean", 0.2)):
        spy = prepared(arm, epochs="20+100")
        first, last = spy.stages
        assert (first.epochs, last.epochs) == (20, 100)
        rates = [first.schedule(epoch)["lr"] for epoch in (0, 14, 15, 19)]
        assert rates == [0.1, 0.1, pytest.approx(0.1 * factor), pytest.approx(0.1 * factor)]
        assert forgetting(spy, first, 20) == ([] if arm.endswith("clean") else [15])
    spy = prepared("AT + KD, 20+100", epochs="20+100")
    assert [stage.epochs for stage in spy.stages] == [120], "a method without a first stage has the sum"


def test_every_method_starts_from_the_same_weights():
    starts = [run(f"{method}, 1+1")[1].start for method in ("none", "KD", "FSP + KD", "AB + KD")]
    assert all(torch.equal(start[key], value) for start in starts for key, value in starts[0].items())


def test_what_the_first_stage_trains():
    spy = prepared("AB + KD, 1+1", teacher_network="wrn_10_2")
    first, last = spy.stages
    student = {id(parameter): name for name, parameter in spy.model.student.named_parameters()}
    names = [student.get(id(parameter)) for parameter in first.parameters]
    assert set(student.values()) - set(names) == {"linear.weight", "linear.bias"}
    assert names.count(None) == 9, "three connectors of a convolution and a BatchNorm"
    assert [id(parameter) for parameter in last.parameters] == list(student)


def kl(student, teacher, temperature):
    """KL(teacher || student) of softened logits, mean over cases, in float64."""
    q, p = (torch.log_softmax(logits.double() / temperature, 1) for logits in (student, teacher))
    return (p.exp() * (p - q)).sum(1).mean()


def test_soft_targets_of_the_code_and_of_the_clean_variant():
    """KL at T = 3 alone; 0.1 cross-entropy + 0.9 T^2 KL. In float64: the KL of two nets alike is the small difference of large terms."""
    student, teacher = create(TINY).double().eval(), freeze(create(TINY).reset(1).double())
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        own, target = student(x), teacher(x)
    for arm in ("KD, 1+1", "AB + KD, 1 %", "FITNET + KD, 1 %"):
        loss = stages_of(arm, student, teacher)[-1].loss(x, labels)
        assert loss.item() == pytest.approx(kl(own, target, 3.0).item(), rel=1e-9), arm
    cross = -torch.log_softmax(own.double(), 1).gather(1, labels.unsqueeze(1)).mean()
    clean = stages_of("AB + KD, 1 %, clean", student, teacher)[-1].loss(x, labels)
    assert clean.item() == pytest.approx((0.1 * cross + 0.9 * 9 * kl(own, target, 3.0)).item(), rel=1e-9)


@pytest.mark.parametrize(
    "arm, weight",
    [("AT + KD", "attention_weight"), ("Jacobian + KD", "jacobian_weight"), ("FITNET + KD", "hint_weight"), ("FSP + KD", "fsp_weight")],
)
def test_a_weight_changes_the_gradient(arm, weight):
    """The part of the loss beside the soft targets is linear in it."""
    student, teacher = create(TINY), freeze(create("wrn_10_2").reset(1))
    x, labels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 4])

    def gradient(value):
        torch.manual_seed(0)
        stage = stages_of(f"{arm}, 1+1", student, teacher, **{weight: value})[0]
        return torch.autograd.grad(stage.loss(x, labels), student.conv.weight)[0]

    none, one, three = (gradient(value) for value in (0.0, 1.0, 3.0))
    assert torch.allclose(three - none, 3 * (one - none), rtol=1e-3, atol=1e-4 * one.abs().max().item())
    assert (one - none).abs().max() > 1e-6


def test_jacobian_matching_is_one_more_backward_pass_a_net(monkeypatch):
    """However many images there are."""
    plain, calls = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: (calls.append(args), plain(*args, **options))[1])
    student, teacher = create(TINY), freeze(create(TINY).reset(1))
    (stage,) = stages_of("Jacobian + KD, 1+1", student, teacher)
    for count in (1, 3):
        calls.clear()
        stage.loss(torch.randn(count, 3, 32, 32), torch.zeros(count, dtype=torch.int64))
        assert len(calls) == 2


@pytest.mark.usefixtures("float64")
def test_the_boundary_loss_is_the_authors():
    """Written out as a sum over neurons by cases: 3/1000 of group 3, half as much of group 2, a quarter of group 1."""
    student, teacher = create(TINY), create(TINY).reset(1)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = stages_of("AB + KD, 1+1", student, freeze(teacher))[0].loss(x, torch.zeros(2, dtype=torch.int64))
    expected = 0.0
    own, target = (net.train().features(x)[1] for net in (student, teacher))
    for share, group in ((1 / 4, "group1.pre"), (1 / 2, "group2.pre"), (1, "group3.pre")):
        s, t = own[group].double(), target[group].double()
        expected += share * 0.003 / 2 * (((s + 1) ** 2)[(t <= 0) & (s > -1)].sum() + ((s - 1) ** 2)[(t > 0) & (s < 1)].sum()).item()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_sides_by_hand():
    teacher = torch.tensor([[[[1.0, -1.0]]], [[[2.0, 0.0]]]])
    student = torch.tensor([[[[0.1, 5.0]]], [[[-3.0, -0.5]]]])
    assert toy.other_side(student, teacher).item() == 50.0
    assert toy.other_side(teacher, teacher).item() == 0.0
    rows = [
        {"stage": "boundary", "same_side_percent": [1.0, 2.0, 3.0]},
        {"stage": "boundary", "same_side_percent": [4.0, 5.0, 6.0]},
        {"stage": "train"},
        {"stage": "train", "same_side_percent": [7.0, 8.0, 9.0]},
    ]
    result = ab._sides(rows)
    assert result["layer2_same_side_epoch_1"] == 2.0 and result["layer3_same_side_stage_1"] == 6.0 and result["layer1_same_side_end"] == 7.0
    assert len(result) == 9 and ab._sides([{"stage": "train"}]) == {}


def test_sides_are_watched_where_neurons_correspond():
    """Through AB's connectors always; of another method only where the widths agree, and its own net has all on its side."""
    result, _ = run("AB + KD, 1+1", teacher_network="wrn_10_2", epochs="2+1")
    assert [len(row["same_side_percent"]) for row in result["history"]] == [3, 3, 3]
    assert ["test_error_percent" in row for row in result["history"]] == [False, False, True], "a head that did not learn yet is not tested"
    result, _ = run("AT + KD, 1+1", teacher_network="wrn_10_2")
    assert not any("same_side_percent" in row for row in result["history"])
    result, _ = run("AT + KD, 1+1")
    assert all(30 < side < 70 for side in result["history"][-1]["same_side_percent"]), "unrelated weights: about chance"
    config = config_of("paper", "KD, 1+1")
    twins = ab.Trial(config, Context(), create(TINY).reset(7).state_dict())
    twins.run()
    twins.student.load_state_dict(twins.teacher.state_dict())
    twins.student.eval()
    with torch.no_grad():
        assert twins.watch()["same_side_percent"].tolist() == [100.0] * 3


def test_the_first_stage_brings_neurons_to_the_teachers_side():
    """On test images, of which there are four: the mean of the last epochs that were measured."""
    result, _ = run("AB + KD, 1+1", epochs="40+1", batch_size=20, percent=100, lr=0.02)
    rows = [row for row in result["history"] if "same_side_percent" in row]
    sides = torch.tensor([row["same_side_percent"] for row in rows if row["stage"] == "boundary"])
    assert rows[0]["epoch"] == 1 and len(sides) > 8 and (sides[-4:].mean(0) > sides[0] + 5).all(), sides


def test_the_drift_of_the_teacher_is_measured_and_goes_no_further():
    """In train mode its statistics move, those of the copy that teaches stage 2 do not; in eval mode nothing moves."""
    _, spy = run("AB + KD, 1+1")
    drifting, teacher = (stage.loss.teacher for stage in spy.model.stages)
    fresh = create(TINY).reset(7).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in teacher.state_dict().items())
    moved = {key.split(".")[-1] for key, value in drifting.state_dict().items() if not torch.equal(value, fresh[key])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    result, spy = run("AB + KD, 1 %, teacher in eval mode")
    still, teacher = (stage.loss.teacher for stage in spy.model.stages)
    assert still is teacher and all(torch.equal(value, fresh[key]) for key, value in teacher.state_dict().items())
    assert result["metrics"]["teacher_error_percent"] == result["metrics"]["drifted_teacher_error_percent"]


def test_in_other_versions_of_the_program_the_drifted_teacher_teaches_stage_2():
    """One object in both stages: in stage 2 it stands still, with statistics that are not those it came with."""
    result, spy = run("AB + KD, 1 %, drifted teacher in stage 2")
    drifted, teacher = (stage.loss.teacher for stage in spy.model.stages)
    assert drifted is teacher and not teacher.training
    fresh = create(TINY).reset(7).state_dict()
    moved = {key.split(".")[-1] for key, value in teacher.state_dict().items() if not torch.equal(value, fresh[key])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    x, labels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 4])
    student = spy.model.student.eval()
    loss = spy.model.stages[-1].loss(x, labels).item()
    with torch.no_grad():
        rested = create(TINY)
        rested.load_state_dict(fresh)
        own, now, then = student(x), teacher(x), rested.eval()(x)
    assert loss == pytest.approx(kl(own, now, 3.0).item(), rel=1e-3) and loss != pytest.approx(kl(own, then, 3.0).item(), rel=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert "teacher_error_percent" not in result["metrics"] and 0 <= result["metrics"]["drifted_teacher_error_percent"] <= 100


@pytest.mark.parametrize("pause_after", [1, 2, 3])
def test_resume_is_exact_in_every_stage(tmp_path, pause_after):
    """Two epochs of each stage, the optimiser made anew in the second of each; paused within and between."""
    changes = {"epochs": "2+2", "teacher_network": "wrn_10_2", "is_teacher": True}
    whole, _ = run("AB + KD, 1+1", **changes)
    again, _ = resumed(lambda context: run("AB + KD, 1+1", context, **changes), tmp_path, pause_after)
    assert same(again, whole) and whole["weights"]


def test_fewer_images_than_a_batch_are_one_batch():
    spy = prepared("none, 0.1 %", percent=50, batch_size=125)
    assert spy.stages[0].indices(torch.Generator().manual_seed(0)).shape == (1, 10, 4)


def test_the_plane_is_that_of_the_first_two_components():
    """An independent eigendecomposition; two classes of points, centred, of unit deviation."""
    points, labels = toy.plane("cifar10")
    images = data.load("cifar10")
    chosen = [i for i, label in enumerate(images.train_labels.tolist()) if label in toy.DIGITS]
    pixels = images.train_images[chosen].double().flatten(1) / 255
    pixels -= pixels.mean(0)
    values, vectors = torch.linalg.eigh(pixels @ pixels.T)
    expected = vectors[:, [-1, -2]] * values[[-1, -2]].sqrt()
    expected /= expected.std(0)
    assert torch.allclose(points.double().abs(), expected.abs(), atol=1e-4)
    assert labels.tolist() == [toy.DIGITS.index(images.train_labels[i]) for i in chosen]


def test_the_toy():
    """Both students start alike; each transfer trains the hidden layers, then the last layer alone; the record draws the figure."""
    result, spy = run("toy", batch_size=4, epochs="3+2")
    assert [row["stage"] for row in result["history"]] == [
        *["teacher"] * 3, *["mse"] * 3, *["mse, labels"] * 2, *["boundary"] * 3, *["boundary, labels"] * 2,
    ]  # fmt: skip
    assert all(torch.equal(spy.start[f"mse.{key}"], spy.start[f"boundary.{key}"]) for key in ("weights.0", "weights.1", "weights.2"))
    head = {id(spy.model["mse"].weights[2]), id(spy.model["mse"].biases[2])}
    trained = [{id(parameter) for parameter in stage.parameters} for stage in spy.stages]
    assert trained[2] == head and not trained[1] & head and len(trained[1]) == 4
    assert {f"{name}_other_{what}_percent" for name in ("mse", "boundary") for what in ("side", "decision")} < set(result["metrics"])
    record = {"arm": "toy", "config": {"data": "cifar10"}, "metrics": result["metrics"], "history": result["history"]}
    drawn = papers.get("activation_boundaries").figures([record])
    assert list(drawn) == ["toy"]
    axes = [ax for ax in drawn["toy"]().axes if ax.get_visible()]
    assert len(axes) == 3 and axes[1].get_title(loc="left").startswith("student, mean squared error\n")


def test_the_toys_losses_by_hand():
    """What the stages minimise: half the squared distance after the ReLU, and a tenth of the squared hinge."""
    _, spy = run("toy", batch_size=4)
    index, nets = torch.arange(4), spy.model
    points, _ = toy.plane("digits")
    with torch.no_grad():
        target = nets["teacher"].features(points[:4])[1]["hidden2.pre"]
        for name, stage in (("mse", spy.stages[1]), ("boundary", spy.stages[3])):
            own = nets[name].features(points[:4])[1]["hidden2.pre"]
            hinge = torch.where(target > 0, (1 - own).clamp(min=0), (1 + own).clamp(min=0)) ** 2
            expected = 0.1 * hinge if name == "boundary" else 0.5 * (own.clamp(min=0) - target.clamp(min=0)) ** 2
            assert stage.loss(index).item() == pytest.approx(expected.sum(1).mean().item(), rel=1e-4)


def test_figures_put_the_arms_where_the_paper_has_them():
    def record(arm, error, seed=0, **metrics):
        history = [{"stage": "boundary", "epoch": 1, "lr": 0.1, "loss": 1.0, "same_side_percent": [60.0, 70.0, 80.0]}]
        config = PAPER.config("laptop", arm)
        return {"arm": arm, "seed": seed, "config": config, "metrics": {"test_error_percent": error} | metrics, "history": history}

    rows = table("little_data")["rows"]
    records = [record("none, 5 %", 40.0, 0), record("none, 5 %", 50.0, 1), record("KD, 5 %", 30.0, 0), record("KD, 5 %", 60.0, 1)]
    panels = figures._panels(rows, [*records, record("KD, 1 %", 40.0), record("KD, 5 %", 99.0, 2)], lambda config: config["percent"])
    assert list(panels) == ["KD"], "the only method that was run beside its baseline"
    lines, levels = panels["KD"]
    assert lines["ours"] == {5: pytest.approx([-25.0, 20.0])} and levels == {}, "seed by seed"
    table_of = {row["arm"]: row["paper"] for row in rows}
    assert lines["paper"][5][0] == pytest.approx(100 * (table_of["KD, 5 %"] - table_of["none, 5 %"]) / table_of["none, 5 %"])
    assert sorted(lines["paper"]) == [0.1, 1, 5, 10, 20, 100]
    drawn = papers.get("activation_boundaries").figures(
        [record("AB + KD, 1 %", 40.0, layer1_same_side_end=60.0), record("none, 1 %", 50.0)]
    )
    assert list(drawn) == ["little_data", "boundary_sides"]
    for draw in drawn.values():
        assert draw().axes
    watched = [record(f"AB + KD, {arm}", 40.0, layer1_same_side_end=60.0) for arm in ("0.1 %", "1 %", "5 %", "1 %, clean")]
    title = "Neurons on the teacher's side (%) while training: AB + KD, {}, 10 epochs on boundaries, then 50 on labels".format
    assert papers.get("activation_boundaries").figures(watched)["boundary_sides"]().heading == title("5 %"), (
        "not the first that ended: the most data"
    )
    longer = watched[1] | {"history": 2 * watched[1]["history"]}
    assert papers.get("activation_boundaries").figures([*watched, longer])["boundary_sides"]().heading == title("1 %"), (
        "nor that: the longest training"
    )
    assert papers.get("activation_boundaries").figures([]) == {}


def test_the_taps_are_where_the_authors_put_them():
    """The sum of a group through the next BatchNorm: of the next group's first block, and of the net itself."""
    net = WideResNet(10, 1).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = net.conv(x)
        for group, norm in zip(net.groups, (net.groups[1][0].norm1, net.groups[2][0].norm1, net.norm), strict=True):
            for block in group:
                h = block(h)
            expected = norm(h)
            tap = ab.BOUNDARIES[list(net.groups).index(group)]
            assert torch.allclose(net.features(x)[1][tap], expected, atol=1e-5)
    assert losses.activation_boundary_count(expected, expected).item() == 0
