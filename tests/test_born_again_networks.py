"""Furlanello 2018: what the sheet holds, chains of generations, ensembles, the parts of the gradient, Kimura's defect."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import Arms, Spy, distinct_configs, noise_images, resumed, same
from torch import nn
from torch.nn import functional as F

from kdcore import data, losses, papers
from kdcore.models import create
from kdcore.papers.born_again_networks import trial as ban
from kdcore.papers.born_again_networks.generations import Chosen, ensembles
from kdcore.papers.born_again_networks.importance import importance
from kdcore.papers.images import piecewise
from kdcore.training import Context, forecast

PAPER = papers.get("born_again_networks")
SMALL = {"wrn": "wrn_10_1", "densenet": "densenet_bc_10_4", "resnet": "resnet_8"}
COLUMNS = ["teacher", "BAN", "BAN+L", "CWTM", "DKPP", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
CODED, INTENDED = "ResNet, as coded", "ResNet, as intended: generation {}"
CHAIN = "wrn_16_1 on cifar10: {}"


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Twenty random training images and six for testing instead of any data set."""

    monkeypatch.setattr(data, "load", lambda name: noise_images(name, 20, 6, (3, 16, 16)))


def config_of(budget, arm, **changes):
    """Two passes of five steps, or for Kimura's experiment two of each generation, over all cases, with a small net of the same family."""
    config = PAPER.config(budget, arm)
    rates = {"lr": config["rates"]["lr"][:1], "until": [2]}
    every = None if config["every"] is None else 3
    network = SMALL[next(family for family in SMALL if config["network"].startswith(family))]
    teacher = config["teacher"] and "teacher"  # whose weights are made up here
    same = {"batch_size": 4, "scale": 1.0, "share": 1.0, "rates": rates, "every": every, "network": network, "teacher": teacher}
    return config | same | changes


def weights(config):
    """What a teacher's trial hands on."""
    if config["teacher"] is None:
        return None
    classes = len(data.load(config["data"]).classes)
    return create(config["network"], classes).reset(7).state_dict() | {ban.LOGITS: torch.zeros(1, 6, classes)}


ARMS = Arms("born_again_networks", config_of, weights)
run = ARMS.run


def built(arm, context=None, **changes):
    """The trial of an arm, with all that it trains."""
    config = config_of("paper", arm, **changes)
    trial = ban.Trial(config, context or Context(), weights(config))
    trial.run()
    return trial


@pytest.mark.parametrize("arm", [CHAIN.format("CWTM"), CHAIN.format("DKPP, fixed"), INTENDED.format(2), CODED])
def test_a_rehearsal_needs_no_teachers_weights(arm):
    """Nobody is asked what only a trained teacher knows; the length of the run is foretold all the same."""
    context, config = Context(rehearsal=True), config_of("paper", arm)
    run = ban.prepare([SimpleNamespace(config=config, arm=arm)], context, None)
    assert forecast(run, context) > 0
    (result,) = run.finish([{"test_error_percent": 50.0}])
    assert "importance" not in result["metrics"]
    if config["teacher"] is not None:
        with pytest.raises(ValueError, match="has no weights"):
            ban.prepare([SimpleNamespace(config=config, arm=arm)], Context(), None)


def softmax64(logits):
    powers = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# Kimura's slides, typed here and nowhere else: CIFAR-10 (teacher, BAN) and CIFAR-100, in the order of COLUMNS.
SLIDES_10 = {
    "wrn_28_1": [6.69, 6.64], "wrn_28_2": [5.06, 4.86], "wrn_28_5": [4.13, 4.03], "wrn_28_10": [3.77, 3.86],
    "densenet_bc_106_33": [3.84, 3.61], "densenet_bc_88_60": [3.81, 3.5], "densenet_bc_76_80": [3.48, 3.49],
    "densenet_bc_76_120": [3.37, 3.54],
}  # fmt: skip
SLIDES_100 = {
    "densenet_bc_106_33": [18.25, 16.95, 17.68, 17.84, 17.84, 17.61, 17.22, 16.59, 15.77, 15.68],
    "densenet_bc_88_60": [17.69, 16.69, 16.93, 17.42, 17.43, 16.62, 16.44, 16.72, 15.39, 15.74],
    "densenet_bc_76_80": [17.16, 16.36, 16.5, 17.16, 16.84, 16.26, 16.30, 15.5, 15.46, 15.14],
    "densenet_bc_76_120": [16.87, 16.00, 16.41, 17.12, 16.34, 16.13, 16.13, None, 15.13, 14.9],
}


