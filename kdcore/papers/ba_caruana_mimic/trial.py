"""Ba & Caruana 2014, "Do deep nets really need to be deep?", on CIFAR-10.

The teachers are the four CNNs of one trial, "ECNN"; the first of them teaches the mimics of a single CNN. Their logits on the
transfer set are computed once, and mimics learn from this table.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcore import methods, metrics
from kdcore.data import images
from kdcore.data.augment import Views
from kdcore.methods import Knowledge
from kdcore.models import count_parameters, create
from kdcore.models.shallow import PatchFeatures, parse, scaled
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, cadence, count_of
from kdcore.training import Context, Run, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "parameters_millions": "parameters of all nets, in millions",
    "hidden_units": "of all nets, as counted in the paper",
    "teacher_agreement_percent": "% of the test images that a mimic classifies like its teacher",
    "member_test_error_percent": "% of the test images: the mean over an ensemble's nets",
    "first_test_error_percent": "% of the test images: the first net of an ensemble",
}
RAW = {"mean": [0.0] * 3, "std": [1 / 255] * 3}  # pixels in 0..255, as PatchFeatures takes them


class Cases(NamedTuple):
    """The training cases of an arm: views, the index of each case's view [N, columns], and labels (-1: none)."""

    views: Views
    places: Tensor
    labels: Tensor

    def x(self, numbers: Tensor) -> Tensor:
        return self.views(self.places[numbers])

    def labelled(self) -> "Cases":
        known = self.labels >= 0
        return Cases(self.views, self.places[known], self.labels[known])


class Trial(ImageTrial):
    """One net, or several that train side by side and are evaluated by the mean of their logits.

    teacher_weights: ``logits`` of K teachers on the transfer set [K, N, C], and their ``test_logits`` [K, tests, C].
    """

    def run(self) -> Run:
        config = self.config
        options = {key: config[key] for key in ("kernel", "pooling", "input_dropout", "dropout")}
        self.nets = [self.network(scaled(config["layers"], config["width"]), k, **options) for k in range(config["members"])]
        cases = self.transfer_set() if config["transfer"] else self.training_set()
        if config["method"] == "mimic":
            self.known = self.teachers(len(cases.labels))
            table, mean, std = normalised(self.known["logits"][: len(cases.labels)])
            self.student = Rescaled(self.nets[0], mean, std)
            students = [methods.logit_mimic(self.nets[0], None)]
        else:
            cases, table = cases.labelled(), None
            self.student = Ensemble(self.nets) if len(self.nets) > 1 else self.nets[0]
            students = [methods.plain(net) for net in self.nets]
        return Run(self.finish, nn.ModuleList(students), [self.side_by_side(students, cases, table)], self.evaluate)

    def training_set(self) -> Cases:
        """All training images, without augmentation."""
        numbers = torch.arange(len(self.train_labels))
        return Cases(self.views, self.views.plain(numbers).to(self.context.device), self.train_labels)

    def transfer_set(self) -> Cases:
        """The training images, the unlabelled images, and ``views`` shifted and mirrored views of each.

        The unaugmented training images come first. The views are drawn once, from the trial's seed, so that teachers and students
        of one seed have the same.
        """
        config, device, pictures, labels = self.config, self.context.device, self.train_images, self.train_labels
        if config["unlabelled"] is not None:
            more = images.unlabelled(**config["unlabelled"]).to(device)
            pictures, labels = torch.cat([pictures, more]), torch.cat([labels, labels.new_full((len(more),), -1)])
        views, numbers = self.views_of(pictures, config["shift"], flip=True), torch.arange(len(pictures))
        generator = torch.Generator().manual_seed(seed_of(self.context.seed, "transfer set"))
        places = torch.cat([views.plain(numbers), views.draw(numbers.repeat(config["views"]), generator)]).to(device)
        return Cases(views, places, labels.repeat(1 + config["views"]))

    def teachers(self, cases: int) -> dict[str, Tensor]:
        """Mean logits [N, C] of the first ``teachers`` (a parameter; null: all) of the teachers, an ensemble's prediction.

        cases: number of the student's cases, for the zeros of a rehearsal.
        """
        weights = self.teacher_weights
        if self.context.rehearsal:
            shapes = {"logits": (1, cases, self.classes), "test_logits": (1, len(self.test_labels), self.classes)}
            weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
        elif weights is None:
            raise ValueError("a mimic needs its teachers' logits: teacher_weights")
        return {key: value[: self.config["teachers"]].mean(0).to(self.context.device) for key, value in weights.items()}

    def side_by_side(self, students: list[methods.Method], cases: Cases, table: Tensor | None) -> Stage:
        """All epochs as one stage, in which each net sees the cases in its own order; the losses of several nets are a vector."""
        config, size = self.config, self.config["batch_size"]
        count = len(cases.labels) // size
        steps = config["epochs"] * count
        objectives = [stage.loss for student in students for stage in student.stages]

        def indices(generator: torch.Generator) -> Tensor:
            orders = [torch.randperm(len(cases.labels), generator=generator)[: count * size].view(count, size) for _ in students]
            return torch.stack(orders, 1)

        def batch(own: Tensor) -> tuple[Tensor, Tensor, Knowledge]:
            x = cases.x(own)
            return x, cases.labels[own], Knowledge(None, x, None if table is None else table[own])

        def loss(index: Tensor) -> Tensor:
            each = [objective(*batch(own)) for objective, own in zip(objectives, index, strict=True)]
            return torch.stack(each) if len(each) > 1 else each[0]

        return Stage(
            "train",
            loss,
            steps=steps,
            indices=indices,
            schedule=lambda step: {"lr": config["lr"] * (1 - (1 - config["lr_end"]) * step / steps)},
            optimiser={"momentum": config["momentum"], "weight_decay": config["weight_decay"]},
            measured=cadence(config["epochs"], (3 * steps * size, 0), (len(self.test_labels), 0)),
        )

    def extras(self, history: list[dict]) -> dict:
        measures = {
            "parameters_millions": sum(map(count_parameters, self.nets)) / 1e6,
            "hidden_units": sum(net.hidden_units for net in self.nets),
        }
        if self.config["method"] == "mimic":
            agreed = self.logits(self.student, self.test_views).argmax(-1) == self.known["test_logits"].argmax(-1)
            measures["teacher_agreement_percent"] = 100 * agreed.double().mean().item()
        if self.config["is_teacher"]:
            missed = 100 * metrics.wrong(self.test_logits(), self.test_labels).double().mean(1)
            measures |= {"member_test_error_percent": missed.mean().item(), "first_test_error_percent": missed[0].item()}
        return measures

    def handed_on(self) -> dict[str, Tensor]:
        return {"logits": transfer_logits(self.nets, self.transfer_set()).cpu(), "test_logits": self.test_logits().cpu()}

    def test_logits(self) -> Tensor:
        """Test logits of the nets, [K, tests, C]."""
        return torch.stack([self.logits(net, self.test_views) for net in self.nets])


