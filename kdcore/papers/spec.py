"""A trial: one arm, one budget, one seed, with an id that identifies exactly what was run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property


@dataclass(frozen=True)
class Trial:
    """The unit of work.

    config: the resolved configuration; data: fingerprint of the data set; teacher: id of the teacher's trial, or None; version:
    VERSION of ``kdcore/papers/KEY/trial.py``, raised whenever a change of its code changes results.
    """

    paper: str
    arm: str
    budget: str
    seed: int
    config: dict
    data: str
    teacher: str | None
    version: int

    @cached_property
    def id(self) -> str:
        """12 hex digits of sha256 over the canonical JSON of all fields."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}  # asdict copies the config, and takes 20 times as long
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.paper} / {self.arm} / {self.budget} / seed {self.seed}"


@dataclass(frozen=True)
class Cohort:
    """Trials of one paper, budget, seed and teacher that train side by side in one child. Raises ValueError for duplicates."""

    trials: tuple[Trial, ...]

    def __post_init__(self):
        if len({trial.id for trial in self.trials}) < len(self.trials):
            raise ValueError(f"a trial stands twice in one cohort: {self.trials[0]}")

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(" ".join(trial.id for trial in self.trials).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps([asdict(trial) for trial in self.trials])

    @staticmethod
    def from_json(text: str) -> "Cohort":
        return Cohort(tuple(Trial(**fields) for fields in json.loads(text)))