def rows(table):
    return next(results["rows"] for results in PAPER.tables if results["id"] == table)


def test_the_sheet_holds_the_numbers_of_the_slides():
    results = {row["arm"]: row["paper"] for row in rows("cifar10")}
    assert results == {
        f"{net} on cifar10: {name}": v for net, vs in SLIDES_10.items() for name, v in zip(("teacher", "BAN"), vs, strict=True)
    }
    expected = {}
    for net, values in SLIDES_100.items():
        last = "BAN-2" if values[7] is None else "BAN-3"
        for column, value in zip(COLUMNS, values, strict=True):
            arm = {"Ens*2": "BAN-2", "Ens*3": last}.get(column, column)
            metric = f"ensemble_{column[-1]}_test_error_percent" if column.startswith("Ens") else "test_error_percent"
            expected[f"{net} on cifar100: {arm}", metric] = value
    del expected["densenet_bc_76_120 on cifar100: BAN-3", "test_error_percent"]
    shown = [row for row in rows("cifar100") if row["paper"] is not None]
    (workshop,) = [row for row in shown if "Kersner" in row["label"]]
    assert workshop["arm"] == "densenet_bc_76_80 on cifar100: teacher" and workshop["paper"] == 17.3
    assert {(row["arm"], row["metric"]): row["paper"] for row in shown if row is not workshop} == expected
    assert len(shown) == 4 * 10 - 1 + 1
    coded = [(row["metric"], row["paper"]) for row in rows("resnet") if row["arm"] == CODED]
    assert [paper for _, paper in coded] == [81.40, 83.99, 81.87, 84.17, 84.60]
    assert all(row["paper"] is None for row in rows("resnet") if row["arm"] != CODED)
    wide = {row["arm"].split(" on")[0]: row["paper"] for row in rows("cifar100_wide") if row["arm"].endswith("BAN")}
    assert wide == {"wrn_28_1": 29.43, "wrn_28_2": 24.38, "wrn_28_5": 20.93, "wrn_28_10": 18.25}


