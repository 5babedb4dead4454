"""The context of a run: device, precision, seed, checkpoint, time."""

import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdcore import paths
from kdcore.errors import Damaged, Paused


def fast_precision(device: str) -> str:
    """bfloat16 where the device multiplies it faster than float32 (GPUs from Ampere on, CPUs with bfloat16 instructions),
    else float32: on a CPU without these instructions a product in bfloat16 takes ten times as long."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16"} else "float32"


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system time, of this process and of the children it has waited for


@dataclass
class Context:
    """Where a run computes, saves and reports, and when it must pause."""

    device: str = "cpu"
    precision: str = "float32"  # of matrix products in training: float32 or bfloat16; weights and updates are float32
    seed: int = 0
    checkpoint: Path | None = None
    report: Callable[[dict], None] = lambda row: None  # gets each row of the history, with epochs done and in total
    deadline: float = math.inf
    rehearsal: bool = False  # the run is only timed or traced: shapes matter, weights do not, and no teacher's are loaded
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=_cpu_seconds)
    earlier: tuple[float, float] = (0.0, 0.0)  # seconds and CPU seconds spent before interruptions
    say: Callable[[str], None] = warnings.warn  # shows one line to the user
    eager: str | None = None  # why steps on a GPU run without a CUDA graph, where they do

    def without_graph(self, why: str) -> None:
        """Remember why a stage runs without a CUDA graph, and tell the user once: the stages of a run tend to share the reason."""
        if self.eager is None:
            self.eager = why
            self.say(why)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent on this run so far, interrupted processes included."""
        return time.monotonic() - self.started + self.earlier[0]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds spent on this run so far, over all threads and child processes: unaffected by other load on the machine."""
        return _cpu_seconds() - self.cpu_started + self.earlier[1]

    def spent(self) -> dict[str, str]:
        """Seconds spent so far, as metadata for a saved file."""
        return {"seconds": str(self.seconds), "cpu_seconds": str(self.cpu_seconds)}

    def resume(self, metadata: Mapping[str, str]) -> None:
        """Add the time that an interrupted run had spent when it saved; of several files of one run the last one counts."""
        self.earlier = (float(metadata["seconds"]), float(metadata["cpu_seconds"]))

    def keep(self, name: str, make: Callable[[], Any], row: Callable[[Any], dict] | None = None) -> Any:
        """The result of ``make()``, or the one that an interrupted run saved in the checkpoint folder under ``name``.

        For trials without ``fit``, which work part by part: names are file names, and every run must ask for them in the same
        order. Results are pickled (fitted scikit-learn models have no other form) and unpickled only if their digest matches.
        row: makes a row to report from a new result, once that is saved. Raises Paused after a new result if time is up.
        """
        path = None if self.checkpoint is None else self.checkpoint / f"{name}.safetensors"
        if path is not None and path.exists():
            try:
                tensors, metadata = paths.load_tensors(path, cohort=self.checkpoint.name, part=name)
                self.resume(metadata)
                return pickle.loads(tensors["pickle"].numpy().tobytes())
            except Damaged as error:
                self.say(f"the checkpoint {error}: this part is computed again")
        made = make()
        if path is not None:
            content = torch.frombuffer(bytearray(pickle.dumps(made)), dtype=torch.uint8)
            paths.save_tensors(path, {"pickle": content}, {"cohort": self.checkpoint.name, "part": name} | self.spent())
        if row is not None:
            self.report(row(made))
        if time.time() > self.deadline:
            raise Paused
        return made
