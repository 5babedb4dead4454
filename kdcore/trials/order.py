"""Merges the plans of several papers, and orders their jobs."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from kdcore import papers
from kdcore.papers.spec import Trial
from kdcore.trials.plan import Job, Plan

ORDERS = ("sheet", "value")


def merged(plans: Sequence[Plan], order: str = "sheet", device: str = "cpu") -> Plan:
    """Merge the plans of several papers into one, so that their jobs share an engine and its time limit.

    order: "sheet", paper by paper in the order of each sheet; or "value", so that the time is well spent whenever it ends: jobs
    for table cells that compare with the paper's numbers come first, cheap ones before expensive ones. A teacher's time is shared
    among the students that need it. device: where it will run; records made there say how long a trial takes.
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
    """Jobs in the order of (``worth``, seconds). A student's seconds include its share of each teacher still to be trained, which is
    divided among all students that wait for it. A teacher comes right before the first of these."""
    makers = {trial_id: job for job in jobs for trial_id in job.ids}

    def chain(job: Job) -> list[Job]:
        """The teachers to train before a job, in order."""
        teacher = makers.get(job.teacher)
        return [] if teacher is None else [*chain(teacher), teacher]

    chains = {job: chain(job) for job in jobs}
    shares = Counter(teacher for each in chains.values() for teacher in each)
    own = {job: cost(job) for job in jobs}
    keys = {job: (worth(job), own[job] + sum(own[teacher] / shares[teacher] for teacher in chains[job])) for job in jobs}
    return list(dict.fromkeys(each for job in sorted(jobs, key=keys.__getitem__) for each in (*chains[job], job)))


def worth(job: Job) -> int:
    """0 for a job that fills a table cell with a reported number at the paper's own scale, 1 for any other cell, 2 for none."""
    return min(_worth(trial.paper, trial.budget, trial.arm) for trial in job.cohort.trials)


@cache
def _worth(key: str, budget: str, arm: str) -> int:
    paper = papers.get(key)
    rows = [row for table in paper.tables for row in table["rows"] if row["arm"] == arm]
    if not rows:
        return 2
    # a budget without a scale follows the protocol if it is called paper
    protocol = paper.budget(budget).get("scale", budget) in ("protocol", "paper")
    return 0 if protocol and any(row["paper"] is not None for row in rows) else 1


def seconds(planned: Plan, device: str) -> Callable[[Job], float]:
    """A function that estimates the seconds of a job, from its arms' records on this device, else from ``Paper.work`` at the median
    rate of all records made there (without any, at a rate of 1, which suffices for an order)."""
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
