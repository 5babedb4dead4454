"""``fit()``, the one training loop: stages, schedules, exact resume, no host sync within an epoch."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdcore import validation
from kdcore.errors import Paused, TrialFailed
from kdcore.training.checkpoint import Checkpoint
from kdcore.training.context import Context
from kdcore.training.stage import Stage
from kdcore.training.step import Step

# Writing a checkpoint costs tens of milliseconds, so not more often than this (tests may set 0).
CHECKPOINT_SECONDS = validation.environment_seconds("KDCORE_CHECKPOINT_SECONDS", 10)


def fit(model: nn.Module, stages: Sequence[Stage], evaluate: Callable[[], dict] = dict, context: Context | None = None) -> list[dict]:
    """Train ``model`` through ``stages`` and return the history, one dict per epoch.

    model: on the context's device; holds everything that any stage trains.
    evaluate: called between epochs (``Stage.measured``) in eval mode, without gradients; its result is added to the epoch's
        row, tensors as lists.
    context: seed, device, the checkpoint folder (saved to at most every ``CHECKPOINT_SECONDS``, and always before a pause),
        and the deadline, as time.time(), after which no further epoch starts.

    A row holds stage, epoch (from 1 in each stage), lr, loss (mean over the epoch; a list for a stack) and evaluate's
    entries. Raises TrialFailed("nan") if the loss stops being finite, Paused at the deadline or on SIGTERM/SIGINT, and
    ValueError for a stage that lacks epochs or steps, indices or a schedule.
    """
    context = context or Context()
    for stage in stages:
        stage.check()
    saved = Checkpoint(context.checkpoint, context.say)
    history, optimiser_state, spent = saved.load(model)
    if spent:
        context.resume(spent)
    # Seeds of batch order and noise count stages from the last (0), so that the last stage sees the same ones in every arm.
    numbers = range(len(stages) - 1, -1, -1)
    lengths = [stage.length(context.seed, number) for number, stage in zip(numbers, stages, strict=True)]
    step, last_save, longest = None, time.monotonic(), 0.0
    with _signals() as interrupt:
        for place, epoch in _epochs_left(stages, lengths, history):
            started, stage = time.monotonic(), stages[place]
            if step is None or step.stage is not stage:
                step = Step(model, stage, context.device, context.precision, context.without_graph)
                if epoch > 0:  # the run was interrupted in the middle of a stage
                    step.load(optimiser_state)
            if stage.before_epoch is not None:
                stage.before_epoch(step, epoch)
            loss = train_epoch(step, epoch, stage.draw(context.seed, numbers[place], epoch))
            if not all(math.isfinite(each) for each in (loss if isinstance(loss, list) else [loss])):
                raise TrialFailed("nan", f"the loss is not finite in epoch {epoch + 1} of stage '{stage.name}': lower the learning rate")
            row = {"stage": stage.name, "epoch": epoch + 1, "lr": step.values["lr"], "loss": loss}
            if stage.measures(epoch, lengths[place]):
                row |= evaluated(model, stage.watch or evaluate)
            history.append(row)
            if stage.stop is not None and stage.stop(history):
                lengths[place] = epoch + 1
            context.report(row | {"done": len(history), "total": sum(lengths)})
            longest = max(longest, time.monotonic() - started)
            finished = len(history) == sum(lengths)
            pause = not finished and (interrupt.requested or time.time() + longest > context.deadline)
            if pause or finished or time.monotonic() - last_save >= CHECKPOINT_SECONDS:
                saved.save(model, step, history, context.spent())
                last_save = time.monotonic()
            if pause:
                raise Paused
    return history


def _epochs_left(stages: Sequence[Stage], lengths: list[int], history: list[dict]) -> Iterator[tuple[int, int]]:
    """(index of the stage, epoch) for each epoch that has no row in the history yet.

    The caller trains the epoch, adds its row and, where the stage stops early, shortens its entry in ``lengths``. For rows
    that were loaded, this function shortens it.
    """
    before = 0  # rows of earlier stages
    for place, stage in enumerate(stages):
        epoch = 0
        while epoch < lengths[place]:
            if before + epoch == len(history):
                yield place, epoch
            elif stage.stop is not None and stage.stop(history[: before + epoch + 1]):
                lengths[place] = epoch + 1
            epoch += 1
        before += epoch


def train_epoch(step: Step, epoch: int, indices: Tensor) -> float | list[float]:
    """Train one epoch of a stage on the rows of ``indices`` and return its mean loss, a list for a stack."""
    stage, total = step.stage, None
    first = epoch * len(indices)  # steps before this epoch
    rows = indices[: None if stage.steps is None else stage.steps - first]
    step.model.train()
    if stage.steps is None:
        step.set(stage.schedule(epoch))
    for number, index in enumerate(rows.to(step.device, non_blocking=True).unbind(0), first):
        if stage.steps is not None:
            step.set(stage.schedule(number))
        loss = step(index)
        # on the device: the host reads one number per epoch; a copy, since a graph writes every loss to the same tensor
        total = loss.to(torch.float64, copy=True) if total is None else total.add_(loss)
    return (total / len(rows)).tolist()


def evaluated(model: nn.Module, evaluate: Callable[[], dict]) -> dict:
    """The result of ``evaluate``, called in eval mode and without gradients, with tensors as lists."""
    model.eval()
    with torch.no_grad():
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in evaluate().items()}


class _Interrupt:
    requested = False


@contextmanager
def _signals():
    """Turn SIGTERM and SIGINT into a request to pause after the epoch (only the main thread can handle signals)."""
    interrupt, old = _Interrupt(), {}

    def request(*_):
        interrupt.requested = True

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, request)
    except ValueError:
        pass
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
