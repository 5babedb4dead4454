"""Two ways to train a convolutional net on 32 x 32 images, the usual loop and kdcore's, and a check that they agree.

Both see the same random images, cropped from a border of 4 and mirrored, batch 128, SGD with momentum. The student is WRN-16-2;
with a teacher, WRN-22-4, its loss is 0.1 CE + 0.9 T^2 KL.
"""

import copy
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import mlp
from benchmarks.measure import timed_steps
from benchmarks.mlp import BATCH, MOMENTUM, RATE
from kdcore import methods, metrics, models
from kdcore.data.augment import Views
from kdcore.methods import Knowledge, LogitTable, Method, freeze
from kdcore.models import Network
from kdcore.training import Context, Stage, Step, seed_of

PAD, CLASSES = 4, 10
VIEWS = 2 * (2 * PAD + 1) ** 2  # of an image
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # the constants that CIFAR-10 examples carry
EPOCH, TEST_CASES = 50_000, 10_000  # sizes of the sets to which an epoch is extrapolated
WORKERS = {"cpu": 2, "cuda": 8}  # of the usual loop; machines with a GPU have more cores


@dataclass(frozen=True)
class Task:
    """What both sides train on. ``cases`` images drawn from ``seed``."""

    seed: int = 0
    cases: int = 50_000
    student: str = "wrn_16_2"
    teacher: str = "wrn_22_4"


@functools.cache
def raw(task: Task) -> tuple[numpy.ndarray, Tensor]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N]."""
    generator = numpy.random.default_rng(task.seed)
    images = generator.integers(256, size=(task.cases, 32, 32, 3), dtype=numpy.uint8)
    return images, torch.from_numpy(generator.integers(CLASSES, size=task.cases))


def student_net(task: Task, number: int = 0) -> Network:
    return models.create(task.student, CLASSES).reset(seed_of(task.seed, "net", number))


def teacher_net(task: Task) -> Network:
    """Its logits are scaled to spread like a trained net's; the divergence of two nets that hardly differ would be rounding error."""
    net = freeze(models.create(task.teacher, CLASSES).reset(seed_of(task.seed, "teacher")))
    net.linear.weight.mul_(10)
    return net


def operations(name: str, *, training: bool) -> int:
    """Floating point operations per image in the matrix products of the net ``name``: forward, or the forward and backward of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    net, image = models.create(name, CLASSES).train(training), torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = net(image)
        if training:
            logits.sum().backward()
    return counter.get_total_flops()


# ---------------------------------------------------------------- the usual loop


class PilImages(Dataset):
    """Images in memory, turned one at a time into PIL images, then augmented views, then tensors."""

    def __init__(self, images: numpy.ndarray, labels: Tensor, train: bool = True):
        from torchvision import transforms  # slow to import: only this side pays for it

        self.images, self.labels = images, labels.tolist()
        views = [transforms.RandomCrop(32, padding=PAD), transforms.RandomHorizontalFlip()] if train else []
        self.transform = transforms.Compose([*views, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, case: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[case])), self.labels[case]


class PeerLoop(mlp.PeerLoop):
    """The usual loop on colour images: as for the MLP, with float32 nets in PyTorch's default memory format, and all of the teacher's
    features computed on every batch."""

    def __init__(self, task: Task, distil: bool = False, device: str = "cpu", worker: int = 0):
        self.device, self.workers = device, WORKERS[device]
        self.images, self.labels = raw(task)
        self.loader = DataLoader(PilImages(self.images, self.labels), batch_size=BATCH, shuffle=True, num_workers=self.workers)
        self.student = student_net(task).to(device)
        teacher = teacher_net(task).to(device) if distil else None
        self.teacher = None if teacher is None else lambda images: teacher.features(images)[0]
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=RATE, momentum=MOMENTUM)
        self.batches, self.losses = None, []

    def warm_up(self) -> None:
        """Start the loader's workers; their queue is full after one step of such a net."""
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self.step()


class PeerFeed(PeerLoop):
    """The batches of the usual loop, without a net."""

    def step(self) -> None:
        images, labels = next(self.batches)
        images.to(self.device), labels.to(self.device)

    def warm_up(self) -> None:
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        for _ in range(20):  # until everything that was fetched ahead is used up
            self.step()


