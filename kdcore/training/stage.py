"""A stage: one optimisation phase, with its loss, the parameters it trains, and how it trains them."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def seed_of(*parts) -> int:
    """A 63-bit seed that depends on every part: ``seed_of(3, "order", 0, 17)``.

    All generators of a run are seeded this way at the start of each epoch. No random state is carried from one epoch to the
    next, so a resumed run equals one that was never interrupted.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


@dataclass
class Stage:
    """One optimisation phase of a method.

    A method sets name, loss, parameters and knobs, all that your own training loop needs. ``fit`` also needs to know how to
    train: ``dataclasses.replace(stage, epochs=90, indices=..., batch=..., schedule=...)``.

    name: shown in progress and history.
    loss: ``loss(*batch)`` -> a scalar, or one value for each member of a stack, [K].
    parameters: those to train; None: all of the model's. The others are left alone, weight decay included.
    knobs: 0-dim tensors that the loss reads and the schedule sets, such as the weight of a term.

    epochs: number of passes over ``indices``; or None, and steps: number of updates, where the last epoch may be cut short.
    indices: generator -> int64 [steps, ...], what one epoch sees: one row per step (case numbers, shifts, ...). Every epoch
        has the same number of rows.
    batch: one such row, on the device -> the arguments of ``loss``; None: the row itself is the argument.
    schedule: epoch (or step, if the length is given in steps), from 0 -> {"lr": ...} and, where they change,
        {"momentum": ..., knob: ...}.
    rule: the optimiser's class: ``torch.optim.SGD``, ``RMSprop`` or ``Adam``.
    optimiser: its settings: momentum, weight_decay, nesterov of SGD; alpha, eps of RMSprop; betas of Adam.
    rate_factors: one factor of the learning rate for each of ``parameters``; None: all 1.
    clip: largest norm of the gradient over all parameters.
    watch: called between epochs in place of ``fit``'s evaluate.
    measured: the epochs, from 0, after which to evaluate; None: all of them. The last is always evaluated, and with ``stop``
        every one is.

    before_epoch: called with the ``Step`` and the epoch before the epoch's first update, e.g. to reset the optimiser.
    after_step: called after each update, e.g. to limit norms.
    stop: called after each epoch with the history so far, whose last rows are this stage's; True ends the stage early. It
        must depend on the history alone, so that a resumed run ends where an uninterrupted one does.
    """

    name: str
    loss: Callable[..., Tensor]
    parameters: Iterable[nn.Parameter] | None = None
    knobs: Mapping[str, Tensor] = field(default_factory=dict)

    epochs: int | None = None
    steps: int | None = None
    indices: Callable[[torch.Generator], Tensor] | None = None
    batch: Callable[[Tensor], tuple] | None = None
    schedule: Callable[[int], Mapping[str, float]] | None = None
    rule: type[torch.optim.Optimizer] = torch.optim.SGD
    optimiser: Mapping[str, float] = field(default_factory=dict)
    rate_factors: Sequence[float] | None = None
    clip: float | None = None
    watch: Callable[[], dict] | None = None
    measured: Collection[int] | None = None

    before_epoch: Callable[["Step", int], None] | None = None  # noqa: F821 (step.py imports this module)
    after_step: Callable[[], None] | None = None
    stop: Callable[[list[dict]], bool] | None = None

    def check(self) -> None:
        """Raises ValueError if ``fit`` lacks something it needs to train the stage."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage '{self.name}' needs either epochs or steps")
        if (self.epochs if self.steps is None else self.steps) < 1:
            raise ValueError(f"stage '{self.name}' would train nothing: it has no epoch and no step")
        for key in ("indices", "schedule"):
            if getattr(self, key) is None:
                raise ValueError(f"stage '{self.name}' has no {key}: dataclasses.replace(stage, {key}=...)")

    def loss_of(self, index: Tensor) -> Tensor:
        """The loss of one row of ``indices``."""
        return self.loss(*((index,) if self.batch is None else self.batch(index)))

    def draw(self, seed: int, number: int, epoch: int) -> Tensor:
        """The indices of an epoch; also seeds its noise (dropout). Both depend only on seed, number of the stage and epoch."""
        torch.manual_seed(seed_of(seed, "noise", number, epoch))
        return self.indices(torch.Generator().manual_seed(seed_of(seed, "order", number, epoch)))

    def length(self, seed: int, number: int) -> int:
        """Number of epochs, unless the stage stops early."""
        return self.epochs if self.steps is None else math.ceil(self.steps / len(self.draw(seed, number, 0)))

    def measures(self, epoch: int, epochs: int) -> bool:
        """Whether to evaluate after this epoch (from 0) out of ``epochs``."""
        return self.measured is None or epoch in self.measured or epoch + 1 == epochs or self.stop is not None
