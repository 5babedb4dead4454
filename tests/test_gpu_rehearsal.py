"""The way to the GPU, rehearsed without one: every stage of every arm of every budget, on tensors that have shapes alone.

Each distinct kind of trial is built as a child builds it, on the stand-in of ``fake_gpu``. One step of each stage, forward,
backward and update, must hold nothing that a CUDA graph cannot: no host sync, no shape that depends on values, no tensor of the
CPU. At smoke, whose nets are small, the forward pass runs once more under torch's FakeTensorMode on a fake cuda:0, with autocast,
and what is evaluated and handed on is walked to its end: it may read values, but not mix devices either.
"""

import dataclasses
import re
from functools import cache

import pytest
import torch
from fake_gpu import FakeGPU, Refused, fake_cuda_tensors
from runs import distinct_configs, noise_images

from kdcore import data, papers
from kdcore.data.augment import Views
from kdcore.models import create
from kdcore.papers import images
from kdcore.papers.fisher_darts import fisher
from kdcore.papers.images import ImageTrial
from kdcore.teacher import LogitTable, freeze
from kdcore.training import Checkpoint, Context, Step, evaluated

IMAGES = {"mnist": "digits", "cifar10": "colour_digits", "cifar100": "digit_pairs"}  # of the same shape and classes
GREY, COUNT, HELD_OUT, SAVED = (1, 28, 28), 900, 40, 1_000_000
# What a step's operations do not depend on, but for whether it is 0.
AMOUNTS = (
    "epochs", "hint_epochs", "momentum", "weight_decay", "beta", "soft_weight", "hint_weight", "fsp_weight", "attention_weight",
    "jacobian_weight", "boundary_weights", "holdout", "patches", "iterations", "drop_path", "auxiliary_weight", "input_dropout",
    "hidden_dropout", "dropout", "max_norm", "bags", "clip", "keep_classes", "shift_range", "generations", "teachers", "penalty",
    "time_nets", "untrained", "cutout", "search",
)  # fmt: skip
# What no operation depends on, 0 or not.
INDEPENDENT = (
    "lr", "lr_decay", "lr_end", "conv_rate", "momentum_start", "momentum_epochs", "share", "percent", "scale", "patience", "irange",
    "init_std", "batch_size", "epoch_steps", "cases", "evaluate_every", "every", "grow_target", "grow_batch", "schedule", "rates",
    "fresh_optimiser", "drop", "first_drop", "is_teacher", "train", "pretrain", "library", "selection", "pseudo_data", "pseudo",
    "positive", "keep_maps", "keep_matrices", "gallery", "margin", "temperature", "hill", "test", "units", "width", "views", "shift",
)  # fmt: skip


def structure(paper, config: dict) -> dict:
    """What tells kinds of trials apart; the teacher by its network."""

    def size(value):
        if isinstance(value, str):
            return [bool(int(number)) for number in re.findall(r"\d+", value)]
        return bool(value)

    results = {key: size(value) if key in AMOUNTS else value for key, value in config.items()}
    if "normalisation" in config:  # None stands for the data's own mean and deviation
        results["normalisation"] = config["normalisation"] == "whitened"
    if isinstance(config.get("init"), int):
        del results["init"]
    for key in INDEPENDENT:
        results.pop(key, None)
    for key in ("network", "teacher_network", "layers"):  # the family; each size of net has a kind of its own as well
        if isinstance(config.get(key), str):
            results[key] = re.sub(r"\d+", "N", config[key])
    results["same network"] = config.get("network") == config.get("teacher_network")
    results["data"] = IMAGES.get(config["data"], config["data"]) if paper.key != "model_compression" else ""
    results["teacher"] = config["teacher"] is not None
    return results


def kinds():
    """(paper, budget, arm, thin) of each kind of trial, with thin networks, and of each network that a paper trains."""
    for key in papers.names():
        paper, cases = papers.get(key), {}
        nets = lambda paper, config: [config.get("network"), config.get("layers"), config.get("recompute")]  # noqa: E731
        for thin, config_of in ((True, structure), (False, nets)):
            for each in distinct_configs(paper, lambda budget, arm, of=config_of, paper=paper: of(paper, paper.config(budget, arm))):
                cases[each.id] = pytest.param(key, *each.values, thin, id=f"{key}-{each.id}")
        yield from cases.values()


