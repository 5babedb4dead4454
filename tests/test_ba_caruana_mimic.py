"""Ba & Caruana 2014: whether the sheet says what the deck says, what a trial does at every budget, and what a mimic learns from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import Arms, distinct_configs, noise_images, resumed, same

from kdcore import data, papers
from kdcore.data import images
from kdcore.data.images import ImageData
from kdcore.errors import Paused
from kdcore.models import count_parameters, create
from kdcore.papers.ba_caruana_mimic import trial as ba
from kdcore.training import Context, forecast

PAPER = papers.get("ba_caruana_mimic")
CASES = 12


@pytest.fixture(autouse=True)
def random_images(monkeypatch):
    """Twelve random training images of all ten classes and four for testing instead of any data set."""
    small = noise_images("cifar10", CASES, 4, labels=torch.arange(CASES + 4) % 10)
    monkeypatch.setattr(data, "load", lambda name: small)
    return small


def config_of(budget, arm, **changes):
    """As the sheet has it, but for the size: narrow nets, four cases a batch, two epochs, few patches, no whitening of 3,072 values."""
    small = {"width": 1 / 64, "batch_size": 4, "epochs": 2, "views": 2, "normalisation": None, "patches": 100, "iterations": 2}
    return PAPER.config(budget, arm) | small | changes


def logits(seed=5, members=4, views=2, tests=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": 5 * torch.randn(members, CASES * (1 + views), 10, generator=generator),
        "test_logits": torch.randn(members, tests, 10, generator=generator),
    }


def weights(config):
    return logits() if config["teacher"] else None


ARMS = Arms("ba_caruana_mimic", config_of, weights)
run = ARMS.run


def prepared(arm, context, **options):
    """The run of an arm without its teacher's logits."""
    config = config_of("paper" if "budget" not in options else options.pop("budget"), arm, **options)
    return ba.prepare([SimpleNamespace(config=config, arm=arm)], context, None)


# Table 2, typed here from the deck and nowhere else: label, parameters, hidden units, error.
DECK = [
    ("DNN", "~10M", "4k", 57.8),
    ("SNN-30k", "~70M", "~190k", 21.8),
    ("single-layer features", "~125M", "~3.7B", 18.4),
    ("CNN [11]", "~10k", "~110k", 15.6),
    ("CNN [21]", "~56k", "~120k", 15.13),
    ("teacher CNN", "~35k", "~210k", 12.0),
    ("ECNN", "~140k", "~840k", 11.0),
    ("SNN-CNN-MIMIC-30k", "~54M", "~110k", 15.4),
    ("SNN-CNN-MIMIC-30k", "~70M", "~190k", 15.1),
    ("SNN-ECNN-MIMIC-30k", "~70M", "~190k", 14.2),
]
TABLE, CONTROLS, AGREEMENT = PAPER.tables
SIZES = PAPER.sheet["sizes"]


def test_the_sheet_holds_the_papers_numbers():
    printed = [
        (size["row"], size["parameters printed"], size["hidden units printed"], row["paper"])
        for size, row in zip(SIZES, TABLE["rows"], strict=True)
    ]
    assert printed == DECK
    assert all(row["label"].startswith(size["row"]) for size, row in zip(SIZES, TABLE["rows"], strict=True))
    assert [row["paper"] for row in CONTROLS["rows"]] == [21.8, None, None, 15.1]
    assert all(row["paper"] is None for row in AGREEMENT["rows"])


def test_the_recounted_sizes_are_those_of_the_nets():
    """The printed counts agree with the layers in the shallow rows and are off by more than ten times in those of the CNNs."""
    units = {"k": 1e3, "M": 1e6, "B": 1e9}
    for size, row in zip(SIZES, TABLE["rows"], strict=True):
        config = PAPER.config("paper", row["arm"])
        printed = float(size["parameters printed"].strip("~kMB")) * units[size["parameters printed"][-1]]
        if config["method"] == "features":
            # 4000 centroids of 108 values, ten classes of 4 x 4000 weights; 27 x 27 patches and four quadrants
            assert (size["parameters"], size["hidden units"]) == (4000 * 108 + 160_010, 4000 * (27**2 + 4))
            continue
        with torch.device("meta"):
            net = create(config["layers"])
        assert (count_parameters(net) * config["members"], net.hidden_units * config["members"]) == (
            (size["parameters"], size["hidden units"]) if row["metric"] == "test_error_percent" else (7_968_776, 813_472)
        )
        agrees = size["note"] == "agree"
        assert agrees == (abs(size["parameters"] / printed - 1) < 0.02)
        assert agrees or size["parameters"] > 5 * printed
        if agrees:
            hidden = float(size["hidden units printed"].strip("~k")) * 1e3
            assert abs(size["hidden units"] / hidden - 1) < 0.02
    teacher, ensemble = SIZES[5:7]
    assert (ensemble["parameters"], ensemble["hidden units"]) == (4 * teacher["parameters"], 4 * teacher["hidden units"])


