"""The benchmarks: who runs against whom, and what must be reached. Numbers B2, B4, ... are those of the design."""

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from benchmarks.measure import Side, Spread, interleave, seconds_to_first_line, speedups
from benchmarks.mlp import STUDENT, EngineLoop, EngineTable, PeerLoop, PeerTable, Task, teacher_table, train_operations
from kdcore.training import fast_precision

CORES = 2  # threads, or processes, of either side: floors and targets were set on a machine with two cores


@dataclass(frozen=True)
class Settings:
    """How a run is made: rounds, seconds a side and round, optimiser steps of a trial of ``table``, the data."""

    rounds: int = 5
    seconds: float = 1.5
    trial_steps: int = 24
    task: Task = Task()


@dataclass
class Row:
    """One line of the table. ``floor`` and ``target`` hold for ``judged``: the ratio, or our own figure."""

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
        """pass, target met, below floor; "-" where no floor is set."""
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
    """One of our ways, and what it must reach against the first side of its benchmark."""

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
    """Our way in the precision that a trial takes here by default, which is judged; beside it float32, where that is another."""
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
            # our own images a second, all members together: the graph's rate, whatever the peer's loader does
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
    """Distillation: the teacher as a table of logits, against the usual loop that runs the teacher on every batch."""
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
    return Outcome(rows, [f"the table of {settings.task.cases:,} logits took {building:.1f} s, once for all students; not in the rates"])


def many_trials(settings: Settings, device: str) -> Outcome:
    """Several seeds at once, against the same kdcore loop one seed after the other."""
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
    """A small table of distilled students, 4 arms x 2 seeds, against 8 usual loops one after the other."""
    logits = teacher_table(settings.task)
    steps = settings.trial_steps
    with ExitStack() as open_sides:
        peer = open_sides.enter_context(Side(PeerTable, {"task": settings.task}, threads=CORES))

        def ours(precision: str) -> Side:
            return open_sides.enter_context(Side(EngineTable, {"task": settings.task, "table": logits, "precision": precision}, CORES))

        variants = _by_precision(f"KD, 8 trials of {steps} steps", ours, 5.0, 5.5)
        return Outcome(_race("B12", "trials/h", peer, variants, steps, settings.rounds, scale=3600))


BENCHMARKS: dict[str, Callable[[Settings, str], Outcome]] = {
    "mlp_step": mlp_step,
    "kd_step": kd_step,
    "many_trials": many_trials,
    "cold_start": cold_start,
    "table": table,
}
ON_GPU = ("mlp_step", "many_trials")


def devices(name: str) -> list[str]:
    """Where a benchmark runs on this machine."""
    return ["cpu", "cuda"] if name in ON_GPU and torch.cuda.is_available() else ["cpu"]
