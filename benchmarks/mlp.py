"""Two ways to train an MLP on 28 x 28 images, the usual loop and kdcore's, and a check that they agree.

Both see the same random images (speed does not depend on their content), batch 128, SGD with momentum. The student
is 784-800-800-10; with a teacher 784-1200-1200-10 its loss is 0.1 CE + 0.9 T^2 KL.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import BenchmarkError, timed_steps
from kdcore import losses
from kdcore.models import MLP
from kdcore.training import Context, Stage, Step, seed_of

STUDENT, TEACHER = (784, 800, 800, 10), (784, 1200, 1200, 10)
BATCH, RATE, MOMENTUM = 128, 0.01, 0.9
TEMPERATURE, SOFT_WEIGHT = 4.0, 0.9
MEAN, STD = 0.1307, 0.3081  # the constants that every MNIST example carries


@dataclass(frozen=True)
class Task:
    """What both sides train on. ``cases`` images drawn from ``seed``."""

    seed: int = 0
    cases: int = 60_000
    student: tuple[int, ...] = STUDENT
    teacher: tuple[int, ...] = TEACHER


@functools.cache
def raw(task: Task) -> tuple[numpy.ndarray, Tensor]:
    """Images uint8 [N, 28, 28] and labels int64 [N]."""
    generator = numpy.random.default_rng(task.seed)
    images = generator.integers(256, size=(task.cases, 28, 28), dtype=numpy.uint8)
    return images, torch.from_numpy(generator.integers(10, size=task.cases))


def train_operations(sizes: Sequence[int]) -> int:
    """Floating point operations of one image's training step: forward, weight gradient, input gradient (not needed
    for the first layer)."""
    products = [a * b for a, b in zip(sizes, sizes[1:], strict=False)]
    return 2 * (3 * sum(products) - products[0])


# ---------------------------------------------------------------- the usual loop


class PilImages(Dataset):
    """Images in memory, turned into PIL images and then tensors one at a time, as in torchvision's data sets."""

    def __init__(self, images: numpy.ndarray, labels: Tensor):
        from torchvision import transforms  # slow to import: only this side pays for it

        self.images, self.labels = images, labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, case: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[case])), self.labels[case]


def plain_net(sizes: Sequence[int]) -> nn.Sequential:
    layers = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def plain_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    hard = F.cross_entropy(logits, labels)
    if teacher_logits is None:
        return hard
    log_q, p = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(teacher_logits / TEMPERATURE, 1)
    soft = F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
    return (1 - SOFT_WEIGHT) * hard + SOFT_WEIGHT * soft


class PeerLoop:
    """The usual loop: a DataLoader with two workers, float32, PyTorch's default SGD, the loss read at every step, the teacher run on
    every batch."""

    def __init__(self, task: Task, distil: bool, device: str = "cpu", worker: int = 0):
        self.device = device
        self.loader = DataLoader(PilImages(*raw(task)), batch_size=BATCH, shuffle=True, num_workers=2)
        torch.manual_seed(task.seed)
        self.student = plain_net(task.student).to(device)
        self.teacher = plain_net(task.teacher).to(device).eval() if distil else None
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=RATE, momentum=MOMENTUM)
        self.batches, self.losses = None, []

    def step(self) -> None:
        images, labels = next(self.batches)
        images, labels = images.to(self.device), labels.to(self.device)
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.teacher(images)
        loss = plain_loss(self.student(images), labels, teacher_logits)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())

    def warm_up(self) -> None:
        """Start the loader's workers and let their queue settle, since start-up is not measured here."""
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        for _ in range(6):
            self.step()

    def run(self, seconds: float) -> tuple[int, float]:
        count, passed = timed_steps(self.step, seconds, chunk=1, wait=lambda: None)
        return count * BATCH, passed

    def rest(self) -> None:
        """Stop the workers, which would otherwise fetch ahead while the other side is being timed."""
        self.batches = None
        self.losses.clear()


# ---------------------------------------------------------------- kdcore's


@functools.cache
def inputs(task: Task) -> Tensor:
    """The whole set as the net sees it, float32 [N, 784]: each image after ToTensor and Normalize."""
    return torch.from_numpy(raw(task)[0]).flatten(1).float().div_(255).sub_(MEAN).div_(STD)


