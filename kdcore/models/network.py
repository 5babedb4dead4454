"""What the convolutional networks share: taps, initial weights, and which parameters a tap depends on."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tap(NamedTuple("Tap", [("channels", int), ("size", int | tuple[int, int])])):
    """A named intermediate tensor: its channels, and the side of its square map for a 32x32 input (1 for a vector).

    size is (height, width) of a map that is not square, and the number of tokens of a transformer's layer. shape: of one
    case, (C, H, W) of a map, (C,) of a vector, (N, C) of tokens; for None what channels and size say, a size of 1 being a
    vector's. Two taps are equal where channels and size are; compare ``shape`` to tell a vector from a map of one position.
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
        """Of the shape of one case: (C, H, W), (C,) or (N, C)."""
        if len(shape) == 2:
            return cls(shape[1], shape[0], shape)
        return cls(shape[0], 1 if len(shape) == 1 else shape[1] if shape[1] == shape[2] else tuple(shape[1:]), shape)


class Reached(Exception):
    """Raised by ``Taps`` when the last tap that is needed is there: what follows in the forward pass need not run."""


class Taps(dict):
    """Taps as a forward pass comes by them; with ``until``, it goes no further than where all of these are there."""

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
    """Logits [B, classes] of images [B, 3, H, W], H and W divisible by 4, with named taps.

    taps: {name: Tap}, the names that ``features`` gives. "name.pre" is the tensor before the ReLU that makes "name"; "pooled", in the
    networks that end with global average pooling, is the vector [B, C] that the linear layer sees.

    A subclass registers its modules in the order of its forward pass, declares its taps with ``_declare`` and calls
    ``reset(0)``: a network is never without initial weights.
    """

    def __init__(self):
        super().__init__()
        self.taps: dict[str, Tap] = {}
        self._last: dict[str, nn.Module] = {}  # the last module with parameters before each tap

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)

    def features(self, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and every tap. It computes what ``forward`` computes and keeps references to it.

        until: taps; the pass stops at the last of them. Later layers do not run, nor do their BatchNorm statistics move,
        and the logits are None. Raises ValueError for an unknown tap.
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
        """The parameters that the tensor of ``tap`` depends on: all that training on it alone can move.

        Raises ValueError for an unknown tap.
        """
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
        """Fresh weights, in place, drawn from ``seed`` alone: the same on every device, whatever was drawn before.

        Convolutions N(0, 2 / (k^2 * outputs)) (He et al. 2015, "Delving deep into rectifiers", eq. 14), BatchNorm 1 and
        0 with fresh statistics, the linear layer U(-a, a) with a = 1 / sqrt(inputs) and bias 0, as in the code of the
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
    """A convolution that keeps the map's size (but for its stride), without the bias that BatchNorm would undo."""
    kind = SubsampledConv2d if size == 1 and stride > 1 else nn.Conv2d
    return kind(inputs, outputs, size, stride, size // 2, bias=False)


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as one of stride 1 on every ``stride``-th row and column: the same function.

    oneDNN's own (3.10 and 3.12, channels_last) writes past its workspace in the gradient of the weights where there are few
    input channels, below 8 with AVX2 and below 16 with AVX-512: wrong gradients, or the end of the process (uxlfoundation/oneDNN,
    issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def keep(taps: dict[str, Tensor] | None, name: str, h: Tensor) -> Tensor:
    """``h``, kept under ``name`` where taps are asked for."""
    if taps is not None:
        taps[name] = h
    return h


def relu(h: Tensor, taps: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
    """ReLU, kept with what it is made from under ``name`` and "name.pre"; in place where nothing is kept."""
    if taps is None or not name:
        return F.relu_(h)
    taps[f"{name}.pre"] = h
    taps[name] = h = F.relu(h)
    return h


def blocks_per_group(depth: int, extra: int) -> int:
    """n of a net with three groups of n blocks of two layers, and ``extra`` layers. Raises ValueError where there is none."""
    blocks, rest = divmod(depth - extra, 6)
    if rest or blocks < 1:
        raise ValueError(f"the depth is 6n + {extra} with n of 1 or more, not {depth}")
    return blocks


@torch.no_grad()
def redraw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's initial weights of a layer, in place, from a generator on the CPU: U(-a, a), a = 1 / sqrt(inputs of a unit)."""
    limit = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        draw = torch.rand(parameter.shape, generator=generator, device="cpu")
        parameter.copy_((2 * draw - 1) * limit)
