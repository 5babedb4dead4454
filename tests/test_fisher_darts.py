"""Whettam 2020: whether the sheet says what the slides say, what a trial does at every budget, what it asked of shared code."""

import base64
import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from runs import Arms, distinct_configs, noise_images, resumed, same

from kdcore import data, losses, methods, papers
from kdcore.models import create
from kdcore.papers.fisher_darts import growing, maps
from kdcore.papers.fisher_darts import trial as fisher_darts
from kdcore.papers.fisher_darts.figures import scatter, spread
from kdcore.papers.fisher_darts.rates import rates
from kdcore.papers.images import weights_of
from kdcore.report import claims, formats
from kdcore.training import Context, forecast, seed_of

PAPER = papers.get("fisher_darts")
# What each ungrown network counts with head and statistics: one halving is enough to pass it.
START = {"darts_v2_10_16": 784_547, "darts_v2_6_8": 462_135, "darts_v2_5_4": 425_130}


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Four random training images and three for testing, of 8x8 (an auxiliary head needs 32x32), instead of any data set."""
    monkeypatch.setattr(data, "load", lambda name: images_of(8))


def images_of(side):
    return noise_images("cifar10", 4, 3, (3, side, side), labels=torch.tensor([0, 9, 3, 3, 1, 9, 0]))


def config_of(budget, arm, **changes):
    config = PAPER.config(budget, arm) | {"data": "cifar10", "share": 1, "batch_size": 2, "epochs": 1, "grow_batch": 2}
    config["grow_target"] = START.get(config["network"])
    if config["search"]:
        config["search"] |= {"cells": 3, "channels": 2}
    return config | changes


def built(arm, **changes):
    """The trial of an arm, with all that it trains."""
    config = config_of("smoke", arm, **changes)
    trial = fisher_darts.Trial(config, Context(), weights(config))
    trial.run()
    return trial


def weights(config):
    """What a teacher's trial hands over: of a grown one with its groups."""
    if config["teacher"] is None:
        return None
    net = create(config["teacher_network"]).reset(7)
    if not config["teacher_network"].startswith("darts"):
        return weights_of(net)
    if config["teacher"] == "Fisher teacher":
        net = create(config["teacher_network"], groups=[2] * len(net.cells)).reset(7)
    return weights_of(net) | {"groups": torch.tensor(net.groups)}


ARMS = Arms("fisher_darts", config_of, weights, "smoke")
run = ARMS.run

# The two tables of the slides, typed here from them and nowhere else: top-1 and top-5 error, each with its deviation.
MATRIX = {
    "DenseNet -> DenseNet": (6.3000, 0.35, 0.1833, 0.02),
    "DenseNet -> WRN": (6.2467, 0.12, 0.2000, 0.04),
    "DenseNet -> DARTS": (8.4600, 1.30, 0.24, 0.04),
    "WRN -> DenseNet": (5.7467, 0.33, 0.1767, 0.02),
    "WRN -> WRN": (6.1567, 0.17, 0.2200, 0.02),
    "WRN -> DARTS": (8.5433, 0.14, 0.2233, 0.02),
    "DARTS -> DenseNet": (6.7833, 0.02, 0.2233, 0.01),
    "DARTS -> WRN": (6.6767, 0.42, 0.2067, 0.01),
    "DARTS -> DARTS": (7.7900, 0.30, 0.2100, 0.01),
}
TEACHERS = {
    "none -> DARTS": (8.4700, 1.11, 0.2200, 0.04),
    "DARTS -> DARTS": (7.7900, 0.30, 0.2100, 0.01),
    "uniform -> DARTS": (6.4233, 0.17, 0.1833, 0.06),
    "Fisher -> DARTS": (6.4033, 0.08, 0.1333, 0.03),
}


@pytest.mark.parametrize("table_id, reported", [("matrix", MATRIX), ("teachers", TEACHERS)])
def test_the_sheet_holds_the_papers_numbers(table_id, reported):
    (table,) = (table for table in PAPER.tables if table["id"] == table_id)
    results = {(row["arm"], row["metric"]): (row["paper"], row["std"]) for row in table["rows"]}
    expected = {}
    for arm, (top1, std1, top5, std5) in reported.items():
        expected |= {(arm, "test_error_percent"): (top1, std1), (arm, "top5_error_percent"): (top5, std5)}
    assert results == expected


