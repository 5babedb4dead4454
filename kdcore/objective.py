"""The loss of a stage: a weighted sum of terms, each a function of one batch and the networks' outputs for it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdcore import losses
from kdcore.models.tapped import STAGE_LOSS, check_trainable, compiled, distributed
from kdcore.teacher import Knowledge, check_frozen, outputs, recorded


class Batch:
    """One batch as a term of a loss sees it: x, labels, the student's logits and taps, the teacher's knowledge, connectors.

    until: taps at which the student's forward pass ends; logits are then None. connectors: those of the stage.
    """

    def __init__(
        self,
        student: nn.Module,
        x: Tensor,
        labels: Tensor,
        teacher: Knowledge,
        until: Sequence[str] | None = None,
        connectors: Sequence[nn.Module] = (),
    ):
        self.student, self.x, self.labels, self.teacher, self.connectors = student, x, labels, teacher, connectors
        self.logits, self.taps = outputs(student, x, until)

    def own(self, tap: str) -> Tensor:
        """The student's tensor at a tap. Raises ValueError if no gradient of the tap reaches a parameter of the student."""
        if tap not in self.taps:
            raise ValueError(f"the student has no tap '{tap}': choose one of {', '.join(self.taps)}")
        tensor = self.taps[tap]
        if torch.is_grad_enabled() and not tensor.requires_grad:
            raise ValueError(f"no gradient of the student reaches tap '{tap}': {WITHOUT_GRADIENT}")
        return tensor


Term = Callable[[Batch], Tensor]


WITHOUT_GRADIENT = "the layers before it are frozen, run under no_grad, or are checkpointed without use_reentrant=False"


class Objective:
    """The loss of a stage, a weighted sum of terms, and the parameters that it trains.

    terms: pairs of a weight (0 or more, or a 0-dim tensor that a schedule sets) and a function, Batch -> scalar. parameters:
    those to train; any that do not require a gradient now are left out. until: the student's taps that the terms read, if
    they read no logits: layers after the last of these do not run. input_gradient: the terms differentiate the networks'
    outputs by the images. batch_statistics: the teacher runs in train mode. live_teacher: the teacher is not frozen but runs
    as it is, as in ``Knowledge``, and may be the student itself. connectors: available to the terms as ``Batch.connectors``.

    Raises ValueError for an empty list of terms, a weight out of range, a stage that would train no parameter of the student,
    a teacher that is not frozen, and a wrapped student (DistributedDataParallel, compiled) that the stage cannot train correctly.
    """

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[tuple[float | Tensor, Term]],
        parameters: Sequence[nn.Parameter],
        *,
        until: Sequence[str] | None = None,
        input_gradient: bool = False,
        batch_statistics: bool = False,
        live_teacher: bool = False,
        connectors: Sequence[nn.Module] = (),
    ):
        if teacher is not None and not live_teacher:
            check_frozen(teacher)
        check_trainable(student, "student")
        if input_gradient and teacher is not None:
            check_trainable(teacher, "teacher")
        if not terms or not all(isinstance(term, Sequence) and len(term) == 2 and callable(term[1]) for term in terms):
            raise ValueError(f"stage '{name}' needs a list of terms: give at least one (weight, function of a Batch)")
        for weight, _ in terms:
            losses.check_number(f"a weight of stage '{name}'", weight)
        if until is not None or input_gradient:
            if distributed(student):
                raise ValueError(f"DistributedDataParallel does not see every forward pass of stage '{name}': {STAGE_LOSS}")
            if input_gradient and any(compiled(module) for net in (student, teacher) if net is not None for module in net.modules()):
                raise ValueError(f"stage '{name}' differentiates twice, which a compiled network cannot: give it before torch.compile")
        self.name, self.student, self.teacher, self.terms = name, student, teacher, list(terms)
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        own = {id(parameter) for parameter in student.parameters()}
        if not any(id(parameter) in own for parameter in self.parameters):
            where = f" before tap {' or '.join(map(repr, until))}" if until is not None else ""
            raise ValueError(
                f"stage '{name}' would train nothing of the student: it has no parameter{where} that requires a gradient"
                + (f" ({WITHOUT_GRADIENT})" if until is not None else "")
            )
        self.until, self.connectors = until, connectors
        self.input_gradient, self.batch_statistics, self.live_teacher = input_gradient, batch_statistics, live_teacher

    def __getstate__(self) -> dict:
        for _, term in self.terms:
            for cell in getattr(term, "__closure__", None) or ():
                if isinstance(cell.cell_contents, nn.Module | Tensor):
                    raise ValueError(
                        f"a term of stage '{self.name}' holds a {type(cell.cell_contents).__name__} that a copy would share: "
                        "make it one of the stage's connectors, or bind it with functools.partial"
                    )
        return self.__dict__

    def __call__(self, x: Tensor, labels: Tensor, knowledge: Knowledge | None = None) -> Tensor:
        """The loss of a batch: a scalar, or [K] if the student is a stack of K nets. x [B, ...], labels int64 [B];
        knowledge: the teacher's, of the same batch; None: made here, with the options that the stage needs.

        Raises ValueError for a teacher that is no longer frozen, for knowledge without the batch statistics that the stage
        needs, and, if gradients are recorded, for a loss that depends on no trainable parameter.
        """
        if knowledge is None:
            knowledge = Knowledge(
                self.teacher, x, differentiable=self.input_gradient, batch_statistics=self.batch_statistics, live=self.live_teacher
            )
        elif self.batch_statistics and not knowledge.batch_statistics:
            raise ValueError(f"stage '{self.name}' needs the batch's statistics: Knowledge(teacher, x, batch_statistics=True)")
        batch = Batch(self.student, knowledge.x if self.input_gradient else recorded(x), labels, knowledge, self.until, self.connectors)
        loss = sum(weight * term(batch) for weight, term in self.terms)
        if not isinstance(loss, Tensor) or loss.shape != ((members,) if (members := getattr(self.student, "members", None)) else ()):
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the terms of stage '{self.name}' must be scalars, not {shape}: take the mean over cases")
        if torch.is_grad_enabled() and not (loss.requires_grad and any(parameter.requires_grad for parameter in self.parameters)):
            raise ValueError(f"the loss of stage '{self.name}' depends on no parameter that requires a gradient: was the student frozen?")
        return loss
