"""Romero et al. 2015, "FitNets: Hints for Thin Deep Nets": what one trial does.

An arm is a method: "plain" (labels alone), "kd" (labels and soft targets) or "fitnets" (hints first, then as "kd"). The
hint stage may run twice: on part of the training set until the hint loss on the rest stops falling ("hint search"), then,
from the same initial weights, on all of it for as many epochs.
"""

import time
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from kdcore import methods
from kdcore.data.augment import Views
from kdcore.methods import LogitTable, Method, Phase
from kdcore.models.maxout import Layer, MaxoutConv, uniform
from kdcore.papers.images import IMAGE_METRICS, Vision, parts, spread, weights_of
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "parameters": "weights without biases, as the paper counts",
    "multiply_adds": "of one image",
    "hint_epochs": "epochs of the hint stage",
    "speed_up": "time of the teacher's forward pass over the student's, on this machine",
}
SEARCH, HELD_OUT = "hint search", "held_out_hint_loss"
# pylearn2's RMSProp: decay 0.9, no gradient scaled up by more than 1e5
RULES = {"sgd": (torch.optim.SGD, {}), "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-5})}
REGRESSOR_RANGE, REGRESSOR_LIMIT = 0.05, 0.9
WATCHED = 1000  # test images on which the hint loss is watched
TIMED_BATCH, TIMED_ROUNDS = 32, 7


def cohort(config: dict) -> None:
    """Every trial trains alone: the first stages of the methods have different lengths."""


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one arm; its ``metrics``, ``history`` and, as a teacher, ``weights``."""
    (trial,) = trials
    config = trial.config
    vision = Vision(config, context)
    net = vision.network(config["network"], **{key: config[key] for key in ("irange", "input_dropout", "hidden_dropout")})
    guide = None if config["teacher"] is None else vision.teacher(config["teacher_network"], teacher)
    method = _method(config, net, guide).to(context.device, memory_format=torch.channels_last)
    _reset(method, context.seed)
    history = context.fit(method, _stages(vision, method, guide), lambda: vision.evaluate(net))
    metrics = vision.measure(net, history) | {
        "parameters": sum(parameter.numel() for parameter in net.parameters() if parameter.dim() > 1),  # as the paper counts: no biases
        "multiply_adds": net.multiply_adds,
    }
    if config["method"] == "fitnets":
        metrics["hint_epochs"] = sum(row["stage"] == "hint" for row in history)
    if config["time_nets"]:
        metrics["speed_up"] = _speed_up(vision, net, guide)
    result = {"history": history, "metrics": metrics}
    if config["is_teacher"]:
        result["weights"] = weights_of(net)
    return [result]


def _method(config: dict, net: nn.Module, guide: nn.Module | None) -> Method:
    """What the arm trains; "kd" is FitNets' method without its first stage."""
    if config["method"] == "plain":
        return methods.plain(net)
    hint, guided = config["hint"]
    own, target = net.taps[guided], guide.taps[hint]
    pieces = guide.convs[int(hint.removeprefix("conv")) - 1].layer.pieces
    layer = Layer(target.channels, own.size - target.size + 1, 0, pieces=pieces, limit=REGRESSOR_LIMIT)
    method = methods.fitnets(
        net,
        guide,
        hint=hint,
        guided=guided,
        temperature=config["temperature"],
        variant=config["variant"],
        regressor=MaxoutConv(own.channels, layer),
        weight=1.0,
    )
    if config["method"] == "kd":
        method.phases, method.connectors = method.phases[1:], nn.ModuleList()
    return method


def _reset(method: Method, seed: int) -> None:
    """The initial weights, in place: the net's are those of every arm of the seed."""
    method.student.reset(seed_of(seed, "net"))
    for regressor in method.connectors:
        uniform(regressor, REGRESSOR_RANGE, torch.Generator().manual_seed(seed_of(seed, "regressor")))


def _stages(vision: Vision, method: Method, guide: nn.Module | None) -> list[Stage]:
    config, seed, first = vision.config, vision.context.seed, method.phases[0]
    tested = spread(len(vision.test_labels), WATCHED)
    watch = partial(_hint_loss, "test_hint_loss", first, vision.test_views, vision.test_labels, tested)
    hint = partial(_stage, vision, method, first, config["hint_epochs"], measured=(len(tested), len(tested)))
    stages = []
    if config["method"] == "fitnets" and config["holdout"]:
        order = torch.randperm(len(vision.train_labels), generator=torch.Generator().manual_seed(seed_of(seed, "holdout")))
        held, rest = order[: config["holdout"]], order[config["holdout"] :]
        search = partial(_hint_loss, HELD_OUT, first, vision.views, vision.train_labels, held)
        stages = [
            hint(name=SEARCH, cases=rest, watch=search, stop=partial(_stale, config["patience"])),
            hint(at_start=partial(_reset, method, seed), watch=watch, stop=_as_long),
        ]
    elif config["method"] == "fitnets":
        stages = [hint(watch=watch)]
    return [*stages, _stage(vision, method, method.phases[-1], config["epochs"], table=_table(vision, guide))]


def _stage(vision: Vision, method: Method, phase: Phase, epochs: int, **options) -> Stage:
    """A phase with the arm's optimiser, its kernels' own rate, and the limits on norms."""
    config = vision.config
    rule, settings = RULES[config["rule"]]
    moving = ("lr", "momentum") if config["rule"] == "sgd" else ("lr",)
    last = phase is method.phases[-1]
    convolutions = {id(p) for p in method.student.convs.parameters()}

    def schedule(epoch: int) -> dict[str, float]:
        values = {key: ramp(config[key], epoch / epochs) for key in moving}
        return values | {knob: ramp(config[knob], epoch / epochs) for knob in (method.knobs if last else ())}

    def limit_norms() -> None:
        method.student.limit_norms()
        for regressor in method.connectors:
            regressor.limit_norms()

    return vision.stage(
        method,
        phase,
        schedule,
        epochs=epochs,
        rule=rule,
        optimiser=settings | ({"momentum": ramp(config["momentum"], 0)} if "momentum" in moving else {}),
        rate_factors=[config["conv_rate"] if id(p) in convolutions else 1.0 for p in phase.parameters],
        after_step=limit_norms,
        **options,
    )


def ramp(setting: float | dict, share: float) -> float:
    """What a setting is after a ``share`` (0 to 1) of its stage: the number itself, or {from, to, span}.

    It goes from ``from`` to ``to``, in a straight line, while the share goes from span[0] to span[1], and stays as it is
    before and after; with ``geometric: true`` its logarithm does.
    """
    if not isinstance(setting, dict):
        return setting
    start, end, (first, last) = setting["from"], setting["to"], setting["span"]
    way = min(max((share - first) / (last - first), 0.0), 1.0)
    return start * (end / start) ** way if setting.get("geometric") else start + (end - start) * way


def _table(vision: Vision, guide: nn.Module | None) -> LogitTable | None:
    """The teacher's logits, where there are fewer views of an image than epochs. A forecast asks the teacher itself."""
    if guide is None or vision.context.probe or vision.views.count >= vision.config["epochs"]:
        return None
    table = LogitTable(guide, vision.views, vision.classes)
    table.fill()  # all at once: a logit's last bits depend on the batch that it was computed in
    return table


def _hint_loss(name: str, phase: Phase, views: Views, labels: Tensor, cases: Tensor) -> dict[str, Tensor]:
    """For the history: the mean hint loss of some images, neither shifted nor mirrored."""
    total = 0.0
    for part in parts(cases.to(labels.device)):
        total = total + len(part) * phase.loss(views(views.plain(part)), labels[part]).double()
    return {name: total / len(cases)}


def _best_epoch(history: list[dict]) -> int:
    """Of the search, from 1: where the held-out loss was least."""
    losses = [row[HELD_OUT] for row in history if row["stage"] == SEARCH]
    return 1 + losses.index(min(losses))


def _stale(patience: int, history: list[dict]) -> bool:
    """Whether ``patience`` epochs of the search went by without a smaller held-out loss."""
    return sum(row["stage"] == SEARCH for row in history) - _best_epoch(history) >= patience


def _as_long(history: list[dict]) -> bool:
    """Whether the hint stage has had the epochs that the search found best."""
    return sum(row["stage"] == "hint" for row in history) >= _best_epoch(history)


@torch.no_grad()
def _speed_up(vision: Vision, net: nn.Module, guide: nn.Module) -> float:
    """How many times faster than the teacher the net computes the logits of a batch: the median ratio of rounds in turn."""
    x = vision.test_views(vision.test_views.plain(torch.arange(min(TIMED_BATCH, len(vision.test_labels)), device=vision.context.device)))

    def seconds(model: nn.Module) -> float:
        start = time.perf_counter()
        model(x).sum().item()  # waits for the device
        return time.perf_counter() - start

    ratios = [seconds(guide) / seconds(net) for _ in range(TIMED_ROUNDS + 1)]
    return median(ratios[1:])  # the first round pays for allocation