def engine(task: Task, table: Tensor | None, members: int | None = None, device: str = "cpu") -> tuple[MLP, Stage]:
    """A net (for ``members``, a stack, each with its own weights and batches) and the stage that trains it, built from kdcore's
    parts. table: the teacher's logits [N, 10], or None to learn from labels alone."""
    x, labels = inputs(task).to(device), raw(task)[1].to(device)
    table = None if table is None else table.to(device)
    net = MLP(task.student, members=members).reset([seed_of(task.seed, "net", k) for k in range(members or 1)]).to(device)
    temperature = torch.tensor(TEMPERATURE, device=device)

    def indices(generator: torch.Generator) -> Tensor:
        steps = task.cases // BATCH
        orders = [torch.randperm(task.cases, generator=generator)[: steps * BATCH].view(steps, BATCH) for _ in range(members or 1)]
        return torch.stack(orders, 1) if members else orders[0]

    def loss(case: Tensor) -> Tensor:
        logits = net(x[case])
        hard = losses.cross_entropy(logits, labels[case], reduction="none").mean(-1)
        if table is None:
            return hard
        soft = losses.kd(logits, table[case], temperature, reduction="none").mean(-1)
        return (1 - SOFT_WEIGHT) * hard + SOFT_WEIGHT * soft

    return net, Stage(
        "train",
        epochs=1,
        indices=indices,
        loss=loss,
        schedule=lambda epoch: {"lr": RATE, "momentum": MOMENTUM},
        optimiser={"momentum": MOMENTUM},
    )


class EngineLoop:
    """kdcore's inner loop: ``Step`` on rows of indices drawn one epoch at a time, with the loss summed on the device."""

    def __init__(
        self,
        task: Task,
        table: numpy.ndarray | None = None,
        members: int | None = None,
        device: str = "cpu",
        precision: str = "float32",
        worker: int = 0,
    ):
        net, self.stage = engine(task, _tensor(table), members, device)
        self.one_step, self.images_a_step = Step(net.train(), self.stage, device, precision), BATCH * (members or 1)
        self.one_step.set(self.stage.schedule(0))
        self.rows = self._rows(task.seed + worker)
        self.total = torch.zeros(members or (), dtype=torch.float64, device=device)

    def _rows(self, seed: int):
        for epoch in itertools.count():
            generator = torch.Generator().manual_seed(seed_of(seed, "order", 0, epoch))
            yield from self.stage.indices(generator).to(self.one_step.device).unbind(0)

    def step(self) -> None:
        self.total.add_(self.one_step(next(self.rows)))

    def warm_up(self) -> None:
        for _ in range(3):
            self.step()

    def run(self, seconds: float) -> tuple[int, float]:
        cuda = self.one_step.cuda
        count, passed = timed_steps(self.step, seconds, chunk=400 if cuda else 1, wait=torch.cuda.synchronize if cuda else lambda: None)
        return count * self.images_a_step, passed

    def rest(self) -> None:
        pass


