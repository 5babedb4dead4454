"""The record of a trial as a dict; ``schema`` says what is valid, ``store`` keeps it."""

from kdcore.papers.spec import Trial
from kdcore.trials.environment import environment


def record(trial: Trial, status: str, result: dict, cost: dict, precision: str, teacher_processor: str | None = None) -> dict:
    """The record of a trial: what was asked, what came out, at what cost, where; and on what its teacher was trained."""
    return {
        "id": trial.id,
        "paper": trial.paper,
        "arm": trial.arm,
        "budget": trial.budget,
        "seed": trial.seed,
        "status": status,
        "config": trial.config,
        "metrics": result["metrics"],
        "history": result["history"],
        "cost": cost,
        "environment": environment() | {"precision": precision, "teacher_processor": teacher_processor},
        "data": {"fingerprint": trial.data},
        "teacher": trial.teacher,
        "version": trial.version,
    }