def walked(run, context, gpu, patch) -> list[dict]:
    """One step of each stage of a run on the fake GPU; what is evaluated and handed on too, but in a rehearsal."""
    for tensor in (*run.model.parameters(), *run.model.buffers()):
        assert tensor.is_cuda, f"{tuple(tensor.shape)} of the model stays on {tensor.device}"
    history = []
    for number, stage in enumerate(run.stages):
        step = Step(run.model, stage, context.device)
        if stage.before_epoch is not None:
            stage.before_epoch(step, 0)
        index = stage.draw(context.seed, number, 0)[0].to(context.device)
        run.model.train()
        step.set(stage.schedule(0))
        with gpu.strict():
            loss = step._eager(index)
        if context.rehearsal:
            continue
        # once more under FakeTensorMode, in bfloat16
        with gpu.suspended(), fake_cuda_tensors(patch), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            assert stage.loss_of(index).device == torch.device("cuda:0")
        history.append({"stage": stage.name, "epoch": 1, "lr": step.values["lr"], "loss": loss.tolist()})
        history[-1] |= evaluated(run.model, stage.watch or run.evaluate)
        if stage.stop is not None:
            stage.stop(history)
        step.forget()
        step.load(step.state())
    if context.rehearsal:
        return []
    if sum(tensor.numel() for tensor in run.model.parameters()) < SAVED:
        Checkpoint(context.checkpoint).save(run.model, step, history, {})
    return run.finish(history)


# The least network of a family; DARTS, whose cells have sizes to grow to, stays as it is.
THIN = {"densenet_bc_": "densenet_bc_10_4", "wrn_": "wrn_10_1", "resnet": "resnet_8"}


def small(paper, config: dict, thin: bool) -> dict:
    """A trial's config for few cases; the nets stay as large as they are, but where ``thin`` is enough."""
    result = dict(config)
    for key in ("network", "teacher_network"):
        family = next((family for family in THIN if thin and (result.get(key) or "").startswith(family)), None)
        result |= {key: THIN[family]} if family else {}
    if paper.key == "model_compression":
        smoke = paper.config("smoke", "letter.p1: ensemble")
        result |= {key: smoke[key] for key in ("data", "positive", "train", "hill", "test", "pseudo_data", "epoch_steps")}
        result["cases"] = result["cases"] and 600
    if result.get("holdout", 0) > 1:
        result["holdout"] = HELD_OUT
    result |= {key: few for key, few in (("views", 2), ("patches", 500), ("iterations", 2)) if key in result}
    if result.get("search"):
        result["search"] = result["search"] | {"cells": 3, "channels": 2}
    if result.get("method") == "features":
        result["width"] = 0.002
    return result


