"""Checkpoints, from which an interrupted run resumes."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from kdcore import paths
from kdcore.errors import Damaged
from kdcore.training.step import Step


class Checkpoint:
    """Model, optimiser and history in one safetensors file (the history is JSON in its header; nothing is pickled), with a digest.
    The file is valid only in the folder it was saved in.

    No random state is stored: ``seed_of`` derives it from seed, stage and epoch. The current stage and the position in its
    schedule follow from the length of the history.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None] = warnings.warn):
        self.path = None if folder is None else folder / "state.safetensors"
        self.say = say

    def save(self, model: nn.Module, step: Step, history: list[dict], spent: dict[str, str]) -> None:
        if self.path is None:
            return
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        tensors |= {k: v.cpu().contiguous() for k, v in step.state().items()}
        paths.save_tensors(self.path, tensors, {"cohort": self.path.parent.name, "history": json.dumps(history)} | spent)

    def load(self, model: nn.Module) -> tuple[list[dict], dict[str, Tensor], dict[str, str]]:
        """Load the saved weights into ``model``; return history, optimiser tensors and time spent, all empty if nothing was saved.

        A file that is damaged or belongs to another cohort or network is moved aside, and the run starts over.
        """
        if self.path is None or not self.path.exists():
            return [], {}, {}
        try:
            tensors, metadata = paths.load_tensors(self.path, cohort=self.path.parent.name)
            weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            own = model.state_dict()
            # compared before anything is copied, so that no half-loaded model goes on training
            if {k: (v.shape, v.dtype) for k, v in weights.items()} != {k: (v.shape, v.dtype) for k, v in own.items()}:
                raise Damaged(f"{self.path} belongs to another network and was moved to {paths.set_aside(self.path).name}")
        except Damaged as error:
            self.say(f"the checkpoint {error}: the trial starts over")
            return [], {}, {}
        model.load_state_dict(weights)
        spent = {key: metadata[key] for key in ("seconds", "cpu_seconds")}
        return json.loads(metadata["history"]), {k: v for k, v in tensors.items() if k.startswith("optimiser.")}, spent
