"""The local engine: worker children, one trial each at a time, supervised; one dead child never takes the rest along."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kdcore import papers, paths, validation
from kdcore.errors import KdcoreError
from kdcore.trials.spec import Cohort, Trial
from kdcore.trials.store import Store

DEATHS = 3  # a child that dies this often on one cohort without coming further in between is not the machine's whim
# from a time limit or Ctrl-C until a child that goes on is ended
GRACE_SECONDS = validation.environment_seconds("KDCORE_GRACE_SECONDS", 60)


@dataclass
class Outcome:
    """What became of a run: ids done (now or before), failures and refusals by sentence, cohorts left for later.

    no_data: by data set that cannot be had, the sentence that says so; trials on other data went on.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    no_data: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all done; 1 something failed or was refused; 3 paused, the same command goes on."""
        return 1 if self.problems else 3 if self.paused else 0

    @property
    def problems(self) -> list[str]:
        """A sentence for each thing that went wrong."""
        return [*self.failed.values(), *self.no_data.values(), *dict.fromkeys(self.refused)]


@dataclass(eq=False)
class Job:
    """A cohort to run. ``redo``: trials that run although they have a record (see worker.run).

    deaths: children that died of it since one came further than ``furthest``, in epochs. lost: how often it found no teacher.
    """

    cohort: Cohort
    redo: list[str] = field(default_factory=list)
    not_before: float = 0.0
    deaths: int = 0
    furthest: int = 0
    lost: int = 0

    @property
    def teacher(self) -> str | None:
        return self.cohort.trials[0].teacher

    @property
    def data(self) -> str | None:
        return self.cohort.trials[0].config.get("data")

    @property
    def ids(self) -> list[str]:
        return [trial.id for trial in self.cohort.trials]


@dataclass
class Plan:
    """The grid: every trial asked for, the records that are there, and the jobs that are missing (teachers included)."""

    trials: list[Trial]
    records: dict[str, dict]
    jobs: list[Job]

    @cached_property
    def done(self) -> list[Trial]:
        return [t for t in self.trials if self.records.get(t.id, {}).get("status") == "done"]


def plan(
    paper: str,
    budget: str,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    store: Store | None = None,
    retry_failed: bool = False,
    shard: tuple[int, int] = (1, 1),
) -> Plan:
    """The trials of a paper at a budget and what of them is missing in the store.

    arms, seeds: None for all that the budget has; seeds as ``validation.seeds`` takes them. store: the checkout's own by default.
    retry_failed: failures count as missing. shard (i, n): the i-th of n equal parts of the missing jobs; teachers that a part
    needs belong to it, and a lease keeps two parts off one. Time and memory grow linearly with the trials.
    Raises KdcoreError for an unknown paper, budget or arm, or an argument that ``kdcore.validation`` refuses.
    """
    from kdcore.trials.worker import weights_path

    found, (i, n) = papers.get(paper), validation.shard(shard)
    trials = found.trials(budget, validation.arms(arms), validation.seeds(seeds))
    store = store or Store(validation.results())
    teachers, pupils = {}, list(trials)
    for pupil in pupils:  # a teacher may have a teacher
        if pupil.teacher and pupil.teacher not in teachers:
            teachers[pupil.teacher] = found.teacher_of(pupil)
            pupils.append(teachers[pupil.teacher])
    records = {trial.id: record for trial in (*trials, *teachers.values()) if (record := store.get(trial))}

    def settled(trial: Trial) -> bool:
        record = records.get(trial.id)
        return record is not None and (record["status"] == "done" or not retry_failed)

    jobs = []
    for cohort in found.cohorts(trials):
        missing = [trial for trial in cohort.trials if not settled(trial)]
        if missing:
            jobs.append(Job(cohort, redo=[trial.id for trial in missing if trial.id in records]))
    jobs = jobs[i - 1 :: n]
    found.refuse_unbuildable([trial for job in jobs for trial in job.cohort.trials])
    # Teachers come first, and theirs before them: those without a record, and those with one whose weights are not in
    # this machine's cache. A teacher that failed is not run again unasked: its students then say so.
    scheduled = {id for job in jobs for id in job.ids}
    for job in (jobs := list(jobs)):  # grows while it is walked
        id = job.teacher
        if id is None or id in scheduled or weights_path(id).exists():
            continue
        failed = id in records and records[id]["status"] != "done"
        if not failed or retry_failed:
            jobs.append(Job(Cohort((teachers[id],)), redo=[id] if id in records else []))
            scheduled.add(id)
    jobs = sorted(jobs, key=lambda job: (job.cohort.trials[0].seed, job.teacher is not None))
    return Plan(trials, records, jobs)


def forecast(planned: Plan, device: str, precision: str = "auto") -> dict[str, float]:
    """Seconds of each missing job on this machine: {cohort id: seconds}. What the records of its arms took on this device, or,
    where one has none, a few timed steps of one job of each kind.

    Raises KdcoreError for a job that cannot be timed, as when its data are missing.
    """
    from kdcore.trials.environment import device_name

    known: dict[str, dict[str, list[float]]] = {}
    for record in planned.records.values():
        here = (device_name(device), papers.get(record["paper"]).precision(device, precision))
        # records from before precision was written down were made in float32
        if record["status"] == "done" and (record["cost"]["device"], record["environment"].get("precision", "float32")) == here:
            for key in ("seconds", "cpu_seconds"):
                if key in record["cost"]:
                    known.setdefault(record["arm"], {}).setdefault(key, []).append(record["cost"][key])

    def usual(arm: str) -> float:
        """Seconds of an arm; on a processor those that it was busy, where records have them: others on the wall depend on what else ran."""
        key = "cpu_seconds" if device == "cpu" and "cpu_seconds" in known[arm] else "seconds"
        return statistics.mean(known[arm][key])

    kinds: dict[tuple[str, ...], float] = {}
    with contextlib.ExitStack() as stack:
        worker = None
        for job in planned.jobs:
            arms = tuple(trial.arm for trial in job.cohort.trials)
            if arms in kinds:
                continue
            if all(arm in known for arm in arms):
                kinds[arms] = sum(usual(arm) for arm in arms)
                continue
            worker = worker or stack.enter_context(Worker(Store(), device, precision, float("inf")))
            try:
                event = worker.ask({"cohort": job.cohort.to_json(), "probe": True}, lambda event: None)
            except ChildDied as died:
                raise KdcoreError(f"'{arms[0]}' cannot be timed: {str(died).splitlines()[0]}") from died
            if event["event"] == "ended":
                raise KdcoreError(f"'{arms[0]}' cannot be timed: {event['message']}")
            kinds[arms] = event["seconds"]
    return {job.cohort.id: kinds[tuple(trial.arm for trial in job.cohort.trials)] for job in planned.jobs}


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
    """Run what a plan lacks in worker children; returns when all is done, failed, or time is up.

    precision: float32, bfloat16, or auto (``Paper.precision``). jobs: children at a time; one a core, or one a GPU, by
    default. time_limit: seconds after which everything pauses at a checkpoint. timeout: seconds that one cohort may take
    before its child is ended and the failure recorded.
    watch: called with each event of each job (started, epoch, ended), from several threads, one at a time.
    Raises KdcoreError, before anything trains, for a limit, device or folder that cannot be used.
    """
    validation.precision(precision)
    jobs, time_limit = validation.jobs(jobs), validation.seconds(time_limit, "the time limit")
    timeout = validation.seconds(timeout, "the timeout")
    validation.writable(store.results)
    validation.writable(paths.cache(), "make it writable, or set KDCORE_CACHE to a folder that is")
    return Engine(planned, store, device, precision, jobs, time_limit, timeout, watch).run()


class Engine:
    """The jobs of one run and the threads that hand them to children."""

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
                    f"{trial}: {record['status']} ({record['metrics'].get('message', '')}); --retry-failed runs it again"
                )
        self.devices, self.precision = devices(device), precision
        self.jobs = min(jobs or (len(self.devices) if device != "cpu" else os.cpu_count() or 1), max(1, len(self.queue)))
        self.deadline = float("inf") if time_limit is None else time.time() + time_limit
        self.end = self.deadline + GRACE_SECONDS  # when a child that still runs is ended
        self.changed = threading.Condition()
        self.running: set[Job] = set()
        self.workers: set[Worker] = set()
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
                        for worker in list(self.workers):
                            worker.end()
        if self.error:
            raise self.error
        self.outcome.paused += [str(trial) for job in self.queue for trial in job.cohort.trials]
        return self.outcome

    @contextlib.contextmanager
    def _stop_on_signal(self):
        """SIGINT and SIGTERM pause all children at their next epoch; a second one ends them at once, as ``GRACE_SECONDS`` do."""

        def stop(*_):
            again, self.deadline = self.deadline == 0, 0
            self.end = 0 if again else time.time() + GRACE_SECONDS
            for worker in list(self.workers):
                worker.signal(signal.SIGKILL if again else signal.SIGTERM)

        old = {}
        with contextlib.suppress(ValueError):  # not the main thread: the signals are somebody else's
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _serve(self, device: str) -> None:
        """One thread, one child at a time: jobs until none is left that could still become ready."""
        worker = None
        try:
            while job := self._take():
                if worker is None:
                    worker = Worker(self.store, device, self.precision, self.deadline)
                    self.workers.add(worker)
                    if self.deadline == 0:  # the signal came before the child was there to hear of it
                        worker.signal(signal.SIGTERM)
                try:
                    end = worker.ask(
                        {"cohort": job.cohort.to_json(), "redo": job.redo}, lambda event, job=job: self._event(job, event), self.timeout
                    )
                except ChildDied as death:
                    hung = worker.ended
                    worker.close()
                    self.workers.discard(worker)
                    worker, end = None, {"event": "died", "status": death.status, "message": str(death)}
                    # a stop was asked for while it had no epoch to end, before its first or after its last; an error of its own stays one
                    if (hung or self.deadline == 0) and death.status == "killed":
                        end |= {"status": "paused", "message": "stopped: the same command goes on from the last checkpoint"}
                    if hung:
                        words = f"did not stop within {GRACE_SECONDS:g} s and was ended: the same command goes on from its last checkpoint"
                        self._event(job, {"event": "said", "message": words})
                self._finish(job, end)
        except BaseException as error:  # a defect in this thread must not leave the others waiting for ever
            with self.changed:
                self.error = self.error or error
                self.deadline, self.end = 0, min(self.end, time.time() + GRACE_SECONDS)
                self.changed.notify_all()
            for other in list(self.workers):  # pauses at its next epoch: what it did is not lost
                other.signal(signal.SIGTERM)
        finally:
            if worker is not None:
                worker.close()
                self.workers.discard(worker)

    def _take(self) -> Job | None:
        """The next job whose teacher is ready; waits while a running or busy one may make another ready."""
        from kdcore.trials.worker import weights_path

        with self.changed:
            while True:
                if time.time() >= self.deadline or self.outcome.refused:
                    return None
                self.queue = [job for job in self.queue if job.data not in self.outcome.no_data]
                waiting = {id for other in (*self.queue, *self.running) for id in other.ids}
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
        """Queue the teacher whose weights a job misses; False where it failed, or was trained ``DEATHS`` times in vain."""
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
                self.outcome.done += [id for id in job.ids if id not in self.outcome.done]
            elif status == "busy":  # another runner has it: look again until its record is there
                job.not_before = time.time() + 1
                self.queue.append(job)
            elif status == "paused":
                self.queue.append(job)
            elif status == "no teacher":  # its file was damaged, or another runner removed it: ``_take`` has it made
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
        """The child is gone: its record of failure is ours to write."""
        from kdcore.trials.environment import device_name
        from kdcore.trials.worker import record

        cost = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": 0.0, "device": device_name(self.devices[0])}
        precision = papers.get(job.cohort.trials[0].paper).precision(self.devices[0], self.precision)
        for trial in job.cohort.trials:
            if (found := self.store.get(trial)) is None or found["status"] != "done":
                self.store.put(record(trial, status, {"metrics": {"message": message}, "history": []}, cost, precision))
        self._fail(job, f"{status} ({message.splitlines()[0]})")


class ChildDied(Exception):
    """The child ended in the middle of a job: the first line says how, the others are its own last ones."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class Worker:
    """One child process: JSON lines in, JSON lines out."""

    def __init__(self, store: Store, device: str, precision: str, deadline: float):
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the child)
        self.ended = False
        package = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
        environment["PYTHONFAULTHANDLER"] = "1"  # where a signal ended it
        if device == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        command = [
            sys.executable,
            "-m",
            "kdcore.trials.worker",
            "--results",
            str(store.results),
            "--device",
            device,
            "--precision",
            precision,
            "--deadline",
            str(deadline),
        ]
        # its own session: Ctrl-C reaches the runner alone, which asks its children to pause
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, start_new_session=True
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self.signal(signal.SIGKILL)
        self.close()

    def ask(self, work: dict, on_event: Callable[[dict], None], timeout: float | None = None) -> dict:
        """Hand over one job and read events until it ends. Raises ChildDied."""
        timer, late = None, threading.Event()
        if timeout is not None:
            timer = threading.Timer(timeout, lambda: (late.set(), self.signal(signal.SIGKILL)))
            timer.start()
        try:
            self.process.stdin.write(json.dumps(work) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if not line.endswith("\n"):  # it died in the middle of a line
                    break
                event = json.loads(line)
                if event["event"] in ("ended", "measured"):
                    return event
                on_event(event)
        except BrokenPipeError:
            pass
        finally:
            if timer is not None:
                timer.cancel()
        code = self.process.wait()
        if late.is_set():
            raise ChildDied("timeout", f"ended after {timeout:.0f} s: raise --timeout")
        words, trace = self._last_words()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            why = "; out of memory is the usual reason" if name == "SIGKILL" else f": {words[-1]}" if words else ""
            raise ChildDied("killed", "\n".join([f"killed by {name}{why}", *words, *trace]))
        raise ChildDied("error", "\n".join([words[-1] if words else f"exit code {code}", *words]))

    def _last_words(self, count: int = 12) -> tuple[list[str], list[str]]:
        """The last lines of its standard error, and of what faulthandler wrote after them: the signal, and the innermost frames."""
        self.log.seek(0)
        words, found, trace = self.log.read().partition("Fatal Python error: ")
        return [line for line in words.splitlines() if line.strip()][-count:], (found + trace).splitlines()[:count]

    def end(self) -> None:
        """End it at once: it had its time to stop."""
        self.ended = True
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # the end of its input ends it
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def devices(device: str) -> list[str]:
    """The devices to spread children over: "cuda" means every GPU. Raises KdcoreError where there is none."""
    if validation.device(device) == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count:
        return [f"cuda:{i}" for i in range(count)]
    if device != "cuda" and int(device.removeprefix("cuda:")) < count:
        return [device]
    raise KdcoreError(f"device '{device}' is not there (this machine has {count} CUDA devices): use cpu" + (" or cuda" if count else ""))