class PeerEpoch(PeerLoop):
    """An epoch of distillation and its evaluation, extrapolated from a part of each."""

    def __init__(self, task: Task, worker: int = 0):
        super().__init__(task, distil=True)

    def run(self, steps: float) -> tuple[int, float]:
        start = time.perf_counter()
        for _ in range(int(steps)):
            self.step()
        training = (time.perf_counter() - start) / (int(steps) * BATCH)
        return 1, EPOCH * training + TEST_CASES * self._evaluate(int(steps) * BATCH)

    def _evaluate(self, cases: int) -> float:
        """Seconds per image, in batches of 32; starting the loader's workers is not counted."""
        test = PilImages(self.images[: cases + 32], self.labels, train=False)
        batches, correct = iter(DataLoader(test, batch_size=32, num_workers=self.workers)), 0
        next(batches)
        self.student.eval()
        start = time.perf_counter()
        with torch.no_grad():
            for images, labels in batches:
                correct += (self.student(images).argmax(1) == labels).sum().item()
        seconds = time.perf_counter() - start
        self.student.train()
        return seconds / cases


# ---------------------------------------------------------------- kdcore's

GROUPS = ("group1", "group2", "group3")
METHODS: dict[str, Callable[[Network, Network], Method]] = {
    "plain": methods.plain,
    "kd": methods.kd,
    "attention_transfer": lambda student, teacher: methods.attention_transfer(student, teacher, taps=GROUPS),
    "activation_boundary": lambda student, teacher: methods.activation_boundary(
        student, teacher, taps=[f"{group}.pre" for group in GROUPS], weights=(0.00075, 0.0015, 0.003)
    ),
    "logit_mimic": methods.logit_mimic,
}
THREE, FOUR = ("kd", "attention_transfer", "activation_boundary"), ("kd", "attention_transfer", "activation_boundary", "logit_mimic")


@functools.cache
def views(task: Task, device: str) -> Views:
    """All views of all images, in the memory format in which convolutions are fastest."""
    images = torch.from_numpy(raw(task)[0]).permute(0, 3, 1, 2).to(device)
    return Views(images, PAD, flip=True, mean=MEAN, std=STD, memory_format=torch.channels_last)


@functools.cache
def table(task: Task, device: str) -> LogitTable:
    """A table for the teacher's logits on these views, still empty."""
    return LogitTable(_on(teacher_net(task), device), views(task, device), CLASSES)


def _on(net: nn.Module, device: str) -> nn.Module:
    return net.to(device, memory_format=torch.channels_last)


