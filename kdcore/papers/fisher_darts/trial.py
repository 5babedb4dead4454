"""Whettam 2019/2020, "Finding the right teacher for a difficult student": what one trial does.

An arm is a method: "plain" (labels alone), "attention" (attention transfer from a teacher) or "search" (DARTS). An arm with
``grow`` first grows its network, from the weights of its "teacher" where it has one, then trains it from scratch.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdcore import data, losses, methods, metrics, models
from kdcore.models.darts import Darts, MixedDarts, auxiliary_head
from kdcore.models.densenet import DenseNet
from kdcore.papers.fisher_darts import fisher
from kdcore.papers.fisher_darts.search import Search
from kdcore.papers.images import IMAGE_METRICS, Vision, cadence, parts, spread, weights_of
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "top5_error_percent": "% of the test images whose label is not among the five largest logits",
    "parameters": "of the network without its auxiliary head",
    "published_parameters": "as papers on DARTS count: with the auxiliary head",
    "map_similarity": "mean cosine of the attention maps of student and teacher, on test images",
    "maps": "list: attention maps of some test images, for the picture",
    "growth": "dict: each step of the growth of a teacher, for the picture",
    "genotype": "dict: the cells that a search ended with",
}
COMPARED = 1000  # test images on which the attention maps of teacher and student are compared
SHOWN = 3  # test images whose maps a record keeps
CALIBRATED = 30  # batches from which an untrained teacher may take its BatchNorm statistics
UNIFORM = ("first cell first", "last cell first")


def cohort(config: dict) -> None:
    """Every trial trains alone."""


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one arm; its ``metrics``, ``history`` and, as a teacher, ``weights``."""
    (trial,) = trials
    config = trial.config
    vision = Vision(config, context)
    if config["method"] == "search":
        return [_search(vision)]
    options, growth = {}, {}
    if config["grow"] is not None:
        options["groups"], growth = _grown(vision, teacher)
    if config["auxiliary_weight"]:
        options["auxiliary"] = True
    net = vision.network(config["network"], **options)
    guide = _guide(vision, teacher) if config["method"] == "attention" else None
    method = _method(config, net, guide).to(context.device, memory_format=torch.channels_last)
    history = context.fit(method, [_stage(vision, method)], lambda: vision.evaluate(net))
    result = {"history": history, "metrics": _measured(vision, net, guide, history) | growth}
    if config["is_teacher"]:
        result["weights"] = weights_of(net) | ({"groups": torch.tensor(net.groups)} if isinstance(net, Darts) else {})
    return [result]


