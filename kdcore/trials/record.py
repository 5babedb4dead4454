"""The record of a trial as a dict; ``schema`` validates it, ``store`` saves it."""

from kdcore.papers.spec import Trial
from kdcore.trials.environment import environment


def record(trial: Trial, status: str, result: dict, cost: dict, precision: str, teacher_processor: str | None = None) -> dict:
    """Build the record of a trial: its settings, results, cost, and environment; teacher_processor: what trained its teacher."""
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