def test_the_papers_protocol():
    for arm in PAPER.budget_arms("paper"):
        config = PAPER.config("paper", arm)
        if arm.startswith("ResNet"):
            assert (config["rule"], config["batch_size"], config["network"], config["weight_decay"]) == ("adam", 64, "resnet50", 0)
            rate, passes = piecewise(config["rates"]["lr"], config["rates"]["until"], config["scale"])
            assert [rate(epoch)["lr"] for epoch in range(passes)] == [0.01] * 50
            assert config["augmentation"] == {"pad": 0} and config["ensemble_of"] == "logits"
            continue
        rate, passes = piecewise(config["rates"]["lr"], config["rates"]["until"], config["scale"])
        assert [rate(epoch)["lr"] for epoch in range(passes)] == [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
        assert (config["momentum"], config["nesterov"], config["weight_decay"], config["batch_size"]) == (0.9, True, 5e-4, 128)
        assert config["augmentation"] == {"pad": 4, "border": "reflect", "flip": True} and config["ensemble_of"] == "probabilities"
        assert config["dropout"] == (0.3 if arm.startswith("wrn") else 0) and config["recompute"] == arm.startswith("densenet")
        assert config["network"] == arm.split(" on ")[0] and f" on {config['data']}:" in arm
    coded = PAPER.config("paper", CODED)
    assert (coded["temperature"], coded["soft_weight"], coded["generations"], coded["every"]) == (20, 0.9, 3, 50)


@pytest.mark.parametrize("budget, coded, others", [("paper", 50, 200), ("fast", 5, 30), ("laptop", 8, 30), ("smoke", 2, 2)])
def test_passes_of_each_budget(budget, coded, others):
    for arm in PAPER.budget_arms(budget):
        config = PAPER.config(budget, arm)
        assert piecewise(config["rates"]["lr"], config["rates"]["until"], config["scale"])[1] == (coded if "ResNet" in arm else others), arm


def test_no_larger_budget_changes_what_an_arm_is():
    allowed = {"laptop": {"scale", "share", "batch_size", "network", "every"}, "fast": {"scale", "recompute", "every"}}
    for budget, keys in allowed.items():
        for arm in PAPER.budget_arms(budget):
            ours, theirs = PAPER.config(budget, arm), PAPER.config("paper", arm)
            changed = {key for key in ours if ours[key] != theirs[key]}
            assert changed <= keys and ("network" not in changed or "ResNet" in arm), (budget, arm)


@pytest.mark.parametrize("budget", PAPER.budgets)
def test_a_student_is_its_teachers_equal_with_a_seed_of_its_own(budget):
    for arm in PAPER.budget_arms(budget):
        config = PAPER.config(budget, arm)
        if config["teacher"] is None:
            continue
        teacher = PAPER.config(budget, config["teacher"])
        assert teacher["is_teacher"] and config["init"] != teacher["init"], arm
        own = ("init", "objective", "teacher", "is_teacher")
        assert {k: v for k, v in config.items() if k not in own} == {k: v for k, v in teacher.items() if k not in own}, arm


def test_generations_form_a_chain():
    setting = "densenet_bc_76_80 on cifar100"
    chain, trial = [], PAPER.trial("paper", f"{setting}: BAN-3", 1)
    while trial is not None:
        chain.append(trial.arm.split(": ")[1])
        trial = PAPER.teacher_of(trial)
    assert chain == ["BAN-3", "BAN-2", "BAN-1", "teacher"]
    inits = [PAPER.config("paper", f"{setting}: {name}")["init"] for name in ("teacher", "BAN", "BAN-1", "BAN-2", "BAN-3")]
    assert len(set(inits)) == 5
    assert {PAPER.config("paper", f"{setting}: {name}")["init"] for name in ("BAN", "BAN+L", "CWTM", "DKPP", "DKPP, fixed")} == {inits[1]}
    assert PAPER.config("paper", f"{setting}: DKPP, fixed")["objective"] == "DKPP, fixed"


def densenet_weights(depth, growth, classes):
    """Counted by hand: kernels, two values for each normalised channel, the linear layer."""
    channels = 2 * growth
    total = 27 * channels
    for stage in range(3):
        if stage:
            total, channels = total + 2 * channels + channels * (channels // 2), channels // 2
        for _ in range((depth - 4) // 6):
            total += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth
            channels += growth
    return total + 2 * channels + channels * classes + classes


def test_the_recount_of_the_densenets():
    """What the sheet and the notebook say of the nets' sizes, and the nets themselves."""
    counts = {(106, 33): 6.36, (112, 33): 6.99, (88, 60): 15.19, (94, 60): 16.96, (76, 80): 21.10, (82, 80): 23.92}
    counts |= {(76, 120): 47.28, (82, 120): 53.59}
    notebook = (Path(__file__).parents[1] / "notebooks" / "born_again_networks.ipynb").read_text()
    for (depth, growth), millions in counts.items():
        assert densenet_weights(depth, growth, 100) / 1e6 == pytest.approx(millions, abs=0.005)
        assert f"{millions:.2f}M" in notebook
    with torch.device("meta"):
        net = create("densenet_bc_106_33", 100)
    assert sum(p.numel() for p in net.parameters()) == densenet_weights(106, 33, 100) == 6_360_761
    used = {PAPER.config("paper", arm)["network"] for arm in PAPER.budget_arms("paper") if arm.startswith("densenet")}
    assert used == {f"densenet_bc_{depth}_{growth}" for depth, growth in ((106, 33), (88, 60), (76, 80), (76, 120))}


METRICS = {"test_errors", "test_error_percent", "test_accuracy_percent", "best_test_error_percent", "train_error_percent"}


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm):
    """Its own objective, for a few steps, with a small net of its family; budgets that differ in lengths alone are one."""
    result, spy = run(arm, budget=budget)
    config = config_of(budget, arm)
    assert set(result["metrics"]) >= METRICS | {"best_generation_test_error_percent"}
    assert all(np.isfinite(row["loss"]) for row in result["history"])
    assert ("weights" in result) == config["is_teacher"] and ("importance" in result["metrics"]) == (config["objective"] == "CWTM")
    assert ("divergence_from_teacher" in result["history"][-1]) == (config["teacher"] is not None or config["same_object"])
    assert ("gradient_true_class" in result["history"][-1]) == (config["objective"] == "BAN")
    assert isinstance(spy.stages[0].rule([torch.nn.Parameter(torch.ones(1))]), torch.optim.Adam) == ("ResNet" in arm)
    json.dumps([result["metrics"], result["history"]], allow_nan=False)


def test_objectives_share_weights_and_batches_and_generations_do_not():
    results = {name: run(CHAIN.format(name))[1] for name in ("teacher", "BAN", "CWTM", "DKPP, fixed", "BAN-1")}
    ours = results["BAN"]
    assert len(ours.seen[0]) == 10 and {len(index) for index in ours.seen[0]} == {4}
    for name in ("CWTM", "DKPP, fixed"):
        assert results[name].seen[0] == ours.seen[0] and all(
            torch.equal(results[name].start[key], value) for key, value in ours.start.items()
        )
    for name in ("teacher", "BAN-1"):
        assert results[name].seen[0] != ours.seen[0] and any(
            not torch.equal(results[name].start[key], value) for key, value in ours.start.items()
        )
    assert run(CHAIN.format("BAN"), Context(seed=1))[1].seen[0] != ours.seen[0]


def loss_of(name, x, labels, student, teacher):
    """What an objective comes to, from the definitions in NumPy."""
    q = np.log(softmax64(student))
    p, hard = softmax64(teacher), -q[np.arange(len(labels)), labels]
    soft = -(p * q).sum(-1).mean()
    weights = p.max(-1) / p.max(-1).sum()
    return {"labels": hard.mean(), "BAN": soft, "BAN+L": soft + hard.mean(), "CWTM": (weights * hard).sum()}[name]


@pytest.mark.parametrize("name", ["teacher", "BAN", "BAN+L", "CWTM"])
def test_the_loss_of_an_objective(name):
    _, spy = run(CHAIN.format(name))
    trial, (stage,) = built(CHAIN.format(name)), spy.stages
    index = stage.indices(torch.Generator().manual_seed(3))[0]
    x, labels = trial.views(index), trial.train_labels[index[:, 0]]
    net = spy.model.student.eval()
    teacher = create("wrn_10_1").reset(7).eval()
    with torch.no_grad():
        expected = loss_of(trial.config["objective"], x, labels.numpy(), net(x).numpy(), teacher(x).numpy())
        assert stage.loss_of(index).item() == pytest.approx(expected, rel=1e-5)


def test_fixed_permutations_belong_to_the_image():
    """The same image, the same view: the same targets in each step. DKPP draws anew."""
    targets = {}
    for name in ("DKPP, fixed", "DKPP"):
        _, spy = run(CHAIN.format(name))
        (stage,) = spy.stages
        index = stage.indices(torch.Generator().manual_seed(3))[0]
        net = spy.model.student.eval()
        with torch.no_grad():
            targets[name] = [stage.loss_of(index).item() for _ in range(4)]
            swapped = [stage.loss_of(index.flip(0)).item() for _ in range(4)]
        assert not net.training
        if name == "DKPP, fixed":
            assert swapped == pytest.approx(targets[name], rel=1e-6), "an image's permutation does not depend on its place in the batch"
    assert len(set(targets["DKPP, fixed"])) == 1 and len(set(targets["DKPP"])) > 1
    assert targets["DKPP, fixed"][0] != pytest.approx(targets["DKPP"][0], rel=1e-6)


def test_permuted_targets_keep_the_teachers_first_choice():
    trial = built(CHAIN.format("DKPP, fixed"))
    index = trial.indices(torch.Generator().manual_seed(1)).flatten(0, 1)
    x = trial.views(index)
    with torch.no_grad():  # as the table asks: with a graph, a processor may take another way to the same logits
        plain, permuted = trial.teacher(x), trial.table()(index, x)
    assert torch.equal(plain.argmax(-1), permuted.argmax(-1)) and not torch.equal(plain, permuted)
    assert torch.equal(plain.sort(-1).values, permuted.sort(-1).values)
    other = built(CHAIN.format("DKPP, fixed"), Context(seed=1)).table()(index, x)
    assert not torch.equal(permuted, other), "another seed, another order"


def test_a_chain_of_four_and_its_ensembles():
    """Each generation is taught by the one before; Ens*2 and Ens*3 are the last two and three, recomputed here."""
    labels, said, teacher = data.load("cifar10").test_labels.numpy(), [], None
    for number, name in enumerate(("teacher", "BAN-1", "BAN-2", "BAN-3"), 1):
        result, spy = run(CHAIN.format(name), teacher_weights=teacher)
        measures, trial = result["metrics"], ban.Trial(config_of("paper", CHAIN.format(name)), Context())
        said.append(trial.logits(spy.model.student, trial.test_views).numpy())
        wrong = [100 * np.mean(logits.argmax(-1) != labels) for logits in said]
        assert measures["test_error_percent"] == pytest.approx(wrong[-1])
        assert measures["best_generation_test_error_percent"] == pytest.approx(min(wrong))
        for count in range(2, number + 1):
            together = np.mean([softmax64(logits) for logits in said[-count:]], 0)
            expected = 100 * np.mean(together.argmax(-1) != labels)
            assert measures[f"ensemble_{count}_test_error_percent"] == pytest.approx(expected)
            assert measures[f"ensemble_{count}_test_accuracy_percent"] == pytest.approx(100 - expected)
        assert f"ensemble_{number + 1}_test_error_percent" not in measures
        if name != "BAN-3":
            teacher = result["weights"]
            assert np.allclose(teacher[ban.LOGITS].numpy(), np.stack(said), atol=1e-5)


def test_what_an_ensemble_takes_the_mean_of():
    """One case of three classes: the mean of the probabilities is largest for class 0, that of the logits for class 1."""
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 5.0, 4.99]], [[0.0, 5.0, 4.99]]])
    labels = torch.tensor([0])
    p = softmax64(logits.numpy()).mean(0)[0]
    results = {what: ensembles(logits, 1, labels, what) for what in ("probabilities", "logits")}
    assert [results[what]["ensemble_3_test_error_percent"] for what in results] == [p.argmax() * 100.0, 100.0] == [0.0, 100.0]