def attended(net: nn.Module) -> list[str]:
    """The taps whose attention is transferred, one for each size of map."""
    if isinstance(net, Darts):
        cells = len(net.cells)
        return [f"cell{i}" for i in (0, cells // 3, 2 * cells // 3)]
    if isinstance(net, DenseNet):
        return ["stem", "stage2", "final"]
    return ["group1.sum", "group2.sum", "group3.sum"]


def _method(config: dict, net: nn.Module, guide: nn.Module | None) -> methods.Method:
    task = methods.hard_labels()
    if config["auxiliary_weight"]:
        task.append((config["auxiliary_weight"], lambda view: losses.cross_entropy(view.taps["auxiliary"], view.labels)))
    if guide is None:
        method = methods.plain(net)
        method.phases[0].terms = task
    else:
        taps = list(zip(attended(net), attended(guide), strict=True))
        method = methods.attention_transfer(net, guide, taps=taps, beta=config["beta"], task=task)
    if isinstance(net, Darts):
        if config["drop_path"]:
            method.knobs["drop_path"] = net.drop_path
        else:
            net.drop_path = None
    return method


def _guide(vision: Vision, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """The frozen teacher, of the groups that it grew; with the weights that it learned or, where it is to know nothing, random ones.

    config: ``untrained``, false, true (BatchNorm's statistics are 0 and 1, its initial ones) or "calibrated" (those of data).
    """
    weights, options, config = dict(weights or {}), {}, vision.config
    if "groups" in weights:
        options["groups"] = weights.pop("groups").tolist()
    if not config["untrained"]:
        return vision.teacher(config["teacher_network"], weights or None, **options)
    net = models.create(config["teacher_network"], vision.classes, **options).reset(seed_of(vision.context.seed, "untrained"))
    net.to(vision.context.device, memory_format=torch.channels_last)
    if config["untrained"] == "calibrated":
        draws = torch.Generator().manual_seed(seed_of(vision.context.seed, "calibration"))
        calibrate(net, (vision.views(index) for index in vision.indices(draws)[:CALIBRATED].to(vision.context.device)))
    return methods.freeze(net)


@torch.no_grad()
def calibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the BatchNorms of a network the mean of the statistics of these batches [B, 3, H, W]; its weights stay.

    The author's untrained teacher has statistics of data, since each step of its growth passes a batch through it in train mode. Its
    attention maps are then flatter than with the initial 0 and 1.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    net.train()
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def rates(config: Mapping, epoch: int) -> dict[str, float]:
    """Learning rate and drop path of an epoch. schedule: {factor, at}, the rate times ``factor`` after each share of the
    epochs in ``at``, or {cosine}, along half a cosine down to that rate. Drop path grows in proportion to the epoch."""
    share, schedule = epoch / config["epochs"], config["schedule"]
    if "cosine" in schedule:
        lr = schedule["cosine"] + (config["lr"] - schedule["cosine"]) * (1 + math.cos(math.pi * share)) / 2
    else:
        lr = config["lr"] * schedule["factor"] ** sum(share >= at for at in schedule["at"])
    return {"lr": lr, "drop_path": config["drop_path"] * share}


def _stage(vision: Vision, method: methods.Method) -> Stage:
    config = vision.config

    def schedule(epoch: int) -> dict[str, float]:
        return {key: value for key, value in rates(config, epoch).items() if key == "lr" or key in method.knobs}

    optimiser = {"momentum": config["momentum"], "weight_decay": config["weight_decay"]}
    return vision.stage(
        method,
        method.phases[0],
        schedule,
        epochs=config["epochs"],
        every=config["evaluate_every"],
        optimiser=optimiser,
        clip=config["clip"],
    )


def _measured(vision: Vision, net: nn.Module, guide: nn.Module | None, history: list[dict]) -> dict:
    found = vision.measure(net, history, top=5) | {"parameters": models.count_parameters(net)}
    if isinstance(net, Darts):
        found["published_parameters"] = found["parameters"] + (_head_size(net, vision.classes) if net.auxiliary is None else 0)
    if guide is not None:
        found["map_similarity"] = similarity(vision, net, guide)
    if vision.config["keep_maps"]:
        found["maps"] = _maps(vision, net)
    return found


def _head_size(net: Darts, classes: int) -> int:
    with torch.device("meta"):
        return models.count_parameters(auxiliary_head(net.taps[f"cell{net.head_at}"].channels, classes))


# ---------------------------------------------------------------- growing


def _grown(vision: Vision, weights: Mapping[str, Tensor] | None) -> tuple[list[int], dict]:
    """The groups of each cell that the arm's way of growing ends with, and its path for the record.

    It runs on the CPU, so that a run that is resumed on a GPU finds the same network. As in the authors' code the
    size counts the auxiliary head, which the student does not have, and BatchNorm's statistics.
    """
    config, seed = vision.config, vision.context.seed
    torch.manual_seed(seed_of(seed, "growth noise"))  # drop path
    draws = torch.Generator().manual_seed(seed_of(seed, "growth"))

    def fresh() -> tuple[Darts, dict[str, nn.Module]]:
        net = models.create(config["network"], vision.classes).reset(seed_of(seed, "net"))
        if weights is not None:
            net.load_state_dict({key: value for key, value in weights.items() if key != "groups"})
        net.train().drop_path.fill_(config["drop_path"])
        return net, {f"cell {i}": cell for i, cell in enumerate(net.cells)}

    def path_of(net: Darts, cells: dict[str, nn.Module], ranking: fisher.Ranking) -> list[dict]:
        with torch.device("meta"):
            head = auxiliary_head(net.taps[f"cell{net.head_at}"].channels, vision.classes)
        size = lambda: sum(tensor.numel() for part in (net, head) for tensor in part.state_dict().values())  # noqa: E731
        return fisher.grow(cells, ranking, size, config["grow_target"], draws)

    def per_case(net: Darts) -> Tensor:
        cases = torch.randint(len(vision.train_labels), (config["grow_batch"],), generator=draws)
        index = vision.views.draw(cases, draws).to(vision.context.device)
        return losses.cross_entropy(net(vision.views(index).cpu()), vision.train_labels[index[:, 0]].cpu(), reduction="none")

    net, cells = fresh()
    if config["grow"] == "fisher" and not vision.context.probe:
        path = path_of(net, cells, fisher.by_information(partial(per_case, net), cells, variant=config["variant"]))
    elif config["grow"] == "random":
        path = path_of(net, cells, fisher.at_random(list(cells), draws))
    else:  # a forecast asks no batch: the size is the same
        path = path_of(net, cells, fisher.uniform(list(cells)))
    growth = {config["grow"]: path}
    if config["grow"] == "uniform":
        other, its_cells = fresh()
        growth = dict(zip(UNIFORM, (path, path_of(other, its_cells, fisher.uniform(list(its_cells)[::-1]))), strict=True))
    return net.groups, {"growth": growth}


# ---------------------------------------------------------------- where the nets look


@torch.no_grad()
def similarity(vision: Vision, net: nn.Module, guide: nn.Module) -> float:
    """Mean cosine of the attention maps of teacher and student at the three taps, over test images: 1 where they look alike."""
    views, total = vision.test_views, 0.0
    cases = spread(len(vision.test_labels), COMPARED, vision.context.device)
    net.eval()
    for part in parts(cases):
        x = views(views.plain(part))
        own, target = net.features(x)[1], guide.features(x)[1]
        for mine, theirs in zip(attended(net), attended(guide), strict=True):
            total += (losses.attention_map(own[mine]) * losses.attention_map(target[theirs])).sum().item()
    return total / len(cases) / len(attended(net))


@torch.no_grad()
def _maps(vision: Vision, net: nn.Module) -> list[dict]:
    """The attention maps of some test images, as bytes, the largest value 255; the picture goes with them, so that the
    figure needs no data set."""
    cases = spread(len(vision.test_labels), SHOWN)[:SHOWN]
    pictures = data.load(vision.config["data"]).test_images[cases]
    net.eval()
    _, taps = net.features(vision.test_views(vision.test_views.plain(cases.to(vision.context.device))))
    found = [{"image": _bytes(picture), "shape": list(picture.shape), "maps": []} for picture in pictures]
    for tap in attended(net):
        attention = losses.attention_map(taps[tap]).view(len(pictures), *taps[tap].shape[2:]).cpu()
        for entry, each in zip(found, attention, strict=True):
            entry["maps"].append({"values": _bytes((255 * each / each.max().clamp(min=1e-12)).round().byte()), "shape": list(each.shape)})
    return found


def _bytes(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


# ---------------------------------------------------------------- searching


def _search(vision: Vision) -> dict:
    """DARTS: the weights learn from one half of the training set, the architecture from the other; the genotype is what it is for."""
    config, seed, device = vision.config, vision.context.seed, vision.context.device
    asked = config["search"]
    net = MixedDarts(asked["cells"], asked["channels"], classes=vision.classes).reset(seed_of(seed, "net"))
    search = Search(net, asked["order"], lr=asked["lr"], betas=asked["betas"], weight_decay=asked["weight_decay"])
    search.to(device, memory_format=torch.channels_last)
    order = torch.randperm(len(vision.train_labels), generator=torch.Generator().manual_seed(seed_of(seed, "halves")))
    halves = order[: len(order) // 2 * 2].view(2, -1)

    def loss(index: Tensor) -> Tensor:
        return search.loss(*((vision.views(part), vision.train_labels[part[:, 0]]) for part in index))

    def schedule(epoch: int) -> dict[str, float]:
        lr = rates(config, epoch)["lr"]
        return {"lr": lr, "rate": lr}

    size = min(config["batch_size"], halves.shape[1])
    shown = config["epochs"] * (halves.shape[1] // size) * size  # of each half
    stage = Stage(
        "search",
        config["epochs"],
        lambda generator: torch.stack([vision.indices(generator, half) for half in halves], 1),
        loss,
        schedule,
        optimiser={"momentum": config["momentum"], "weight_decay": config["weight_decay"]},
        parameters=list(net.parameters()),
        knobs={"rate": search.rate},
        clip=config["clip"],
        # a step is one of the weights and one of the architecture, each on its half
        every=cadence(config["epochs"], (2 * 3 * shown, 0), (halves.shape[1], 0), config["evaluate_every"]),
    )
    history = vision.context.fit(search, [stage], partial(_held_out_error, vision, net, halves[1].to(device)))
    missed = metrics.wrong(vision.logits(net, vision.test_views), vision.test_labels)
    found = {
        "test_error_percent": 100 * missed.double().mean().item(),
        "parameters": models.count_parameters(net),
        "genotype": {kind: [list(edge) for edge in edges] for kind, edges in net.genotype()._asdict().items()},
    }
    return {"history": history, "metrics": found}


def _held_out_error(vision: Vision, net: MixedDarts, cases: Tensor) -> dict[str, Tensor]:
    """For the history: per cent of the architecture's half of the images, neither shifted nor mirrored, that the net gets wrong."""
    missed = [metrics.wrong(net(vision.views(vision.views.plain(part))), vision.train_labels[part]) for part in parts(cases)]
    return {"held_out_error_percent": 100 * torch.cat(missed).double().mean()}
