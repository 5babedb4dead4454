"""The child process that runs trials, ``python -m kdcore.trials.child``, the same for every engine.

It reads cohorts from standard input and writes events to standard output (JSON, one per line), so that a dead child costs only
the trial in progress. It needs torch, numpy and PyYAML, not Jupyter.
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

    # events get the real stdout to themselves; what torch and its threads print goes to stderr
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(event: str, **fields) -> None:
        try:
            events.write(json.dumps({"event": event, **fields}) + "\n")
        except BrokenPipeError:  # the runner is gone: pause after this epoch rather than go on unsupervised
            os.kill(os.getpid(), 15)

    def show(message, category, filename, *rest) -> None:
        """Send kdcore's warnings, such as about a damaged file, to the runner; others go to the child's log."""
        if category is UserWarning and Path(filename).is_relative_to(Path(paths.__file__).parent):
            send("said", message=str(message))
        else:
            shown(message, category, filename, *rest)

    shown, warnings.showwarning = warnings.showwarning, show

    # One thread per process and one process per core: faster overall, and sums have the same order on every machine.
    torch.set_num_threads(1)
    send("ready")
    for line in sys.stdin:
        answer(json.loads(line), Store(arguments.results), arguments.device, arguments.precision, arguments.deadline, send)


def answer(work: dict, store: Store, device: str, precision: str, deadline: float, send) -> None:
    """Run or measure a cohort; the last event sent is "ended" or "measured"."""
    cohort = Cohort.from_json(work["cohort"])
    try:
        if work.get("measure"):
            send("measured", seconds=measure(cohort, device, precision))
            return
        status, message = run(cohort, store, device, precision, deadline, send, set(work["redo"]))
    except Busy as busy:
        status, message = "busy", f"{busy} is running elsewhere"
    except KdcoreError as error:  # from a measurement
        status, message = "refused", str(error)
    send("ended", status=status, message=message)


def run(cohort: Cohort, store: Store, device: str, precision: str, deadline: float, send, redo: set[str]) -> tuple[str, str]:
    """Run a cohort; return (status, message), where status is done, paused, refused, or that of a failure.

    redo: ids of trials to run although they have a record: a failure to retry (its record is replaced), or a teacher whose
    weights are not in this cache (its record is kept). Failures are recorded, too; no record is made for "no data" (a missing
    data set), "no teacher" (missing or damaged weights) or "refused" (a full disk, a damaged record, ...). Raises Busy if
    another process runs one of the trials, for this store or with this cache.
    """
    with contextlib.ExitStack() as leases:
        try:
            for trial in sorted(cohort.trials, key=lambda trial: trial.id):
                leases.enter_context(store.lease(trial))
                leases.enter_context(lease(paths.cache() / "leases" / f"{trial.id}.lease", str(trial)))
            known = {trial.id: store.get(trial) for trial in cohort.trials}
            wanted = {each for each in known if known[each] is None or (each in redo and known[each]["status"] != "done")}
            if not wanted and not any(each in redo and not weights_path(each).exists() for each in known):
                return "done", "recorded by another runner"
            send("started")
            return train(cohort, store, device, precision, deadline, send, wanted)
        except Paused:
            return "paused", "saved at a checkpoint: the same command resumes from there"
        except DataMissing as error:
            return "no data", str(error)
        except TeacherMissing as error:
            return "no teacher", str(error)
        except KdcoreError as error:
            return "refused", str(error)
        except OSError as error:  # any trouble with a folder or file of this machine
            return "refused", paths.trouble(error)


def train(cohort: Cohort, store: Store, device: str, precision: str, deadline: float, send, wanted: set[str]) -> tuple[str, str]:
    """Train a cohort, and record its trials whose ids are in ``wanted``."""
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
        papers.get(first.paper).refuse_undeclared(results)  # while there is a checkpoint, so that nothing need train again
        for trial, result in zip(cohort.trials, results, strict=True):
            if "weights" in result:
                save_weights(trial.id, result["weights"], device_name(device))
        put("done", results)
        status, message = "done", ""
    for path in folder.glob("*"):
        if ".damaged" not in path.name:  # kept for inspection
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return status, message


def measure(cohort: Cohort, device: str, precision: str) -> float:
    """Estimate the seconds that a cohort takes on this machine, from a few timed steps."""
    paper = papers.get(cohort.trials[0].paper)
    context = Context(device, paper.precision(device, precision), cohort.trials[0].seed, rehearsal=True)
    return forecast(paper.prepare(cohort.trials, context, None), context)


def classify(error: BaseException) -> tuple[str | None, str]:
    """(status, one sentence) for an error that ended a trial; (None, ...) for a bug, which is not a trial's failure."""
    if isinstance(error, TrialFailed):
        return error.status, str(error)
    words = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words:
        return "oom", "out of memory: lower --jobs or use a larger device, then run with --retry-failed"
    return None, str(error)


def checkpoint_folder(cohort: Cohort, precision: str = "float32") -> Path:
    """The checkpoint folder of a cohort; runs in different precision have different ones."""
    return paths.cache() / "checkpoints" / (cohort.id if precision == "float32" else f"{cohort.id}-{precision}")


if __name__ == "__main__":
    main()