def test_the_papers_protocol():
    configs = {arm: PAPER.config("paper", arm) for arm in PAPER.arms}
    for arm, config in configs.items():
        assert (config["data"], config["normalisation"], config["augmentation"], config["width"]) == ("cifar10", "whitened", {"pad": 0}, 1)
        assert config["unlabelled"] is None and config["views"] == 20, "1.05 million cases, as many as the paper has"
        mimic = "MIMIC" in arm
        assert (config["method"] == "mimic") == mimic
        if mimic:
            assert (config["dropout"], config["input_dropout"], config["pooling"], config["teacher"]) == (0, 0, "max", "ECNN")
            assert config["teachers"] == (None if "ECNN" in arm else 1)
            assert config["transfer"] == ("no views" not in arm)
            assert config["layers"] == ("64c" if "64c" in arm else "128c") + "-p-1200L-30k"
    assert configs["ECNN"]["members"] == 4 and configs["ECNN"]["is_teacher"] and configs["ECNN"]["pooling"] == "stochastic"
    plain, views = configs["SNN-30k"], configs["SNN-30k, labels of the views"]
    assert {key for key in plain if plain[key] != views[key]} <= {"transfer", "epochs"}, "the control differs in its cases alone"
    assert (plain["input_dropout"], plain["dropout"]) == (0.2, 0.5)


def test_what_a_budget_may_change():
    """Shorter, narrower, fewer views: never another loss, teacher or regularisation."""
    allowed = {"fast": {"views", "epochs"}, "laptop": {"views", "epochs", "width", "normalisation", "lr", "patches", "iterations"}}
    allowed["smoke"] = allowed["laptop"] | {"data", "shift", "batch_size"}
    for budget, keys in allowed.items():
        assert PAPER.budget_arms(budget) == list(PAPER.arms), "all rows"
        for arm in PAPER.arms:
            ours, theirs = PAPER.config(budget, arm), PAPER.config("paper", arm)
            assert {key for key in ours if ours[key] != theirs[key]} <= keys, (budget, arm)


def test_arms_that_are_compared_get_as_many_steps():
    for budget in ("laptop", "fast"):
        passes = {}
        for arm in PAPER.arms:
            config = PAPER.config(budget, arm)
            if config["layers"].endswith("30k"):
                passes[arm] = config["epochs"] * (1 + config["transfer"] * config["views"])
        assert len(set(passes.values())) == 1, (budget, passes)