def test_the_thesis_rows():
    results = {(t["id"], r["arm"], r["metric"][:4]): r["paper"] for t in PAPER.tables for r in t["rows"]}
    assert results["open", "calibrated Fisher -> DARTS", "test"] == 7.105 and results["open", "calibrated Fisher -> DARTS", "top5"] == 0.14
    own = {arm: [results["own", f"{arm} teacher", kind] for kind in ("test", "top5")] for arm in ("DARTS", "uniform", "Fisher")}
    assert own == {"DARTS": [6.85, 0.16], "uniform": [7.32, 0.23], "Fisher": [6.91, 0.20]}
    assert results["darts", "evaluation network", "test"] == 2.76


def test_the_papers_protocol():
    for arm in PAPER.arms:
        config = PAPER.config("paper", arm)
        search = "search" in arm
        assert config["data"] == "cifar10" and config["augmentation"] == {"pad": 4, "flip": True} and config["momentum"] == 0.9
        results = (config["batch_size"], config["epochs"], config["lr"], config["weight_decay"], config["drop_path"], config["beta"])
        if not search and arm != "evaluation network":
            assert results == (64, 200, 0.1, 5e-4, 0.2, 1000) and config["cutout"] == 0 and config["auxiliary_weight"] == 0, arm
        elif search:
            assert results == (64, 50, 0.025, 3e-4, 0.0, 1000) and config["clip"] == 5
            assert config["search"]["order"] == (1 if "first" in arm else 2)
        else:
            assert results == (96, 600, 0.025, 3e-4, 0.2, 1000) and (config["cutout"], config["auxiliary_weight"], config["clip"]) == (
                16,
                0.4,
                5,
            )
    families = {
        "DenseNet": ("densenet_bc_40_36", "densenet_bc_100_12"),
        "WRN": ("wrn_28_2", "wrn_16_2"),
        "DARTS": ("darts_v2_25_16", "darts_v2_10_16"),
    }
    for arm in MATRIX:
        teacher, student = arm.split(" -> ")
        config = PAPER.config("paper", arm)
        assert (config["teacher_network"], config["network"]) == (families[teacher][0], families[student][1])
    assert PAPER.config("paper", "Fisher teacher")["grow_target"] == 1_400_000 * 0.975


def test_every_teacher_has_the_network_that_its_students_expect():
    for budget in PAPER.budgets:
        for arm in PAPER.budget_arms(budget):
            config = PAPER.config(budget, arm)
            if config["teacher"] is None:
                assert config["teacher_network"] is None and config["method"] != "attention", (budget, arm)
            else:
                teacher = PAPER.config(budget, config["teacher"])
                assert teacher["network"] == config["teacher_network"] and teacher["is_teacher"], (budget, arm)
                assert config["teacher"] in PAPER.budget_arms(budget)


def test_how_much_there_is_to_train():
    """Epochs times images times a hundred places of each weight; a search has those of its mixed network."""
    for arm, weights_of_net in (("none -> WRN", 200 * 691_674), ("first-order search", 50 * 1_930_618)):
        assert PAPER.work(PAPER.config("paper", arm)) == pytest.approx(50_000 * 100 * weights_of_net)


@pytest.mark.parametrize(
    "arm, epoch, lr, drop_path",
    [
        ("none -> DARTS", 0, 0.1, 0.0),
        ("none -> DARTS", 59, 0.1, 0.059),
        ("none -> DARTS", 60, 0.02, 0.06),
        ("none -> DARTS", 120, 0.004, 0.12),
        ("none -> DARTS", 160, 0.0008, 0.16),
        ("none -> DARTS", 199, 0.0008, 0.199),
        ("evaluation network", 0, 0.025, 0.0),
        ("evaluation network", 300, 0.0125, 0.1),
        ("first-order search", 25, 0.013, 0.0),  # half way from 0.025 to 0.001
    ],
)
def test_rates_of_the_paper(arm, epoch, lr, drop_path):
    result = rates(PAPER.config("paper", arm), epoch)
    assert result == {"lr": pytest.approx(lr), "drop_path": pytest.approx(drop_path)}


