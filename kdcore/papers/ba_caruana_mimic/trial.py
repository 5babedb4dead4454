"""Ba & Caruana 2014, "Do deep nets really need to be deep?": what one trial on CIFAR-10 does.

The teachers are the four CNNs of one trial, "ECNN"; the first of them teaches the mimics of a single CNN. They write down
their logits on the transfer set once, and are not asked again: a mimic learns from that table.
"""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcore import methods, metrics
from kdcore.data import images
from kdcore.data.augment import Views
from kdcore.methods import Knowledge
from kdcore.models import count_parameters
from kdcore.models.shallow import PatchFeatures, parse, scaled
from kdcore.papers.images import IMAGE_METRICS, Vision, cadence
from kdcore.training import Context, Measured, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "parameters_millions": "parameters of all nets, in millions",
    "hidden_units": "of all nets, as the paper counts",
    "teacher_agreement_percent": "% of the test images on which a mimic says what its teacher says",
    "member_test_error_percent": "% of the test images: the mean of an ensemble's nets",
    "first_test_error_percent": "% of the test images: the first net of an ensemble",
}
HIDDEN = {"[10, 20, 30]": [10.0, 20.0, 30.0], "[-10, 0, 10]": [-10.0, 0.0, 10.0]}  # what softmax cannot tell apart (deck 000)
RAW = {"mean": [0.0] * 3, "std": [1 / 255] * 3}  # pixels of 0..255, as the patches have them


def cohort(config: dict) -> None:
    """Every trial trains alone: what the students share is a table, which costs nothing to read twice."""


class Cases(NamedTuple):
    """What an arm trains on: views, the view of each case ([N, columns] of indices), and labels (-1 for none)."""

    views: Views
    places: Tensor
    labels: Tensor

    def x(self, numbers: Tensor) -> Tensor:
        return self.views(self.places[numbers])

    def labelled(self) -> "Cases":
        known = self.labels >= 0
        return Cases(self.views, self.places[known], self.labels[known])


class Ensemble(nn.Module):
    """The mean of the logits of several nets."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.members]).mean(0)


class Rescaled(nn.Module):
    """A net that learned normalised logits, giving logits on the teacher's own scale: std * net(x) + mean."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.std + self.mean


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train one arm; its ``metrics``, ``history`` and, as a teacher, ``weights``.

    teacher: what the teachers' trial saved: ``logits`` on the transfer set [K, N, C], ``test_logits`` [K, tests, C].
    """
    (trial,) = trials
    config = trial.config
    if config["method"] == "features":
        return [_features(config, context)]
    vision = Vision(config, context)
    options = {key: config[key] for key in ("kernel", "pooling", "input_dropout", "dropout")}
    nets = [vision.network(scaled(config["layers"], config["width"]), k, **options) for k in range(config["members"])]
    cases = transfer_set(vision, config) if config["transfer"] else training_set(vision)
    if config["method"] == "mimic":
        known = _known(teacher, context, len(cases.labels), len(vision.test_labels), vision.classes, config["teachers"])
        table, mean, std = normalised(known["logits"][: len(cases.labels)])
        whole = Rescaled(nets[0], mean, std)
        students = [methods.logit_mimic(nets[0], None)]
    else:
        cases, table, whole = cases.labelled(), None, Ensemble(nets) if len(nets) > 1 else nets[0]
        students = [methods.plain(net) for net in nets]

    stage = _stage(config, students, cases, table, len(vision.test_labels))
    history = context.fit(nn.ModuleList(students), [stage], lambda: vision.evaluate(whole))
    measured = vision.measure(whole, history)
    measured["parameters_millions"] = sum(map(count_parameters, nets)) / 1e6
    measured["hidden_units"] = sum(net.hidden_units for net in nets)
    if config["method"] == "mimic":
        told = vision.logits(whole, vision.test_views).argmax(-1) == known["test_logits"].argmax(-1)
        measured["teacher_agreement_percent"] = 100 * told.double().mean().item()
    result = {"history": history, "metrics": measured}
    if config["is_teacher"]:
        test_logits = torch.stack([vision.logits(net, vision.test_views) for net in nets])
        missed = 100 * metrics.wrong(test_logits, vision.test_labels).double().mean(1)
        measured["member_test_error_percent"] = missed.mean().item()
        measured["first_test_error_percent"] = missed[0].item()
        logits = transfer_logits(nets, transfer_set(vision, config))
        result["weights"] = {"logits": logits.cpu(), "test_logits": test_logits.cpu()}
    return [result]


def training_set(vision: Vision) -> Cases:
    """Every training image as it is."""
    numbers = torch.arange(len(vision.train_labels))
    return Cases(vision.views, vision.views.plain(numbers).to(vision.context.device), vision.train_labels)


def transfer_set(vision: Vision, config: dict) -> Cases:
    """The training images, the unlabelled pictures, and of each of both ``views`` shifted and mirrored views.

    The training images as they are come first. The views are drawn once from the trial's seed: teachers and students of
    one seed have the same.
    """
    device, pictures, labels = vision.context.device, vision.train_images, vision.train_labels
    if config["unlabelled"] is not None:
        more = images.unlabelled(**config["unlabelled"]).to(device)
        pictures, labels = torch.cat([pictures, more]), torch.cat([labels, labels.new_full((len(more),), -1)])
    views, numbers = vision.views_of(pictures, config["shift"], flip=True), torch.arange(len(pictures))
    generator = torch.Generator().manual_seed(seed_of(vision.context.seed, "transfer set"))
    places = torch.cat([views.plain(numbers), views.draw(numbers.repeat(config["views"]), generator)]).to(device)
    return Cases(views, places, labels.repeat(1 + config["views"]))


def transfer_logits(nets: list[nn.Module], cases: Cases, size: int = 1000) -> Tensor:
    """[K, N, C]: what each of K nets says of every case, in eval mode and float32."""
    found = []
    for net in nets:
        net.eval()
        with torch.no_grad():
            found.append(torch.cat([net(cases.x(part)) for part in torch.arange(len(cases.places)).split(size)]))
    return torch.stack(found)


def normalised(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, C], each class brought to zero mean and unit variance over the cases, with the mean and deviation [C]."""
    mean, std = logits.mean(0), logits.std(0, unbiased=False)
    std = torch.where(std > 0, std, 1)
    return (logits - mean) / std, mean, std


