"""What a trial on coloured images does, whatever the paper: data, views, networks, stages, evaluation, metrics."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from kdcore import data, metrics, models
from kdcore.data.augment import Views, cutout
from kdcore.data.preprocess import ZCA, channel_mean_std, global_contrast_normalise
from kdcore.methods import Method
from kdcore.models import Network
from kdcore.teacher import Knowledge, freeze
from kdcore.training import Context, Run, Stage, seed_of

CASES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}  # training images; the embedded sets count as ``FEW``
FEW = 1_000
PLACES = 100  # of a map that a convolution's parameter works at, in the mean
SHARE = 10  # training costs at least so many times what is measured between its epochs
EVALUATED = {"cpu": 64, "cuda": 1000}  # images at a time: small enough for a CPU's cache, large enough to fill a GPU

# what ``ImageTrial.measure`` gives: part of the METRICS of a paper on images
IMAGE_METRICS = {
    "test_errors": "test images that are misclassified at the last epoch",
    "test_error_percent": "% of the test images, at the last epoch",
    "test_accuracy_percent": "100 less test_error_percent",
    "best_test_error_percent": "% of the test images, the least of all epochs that were measured; no result is chosen by it",
    "train_error_percent": "% of the training images, without augmentation, at the last epoch",
}


class ImageTrial:
    """One trial on images. A paper derives its own from it and says what is its own: ``make_method`` and ``recipe``, and where the
    usual ones do not do, any other method here.

        class Trial(ImageTrial):
            def make_method(self):
                return methods.kd(self.student, self.teacher, temperature=self.config["temperature"])

            def recipe(self, stage):
                schedule, steps = piecewise(self.config["lr"], self.config["until"])
                return {"schedule": schedule, "steps": steps, "optimiser": {"momentum": self.config["momentum"]}}

        prepare = Trial.prepare

    config: ``data``; ``network``; ``teacher`` (an arm or None) and ``teacher_network``; ``is_teacher``; ``augmentation`` {pad, border,
    flip}; ``normalisation`` {mean, std} in units of 0..1, or null for those of the training set's channels, or "whitened" (global
    contrast normalisation, then ZCA fitted to the training images; a border is put round the whitened image); ``batch_size``;
    ``share`` of each class of the training set, 1 where it is not there; ``cutout``, the side of a square that training images
    lose, none where it is not there. Batches are float32 and channels_last; a view of a training image is an index
    (image, dy, dx[, flip]). teacher_weights: what the teacher's trial handed on.
    """

    def __init__(self, config: Mapping, context: Context, teacher_weights: Mapping[str, Tensor] | None = None):
        self.config, self.context, self.teacher_weights, device = config, context, teacher_weights, context.device
        images = data.load(config["data"])
        self.classes = len(images.classes)
        cases = slice(None)
        if config.get("share", 1) < 1:
            cases = data.stratified_subset(images.train_labels, config["share"], seed_of(context.seed, "share"))
        self.train_images, test_images = images.train_images[cases].to(device), images.test_images.to(device)
        self.train_labels, self.test_labels = images.train_labels[cases].to(device), images.test_labels.to(device)
        self.whitening, self.look = None, {"memory_format": torch.channels_last}
        if config.get("normalisation") == "whitened":
            self.whitening = _whitening(config["data"], device)
        else:
            self.look |= config.get("normalisation") or dict(zip(("mean", "std"), channel_mean_std(images.train_images), strict=True))
        self.views = self.views_of(self.train_images, **{"pad": 0, **config.get("augmentation", {})})
        self.test_views = self.views_of(test_images, 0)

    @classmethod
    def prepare(cls, trials: list, context: Context, teacher_weights: Mapping[str, Tensor] | None) -> Run:
        """The run of a single trial: every one of them trains alone."""
        (trial,) = trials
        return cls(trial.config, context, teacher_weights).run()

    def run(self) -> Run:
        """Networks, method and stages, built in this order."""
        self.student = self.make_student()
        self.teacher = self.make_teacher()
        torch.manual_seed(seed_of(self.context.seed, "connectors"))
        self.method = self.placed(self.make_method())
        return Run(self.finish, self.method, self.make_stages(), self.evaluate)

    def make_student(self) -> nn.Module:
        return self.network(self.config["network"])

    def make_teacher(self) -> nn.Module | None:
        """Frozen, with the weights that its trial handed on."""
        return None if self.config["teacher"] is None else self.frozen(self.config["teacher_network"], self.teacher_weights)

    def make_method(self) -> Method:
        """What trains ``self.student``, with ``self.teacher`` where the arm has one."""
        raise NotImplementedError

    def recipe(self, stage: Stage) -> dict:
        """How a stage of the method is trained: what ``self.stage`` takes beside it."""
        raise NotImplementedError

    def make_stages(self) -> list[Stage]:
        return [self.stage(stage, **self.recipe(stage)) for stage in self.method.stages]

    def evaluate(self) -> dict:
        """For the history, between epochs."""
        return self.test_error(self.student) | self.watch()

    def watch(self) -> dict:
        """What a paper measures between epochs, beside the test error."""
        return {}

    def extras(self, history: list[dict]) -> dict:
        """What a paper measures at the end, beside the errors."""
        return {}

    def finish(self, history: list[dict]) -> list[dict]:
        """Metrics of the trained student; as a teacher, its weights."""
        result = {"history": history, "metrics": self.measure(self.student, history) | self.extras(history)}
        return [result | {"weights": self.handed_on()}] if self.config["is_teacher"] else [result]

    def handed_on(self) -> dict[str, Tensor]:
        """What students of this trial get as ``teacher_weights``."""
        return weights_of(self.student)

    def views_of(self, images: Tensor, pad: int, **options) -> Views:
        """Views of any images (uint8 [N, 3, H, W], on the device), normalised as the training set's; options: those of ``Views``."""
        if self.whitening is not None:
            images = self.whitening.apply(global_contrast_normalise(images))
        return Views(images, pad, **options, **self.look)

    def placed(self, net: nn.Module) -> nn.Module:
        """On the device, its convolutions laid out as the batches are."""
        return net.to(self.context.device, memory_format=torch.channels_last)

    def network(self, name: str, *seed, **options) -> Network:
        """A fresh network on the device; its weights depend on the trial's seed and ``seed`` alone. options: as ``create`` takes them."""
        return self.placed(models.create(name, self.classes, **options).reset(seed_of(self.context.seed, "net", *seed)))

    def frozen(self, name: str, weights: Mapping[str, Tensor] | None, **options) -> Network:
        """A frozen network with the weights that its trial saved. A rehearsal has none: it needs the shapes, not the knowledge.

        options: as ``create`` takes them.
        """
        net = models.create(name, self.classes, **options)
        if weights is not None:
            net.load_state_dict(weights)
        elif not self.context.rehearsal:
            raise ValueError(f"the teacher {name} has no weights")
        return freeze(self.placed(net))

    def indices(self, generator: torch.Generator, cases: Tensor | None = None) -> Tensor:
        """An epoch: views of all training images in random order, int64 [steps, B, columns]; the last, smaller batch is left out.

        cases: numbers of the images that are seen, all for None. Fewer than a batch are one batch.
        """
        count = len(self.train_labels if cases is None else cases)
        size = min(self.config["batch_size"], count)
        order = torch.randperm(count, generator=generator)[: count // size * size]
        return self.views.draw((order if cases is None else cases[order]).view(-1, size), generator)

    def stage(
        self,
        stage: Stage,
        schedule: Callable[[int], Mapping[str, float]],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        table: Callable[[Tensor, Tensor], Tensor] | None = None,
        cases: Tensor | None = None,
        batches: Callable[[torch.Generator], Tensor] | None = None,
        every: int = 1,
        first: bool = False,
        measured: tuple[int, int] | None = None,
        **how,
    ) -> Stage:
        """A method's stage with all that ``fit`` needs: batches of the training images, length, schedule.

        epochs or steps: its length; table: (index, x) -> logits, such as a LogitTable: stands for the teacher, where its logits alone
        are asked for; cases: the training images that it sees, as in ``indices``; batches: in place of ``indices``; every: epochs from
        one measurement to the next, more where they would cost more than a tenth of training (``cadence``); first: the first epoch is
        measured, too; measured: how many images a measurement shows to the student and to the teacher, the test set and none for
        None; how: further fields of ``Stage``.
        """
        side = self.config.get("cutout", 0)

        def batch(index: Tensor) -> tuple:
            x = self.views(index)
            if side:
                x = cutout(x, side)
            labels = self.train_labels[index[:, 0]]
            return (x, labels) if table is None else (x, labels, Knowledge(None, x, table(index, x)))

        count = len(self.train_labels if cases is None else cases)
        size = min(self.config["batch_size"], count)
        passes = math.ceil(steps / (count // size)) if epochs is None else epochs
        updates = steps if epochs is None else epochs * (count // size)
        asked = stage.loss.teacher is not None and table is None
        return dataclasses.replace(
            stage,
            epochs=epochs,
            steps=steps,
            indices=batches or partial(self.indices, cases=cases),
            batch=batch,
            schedule=schedule,
            measured=cadence(
                passes,
                trained=(3 * updates * size, updates * size if asked else 0),
                measured=(len(self.test_labels), 0) if measured is None else measured,
                every=every,
                first=first,
            ),
            **how,
        )

    def logits(self, net: nn.Module, views: Views) -> Tensor:
        """[N, classes] of the images themselves, in eval mode and float32."""
        net.eval()
        numbers = torch.arange(len(views.windows), device=self.context.device)
        with torch.no_grad():
            return torch.cat([net(views(views.plain(part))) for part in parts(numbers)])

    def test_error(self, net: nn.Module) -> dict[str, Tensor]:
        """For the history: per cent of the test set that the net gets wrong."""
        return {"test_error_percent": 100 * metrics.wrong(self.logits(net, self.test_views), self.test_labels).double().mean()}

    def measure(self, net: nn.Module, history: list[dict], top: int | None = None) -> dict:
        """The classification metrics of a trained net, at the last epoch; beside them ``best_test_error_percent``, the least error
        at any epoch that was measured (not every one is, see ``cadence``; without epochs, the error itself): no result of ours is
        chosen by it.

        top: also the share of test images whose label is not among so many largest logits.
        """
        logits = self.logits(net, self.test_views)
        missed = int(metrics.wrong(logits, self.test_labels).sum())
        share = 100 * missed / len(self.test_labels)
        measures = {}
        if top is not None:
            measures[f"top{top}_error_percent"] = 100 * metrics.top_wrong(logits, self.test_labels, top).double().mean().item()
        return measures | {
            "test_errors": missed,
            "test_error_percent": share,
            "test_accuracy_percent": 100 - share,
            "best_test_error_percent": min((row["test_error_percent"] for row in history if "test_error_percent" in row), default=share),
            "train_error_percent": 100 * metrics.wrong(self.logits(net, self.views), self.train_labels).double().mean().item(),
        }


@lru_cache(maxsize=2)  # the eigenvectors of 3,072 pixels take a minute: once for all trials of a child
def _whitening(name: str, device: str) -> ZCA:
    """Fitted to all training images of a data set, a share of them or not."""
    return ZCA().fit(global_contrast_normalise(data.load(name).train_images.to(device)))


def cadence(epochs: int, trained: tuple[int, int], measured: tuple[int, int], every: int = 1, first: bool = False) -> tuple[int, ...]:
    """The epochs (0, 1, ...) that end with a measurement: every so many, at least ``every``, that all of them cost no more than a
    tenth of training.

    trained, measured: passes of an image through the student and through the teacher, in all epochs of training and in one
    measurement. A step of training is three passes through the student: forward, and backward twice as much. Each of the two
    keeps the tenth for itself, so that it is kept however much larger the teacher is. first: the first epoch is measured, too.

    A count, no timing: the history has the same rows on every machine. The last epoch is always measured; where the whole
    stage trains less than ten times what one measurement costs, it is the only one.
    """

    def measured_with(every: int) -> set[int]:
        return {*range(every - 1, epochs, every), epochs - 1, *((0,) if first else ())}

    chosen = every
    while chosen < epochs and any(SHARE * len(measured_with(chosen)) * once > whole for whole, once in zip(trained, measured, strict=True)):
        chosen += 1
    return tuple(sorted(measured_with(max(every, chosen))))


def count_of(config: Mapping) -> float:
    """How many training images a config has, without loading them."""
    return CASES.get(config["data"], FEW) * config.get("share", 1)


def work(config: Mapping, shown: float) -> float:
    """``Paper.work`` of a trial on images. shown: training images that its nets see in all."""
    return shown * PLACES * _parameters(config["network"])


@lru_cache
def _parameters(network: str) -> int:
    return models.count_parameters(models.create(network))


def parts(cases: Tensor) -> tuple[Tensor, ...]:
    """Case numbers in batches for evaluation, as many as their device works through fastest."""
    return cases.split(EVALUATED[cases.device.type])


def spread(count: int, wanted: int, device: str = "cpu") -> Tensor:
    """``wanted`` numbers below ``count`` or a few more, at even distances. CIFAR lies in order of its classes: its first images
    are of one."""
    return torch.arange(0, count, max(1, count // wanted), device=device)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """What a teacher's trial hands to its students."""
    return {key: value.cpu().contiguous() for key, value in net.state_dict().items()}


def piecewise(lr, until, scale: float = 1.0) -> tuple[Callable[[int], dict[str, float]], int]:
    """A rate that stays until a step and then falls: ``lr[i]`` up to step ``scale * until[i]``. The schedule and its length."""
    ends = [round(scale * end) for end in until]

    def schedule(step: int) -> dict[str, float]:
        return {"lr": next(rate for rate, end in zip(lr, ends, strict=True) if step < end)}

    return schedule, ends[-1]
