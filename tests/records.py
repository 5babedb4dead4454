"""Records for tests of the report: valid ones, of no training."""

import base64
import copy
import dataclasses

import numpy as np

from kdcore import papers
from kdcore.papers.spec import Trial

KEY = "hinton_mnist"
README = "# kdcore\n\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\n\n<!-- times -->\n<!-- /times -->\n\nThe end.\n"


def judged(key: str = KEY) -> papers.Paper:
    """A paper whose budget fast counts as its protocol, with two seeds planned for every arm. Trials keep their ids."""
    sheet = copy.deepcopy(papers.get(key).sheet)
    fast = sheet["budgets"]["fast"]
    fast["seeds"] = 2
    for overrides in fast["arms"].values():
        overrides.pop("seeds", None)
    make_protocol(sheet, "fast")
    return papers.Paper(key, sheet)


def make_protocol(sheet: dict, budget: str) -> None:
    """Give a budget the scale protocol, and budget paper its parameters: only what is the same counts as the protocol."""
    own = sheet["budgets"][budget]
    own["scale"] = "protocol"
    sheet["budgets"]["paper"] |= {name: own.get(name, {}) for name in ("config", "arms")}


def made(trial: Trial, metrics: dict, status: str = "done", history: list | None = None) -> dict:
    """A valid record of a trial, as a child would write it."""
    asked = dataclasses.asdict(trial)
    return asked | {
        "id": trial.id,
        "status": status,
        "metrics": metrics,
        "history": history or [],
        "cost": {"seconds": 360.0, "peak_memory_mb": 100.0, "device": "Test CPU"},
        "environment": {"python": "3"},
        "data": {"fingerprint": trial.data},
    }


def synthetic(paper, budget: str, seeds: int = 3, arms: list[str] | None = None) -> list[dict]:
    """Valid records of a budget's arms, near the reported numbers, with all that the sheet's tables, claims and findings read."""
    wanted: dict = {}
    for table in paper.tables:
        for row in table["rows"]:
            value = row["paper"] if row["paper"] is not None else 100 + 7 * len(wanted)
            wanted.setdefault(row["arm"], {}).setdefault(row["metric"], (value, row["margin"] or 1))
    values = [value for finding in paper.sheet.get("findings", []) for value in finding["values"].values()]
    for compared in [*paper.sheet["claims"], *values]:
        for side in (compared["left"], compared.get("right") or {}):
            for arm in side.get("arms", []):
                wanted.setdefault(arm, {}).setdefault(side["metric"], (50, 5))
    rng = np.random.default_rng(0)
    image = base64.b64encode(bytes(range(256)) * 3 + bytes(16)).decode()
    entries = [{"label": k, "logits": rng.normal(0, 4, 10).tolist(), "image": image, "shape": [28, 28]} for k in range(4)]
    counts = rng.integers(0, 1200, (10, 10)).tolist()
    curve = {"shifts": list(range(-5, 15)), "shift_test_errors": [100 + 5 * (x - 3) ** 2 for x in range(-5, 15)]}
    own = {
        "gallery": entries,
        "confusion_before": counts,
        "confusion_shift_heldout": counts,
        **curve,
        "shift_test": 3,
        "shift_heldout": 3.5,
    }
    records = []
    for arm in arms or paper.budget_arms(budget):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, *arm.encode()])
            metrics = own | {name: round(value + 0.2 * margin * rng.standard_normal(), 3) for name, (value, margin) in wanted[arm].items()}
            errors = 1 + rng.random() + 8 * np.exp(-np.arange(20) / 4) + 0.1 * rng.random(20)
            history = [{"stage": "train", "epoch": e + 1, "lr": 0.1, "loss": 1.0, "test_error_percent": x} for e, x in enumerate(errors)]
            records.append(made(paper.trial(budget, arm, seed), metrics, history=history))
    return records


def of_arm(paper, budget: str, arm: str, values: list[float], metric: str = "test_errors") -> list[dict]:
    """Records of one arm, a seed for each value of one metric."""
    return [made(paper.trial(budget, arm, seed), {metric: value}) for seed, value in enumerate(values)]


def contents(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
