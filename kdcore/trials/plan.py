"""A plan: the trials that are asked for, and the jobs that are missing."""

from dataclasses import dataclass, field
from functools import cached_property

from kdcore import papers, validation
from kdcore.papers.spec import Cohort, Trial
from kdcore.trials.store import Store


@dataclass(eq=False)
class Job:
    """A cohort to run. redo: ids of trials to run although they have a record (see ``child.run``).

    deaths: children that died on it since progress last went beyond ``furthest`` epochs. lost: how often its teacher was missing.
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
    """All trials that are asked for, their existing records, and the missing jobs (including teachers)."""

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
    """Plan the trials of a paper at a budget: which there are, and which are missing in the store.

    arms, seeds: None: all of the budget; seeds as in ``validation.seeds``. store: by default the checkout's. retry_failed: count
    failures as missing. shard: (i, n), part i of n equal parts of the missing jobs; a part includes the teachers that it needs,
    and a lease keeps two parts from training the same one. Time and memory grow linearly with the number of trials.
    Raises KdcoreError for an unknown paper, budget or arm, or an argument that ``kdcore.validation`` refuses.
    """
    from kdcore.trials.weights import weights_path

    loaded, (i, n) = papers.get(paper), validation.shard(shard)
    trials = loaded.trials(budget, validation.arms(arms), validation.seeds(seeds))
    store = store or Store(validation.results())
    teachers, pupils = {}, list(trials)
    for pupil in pupils:  # a teacher may have a teacher
        if pupil.teacher and pupil.teacher not in teachers:
            teachers[pupil.teacher] = loaded.teacher_of(pupil)
            pupils.append(teachers[pupil.teacher])
    records = {trial.id: record for trial in (*trials, *teachers.values()) if (record := store.get(trial))}

    def settled(trial: Trial) -> bool:
        record = records.get(trial.id)
        return record is not None and (record["status"] == "done" or not retry_failed)

    jobs = []
    for cohort in loaded.cohorts(trials):
        missing = [trial for trial in cohort.trials if not settled(trial)]
        if missing:
            jobs.append(Job(cohort, redo=[trial.id for trial in missing if trial.id in records]))
    jobs = jobs[i - 1 :: n]
    loaded.refuse_unbuildable([trial for job in jobs for trial in job.cohort.trials])
    # Teachers come first, and their own teachers before them: those without a record, and those whose weights are not in this
    # machine's cache. A failed teacher is only run again on request: its students report that.
    scheduled = {trial_id for job in jobs for trial_id in job.ids}
    for job in (jobs := list(jobs)):  # grows during the loop
        teacher = job.teacher
        if teacher is None or teacher in scheduled or weights_path(teacher).exists():
            continue
        failed = teacher in records and records[teacher]["status"] != "done"
        if not failed or retry_failed:
            jobs.append(Job(Cohort((teachers[teacher],)), redo=[teacher] if teacher in records else []))
            scheduled.add(teacher)
    jobs = sorted(jobs, key=lambda job: (job.cohort.trials[0].seed, job.teacher is not None))
    return Plan(trials, records, jobs)
