"""The benchmarks: what runs against what, and the floors and targets. README.md lists the ids B1, B2, ..."""

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from benchmarks import cifar, measure, mlp, pseudo
from benchmarks.measure import Side, Spread, interleave, seconds_to_first_line, speedups
from benchmarks.mlp import STUDENT, EngineLoop, EngineTable, PeerLoop, PeerTable, Task, teacher_table, train_operations
from kdcore.training import fast_precision

CORES = 2  # threads, or processes, per side: floors and targets were set on a machine with two cores
EPOCH_STEPS = 1  # steps from which an epoch is extrapolated


@dataclass(frozen=True)
class Settings:
    """Settings of a run: rounds, seconds per side and round, optimiser steps per trial of ``table`` and of ``wrn_table``
    (``wrn_trial_steps``), cases of ``munge``, the data."""

    rounds: int = 5
    seconds: float = 1.5
    trial_steps: int = 24
    wrn_trial_steps: int = 2
    pseudo_cases: int = 20_000
    task: Task = Task()
    images: cifar.Task = cifar.Task()

    def cases(self, name: str) -> int:
        """Images that the benchmark ``name`` trains on."""
        return (self.images if name in ON_CIFAR else self.task).cases


@dataclass
class Row:
    """One line of the table. ``floor`` and ``target`` apply to ``judged``: the ratio, or our own figure."""

    id: str
    what: str
    unit: str
    baseline: list[float]
    ours: list[float]
    memory_mb: float
    baseline_memory_mb: float
    floor: float | None = None
    target: float | None = None
    judged: str = "ratio"  # or "ours"
    lower_is_better: bool = False

    def ratio(self) -> Spread:
        return Spread.of(speedups(self.baseline, self.ours, self.lower_is_better))

    def verdict(self) -> str:
        """pass, target met or below floor; "-" if no floor is set."""
        if self.floor is None:
            return "-"
        value = self.ratio().median if self.judged == "ratio" else Spread.of(self.ours).median
        sign = -1 if self.judged == "ours" and self.lower_is_better else 1
        if sign * value < sign * self.floor:
            return "below floor"
        return "target met" if sign * value >= sign * self.target else "pass"


@dataclass
class Outcome:
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Variant:
    """One of our variants, and what it must reach against the first side of its benchmark."""

    what: str
    side: Side
    floor: float | None = None
    target: float | None = None
    judged: str = "ratio"


def _race(id: str, unit: str, baseline: Side, variants: list[Variant], request: float, rounds: int, scale: float = 1.0) -> list[Row]:
    sides = {"": baseline} | {variant.what: variant.side for variant in variants}
    found = interleave({what: lambda side=side: scale * side.rate(request) for what, side in sides.items()}, rounds)
    return [
        Row(id, v.what, unit, found[""], found[v.what], v.side.peak_memory_mb, baseline.peak_memory_mb, v.floor, v.target, v.judged)
        for v in variants
    ]


def _by_precision(what: str, side: Callable[[str], Side], floor: float | None = None, target: float | None = None) -> list[Variant]:
    """Our loop in the default precision of trials on this machine, which is judged, and in float32 if that differs."""
    default = fast_precision("cpu")
    judged = Variant(f"{what}, {default}", side(default), floor, target)
    return [judged] if default == "float32" else [judged, Variant(f"{what}, float32", side("float32"))]


def mlp_step(settings: Settings, device: str) -> Outcome:
    """Training from labels, against the usual loop."""
    with ExitStack() as open_sides:

        def side(make, processes: int = 1, **arguments) -> Side:
            threads = 1 if processes > 1 else CORES
            return open_sides.enter_context(Side(make, {"task": settings.task, "device": device, **arguments}, processes, threads))

        peer = side(PeerLoop, distil=False)
        if device == "cuda":
            # our own images per second, all members together: the graph's rate does not depend on the peer's loader
            variants = [
                Variant("GPU, one net", side(EngineLoop), 1e6, 2.5e6, "ours"),
                Variant("GPU, 16 nets stacked", side(EngineLoop, members=16), 1e6, 2.5e6, "ours"),
            ]
        else:
            variants = [
                *_by_precision("1 process", lambda precision: side(EngineLoop, precision=precision), 2.8, 3.5),
                *_by_precision("2 processes", lambda precision: side(EngineLoop, CORES, precision=precision), 4.0, 5.0),
            ]
        rows = _race("B2", "img/s", peer, variants, settings.seconds, settings.rounds)
    best = max(rows, key=lambda row: Spread.of(row.ours).median)
    gflops = Spread.of(best.ours).median * train_operations(STUDENT) / 1e9
    return Outcome(rows, [f"{best.what}: {gflops:,.0f} GFLOP/s of the student's matrix products (see the ceilings below)"])


