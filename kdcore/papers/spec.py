"""A trial: one arm, one budget, one seed, and the id that says exactly what was run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property


@dataclass(frozen=True)
class Trial:
    """The unit of work. ``config`` is resolved: the paper's protocol with the budget's overrides applied.

    data: fingerprint of the data set; teacher: the teacher's trial id, or None; version: what ``kdcore/papers/KEY/trial.py``
    declares, raised whenever its code changes what a trial measures.
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
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}  # asdict would copy the config, at 20 times the cost
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.paper} / {self.arm} / {self.budget} / seed {self.seed}"


@dataclass(frozen=True)
class Cohort:
    """Trials that train side by side in one child: the same paper, budget, seed and teacher. Raises ValueError for a trial twice."""

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
