"""Heo, Lee, Yun & Choi 2019, "Knowledge transfer via distillation of activation boundaries": what one trial does.

An arm is a method, a number of epochs before and in the classification ("20+100"), a share of the training set and a pair of
nets; and a toy: nets of two inputs, whose boundaries can be drawn.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdcore import data, losses, methods
from kdcore.methods import Method
from kdcore.models import MLP
from kdcore.papers.images import IMAGE_METRICS, Vision, spread, weights_of
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = (
    IMAGE_METRICS
    | {
        "size_ratio_percent": "parameters of the student, as % of the teacher's",
        "teacher_error_percent": "% of the test images, by the teacher that never drifted",
        "drifted_teacher_error_percent": "% of the test images, by the teacher after stage 1, whose BatchNorm statistics have drifted",
        "mse_other_side_percent": "% of neurons and points of the toy on the other side than the teacher's, after the squared error",
        "mse_other_decision_percent": "% of points of the toy with another decision than the teacher's, after the squared error",
        "boundary_other_side_percent": "as mse_other_side_percent, after the transfer of boundaries",
        "boundary_other_decision_percent": "as mse_other_decision_percent, after the transfer of boundaries",
        "toy": "dict: weights and biases of the toy's nets, for the picture",
    }
    | {
        f"layer{layer}_same_side_{moment}": f"% of the neurons of layer {layer} on the teacher's side, on test images, {when}"
        for layer in (1, 2, 3)
        for moment, when in (("epoch_1", "after the first epoch"), ("stage_1", "after stage 1"), ("end", "at the end"))
    }
)
GROUPS = ("group1", "group2", "group3")
BOUNDARIES = [f"{group}.pre" for group in GROUPS]  # after BatchNorm, before the ReLU
WATCHED = 200  # test images on which the sides of the boundaries are watched
TOY_DIGITS = (0, 2, 4, 6)  # they lie apart on the plane of their first two principal components
TOY_TEACHER, TOY_STUDENT = (2, 24, 24, 4), (2, 8, 24, 4)
TOY_TAP = "hidden2.pre"
TOY_WEIGHT = 0.1  # of the boundary loss, a sum over neurons: in full its first steps throw some students' layers far off
TOY_GRID = 101


def cohort(config: dict) -> None:
    """Every trial trains alone: the methods differ in their stages."""


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one arm; its ``metrics``, ``history`` and, as a teacher, ``weights``."""
    (trial,) = trials
    config = trial.config
    if config["method"] == "toy":
        return [_toy(config, context)]
    vision = Vision(config | {"share": config["percent"] / 100}, context)
    net = vision.network(config["network"], config["init"])
    guide = None if config["teacher"] is None else vision.teacher(config["teacher_network"], teacher)
    # as in 4ac7d04 of the authors' program stage 2 has a copy that never drifted; before it and from b3cbc9b on it has the same one
    drifting = copy.deepcopy(guide) if config["method"] == "AB + KD" and config["teacher_mode"] == "train" else guide
    torch.manual_seed(seed_of(context.seed, "connectors"))
    method = _method(config, net, guide, drifting).to(context.device, memory_format=torch.channels_last)
    watch = _watch(vision, method, net, guide)
    history = context.fit(method, _stages(vision, method, watch), lambda: vision.evaluate(net) | watch())
    result = {"history": history, "metrics": vision.measure(net, history) | _sides(history)}
    if guide is not None:
        small, large = (sum(parameter.numel() for parameter in each.parameters()) for each in (net, guide))
        result["metrics"]["size_ratio_percent"] = 100 * small / large
    if config["method"] == "AB + KD":
        known = {"teacher": guide, "drifted_teacher": drifting}
        if config["teacher_mode"] == "drifting":
            del known["teacher"]  # there is no copy that did not drift
        for name, net_then in known.items():
            result["metrics"][f"{name}_error_percent"] = vision.evaluate(net_then)["test_error_percent"].item()
    if config["is_teacher"]:
        result["weights"] = weights_of(net)
    return [result]