def kd_step(settings: Settings, device: str) -> Outcome:
    """Distillation with the teacher as a table of logits, against the usual loop, which runs the teacher on every batch."""
    start = time.perf_counter()
    table = teacher_table(settings.task)
    building = time.perf_counter() - start
    with ExitStack() as open_sides:

        def side(make, processes: int = 1, **arguments) -> Side:
            return open_sides.enter_context(Side(make, {"task": settings.task, **arguments}, processes, 1 if processes > 1 else CORES))

        peer = side(PeerLoop, distil=True)
        ours = functools.partial(side, EngineLoop, table=table)
        variants = [
            *_by_precision("1 process", lambda precision: ours(precision=precision)),
            *_by_precision("2 processes", lambda precision: ours(processes=CORES, precision=precision), 5.0, 5.5),
        ]
        rows = _race("B4", "img/s", peer, variants, settings.seconds, settings.rounds)
    return Outcome(
        rows, [f"the table of {settings.task.cases:,} logits took {building:.1f} s, once for all students; not included in the rates"]
    )


def many_trials(settings: Settings, device: str) -> Outcome:
    """Several seeds at once, against the same kdcore loop run one seed at a time."""
    common = {"task": settings.task, "device": device}
    with ExitStack() as open_sides:

        def side(processes: int = 1, **arguments) -> Side:
            threads = 1 if processes > 1 else CORES
            return open_sides.enter_context(Side(EngineLoop, {**common, **arguments}, processes, threads))

        sequential = side()
        name = "GPU, " if device == "cuda" else ""
        variants = [Variant(f"{name}4 stacked", side(members=4))]
        if device == "cuda":
            variants.append(Variant(f"{name}16 stacked", side(members=16), 4.0, 6.0))
        else:
            variants.append(Variant("16 stacked", side(members=16)))
            variants.append(Variant("2 processes", side(processes=CORES), 1.3, 1.45))
        return Outcome(_race("B6", "img/s", sequential, variants, settings.seconds, settings.rounds))


def cold_start(settings: Settings, device: str) -> Outcome:
    """From the start of a process to its first optimiser step."""
    memory = {}

    def start(name: str) -> float:
        seconds, line = seconds_to_first_line(["-m", "benchmarks.cold_start", name])
        memory[name] = max(memory.get(name, 0.0), float(line))
        return seconds

    found = interleave({name: lambda name=name: start(name) for name in ("peer", "ours")}, settings.rounds)
    row = Row("B9", "worker, cold", "s", found["peer"], found["ours"], memory["ours"], memory["peer"], 6.0, 6.0, "ours", True)
    return Outcome([row])


def table(settings: Settings, device: str) -> Outcome:
    """A small table of distilled students, 4 arms x 2 seeds, against 8 usual loops in sequence."""
    logits = teacher_table(settings.task)
    steps = settings.trial_steps
    with ExitStack() as open_sides:
        peer = open_sides.enter_context(Side(PeerTable, {"task": settings.task}, threads=CORES))

        def ours(precision: str) -> Side:
            return open_sides.enter_context(Side(EngineTable, {"task": settings.task, "table": logits, "precision": precision}, CORES))

        variants = _by_precision(f"KD, 8 trials of {steps} steps", ours, 5.0, 5.5)
        return Outcome(_race("B12", "trials/h", peer, variants, steps, settings.rounds, scale=3600))


def munge(settings: Settings, device: str) -> Outcome:
    """Pseudo cases from 4,000 cases of 16 variables, against the algorithm as a double loop; 100,000 must take less than a minute."""
    arguments = {"seed": settings.task.seed}
    with Side(pseudo.PeerMunge, arguments) as peer, Side(pseudo.EngineMunge, arguments) as ours:
        variants = [Variant("1 process, cases a second", ours, 1e5 / 60, 1e5 / 20, "ours")]
        return Outcome(_race("munge", "cases/s", peer, variants, settings.pseudo_cases, settings.rounds))


# ---------------------------------------------------------------- convolutional nets on colour images