def test_fast_and_laptop_drop_the_rate_at_the_same_shares():
    for budget, drops in (("fast", [9, 18, 24]), ("laptop", [5, 9, 12])):
        config = PAPER.config(budget, "none -> DARTS")
        lrs = [rates(config, epoch)["lr"] for epoch in range(config["epochs"])]
        assert [e for e in range(1, len(lrs)) if lrs[e] < lrs[e - 1]] == drops
    changed = {arm: {k for k, v in PAPER.config("fast", arm).items() if v != PAPER.config("paper", arm)[k]} for arm in PAPER.arms}
    assert set(map(frozenset, changed.values())) == {frozenset({"epochs"})}
    assert PAPER.seeds("fast", "none -> DARTS") == PAPER.seeds("paper", "WRN -> WRN") == 5
    assert PAPER.seeds("laptop", "none -> DARTS") == PAPER.seeds("laptop", "Fisher -> DARTS") == 6


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm, monkeypatch):
    """Its own networks and losses, for a step; budgets that differ in lengths alone are one."""
    if PAPER.config(budget, arm)["auxiliary_weight"]:
        monkeypatch.setattr(data, "load", lambda name: images_of(32))
    result, spy = run(arm, budget=budget, batch_size=2 if "search" in arm else 4)
    config, measures = PAPER.config(budget, arm), result["metrics"]
    (stage,) = spy.stages
    assert stage.name == ("search" if config["method"] == "search" else "train") and len(result["history"]) == 1
    assert len(spy.seen[0]) == 1
    assert math.isfinite(result["history"][0]["loss"]) and measures["test_error_percent"] >= 0
    assert ("weights" in result) == config["is_teacher"]
    assert ("map_similarity" in measures) == (config["method"] == "attention")
    assert ("maps" in measures) == config["keep_maps"] and ("growth" in measures) == (config["grow"] is not None)
    assert ("genotype" in measures) == (config["method"] == "search") == ("top5_error_percent" not in measures)
    if config["is_teacher"]:
        assert ("groups" in result["weights"]) == config["network"].startswith("darts")
    json.dumps([measures, result["history"]])


def test_arms_of_a_seed_start_alike_and_see_the_same_batches():
    arms = ("none -> DARTS", "WRN -> DARTS", "DARTS -> DARTS", "Fisher -> DARTS", "untrained Fisher -> DARTS")
    runs = {arm: run(arm)[1] for arm in arms}
    plain, other = runs[arms[0]], run(arms[0], Context(seed=1))[1]
    assert len(plain.seen[0]) == 2 and plain.seen[0] != other.seen[0]
    assert any(not torch.equal(plain.start[key], other.start[key]) for key in plain.start)
    for arm, spy in runs.items():
        assert spy.seen[0] == plain.seen[0] and all(torch.equal(spy.start[key], plain.start[key]) for key in plain.start), arm


def loss_of(arm, **changes):
    """A method, its teacher and its loss on all training images; dropped paths are the same at each call."""
    trial = built(arm, **changes)
    x, labels = trial.views(trial.views.plain(torch.arange(4))), trial.train_labels

    def loss():
        torch.manual_seed(0)
        return trial.method.stages[0].loss(x, labels)

    return trial.student, trial.teacher, x, labels, loss


@pytest.mark.parametrize("arm", ["WRN -> DenseNet", "DARTS -> WRN", "DenseNet -> DARTS"])
def test_the_loss_of_attention_transfer(arm):
    """Cross-entropy plus 1000 times the mean squares of the differences of three unit maps, of each family's own layers."""
    net, teacher, x, labels, loss = loss_of(arm)
    points = {"DenseNet": ["stem", "stage2", "final"], "WRN": ["group1.sum", "group2.sum", "group3.sum"]}
    theirs, mine = arm.split(" -> ")
    mine = points.get(mine, ["cell0", "cell1", "cell3"])  # 5 cells; of 10: 0, 3, 6
    theirs = points.get(theirs, ["cell0", "cell2", "cell5"])  # 8 cells
    torch.manual_seed(0)
    logits, own = net.features(x)
    _, target = teacher.features(x)
    expected = -logits.double().log_softmax(1)[range(4), labels].mean().item()
    for a, b in zip(mine, theirs, strict=True):
        q = [maps.double().square().mean(1).flatten(1) for maps in (own[a], target[b])]
        q = [each / each.square().sum(1, keepdim=True).sqrt() for each in q]
        expected += 1000 * (q[0] - q[1]).square().mean().item()
    assert loss().item() == pytest.approx(expected, rel=1e-4)
    assert [net.taps[a].size for a in mine] == [teacher.taps[b].size for b in theirs] == [32, 16, 8]


