"""Teachers' weights, which their trials hand on to students: kept outside git, and made again if missing."""

from pathlib import Path

from kdcore import paths
from kdcore.errors import Damaged, KdcoreError
from kdcore.trials.environment import commit


class TeacherMissing(KdcoreError):
    """The weights of a teacher are not in this cache, or are damaged."""


def weights_path(trial_id: str) -> Path:
    """The file of a teacher's tensors."""
    return paths.cache() / "weights" / f"{trial_id}.safetensors"


def save_weights(trial_id: str, tensors: dict, processor: str = "unknown") -> None:
    """Save a teacher's tensors; processor: name of the processor or GPU that trained it."""
    paths.save_tensors(weights_path(trial_id), tensors, {"trial": trial_id, "processor": processor, "commit": commit()})


def load_weights(trial_id: str) -> dict:
    """The tensors that a teacher's trial saved. Raises TeacherMissing if they are missing or damaged."""
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