class Features(ImageTrial):
    """k-means patch features and a linear SVM (squared hinge, one-vs-rest). Only the result of k-means is checkpointed."""

    def run(self) -> Run:
        from sklearn.svm import LinearSVC  # slow to import

        config = self.config
        ((_, self.units), _) = parse(scaled(config["layers"], config["width"]))
        self.net = PatchFeatures(self.units).to(self.context.device)
        self.machine = LinearSVC(C=config["penalty"], dual=False, tol=0.01, max_iter=100)
        return Run(self.finish, estimate=self.estimate)

    def finish(self, history: list[dict]) -> list[dict]:
        context, config, net, pictures = self.context, self.config, self.net, self.train_images
        context.say("nothing is saved while k-means or the SVM runs: a trial that is stopped there repeats that part")

        def centroids() -> dict[str, Tensor]:
            return net.fit(pictures, config["patches"], config["iterations"], seed_of(context.seed, "patches")).state_dict()

        net.load_state_dict(context.keep("k-means", centroids))
        features = torch.cat([net(part.float()) for part in pictures.split(1000)])
        net.standardise(features)
        self.machine.fit(((features - net.feature_mean) / net.feature_std).cpu().numpy(), self.train_labels.cpu().numpy())
        last = nn.Linear(features.shape[1], self.classes).to(context.device)
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(self.machine.coef_))
            last.bias.copy_(torch.from_numpy(self.machine.intercept_))
        measures = self.measure(nn.Sequential(net, last), history) | {
            "parameters_millions": (net.centroids.numel() + count_parameters(last)) / 1e6,
            "hidden_units": self.units * ((pictures.shape[-1] - net.SIDE + 1) ** 2 + 4),
        }
        return [{"history": history, "metrics": measures}]

    def estimate(self, pictures: int = 20, cases: int = 200) -> float:
        """Seconds for features, k-means and SVM, extrapolated from a small part of each."""

        def timed(work: Callable) -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        net, raw, labels = self.net, self.train_images, self.train_labels
        labels = labels[:: max(1, len(labels) // cases)].cpu().numpy()  # evenly spaced: the cases may be sorted by class
        each = timed(lambda: net(raw[:pictures].float()).cpu()) / pictures
        patches = torch.rand(1000, net.centroids.shape[1], device=raw.device)
        compared = timed(lambda: torch.cdist(patches, net.centroids).argmin(1).cpu()) / len(patches)
        features = torch.rand(len(labels), len(net.feature_mean)).numpy()
        separated = timed(lambda: self.machine.fit(features, labels)) / len(labels)
        passes = 2 * len(raw) + len(self.test_labels)
        return each * passes + compared * self.config["patches"] * self.config["iterations"] + separated * len(raw)


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    """The run of a single trial: students share only a table, so that there is nothing to gain from training side by side."""
    (trial,) = trials
    if trial.config["method"] == "features":
        return Features(trial.config | {"normalisation": RAW}, context).run()
    return Trial(trial.config, context, teacher_weights).run()


class Ensemble(nn.Module):
    """The mean of the logits of several nets."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.members]).mean(0)


class Rescaled(nn.Module):
    """A net trained on normalised logits, with its outputs on the teacher's scale: std * net(x) + mean."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.std + self.mean


def transfer_logits(nets: list[nn.Module], cases: Cases, size: int = 1000) -> Tensor:
    """Logits [K, N, C] of K nets on every case, in eval mode and float32."""
    said = []
    for net in nets:
        net.eval()
        with torch.no_grad():
            said.append(torch.cat([net(cases.x(part)) for part in torch.arange(len(cases.places)).split(size)]))
    return torch.stack(said)


def normalised(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, C] standardised for each class over the cases, with the means and deviations [C]."""
    mean, std = logits.mean(0), logits.std(0, unbiased=False)
    std = torch.where(std > 0, std, 1)
    return (logits - mean) / std, mean, std


def work(config: dict) -> float:
    cases = count_of(config) * (1 + config["views"] if config["transfer"] else 1)
    return config["epochs"] * cases * config["members"] * count_parameters(create(scaled(config["layers"], config["width"])))