def test_points_of_the_papers_students():
    with torch.device("meta"):
        results = {name: maps.attended(create(name)) for name in ("darts_v2_10_16", "darts_v2_25_16")}
    assert results == {"darts_v2_10_16": ["cell0", "cell3", "cell6"], "darts_v2_25_16": ["cell0", "cell8", "cell16"]}


def test_beta_changes_the_gradient():
    net, _, _, _, loss = loss_of("WRN -> DARTS", beta=0.0)
    plain = torch.autograd.grad(loss(), net.cells[0].preprocess[0][1].weight)[0]
    for beta in (1.0, 1000.0):
        net, _, _, _, loss = loss_of("WRN -> DARTS", beta=beta)
        moved = torch.autograd.grad(loss(), net.cells[0].preprocess[0][1].weight)[0] - plain
        assert moved.abs().max() > 0
        if beta == 1.0:
            unit = moved
    assert torch.allclose(moved, 1000 * unit, rtol=0.05, atol=1e-3)


def test_an_untrained_teacher_keeps_its_shape_alone():
    _, trained, *_ = loss_of("Fisher -> DARTS")
    _, untrained, *_ = loss_of("untrained Fisher -> DARTS")
    taught = weights(config_of("smoke", "Fisher -> DARTS"))
    assert trained.groups == untrained.groups and set(trained.groups) == {1, 2}, "grown, not the depthwise net of its name"
    assert torch.equal(trained.linear.weight, taught["linear.weight"]) and not torch.equal(untrained.linear.weight, taught["linear.weight"])
    assert not trained.training and not any(p.requires_grad for p in [*trained.parameters(), *untrained.parameters()])


def test_a_calibrated_teacher_differs_from_the_untrained_one_by_its_statistics_alone():
    (_, flat, *_), (_, calibrated, *_) = (loss_of(f"{kind} Fisher -> DARTS") for kind in ("untrained", "calibrated"))
    assert not calibrated.training and not any(p.requires_grad for p in calibrated.parameters())
    assert all(torch.equal(p, q) for p, q in zip(flat.parameters(), calibrated.parameters(), strict=True))
    norms = [[m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)] for net in (flat, calibrated)]
    assert all(norm.running_var.eq(1).all() for norm in norms[0])
    assert all(norm.running_var.ne(1).all() and norm.momentum == 0.1 for norm in norms[1])


def test_calibration_is_the_mean_of_the_batches_statistics():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    batches = [scale * torch.randn(6, 3, 5, 5) + shift for scale, shift in ((1, 0), (2, 1), (0.5, -2))]
    fisher_darts.calibrate(torch.nn.Sequential(conv, norm), batches)
    maps = [conv.double()(x.double()).detach().transpose(0, 1).flatten(1) for x in batches]
    torch.testing.assert_close(norm.running_mean.double(), sum(h.mean(1) for h in maps) / 3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), sum(h.var(1) for h in maps) / 3, rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1


@pytest.mark.usefixtures("float64")
def test_the_auxiliary_loss_counts_with_its_weight():
    values = {}
    for weight in (0.0, 0.4):
        config = config_of("smoke", "evaluation network", auxiliary_weight=weight)
        net = create("darts_v2_5_4", auxiliary=True).reset(1)
        trial = fisher_darts.Trial(config, Context())
        trial.student, trial.teacher = net, None
        (stage,) = trial.make_method().stages
        x, labels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)
        torch.manual_seed(0)
        values[weight] = stage.loss(x, labels)
        torch.manual_seed(0)
        logits, taps = net.features(x)
        by_hand = [losses.cross_entropy(z, labels).item() for z in (logits, taps["auxiliary"])]
        assert values[weight].item() == pytest.approx(by_hand[0] + weight * by_hand[1], rel=1e-9)
    assert values[0.4] > values[0.0]


def test_drop_path_is_scheduled():
    _, spy = run("none -> DARTS", epochs=4, evaluate_every=5)
    (stage,) = spy.stages
    assert stage.measured == (3,)
    assert [stage.schedule(epoch)["drop_path"] for epoch in range(4)] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert spy.model.student.drop_path.item() == pytest.approx(0.15)
    for arm, change in (("none -> DARTS", {"drop_path": 0.0}), ("none -> WRN", {})):
        _, spy = run(arm, **change)
        assert set(spy.stages[0].schedule(0)) == {"lr"} and not spy.stages[0].knobs
    _, spy = run("none -> DARTS", drop_path=0.0)
    assert spy.model.student.drop_path is None, "no product with 1 for each operation"


