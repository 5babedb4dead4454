"""The child that runs trials: ``python -m kdcore.trials.worker``, the same command under every engine.

It reads cohorts (JSON, one a line) from standard input and answers with events (JSON, one a line) on standard output,
so that a dead child costs the trial in progress and nothing else. It needs torch, numpy and PyYAML, no Jupyter.
"""

import argparse
import json
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from kdcore import papers, paths
from kdcore.errors import DataMissing, KdcoreError, Paused, TrialFailed
from kdcore.training import Context, Measured
from kdcore.trials.environment import device_name, environment, peak_memory_mb, reset_peak_memory
from kdcore.trials.spec import Cohort, Trial
from kdcore.trials.store import Busy, Store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--deadline", type=float, default=float("inf"))
    arguments = parser.parse_args()

    # torch and its threads print to the real stdout: the events keep it for themselves
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(event: str, **fields) -> None:
        try:
            events.write(json.dumps({"event": event, **fields}) + "\n")
        except BrokenPipeError:  # the runner is gone: pause at the next epoch rather than run on unseen
            os.kill(os.getpid(), 15)

    # One thread a process, a process a core: faster in sum, and the same sums in the same order on every machine.
    torch.set_num_threads(1)
    send("ready")
    for line in sys.stdin:
        work = json.loads(line)
        cohort = Cohort.from_json(work["cohort"])
        if work.get("probe"):
            try:
                send("measured", seconds=measure(cohort, arguments.device, arguments.precision))
            except KdcoreError as error:
                send("ended", status="refused", message=str(error))
            continue
        try:
            store = Store(arguments.results)
            status, message = run(cohort, store, arguments.device, arguments.precision, arguments.deadline, send, set(work["redo"]))
        except Busy as busy:
            status, message = "busy", f"{busy} is running elsewhere"
        send("ended", status=status, message=message)


def run(cohort: Cohort, store: Store, device: str, precision: str, deadline: float, send, redo: set[str]) -> tuple[str, str]:
    """Run a cohort; (status, message), status being done, paused, refused, or a failure's.

    redo: ids of trials that run although they have a record: a failure that is retried (its record is replaced), or a
    teacher whose weights are not in this cache (its record stays). A failure becomes a record too; what keeps any
    record from being made is "no data" for a data set that cannot be had, else "refused" (full disk, damaged record).
    """
    with ExitStack() as leases:
        try:
            for trial in sorted(cohort.trials, key=lambda trial: trial.id):
                leases.enter_context(store.lease(trial))
            found = {trial.id: store.get(trial) for trial in cohort.trials}
            if not any(found[id] is None or id in redo for id in found):
                return "done", "recorded by another runner"
            send("started")
            wanted = {id for id in found if found[id] is None or (id in redo and found[id]["status"] != "done")}
            return train(cohort, store, device, precision, deadline, send, wanted)
        except Paused:
            return "paused", "saved at a checkpoint: the same command goes on from there"
        except DataMissing as error:
            return "no data", str(error)
        except KdcoreError as error:
            return "refused", str(error)


def train(cohort: Cohort, store: Store, device: str, precision: str, deadline: float, send, wanted: set[str]) -> tuple[str, str]:
    """Train a cohort and record those of its trials whose ids are ``wanted``."""
    first = cohort.trials[0]
    precision = papers.get(first.paper).precision(device, precision)
    folder = checkpoint_folder(cohort, precision)
    reset_peak_memory(device)
    context = Context(
        device,
        precision,
        first.seed,
        folder,
        report=lambda row: send("epoch", **row),
        deadline=deadline,
        say=lambda line: send("said", message=line),
    )

    def put(status: str, results: list[dict]) -> None:
        cost = {
            "seconds": round(context.seconds / len(cohort.trials), 2),
            "peak_memory_mb": peak_memory_mb(device),
            "device": device_name(device),
        }
        for trial, result in zip(cohort.trials, results, strict=True):
            if trial.id in wanted:
                made = record(trial, status, result, cost, precision)
                made["environment"] |= {"without_graph": context.eager} if context.eager else {}
                store.put(made)

    try:
        teacher = None if first.teacher is None else load_weights(first.teacher)
        results = papers.get(first.paper).run(cohort.trials, context, teacher)
    except (TrialFailed, MemoryError, RuntimeError) as error:
        status, message = classify(error)
        if status is None:
            raise
        put(status, [{"metrics": {"message": message}, "history": []}] * len(cohort.trials))
    else:
        for trial, result in zip(cohort.trials, results, strict=True):
            if "weights" in result:
                save_weights(trial.id, result["weights"])
        put("done", results)
        status, message = "done", ""
    shutil.rmtree(folder, ignore_errors=True)
    return status, message


def measure(cohort: Cohort, device: str, precision: str) -> float:
    """Seconds that the cohort would take here, from a few timed steps."""
    paper, seed = papers.get(cohort.trials[0].paper), cohort.trials[0].seed
    try:
        paper.run(cohort.trials, Context(device, paper.precision(device, precision), seed, probe=True), None)
    except Measured as measured:
        return measured.seconds
    raise AssertionError("a paper's run() never called context.fit()")


def record(trial: Trial, status: str, result: dict, cost: dict, precision: str) -> dict:
    """The record of a trial: what was asked, what came out, at what cost, where."""
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
        "environment": environment() | {"precision": precision},
        "data": {"fingerprint": trial.data},
        "teacher": trial.teacher,
        "version": trial.version,
    }


def classify(error: BaseException) -> tuple[str | None, str]:
    """(status, one sentence) of what ended a trial; (None, ...) for what is no trial's failure but a defect."""
    if isinstance(error, TrialFailed):
        return error.status, str(error)
    words = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words:
        return "oom", "out of memory: lower --jobs or use a larger device, then run with --retry-failed"
    return None, str(error)


def checkpoint_folder(cohort: Cohort, precision: str = "float32") -> Path:
    """Where a cohort's run is saved while it lasts; a run in another precision is another run."""
    return paths.cache() / "checkpoints" / (cohort.id if precision == "float32" else f"{cohort.id}-{precision}")


def weights_path(trial_id: str) -> Path:
    """Where a teacher's tensors lie: outside git, made again from its trial when they are missing."""
    return paths.cache() / "weights" / f"{trial_id}.safetensors"


def save_weights(trial_id: str, tensors: dict) -> None:
    from safetensors.torch import save_file

    paths.write_atomically(weights_path(trial_id), lambda temporary: save_file(tensors, temporary))


def load_weights(trial_id: str) -> dict:
    """The tensors that a teacher's trial saved. Raises KdcoreError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_path(trial_id)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise KdcoreError(
            f"the teacher's weights {path} cannot be read ({error}): delete the file and run again to train the teacher anew"
        ) from error


if __name__ == "__main__":
    main()
