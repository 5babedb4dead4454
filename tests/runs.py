"""Runs of the papers' arms, made small: what each of their tests does with its own config and weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from steps import state

from kdcore import papers
from kdcore.data.images import ImageData
from kdcore.errors import Paused
from kdcore.training import Context


def distinct_configs(paper, config_of):
    """(budget, arm) pairs as parameters of a test, one for each config that ``config_of(budget, arm)`` gives."""
    pairs = {}
    for budget in paper.budgets:
        for arm in paper.budget_arms(budget):
            config = config_of(budget, arm)
            pairs.setdefault(json.dumps(config, sort_keys=True), pytest.param(budget, arm, id=f"{budget}-{arm}"))
    return list(pairs.values())


def noise_images(name, train, test, shape=(3, 32, 32), classes=None, labels=None):
    """Random images in place of a data set's; as many classes as it has, 10 or 100, for None; labels: of all, random ones for None."""
    classes = classes or (100 if name in ("cifar100", "digit_pairs") else 10)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (train + test, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (train + test,), generator=generator) if labels is None else labels
    return ImageData(name, images[:train], labels[:train], images[train:], labels[train:], tuple(map(str, range(classes))))


class Spy:
    """A run that keeps the batches of each stage, and the student's weights before and after; of one without a model nothing."""

    def __init__(self, run):
        self.run, self.model, self.stages = run, run.model, run.stages
        self.seen = [[] for _ in run.stages]
        for stage, seen in zip(run.stages, self.seen, strict=True):
            plain = stage.batch or (lambda index: (index,))
            stage.batch = lambda index, plain=plain, seen=seen: (seen.append(index.tolist()), plain(index))[1]

    def train(self, context=None):
        """The results of ``Run.train``."""
        net = getattr(self.model, "student", self.model)
        self.start = state(net) if net is not None else {}
        results = self.run.train(context or Context())
        self.end = state(net) if net is not None else {}
        return results


class Arms:
    """The arms of a paper: ``config_of(budget, arm, **changes)`` makes one small, ``weights(config)`` stands for what its teacher's trial
    hands on, or None. budget: where none is given."""

    def __init__(self, key, config_of, weights, budget="paper"):
        self.paper, self.config_of, self.weights, self.budget = papers.get(key), config_of, weights, budget

    def prepared(self, arm, context=None, budget=None, teacher_weights=None, **changes):
        """The run of an arm, not trained yet, with what it will see; teacher_weights: where they are not those of ``weights``."""
        config = self.config_of(budget or self.budget, arm, **changes)
        handed = self.weights(config) if teacher_weights is None else teacher_weights
        return Spy(self.paper.module.prepare([SimpleNamespace(config=config, arm=arm)], context or Context(), handed))

    def run(self, arm, context=None, budget=None, teacher_weights=None, **changes):
        """The result of an arm, and its run."""
        spy = self.prepared(arm, context, budget, teacher_weights, **changes)
        (result,) = spy.train(context)
        return result, spy


def pausing(folder, epochs):
    """A context whose time is up after so many epochs; its checkpoint lies in ``folder``."""
    context = Context(checkpoint=folder)

    def stop(row):
        context.deadline = 0 if row["done"] == epochs else context.deadline

    context.report = stop
    return context


def resumed(run, folder, epochs):
    """What ``run(context)`` gives once it was paused after so many epochs, and began anew from what lies in ``folder``."""
    with pytest.raises(Paused):
        run(pausing(folder, epochs))
    return run(Context(checkpoint=folder))


def same(result, other) -> bool:
    """Are two results alike, bit for bit: history, metrics, and the weights that are handed on?"""
    weights, others = result.get("weights", {}), other.get("weights", {})
    alike = weights.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in weights.items())
    return alike and result["history"] == other["history"] and result["metrics"] == other["metrics"]
