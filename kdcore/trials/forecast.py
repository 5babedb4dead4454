"""Forecasts how long the missing trials of a plan take on this machine."""

import contextlib
import statistics

from kdcore import papers
from kdcore.errors import KdcoreError
from kdcore.trials.plan import Plan
from kdcore.trials.process import Child, ChildDied
from kdcore.trials.store import Store


def seconds(planned: Plan, device: str, precision: str = "auto") -> dict[str, float]:
    """Seconds of each missing job on this machine: {cohort id: seconds}, from records of its arms on this device or, if one has
    none, from a few timed steps of one job of each kind.

    Raises KdcoreError for a job that cannot be timed, for example because its data are missing.
    """
    from kdcore.trials.environment import device_name

    known: dict[str, dict[str, list[float]]] = {}
    for record in planned.records.values():
        here = (device_name(device), papers.get(record["paper"]).precision(device, precision))
        # older records without a precision were made in float32
        if record["status"] == "done" and (record["cost"]["device"], record["environment"].get("precision", "float32")) == here:
            for key in ("seconds", "cpu_seconds"):
                if key in record["cost"]:
                    known.setdefault(record["arm"], {}).setdefault(key, []).append(record["cost"][key])

    def usual(arm: str) -> float:
        """Mean seconds of an arm; on a CPU its CPU seconds if recorded, since wall time depends on the machine's load."""
        key = "cpu_seconds" if device == "cpu" and "cpu_seconds" in known[arm] else "seconds"
        return statistics.mean(known[arm][key])

    kinds: dict[tuple[str, ...], float] = {}
    with contextlib.ExitStack() as stack:
        child = None
        for job in planned.jobs:
            arms = tuple(trial.arm for trial in job.cohort.trials)
            if arms in kinds:
                continue
            if all(arm in known for arm in arms):
                kinds[arms] = sum(usual(arm) for arm in arms)
                continue
            child = child or stack.enter_context(Child(Store(), device, precision, float("inf")))
            try:
                event = child.ask({"cohort": job.cohort.to_json(), "measure": True}, lambda event: None)
            except ChildDied as died:
                raise KdcoreError(f"'{arms[0]}' cannot be timed: {str(died).splitlines()[0]}") from died
            if event["event"] == "ended":
                raise KdcoreError(f"'{arms[0]}' cannot be timed: {event['message']}")
            kinds[arms] = event["seconds"]
    return {job.cohort.id: kinds[tuple(trial.arm for trial in job.cohort.trials)] for job in planned.jobs}