@pytest.mark.parametrize("budget, arm", distinct_configs(PAPER, config_of))
def test_every_arm_of_every_budget_runs(budget, arm):
    """Its own layers, regularisation, rate and targets; budgets that differ in sizes alone are one."""
    result, spy = run(arm, budget=budget)
    config = config_of(budget, arm)
    measures = result["metrics"]
    assert set(measures) >= {"test_errors", "test_error_percent", "best_test_error_percent", "train_error_percent", "parameters_millions"}
    assert ("weights" in result) == config["is_teacher"] and ("teacher_agreement_percent" in measures) == (config["method"] == "mimic")
    json.dumps([measures, result["history"]])
    if config["method"] != "features":
        cases = CASES * (3 if config["transfer"] else 1)
        assert len(spy.seen[0]) == 2 * cases // 4 and all(torch.tensor(row["loss"]).isfinite().all() for row in result["history"])
        assert {len(index) for index in spy.seen[0]} == {config["members"]}
        for member in range(config["members"]):
            assert sorted(sum((index[member] for index in spy.seen[0][: cases // 4]), [])) == list(range(cases))


def test_the_rate_falls_linearly():
    _, spy = run("SNN-30k", epochs=5, lr=0.002)
    rates = [spy.stages[0].schedule(step)["lr"] for step in range(15)]
    assert spy.stages[0].steps == 15 and rates[0] == 0.002 and np.allclose(np.diff(rates), -0.002 * 0.99 / 15)
    assert spy.stages[0].optimiser == {"momentum": 0.9, "weight_decay": 0.0}


def test_arms_of_a_seed_start_alike():
    arms = ("SNN-30k", "SNN-CNN-MIMIC-30k, 128c", "SNN-ECNN-MIMIC-30k, 128c", "SNN-30k, labels of the views")
    runs = [run(arm)[1] for arm in arms]
    assert all(torch.equal(spy.start[key], value) for spy in runs for key, value in runs[0].start.items())
    assert runs[1].seen == runs[2].seen == runs[3].seen, "and see the same batches where they have the same cases"
    other = run(arms[1], Context(seed=1))[1]
    assert other.seen != runs[1].seen and any(not torch.equal(other.start[key], value) for key, value in runs[0].start.items())


def test_the_members_of_an_ensemble_differ_in_weights_and_order():
    result, spy = run("ECNN")
    firsts = [value for key, value in spy.start.items() if key.endswith("layers.0.weight")]
    assert len(firsts) == 4 and not any(torch.equal(firsts[0], other) for other in firsts[1:])
    assert len({json.dumps(index) for index in spy.seen[0][0]}) > 1
    assert len(result["history"][0]["loss"]) == 4
    alone, own = run("ECNN", members=1)[1], spy.start
    assert all(torch.equal(value, own[key]) for key, value in alone.start.items()), "the first is what one net alone would be"


def test_what_teachers_write_down():
    """Their own logits of the very cases that students see, and their errors, counted by hand."""
    result, spy = run("ECNN")
    cases, weights = ba.Trial(config_of("paper", "ECNN"), Context()).transfer_set(), result["weights"]
    assert weights["logits"].shape == (4, 3 * CASES, 10) and weights["test_logits"].shape == (4, 4, 10)
    options = {"pooling": "stochastic", "dropout": 0.5}
    net = create("2c-p-2c-p-2c-p-16fc", **options).eval()
    net.load_state_dict({key.removeprefix("1.student."): value for key, value in spy.end.items() if key.startswith("1.")})
    x = cases.views(cases.places)
    assert torch.allclose(weights["logits"][1], net(x), atol=1e-4)
    labels = data.load("cifar10").test_labels
    missed = [100 * (each.argmax(1) != labels).double().mean().item() for each in weights["test_logits"]]
    assert result["metrics"]["member_test_error_percent"] == pytest.approx(sum(missed) / 4)
    assert result["metrics"]["first_test_error_percent"] == pytest.approx(missed[0])
    ensemble = 100 * (weights["test_logits"].mean(0).argmax(1) != labels).double().mean().item()
    assert result["metrics"]["test_error_percent"] == pytest.approx(ensemble) == pytest.approx(result["history"][-1]["test_error_percent"])


def test_a_mimic_never_sees_a_label(random_images, monkeypatch):
    arm = "SNN-CNN-MIMIC-30k, 128c"
    end = run(arm)[1].end
    shuffled = ImageData(
        "cifar10", random_images.train_images, random_images.train_labels.flip(0), random_images.test_images,
        random_images.test_labels, random_images.classes,
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda name: shuffled)
    assert all(torch.equal(value, end[key]) for key, value in run(arm)[1].end.items())
    plain = run("SNN-30k")[1].end
    monkeypatch.setattr(data, "load", lambda name: random_images)
    assert any(not torch.equal(value, plain[key]) for key, value in run("SNN-30k")[1].end.items()), "which the others do"


def test_a_single_teacher_is_the_first_and_an_ensemble_is_all():
    known, other = logits(), logits()
    other["logits"][1:] += torch.randn(3, 3 * CASES, 10, generator=torch.Generator().manual_seed(1))
    for arm, alike in (("SNN-CNN-MIMIC-30k, 128c", True), ("SNN-ECNN-MIMIC-30k, 128c", False)):
        ends = [run(arm, teacher_weights=teacher)[1].end for teacher in (known, other)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]) == alike, arm


def test_normalised_targets_by_hand():
    z = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 2.0], [5.0, 5.0, -4.0]])
    table, mean, std = ba.normalised(z)
    assert mean.tolist() == [3, 5, 0] and std.tolist() == pytest.approx([(8 / 3) ** 0.5, 1, 8**0.5])
    assert torch.allclose(table[:, 0], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5) and (table[:, 1] == 0).all()
    net = ba.Rescaled(torch.nn.Identity(), mean, std)
    assert torch.allclose(net(table), z), "what was learned is brought back to the teacher's scale"


