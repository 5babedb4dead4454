"""A teacher: frozen, asked once for all students that share a batch, or written down as a table of logits."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from kdcore.data.augment import Views
from kdcore.models.tapped import check_logits, run


def freeze(teacher: nn.Module) -> nn.Module:
    """The teacher in eval mode, its weights out of every gradient."""
    check_module(teacher, "teacher")
    for parameter in teacher.parameters():  # one by one: a scripted module has no requires_grad_
        parameter.requires_grad_(False)
    return teacher.eval()


class Knowledge:
    """What a teacher says of one batch: computed when first asked for, and once for all students that share it.

    teacher: frozen, None where ``logits`` are all that is asked for; x: the batch; logits: [B, C] where they are known, as
    from a table; differentiable: keep the graph back to ``x``, which then is a copy of the batch that asks for a gradient;
    batch_statistics: run the teacher in train mode, so that its BatchNorm takes the batch's statistics and its own drift;
    live: the teacher runs as it is, in whatever mode and with weights that may be training (a student that teaches itself).
    No gradient reaches its weights in any case.

    Raises ValueError for a teacher that is not frozen, unless it is live: in train mode, if only in one of its modules, or
    with parameters that ask for a gradient.
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
            raise ValueError(f"x must be a tensor to be differentiated by, not a {type(x).__name__}")
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
    """A frozen teacher's logits on every view of a set of images, exact up to float16: in its place where its taps are not needed.

    teacher: frozen, on the device of the images; views: what gives the batches; classes: the number of its logits.

    ``table(index, x)``, with int64 index [B, 3 or 4] and x = views(index), gives float32 [B, classes], the ``logits`` of a
    ``Knowledge``. The key is the view (image, dy, dx[, flip]), never a place in a batch. On a CPU the teacher is asked
    for what is not there yet; on a GPU ``fill`` comes first, since a captured step cannot decide whom to ask. ``logits``
    holds all of it: 162 MB for 50,000 images, 162 views and 10 classes, NaN where the teacher was not asked yet.

    Raises ValueError for a teacher that is not frozen (in train mode its logits depend on the batch round an image), or whose
    logits are not [B, classes] or too large for float16; for an index of another number of columns; and for a table on a GPU
    that is read before it is filled.
    """

    def __init__(self, teacher: nn.Module, views: Views, classes: int):
        check_frozen(teacher)
        self.teacher, self.views, self.classes = teacher, views, classes
        self.columns, self.full = 3 + views.flip, False
        shape = (*views.windows.shape[: self.columns], classes)
        self.logits = torch.full(shape, torch.nan, dtype=torch.float16, device=views.windows.device)

    def __call__(self, index: Tensor, x: Tensor) -> Tensor:
        if index.shape[-1] != self.columns:
            raise ValueError(f"an index of this table has {self.columns} columns, not {index.shape[-1]}")
        if not self.full:
            if index.is_cuda:
                raise ValueError("a table on a GPU must be filled before it is read: call fill()")
            missing = self.logits[index.unbind(-1)][:, 0].isnan()
            if missing.any():
                self._ask(index[missing], x[missing])
        return self.logits[index.unbind(-1)].float()

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None, batch_size: int = 1000) -> None:
        """Ask the teacher for every view that is not there yet; progress: called with views done and views to do."""
        places, done = self.logits[..., 0].isnan().nonzero(), 0
        for index in places.split(batch_size):
            self._ask(index, self.views(index))
            done += len(index)
            progress(done, len(places))
        self.full = True

    @torch.no_grad()
    def _ask(self, index: Tensor, x: Tensor) -> None:
        check_frozen(self.teacher)
        # float32, whatever the step that asks trains in: an entry must not depend on who came first
        with torch.autocast(x.device.type, enabled=False):
            logits = check_logits(self.teacher(x), "the teacher").half()
        if logits.shape != (len(index), self.classes):
            raise ValueError(
                f"the teacher's logits are of shape {tuple(logits.shape)}: this table takes {self.classes} for each of {len(x)}"
            )
        if not logits.isfinite().all():
            raise ValueError("the teacher's logits are not finite in float16, which ends at 65504: no table can hold them")
        self.logits[index.unbind(-1)] = logits


class Statistics(nn.Module):
    """A teacher's buffers, the very tensors and no copies: in a checkpoint of the method they are what drifts."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        for name, buffer in teacher.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer)


def check_frozen(teacher: nn.Module) -> None:
    """Raises ValueError for a teacher that would learn, drift or be noisy. A walk over its modules: microseconds, and no sync."""
    if torch.compiler.is_compiling():
        return
    check_module(teacher, "teacher")
    waiting = [teacher]
    for module in waiting:  # grows as it goes: several times as fast as modules() and parameters()
        if module.training:
            raise ValueError(f"the teacher must be in eval mode, but its {type(module).__name__} is in train mode: call freeze(teacher)")
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad:
                raise ValueError(f"the teacher's {type(module).__name__} has parameters that ask for a gradient: call freeze(teacher)")
        if module._modules:
            waiting += [part for part in module._modules.values() if part is not None]


def check_module(net: nn.Module, whose: str) -> None:
    if not isinstance(net, nn.Module):
        raise ValueError(f"a {whose} must be a torch.nn.Module, not {type(net).__name__}")


def recorded(x: Tensor) -> Tensor:
    """A copy of what was made under inference_mode, which no backward pass can keep; all else as it is."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() and not torch.is_inference_mode_enabled() else x


def tapped(net: nn.Module) -> bool:
    """Does it give features and taps? Some networks have a module of the name ``features`` (VGG, DenseNet): they do not."""
    return isinstance(getattr(net, "taps", None), Mapping) and not isinstance(getattr(net, "features", None), nn.Module | None)


def outputs(net: nn.Module, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, Mapping[str, Tensor]]:
    """Logits and taps; of a network without taps, logits alone."""
    if not tapped(net):
        return check_logits(run(net, x), f"the network ({type(net).__name__})"), {}
    return run(net, x, net.features if until is None else partial(net.features, until=until))
