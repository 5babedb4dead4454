"""What surrounds a run: device, precision, seed, checkpoint, time."""

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
    """bfloat16 where the device multiplies it faster than float32 (GPUs from Ampere on, processors with its
    instructions), else float32: without them a product in bfloat16 takes ten times as long."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux
        return "float32"
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16"} else "float32"


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # of this process and of the children that it has waited for, in user and system


@dataclass
class Context:
    """What surrounds a run: where it computes, saves, reports, and when it must pause."""

    device: str = "cpu"
    precision: str = "float32"  # of the products in training: float32 or bfloat16; weights and updates are float32
    seed: int = 0
    checkpoint: Path | None = None
    report: Callable[[dict], None] = lambda row: None  # each row of the history, with done and total epochs
    deadline: float = math.inf
    rehearsal: bool = False  # nothing will be learned: to time a run, or walk it, asks for shapes and no teacher's weights
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=_cpu_seconds)
    earlier: tuple[float, float] = (0.0, 0.0)  # seconds and CPU seconds of the runs that were interrupted
    say: Callable[[str], None] = warnings.warn  # one line that whoever runs this should read
    eager: str | None = None  # why steps on a GPU are no CUDA graph, once they are not

    def without_graph(self, why: str) -> None:
        """Keep why a stage's steps are no CUDA graph, and say it: once, since the stages of a run tend to share the reason."""
        if self.eager is None:
            self.eager = why
            self.say(why)

    @property
    def seconds(self) -> float:
        """Time spent on this run so far, in this process and in those that were interrupted."""
        return time.monotonic() - self.started + self.earlier[0]

    @property
    def cpu_seconds(self) -> float:
        """The same in seconds of processors, all threads and child processes together: what else runs here does not matter."""
        return _cpu_seconds() - self.cpu_started + self.earlier[1]

    def spent(self) -> dict[str, str]:
        """Seconds so far, as metadata of what is saved."""
        return {"seconds": str(self.seconds), "cpu_seconds": str(self.cpu_seconds)}

    def resume(self, metadata: Mapping[str, str]) -> None:
        """Count what an interrupted run had spent when it saved; of several files of one run the last counts."""
        self.earlier = (float(metadata["seconds"]), float(metadata["cpu_seconds"]))

    def keep(self, name: str, make: Callable[[], Any], row: Callable[[Any], dict] | None = None) -> Any:
        """What ``make()`` gives; where an interrupted run had saved it in the checkpoint folder, that.

        For trials without ``fit``, part by part: names are file names, and each must be asked for in the same order each time.
        What is kept is pickled (fitted models of scikit-learn have no other form), and read only with the digest that it was
        written with. row: of the result, what is reported once it is saved. Raises Paused after that where time is up.
        """
        path = None if self.checkpoint is None else self.checkpoint / f"{name}.safetensors"
        if path is not None and path.exists():
            try:
                tensors, metadata = paths.load_tensors(path, cohort=self.checkpoint.name, part=name)
                self.resume(metadata)
                return pickle.loads(tensors["pickle"].numpy().tobytes())
            except Damaged as error:
                self.say(f"the checkpoint {error}: this part is made again")
        made = make()
        if path is not None:
            content = torch.frombuffer(bytearray(pickle.dumps(made)), dtype=torch.uint8)
            paths.save_tensors(path, {"pickle": content}, {"cohort": self.checkpoint.name, "part": name} | self.spent())
        if row is not None:
            self.report(row(made))
        if time.time() > self.deadline:
            raise Paused
        return made
