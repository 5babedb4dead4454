"""Base class of the convolutional networks: taps, initial weights, and the parameters that a tap depends on."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tap(NamedTuple("Tap", [("channels", int), ("size", int | tuple[int, int])])):
    """The channels and size of a named intermediate tensor.

    size: the side of a square map for a 32x32 input, (height, width) of any other map, the number of tokens of a transformer's
    layer, 1 for a vector. shape: of one case: (C, H, W) for a map, (C,) for a vector, (N, C) for tokens; None: as channels and
    size say, with size 1 for a vector. Taps are compared by channels and size; compare ``shape`` to tell a vector from a map
    with one position.
    """

    shape: tuple[int, ...]

    def __new__(cls, channels: int, size: int | tuple[int, int] = 1, shape: Sequence[int] | None = None):
        tap = super().__new__(cls, channels, size)
        if shape is None:
            height, width = (size, size) if isinstance(size, int) else size
            shape = (channels,) if size == 1 else (channels, height, width)
        tap.shape = tuple(shape)
        return tap

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Tap":
        """The tap whose cases have this shape: (C, H, W), (C,) or (N, C)."""
        if len(shape) == 2:
            return cls(shape[1], shape[0], shape)
        return cls(shape[0], 1 if len(shape) == 1 else shape[1] if shape[1] == shape[2] else tuple(shape[1:]), shape)


class Reached(Exception):
    """Raised by ``Taps`` once it holds every tap that is needed, to end the forward pass."""


class Taps(dict):
    """Collects taps during a forward pass; ends the pass once it holds all taps of ``until``."""

    def __init__(self, until: Sequence[str] | None = None):
        super().__init__()
        self.missing = set(until or ())

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        super().__setitem__(name, tensor)
        if name in self.missing:
            self.missing.remove(name)
            if not self.missing:
                raise Reached


class Network(nn.Module):
    """A network with named taps: images [B, 3, H, W], H and W divisible by 4, to logits [B, classes].

    taps: {name: Tap}, the taps that ``features`` returns. "name.pre" is the tensor before the ReLU that makes "name"; "pooled", in
    networks that end with global average pooling, is the input [B, C] of the linear layer.

    A subclass registers its modules in the order of its forward pass, declares its taps with ``_declare`` and calls
    ``reset(0)``, so that a network always has initial weights.
    """

    def __init__(self):
        super().__init__()
        self.taps: dict[str, Tap] = {}
        self._last: dict[str, nn.Module] = {}  # the last module with parameters before each tap

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)

    def features(self, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and every tap, from the computation of ``forward``.

        until: names of taps; the pass ends at the last of them. Later layers do not run, their BatchNorm statistics do not
        change, and the logits are None. Raises ValueError for an unknown tap.
        """
        for tap in until or ():
            self._check(tap)
        taps = Taps(until)
        try:
            return self._run(x, taps), taps
        except Reached:
            return None, taps

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        raise NotImplementedError

    def _declare(self, name: str, channels: int, size: int, last: nn.Module, *, relu: bool = True, pooled: bool = False) -> None:
        shape = (channels,) if pooled or isinstance(last, nn.Linear) else (channels, size, size)
        for tap in (f"{name}.pre", name) if relu else (name,):
            self.taps[tap], self._last[tap] = Tap(channels, size, shape), last

    def parameters_before(self, tap: str) -> list[nn.Parameter]:
        """The parameters that ``tap`` depends on. Raises ValueError for an unknown tap."""
        self._check(tap)
        *_, last = self._last[tap].parameters()
        before = []
        for parameter in self.parameters():
            before.append(parameter)
            if parameter is last:
                break
        return before

    def _check(self, tap: str) -> None:
        if tap not in self.taps:
            raise ValueError(f"no tap '{tap}': choose one of {', '.join(self.taps)}")

    @torch.no_grad()
    def reset(self, seed: int) -> "Network":
        """Reinitialise the weights in place from ``seed`` alone: the same on every device, whatever was drawn before.

        Convolutions N(0, 2 / (k^2 * outputs)) (He et al. 2015, "Delving deep into rectifiers", eq. 14), BatchNorm with weight
        1, bias 0 and fresh statistics, the linear layer U(-a, a) with a = 1 / sqrt(inputs) and bias 0, as in the code of the
        residual and wide residual networks.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator, device="cpu") * std)
            elif isinstance(module, nn.Linear):
                draw = torch.rand(module.weight.shape, generator=generator, device="cpu")
                module.weight.copy_((2 * draw - 1) / math.sqrt(module.in_features))
                module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        return self


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the map's size (apart from the stride), without a bias, which BatchNorm would cancel."""
    kind = SubsampledConv2d if size == 1 and stride > 1 else nn.Conv2d
    return kind(inputs, outputs, size, stride, size // 2, bias=False)


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed with stride 1 on every ``stride``-th row and column: the same function.

    oneDNN's strided version (3.10 and 3.12, channels_last) writes past its workspace when it computes the weight gradient for
    few input channels (below 8 with AVX2, below 16 with AVX-512): gradients are wrong, or the process crashes
    (uxlfoundation/oneDNN, issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def keep(taps: dict[str, Tensor] | None, name: str, h: Tensor) -> Tensor:
    """Return ``h``, and store it under ``name`` if taps are collected."""
    if taps is not None:
        taps[name] = h
    return h


def relu(h: Tensor, taps: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
    """ReLU. If taps are collected, store its output under ``name`` and its input under "name.pre"; else work in place."""
    if taps is None or not name:
        return F.relu_(h)
    taps[f"{name}.pre"] = h
    taps[name] = h = F.relu(h)
    return h


def blocks_per_group(depth: int, extra: int) -> int:
    """n, for a network of ``depth`` layers: three groups of n blocks of two layers, plus ``extra``. Raises ValueError if none fits."""
    blocks, rest = divmod(depth - extra, 6)
    if rest or blocks < 1:
        raise ValueError(f"the depth is 6n + {extra} with n of 1 or more, not {depth}")
    return blocks


@torch.no_grad()
def redraw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw PyTorch's default initial weights in place, from a generator on the CPU: U(-a, a), a = 1 / sqrt(inputs of a unit)."""
    limit = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        draw = torch.rand(parameter.shape, generator=generator, device="cpu")
        parameter.copy_((2 * draw - 1) * limit)