def _method(config: dict, net: nn.Module, guide: nn.Module | None, drifting: nn.Module | None) -> Method:
    """What the arm trains. drifting: the teacher of the first stage of "AB + KD", with the statistics of each batch."""
    if config["method"] == "none":
        return methods.plain(net)
    temperature = config["temperature"]
    scale = 1.0 if config["square_temperature"] else temperature**-2
    task = [(scale * weight, term) for weight, term in methods.soft_targets(temperature, config["soft_weight"])]
    builds: dict[str, Callable[[], Method]] = {
        "KD": lambda: methods.plain(net, guide, task=task),
        "FITNET + KD": lambda: methods.fitnets(
            net, guide, hint=config["hint"], guided=config["hint"], weight=config["hint_weight"], task=task
        ),
        "FSP + KD": lambda: methods.fsp(
            net, guide, pairs=[(f"{group}.first", group) for group in GROUPS], weights=[config["fsp_weight"]] * 3, task=task
        ),
        "AT + KD": lambda: methods.attention_transfer(
            net, guide, taps=[f"{group}.sum" for group in GROUPS], beta=config["attention_weight"], task=task
        ),
        "Jacobian + KD": lambda: methods.jacobian(net, guide, weight=config["jacobian_weight"], task=task),
        "AB + KD": lambda: methods.activation_boundary(
            net,
            drifting,
            taps=BOUNDARIES,
            weights=config["boundary_weights"],
            margin=config["margin"],
            batch_statistics=config["teacher_mode"] != "eval",
            task=task,
            task_teacher=guide,
        ),
    }
    return builds[config["method"]]()


def _stages(vision: Vision, method: Method, watch: Callable[[], dict]) -> list[Stage]:
    """One stage a phase; a method without a first one has its epochs, too, in the classification."""
    config = vision.config
    before, last = map(int, config["epochs"].split("+"))
    *first, classification = method.phases
    tests, seen = len(vision.test_labels), 0 if watch is dict else len(spread(len(vision.test_labels), WATCHED))
    optimiser = {"momentum": config["momentum"], "weight_decay": config["weight_decay"], "nesterov": True}

    def stage(phase: methods.Phase, epochs: int, drops: list[int], factor: float, **options) -> Stage:
        def schedule(epoch: int) -> dict[str, float]:
            return {"lr": config["lr"] * factor ** sum(drop <= epoch for drop in drops)}

        forget = drops if config["fresh_optimiser"] else ()
        return vision.stage(method, phase, schedule, epochs=epochs, optimiser=optimiser, forget=forget, **options)

    # the sides after the first epoch are a result
    watched = {"watch": watch, "measured": (seen, seen), "first": True}
    stages = [stage(phase, before, _after([75], before), config["first_drop"], **watched) for phase in first]
    epochs = last if first else before + last
    measured = {"every": config["evaluate_every"], "measured": (tests + seen, seen), "first": seen > 0 and not first}
    return [*stages, stage(classification, epochs, _after([30, 60, 80], epochs), config["drop"], **measured)]