def test_parameters_as_published_and_as_they_are():
    results, _ = run("none -> DARTS", budget="paper", batch_size=4)
    assert (results["metrics"]["parameters"], results["metrics"]["published_parameters"]) == (338_794, 774_260)
    results, _ = run("evaluation network", budget="smoke", auxiliary_weight=0.0)
    assert results["metrics"]["published_parameters"] - results["metrics"]["parameters"] == 64 * 128 + 256 + 393_216 + 1536 + 7690


def test_growth_of_each_kind():
    target = START["darts_v2_5_4"] + 6000
    paths, nets = {}, {}
    for kind in ("fisher", "uniform", "random"):
        result, spy = run("Fisher teacher" if kind == "fisher" else f"{kind.replace('random', 'random-order')} teacher", grow_target=target)
        paths |= result["metrics"]["growth"]
        nets[kind] = spy.model.student
        ends = next(iter(result["metrics"]["growth"].values()))[-1]
        assert ends["size"] > target and nets[kind].groups == list(ends["groups"].values()) == result["weights"]["groups"].tolist()
        assert result["metrics"]["published_parameters"] + sum(b.numel() for b in nets[kind].buffers()) - 1 + head_buffers() == ends["size"]
    assert set(paths) == {"fisher", "random", *growing.UNIFORM}
    assert [step["module"] for step in paths["first cell first"][:4]] == ["cell 0", "cell 2", "cell 4", "cell 0"]
    assert [step["module"] for step in paths["last cell first"][:4]] == ["cell 4", "cell 2", "cell 0", "cell 4"]
    for step in paths["fisher"]:
        growable = {name: value for name, value in step["information"].items() if name not in ("cell 1", "cell 3")}
        assert len(step["information"]) == 5 and min(growable.values()) >= 0
    assert paths["fisher"][0]["module"] == max(("cell 0", "cell 2", "cell 4"), key=lambda name: paths["fisher"][0]["information"][name])
    again, _ = run("Fisher teacher", grow_target=target)
    assert again["metrics"]["growth"]["fisher"] == paths["fisher"], "the same seed grows the same network"


def head_buffers():
    return 128 * 2 + 1 + 768 * 2 + 1


def test_growth_starts_from_the_trained_student_and_training_from_scratch():
    target = START["darts_v2_5_4"]
    trained, spy = run("Fisher teacher", grow_target=target)
    scratch, other = run("Fisher teacher", grow_target=target, teacher=None, teacher_network=None)
    first, second = (each["metrics"]["growth"]["fisher"][0]["information"] for each in (trained, scratch))
    assert first != second
    for grown in (spy, other):  # trained, they begin as any network of these groups with this seed
        fresh = create("darts_v2_5_4", groups=grown.model.student.groups).reset(seed_of(0, "net")).state_dict()
        assert max(grown.model.student.groups) > 1 and all(torch.equal(grown.start[key], value) for key, value in fresh.items())


@pytest.mark.parametrize("arm", ["Fisher teacher", "Fisher -> DARTS", "first-order search"])
def test_a_rehearsal_needs_no_weights(arm, monkeypatch):
    """It asks no batch for its information: the size that it grows to is the same."""
    monkeypatch.setattr(growing.fisher, "information", None)
    config, context = config_of("smoke", arm), Context(rehearsal=True)
    run = fisher_darts.prepare([SimpleNamespace(config=config, arm=arm)], context, None)
    assert forecast(run, context) > 0
    if arm == "Fisher teacher":
        (result,) = run.finish([{"test_error_percent": 50.0}])
        assert [step["size"] > config["grow_target"] for step in result["metrics"]["growth"]["fisher"]] == [True]


