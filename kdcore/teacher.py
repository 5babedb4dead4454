"""Frozen teachers: one forward pass for all students that share a batch, or a table of logits in place of the network."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from kdcore.data.augment import Views
from kdcore.models.tapped import check_logits, run


def freeze(teacher: nn.Module) -> nn.Module:
    """Put the teacher in eval mode, turn off the gradients of its parameters, and return it."""
    check_module(teacher, "teacher")
    for parameter in teacher.parameters():  # one by one: a scripted module has no requires_grad_
        parameter.requires_grad_(False)
    return teacher.eval()


class Knowledge:
    """A teacher's logits and taps for one batch, computed on first use and shared by all students of the batch.

    teacher: frozen; None where ``logits`` suffice. x: the batch. logits: [B, C], if they are known, as from a table.
    differentiable: keep the graph back to ``x``, which then is a copy of the batch that requires a gradient.
    batch_statistics: run the teacher in train mode, so that its BatchNorm uses the batch's statistics and its running
    statistics drift. live: run the teacher as it is, in either mode and with weights that may be training (a student that
    teaches itself). In no case does a gradient reach its weights.

    Raises ValueError for a teacher that is not frozen (any module in train mode, any parameter that requires a gradient),
    unless it is live.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        x: Tensor,
        logits: Tensor | None = None,
        *,
        differentiable: bool = False,
        batch_statistics: bool = False,
        live: bool = False,
    ):
        if teacher is not None and not live:
            check_frozen(teacher)
        if differentiable and not isinstance(x, Tensor):
            raise ValueError(f"a gradient by x needs x to be a tensor, not {type(x).__name__}")
        x = recorded(x)
        self.x = x.detach().requires_grad_() if differentiable else x
        self.teacher, self.known, self.live = teacher, logits, live
        self.differentiable, self.batch_statistics = differentiable, batch_statistics

    @cached_property
    def _outputs(self) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.teacher is None:
            raise ValueError("this stage has no teacher: give one to the method, or logits to the batch's Knowledge")
        if not self.live:
            check_frozen(self.teacher)
        with torch.set_grad_enabled(self.differentiable):
            if not self.batch_statistics:
                return outputs(self.teacher, self.x)
            self.teacher.train()
            try:
                return outputs(self.teacher, self.x)
            finally:
                self.teacher.eval()

    @property
    def logits(self) -> Tensor:
        return self._outputs[0] if self.known is None else self.known

    @property
    def taps(self) -> Mapping[str, Tensor]:
        return self._outputs[1]


class LogitTable:
    """A frozen teacher's logits for every view of a set of images, to float16 precision. It replaces a teacher whose taps are not
    needed.

    teacher: frozen, on the device of the images; views: makes the batches; classes: number of the teacher's logits.

    ``table(index, x)``, with int64 index [B, 3 or 4] and x = views(index), gives float32 [B, classes], the ``logits`` of a
    ``Knowledge``. Entries are looked up by view (image, dy, dx[, flip]), never by position in a batch. On a CPU, missing
    entries are computed when they are looked up; on a GPU, call ``fill`` first, since a captured step cannot branch.
    ``logits`` holds the table: 162 MB for 50,000 images, 162 views and 10 classes; missing entries are NaN.

    Raises ValueError for a teacher that is not frozen (in train mode its logits depend on the rest of the batch), for logits
    that are not [B, classes] or too large for float16, for an index with a different number of columns, and for reading a
    table on a GPU before it is filled.
    """

    def __init__(self, teacher: nn.Module, views: Views, classes: int):
        check_frozen(teacher)
        self.teacher, self.views, self.classes = teacher, views, classes
        self.columns, self.full = 3 + views.flip, False
        shape = (*views.windows.shape[: self.columns], classes)
        self.logits = torch.full(shape, torch.nan, dtype=torch.float16, device=views.windows.device)

    def __call__(self, index: Tensor, x: Tensor) -> Tensor:
        if index.shape[-1] != self.columns:
            raise ValueError(f"this table takes an index of {self.columns} columns, not {index.shape[-1]}")
        if not self.full:
            if index.is_cuda:
                raise ValueError("a table on a GPU must be filled before it is read: call fill()")
            missing = self.logits[index.unbind(-1)][:, 0].isnan()
            if missing.any():
                self._ask(index[missing], x[missing])
        return self.logits[index.unbind(-1)].float()

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None, batch_size: int = 1000) -> None:
        """Compute every missing entry; progress: called with the number of views done and to do."""
        places, done = self.logits[..., 0].isnan().nonzero(), 0
        for index in places.split(batch_size):
            self._ask(index, self.views(index))
            done += len(index)
            progress(done, len(places))
        self.full = True

    @torch.no_grad()
    def _ask(self, index: Tensor, x: Tensor) -> None:
        check_frozen(self.teacher)
        # float32 even under autocast: an entry must not depend on which step computed it
        with torch.autocast(x.device.type, enabled=False):
            logits = check_logits(self.teacher(x), "the teacher").half()
        if logits.shape != (len(index), self.classes):
            raise ValueError(
                f"the teacher's logits have shape {tuple(logits.shape)}: this table takes {self.classes} for each of {len(x)} cases"
            )
        if not logits.isfinite().all():
            raise ValueError("the teacher's logits are not finite in float16 (at most 65504): a table cannot hold them")
        self.logits[index.unbind(-1)] = logits


class Statistics(nn.Module):
    """A teacher's buffers (the tensors themselves, not copies), so that a checkpoint of the method includes their drift."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        for name, buffer in teacher.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer)


def check_frozen(teacher: nn.Module) -> None:
    """Raises ValueError for a teacher that would learn, drift or be noisy. Walks over its modules: microseconds, no host sync."""
    if torch.compiler.is_compiling():
        return
    check_module(teacher, "teacher")
    waiting = [teacher]
    for module in waiting:  # grows during the loop: several times as fast as modules() and parameters()
        if module.training:
            raise ValueError(f"the teacher must be in eval mode, but its {type(module).__name__} is in train mode: call freeze(teacher)")
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                raise ValueError(f"the teacher's {type(module).__name__} has parameters that require a gradient: call freeze(teacher)")
        if module._modules:
            waiting += [part for part in module._modules.values() if part is not None]


def check_module(net: nn.Module, whose: str) -> None:
    if not isinstance(net, nn.Module):
        raise ValueError(f"a {whose} must be a torch.nn.Module, not {type(net).__name__}")


def recorded(x: Tensor) -> Tensor:
    """``x`` itself, or a copy if it was made under inference_mode, since autograd cannot save such tensors."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() and not torch.is_inference_mode_enabled() else x


def tapped(net: nn.Module) -> bool:
    """Whether the network gives features and taps. A module that is merely named ``features`` (VGG, DenseNet) does not count."""
    return isinstance(getattr(net, "taps", None), Mapping) and not isinstance(getattr(net, "features", None), nn.Module | None)


def outputs(net: nn.Module, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, Mapping[str, Tensor]]:
    """Logits and taps; no taps for a network without them. until: taps at which the forward pass may end."""
    if not tapped(net):
        return check_logits(run(net, x), f"the network ({type(net).__name__})"), {}
    return run(net, x, net.features if until is None else partial(net.features, until=until))
