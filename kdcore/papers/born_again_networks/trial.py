"""Furlanello et al. 2018, "Born-Again Neural Networks": what one trial does.

A trial trains one generation: a fresh network of the teacher's design, with initial weights and batches of its own
(``init``). A teacher hands on its weights and the test logits of all generations up to its own, so that an ensemble of
generations is a metric of the last of them. Lengths are passes over the training cases, times ``scale``.

The re-implementation of deck 004 "as coded" is the exception: its generations are one network that never starts anew, so
that they are one trial.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore import losses, methods, metrics
from kdcore.methods import LogitTable, Method
from kdcore.papers.images import IMAGE_METRICS, Vision, parts, piecewise, spread, weights_of
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = (
    IMAGE_METRICS
    | {
        "best_generation_test_error_percent": "% of the test images: the best generation so far, the teacher included",
        "importance": "dict: weights of the training cases by the teacher's confidence, for the picture",
    }
    | {f"ensemble_{k}_test_error_percent": f"% of the test images: the last {k} generations together" for k in (2, 3, 4)}
    | {f"ensemble_{k}_test_accuracy_percent": f"100 less ensemble_{k}_test_error_percent" for k in (2, 3, 4)}
    | {f"generation_{g}_test_error_percent": f"% of the test images: generation {g} of a trial of several" for g in (1, 2)}
    | {f"generation_{g}_test_accuracy_percent": f"100 less generation_{g}_test_error_percent" for g in (1, 2)}
    | {
        "generation_2_ensemble_2_test_error_percent": "% of the test images: generations 1 and 2 of such a trial together",
        "generation_2_ensemble_2_test_accuracy_percent": "100 less generation_2_ensemble_2_test_error_percent",
    }
)
LOGITS = "generations.test_logits"  # [generations, N, C], beside a teacher's weights
RULES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
WATCHED = 500  # training and test images on which gradients and divergences are watched
BINS = 10  # of the teacher's confidence


def cohort(config: dict) -> None:
    """Every trial trains alone: a checkpoint holds one network, and a chain goes on from it."""


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one generation; its ``metrics``, ``history`` and, as a teacher, ``weights``."""
    (trial,) = trials
    config = trial.config
    vision = Vision(config, context)
    net = vision.network(config["network"], config["init"], **{key: config[key] for key in ("dropout", "recompute") if config[key]})
    guide, before = None, torch.empty(0, len(vision.test_labels), vision.classes, device=context.device)
    if config["same_object"]:
        guide = net
    elif config["teacher"] is not None:
        guide = vision.teacher(config["network"], teacher and {key: value for key, value in teacher.items() if key != LOGITS})
        if teacher is not None:
            before = teacher[LOGITS].to(context.device)
    extra = _importance(vision, net, guide) if config["objective"] == "CWTM" and not context.probe else {}

    method = _method(config, net, guide)
    if config["chosen_on"]:
        method.chosen = Chosen(net, config["generations"], len(vision.test_labels), vision.classes)
    method = method.to(context.device)
    stage, evaluate = _stage(vision, method, net, guide)
    history = context.fit(method, [stage], evaluate)
    own = method.chosen.logits if config["chosen_on"] else vision.logits(net, vision.test_views).unsqueeze(0)
    generations = torch.cat([before, own])
    result = {"history": history, "metrics": vision.measure(net, history)}
    result["metrics"] |= _ensembles(generations, len(own), vision.test_labels, config["ensemble_of"]) | extra
    if config["is_teacher"]:
        result["weights"] = weights_of(net) | {LOGITS: generations.cpu()}
    return [result]


def _method(config: dict, net: nn.Module, guide: nn.Module | None) -> Method:
    if config["same_object"]:
        return _as_coded(net, config)
    return {
        "labels": methods.plain,
        "BAN": methods.ban,
        "BAN+L": partial(methods.ban, label_weight=1.0),
        "CWTM": methods.cwtm,
        "DKPP": methods.dkpp,
        "DKPP, fixed": methods.ban,  # given permuted logits
        "KD": partial(methods.kd, temperature=config["temperature"], soft_weight=config["soft_weight"]),
    }[config["objective"]](net, guide)


def _as_coded(net: nn.Module, config: dict) -> Method:
    """KD in which teacher and student are one object; two knobs weigh its terms, as the first generation has labels alone."""
    method = Method(net)
    device = next(net.parameters()).device
    method.knobs = {name: torch.zeros((), device=device) for name in ("hard_weight", "soft_weight")}
    terms = [term for _, term in methods.soft_targets(config["temperature"], config["soft_weight"])]
    weighted = list(zip(method.knobs.values(), terms, strict=True))
    method.phases = [methods.Phase("train", net, net, weighted, list(net.parameters()), live_teacher=True)]
    return method