def engine(
    task: Task, names: Sequence[str], tabled: bool = False, device: str = "cpu", rate: float = RATE, batch: int = BATCH
) -> tuple[nn.ModuleList, Stage]:
    """Students that share their batches and one teacher, one for each of ``names``, and the stage (each method's first) that trains
    them, built from kdcore's parts. tabled: the teacher is a table of logits."""
    look, labels, teacher = views(task, device), raw(task)[1].to(device), _on(teacher_net(task), device)
    logits = table(task, device) if tabled else lambda index, x: None
    students = [_on(student_net(task, number), device) for number in range(len(names))]
    cohort = _on(nn.ModuleList(METHODS[name](student, teacher) for name, student in zip(names, students, strict=True)), device)
    stages = [method.stages[0] for method in cohort]

    def indices(generator: torch.Generator) -> Tensor:
        order = torch.randperm(task.cases, generator=generator)[: task.cases // batch * batch]
        return look.draw(order.view(-1, batch), generator)

    def loss(index: Tensor) -> Tensor:
        x = look(index)
        knowledge = Knowledge(teacher, x, logits(index, x))
        return torch.stack([stage.loss(x, labels[index[:, 0]], knowledge) for stage in stages])

    parameters = [parameter for stage in stages for parameter in stage.parameters]
    optimiser = {"momentum": MOMENTUM}
    return cohort, Stage(
        "train", epochs=1, indices=indices, loss=loss, schedule=lambda epoch: {"lr": rate}, optimiser=optimiser, parameters=parameters
    )


class EngineLoop:
    """kdcore's inner loop, with one student for each of ``names``: all in one step, with one teacher, or each in its own step."""

    TABLED_BATCHES = 4  # the part of the table that is filled on a CPU, and used over and over: the whole table takes hours

    def __init__(
        self,
        task: Task,
        names: Sequence[str] = ("plain",),
        tabled: bool = False,
        together: bool = True,
        device: str = "cpu",
        precision: str = "float32",
        worker: int = 0,
    ):
        self.task, self.tabled, self.device, self.students = task, tabled, device, len(names)
        cohorts = [engine(task, group, tabled, device) for group in ([names] if together else [[name] for name in names])]
        self.models, self.stage = [model.train() for model, _ in cohorts], cohorts[0][1]
        self.steps = [Step(model, stage, device, precision) for model, stage in cohorts]
        for step in self.steps:
            step.set(self.stage.schedule(0))
        self.rows, self.totals, self.warm = self._rows(task.seed + worker), [0.0] * len(cohorts), False

    def _rows(self, seed: int):
        generators = (torch.Generator().manual_seed(seed_of(seed, "order", 0, epoch)) for epoch in itertools.count())
        epochs = (self.stage.indices(generator).to(self.device) for generator in generators)
        if self.tabled and self.device == "cpu":
            return itertools.cycle(next(epochs)[: self.TABLED_BATCHES])
        return itertools.chain.from_iterable(epochs)

    def step(self) -> None:
        row = next(self.rows)
        # sums stay on the device
        self.totals = [total + step(row).double() for total, step in zip(self.totals, self.steps, strict=True)]

    def warm_up(self) -> None:
        """Runs only once: it takes long, and nothing cools down between rounds."""
        if self.warm:
            return
        if self.tabled and self.device != "cpu":
            table(self.task, self.device).fill()
        for _ in range(self.TABLED_BATCHES if self.tabled else 1):
            self.step()
        self.warm = True

    def run(self, seconds: float) -> tuple[int, float]:
        cuda = self.device != "cpu"
        count, passed = timed_steps(self.step, seconds, chunk=100 if cuda else 1, wait=torch.cuda.synchronize if cuda else lambda: None)
        return count * BATCH * self.students, passed

    def rest(self) -> None:
        pass


class EngineFeed(EngineLoop):
    """The batches of ``EngineLoop``, without a net."""

    def __init__(self, task: Task, device: str = "cpu", worker: int = 0):
        super().__init__(task, device=device, worker=worker)
        self.look, self.labels = views(task, device), raw(task)[1].to(device)

    def step(self) -> None:
        row = next(self.rows)
        self.look(row), self.labels[row[:, 0]]


class EngineEpoch(EngineLoop):
    """An epoch of the students and their evaluation, extrapolated from a part of each."""

    def run(self, steps: float) -> tuple[int, float]:
        start = time.perf_counter()
        for _ in range(int(steps)):
            self.step()
        images = int(steps) * BATCH
        training = (time.perf_counter() - start) / images
        return self.students, EPOCH * training + TEST_CASES * self._evaluate(images)

    def _evaluate(self, cases: int) -> float:
        """Seconds per image, for all students together."""
        look, labels = views(self.task, self.device), raw(self.task)[1]
        start = time.perf_counter()
        with torch.no_grad():
            x = look(look.plain(torch.arange(cases)))
            for method in self.models[0].eval():
                metrics.wrong(method(x), labels[:cases]).sum().item()
        seconds = time.perf_counter() - start
        self.models[0].train()
        return seconds / cases


# ---------------------------------------------------------------- a small table: several trials


class PeerTable(mlp.PeerTable):
    """Trials in sequence, each a fresh ``PeerLoop``: two of the eight, since the others run at the same rate."""

    loop, trials = PeerLoop, 2


class EngineTable:
    """The methods of one seed, in one ``fit()`` with one teacher; the other seed runs in parallel."""

    def __init__(self, task: Task, worker: int = 0):
        self.task, self.seed, self.warm = task, worker, False

    def warm_up(self) -> None:
        if not self.warm:
            self._fit(1)
            self.warm = True

    def run(self, steps: float) -> tuple[int, float]:
        return len(FOUR), self._fit(int(steps))

    def _fit(self, steps: int) -> float:
        cohort, stage = engine(self.task, FOUR)
        draw = stage.indices
        stage.indices = lambda generator: draw(generator)[:steps]
        start = time.perf_counter()
        Context(seed=self.seed).fit(cohort, [stage], dict)
        return time.perf_counter() - start

    def rest(self) -> None:
        pass


def seconds_a_view(task: Task) -> float:
    """Seconds per entry of the table of logits on this machine."""
    entries, look = table(task, "cpu"), views(task, "cpu")
    first, second = (look.plain(torch.arange(start, start + BATCH)) for start in (0, BATCH))
    entries(first, look(first))  # allocates
    start = time.perf_counter()
    entries(second, look(second))
    return (time.perf_counter() - start) / BATCH


# ---------------------------------------------------------------- the two agree

CHECKED = Task(cases=640, student="wrn_16_1", teacher="wrn_10_2")
# BatchNorm divides by the standard deviation of a batch, so rounding errors grow from step to step, faster at a larger rate: at
# 0.01, two correct orders of summation differ by 1e-4 after 20 steps, at this rate by 1e-6.
CHECKED_RATE = 0.001
MANY_PARTS = ("darts_v2_5_4", 0.00005)  # a network like that of darts_step; with more layers in sequence, errors grow faster still


def check_numerics(task: Task = CHECKED, device: str = "cpu", tamper: Callable[[nn.ModuleList], object] = lambda cohort: None) -> None:
    """With the same weights and views, the first losses of kdcore's loop, alone and in a cohort, must equal those of a plain loop on
    PIL images, and the table must equal the teacher. Raises BenchmarkError otherwise.

    Small nets, in true float32 (a GPU's convolutions would round to TF32), at a small rate.
    tamper: changes kdcore's nets before they train (to test this check).
    """
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(1)  # on a busy machine, two threads can wait for each other for minutes
    torch.backends.cudnn.allow_tf32 = False
    try:
        _check(task, device, tamper)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32


def _check(task: Task, device: str, tamper: Callable[[nn.ModuleList], object]) -> None:
    teacher, entries = teacher_net(task).to(device), table(task, device)
    checks = (("plain",), task.student, CHECKED_RATE), (("plain",), *MANY_PARTS), (("kd", "logit_mimic"), task.student, CHECKED_RATE)
    for names, net, rate in checks:
        cohort, stage = engine(replace(task, student=net), names, device=device, rate=rate, batch=task.cases // mlp.CHECKED_STEPS)
        student = copy.deepcopy(cohort[0].student).to(memory_format=torch.contiguous_format)
        tamper(cohort)
        rows = stage.indices(torch.Generator().manual_seed(task.seed))
        batches = [(pil_views(task, row).to(device), raw(task)[1][row[:, 0]].to(device)) for row in rows]
        step = Step(cohort.train(), stage, device)
        step.set(stage.schedule(0))
        ours = torch.stack([step(row.to(device)).clone() for row in rows])[:, 0]
        mlp.compare(ours.tolist(), mlp.plain_losses(student, None if names == ("plain",) else teacher, batches, rate))
    if device != "cpu":
        entries.fill()
    rows = rows.to(device).flatten(0, 1)
    mlp.compare_table(entries(rows, views(task, device)(rows)), teacher, torch.cat([images for images, _ in batches]))


def pil_views(task: Task, index: Tensor) -> Tensor:
    """Views made by torchvision from PIL images, float32 [B, 3, 32, 32]."""
    from PIL import Image
    from torchvision.transforms import functional

    found = []
    for case, dy, dx, flip in index.tolist():
        image = Image.fromarray(raw(task)[0][case])
        image = functional.pad(functional.hflip(image) if flip else image, PAD)
        found.append(functional.normalize(functional.to_tensor(functional.crop(image, dy, dx, 32, 32)), MEAN, STD))
    return torch.stack(found)