def test_similarity_of_maps(monkeypatch):
    views = fisher_darts.Trial(config_of("smoke", "WRN -> WRN"), Context()).test_views
    net, other = create("wrn_10_1").reset(1), create("wrn_10_1").reset(2)
    assert maps.similarity(net, net.eval(), views) == pytest.approx(1)
    other.eval()
    x = views(views.plain(torch.arange(3)))
    with torch.no_grad():
        powers = [[n.features(x)[1][f"group{g}.sum"].double().square().sum(1).flatten(1) for g in (1, 2, 3)] for n in (net, other)]
    cosines = [torch.nn.functional.cosine_similarity(a, b).mean().item() for a, b in zip(*powers, strict=True)]
    assert maps.similarity(net, other, views) == pytest.approx(sum(cosines) / 3, abs=1e-5) and min(cosines) < 0.999
    # of images that are spread over the test set, not of the first ones, which are of one class
    monkeypatch.setattr(maps, "spread", lambda count, wanted, device: torch.tensor([0, 2]) if wanted == 1000 else None)
    some = [torch.nn.functional.cosine_similarity(a[[0, 2]], b[[0, 2]]).mean().item() for a, b in zip(*powers, strict=True)]
    assert maps.similarity(net, other, views) == pytest.approx(sum(some) / 3, abs=1e-5)


def test_maps_of_a_record(monkeypatch):
    trial, images = built("none -> DARTS"), images_of(8).test_images
    net, views = trial.student, trial.test_views
    result = maps.shown(net, views, images)
    assert len(result) == 3 and [each["shape"] for each in result[0]["maps"]] == [[8, 8], [4, 4], [2, 2]]
    assert base64.b64decode(result[1]["image"]) == images[1].numpy().tobytes()
    with torch.no_grad():
        h = net.features(views(views.plain(torch.arange(3))))[1]["cell1"].square().sum(1)[2]
    values = torch.frombuffer(bytearray(base64.b64decode(result[2]["maps"][1]["values"])), dtype=torch.uint8).view(4, 4)
    assert torch.equal(values, (255 * h / h.max()).round().byte())
    monkeypatch.setattr(maps, "spread", lambda count, wanted: torch.tensor([2, 0]) if wanted == 3 else None)
    assert [each["image"] for each in maps.shown(net, views, images)] == [result[2]["image"], result[0]["image"]]


def test_the_search_learns_from_two_halves():
    _, spy = run("first-order search", batch_size=1, epochs=2)
    seen = [[{row[0] for row in half} for half in index] for index in spy.seen[0]]
    halves = [set().union(*(index[side] for index in seen)) for side in (0, 1)]
    assert len(spy.seen[0]) == 4 and halves[0] | halves[1] == {0, 1, 2, 3} and not halves[0] & halves[1]
    (stage,) = spy.stages
    assert stage.schedule(1)["rate"] == stage.schedule(1)["lr"] == pytest.approx(0.013) == pytest.approx(spy.model.rate.item())
    assert not torch.equal(spy.start["net.alphas"], spy.model.net.alphas)


@pytest.mark.parametrize("arm", ["first-order search", "Fisher teacher"])
def test_resume_is_exact(tmp_path, arm):
    whole, _ = run(arm, epochs=2)
    again, _ = resumed(lambda context: run(arm, context, epochs=2), tmp_path, 1)
    assert same(again, whole)


def test_figures_from_records():
    arms = ("none -> DARTS", "WRN -> DARTS", "uniform teacher", "first-order search")
    records = []
    for arm in arms:
        result, _ = run(arm, Context(), grow_target=START["darts_v2_5_4"] + 3000)
        records.append({"arm": arm, "config": PAPER.config("smoke", arm), "metrics": result["metrics"], "history": []})
    drawn = papers.get("fisher_darts").figures(records)
    assert set(drawn) == {"spread", "growth", "maps", "similarity", "cells"}
    for figure in drawn.values():
        figure()
    growth = drawn["growth"]()
    path = records[2]["metrics"]["growth"]["first cell first"]
    assert growth.axes[0].images[0].get_array().shape == (5, len(path)) and len(growth.axes) == 2
    single_runs = drawn["spread"]().axes[0]
    assert any(line.get_xdata()[0] == 8.47 for line in single_runs.lines) and len(single_runs.get_yticks()) == 4
    assert len(drawn["maps"]().axes) == 3 * 9 and len(drawn["cells"]().axes) == 4
    texts = [text.get_text() for text in drawn["cells"]().axes[0].texts]
    assert texts.count("sep conv 3x3") == 5 and texts.count("skip connect") == 2 and texts.count("dil conv 3x3") == 1
    arrows = [text for text in drawn["cells"]().axes[0].texts if hasattr(text, "arrow_patch")]
    assert [round(text.xyann[0]) for text in arrows] == [0, 1, 0, 1, 1, 0, 0, 2], "from the columns of the nodes that they take"
    assert [round(text.xy[0]) for text in arrows] == [2, 2, 3, 3, 4, 4, 5, 5], "to those that they make"
    assert papers.get("fisher_darts").figures([]) == {}