def test_earlier_generations_of_one_trial_have_a_prefix():
    """Errors of three generations on four cases: 1, 2 and 0; each ensemble by hand."""
    labels = torch.tensor([0, 0, 1, 1])
    sure, doubtful = 4.0, 1.0
    first = torch.tensor([[sure, 0], [sure, 0], [0, sure], [sure, 0]])
    second = torch.tensor([[0, doubtful], [sure, 0], [doubtful, 0], [0, sure]])
    third = torch.tensor([[sure, 0], [sure, 0], [0, sure], [0, 2 * sure]])
    result = ensembles(torch.stack([first, second, third]), 3, labels, "logits")
    assert [result[f"generation_{n}_test_error_percent"] for n in (1, 2)] == [25.0, 50.0]
    # case 4: 4 + 0 for class 0, 0 + 4 for class 1: a tie, which the first class wins; the others go to the surer net
    assert result["generation_2_ensemble_2_test_error_percent"] == 25.0
    assert result["ensemble_2_test_error_percent"] == result["ensemble_3_test_error_percent"] == 0.0
    assert result["best_generation_test_error_percent"] == 0.0 and "generation_3_test_error_percent" not in result


@pytest.mark.parametrize("arm", [CHAIN.format("BAN-1"), CHAIN.format("DKPP"), CODED, INTENDED.format(2)])
def test_resume_is_exact(tmp_path, arm):
    """Paused within a generation, and for the one object of three at their borders, too, the record is the same."""
    whole, _ = run(arm)
    total = len(whole["history"])
    for pause_after in sorted({1, 3, 8} & set(range(total))):
        again, _ = resumed(lambda context: run(arm, context), tmp_path / str(pause_after), pause_after)
        assert same(again, whole), pause_after


