"""What is measured while a net trains costs at most a tenth of its training, for every arm on images and every budget."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from kdcore import data, papers
from kdcore.data import images
from kdcore.data.images import ImageData
from kdcore.methods import Objective
from kdcore.papers import images as trials_on_images
from kdcore.papers.fisher_darts import trial as fisher_darts
from kdcore.papers.hinton_mnist import trial as hinton_mnist
from kdcore.papers.images import ImageTrial, cadence
from kdcore.training import Context

KEYS = ["activation_boundaries", "ba_caruana_mimic", "born_again_networks", "fisher_darts", "fitnets", "fsp", "hinton_mnist"]
# name: training images, test images, classes
SIZES = {"cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100), "mnist": (60_000, 10_000, 10)}
SIZES |= {"digits": (1437, 360, 10), "colour_digits": (1437, 360, 10), "digit_pairs": (5000, 1000, 100)}
SMALL = {"wrn": "wrn_10_1", "resnet": "resnet_8", "densenet": "densenet_bc_10_6", "darts": "darts_v2_3_2"}


@pytest.mark.parametrize(
    "epochs, trained, measured, options, expected",
    [
        (100, (3000, 1000), (3, 0), {}, range(100)),  # 100 x 3 of 3,000
        (100, (3000, 1000), (6, 0), {}, range(1, 100, 2)),
        (100, (3000, 1000), (3, 2), {}, range(1, 100, 2)),  # the teacher's 100 x 2 of 1,000 are too many
        (7, (100, 0), (2.5, 0), {}, (1, 3, 5, 6)),  # epochs 2, 4, 6 and the last: four
        (7, (100, 0), (2.6, 0), {}, (2, 5, 6)),  # 3, 6 and the last
        (7, (100, 0), (2.5, 0), {"first": True}, (0, 2, 5, 6)),  # the first as well: not five, but four
        (7, (100, 0), (1, 0), {"every": 5}, (4, 6)),
        (7, (100, 0), (11, 0), {}, (6,)),  # even one is too much: the last alone
        (7, (100, 0), (11, 0), {"every": 10}, (6,)),
        (7, (100, 0), (0, 1), {}, (6,)),  # the teacher has no part in training
        (7, (0, 0), (0, 0), {}, range(7)),
    ],
)
def test_cadence(epochs, trained, measured, options, expected):
    assert cadence(epochs, trained, measured, **options) == tuple(expected)


class Counts(dict):
    """How many images the student and the teacher were shown."""

    def of(self, net, who, names=("forward", "features")):
        """The net, counting each batch that it is given; names: of its ways of being asked, none of which calls another."""
        for name in names:
            plain = getattr(net, name)
            setattr(net, name, lambda x, *rest, plain=plain, **options: (self.add(who, len(x)), plain(x, *rest, **options))[1])
        return net

    def add(self, who, count):
        self[who] = self.get(who, 0) + count


class Shown:
    """In place of views: an index is a number alone, an image black."""

    shape, flip = (3, 32, 32), False

    def __init__(self, pictures, pad=0, *, flip=False, **look):
        self.count, self.windows = (2 * pad + 1) ** 2 * (1 + flip), range(len(pictures))

    def __call__(self, index):
        return torch.zeros(1, *self.shape).expand(len(index), -1, -1, -1)

    def draw(self, numbers, generator):
        return numbers.unsqueeze(-1)

    def plain(self, numbers):
        return numbers.unsqueeze(-1)


def small(key, config):
    """The same with tiny nets: what a pass costs has no part in the count."""
    config = copy.deepcopy(config)
    for name in ("network", "teacher_network"):
        if net := config.get(name):
            config[name] = net.partition("/")[0] + "/16" if key == "fitnets" else SMALL[net.split("_")[0].rstrip("0123456789")]
    changes = {
        "ba_caruana_mimic": {"width": 1 / 64},
        "fisher_darts": {
            "grow": None,
            "auxiliary_weight": 0.0,
            "search": config.get("search") and config["search"] | {"cells": 3, "channels": 2},
        },
        "fitnets": {"time_nets": False},
        "born_again_networks": {"dropout": 0.0, "recompute": False},
        "hinton_mnist": {"layers": [1, 4, 10], "max_norm": None},
    }
    return config | changes.get(key, {})


def given(key, config, monkeypatch):
    """The arm's run with all its images, and the counts of its nets."""
    counts = Counts()
    side = {"mnist": 28, "digits": 28}.get(config["data"], 32 if key in ("fitnets", "ba_caruana_mimic") else 4)
    channels = 1 if side == 28 else 3

    def load(name):
        train, test, classes = SIZES[name]
        picture = torch.zeros(1, 1 if key == "hinton_mnist" else channels, 1, 1, dtype=torch.uint8)
        labels = torch.arange(train) % classes, torch.arange(test) % classes
        return ImageData(name, picture.expand(train, -1, -1, -1), labels[0], picture.expand(test, -1, -1, -1), labels[1], ("",) * classes)

    def logits(self, net, views):
        nets = getattr(net, "members", [net])
        counts.add("student", len(nets) * len(views.windows))
        return torch.zeros(len(views.windows), self.classes)

    network, frozen = ImageTrial.network, ImageTrial.frozen
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(images, "unlabelled", lambda name, sha256: torch.zeros(1, 3, 1, 1).expand(1_000_000, -1, -1, -1))
    monkeypatch.setattr(Shown, "shape", (channels, side, side))
    for module in (trials_on_images, hinton_mnist):
        monkeypatch.setattr(module, "Views", Shown)
    monkeypatch.setattr(trials_on_images, "_whitening", lambda name, device: SimpleNamespace(apply=lambda pictures: pictures))
    monkeypatch.setattr(trials_on_images, "channel_mean_std", lambda pictures: ([0.0] * 3, [1.0] * 3))
    monkeypatch.setattr(trials_on_images, "global_contrast_normalise", lambda pictures: pictures)
    monkeypatch.setattr(ImageTrial, "network", lambda self, *names, **options: counts.of(network(self, *names, **options), "student"))
    monkeypatch.setattr(ImageTrial, "frozen", lambda self, *names, **options: counts.of(frozen(self, *names, **options), "teacher"))
    monkeypatch.setattr(ImageTrial, "logits", logits)
    monkeypatch.setattr(fisher_darts.MixedDarts, "forward", lambda self, x: (counts.add("student", len(x)), torch.zeros(len(x), 10))[1])
    if key == "hinton_mnist":
        made = hinton_mnist.MLP
        monkeypatch.setattr(hinton_mnist, "MLP", lambda *layers, **options: counts.of(made(*layers, **options), "student", ["features"]))
    if key == "fitnets":  # each is asked for its part of the hint loss
        counted = lambda self, x, labels: [counts.add(who, len(x)) for who in ("student", "teacher")] and torch.zeros(())  # noqa: E731
        monkeypatch.setattr(Objective, "__call__", counted)
    trial = SimpleNamespace(config=config, arm="")
    return papers.get(key).prepare([trial], Context(rehearsal=True), None), counts