def test_a_mimic_learns_the_logits():
    """The loss is 1/(2T) sum ||g - z||^2 on normalised targets: about C / 2 = 5 for a net that says 0; it falls, and predictions are
    those of the teacher, whose classes lie on different scales."""
    known = logits(members=1, views=0)
    known["logits"] = known["logits"] * torch.linspace(0.2, 3, 10) + torch.linspace(-2, 2, 10)
    arm, changes = "SNN-CNN-MIMIC-30k, 128c, no views", {"epochs": 150, "lr": 0.003, "width": 1 / 32}
    result, _ = run(arm, teacher_weights=known, **changes)
    assert result["history"][0]["loss"] > 2 and result["history"][-1]["loss"] < 0.05
    labels = data.load("cifar10").train_labels
    wrong = 100 * (known["logits"][0].argmax(1) != labels).double().mean().item()
    assert result["metrics"]["train_error_percent"] == pytest.approx(wrong), "it says what its teacher says, right or wrong"


def test_the_transfer_set():
    config = config_of("paper", "ECNN", views=3)
    trial, pixels = ba.Trial(config, Context(seed=2)), data.load("cifar10").train_images
    cases = trial.transfer_set()
    assert len(cases.places) == len(cases.labels) == 4 * CASES
    assert torch.equal(cases.x(torch.arange(CASES)), trial.views(trial.views.plain(torch.arange(CASES)))), "first the images as they are"
    assert torch.equal(cases.places[:, 0], torch.arange(CASES).repeat(4))
    assert torch.equal(cases.labels, trial.train_labels[cases.places[:, 0]])
    assert cases.places[:, 1:3].min() >= 0 and cases.places[:, 1:3].max() <= 8 and set(cases.places[CASES:, 3].tolist()) == {0, 1}
    number = next(n for n in range(CASES, 4 * CASES) if cases.places[n, 3] == 1 and cases.places[n, 1] < 4 < cases.places[n, 2])
    image, dy, dx, _ = cases.places[number].tolist()
    mirrored = trial.views(trial.views.plain(torch.tensor([image])))[0].flip(-1)
    down, left = 4 - dy, dx - 4
    assert torch.equal(cases.x(torch.tensor([number]))[0, :, down:, : 32 - left], mirrored[:, : 32 - down, left:])
    again, other = (ba.Trial(config, Context(seed=seed)).transfer_set().places for seed in (2, 3))
    assert torch.equal(again, cases.places) and not torch.equal(other, cases.places)
    assert pixels.dtype == torch.uint8


def test_a_mimic_without_teachers_is_told():
    with pytest.raises(ValueError, match="a mimic needs its teachers' logits"):
        prepared("SNN-CNN-MIMIC-30k, 64c", Context())


@pytest.mark.parametrize("arm", ["SNN-CNN-MIMIC-30k, 64c", "4000c-p and SVM", "ECNN"])
def test_a_forecast_needs_no_teacher(arm):
    context = Context(rehearsal=True)
    assert forecast(prepared(arm, context, budget="laptop"), context) > 0


def test_a_forecast_of_cases_in_the_order_of_their_classes(monkeypatch):
    """The first cases of such a data set are of one class, which no machine can separate."""
    pixels, labels = torch.randint(256, (600, 3, 32, 32), dtype=torch.uint8), torch.arange(600) // 300
    monkeypatch.setattr(data, "load", lambda name: ImageData("cifar10", pixels, labels, pixels[:4], labels[:4], tuple("01")))
    assert prepared("4000c-p and SVM", Context(rehearsal=True), budget="laptop", share=1).estimate() > 0


@pytest.mark.parametrize("arm", ["ECNN", "SNN-CNN-MIMIC-30k, 128c"])
def test_resume_is_exact(tmp_path, arm):
    whole, _ = run(arm, epochs=3)
    again, _ = resumed(lambda context: run(arm, context, epochs=3), tmp_path, 2)
    assert same(again, whole) and len(whole["history"]) == 3