def test_importance_weights_by_hand():
    """Two sure cases (0.95, right) and one doubtful (0.55, wrong) of a teacher; the student is even."""
    p = torch.tensor([[0.95, 0.05], [0.05, 0.95], [0.45, 0.55]]).log()
    result = importance(torch.zeros(3, 2), p, torch.tensor([0, 1, 0]))
    assert result["cases"] == [0] * 5 + [1] + [0] * 3 + [2]
    assert result["cwtm_weight"][5] == pytest.approx(0.55 / (2.45 / 3)) and result["cwtm_weight"][9] == pytest.approx(0.95 / (2.45 / 3))
    assert result["true_class_weight"][5] == pytest.approx(0.05 / 0.5) and result["true_class_weight"][9] == pytest.approx(0.45 / 0.5)
    assert result["cwtm_weight"][0] is None and result["true_class_weight"][0] is None


def test_as_coded_nothing_is_ever_taught():
    """The KL is 0 to the last bit and only labels are learned from; each later generation starts at the best weights before it."""
    after_epochs = []
    spy = Spy(ban.prepare([SimpleNamespace(config=config_of("paper", CODED))], Context(), None))
    measure = spy.run.evaluate

    def evaluate():
        row = measure()
        after_epochs.append({key: value.clone() for key, value in spy.model.student.state_dict().items()})
        return row

    spy.run.evaluate = evaluate
    (result,) = spy.train()
    (stage,) = spy.stages
    rows_found, each = result["history"], 3  # two passes of five steps, evaluated every three
    assert len(rows_found) == 3 * each and {row["divergence_from_teacher"] for row in rows_found} == {0.0}
    assert stage.loss.student is stage.loss.teacher is spy.model.student
    knobs = [stage.schedule(epoch) for epoch in range(9)]
    assert [k["hard_weight"] for k in knobs] == [1.0] * 3 + [pytest.approx(0.1)] * 6
    assert [k["soft_weight"] for k in knobs] == [0.0] * 3 + [0.9] * 6
    # the loss of the later generations is a tenth of the cross-entropy, nothing else
    net, index = spy.model.student.train(), stage.indices(torch.Generator().manual_seed(1))[0]
    trial = ban.Trial(config_of("paper", CODED), Context())
    hard = losses.cross_entropy(net(trial.views(index)), trial.train_labels[index[:, 0]])
    assert stage.loss_of(index).item() == pytest.approx(0.1 * hard.item(), rel=1e-4)
    for generation in range(3):
        part = rows_found[generation * each : (generation + 1) * each]
        best = min(range(each), key=lambda i: part[i]["test_loss"])
        kept = after_epochs[generation * each + best] if best < each - 1 else after_epochs[(generation + 1) * each - 1]
        assert all(torch.equal(after_epochs[(generation + 1) * each - 1][key], value) for key, value in kept.items())


