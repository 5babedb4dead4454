"""What trials on colour images share: data, views, networks, stages, evaluation, metrics."""

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
PLACES = 100  # mean number of positions at which a convolution's parameter is applied
SHARE = 10  # training costs at least this many times as much as all evaluations during it
EVALUATED = {"cpu": 64, "cuda": 1000}  # images at a time: small enough for a CPU's cache, large enough to fill a GPU

# the metrics that ``ImageTrial.measure`` returns: part of the METRICS of every paper on images
IMAGE_METRICS = {
    "test_errors": "misclassified test images at the last epoch",
    "test_error_percent": "% of the test images, at the last epoch",
    "test_accuracy_percent": "100 minus test_error_percent",
    "best_test_error_percent": "% of the test images, the lowest of all evaluated epochs; not used to select any result",
    "train_error_percent": "% of the training images, without augmentation, at the last epoch",
}


class ImageTrial:
    """One trial on images. A paper's subclass defines ``make_method`` and ``recipe``, and overrides any other method whose default
    does not fit.

        class Trial(ImageTrial):
            def make_method(self):
                return methods.kd(self.student, self.teacher, temperature=self.config["temperature"])

            def recipe(self, stage):
                schedule, steps = piecewise(self.config["lr"], self.config["until"])
                return {"schedule": schedule, "steps": steps, "optimiser": {"momentum": self.config["momentum"]}}

        prepare = Trial.prepare

    config: ``data``; ``network``; ``teacher`` (an arm or None) and ``teacher_network``; ``is_teacher``; ``augmentation`` {pad, border,
    flip}; ``normalisation`` {mean, std} on a scale of 0..1, null for the training set's own, or "whitened" (global contrast
    normalisation, then ZCA fitted to the training images; padding is added after whitening); ``batch_size``; optionally
    ``share``, the part of each class of the training set to use (default 1), and ``cutout``, the side of a square to erase from
    training images (default none). Batches are float32 and channels_last; a view of a training image is an index
    (image, dy, dx[, flip]). teacher_weights: those that the teacher's trial handed on.
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
        """The run of a cohort, which is a single trial: trials on images train alone."""
        (trial,) = trials
        return cls(trial.config, context, teacher_weights).run()

    def run(self) -> Run:
        """Build networks, method and stages, in this order."""
        self.student = self.make_student()
        self.teacher = self.make_teacher()
        torch.manual_seed(seed_of(self.context.seed, "connectors"))
        self.method = self.placed(self.make_method())
        return Run(self.finish, self.method, self.make_stages(), self.evaluate)

    def make_student(self) -> nn.Module:
        return self.network(self.config["network"])

    def make_teacher(self) -> nn.Module | None:
        """The frozen teacher, with the weights that its trial handed on; None without a teacher."""
        return None if self.config["teacher"] is None else self.frozen(self.config["teacher_network"], self.teacher_weights)

    def make_method(self) -> Method:
        """The method that trains ``self.student``, with ``self.teacher`` if the arm has one."""
        raise NotImplementedError

    def recipe(self, stage: Stage) -> dict:
        """How to train a stage of the method: the arguments of ``self.stage`` after the stage itself."""
        raise NotImplementedError

    def make_stages(self) -> list[Stage]:
        return [self.stage(stage, **self.recipe(stage)) for stage in self.method.stages]

    def evaluate(self) -> dict:
        """Measures for the history, between epochs."""
        return self.test_error(self.student) | self.watch()

    def watch(self) -> dict:
        """The paper's own measures between epochs, besides the test error."""
        return {}

    def extras(self, history: list[dict]) -> dict:
        """The paper's own metrics at the end, besides the errors."""
        return {}

    def finish(self, history: list[dict]) -> list[dict]:
        """Metrics of the trained student and, if the arm teaches, its weights."""
        result = {"history": history, "metrics": self.measure(self.student, history) | self.extras(history)}
        return [result | {"weights": self.handed_on()}] if self.config["is_teacher"] else [result]

    def handed_on(self) -> dict[str, Tensor]:
        """The ``teacher_weights`` for students of this trial."""
        return weights_of(self.student)

    def views_of(self, images: Tensor, pad: int, **options) -> Views:
        """Views of any images (uint8 [N, 3, H, W], on the device), normalised as the training set; options: those of ``Views``."""
        if self.whitening is not None:
            images = self.whitening.apply(global_contrast_normalise(images))
        return Views(images, pad, **options, **self.look)

    def placed(self, net: nn.Module) -> nn.Module:
        """Move a network to the device, in the memory format of the batches."""
        return net.to(self.context.device, memory_format=torch.channels_last)

    def network(self, name: str, *seed, **options) -> Network:
        """A new network on the device; its weights depend only on the trial's seed and ``seed``. options: those of ``create``."""
        return self.placed(models.create(name, self.classes, **options).reset(seed_of(self.context.seed, "net", *seed)))

    def frozen(self, name: str, weights: Mapping[str, Tensor] | None, **options) -> Network:
        """A frozen network with the weights of its trial; in a rehearsal, which has none, with its initial weights.

        options: those of ``create``.
        """
        net = models.create(name, self.classes, **options)
        if weights is not None:
            net.load_state_dict(weights)
        elif not self.context.rehearsal:
            raise ValueError(f"the teacher {name} has no weights")
        return freeze(self.placed(net))

    def indices(self, generator: torch.Generator, cases: Tensor | None = None) -> Tensor:
        """An epoch: views of the training images in random order, int64 [steps, B, columns], without the last, incomplete batch.

        cases: numbers of the images to use; None: all. If they are fewer than a batch, they form one batch.
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
        """Complete a method's stage for ``fit``: batches of training images, length, schedule.

        epochs or steps: its length. table: (index, x) -> logits, such as a LogitTable; replaces the teacher if only its logits are
        needed. cases: training images to use, as in ``indices``. batches: replaces ``indices``. every: evaluate after every n-th
        epoch, or less often if evaluation would cost more than a tenth of training (``cadence``). first: evaluate after the first
        epoch, too. measured: number of images per evaluation that pass through the student and through the teacher; None: the
        test set and 0. how: further fields of ``Stage``.
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
        """Logits [N, classes] of the unaugmented images, in eval mode and float32."""
        net.eval()
        numbers = torch.arange(len(views.windows), device=self.context.device)
        with torch.no_grad():
            return torch.cat([net(views(views.plain(part))) for part in parts(numbers)])

    def test_error(self, net: nn.Module) -> dict[str, Tensor]:
        """For the history: the percentage of the test set that the network misclassifies."""
        return {"test_error_percent": 100 * metrics.wrong(self.logits(net, self.test_views), self.test_labels).double().mean()}

    def measure(self, net: nn.Module, history: list[dict], top: int | None = None) -> dict:
        """The classification metrics of a trained network at the last epoch, and ``best_test_error_percent``, the lowest error of
        any evaluated epoch (see ``cadence``; without epochs, the error itself), which is not used to select any result.

        top: also give the top-k error for this k.
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


@lru_cache(maxsize=2)  # the eigenvectors for 3,072 pixels take a minute: computed once for all trials of a child
def _whitening(name: str, device: str) -> ZCA:
    """The whitening fitted to all training images of a data set, even if a trial uses only a share of them."""
    return ZCA().fit(global_contrast_normalise(data.load(name).train_images.to(device)))


def cadence(epochs: int, trained: tuple[int, int], measured: tuple[int, int], every: int = 1, first: bool = False) -> tuple[int, ...]:
    """The epochs, from 0, after which to evaluate: every n-th, with the smallest n >= ``every`` for which evaluation costs at most
    a tenth of training.

    trained, measured: number of images that pass through the student and through the teacher, in all epochs of training and in
    one evaluation. A training step counts as three passes through the student: one forward, and two for the backward. The limit
    holds for student and teacher separately, so that the size of the teacher does not matter. first: evaluate after the first
    epoch, too.

    Passes are counted, not timed, so that the history has the same rows on every machine. The last epoch is always evaluated;
    it is the only one if the whole stage costs less than ten evaluations.
    """

    def measured_with(every: int) -> set[int]:
        return {*range(every - 1, epochs, every), epochs - 1, *((0,) if first else ())}

    chosen = every
    while chosen < epochs and any(SHARE * len(measured_with(chosen)) * once > whole for whole, once in zip(trained, measured, strict=True)):
        chosen += 1
    return tuple(sorted(measured_with(max(every, chosen))))


def count_of(config: Mapping) -> float:
    """The number of training images of a configuration, without loading them."""
    return CASES.get(config["data"], FEW) * config.get("share", 1)


def work(config: Mapping, shown: float) -> float:
    """``Paper.work`` for a trial on images. shown: number of training images that its networks see in total."""
    return shown * PLACES * _parameters(config["network"])


@lru_cache
def _parameters(network: str) -> int:
    return models.count_parameters(models.create(network))


def parts(cases: Tensor) -> tuple[Tensor, ...]:
    """Case numbers split into batches for evaluation, of the size that suits their device."""
    return cases.split(EVALUATED[cases.device.type])


def spread(count: int, wanted: int, device: str = "cpu") -> Tensor:
    """About ``wanted`` evenly spaced numbers below ``count``. (CIFAR is sorted by class here: its first images are all of one.)"""
    return torch.arange(0, count, max(1, count // wanted), device=device)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A network's state on the CPU, as a teacher's trial hands it on to its students."""
    return {key: value.cpu().contiguous() for key, value in net.state_dict().items()}


def piecewise(lr, until, scale: float = 1.0) -> tuple[Callable[[int], dict[str, float]], int]:
    """A piecewise constant learning rate, ``lr[i]`` up to step ``scale * until[i]``: the schedule and its length."""
    ends = [round(scale * end) for end in until]

    def schedule(step: int) -> dict[str, float]:
        return {"lr": next(rate for rate, end in zip(lr, ends, strict=True) if step < end)}

    return schedule, ends[-1]
