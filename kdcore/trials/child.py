"""The child that runs trials: ``python -m kdcore.trials.child``, the same command under every engine.

It reads cohorts (JSON, one a line) from standard input and answers with events (JSON, one a line) on standard output,
so that a dead child costs the trial in progress and nothing else. It needs torch, numpy and PyYAML, no Jupyter.
"""

import argparse
import contextlib
import json
import os
import sys
import warnings
from pathlib import Path

import torch

from kdcore import papers, paths
from kdcore.errors import DataMissing, KdcoreError, Paused, TrialFailed
from kdcore.papers.spec import Cohort
from kdcore.training import Context, forecast
from kdcore.trials.environment import device_name, peak_memory_mb, reset_peak_memory
from kdcore.trials.record import record
from kdcore.trials.store import Busy, Store, lease
from kdcore.trials.weights import TeacherMissing, read_weights, save_weights, weights_path


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

    def show(message, category, filename, *rest) -> None:
        """A warning of ours, such as a damaged file that is made anew, is the runner's to show; others wait in the log of this child."""
        if category is UserWarning and Path(filename).is_relative_to(Path(paths.__file__).parent):
            send("said", message=str(message))
        else:
            shown(message, category, filename, *rest)

    shown, warnings.showwarning = warnings.showwarning, show

    # One thread a process, a process a core: faster in sum, and the same sums in the same order on every machine.
    torch.set_num_threads(1)
    send("ready")
    for line in sys.stdin:
        answer(json.loads(line), Store(arguments.results), arguments.device, arguments.precision, arguments.deadline, send)


def answer(work: dict, store: Store, device: str, precision: str, deadline: float, send) -> None:
    """Run a cohort, or measure one; the last event that is sent is "ended", or "measured"."""
    cohort = Cohort.from_json(work["cohort"])
    try:
        if work.get("measure"):
            send("measured", seconds=measure(cohort, device, precision))
            return
        status, message = run(cohort, store, device, precision, deadline, send, set(work["redo"]))
    except Busy as busy:
        status, message = "busy", f"{busy} is running elsewhere"
    except KdcoreError as error:  # of a measurement
        status, message = "refused", str(error)
    send("ended", status=status, message=message)


def run(cohort: Cohort, store: Store, device: str, precision: str, deadline: float, send, redo: set[str]) -> tuple[str, str]:
    """Run a cohort; (status, message), status being done, paused, refused, or a failure's.

    redo: ids of trials that run although they have a record: a failure that is retried (its record is replaced), or a
    teacher whose weights are not in this cache (its record stays). A failure becomes a record too; what keeps any
    record from being made is "no data" for a data set that cannot be had, "no teacher" where its weights are missing or
    damaged, else "refused" (full disk, damaged record). Raises Busy where another process runs one of the trials, for
    this store or, with this cache, for another.
    """
    with contextlib.ExitStack() as leases:
        try:
            for trial in sorted(cohort.trials, key=lambda trial: trial.id):
                leases.enter_context(store.lease(trial))
                leases.enter_context(lease(paths.cache() / "leases" / f"{trial.id}.lease", str(trial)))
            found = {trial.id: store.get(trial) for trial in cohort.trials}
            wanted = {id for id in found if found[id] is None or (id in redo and found[id]["status"] != "done")}
            if not wanted and not any(id in redo and not weights_path(id).exists() for id in found):
                return "done", "recorded by another runner"
            send("started")
            return train(cohort, store, device, precision, deadline, send, wanted)
        except Paused:
            return "paused", "saved at a checkpoint: the same command goes on from there"
        except DataMissing as error:
            return "no data", str(error)
        except TeacherMissing as error:
            return "no teacher", str(error)
        except KdcoreError as error:
            return "refused", str(error)
        except OSError as error:  # a folder or file of this machine, whatever the code was about to do with it
            return "refused", paths.trouble(error)


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
            "cpu_seconds": round(context.cpu_seconds / len(cohort.trials), 2),
            "peak_memory_mb": peak_memory_mb(device),
            "device": device_name(device),
        }
        for trial, result in zip(cohort.trials, results, strict=True):
            if trial.id in wanted:
                made = record(trial, status, result, cost, precision, about.get("processor"))
                made["environment"] |= {"without_graph": context.eager} if context.eager else {}
                store.put(made)

    teacher_weights, about = (None, {}) if first.teacher is None else read_weights(first.teacher)
    try:
        results = papers.get(first.paper).prepare(cohort.trials, context, teacher_weights).train(context)
    except (TrialFailed, MemoryError, RuntimeError) as error:
        status, message = classify(error)
        if status is None:
            raise
        put(status, [{"metrics": {"message": message}, "history": []}] * len(cohort.trials))
    else:
        papers.get(first.paper).refuse_undeclared(results)  # before the checkpoints go: once declared, nothing trains again
        for trial, result in zip(cohort.trials, results, strict=True):
            if "weights" in result:
                save_weights(trial.id, result["weights"], device_name(device))
        put("done", results)
        status, message = "done", ""
    for path in folder.glob("*"):
        if ".damaged" not in path.name:  # that stays for whoever wants to know
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return status, message


def measure(cohort: Cohort, device: str, precision: str) -> float:
    """Seconds that the cohort would take here, from a few timed steps."""
    paper = papers.get(cohort.trials[0].paper)
    context = Context(device, paper.precision(device, precision), cohort.trials[0].seed, rehearsal=True)
    return forecast(paper.prepare(cohort.trials, context, None), context)


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


if __name__ == "__main__":
    main()