# What has no part in the count: settings of optimisers and losses.
IDLE = {"attention_weight", "beta", "boundary_weights", "clip", "conv_rate", "drop", "drop_path", "first_drop", "fresh_optimiser"}
IDLE |= {"fsp_weight", "hint_weight", "init_std", "irange", "jacobian_weight", "keep_maps", "keep_matrices", "lr", "lr_decay", "margin"}
IDLE |= {"momentum", "momentum_epochs", "momentum_start", "rule", "schedule", "soft_weight", "square_temperature", "teacher_mode"}
IDLE |= {"temperature", "untrained", "variant", "weight_decay"}


def distinct(key):
    """One (budget, arm) for each config; methods that ask a teacher for one forward pass a step are one."""
    results, paper = {}, papers.get(key)
    for budget in paper.budgets:
        for arm in paper.budget_arms(budget):
            config = small(key, paper.config(budget, arm)) | {"teacher": paper.config(budget, arm)["teacher"] and "teacher"}
            if config["method" if "method" in config else "data"] != "features":  # trains without epochs
                counted = {name: value for name, value in config.items() if name not in IDLE}
                if config.get("method") in ("AT + KD", "Jacobian + KD"):
                    counted["method"] = "KD"
                if config.get("objective") in ("BAN+L", "CWTM", "DKPP", "DKPP, fixed", "KD"):
                    counted["objective"] = "KD"
                results.setdefault(json.dumps(counted, sort_keys=True), (budget, arm, config))
    return list(results.values())


@pytest.mark.parametrize("key", KEYS)
def test_measuring_costs_at_most_a_tenth_of_training(key, monkeypatch):
    """Counted: images that each net is shown in an epoch, three times for the student's forward and backward pass, and by a
    measurement. Of student and teacher each for itself, so that no size of the teacher changes the answer."""
    for budget, arm, config in distinct(key):
        with monkeypatch.context() as patch:
            run, counts = given(key, config, patch)
            run.model.eval()
            for stage in run.stages:
                seen = stage.indices(torch.Generator().manual_seed(0))
                epochs = stage.epochs or -(-stage.steps // len(seen))
                images = seen.numel() * epochs if stage.steps is None else stage.steps * seen[0].numel()
                measured = sum(stage.measures(epoch, epochs) for epoch in range(epochs))
                if stage.stop is not None or config.get("chosen_on"):
                    assert measured == epochs, (budget, arm, "each epoch may be the last, or the chosen one")
                elif measured > 1 + (0 in (stage.measured or ())):
                    counts.clear()
                    with torch.no_grad():
                        (stage.watch or run.evaluate)()
                    assert 10 * measured * counts.get("student", 0) <= 3 * images, (budget, arm, stage.name, counts)
                    assert 10 * measured * counts.get("teacher", 0) <= images, (budget, arm, stage.name, counts)
