"""Taps of any PyTorch network, and matching layers of two networks."""

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

    modules: {tap: dotted name of a submodule}. The submodule's output is the tap: a map [B, C, H, W], a vector [B, C], or the
    tokens [B, N, C] of a transformer. example: a batch of one image (or sequence) on the network's device; a pass on it gives
    the taps' shapes and the parameters that each depends on. output: a function that takes what the network returns and
    gives the logits [B, C], if that is not a tensor: ``output=lambda out: out["logits"]`` (use a named function if the
    network is to be pickled).

    The example is run in eval mode and leaves the network unchanged: modes (of every module), buffers, gradients,
    ``requires_grad`` and the random state are restored. ``suggest`` lists matching layers of two networks.

    Raises ValueError for an unknown module, a module that does not run exactly once per forward pass, an output that is not a
    map, vector or tokens or that a later layer overwrites, a network that does not return a tensor, and taps inside a
    compiled or scripted module or DataParallel, whose submodules cannot be hooked. Also for an example on which the network
    does not run, and for a network that was made under ``torch.inference_mode`` or has lazy parameters.
    """

    def __init__(self, net: nn.Module, modules: Mapping[str, str], example: Tensor, *, output: Callable[..., Tensor] | None = None):
        super().__init__()
        check_trainable(net, "network")
        if not isinstance(modules, Mapping) or not all(isinstance(word, str) for pair in modules.items() for word in pair):
            raise ValueError(f"the taps must be a dict {{name of a tap: dotted name of a module}}, not {modules!r}")
        if not (output is None or callable(output)):
            raise ValueError(f"output= must be a function from what the network returns to its logits, not {output!r}")
        self.net, self.sources, self.output = net, dict(modules), output
        known = [name for name, _ in net.named_modules() if name]
        for name in modules.values():
            if name not in known:
                raise ValueError(f"the network has no module '{name}': choose one of {', '.join(known)}")
            _check_watchable(net, name)
        self.taps: dict[str, Tap] = {}
        self._depends: dict[str, set[str]] = {}
        self.training = net.training
        bare = net.module if isinstance(net, DistributedDataParallel) else net  # DDP's forward pass would wait for other processes
        with _undisturbed(net):
            example = example.clone() if isinstance(example, Tensor) and example.is_inference() else example
            taps = self._run(bare, example, None, example=True)[1]
            for tap, name in modules.items():
                _check_tensor(name, net.get_submodule(name), taps[tap], example)
                reached = self._run(bare, example, [tap])[1][tap]
                if reached._version != taps[tap]._version:
                    raise ValueError(
                        f"the output of '{name}' is overwritten by an in-place layer: tap that layer, or set its inplace=False"
                    )
                self.taps[tap] = Tap.of(reached.shape[1:])
                self._depends[tap] = _sources(reached, net)

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(run(self.net, x))

    def features(self, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and the taps. until: names of taps; the pass ends at the last of them, and the logits are None.

        Raises ValueError for an unknown tap, and for ``until`` with DistributedDataParallel inside, which synchronises only
        complete passes.
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
        """The parameters that ``tap`` depends on, frozen or not. Raises ValueError for an unknown tap."""
        if tap not in self.taps:
            raise ValueError(f"no tap '{tap}': choose one of {', '.join(self.taps)}")
        return [parameter for name, parameter in self.net.named_parameters() if name in self._depends[tap]]

    @staticmethod
    def suggest(student: nn.Module, teacher: nn.Module, example: Tensor) -> "Matches":
        """List the layers of two networks that can be tapped, in the order in which they run, each beside its match.

            print(Tapped.suggest(resnet18(), resnet34(), torch.zeros(1, 3, 224, 224)))

        example: a batch of one image or sequence that both accept. Returns a list of ``Match`` rows that prints as a table. A
        layer's match has the same resolution (height and width, or number of tokens) and the same relative depth among the
        layers of its type or, if there are none, among those that are containers or not, as it is. Left out are layers that
        run twice, are overwritten in place or return no map, vector or tokens, and dropout and identity layers.
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
    """A layer of the student and its match in the teacher, with the shapes of one case; None on a side without a match."""

    student: str | None
    student_shape: tuple[int, ...] | None
    teacher: str | None
    teacher_shape: tuple[int, ...] | None

    @property
    def match(self) -> str:
        """ "same shape", "same resolution" or "" (no match)."""
        if self.student is None or self.teacher is None:
            return ""
        return "same shape" if self.student_shape == self.teacher_shape else "same resolution"


