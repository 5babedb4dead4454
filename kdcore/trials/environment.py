"""The machine: the environment of a record (recorded, not hashed), and its devices."""

import contextlib
import functools
import os
import platform
import resource
import subprocess
from pathlib import Path

from kdcore import validation
from kdcore.errors import KdcoreError


@functools.cache
def environment() -> dict:
    """Versions of Python and torch, processor or GPU, threads, operating system and git commit."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "gpu": gpu,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
    }


@functools.cache
def commit() -> str:
    """The git commit of this code, with "+" if kdcore has uncommitted changes; ``$KDCORE_COMMIT`` outside git."""
    here = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "kdcore") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("KDCORE_COMMIT", "unknown")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """The name of the GPU or processor, as in a record's cost."""
    machine = environment()
    return machine["gpu"] if device.startswith("cuda") else machine["processor"]


def reset_peak_memory(device: str) -> None:
    """Reset the peak, since a child runs many trials."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: str) -> float:
    """Peak memory since the reset: allocated on a GPU, else this process's resident memory."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)  # macOS: in bytes, since the process started


def devices(device: str) -> list[str]:
    """The devices to distribute children over; "cuda" means every GPU. Raises KdcoreError if there is none."""
    if validation.device(device) == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count:
        return [f"cuda:{i}" for i in range(count)]
    if device != "cuda" and int(device.removeprefix("cuda:")) < count:
        return [device]
    raise KdcoreError(f"there is no device '{device}' (this machine has {count} CUDA devices): use cpu" + (" or cuda" if count else ""))