def _known(teacher: dict | None, context: Context, cases: int, tests: int, classes: int, members: int | None) -> dict[str, Tensor]:
    """The mean logits of the first ``members`` teachers (all for None): of an ensemble, its prediction."""
    if teacher is None:
        if not context.probe:
            raise ValueError("a mimic needs its teachers' logits")
        teacher = {"logits": torch.zeros(1, cases, classes), "test_logits": torch.zeros(1, tests, classes)}
    return {key: value[:members].mean(0).to(context.device) for key, value in teacher.items()}


def _stage(config: dict, students: list[methods.Method], cases: Cases, table: Tensor | None, tests: int) -> Stage:
    """All epochs as one stage. Several nets train side by side, each in its own order, and their losses are a vector.

    tests: images that a measurement shows to each net.
    """
    size = config["batch_size"]
    count = len(cases.labels) // size
    steps = config["epochs"] * count

    def indices(generator: torch.Generator) -> Tensor:
        orders = [torch.randperm(len(cases.labels), generator=generator)[: count * size].view(count, size) for _ in students]
        return torch.stack(orders, 1)

    def loss(index: Tensor) -> Tensor:
        found = []
        for student, own in zip(students, index, strict=True):
            (phase,) = student.phases
            x = cases.x(own)
            found.append(phase.loss(x, cases.labels[own], Knowledge(None, x, None if table is None else table[own])))
        return torch.stack(found) if len(found) > 1 else found[0]

    def schedule(step: int) -> dict[str, float]:
        return {"lr": config["lr"] * (1 - (1 - config["lr_end"]) * step / steps)}

    optimiser = {"momentum": config["momentum"], "weight_decay": config["weight_decay"]}
    every = cadence(config["epochs"], (3 * steps * size, 0), (tests, 0))
    return Stage("train", None, indices, loss, schedule, optimiser, steps=steps, every=every)


def _features(config: dict, context: Context) -> dict:
    """k-means features of patches and a linear SVM (squared hinge, one class against the rest); saved only between the two."""
    from sklearn.svm import LinearSVC  # slow to import

    vision = Vision(config | {"normalisation": RAW}, context)
    ((_, units), _) = parse(scaled(config["layers"], config["width"]))
    net, raw = PatchFeatures(units).to(context.device), vision.train_images
    machine = LinearSVC(C=config["penalty"], dual=False, tol=0.01, max_iter=100)
    if context.probe:
        raise Measured(_forecast(net, machine, vision, config))
    context.say("k-means and the SVM are saved once each is done, not within: stopped in one of them, the trial begins that one again")

    def centroids() -> dict[str, Tensor]:
        return net.fit(raw, config["patches"], config["iterations"], seed_of(context.seed, "patches")).state_dict()

    net.load_state_dict(context.keep("k-means", centroids))
    features = torch.cat([net(part.float()) for part in raw.split(1000)])
    net.standardise(features)
    machine.fit(((features - net.feature_mean) / net.feature_std).cpu().numpy(), vision.train_labels.cpu().numpy())
    last = nn.Linear(features.shape[1], vision.classes).to(context.device)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(machine.coef_))
        last.bias.copy_(torch.from_numpy(machine.intercept_))
    measured = vision.measure(nn.Sequential(net, last), [{"test_error_percent": math.inf}])
    measured["best_test_error_percent"] = measured["test_error_percent"]  # there is one
    measured["parameters_millions"] = (net.centroids.numel() + count_parameters(last)) / 1e6
    measured["hidden_units"] = units * ((raw.shape[-1] - net.SIDE + 1) ** 2 + 4)
    return {"history": [], "metrics": measured}


def _forecast(net: PatchFeatures, machine, vision: Vision, config: dict, images: int = 20, cases: int = 200) -> float:
    """Seconds of features, k-means and SVM, from a little of each."""

    def timed(work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    raw, labels = vision.train_images, vision.train_labels
    labels = labels[:: max(1, len(labels) // cases)].cpu().numpy()  # from all over: the cases may lie in the classes' order
    each = timed(lambda: net(raw[:images].float()).cpu()) / images
    patches = torch.rand(1000, net.centroids.shape[1], device=raw.device)
    compared = timed(lambda: torch.cdist(patches, net.centroids).argmin(1).cpu()) / len(patches)
    features = torch.rand(len(labels), len(net.feature_mean)).numpy()
    separated = timed(lambda: machine.fit(features, labels)) / len(labels)
    passes = 2 * len(raw) + len(vision.test_labels)
    return each * passes + compared * config["patches"] * config["iterations"] + separated * len(raw)