class Chosen(nn.Module):
    """The net's weights and statistics of the epoch with the lowest loss of a generation, and the test logits of the
    generations that are over: buffers, so that a checkpoint of the run holds them."""

    def __init__(self, net: nn.Module, generations: int, cases: int, classes: int):
        super().__init__()
        self.net = (net,)  # in a tuple: its weights are the student's in a checkpoint, not once more ours
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lowest", torch.tensor(torch.inf))
        self.register_buffer("logits", torch.zeros(generations, cases, classes))
        self.copies = nn.Module()
        for name, value in net.state_dict().items():
            self.copies.register_buffer(name.replace(".", "_"), value.detach().clone())

    def offer(self, loss: Tensor) -> None:
        """One more epoch is over: keep what the net is now if its loss is the lowest so far."""
        self.epochs += 1
        if loss < self.lowest:
            self.lowest.fill_(loss)
            for copy, value in zip(self.copies.buffers(), self.net[0].state_dict().values(), strict=True):
                copy.copy_(value)

    def restore(self) -> None:
        """Put what was kept into the net; the search begins anew."""
        for copy, value in zip(self.copies.buffers(), self.net[0].state_dict().values(), strict=True):
            value.copy_(copy)
        self.lowest.fill_(torch.inf)


# ---------------------------------------------------------------- training


def _stage(vision: Vision, method: Method, net: nn.Module, guide: nn.Module | None) -> tuple[Stage, Callable[[], dict]]:
    """The one stage of a trial, and what is measured after each of its epochs.

    An epoch is a pass over the training cases, or ``every`` steps where the config says so; all ``generations`` follow
    one another in the stage, with one optimiser.
    """
    config, device = vision.config, vision.context.device
    rest, held = _split(vision)
    steps = len(rest) // config["batch_size"]  # of a pass
    every = min(config["every"] or steps, steps)
    rate, passes = piecewise(config["rates"]["lr"], config["rates"]["until"], config["scale"])
    epochs = passes * steps // every  # of a generation

    def schedule(epoch: int) -> dict[str, float]:
        values = rate(epoch % epochs * every // steps)
        if not method.knobs:
            return values
        soft = config["soft_weight"]
        return values | ({"hard_weight": 1.0, "soft_weight": 0.0} if epoch < epochs else {"hard_weight": 1 - soft, "soft_weight": soft})

    optimiser = {key: config[key] for key in ("momentum", "nesterov") if config["rule"] == "sgd"} | {"weight_decay": config["weight_decay"]}
    tests, trains = (len(spread(len(labels), WATCHED)) for labels in (vision.test_labels, vision.train_labels))
    measured = len(vision.test_labels) + (tests if guide is not None else 0) + (trains if config["objective"] == "BAN" else 0)
    stage = vision.stage(
        method,
        method.phases[0],
        schedule,
        epochs=epochs * config["generations"],
        rule=RULES[config["rule"]],
        optimiser=optimiser,
        table=_table(vision, guide),
        cases=rest,
        # where a generation is the epoch of the least loss, each is a candidate, whatever that costs: it is the protocol
        measured=(0 if config["chosen_on"] else measured, 0),
    )
    drawn = stage.indices
    # a generation is a new seed: its batches are its own, too
    stage.indices = lambda generator: drawn(torch.Generator().manual_seed(seed_of(config["init"], generator.initial_seed())))[:every]
    watch = _watch(vision, net, guide)

    def evaluate() -> dict:
        row = watch()
        if not config["chosen_on"]:
            return row | vision.evaluate(net)
        if config["chosen_on"] == "test":
            row |= _drifting(vision, net)
            method.chosen.offer(row["test_loss"])
        else:
            row |= vision.evaluate(net) | {"held_out_loss": _loss(vision, net, held.to(device))}
            method.chosen.offer(row["held_out_loss"])
        over, left = divmod(int(method.chosen.epochs), epochs)
        if not left:
            method.chosen.restore()
            method.chosen.logits[over - 1] = vision.logits(net, vision.test_views)
        return row

    return stage, evaluate


def _split(vision: Vision) -> tuple[Tensor, Tensor]:
    """Numbers of the training cases that the net sees, and of those on which its epoch is chosen."""
    count = len(vision.train_labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(vision.context.seed, "holdout")))
    held = round(vision.config["holdout"] * count)
    return order[held:].sort().values, order[:held]