def feed(settings: Settings, device: str) -> Outcome:
    """Only batches of augmented images: cropped, mirrored, normalised."""
    common = {"task": settings.images, "device": device}
    # ours runs in one thread: a batch takes less than a millisecond, and two threads would wait for each other
    with Side(cifar.PeerFeed, common, threads=CORES) as peer, Side(cifar.EngineFeed, common) as ours:
        variant = Variant("GPU", ours, 50.0, 50.0) if device == "cuda" else Variant("1 thread", ours, 10.0, 15.0)
        return Outcome(_race("B1", "img/s", peer, [variant], settings.seconds, settings.rounds))


def wrn_step(settings: Settings, device: str) -> Outcome:
    """Training WRN-16-2 from labels, against the usual loop."""
    with ExitStack() as open_sides:

        def side(make=cifar.EngineLoop, processes: int = 1, **arguments) -> Side:
            threads = 1 if processes > 1 else CORES
            return open_sides.enter_context(Side(make, {"task": settings.images, "device": device, **arguments}, processes, threads))

        peer, precision = side(cifar.PeerLoop), fast_precision(device)
        if device == "cuda":
            ours = side(precision=precision)
            variants = [
                Variant(f"GPU, {precision}", ours, 6.0, 10.0),
                Variant(f"GPU, {precision}, images a second", ours, 110e3, 190e3, "ours"),
            ]
            return Outcome(_race("B3", "img/s", peer, variants, settings.seconds, settings.rounds))
        double = Variant("2 processes", side(processes=CORES))
        variants = [Variant("1 process", side(), 1.1, 1.2), double]
        if precision == "bfloat16":
            variants.append(Variant("1 process, bfloat16", side(precision=precision)))
        rows = _race("B3", "img/s", peer, variants, settings.seconds, settings.rounds)
    rate = next(Spread.of(row.ours).median for row in rows if row.what == double.what)
    gflops = rate * cifar.operations(settings.images.student, training=True) / 1e9
    share = gflops / measure.ceilings(device)["sgemm_gflops_2_threads"]
    return Outcome(rows, [f"{double.what}: {gflops:,.0f} GFLOP/s of convolutions, {100 * share:.0f} % of matrix products (at least 65 %)"])


def darts_step(settings: Settings, device: str) -> Outcome:
    """Training a DARTS network of many small operations from labels, against the usual loop: launches dominate, not products."""
    common = {"task": replace(settings.images, student="darts_v2_10_16"), "device": device}
    with ExitStack() as open_sides:

        def side(make=cifar.EngineLoop, processes: int = 1) -> Side:
            return open_sides.enter_context(Side(make, common, processes, 1 if processes > 1 else CORES))

        name, counts = ("GPU, ", (1, 2, 4)) if device == "cuda" else ("", (1, CORES))
        peer = side(cifar.PeerLoop)
        variants = [Variant(f"{name}{count} process{'es' if count > 1 else ''}", side(processes=count)) for count in counts]
        return Outcome(_race("darts", "img/s", peer, variants, settings.seconds, settings.rounds))


def wrn_kd(settings: Settings, device: str) -> Outcome:
    """Distillation from WRN-22-4: its logits as a table, and live, against the usual loop."""
    peer_arguments = {"task": settings.images, "distil": True, "device": device}
    if device == "cuda":
        # a table of all views of all images is filled before the run: here, for fewer images
        ours = {"names": ("kd",), "task": replace(settings.images, cases=2_000), "device": device, "precision": fast_precision(device)}
        with Side(cifar.PeerLoop, peer_arguments) as peer, Side(cifar.EngineLoop, {**ours, "tabled": True}) as tabled:
            return Outcome(_race("B4", "img/s", peer, [Variant("GPU, table", tabled, 8.0, 12.0)], settings.seconds, settings.rounds))
    seconds, ours = cifar.seconds_a_view(settings.images), {"task": settings.images, "names": ("kd",)}
    with (
        Side(cifar.PeerLoop, peer_arguments, threads=CORES) as peer,
        Side(cifar.EngineLoop, {**ours, "tabled": True}, threads=CORES) as tabled,
        Side(cifar.EngineLoop, ours, threads=CORES) as live,
    ):
        variants = [Variant("table present", tabled, 3.0, 3.5), Variant("live teacher", live, 1.2, 1.3)]
        rows = _race("B4", "img/s", peer, variants, settings.seconds, settings.rounds)
    count = cifar.EPOCH * cifar.VIEWS
    hours = count * seconds / 3600
    note = f"a view of the table takes {1e3 * seconds:.1f} ms, all {count:,} of 50,000 images {hours:.0f} h here; not included in the rates"
    return Outcome(rows, [note])