def _after(shares: list[int], epochs: int) -> list[int]:
    """The epochs (0, 1, ...) that begin when so many per cent of them are over, rounded up."""
    return [-(-share * epochs // 100) for share in shares]


def _watch(vision: Vision, method: Method, net: nn.Module, guide: nn.Module | None) -> Callable[[], dict]:
    """What gives, for the history, the per cent of neurons on the teacher's side of their boundary, on test images.

    The student's neurons are seen through the connectors of "AB + KD", for other methods as they are: nothing where the
    widths differ.
    """
    config, views = vision.config, vision.test_views
    connectors = list(method.connectors) if config["method"] == "AB + KD" else [nn.Identity()] * len(BOUNDARIES)
    if guide is None or (config["method"] != "AB + KD" and any(net.taps[tap] != guide.taps[tap] for tap in BOUNDARIES)):
        return dict
    numbers = spread(len(vision.test_labels), WATCHED, vision.context.device)

    def watch() -> dict[str, Tensor]:
        x = views(views.plain(numbers))
        own, target = net.features(x, until=BOUNDARIES)[1], guide.features(x, until=BOUNDARIES)[1]
        seen = [(connector(own[tap]), target[tap]) for tap, connector in zip(BOUNDARIES, connectors, strict=True)]
        return {"same_side_percent": torch.stack([100 - _other_side(student, teacher) for student, teacher in seen])}

    return watch


def _other_side(student: Tensor, teacher: Tensor) -> Tensor:
    """Per cent of the neurons [B, ...] on the other side than the teacher's: the true loss of the paper, as a share."""
    return 100 * losses.activation_boundary_count(student, teacher) / teacher[0].numel()


def _sides(history: list[dict]) -> dict[str, float]:
    """What was watched after the first epoch, at the end of the first stage and at the end, for each layer."""
    rows = [row for row in history if "same_side_percent" in row]
    if not rows:
        return {}
    before = [row for row in rows if row["stage"] == rows[0]["stage"]]
    moments = {"epoch_1": rows[0], "stage_1": before[-1], "end": rows[-1]}
    return {
        f"layer{layer}_same_side_{moment}": value
        for moment, row in moments.items()
        for layer, value in enumerate(row["same_side_percent"], 1)
    }


# ---------------------------------------------------------------- the toy


def _toy(config: dict, context: Context) -> dict:
    """A teacher of points on a plane; two students get its second hidden layer, by the mean squared error of what the ReLUs
    let through and by the sides of the boundaries; then their last layer learns the labels."""
    points, labels = (tensor.to(context.device) for tensor in plane(config["data"]))
    seed = seed_of(context.seed, "toy")
    nets = nn.ModuleDict(
        {
            "teacher": MLP(TOY_TEACHER).reset([seed_of(seed, "teacher")]),
            "mse": MLP(TOY_STUDENT).reset([seed]),
            "boundary": MLP(TOY_STUDENT).reset([seed]),
        }
    ).to(context.device)

    def task(name: str, index: Tensor) -> Tensor:
        return losses.cross_entropy(nets[name](points[index]), labels[index])

    def transfer(name: str, index: Tensor) -> Tensor:
        with torch.no_grad():
            target = nets["teacher"].features(points[index])[1][TOY_TAP]
        own = nets[name].features(points[index])[1][TOY_TAP]
        return losses.hint(own.relu(), target.relu()) if name == "mse" else TOY_WEIGHT * losses.activation_boundary(own, target)

    def stage(name: str, epochs: int, loss: Callable[[Tensor], Tensor], parameters: list) -> Stage:
        count, size = len(points), config["batch_size"]
        return Stage(
            name=name,
            epochs=epochs,
            indices=lambda generator: torch.randperm(count, generator=generator)[: count // size * size].view(-1, size),
            loss=loss,
            schedule=lambda epoch: {"lr": config["lr"] * (1 - epoch / epochs)},
            optimiser={"momentum": config["momentum"]},
            parameters=parameters,
        )

    before, last = map(int, config["epochs"].split("+"))
    stages = [stage("teacher", before, partial(task, "teacher"), list(nets["teacher"].parameters()))]
    for name in ("mse", "boundary"):
        net = nets[name]
        hidden, head = [*net.weights[:-1], *net.biases[:-1]], [net.weights[-1], net.biases[-1]]
        stages += [
            stage(name, before, partial(transfer, name), hidden),
            stage(f"{name}, labels", last, partial(task, name), head),
        ]
    history = context.fit(nets, stages, dict)
    grid = torch.stack(torch.meshgrid(*_axes(points.cpu()), indexing="xy"), -1).to(context.device)
    with torch.no_grad():
        seen = {name: net.features(grid.flatten(0, 1)) for name, net in nets.items()}
    metrics: dict = {
        "toy": {
            name: [[_rounded(w[0]), _rounded(b[0])] for w, b in zip(net.weights, net.biases, strict=True)] for name, net in nets.items()
        }
    }
    target, target_taps = seen["teacher"]
    for name in ("mse", "boundary"):
        logits, taps = seen[name]
        metrics[f"{name}_other_side_percent"] = _other_side(taps[TOY_TAP], target_taps[TOY_TAP]).item()
        metrics[f"{name}_other_decision_percent"] = 100 * (logits.argmax(1) != target.argmax(1)).double().mean().item()
    return {"history": history, "metrics": metrics}


def plane(name: str) -> tuple[Tensor, Tensor]:
    """Points [N, 2] and labels int64 [N]: images of four digits on the plane of their first two principal components."""
    images = data.load(name)
    chosen = torch.isin(images.train_labels, torch.tensor(TOY_DIGITS))
    pixels = images.train_images[chosen].double().flatten(1) / 255
    pixels -= pixels.mean(0)
    axes = torch.linalg.svd(pixels, full_matrices=False)[2][:2]
    axes *= axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # a component and its opposite are the same
    points = pixels @ axes.T
    return (points / points.std(0)).float(), torch.searchsorted(torch.tensor(TOY_DIGITS), images.train_labels[chosen])


def _axes(points: Tensor) -> list[Tensor]:
    """The ticks of a grid over the plane, a little beyond the points."""
    return [torch.linspace(low - 0.3, high + 0.3, TOY_GRID) for low, high in zip(points.amin(0), points.amax(0), strict=True)]


def _rounded(values: Tensor) -> list | float:
    """Nested numbers to five digits: what the figure draws."""
    return [_rounded(row) for row in values] if values.dim() else float(f"{values.item():.5g}")