def test_scatter_and_spread_without_results():
    figure = scatter({"a": [(0.1, 5.0), (0.2, 6.0)], "b": [(0.3, 7.0)]}, xlabel="x")
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0.1, 0.2], [0.3]], "no line through two groups"
    assert not figure.axes[0].collections
    figure = scatter({"a": [(0.0, 1.0), (1.0, 2.0)], "b": [(2.0, 6.0)], "c": [(3.0, 7.0)]}, ylabel="y")
    line, band = figure.axes[0].lines[0], figure.axes[0].collections[0]
    slope, intercept = 2.2, 0.7  # sums of squares by hand: 11 / 5, 4 - 2.2 * 1.5
    assert line.get_ydata() == pytest.approx(intercept + slope * line.get_xdata()) and list(line.get_xdata()[[0, -1]]) == [0, 3]
    assert band.get_paths() and figure.axes[0].get_ylabel() == "y"
    assert figure.axes[0].get_ylim() == pytest.approx((1 - 0.9, 7 + 0.9)), "the points set the axis, not the band"
    figure = spread([{"label": "a", "paper": None, "ours": []}, {"label": "b", "paper": (1.0, 0.5), "ours": [51.0, 53.0]}])
    paper, ours = (ax.get_xlim() for ax in figure.axes)
    assert len(figure.axes[0].get_yticks()) == 2 and paper[1] - paper[0] == pytest.approx(ours[1] - ours[0]), "one scale"
    assert paper[0] < 0.5 < 1.5 < paper[1] and ours[0] < 52 - 2**0.5 < 52 + 2**0.5 < ours[1], "means and standard deviations inside"
    assert sum(ours) / 2 == pytest.approx(52)
    spread([{"label": "a", "paper": None, "ours": []}])


def test_claims_of_the_paper_in_its_own_numbers():
    frame = claims.claims(PAPER, [], "paper").set_index("id")
    # 6.4033 -+ .08 against 8.47 -+ 1.11, three runs each: t = 2.0667 / .6425 = 3.217 with 2.02 degrees of freedom
    helps = frame.loc["fisher_helps"]
    assert helps["reported"] == pytest.approx(-2.0667) and helps["reported_p"] == pytest.approx(0.083, abs=5e-4)
    assert helps["reported_low"] < 0 < helps["reported_high"], "three runs do not carry it"
    # the mean of 8.46 and 8.5433 is 8.5017
    assert frame.loc["same_family", "reported"] == pytest.approx(7.79 - 8.50165)
    assert math.isnan(frame.loc["fisher_beats_wide", "reported"]), "no number in the paper"
    doubtful = [table | {"rows": [row | {"mark": "M?"} for row in table["rows"]]} for table in PAPER.tables]
    unsure = copy.copy(PAPER)
    unsure.__dict__ |= {"tables": doubtful}
    assert claims.claims(unsure, [], "paper")["reported"].isna().all(), "numbers that nobody could verify carry no test"
    text, html = formats.to_markdown(claims.claims(PAPER, [], "paper")), formats.to_html(claims.claims(PAPER, [], "paper"))
    assert "own left - right" in text and "0.083" in text and "0.083" in html
    others = claims.claims(papers.get("fsp"), [], "paper")
    assert others["reported"].notna().sum() == 4 and others["reported_p"].isna().all(), "no standard deviations, no test"
    assert "paper's own" in formats.to_markdown(others) and "Welch" not in formats.to_html(others)


def test_cutout_is_part_of_training_batches_alone():
    (stage,) = methods.plain(create("wrn_10_1")).stages
    for side in (0, 4):
        trial = fisher_darts.Trial(config_of("smoke", "none -> WRN", cutout=side), Context())
        index = trial.views.plain(torch.arange(4))
        x, labels = trial.stage(stage, lambda epoch: {"lr": 0.1}, epochs=1).batch(index)
        plain = trial.views(index)
        assert torch.equal(labels, trial.train_labels) and torch.equal(x, plain) == (side == 0)
        assert (x != plain).any(1).sum((1, 2)).max() <= side * side
