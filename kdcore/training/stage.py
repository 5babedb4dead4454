"""A stage: one optimisation, with its loss, what it trains, and how."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def seed_of(*parts) -> int:
    """A 63-bit seed that depends on every part: ``seed_of(3, "order", 0, 17)``.

    All randomness of a run is drawn from generators seeded so, anew for each epoch: no random state has to be carried
    from one epoch to the next, which is what makes a resumed run equal to one that was never interrupted.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


@dataclass
class Stage:
    """One optimisation stage.

    A method gives what it is: name, loss, parameters, knobs; a loop of your own needs no more. ``fit`` also needs to know how it is
    trained: ``dataclasses.replace(stage, epochs=90, indices=..., batch=..., schedule=...)``.

    name: shown in progress and history.
    loss: of a batch, ``loss(*batch)`` -> a scalar, or one value for each member of a stack ([K]).
    parameters: what is trained; all of the model for None. The others are left alone, weight decay included.
    knobs: 0-dim tensors that the loss reads and the schedule moves, such as the weight of a term.

    epochs: passes over what ``indices`` gives; or None, and ``steps``: updates, the last epoch being cut short.
    indices: generator -> int64 [steps, ...]: what one epoch sees, one row a step (case numbers, shifts, ...). Every
        epoch has as many.
    batch: one such row, on the device -> the arguments of ``loss``; the row itself for None.
    schedule: epoch, or step where the length is given in steps (0, 1, ...) -> {"lr": ...} and, where they move,
        {"momentum": ..., knob: ...}.
    rule: the optimiser's class, ``torch.optim.SGD``, ``RMSprop`` or ``Adam``.
    optimiser: its settings: momentum, weight_decay, nesterov of SGD; alpha, eps of RMSprop; betas of Adam.
    rate_factors: of the learning rate, one for each of ``parameters``; 1 for None.
    clip: largest norm of the gradient of all parameters together.
    watch: what is measured between epochs, in place of ``fit``'s evaluate.
    measured: the epochs (0, 1, ...) that end with a measurement, each one for None; the last always does, and each where ``stop`` asks.

    before_epoch: called with the ``Step`` and the epoch before the epoch's first update, e.g. for a fresh optimiser.
    after_step: called after each update, e.g. to limit norms.
    stop: asked after each epoch with the history so far, the stage's own rows last; True ends the stage before its
        epochs are over. It must depend on the history alone, so that a resumed run ends where an uninterrupted one does.
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
        """Raises ValueError where ``fit`` would not know how to train it."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage '{self.name}' needs either epochs or steps")
        for key in ("indices", "schedule"):
            if getattr(self, key) is None:
                raise ValueError(f"stage '{self.name}' has no {key}: dataclasses.replace(stage, {key}=...)")

    def loss_of(self, index: Tensor) -> Tensor:
        """The loss of one row of ``indices``."""
        return self.loss(*((index,) if self.batch is None else self.batch(index)))

    def draw(self, seed: int, number: int, epoch: int) -> Tensor:
        """What an epoch sees, and the noise (dropout) that it will see: both follow from seed, number of the stage and epoch alone."""
        torch.manual_seed(seed_of(seed, "noise", number, epoch))
        return self.indices(torch.Generator().manual_seed(seed_of(seed, "order", number, epoch)))

    def length(self, seed: int, number: int) -> int:
        """Its epochs, where it does not stop before."""
        return self.epochs if self.steps is None else math.ceil(self.steps / len(self.draw(seed, number, 0)))

    def measures(self, epoch: int, epochs: int) -> bool:
        """Whether the epoch with this number (0, 1, ...), of so many, ends with a measurement."""
        return self.measured is None or epoch in self.measured or epoch + 1 == epochs or self.stop is not None
