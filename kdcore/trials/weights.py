"""A teacher's tensors: what its trial hands on to its students, outside git, made again when they are missing."""

from pathlib import Path

from kdcore import paths
from kdcore.errors import Damaged, KdcoreError
from kdcore.trials.environment import commit


class TeacherMissing(KdcoreError):
    """The weights of a teacher are not in this cache, or are damaged."""


def weights_path(trial_id: str) -> Path:
    """Where a teacher's tensors lie: outside git, made again from its trial when they are missing."""
    return paths.cache() / "weights" / f"{trial_id}.safetensors"


def save_weights(trial_id: str, tensors: dict, processor: str = "unknown") -> None:
    """Keep a teacher's tensors; processor: what trained it, a processor's or GPU's name."""
    paths.save_tensors(weights_path(trial_id), tensors, {"trial": trial_id, "processor": processor, "commit": commit()})


def load_weights(trial_id: str) -> dict:
    """The tensors that a teacher's trial saved. Raises TeacherMissing where they are not there or were damaged."""
    return read_weights(trial_id)[0]


def read_weights(trial_id: str) -> tuple[dict, dict[str, str]]:
    """(tensors, {"trial", "processor", "commit"}) of a teacher. Raises TeacherMissing; a damaged file is moved aside."""
    path = weights_path(trial_id)
    if not path.exists():
        raise TeacherMissing(f"the teacher's file {path} is missing")
    try:
        return paths.load_tensors(path, trial=trial_id)
    except Damaged as error:
        raise TeacherMissing(f"the teacher's file {error}") from error