def shared_teacher(settings: Settings, device: str) -> Outcome:
    """Three methods that share one teacher's forward pass, features included, against the same three in sequence."""
    ours = {"task": settings.images, "names": cifar.THREE}
    with (
        Side(cifar.EngineLoop, {**ours, "together": False}, threads=CORES) as separate,
        Side(cifar.EngineLoop, ours, threads=CORES) as shared,
    ):
        rows = _race("B5", "img/s", separate, [Variant("3 methods", shared, 1.5, 1.75)], settings.seconds, settings.rounds)
    student, teacher = cifar.operations(settings.images.student, training=True), cifar.operations(settings.images.teacher, training=False)
    bound = (student + teacher) / (student + teacher / len(cifar.THREE))
    return Outcome(rows, [f"{100 * rows[0].ratio().median / bound:.0f} % of the {bound:.2f} that the operations of the nets allow"])


def many_nets(settings: Settings, device: str) -> Outcome:
    """Two seeds at once in two processes, against one at a time."""
    rows = []
    for name, net, bounds in (("WRN-16-2", settings.images.student, (1.1, 1.25)), ("ResNet-8", "resnet_8", ())):
        common = {"task": replace(settings.images, student=net)}
        with Side(cifar.EngineLoop, common, threads=CORES) as single, Side(cifar.EngineLoop, common, CORES) as double:
            rows += _race("B6", "img/s", single, [Variant(f"{name}, 2 processes", double, *bounds)], settings.seconds, settings.rounds)
    return Outcome(rows)


def epoch(settings: Settings, device: str) -> Outcome:
    """Epochs of distillation with evaluation, 50,000 and 10,000 images, extrapolated from a part of each."""
    ours = {"task": settings.images}
    with (
        Side(cifar.PeerEpoch, ours, threads=CORES) as peer,
        Side(cifar.EngineEpoch, {**ours, "names": ("kd",), "tabled": True}, CORES) as tabled,
        Side(cifar.EngineEpoch, {**ours, "names": cifar.FOUR}, CORES) as shared,
    ):
        variants = [Variant("table present, 2 processes", tabled, 3.2, 3.5), Variant("4 methods a teacher, 2 processes", shared, 2.2, 2.8)]
        rows = _race("B8", "epochs/h", peer, variants, EPOCH_STEPS, settings.rounds, scale=3600)
    figures = [("usual loop", rows[0].baseline), *((row.what, row.ours) for row in rows)]
    seconds = ", ".join(f"{what} {3600 / Spread.of(rates).median:,.0f}" for what, rates in figures)
    return Outcome(rows, [f"seconds per epoch of a student: {seconds}"])


def wrn_table(settings: Settings, device: str) -> Outcome:
    """A small table of distilled WRN-16-2, 4 methods x 2 seeds, against 8 usual loops in sequence."""
    ours, steps = {"task": settings.images}, settings.wrn_trial_steps
    with Side(cifar.PeerTable, ours, threads=CORES) as peer, Side(cifar.EngineTable, ours, CORES) as double:
        variants = [Variant(f"WRN, 8 trials of {steps} steps", double, 2.3, 2.8)]
        return Outcome(_race("B12", "trials/h", peer, variants, steps, settings.rounds, scale=3600))


BENCHMARKS: dict[str, Callable[[Settings, str], Outcome]] = {
    "feed": feed,
    "mlp_step": mlp_step,
    "wrn_step": wrn_step,
    "darts_step": darts_step,
    "kd_step": kd_step,
    "wrn_kd": wrn_kd,
    "shared_teacher": shared_teacher,
    "many_trials": many_trials,
    "many_nets": many_nets,
    "epoch": epoch,
    "cold_start": cold_start,
    "table": table,
    "wrn_table": wrn_table,
    "munge": munge,
}
ON_GPU = ("feed", "mlp_step", "wrn_step", "darts_step", "wrn_kd", "many_trials")
ON_CIFAR = ("feed", "wrn_step", "darts_step", "wrn_kd", "shared_teacher", "many_nets", "epoch", "wrn_table")


def devices(name: str) -> list[str]:
    """The devices on which a benchmark runs on this machine."""
    return ["cpu", "cuda"] if name in ON_GPU and torch.cuda.is_available() else ["cpu"]


def check_numerics(on_cifar: bool, seed: int, device: str) -> None:
    """Raises BenchmarkError if the loops, for convolutional nets or for MLPs, do not compute the same."""
    if on_cifar:
        cifar.check_numerics(replace(cifar.CHECKED, seed=seed), device)
    else:
        mlp.check_numerics(Task(seed, mlp.CHECKED_STEPS * mlp.BATCH), device)
