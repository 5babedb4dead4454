"""Taps of any PyTorch network, and which layers of two networks match."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kdcore.models.network import Reached, Tap, Taps

STAGE_LOSS = (
    "build the method on the network itself and wrap the loss of the stage, "
    "DistributedDataParallel(methods.StageLoss(method, stage), find_unused_parameters=True)"
)


class Tapped(nn.Module):
    """Any network with taps of your choice: ``Tapped(resnet18(), {"layer3": "layer3"}, torch.zeros(1, 3, 224, 224))``.

    modules: {tap: dotted name of a submodule}, whose output is the tap: a map [B, C, H, W], a vector [B, C], or the tokens
    [B, N, C] of a transformer. example: a batch of one image (or sequence), on the network's device, from which the taps'
    shapes are read, and which parameters each depends on. output: what makes the logits [B, C] of what the network returns,
    where that is no tensor: ``output=lambda out: out["logits"]`` (a named function, if the network is to be pickled).

    The example is run in eval mode. Nothing of the network is changed by it: modes (module by module), buffers, gradients,
    ``requires_grad`` and the random state are as they were. ``suggest`` lists the layers of two networks that match.

    Raises ValueError for a name that the network does not have, a module that does not run, or more than once in a forward
    pass, an output that is no map, vector or tokens or that a later layer overwrites, a network that returns no tensor, and
    taps inside a compiled or scripted module or DataParallel, whose submodules cannot be watched. Also for an example on
    which the network does not run, and a network that was made under ``torch.inference_mode`` or has lazy parameters.
    """

    def __init__(self, net: nn.Module, modules: Mapping[str, str], example: Tensor, *, output: Callable[..., Tensor] | None = None):
        super().__init__()
        check_trainable(net, "network")
        if not isinstance(modules, Mapping) or not all(isinstance(word, str) for pair in modules.items() for word in pair):
            raise ValueError(f"the taps must be a dict {{name of a tap: dotted name of a module}}, not {modules!r}")
        if not (output is None or callable(output)):
            raise ValueError(f"output= must be a function, which makes the logits of what the network returns, not {output!r}")
        self.net, self.sources, self.output = net, dict(modules), output
        known = [name for name, _ in net.named_modules() if name]
        for name in modules.values():
            if name not in known:
                raise ValueError(f"the network has no module '{name}': choose one of {', '.join(known)}")
            _check_watchable(net, name)
        self.taps: dict[str, Tap] = {}
        self._depends: dict[str, set[str]] = {}
        self.training = net.training
        bare = net.module if isinstance(net, DistributedDataParallel) else net  # its own forward pass would talk to other processes
        with _undisturbed(net):
            example = example.clone() if isinstance(example, Tensor) and example.is_inference() else example
            found = self._run(bare, example, None, example=True)[1]
            for tap, name in modules.items():
                _check_tensor(name, net.get_submodule(name), found[tap], example)
                reached = self._run(bare, example, [tap])[1][tap]
                if reached._version != found[tap]._version:
                    raise ValueError(f"the output of '{name}' is overwritten in place by what follows: tap that, or make it not in place")
                self.taps[tap] = Tap.of(reached.shape[1:])
                self._depends[tap] = _sources(reached, net)

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(run(self.net, x))

    def features(self, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and the taps. until: taps; the pass stops at the last of them, and the logits are None.

        Raises ValueError for an unknown tap, and for ``until`` where DistributedDataParallel is inside: it synchronises
        only passes that it sees the end of.
        """
        if until is not None:
            for tap in until:
                if tap not in self.taps:
                    raise ValueError(f"no tap '{tap}': choose one of {', '.join(self.taps)}")
            if distributed(self.net):
                raise ValueError(f"a pass that ends at a tap is not synchronised by DistributedDataParallel: {STAGE_LOSS}")
        return self._run(self.net, x, until)

    def _run(
        self, net: nn.Module, x: Tensor, until: Sequence[str] | None, *, example: bool = False
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        taps, again = Taps(until), []

        def keep(tap: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if tap in taps:
                again.append(self.sources[tap])
            else:
                taps[tap] = output

        hooks = [self.net.get_submodule(name).register_forward_hook(partial(keep, tap)) for tap, name in self.sources.items()]
        try:
            returned = run(net, x, example=example)
        except Reached:
            return None, taps
        finally:
            for hook in hooks:
                hook.remove()
        if again:
            raise ValueError(f"module '{again[0]}' runs more than once in a forward pass: tap one that runs once")
        logits = self._logits(returned)
        for tap, name in self.sources.items():
            if tap not in taps:
                raise ValueError(f"module '{name}' did not run in a forward pass: tap one that always runs")
        return logits, taps

    def _logits(self, returned) -> Tensor:
        try:
            logits = returned if self.output is None else self.output(returned)
        except (AttributeError, LookupError, TypeError) as error:
            what = f"output= does not fit what the network returns, a {type(returned).__name__}"
            raise ValueError(f"{what} ({type(error).__name__}: {error})") from error
        return check_logits(logits, "the network" if self.output is None else "output=")

    def parameters_before(self, tap: str) -> list[nn.Parameter]:
        """The parameters that the tensor of ``tap`` depends on, frozen or not. Raises ValueError for an unknown tap."""
        if tap not in self.taps:
            raise ValueError(f"no tap '{tap}': choose one of {', '.join(self.taps)}")
        return [parameter for name, parameter in self.net.named_parameters() if name in self._depends[tap]]

    @staticmethod
    def suggest(student: nn.Module, teacher: nn.Module, example: Tensor) -> "Matches":
        """The layers of two networks that could be tapped, in the order in which they run, each beside its match.

            print(Tapped.suggest(resnet18(), resnet34(), torch.zeros(1, 3, 224, 224)))

        example: a batch of one image or sequence that both take. Returns a list of ``Match`` rows that prints as a table. A
        layer's match has the same resolution (height and width, or number of tokens): among those of its type, or else
        those that consist of layers as it does or does not, the one at the same relative depth. Layers that run twice, are
        overwritten in place or give no map, vector or tokens are left out, and so are dropout and identities.
        """
        check_trainable(student, "student"), check_trainable(teacher, "teacher")
        own, others = _layers(student, example), _layers(teacher, example)
        pairs = {}
        for kind in (lambda module: type(module), lambda module: any(module.children())):
            rest = {name: layer for name, layer in own.items() if name not in pairs}
            pairs |= _aligned(rest, others, kind)
        rows = []
        for name, (_, shape) in own.items():
            other = pairs.get(name)
            rows.append(Match(name, shape, other, None if other is None else others[other][1]))
        matched = set(pairs.values())
        return Matches(rows + [Match(None, None, name, shape) for name, (_, shape) in others.items() if name not in matched])


class Match(NamedTuple):
    """A layer of the student and one of the teacher, with the shape of one case; None on a side without a match."""

    student: str | None
    student_shape: tuple[int, ...] | None
    teacher: str | None
    teacher_shape: tuple[int, ...] | None

    @property
    def match(self) -> str:
        """ "same shape", "same resolution" or "" for none."""
        if self.student is None or self.teacher is None:
            return ""
        return "same shape" if self.student_shape == self.teacher_shape else "same resolution"


class Matches(list):
    """Rows of ``Match``; as a string, a table."""

    def __str__(self) -> str:
        def size(shape: tuple[int, ...] | None) -> str:
            return "" if shape is None else " x ".join(map(str, shape))

        rows = [("student", "shape", "teacher", "shape", "match")]
        rows += [(row.student or "", size(row.student_shape), row.teacher or "", size(row.teacher_shape), row.match) for row in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def check_logits(logits, whose: str) -> Tensor:
    """``logits`` itself. Raises ValueError for what is no tensor, and says how to make it one."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{whose} returns a {type(logits).__name__}, not the logits: wrap the network in Tapped(net, taps, example, output=...), "
            'such as output=lambda out: out["logits"]'
        )
    return logits


def check_trainable(net: nn.Module, whose: str) -> None:
    """Raises ValueError for what is no network, and for one whose parameters no gradient can reach or have no shape yet."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"a {whose} must be a torch.nn.Module, not {type(net).__name__}")
    for parameter in net.parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"the {whose} has lazy parameters, of no shape yet: run it once on a batch before")
        if parameter.is_inference():
            raise ValueError(f"the {whose} was made under torch.inference_mode, where no gradient reaches it: make it outside")


def run(net: nn.Module, x: Tensor, call: Callable | None = None, *, example: bool = False):
    """``net(x)``, or ``call(x)``. Raises ValueError where it fails since x is of another type or on another device than its
    weights, and, on an ``example``, wherever it fails."""
    try:
        return net(x) if call is None else call(x)
    except Reached:
        raise
    except Exception as error:
        whose, like = f"the network ({type(net).__name__})", next((each for each in net.parameters() if each.is_floating_point()), None)
        if not isinstance(x, Tensor) and not isinstance(error, ValueError):
            raise ValueError(f"{whose} does not run on a {type(x).__name__}: give it a tensor ({_first_line(error)})") from error
        if isinstance(x, Tensor) and like is not None:
            autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
            if x.device != like.device or (x.is_floating_point() and x.dtype != like.dtype and not autocast):
                mine, theirs = (f"{str(each.dtype).removeprefix('torch.')} on {each.device}" for each in (like, x))
                raise ValueError(f"{whose} is {mine}, what it is given is {theirs}: bring both to one type and device") from error
        if example:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{whose} does not run on an example of shape {shape} ({_first_line(error)}): give a batch as it takes"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def distributed(net: nn.Module) -> bool:
    """Is ``net``, or a part of it, wrapped in DistributedDataParallel?"""
    return any(isinstance(module, DistributedDataParallel) for module in net.modules())


def compiled(module: nn.Module) -> bool:
    """Is it what ``torch.compile`` makes of a module, or was it compiled in place?"""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _check_watchable(net: nn.Module, name: str) -> None:
    module = net
    for part in (None, *name.split(".")):
        module = module if part is None else module._modules[part]
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"'{name}' cannot be tapped inside a scripted or traced module: tap the network as it was before torch.jit")
        if compiled(module):
            raise ValueError(f"'{name}' cannot be tapped inside a compiled module: tap the network as it was before torch.compile")
        if isinstance(module, DataParallel):
            raise ValueError(f"'{name}' cannot be tapped inside DataParallel, which runs copies of it: {STAGE_LOSS}")


def _check_tensor(name: str, module: nn.Module, output, example: Tensor) -> None:
    """Raises ValueError for an output that is no map [B, C, H, W], vector [B, C] or tokens [B, N, C]."""
    what = f"the output of '{name}' is neither a map [B, C, H, W] nor a vector [B, C] nor tokens [B, N, C]"
    if not isinstance(output, Tensor):
        raise ValueError(f"{what} but a {type(output).__name__}: tap a module inside it that returns one tensor")
    if output.dim() not in (2, 3, 4) or len(output) != len(example):
        raise ValueError(f"{what} but of shape {tuple(output.shape)} for {len(example)} cases")
    if output.dim() == 3 and type(module).__name__.endswith("1d"):
        raise ValueError(f"{what} but a sequence [B, C, N]: tap a module after which its channels come last")


@contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """``net`` in eval mode, every parameter asking for a gradient; then all as it was, random state and buffers included."""
    modes = [(module, module.training) for module in net.modules()]
    asking = [(parameter, parameter.requires_grad) for parameter in net.parameters() if parameter.is_floating_point()]
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device.index for tensor in (*net.parameters(), *net.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.enable_grad():
            for module, _ in modes:
                module.training = False
            for parameter, _ in asking:
                parameter.requires_grad_(True)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, asked in asking:
            parameter.requires_grad_(asked)
        with torch.no_grad():
            for module, name, buffer, version, before in buffers:
                module._buffers[name] = buffer if buffer._version == version else buffer.copy_(before)


def _sources(output: Tensor, net: nn.Module) -> set[str]:
    """Names of the parameters of ``net`` that ``output`` was computed from."""
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if not output.requires_grad:
        return set()
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _layers(net: nn.Module, example: Tensor) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Modules that could be tapped, with the shape of one case, in the order in which they end."""
    found: dict[str, list] = {}

    def keep(name: str, module: nn.Module, inputs: tuple, output) -> None:
        found.setdefault(name, []).append((module, output, output._version if isinstance(output, Tensor) else None))

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in net.named_modules()
        if name and not isinstance(module, nn.Dropout | nn.Identity | torch.jit.ScriptModule)
    ]
    try:
        with _undisturbed(net):
            run(net, example, example=True)
    finally:
        for hook in hooks:
            hook.remove()
    layers = {}
    for name, ((module, output, version), *again) in found.items():
        try:
            _check_watchable(net, name)
            _check_tensor(name, module, output, example)
        except ValueError:
            continue
        if not again and output._version == version:
            layers[name] = module, tuple(output.shape[1:])
    return layers


def _aligned(own: Mapping, others: Mapping, kind: Callable[[nn.Module], object]) -> dict[str, str]:
    """For each layer the other network's of the same resolution and ``kind``, at the same relative depth among them."""

    def groups(layers: Mapping) -> dict[tuple, list[str]]:
        found: dict[tuple, list[str]] = {}
        for name, (module, shape) in layers.items():
            sides = shape[1:] if len(shape) == 3 else shape[:-1]  # of a map; number of tokens; nothing of a vector
            found.setdefault((len(shape), *sides, kind(module)), []).append(name)
        return found

    pairs, theirs = {}, groups(others)
    for key, names in groups(own).items():
        if key in theirs:
            # counted from the end: the last of one is the last of the other, where a resolution ends
            step = (len(theirs[key]) - 1) / max(len(names) - 1, 1)
            pairs |= {name: theirs[key][-1 - round(step * place)] for place, name in enumerate(reversed(names))}
    return pairs