def _tensor(array: numpy.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def teacher_net(task: Task) -> MLP:
    return MLP(task.teacher).reset([seed_of(task.seed, "teacher")]).eval()


@torch.no_grad()
def teacher_table(task: Task, teacher: MLP | None = None) -> numpy.ndarray:
    """The teacher's logits on every image, float32 [N, 10]: they replace it in the student's loop."""
    teacher = teacher or teacher_net(task)
    return torch.cat([teacher(part) for part in inputs(task).split(10_000)]).numpy()


# ---------------------------------------------------------------- a small table: several trials


ARMS = 4  # trials per seed


class PeerTable:
    """The trials of one seed in sequence, each a fresh ``PeerLoop`` (as a user would start a script eight times). Those of the other
    seed take as long again, at the same rate."""

    loop, trials = PeerLoop, ARMS

    def __init__(self, task: Task, worker: int = 0):
        self.task = task

    def warm_up(self) -> None:
        pass  # each trial has its own

    def run(self, steps: float) -> tuple[int, float]:
        seconds = 0.0
        for _ in range(self.trials):
            trial = self.loop(self.task, distil=True)
            trial.warm_up()
            start = time.perf_counter()
            for _ in range(int(steps)):
                trial.step()
            seconds += time.perf_counter() - start
            trial.rest()
        return self.trials, seconds

    def rest(self) -> None:
        pass


class EngineTable:
    """The arms of one seed, one ``fit()`` after the other in one process; the other seeds run in parallel."""

    def __init__(self, task: Task, table: numpy.ndarray, precision: str = "float32", worker: int = 0):
        self.task, self.table, self.precision, self.seed = task, _tensor(table), precision, worker
        self.trials = []

    def warm_up(self) -> None:
        self.trials = [engine(self.task, self.table) for _ in range(ARMS)]
        self._fit(*engine(self.task, self.table), steps=3)

    def run(self, steps: float) -> tuple[int, float]:
        start = time.perf_counter()
        for net, stage in self.trials:
            self._fit(net, stage, int(steps))
        return ARMS, time.perf_counter() - start

    def _fit(self, net: MLP, stage: Stage, steps: int) -> None:
        draw = stage.indices
        stage.indices = lambda generator: draw(generator)[:steps]
        Context(precision=self.precision, seed=self.seed).fit(net, [stage], lambda: {})

    def rest(self) -> None:
        self.trials = []


# ---------------------------------------------------------------- the two agree

# The first losses come from the same weights and differ by a few roundings. Later ones differ by more wherever a ReLU's input rounds
# to the other side of 0 and a case's gradient jumps: by 7e-5 on some processors. A rate that is 1 % off shows as 1e-3 or more.
FIRST_TOLERANCE, LOSS_TOLERANCE, KL_TOLERANCE, CHECKED_STEPS = 1e-5, 3e-4, 1e-4, 20


def check_numerics(task: Task, device: str = "cpu", tamper: Callable[[MLP], object] = lambda net: None) -> None:
    """With the same weights and batches, the first losses of kdcore's loop must equal those of a plain loop, and the table must equal
    the teacher. Raises BenchmarkError otherwise: the speed of a loop that computes something else is worthless.

    tamper: changes kdcore's net before it trains (to test this check).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, two threads can wait for each other for minutes
    try:
        _check(task, device, tamper)
    finally:
        torch.set_num_threads(threads)


def _check(task: Task, device: str, tamper: Callable[[MLP], object]) -> None:
    dataset = PilImages(*raw(task))
    images = torch.stack([dataset[case][0] for case in range(task.cases)]).to(device)
    labels = raw(task)[1].to(device)
    teacher = teacher_net(task)
    table, live = torch.from_numpy(teacher_table(task, teacher)), _copied(teacher, 0).to(device)
    compare_table(table.to(device), live, images)
    for distil, members in itertools.product((False, True), (None, 2)):
        net, stage = engine(task, table if distil else None, members, device)
        peers = [_copied(net, k).to(device) for k in range(members or 1)]
        tamper(net)
        rows = stage.indices(torch.Generator().manual_seed(task.seed))[:CHECKED_STEPS].to(device)
        step = Step(net.train(), stage, device)
        step.set(stage.schedule(0))
        ours = torch.stack([step(row).clone() for row in rows]).view(len(rows), -1)
        for k, peer in enumerate(peers):
            cases = rows[:, k] if members else rows
            batches = [(images[row], labels[row]) for row in cases]
            compare(ours[:, k].tolist(), plain_losses(peer, live if distil else None, batches))


def _copied(net: MLP, member: int) -> nn.Sequential:
    """A plain net with the same weights."""
    plain = plain_net(net.sizes)
    with torch.no_grad():
        for layer, weight, bias in zip(plain[1::2], net.weights, net.biases, strict=True):
            layer.weight.copy_(weight[member])
            layer.bias.copy_(bias[member])
    return plain


def plain_losses(student: nn.Module, teacher: nn.Module | None, batches: list, rate: float = RATE) -> list[float]:
    optimiser = torch.optim.SGD(student.parameters(), lr=rate, momentum=MOMENTUM, foreach=False, fused=False)
    found = []
    for images, labels in batches:
        with torch.no_grad():
            teacher_logits = None if teacher is None else teacher(images)
        loss = plain_loss(student(images), labels, teacher_logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def compare(ours: list[float], plain: list[float]) -> None:
    for number, (own, reference) in enumerate(zip(ours, plain, strict=True), 1):
        tolerance = FIRST_TOLERANCE if number == 1 else LOSS_TOLERANCE
        if not abs(own - reference) <= tolerance * abs(reference):  # also caught: nan
            raise BenchmarkError(
                f"no speed is reported: kdcore's loop does not train like the plain loop (step {number}: loss {own:.8g} "
                f"against {reference:.8g}, allowed {tolerance:g} relative)"
            )


def compare_table(table: Tensor, live: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        log_p, log_q = live(images).log_softmax(-1), table.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).max().item()
    if not divergence <= KL_TOLERANCE:
        raise BenchmarkError(
            f"no speed is reported: the table of logits is not the teacher (KL {divergence:.3g}, allowed {KL_TOLERANCE:g})"
        )
