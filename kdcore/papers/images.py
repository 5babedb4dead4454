"""What a trial on coloured images needs, whatever the paper: data, views, networks, evaluation, metrics."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from kdcore import data, metrics, models
from kdcore.data.augment import Views, cutout
from kdcore.data.preprocess import ZCA, channel_mean_std, global_contrast_normalise
from kdcore.methods import Knowledge, Method, Phase, freeze
from kdcore.models import Network
from kdcore.training import Context, Stage, seed_of

SHARE = 10  # training costs at least so many times what is measured between its epochs
EVALUATED = {"cpu": 64, "cuda": 1000}  # images at a time: small enough for a CPU's cache, large enough to fill a GPU

# what ``Vision.measure`` gives: part of the METRICS of a paper on images
IMAGE_METRICS = {
    "test_errors": "test images that are misclassified at the last epoch",
    "test_error_percent": "% of the test images, at the last epoch",
    "test_accuracy_percent": "100 less test_error_percent",
    "best_test_error_percent": "% of the test images, the least of all epochs that were measured; no result is chosen by it",
    "train_error_percent": "% of the training images, without augmentation, at the last epoch",
}


class Vision:
    """One data set on one device, as a paper's config describes it.

    config: ``data``; ``augmentation`` {pad, border, flip}; ``normalisation`` {mean, std} in units of 0..1, or null for those
    of the training set's channels, or "whitened" (global contrast normalisation, then ZCA fitted to the training images; a
    border is put round the whitened image); ``batch_size``; ``share`` of each class of the training set, 1 where it is not
    there; ``cutout``, the side of a square that training images lose, none where it is not there. Batches are float32 and
    channels_last; a view of a training image is an index (image, dy, dx[, flip]).
    """

    def __init__(self, config: Mapping, context: Context):
        self.config, self.context, device = config, context, context.device
        images = data.load(config["data"])
        self.classes = len(images.classes)
        cases = slice(None)
        if config.get("share", 1) < 1:
            cases = data.stratified_subset(images.train_labels, config["share"], seed_of(context.seed, "share"))
        self.train_images, test_images = images.train_images[cases].to(device), images.test_images.to(device)
        self.train_labels, self.test_labels = images.train_labels[cases].to(device), images.test_labels.to(device)
        self.whitening, self.look = None, {"memory_format": torch.channels_last}
        if config["normalisation"] == "whitened":
            self.whitening = _whitening(config["data"], device)
        else:
            self.look |= config["normalisation"] or dict(zip(("mean", "std"), channel_mean_std(images.train_images), strict=True))
        self.views = self.views_of(self.train_images, **{"pad": 0, **config["augmentation"]})
        self.test_views = self.views_of(test_images, 0)

    def views_of(self, images: Tensor, pad: int, **options) -> Views:
        """Views of any images (uint8 [N, 3, H, W], on the device), normalised as the training set's; options: those of ``Views``."""
        if self.whitening is not None:
            images = self.whitening.apply(global_contrast_normalise(images))
        return Views(images, pad, **options, **self.look)

    def network(self, name: str, *seed, **options) -> Network:
        """A fresh network on the device; its weights depend on the trial's seed and ``seed`` alone. options: as ``create`` takes them."""
        net = models.create(name, self.classes, **options).reset(seed_of(self.context.seed, "net", *seed))
        return net.to(self.context.device, memory_format=torch.channels_last)

    def teacher(self, name: str, weights: Mapping[str, Tensor] | None, **options) -> Network:
        """A frozen network with the weights that its trial saved. A forecast has none: it needs the shapes, not the knowledge.

        options: as ``create`` takes them.
        """
        net = models.create(name, self.classes, **options)
        if weights is not None:
            net.load_state_dict(weights)
        elif not self.context.probe:
            raise ValueError(f"the teacher {name} has no weights")
        return freeze(net.to(self.context.device, memory_format=torch.channels_last))

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
        method: Method,
        phase: Phase,
        schedule: Callable[[int], Mapping[str, float]],
        *,
        table: Callable[[Tensor, Tensor], Tensor] | None = None,
        cases: Tensor | None = None,
        every: int = 1,
        measured: tuple[int, int] | None = None,
        **options,
    ) -> Stage:
        """A phase of a method as a stage of ``fit``; options: what ``Stage`` takes (epochs or steps, optimiser, ...).

        table: (index, x) -> logits, such as a LogitTable: stands for the teacher, where its logits alone are asked for;
        cases: as in ``indices``; every: epochs from one measurement to the next, more where they would cost more than a tenth
        of training (``cadence``); measured: how many images a measurement shows to the student and to the teacher, the test
        set and none for None.
        """
        side = self.config.get("cutout", 0)

        def loss(index: Tensor) -> Tensor:
            x = self.views(index)
            if side:
                x = cutout(x, side)
            knowledge = None if table is None else Knowledge(None, x, table(index, x))
            return phase.loss(x, self.train_labels[index[:, 0]], knowledge)

        options = {"name": phase.name, "epochs": None, "parameters": phase.parameters} | options
        count = len(self.train_labels if cases is None else cases)
        size = min(self.config["batch_size"], count)
        epochs, steps = options["epochs"], options.get("steps")
        if epochs is None:
            epochs = math.ceil(steps / (count // size))
        else:
            steps = epochs * (count // size)
        every = cadence(
            epochs,
            trained=(3 * steps * size, 0 if phase.nets[1] is None or table is not None else steps * size),
            measured=(len(self.test_labels), 0) if measured is None else measured,
            every=every,
            first=options.get("first", False),
        )
        options |= {"knobs": method.knobs, "every": every}
        return Stage(indices=lambda generator: self.indices(generator, cases), loss=loss, schedule=schedule, **options)

    def logits(self, net: nn.Module, views: Views) -> Tensor:
        """[N, classes] of the images themselves, in eval mode and float32."""
        net.eval()
        numbers = torch.arange(len(views.windows), device=self.context.device)
        with torch.no_grad():
            return torch.cat([net(views(views.plain(part))) for part in parts(numbers)])

    def evaluate(self, net: nn.Module) -> dict[str, Tensor]:
        """For the history: per cent of the test set that the net gets wrong."""
        return {"test_error_percent": 100 * metrics.wrong(self.logits(net, self.test_views), self.test_labels).double().mean()}

    def measure(self, net: nn.Module, history: list[dict], top: int | None = None) -> dict:
        """The classification metrics of a trained net, at the last epoch; beside them ``best_test_error_percent``, the least error
        at any epoch that was measured (not every one is, see ``cadence``): no result of ours is chosen by it.

        top: also the share of test images whose label is not among so many largest logits.
        """
        logits = self.logits(net, self.test_views)
        missed = int(metrics.wrong(logits, self.test_labels).sum())
        share = 100 * missed / len(self.test_labels)
        found = {}
        if top is not None:
            found[f"top{top}_error_percent"] = 100 * metrics.top_wrong(logits, self.test_labels, top).double().mean().item()
        return found | {
            "test_errors": missed,
            "test_error_percent": share,
            "test_accuracy_percent": 100 - share,
            "best_test_error_percent": min(row["test_error_percent"] for row in history if "test_error_percent" in row),
            "train_error_percent": 100 * metrics.wrong(self.logits(net, self.views), self.train_labels).double().mean().item(),
        }


@lru_cache(maxsize=2)  # the eigenvectors of 3,072 pixels take a minute: once for all trials of a worker
def _whitening(name: str, device: str) -> ZCA:
    """Fitted to all training images of a data set, a share of them or not."""
    return ZCA().fit(global_contrast_normalise(data.load(name).train_images.to(device)))


def cadence(epochs: int, trained: tuple[int, int], measured: tuple[int, int], every: int = 1, first: bool = False) -> int:
    """Epochs from one measurement to the next, at least ``every``, so that they cost no more than a tenth of training.

    trained, measured: passes of an image through the student and through the teacher, in all epochs of training and in one
    measurement. A step of training is three passes through the student: forward, and backward twice as much. Each of the two
    keeps the tenth for itself, so that it is kept however much larger the teacher is. first: the first epoch is measured, too.

    A count, no timing: the history has the same rows on every machine. The last epoch is always measured; where the whole
    stage trains less than ten times what one measurement costs, it is the only one.
    """
    for chosen in range(every, epochs):
        count = math.ceil(epochs / chosen) + (first and chosen > 1)
        if all(SHARE * count * once <= each for each, once in zip(trained, measured, strict=True)):
            return chosen
    return max(every, epochs)


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


def piecewise(rates, until, scale: float = 1.0) -> tuple[Callable[[int], dict[str, float]], int]:
    """A rate that stays until a step and then falls: ``rates[i]`` up to step ``scale * until[i]``. The schedule and its length."""
    ends = [round(scale * end) for end in until]

    def schedule(step: int) -> dict[str, float]:
        return {"lr": next(rate for rate, end in zip(rates, ends, strict=True) if step < end)}

    return schedule, ends[-1]
