"""The local engine: supervises children that each run one cohort at a time; if a child dies, the others go on."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdcore import papers, paths, validation
from kdcore.papers.spec import Cohort
from kdcore.trials.environment import devices
from kdcore.trials.plan import Job, Plan
from kdcore.trials.process import Child, ChildDied
from kdcore.trials.store import Store

DEATHS = 3  # children that may die on one cohort without progress before its failure is recorded
# from a time limit or Ctrl-C until a child that has not stopped is killed
GRACE_SECONDS = validation.environment_seconds("KDCORE_GRACE_SECONDS", 60)


@dataclass
class Outcome:
    """The outcome of a run: ids of trials done (now or before), failures and refusals as sentences, trials left for later.

    no_data: a sentence for each data set that is missing; trials on other data went on.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    no_data: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: all done; 1: something failed or was refused; 3: paused, the same command resumes."""
        return 1 if self.problems else 3 if self.paused else 0

    @property
    def problems(self) -> list[str]:
        """One sentence for each thing that went wrong."""
        return [*self.failed.values(), *self.no_data.values(), *dict.fromkeys(self.refused)]


def run(
    planned: Plan,
    store: Store,
    *,
    device: str = "cpu",
    precision: str = "auto",
    jobs: int | None = None,
    time_limit: float | None = None,
    timeout: float | None = None,
    watch: Callable[[Job, dict], None] = lambda job, event: None,
) -> Outcome:
    """Run the missing jobs of a plan in child processes; return when all are done or failed, or time is up.

    precision: float32, bfloat16, or auto (``Paper.precision``). jobs: number of children at a time; by default one per core or
    GPU. time_limit: seconds after which everything pauses at a checkpoint. timeout: seconds that one cohort may take before
    its child is killed and the failure recorded.
    watch: called with each event of each job (started, epoch, ended), from several threads but never concurrently.
    Raises KdcoreError, before anything trains, for a limit, device or folder that cannot be used.
    """
    validation.precision(precision)
    jobs, time_limit = validation.jobs(jobs), validation.seconds(time_limit, "the time limit")
    timeout = validation.seconds(timeout, "the timeout")
    validation.writable(store.results)
    validation.writable(paths.cache(), "make it writable, or set KDCORE_CACHE to a writable folder")
    return Engine(planned, store, device, precision, jobs, time_limit, timeout, watch).run()


class Engine:
    """The jobs of one run, and the threads that hand them to children."""

    def __init__(self, planned: Plan, store: Store, device: str, precision: str, jobs: int | None, time_limit, timeout, watch):
        self.queue, self.store, self.timeout, self.watch = (
            list({job.cohort.id: job for job in planned.jobs}.values()),
            store,
            timeout,
            watch,
        )
        self.outcome = Outcome(done=[trial.id for trial in planned.done])
        for trial in planned.trials:
            record = planned.records.get(trial.id)
            if record and record["status"] != "done" and not any(trial.id in job.ids for job in self.queue):
                self.outcome.failed[trial.id] = (
                    f"{trial}: {record['status']} ({record['metrics'].get('message', '')}): run it again with --retry-failed"
                )
        self.devices, self.precision = devices(device), precision
        self.jobs = min(jobs or (len(self.devices) if device != "cpu" else os.cpu_count() or 1), max(1, len(self.queue)))
        self.deadline = float("inf") if time_limit is None else time.time() + time_limit
        self.end = self.deadline + GRACE_SECONDS  # when children that still run are killed
        self.changed = threading.Condition()
        self.running: set[Job] = set()
        self.children: set[Child] = set()
        self.error: BaseException | None = None

    def run(self) -> Outcome:
        threads = [threading.Thread(target=self._serve, args=(self.devices[i % len(self.devices)],)) for i in range(self.jobs)]
        with self._stop_on_signal():
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # short waits let signals through
                    if time.time() > self.end:
                        for child in list(self.children):
                            child.end()
        if self.error:
            raise self.error
        self.outcome.paused += [str(trial) for job in self.queue for trial in job.cohort.trials]
        return self.outcome

    @contextlib.contextmanager
    def _stop_on_signal(self):
        """On SIGINT or SIGTERM, pause all children after their epoch; kill them on a second signal, or after ``GRACE_SECONDS``."""

        def stop(*_):
            again, self.deadline = self.deadline == 0, 0
            self.end = 0 if again else time.time() + GRACE_SECONDS
            for child in list(self.children):
                child.signal(signal.SIGKILL if again else signal.SIGTERM)

        old = {}
        with contextlib.suppress(ValueError):  # only the main thread can handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _serve(self, device: str) -> None:
        """Hand jobs to one child at a time, until no job is left that is or may become ready. Runs in its own thread."""
        child = None
        try:
            while job := self._take():
                if child is None:
                    child = Child(self.store, device, self.precision, self.deadline)
                    self.children.add(child)
                    if self.deadline == 0:  # the signal came before the child was started
                        child.signal(signal.SIGTERM)
                try:
                    end = child.ask(
                        {"cohort": job.cohort.to_json(), "redo": job.redo}, lambda event, job=job: self._event(job, event), self.timeout
                    )
                except ChildDied as death:
                    hung = child.ended
                    child.close()
                    self.children.discard(child)
                    child, end = None, {"event": "died", "status": death.status, "message": str(death)}
                    # it was stopped before its first epoch or after its last; its own errors remain errors
                    if (hung or self.deadline == 0) and death.status == "killed":
                        end |= {"status": "paused", "message": "stopped: the same command resumes from the last checkpoint"}
                    if hung:
                        words = f"did not stop within {GRACE_SECONDS:g} s and was killed: the same command resumes from its last checkpoint"
                        self._event(job, {"event": "said", "message": words})
                self._finish(job, end)
        except BaseException as error:  # a bug in this thread must not leave the others waiting forever
            with self.changed:
                self.error = self.error or error
                self.deadline, self.end = 0, min(self.end, time.time() + GRACE_SECONDS)
                self.changed.notify_all()
            for other in list(self.children):  # they pause after their epoch, so that no work is lost
                other.signal(signal.SIGTERM)
        finally:
            if child is not None:
                child.close()
                self.children.discard(child)

    def _take(self) -> Job | None:
        """The next job whose teacher is ready; waits while other jobs may make one ready. None if there is nothing left to do."""
        from kdcore.trials.weights import weights_path

        with self.changed:
            while True:
                if time.time() >= self.deadline or self.outcome.refused:
                    return None
                self.queue = [job for job in self.queue if job.data not in self.outcome.no_data]
                waiting = {trial_id for other in (*self.queue, *self.running) for trial_id in other.ids}
                for job in list(self.queue):
                    if job.teacher in waiting:
                        continue
                    if job.teacher and not weights_path(job.teacher).exists():
                        if self._teach(job):
                            waiting.add(job.teacher)
                        else:
                            self.queue.remove(job)
                            self._fail(job, "its teacher has no weights: run the teacher's arm with --retry-failed")
                        continue
                    if job.not_before <= time.time():
                        self.queue.remove(job)
                        self.running.add(job)
                        return job
                if not self.queue:
                    return None
                self.changed.wait(0.5)

    def _teach(self, job: Job) -> bool:
        """Queue the teacher whose weights a job lacks; False if it failed, or its weights were missing more than ``DEATHS`` times."""
        pupil = job.cohort.trials[0]
        teacher = papers.get(pupil.paper).teacher_of(pupil)
        record = self.store.get(teacher)
        job.lost += 1
        if teacher.id in self.outcome.failed or (record and record["status"] != "done") or job.lost > DEATHS:
            return False
        self.queue.insert(0, Job(Cohort((teacher,)), redo=[teacher.id] if record else []))
        return True

    def _event(self, job: Job, event: dict) -> None:
        with self.changed:
            if event.get("done", 0) > job.furthest:
                job.furthest, job.deaths = event["done"], 0
            self.watch(job, event)

    def _finish(self, job: Job, end: dict) -> None:
        status, message = end["status"], end["message"]
        with self.changed:
            self.running.discard(job)
            if status == "done":
                self.outcome.done += [trial_id for trial_id in job.ids if trial_id not in self.outcome.done]
            elif status == "busy":  # another runner has it: try again until its record exists
                job.not_before = time.time() + 1
                self.queue.append(job)
            elif status == "paused":
                self.queue.append(job)
            elif status == "no teacher":  # its file was damaged or removed: ``_take`` queues the teacher
                self.queue.append(job)
                self.watch(job, {"event": "said", "message": f"{message}: the teacher is trained again"})
            elif status == "no data":
                self.outcome.no_data[job.data] = message
            elif status == "refused":
                self.outcome.refused.append(message)
            elif end["event"] == "died" and status == "killed":
                job.deaths += 1
                if job.deaths < DEATHS:
                    self.queue.insert(0, job)  # resumes from its checkpoint
                else:
                    self._record_failure(job, status, message)
            elif end["event"] == "died":
                self._record_failure(job, status, message)
            else:
                self._fail(job, f"{status} ({message})")
            self.watch(job, {"event": "ended", "status": status, "message": message})
            self.changed.notify_all()

    def _fail(self, job: Job, message: str) -> None:
        for trial in job.cohort.trials:
            self.outcome.failed[trial.id] = f"{trial}: {message}"

    def _record_failure(self, job: Job, status: str, message: str) -> None:
        """Write the record of failure of a cohort whose child died."""
        from kdcore.trials.environment import device_name
        from kdcore.trials.record import record

        cost = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": 0.0, "device": device_name(self.devices[0])}
        precision = papers.get(job.cohort.trials[0].paper).precision(self.devices[0], self.precision)
        for trial in job.cohort.trials:
            if (known := self.store.get(trial)) is None or known["status"] != "done":
                self.store.put(record(trial, status, {"metrics": {"message": message}, "history": []}, cost, precision))
        self._fail(job, f"{status} ({message.splitlines()[0]})")