class Matches(list):
    """A list of ``Match`` rows; ``str()`` gives a table."""

    def __str__(self) -> str:
        def size(shape: tuple[int, ...] | None) -> str:
            return "" if shape is None else " x ".join(map(str, shape))

        rows = [("student", "shape", "teacher", "shape", "match")]
        rows += [(row.student or "", size(row.student_shape), row.teacher or "", size(row.teacher_shape), row.match) for row in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def check_logits(logits, whose: str) -> Tensor:
    """``logits`` itself. Raises ValueError if it is not a tensor, with advice."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{whose} returns a {type(logits).__name__}, not the logits: wrap the network in Tapped(net, taps, example, output=...), "
            'such as output=lambda out: out["logits"]'
        )
    return logits


def check_trainable(net: nn.Module, whose: str) -> None:
    """Raises ValueError for what is not a module, and for inference-mode or lazy parameters, which cannot be trained."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"a {whose} must be a torch.nn.Module, not {type(net).__name__}")
    for parameter in net.parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"the {whose} has lazy parameters, without a shape yet: run it once on a batch first")
        if parameter.is_inference():
            raise ValueError(f"the {whose} was made under torch.inference_mode, so no gradient can reach it: make it outside")


def run(net: nn.Module, x: Tensor, call: Callable | None = None, *, example: bool = False):
    """``net(x)``, or ``call(x)``. Raises ValueError if it fails because x has another dtype or device than the weights, and, on
    an ``example``, whenever it fails."""
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
                raise ValueError(f"{whose} is {mine}, but its input is {theirs}: move both to one dtype and device") from error
        if example:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{whose} does not run on an example of shape {shape} ({_first_line(error)}): give a batch that it accepts"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def distributed(net: nn.Module) -> bool:
    """Whether ``net`` or a part of it is wrapped in DistributedDataParallel."""
    return any(isinstance(module, DistributedDataParallel) for module in net.modules())


def compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, by ``torch.compile`` or in place."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _check_watchable(net: nn.Module, name: str) -> None:
    module = net
    for part in (None, *name.split(".")):
        module = module if part is None else module._modules[part]
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"'{name}' cannot be tapped inside a scripted or traced module: tap the network before torch.jit")
        if compiled(module):
            raise ValueError(f"'{name}' cannot be tapped inside a compiled module: tap the network before torch.compile")
        if isinstance(module, DataParallel):
            raise ValueError(f"'{name}' cannot be tapped inside DataParallel, which runs copies of it: {STAGE_LOSS}")


def _check_tensor(name: str, module: nn.Module, output, example: Tensor) -> None:
    """Raises ValueError for an output that is not a map [B, C, H, W], a vector [B, C] or tokens [B, N, C]."""
    what = f"the output of '{name}' is neither a map [B, C, H, W] nor a vector [B, C] nor tokens [B, N, C]"
    if not isinstance(output, Tensor):
        raise ValueError(f"{what} but a {type(output).__name__}: tap a module inside it that returns one tensor")
    if output.dim() not in (2, 3, 4) or len(output) != len(example):
        raise ValueError(f"{what} but has shape {tuple(output.shape)} for {len(example)} cases")
    if output.dim() == 3 and type(module).__name__.endswith("1d"):
        raise ValueError(f"{what} but a sequence [B, C, N]: tap a module whose output has its channels last")


@contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """``net`` in eval mode with gradients for every parameter; afterwards everything is restored, buffers and random state included."""
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
    """Names of the parameters of ``net`` that ``output`` depends on."""
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if not output.requires_grad:
        return set()
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _layers(net: nn.Module, example: Tensor) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Modules that can be tapped, with the shape of one case, in the order in which they return."""
    calls: dict[str, list] = {}

    def keep(name: str, module: nn.Module, inputs: tuple, output) -> None:
        calls.setdefault(name, []).append((module, output, output._version if isinstance(output, Tensor) else None))

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
    for name, ((module, output, version), *again) in calls.items():
        try:
            _check_watchable(net, name)
            _check_tensor(name, module, output, example)
        except ValueError:
            continue
        if not again and output._version == version:
            layers[name] = module, tuple(output.shape[1:])
    return layers


def _aligned(own: Mapping, others: Mapping, kind: Callable[[nn.Module], object]) -> dict[str, str]:
    """For each layer, the other network's layer of the same resolution and ``kind`` at the same relative depth among these."""

    def groups(layers: Mapping) -> dict[tuple, list[str]]:
        grouped: dict[tuple, list[str]] = {}
        for name, (module, shape) in layers.items():
            sides = shape[1:] if len(shape) == 3 else shape[:-1]  # height and width of a map, number of tokens; empty for a vector
            grouped.setdefault((len(shape), *sides, kind(module)), []).append(name)
        return grouped

    pairs, theirs = {}, groups(others)
    for key, names in groups(own).items():
        if key in theirs:
            # counted from the end, so that the last layers of a resolution match
            step = (len(theirs[key]) - 1) / max(len(names) - 1, 1)
            pairs |= {name: theirs[key][-1 - round(step * place)] for place, name in enumerate(reversed(names))}
    return pairs