def _table(vision: Vision, guide: nn.Module | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What stands for the teacher: its permuted logits for fixed permutations, a table where an image has one view."""
    config = vision.config
    if guide is None or config["same_object"]:
        return None
    if config["objective"] == "DKPP, fixed":
        generator = torch.Generator().manual_seed(seed_of(vision.context.seed, "permutations"))
        draws = torch.rand(len(vision.train_labels), vision.classes, generator=generator).to(vision.context.device)

        def permuted(index: Tensor, x: Tensor) -> Tensor:
            with torch.no_grad():
                return losses.permuted_predictions(guide(x), draws[index[:, 0]])

        return permuted
    if vision.views.count > 1 or vision.context.probe:
        return None
    table = LogitTable(guide, vision.views, vision.classes)
    table.fill()
    return table


# ---------------------------------------------------------------- what is measured


def _watch(vision: Vision, net: nn.Module, guide: nn.Module | None) -> Callable[[], dict]:
    """For the history: how far the student's test predictions are from its teacher's, and the parts of BAN's gradient."""
    if guide is None:
        return dict
    device, own = vision.context.device, vision.config["same_object"]
    tests, trains = (spread(len(labels), WATCHED, device) for labels in (vision.test_labels, vision.train_labels))
    test_x, train_x = vision.test_views(vision.test_views.plain(tests)), vision.views(vision.views.plain(trains))
    with torch.no_grad():
        said, taught = (None, None) if own else (guide(test_x), guide(train_x))

    def watch() -> dict:
        row = {"divergence_from_teacher": losses.kd(net(test_x), guide(test_x) if own else said, 1.0)}
        if vision.config["objective"] == "BAN":
            row |= metrics.gradient_parts(net(train_x), taught, vision.train_labels[trains])
        return row

    return watch


def _drifting(vision: Vision, net: nn.Module) -> dict[str, Tensor]:
    """Loss and error on the test set as deck 004's code takes them: in train mode, so that each batch is normalised by its
    own statistics, and the running ones drift to those of the test set. The loss is the mean of the batches' losses."""
    # CIFAR lies in order of its classes here, not as published: a batch of neighbours would have the statistics of one class
    order = torch.Generator().manual_seed(seed_of(vision.context.seed, "test order"))
    numbers = torch.randperm(len(vision.test_labels), generator=order).to(vision.context.device)
    found, missed = [], 0
    net.train()
    for part in numbers.split(vision.config["batch_size"]):
        logits, labels = net(vision.test_views(vision.test_views.plain(part))), vision.test_labels[part]
        found.append(losses.cross_entropy(logits, labels))
        missed = missed + metrics.wrong(logits, labels).sum()
    net.eval()
    return {"test_loss": torch.stack(found).mean(), "test_error_percent": 100 * missed.double() / len(numbers)}


def _loss(vision: Vision, net: nn.Module, cases: Tensor) -> Tensor:
    """Mean cross-entropy with the labels of some training images, in eval mode."""
    values = [
        losses.cross_entropy(net(vision.views(vision.views.plain(part))), vision.train_labels[part], reduction="none")
        for part in parts(cases)
    ]
    return torch.cat(values).mean()


def _ensembles(generations: Tensor, own: int, labels: Tensor, what: str) -> dict[str, float]:
    """Errors of the last two, three, ... generations together, of the best single one, and of earlier ones of this trial.

    generations: test logits [G, N, C], the last ``own`` of them this trial's; what: "probabilities" or "logits", of which
    the ensemble takes the mean. The trial's earlier generations have a prefix.
    """
    said = F.softmax(generations, -1) if what == "probabilities" else generations
    errors = 100 * metrics.wrong(generations, labels).double().mean(-1)
    found = {"best_generation_test_error_percent": errors.min().item()}
    for last in range(len(generations) - own + 1, len(generations) + 1):
        prefix = "" if last == len(generations) else f"generation_{last}_"
        if prefix:
            found |= _named(prefix, errors[last - 1].item())
        for count in range(2, last + 1):
            error = 100 * metrics.wrong(said[last - count : last].mean(0), labels).double().mean().item()
            found |= _named(f"{prefix}ensemble_{count}_", error)
    return found


def _named(prefix: str, error: float) -> dict[str, float]:
    return {f"{prefix}test_error_percent": error, f"{prefix}test_accuracy_percent": 100 - error}


@torch.no_grad()
def _importance(vision: Vision, net: nn.Module, guide: nn.Module) -> dict:
    """Importance weights against the teacher's confidence max_i p_i, on the training images, in bins of equal width.

    cwtm_weight: what CWTM gives a case, relative to the mean; true_class_weight: the true-class part of BAN's gradient over
    that of the labels', |q_y - p_y| / (1 - q_y), sums over the cases of a bin, for the student as it starts. A bin without
    cases has None.
    """
    q, p = vision.logits(net, vision.views).softmax(-1), vision.logits(guide, vision.views).softmax(-1)
    confidence = p.amax(-1)
    q, p = (each.gather(-1, vision.train_labels.unsqueeze(-1)).squeeze(-1) for each in (q, p))
    bins = (confidence * BINS).long().clamp(max=BINS - 1)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64, device=bins.device).index_add_(0, bins, values.double())

    cases = summed(torch.ones_like(confidence))
    weight, ratio = summed(confidence / confidence.mean()) / cases, summed((q - p).abs()) / summed(1 - q)
    return {
        "importance": {
            "cases": [int(count) for count in cases],
            "cwtm_weight": [None if value != value else value for value in weight.tolist()],
            "true_class_weight": [None if value != value else value for value in ratio.tolist()],
        }
    }
