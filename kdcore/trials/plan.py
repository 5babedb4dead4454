"""What is asked for and what of it is missing."""

from dataclasses import dataclass, field
from functools import cached_property

from kdcore import papers, validation
from kdcore.papers.spec import Cohort, Trial
from kdcore.trials.store import Store


@dataclass(eq=False)
class Job:
    """A cohort to run. ``redo``: trials that run although they have a record (see child.run).

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


def make(
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
    from kdcore.trials.weights import weights_path

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
