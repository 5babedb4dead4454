"""How speed is measured: interleaved rounds in child processes, a ratio per round, and the machine's own limits."""

import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

ROOT = Path(__file__).resolve().parents[1]


class BenchmarkError(Exception):
    """A benchmark cannot give a figure; the message is one clear sentence."""


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of the rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))


def speedups(baseline: Sequence[float], ours: Sequence[float], lower_is_better: bool = False) -> list[float]:
    """How many times faster we are in each round. Measurements close in time are compared, so that a slow minute of the machine
    affects both sides of a ratio."""
    pairs = zip(baseline, ours, strict=True)
    return [base / own if lower_is_better else own / base for base, own in pairs]


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once per round. Odd rounds run in reverse, so that no side always follows the same one."""
    found = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


def timed_steps(step: Callable[[], object], seconds: float, chunk: int, wait: Callable[[], None]) -> tuple[int, float]:
    """Repeat ``step`` for about ``seconds``, and return the number of steps and the seconds that they took. ``wait`` ends each chunk
    to let a GPU catch up; long chunks keep its cost small."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(chunk):
            step()
        wait()
        count += chunk
    return count, passed


# ---------------------------------------------------------------- sides

DIED = "a benchmark process died: see its output above"


class Side:
    """One contestant, in its own processes, so that memory, threads and imports of the sides never mix.

    make: a module-level function; ``make(**arguments)`` returns a loop with ``warm_up()``, ``run(request)`` -> (amount of work,
    seconds) and ``rest()``. Several processes all run the same loop, each with its own ``worker`` number as an argument, and start
    together.
    """

    def __init__(self, make: Callable, arguments: Mapping, processes: int = 1, threads: int = 1):
        context = multiprocessing.get_context("spawn")
        self.barrier = context.Barrier(processes)  # kept, because a child that is still starting looks it up by name
        self.pipes, self.children = [], []
        for worker in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_serve, args=(theirs, self.barrier, threads, make, {**arguments, "worker": worker}))
            child.start()
            theirs.close()  # so that a child's death shows as the end of its pipe
            self.pipes.append(ours)
            self.children.append(child)
        self.peak_memory_mb = 0.0
        try:
            self._answers()  # wait until all are ready: a side that is still starting would slow the one being measured
        except BenchmarkError:
            self.close()
            raise

    def rate(self, request: float) -> float:
        """Work per second of all processes together, from their common start until the last one ends."""
        answers = self._ask(request)
        self.peak_memory_mb = sum(memory for _, _, memory in answers)
        return sum(amount for amount, _, _ in answers) / max(seconds for _, seconds, _ in answers)

    def _ask(self, request: float) -> list[tuple[float, float, float]]:
        try:
            for pipe in self.pipes:
                pipe.send(request)
        except OSError:
            raise BenchmarkError(DIED) from None
        return self._answers()

    def _answers(self) -> list:
        try:
            return [pipe.recv() for pipe in self.pipes]
        except (EOFError, OSError):
            raise BenchmarkError(DIED) from None

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for child in self.children:
            child.join(10)
            if child.is_alive():
                child.terminate()
                child.join()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _serve(pipe, barrier, threads: int, make: Callable, arguments: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    torch.set_num_threads(threads)
    loop = make(**arguments)
    try:
        pipe.send("ready")
        while True:
            request = pipe.recv()
            loop.warm_up()
            barrier.wait(timeout=300)
            amount, seconds = loop.run(request)
            loop.rest()
            pipe.send((amount, seconds, peak_memory_mb()))
    except (EOFError, ConnectionError):
        return  # the parent has closed its end: nothing more to measure


def peak_memory_mb() -> float:
    """Peak memory of this process: on the GPU if it used one, else resident memory (without its children)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage: that counts the parent's memory at the time of the fork
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


# ---------------------------------------------------------------- the machine


def ceilings(device: str) -> dict[str, float]:
    """What the machine can do at this moment: matrix products and copies, which limit every loop here."""
    if device == "cuda":
        return {
            "fp32_matmul_tflops": _matmul(4096, torch.float32, device) / 1e12,
            "bf16_matmul_tflops": _matmul(8192, torch.bfloat16, device) / 1e12,
            "copy_gb_per_s": _copy(2**30, device) / 1e9,
        }
    before, found = torch.get_num_threads(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found[f"sgemm_gflops_{threads}_thread{'s' * (threads > 1)}"] = _matmul(1536, torch.float32, device) / 1e9
    found["copy_gb_per_s"] = _copy(2**27, device) / 1e9
    torch.set_num_threads(before)
    return found


def _matmul(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations per second of a square matrix product."""
    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    return 2 * size**3 / _best_of(lambda: torch.mm(a, b, out=out), device)


def _copy(size: int, device: str) -> float:
    """Bytes read and written per second."""
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _best_of(lambda: target.copy_(source), device)


def _best_of(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Median seconds; the first call, which allocates, is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class OtherLoad:
    """Share of the machine's CPU time that processes other than ours used since this object was made."""

    def __init__(self):
        self.start = self._read()

    def share(self) -> float | None:
        """From 0 to 1, or None if the system does not say. Children count once they have ended."""
        now = self._read()
        if self.start is None or now is None:
            return None
        everyone, possible, ours = (b - a for a, b in zip(self.start, now, strict=True))
        return min(1.0, max(0.0, (everyone - ours) / possible)) if possible else None

    def _read(self) -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        idle = ticks[3] + ticks[4]  # idle and waiting for a disk
        return sum(ticks) - idle, sum(ticks), sum(os.times()[:4])


def environment(seed: int) -> dict:
    """The machine and code that the figures come from."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
        "commit": _output("git", "rev-parse", "--short=12", "HEAD") or "none",
        "changed_files": bool(_output("git", "status", "--porcelain")),
        "seed": seed,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return f"{torch.cuda.get_device_name()}, driver {driver[0] if driver else 'unknown'}, CUDA {torch.version.cuda}"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def seconds_to_first_line(command: Sequence[str]) -> tuple[float, str]:
    """Seconds from the start of a Python process to its first line of output, and that line."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        line = child.stdout.readline()
        seconds = time.perf_counter() - start
        child.communicate()
    if child.returncode or not line:
        raise BenchmarkError(f"'python {' '.join(command)}' failed: see its output above")
    return seconds, line.strip()
