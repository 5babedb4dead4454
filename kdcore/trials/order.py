"""Several papers in one run, and which of their trials come first."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from kdcore import papers
from kdcore.papers.spec import Trial
from kdcore.trials.plan import Job, Plan

ORDERS = ("sheet", "value")


def merged(plans: Sequence[Plan], order: str = "sheet", device: str = "cpu") -> Plan:
    """The plans of several papers as one, so that their jobs share an engine and its time limit.

    order: "sheet", paper by paper as each has its jobs; or "value", so that an hour is spent well wherever it ends: what gives a
    cell of a table whose numbers compare with the paper's comes first, the cheap before the dear. A teacher's time is shared by
    the students that need it. device: where it will run, whose records say what a trial takes there.
    Raises ValueError for an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"the order is one of {', '.join(ORDERS)}, not {order!r}")
    whole = Plan([], {}, [])
    for plan in plans:
        whole.trials += plan.trials
        whole.records |= plan.records
        whole.jobs += plan.jobs
    if order == "value":
        whole.jobs = by_value(whole.jobs, seconds(whole, device))
    return whole


def by_value(jobs: Sequence[Job], cost: Callable[[Job], float]) -> list[Job]:
    """Jobs in the order of (``worth``, seconds). A student's seconds are its own and its share of those of its teachers that are
    still to be trained, each divided among all that wait for it; they stand right before the first of them."""
    makers = {id: job for job in jobs for id in job.ids}

    def chain(job: Job) -> list[Job]:
        """The teachers to be trained for a job, first things first."""
        teacher = makers.get(job.teacher)
        return [] if teacher is None else [*chain(teacher), teacher]

    chains = {job: chain(job) for job in jobs}
    shares = Counter(teacher for each in chains.values() for teacher in each)
    own = {job: cost(job) for job in jobs}
    keys = {job: (worth(job), own[job] + sum(own[teacher] / shares[teacher] for teacher in chains[job])) for job in jobs}
    return list(dict.fromkeys(each for job in sorted(jobs, key=keys.__getitem__) for each in (*chains[job], job)))


def worth(job: Job) -> int:
    """0 for a job that gives a cell with a reported number at the paper's own scale, 1 for any other cell of a table, 2 for none."""
    return min(_worth(trial.paper, trial.budget, trial.arm) for trial in job.cohort.trials)


@cache
def _worth(key: str, budget: str, arm: str) -> int:
    paper = papers.get(key)
    rows = [row for table in paper.tables for row in table["rows"] if row["arm"] == arm]
    if not rows:
        return 2
    # a budget that does not say its scale is the protocol where it is called so
    protocol = paper.budget(budget).get("scale", budget) in ("protocol", "paper")
    return 0 if protocol and any(row["paper"] is not None for row in rows) else 1


def seconds(planned: Plan, device: str) -> Callable[[Job], float]:
    """What gives the seconds of a job: of its arms' records on this device, else ``Paper.work`` at the rate of all records there
    (at 1 a second where there is none: enough to put them in order)."""
    from kdcore.trials.environment import device_name

    here, known = device_name(device), {}
    for record in planned.records.values():
        if record["status"] == "done" and record["cost"]["device"] == here and record["cost"]["seconds"] > 0:
            known.setdefault((record["paper"], record["budget"], record["arm"]), []).append((record["cost"]["seconds"], record["config"]))
    rates = [papers.get(paper).work(config) / taken for (paper, _, _), records in known.items() for taken, config in records]
    rate = statistics.median(rates) if rates else 1.0

    def of_trial(trial: Trial) -> float:
        records = known.get((trial.paper, trial.budget, trial.arm))
        return statistics.mean(taken for taken, _ in records) if records else papers.get(trial.paper).work(trial.config) / rate

    return lambda job: sum(map(of_trial, job.cohort.trials))
