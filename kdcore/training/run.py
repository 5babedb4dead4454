"""Everything that a trial trains, built but not trained yet, and a forecast of how long training takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdcore.training.context import Context
from kdcore.training.loop import evaluated, fit, train_epoch
from kdcore.training.stage import Stage
from kdcore.training.step import Step


@dataclass
class Run:
    """What a paper's ``prepare`` builds for the trials of a cohort.

    finish: takes the training history and returns, for each trial, {"metrics", "history"} and, for one that teaches, "weights".
    model, stages, evaluate: as ``fit`` takes them. A run without stages (trees, libraries of models) does its work in ``finish``,
    part by part (``Context.keep``), and has an ``estimate()`` of the seconds that it would take on this machine.
    """

    finish: Callable[[list[dict]], list[dict]]
    model: nn.Module | None = None
    stages: Sequence[Stage] = ()
    evaluate: Callable[[], dict] = dict
    estimate: Callable[[], float] | None = None

    def train(self, context: Context) -> list[dict]:
        """Train and return what ``finish`` makes of the history."""
        return self.finish(fit(self.model, self.stages, self.evaluate, context) if self.stages else [])


def forecast(run: Run, context: Context, steps: int = 12) -> float:
    """Seconds that training takes if no stage stops early: extrapolated from ``steps`` timed steps of each stage and one timed
    evaluation of each kind, or the run's own estimate."""
    if run.estimate is not None:
        return run.estimate()

    def timed(work: Callable, *arguments) -> float:
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work(*arguments)
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    total, usual = 0.0, timed(evaluated, run.model, run.evaluate)
    for number, stage in enumerate(run.stages):
        stage.check()
        evaluation = usual if stage.watch is None else timed(evaluated, run.model, stage.watch)
        step = Step(run.model, stage, context.device, context.precision, context.without_graph)
        indices = stage.draw(context.seed, number, 0)
        train_epoch(step, 0, indices[:3])  # the first steps pay for allocation
        count, epochs = min(steps, len(indices)), stage.length(context.seed, number)
        seconds = timed(train_epoch, step, 0, indices[:count])
        measured = sum(stage.measures(epoch, epochs) for epoch in range(epochs))
        total += seconds / count * (stage.steps or epochs * len(indices)) + measured * evaluation
    return total