@cache
def loaded(name: str):
    return noise_images(name, COUNT, COUNT // 3, **({"shape": GREY} if name == "digits" else {}))


@pytest.fixture(scope="module")
def handed():
    """What the teachers that were walked hand on, by paper, budget and arm."""
    return {}


@pytest.fixture
def walk(handed, monkeypatch, tmp_path):
    """``walk(key, budget, arm, thin)`` walks a trial, and its teachers before it; what it hands on, and the stages it had."""
    monkeypatch.setattr(data, "load", lambda name: loaded(IMAGES.get(name, name)))
    monkeypatch.setattr(fisher, "by_information", lambda losses, modules, **_: fisher.uniform(list(modules)))
    images._whitening.cache_clear()

    def run(key: str, budget: str, arm: str, thin: bool, gpu: FakeGPU) -> tuple[dict, list[str]]:
        paper = papers.get(key)
        trial = paper.trial(budget, arm, 0)
        teacher_weights, rehearsal = None, budget != "smoke"  # as a forecast: teachers know nothing
        trial = dataclasses.replace(trial, config=small(paper, trial.config, thin and rehearsal))
        if trial.config["teacher"] is not None and not rehearsal:
            name = (key, budget, trial.config["teacher"])
            if name not in handed:
                handed[name] = taught(trial) if key == "model_compression" else run(*name, thin, gpu)[0]["weights"]
            teacher_weights = handed[name]
        context = Context("cuda:0", checkpoint=tmp_path / arm.replace("/", " "), rehearsal=rehearsal)
        prepared = paper.prepare([trial], context, teacher_weights)
        (result,) = walked(prepared, context, gpu, monkeypatch) or [{}]
        return result, [stage.name for stage in prepared.stages]

    def walk(key: str, budget: str, arm: str, thin: bool = False) -> list[str]:
        with FakeGPU() as gpu:
            return run(key, budget, arm, thin, gpu)[1]

    yield walk
    images._whitening.cache_clear()


def taught(trial) -> dict[str, torch.Tensor]:
    """What the ensemble of a problem hands on, without its library."""
    config, variables = trial.config, 30
    handed = {f"rmse.{name}": torch.tensor(0.3) for name in ("ensemble", "net", "single")}
    handed["train.labels"] = torch.rand(config["train"])
    for name, settings in config["pseudo_data"].items():
        handed |= {f"{name}.values": torch.rand(settings["cases"], variables), f"{name}.labels": torch.rand(settings["cases"])}
    return handed


WITHOUT_STAGES = ("born_again_trees", "ensemble", "4000c-p")  # trees and libraries of scikit-learn, features of patches


@pytest.mark.parametrize("key, budget, arm, thin", [kind for kind in kinds() if not any(word in kind.id for word in WITHOUT_STAGES)])
def test_a_trial_runs_on_a_gpu(key, budget, arm, thin, walk):
    assert walk(key, budget, arm, thin), "it has stages"


CPU_WEIGHT = torch.ones(())
FAULTS = {
    "reads a value": (lambda loss, index: loss * float(loss.detach().item() > -1), "_local_scalar_dense reads a value"),
    "asks whether": (lambda loss, index: loss if loss.detach() > -1 else -loss, "_local_scalar_dense reads a value"),
    "lists": (lambda loss, index: loss + sum(index[:, 0].tolist()), "tolist reads values"),
    "copies": (lambda loss, index: loss + index.cpu().sum(), "_to_copy copies between host and device"),
    "finds": (lambda loss, index: loss + index.nonzero().sum(), "nonzero has a shape that depends on values"),
    "masks": (lambda loss, index: loss + index[index > 3].sum(), "index with a mask has a shape"),
    "weighs with a CPU number": (lambda loss, index: loss * CPU_WEIGHT, "mul takes tensors of cuda:0 and of the CPU"),
    "draws on the CPU": (lambda loss, index: loss + float(torch.rand(3).shape[0]), "rand runs on the CPU"),
    "builds a tensor": (lambda loss, index: loss * torch.tensor([2.0], device=loss.device), "tensor copies from the host"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, walk, monkeypatch):
    """The test of the test: each is found with what is wrong, and the arm is the test's own name."""
    spoil, complaint = FAULTS[name]
    plain = ImageTrial.stage

    def stage(*words, **options):
        made = plain(*words, **options)
        loss, batch = made.loss, made.batch
        return dataclasses.replace(made, batch=None, loss=lambda index: spoil(loss(*batch(index)), index))

    monkeypatch.setattr(ImageTrial, "stage", stage)
    with pytest.raises(Refused, match=complaint):
        walk("fsp", "smoke", "student 8")


def test_faults_of_the_backward_pass_of_set_up_and_of_evaluation_are_found(walk, monkeypatch):
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    plain = ImageTrial.stage

    def stage(*words, **options):
        made = plain(*words, **options)
        loss = made.loss
        return dataclasses.replace(made, loss=lambda *batch: Reads.apply(loss(*batch)))

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrial, "stage", stage)
        with pytest.raises(Refused, match="_local_scalar_dense reads a value"):
            walk("fsp", "smoke", "student 8")
    with monkeypatch.context() as patch:
        patch.setattr(ImageTrial, "test_error", lambda own, net: {"x": own.test_labels + torch.ones(own.test_labels.shape)})
        with pytest.raises(Refused, match="add takes tensors of cuda:0 and of the CPU"):
            walk("fsp", "smoke", "student 8")


def test_the_forward_pass_is_seen_by_torchs_own_fake_tensors(monkeypatch):
    """A CPU tensor, a host sync and a shape that depends on values are refused by FakeTensorMode; autocast is that of a GPU."""
    net = torch.nn.Linear(3, 2, device="meta")
    x = torch.zeros(4, 3, device="meta")
    with fake_cuda_tensors(monkeypatch):
        with torch.autocast("cuda", torch.bfloat16):
            assert (net(x).dtype, net(x).device) == (torch.bfloat16, torch.device("cuda:0"))
        for fault, error in (
            (lambda: net(x) + torch.ones(2), "two different devices cuda:0, cpu"),
            (lambda: net(x).sum().item(), "_local_scalar_dense"),
            (lambda: net(x).nonzero(), "nonzero"),
        ):
            with pytest.raises(RuntimeError, match=error):
                fault()


def test_a_table_of_logits_is_filled_before_a_step_reads_it():
    with FakeGPU() as gpu:
        views = Views(torch.zeros(20, 3, 32, 32, dtype=torch.uint8).to("cuda:0"), 1, flip=True, memory_format=torch.channels_last)
        table = LogitTable(freeze(create("wrn_10_1").to("cuda:0")), views, 10)
        index = views.plain(torch.arange(20).to("cuda:0"))
        with pytest.raises(ValueError, match="filled before it is read"):
            table(index, views(index))
        table.fill()
        with gpu.strict():
            assert table(index, views(index)).is_cuda