def test_as_coded_the_statistics_become_those_of_the_test_set():
    trial = ban.Trial(config_of("paper", CODED, batch_size=3), Context())
    net = trial.student = trial.network("resnet_8", 0).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    seen = []
    hook = net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    result = trial.drifting()
    hook.remove()
    assert not net.training
    changed = {key.rsplit(".")[-1] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    for _ in range(60):
        trial.drifting()
    images = trial.test_views(trial.test_views.plain(torch.arange(6)))
    order = [next(i for i in range(6) if torch.equal(images[i], x)) for x in torch.cat(seen)]
    assert sorted(order) == list(range(6)) and len(seen) == 2
    x, labels = images[order], trial.test_labels[order]
    maps = net.conv(x).detach()
    halves = [maps[:3].mean((0, 2, 3)), maps[3:].mean((0, 2, 3))]  # the second batch has the last word: 1 / (2 - 0.1) of the weight
    expected = (0.9 * halves[0] + halves[1]) / 1.9
    assert torch.allclose(net.norm.running_mean, expected, atol=1e-5)
    net.load_state_dict(before)
    net.train()
    logits = [net(x[:3]), net(x[3:])]
    hand = [F.cross_entropy(z.double(), y).item() for z, y in zip(logits, labels.split(3), strict=True)]
    assert result["test_loss"].item() == pytest.approx(np.mean(hand), rel=1e-4)
    assert result["test_error_percent"] == pytest.approx(100 * np.mean(torch.cat(logits).argmax(-1).numpy() != labels.numpy()))


def test_as_coded_batches_of_the_test_set_mix_the_classes():
    """The data lie in order of their classes; BatchNorm's statistics of a batch must not be those of one class."""
    labels, batches = torch.arange(10).repeat_interleave(20), []

    class Views:
        plain = staticmethod(lambda part: part)

        def __call__(self, part):
            batches.append(labels[part])
            return F.one_hot(labels[part], 10).float()

    shown = {"test_labels": labels, "test_views": Views(), "student": nn.Identity()}
    result = ban.Trial.drifting(SimpleNamespace(config={"batch_size": 20}, context=Context(), **shown))
    assert result["test_error_percent"] == 0 and torch.equal(torch.cat(batches).sort().values, labels)
    assert len(batches) == 10 and min(len(batch.unique()) for batch in batches) > 4


def test_as_intended_a_generation_starts_anew_and_is_taught():
    first, one = run(INTENDED.format(1))
    second, two = run(INTENDED.format(2), teacher_weights=first["weights"])
    assert any(not torch.equal(one.start[key], two.start[key]) for key in one.start)
    trained = first["weights"]
    assert all(not torch.equal(two.start[key], trained[key]) for key in two.start if "conv" in key)
    assert all(row["divergence_from_teacher"] > 1e-4 for row in second["history"])
    assert "divergence_from_teacher" not in first["history"][0] and one.stages[0].knobs == {}
    # the held-out tenth is never trained on
    trial = built(INTENDED.format(1))
    seen, held_out = trial.seen.tolist(), trial.held_out.tolist()
    assert len(held_out) == 2 and sorted([*seen, *held_out]) == list(range(20))
    assert {row[0] for index in one.seen[0] for row in index} <= set(seen)
    # the reported net is that of the epoch with the lowest held-out loss
    best = min(first["history"], key=lambda row: row["held_out_loss"])
    assert first["metrics"]["test_error_percent"] == pytest.approx(best["test_error_percent"])


def test_chosen_weights_survive_what_follows():
    net = create("resnet_8").reset(1)
    chosen = Chosen(net, 1, 4, 10)
    assert not {id(p) for p in chosen.parameters()} & {id(p) for p in net.parameters()}
    with torch.no_grad():
        for value, loss in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0)):
            net.linear.bias.fill_(value)
            chosen.offer(torch.tensor(loss))
        copy = Chosen(net, 1, 4, 10)
        copy.load_state_dict(chosen.state_dict())
        copy.restore()
    assert net.linear.bias.tolist() == [2.0] * 10 and int(copy.epochs) == 3 and copy.lowest == torch.inf


