"""Yim, Joo, Bae & Kim 2017, "A gift from knowledge distillation": what one trial does.

An arm is a method: "plain", "kd", "fitnets" or "fsp". All lengths are steps (the paper counts iterations), times ``scale``.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdcore import losses, methods, metrics
from kdcore.papers.images import IMAGE_METRICS, Vision, piecewise, spread, weights_of
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "ensemble_test_error_percent": "% of the test images, by the mean of the nets' probabilities",
    "ensemble_test_accuracy_percent": "100 less ensemble_test_error_percent",
    "fsp_distance_after_stage_1": "eq. 2 with all lambda 1, on test images, at the end of the first stage",
    "fsp_matrices": "dict: the mean FSP matrices of teacher and student at four moments, for the picture",
}
SECTIONS = ("group1", "group2", "group3")
PAIRS = [(f"{section}.first", section) for section in SECTIONS]  # the first and the last layer of each section
MATRICES = ("teacher", "student before", "student after stage 1", "student at the end")
WATCHED = 500  # test images on which the FSP matrices are watched


def cohort(config: dict) -> None:
    """Every trial trains alone: the first stages of the methods have different lengths."""


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one arm; its ``metrics``, ``history`` and, as a teacher, ``weights``.

    Several ``init`` are as many nets, trained one after another: the metrics are their means, and those of their ensemble.
    """
    (trial,) = trials
    config = trial.config
    vision = Vision(config, context)
    guide = None if config["teacher"] is None else vision.teacher(config["teacher_network"], teacher)
    inits = config["init"] if isinstance(config["init"], list) else [config["init"]]
    nets = [vision.network(config["network"], init) for init in inits]
    torch.manual_seed(seed_of(context.seed, "connectors"))
    learners = [_method(config, net, guide).to(context.device) for net in nets]
    before = _matrices(vision, nets[0]) if config["keep_matrices"] else None

    endings = [""] if len(nets) == 1 else [f", net {k}" for k in range(1, len(nets) + 1)]  # of the names of their stages
    stages, shown = [], len(vision.test_labels)
    if config["method"] == "fsp":
        shown += len(spread(shown, WATCHED))
    for net, method, ending in zip(nets, learners, endings, strict=True):
        options = {"watch": _watch(vision, net, guide, config), "measured": (shown, 0)}
        stages += [_stage(vision, method, phase, config, ending, **options) for phase in method.phases]
    if config["keep_matrices"]:
        stages[0].at_end = lambda: {"fsp_matrices": _matrices(vision, nets[0])}
    history = context.fit(learners[0] if len(nets) == 1 else nn.ModuleList(learners), stages, dict)
    found = []
    for net, ending in zip(nets, endings, strict=True):
        rows = [row for row in history if row["stage"].endswith(ending)]
        found.append(vision.measure(net, rows))
        if config["method"] == "fsp":
            end = [row for row in rows if row["stage"] == "fsp" + ending][-1]
            found[-1]["fsp_distance_after_stage_1"] = end["fsp_distance"]
            if config["keep_matrices"]:
                kept = (_matrices(vision, guide), before, end.pop("fsp_matrices"), _matrices(vision, net))
                found[-1]["fsp_matrices"] = dict(zip(MATRICES, kept, strict=True))
    result = {"history": history, "metrics": found[0] if len(nets) == 1 else _together(vision, nets, found)}
    if config["is_teacher"]:
        result["weights"] = weights_of(nets[0])
    return [result]


def _together(vision: Vision, nets: list[nn.Module], found: list[dict]) -> dict:
    """The means of the nets' metrics, and the error of the mean of their probabilities."""
    probabilities = sum(vision.logits(net, vision.test_views).softmax(-1) for net in nets)
    error = 100 * metrics.wrong(probabilities, vision.test_labels).double().mean().item()
    means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    return means | {"ensemble_test_error_percent": error, "ensemble_test_accuracy_percent": 100 - error}


def _method(config: dict, net: nn.Module, guide: nn.Module | None) -> methods.Method:
    if config["method"] in ("fitnets", "kd"):
        method = methods.fitnets(net, guide, hint=config["hint"], guided=config["hint"], temperature=config["temperature"], weight=1.0)
        if config["method"] == "kd":
            del method.phases[0]  # the control: what FitNets' second phase does alone
        return method
    if config["method"] == "fsp":
        return methods.fsp(net, guide, pairs=PAIRS, weights=[config["fsp_weight"]] * len(PAIRS))
    return methods.plain(net)


def _stage(vision: Vision, method: methods.Method, phase: methods.Phase, config: dict, ending: str, **options) -> Stage:
    """The last phase has the schedule of ``train``, one before it that of ``pretrain``."""
    lengths = config["train"] if phase is method.phases[-1] else config["pretrain"]
    rate, steps = piecewise(lengths["lr"], lengths["until"], config["scale"])
    schedule = rate
    if method.knobs and phase is method.phases[-1]:
        start, end = config["soft_weight"]

        def schedule(step: int) -> dict[str, float]:
            return rate(step) | {"soft_weight": start + (end - start) * step / steps}

    optimiser = {"momentum": config["momentum"], "weight_decay": config["weight_decay"]}
    return vision.stage(method, phase, schedule, steps=steps, optimiser=optimiser, name=phase.name + ending, **options)


def _watched(vision: Vision, net: nn.Module) -> list[Tensor]:
    """FSP matrices [N, C1, C2] of the three sections on test images of every class."""
    numbers = spread(len(vision.test_labels), WATCHED, vision.context.device)
    net.eval()
    with torch.no_grad():
        _, taps = net.features(vision.test_views(vision.test_views.plain(numbers)))
        return [losses.fsp_matrix(taps[first], taps[last]) for first, last in PAIRS]


def _watch(vision: Vision, net: nn.Module, guide: nn.Module | None, config: dict) -> Callable[[], dict]:
    """For the history: the test error and, for FSP, the loss of the first stage (eq. 2, all lambda 1) on test images."""

    targets = _watched(vision, guide) if config["method"] == "fsp" else []

    def watch() -> dict:
        found = vision.evaluate(net)
        if targets:
            pairs = zip(_watched(vision, net), targets, strict=True)
            found["fsp_distance"] = sum((own - target).square().sum((1, 2)).mean() for own, target in pairs)
        return found

    return watch


def _matrices(vision: Vision, net: nn.Module) -> list:
    """The mean FSP matrix of each section, to three digits: what the figure draws."""
    return [[[float(f"{value:.3g}") for value in row] for row in matrix.mean(0).tolist()] for matrix in _watched(vision, net)]