def test_unlabelled_pictures_join_the_transfer_set_and_no_labels(monkeypatch):
    """Two of one colour: (10, 20, 30), and white."""
    pictures = torch.tensor([[10, 20, 30], [255, 255, 255]], dtype=torch.uint8).view(2, 3, 1, 1).expand(-1, -1, 32, 32)
    monkeypatch.setattr(images, "unlabelled", lambda name, sha256: pictures)
    unlabelled = {"name": "holiday", "sha256": "0" * 64}
    config = config_of("paper", "ECNN", views=1, unlabelled=unlabelled)
    trial = ba.Trial(config, Context())
    cases = trial.transfer_set()
    assert cases.labels.tolist() == [*trial.train_labels.tolist(), -1, -1] * 2
    assert torch.equal(cases.labelled().labels, trial.train_labels.repeat(2)) and (cases.labelled().places[:, 0] < CASES).all()
    red = (10 / 255 - trial.views.normalisation[0][0]) / trial.views.normalisation[1][0]
    assert torch.allclose(cases.x(torch.tensor([CASES]))[0, 0], red, atol=1e-6), "normalised as the training images are"
    known = logits(views=0)
    known["logits"] = torch.randn(4, 2 * (CASES + 2), 10, generator=torch.Generator().manual_seed(0))
    for arm, steps in (("SNN-CNN-MIMIC-30k, 128c", 7), ("SNN-30k, labels of the views", 6), ("SNN-CNN-MIMIC-30k, 128c, no views", 3)):
        _, spy = run(arm, teacher_weights=known if "MIMIC" in arm else None, views=1, unlabelled=unlabelled, epochs=1)
        assert len(spy.seen[0]) == steps, arm


def test_features_are_told_apart_by_the_svm(random_images):
    """Twelve random images are separable; the SVM's own decision is what the measured net gives."""
    result, _ = run("4000c-p and SVM", width=0.005, penalty=100.0)
    assert result["metrics"]["train_error_percent"] == 0 and result["history"] == []
    assert result["metrics"]["hidden_units"] == 20 * 733
    assert result["metrics"]["parameters_millions"] == pytest.approx((20 * 108 + 80 * 10 + 10) / 1e6)
    assert result["metrics"]["best_test_error_percent"] == result["metrics"]["test_error_percent"]


def test_features_say_that_they_are_saved_once_and_go_on_from_there(random_images, tmp_path, monkeypatch):
    words = []
    with pytest.raises(Paused):
        run("4000c-p and SVM", Context(checkpoint=tmp_path, deadline=0, say=words.append), width=0.005, penalty=100.0)
    assert len(words) == 1 and "repeats that part" in words[0]
    whole, _ = run("4000c-p and SVM", Context(say=words.append), width=0.005, penalty=100.0)
    monkeypatch.setattr(ba.PatchFeatures, "fit", lambda *_: pytest.fail("k-means again"))
    resumed, _ = run("4000c-p and SVM", Context(checkpoint=tmp_path, say=words.append), width=0.005, penalty=100.0)
    assert resumed == whole


def test_figures_from_records():
    records = []
    for arm in ("ECNN", "SNN-CNN-MIMIC-30k, 64c"):
        result, _ = run(arm)
        for seed, error in ((0, 20.0), (1, 30.0)):
            measured = result["metrics"] | {"member_test_error_percent": error + 5, "test_error_percent": error}
            records.append({"arm": arm, "seed": seed, "metrics": measured, "config": config_of("paper", arm)})
    drawn = papers.get("ba_caruana_mimic").figures(records)
    assert list(drawn) == ["error_against_parameters", "softmax_hides"] and papers.get("ba_caruana_mimic").figures([]) == {}
    paper, own = drawn["error_against_parameters"]().axes
    ours = {tuple(np.ravel(line.get_xydata())) for line in own.lines if len(line.get_xdata()) == 1}
    sizes = {record["arm"]: 1e6 * record["metrics"]["parameters_millions"] for record in records}
    mimic = sizes["SNN-CNN-MIMIC-30k, 64c"]
    assert ours == {(sizes["ECNN"] / 4, 30.0), (sizes["ECNN"], 25.0), (mimic, 25.0)}
    theirs = {tuple(np.ravel(line.get_xydata())) for line in paper.lines}
    looks = {(line.get_marker(), line.get_color()) for line in paper.lines}
    assert len(looks) == len({marker for marker, _ in looks}) == 10, "each network has its own marker"
    assert len(theirs) == 10 and (53_616_074, 15.4) in theirs and (7_968_776, 11.0) in theirs
    assert {ax.get_xscale() for ax in (paper, own)} == {ax.get_yscale() for ax in (paper, own)} == {"log"}


def test_softmax_hides_what_logits_tell():
    """The deck's numbers: softmax([10, 20, 30]) = softmax([-10, 0, 10]) = [2.06e-9, 4.54e-5, 1]."""
    from kdcore.papers.ba_caruana_mimic.figures import HIDDEN, logits_and_softmax  # slow to import

    figure = logits_and_softmax(HIDDEN)
    texts = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert texts == [["10", "20", "30"], ["2.1 × 10⁻⁹", "4.5 × 10⁻⁵", "1"], ["-10", "0", "10"], ["2.1 × 10⁻⁹", "4.5 × 10⁻⁵", "1"]]