def test_figures_from_records():
    from kdcore.report import canvas

    def record(arm, rows, **measures):
        return {"arm": arm, "history": rows, "metrics": measures}

    parts = [{"gradient_true_class": 0.2 / n, "gradient_other_classes": 0.5 / n, "gradient_labels": 0.4 / n} for n in (1, 2)]
    importance = {"cases": [0] * 5 + [2] * 5, "cwtm_weight": [None] * 5 + [1.0] * 5, "true_class_weight": [None] * 5 + [0.8] * 5}
    coded = [{"test_error_percent": 50.0 - n, "divergence_from_teacher": 0.0} for n in range(9)]
    first, later = [{"test_error_percent": 60.0}] * 2, [{"test_error_percent": 55.0, "divergence_from_teacher": 0.3}] * 2
    records = [record(CHAIN.format("BAN"), parts), record(CHAIN.format("CWTM"), [], importance=importance), record(CODED, coded)]
    drawn = papers.get("born_again_networks").figures(
        [*records, *(record(INTENDED.format(n), first if n == 1 else later) for n in (1, 2, 3))]
    )
    assert set(drawn) == {"dark_knowledge", "importance", "generations"}
    error, divergence = drawn["generations"]().axes
    as_coded, as_intended = divergence.lines[:2]
    assert list(as_coded.get_xdata()) == pytest.approx([(n + 1) / 3 for n in range(9)]) and set(as_coded.get_ydata()) == {0.0}
    assert list(as_intended.get_xdata()) == [1.5, 2.0, 2.5, 3.0], "the first generation has no teacher"
    assert list(error.lines[1].get_ydata()) == [60.0, 60.0, 55.0, 55.0, 55.0, 55.0]
    assert [line.get_xdata()[0] for line in error.lines[2:]] == [1, 2]
    weights, cases = drawn["importance"]().axes
    assert np.isnan(weights.lines[0].get_ydata()[:5]).all() and list(cases.lines[0].get_ydata()) == [0.0] * 5 + [20.0] * 5
    sizes, share = drawn["dark_knowledge"]().axes
    assert list(sizes.lines[1].get_ydata()) == [0.5, 0.25] and list(share.lines[0].get_ydata()) == pytest.approx([200 / 7] * 2)
    assert share.lines[0].get_color() == sizes.lines[0].get_color() != sizes.lines[1].get_color()
    assert set(papers.get("born_again_networks").figures(records)) == {"dark_knowledge", "importance"}, "half of the comparison is none"
    seldom = record(CHAIN.format("BAN"), [{}, {key: 3 * value for key, value in parts[1].items()}])  # the last epoch alone
    (other, *_) = (
        line for ax in papers.get("born_again_networks").figures([records[0], seldom])["dark_knowledge"]().axes[:1] for line in ax.lines[1:]
    )
    assert (list(other.get_xdata()), list(other.get_ydata())) == ([2], [0.5]), "the mean of 0.25 and 0.75"
    assert canvas.svg(drawn["importance"]()) == canvas.svg(drawn["importance"]())
