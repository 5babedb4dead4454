"""Maxout networks (Goodfellow et al. 2013), FitNets' teachers and students, with their dropout and norm limits."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdcore.models.network import Network, keep


class Layer(NamedTuple):
    """A maxout convolution, each channel the maximum of ``pieces`` linear maps, then max pooling over ``pool`` x ``pool``.

    Pooling windows may overlap the edge, as in pylearn2. limit: largest L2 norm of a piece's kernel.
    """

    channels: int
    kernel: int
    pad: int
    pool: int = 1
    stride: int = 1
    pieces: int = 2
    limit: float = 0.9


class Design(NamedTuple):
    """A network without its output layer: channels and size of the images, the convolutions, and the number of units of the
    dense maxout layer (0: none), each the maximum of ``pieces`` linear maps."""

    channels: int
    size: int
    layers: tuple[Layer, ...]
    dense: int
    pieces: int = 2


DENSE_LIMIT, SOFTMAX_LIMIT = 1.9, 1.9365


def _thin(*groups: Sequence[int]) -> Design:
    """A FitNet for 32x32 images: 3x3 convolutions, pooled after each group, after the last one to a single pixel."""
    layers = []
    for channels, (pool, stride) in zip(groups, ((2, 2), (2, 2), (8, 1)), strict=True):
        layers += [Layer(count, 3, 1) for count in channels]
        layers[-1] = layers[-1]._replace(pool=pool, stride=stride)
    return Design(3, 32, tuple(layers), 500)


# pylearn2's scripts/papers/maxout/cifar10.yaml and mnist.yaml; FitNets' table of student nets; its yaml/MNIST_fitnet_valid.yaml.
DESIGNS = {
    "maxout_cifar": Design(3, 32, (Layer(96, 8, 4, 4, 2), Layer(192, 8, 3, 4, 2, limit=1.9365), Layer(192, 5, 3, 2, 2, limit=1.9365)), 500),
    "maxout_mnist": Design(
        1, 28, (Layer(48, 8, 0, 4, 2), Layer(48, 8, 3, 4, 2, limit=1.9365), Layer(24, 5, 3, 2, 2, pieces=4, limit=1.9365)), 0
    ),
    "fitnet_1": _thin([16] * 3, [32] * 3, [48, 48, 64]),
    "fitnet_2": _thin([16, 32, 32], [48, 64, 80], [96, 96, 128]),
    "fitnet_3": _thin([32, 48, 64, 64], [80] * 4, [128] * 3),
    "fitnet_4": _thin([32, 32, 32, 48, 48], [80] * 6, [128] * 6),
    # as in FitNets' yaml/cifar10_fitnet19_all.yaml (lines 248 to 254); with two pieces, the parameter count is the one in the paper
    "fitnet_4_released": _thin([32, 32, 32, 48, 48], [80] * 6, [128] * 6)._replace(pieces=5),
    "fitnet_mnist": Design(
        1,
        28,
        (
            Layer(16, 5, 0),
            Layer(16, 3, 0, 4, 2),
            Layer(16, 5, 3, limit=1.9365),
            Layer(16, 3, 0, 4, 2, limit=1.9365),
            Layer(12, 3, 3, pieces=4, limit=1.9365),
            Layer(12, 3, 0, 2, 2, pieces=4, limit=1.9365),
        ),
        0,
    ),
}


class Maxout(Network):
    """A maxout network: convolutions, a dense maxout layer if the design has one, and a linear layer to the classes.

    design: a key of ``DESIGNS``; divisor: divides all its widths, for small machines. irange: initial weights are
    U(-irange, irange). input_dropout, hidden_dropout: dropout rates of the network's input and of each later layer's; as in
    pylearn2's recipes, remaining hidden values are scaled up and remaining pixels are not.
    multiply_adds: for one image, including those on a convolution's zero padding.

    Images are [B, channels, size, size] as in the design. Taps: conv1, conv2, ..., each after its pooling, and dense.
    """

    def __init__(
        self,
        design: str,
        divisor: int = 1,
        *,
        classes: int = 10,
        irange: float = 0.005,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ):
        super().__init__()
        channels, size, layers, dense, pieces = DESIGNS[design]
        self.irange, self.input_dropout, self.hidden_dropout = irange, input_dropout, hidden_dropout
        self.multiply_adds = 0
        self.convs = nn.ModuleList()
        for number, layer in enumerate(layers, 1):
            layer = layer._replace(channels=max(1, layer.channels // divisor))
            conv = MaxoutConv(channels, layer)
            detected, size = conv.sizes(size)
            self.multiply_adds += detected**2 * conv.weight[0].numel() * len(conv.weight)
            channels = layer.channels
            self._declare(f"conv{number}", channels, size, conv, relu=False)
            self.convs.append(conv)
        inputs, self.dense = channels * size**2, None
        if dense:
            self.dense = MaxoutDense(inputs, max(1, dense // divisor), pieces)
            self.multiply_adds += self.dense.weight.numel()
            inputs = len(self.dense.weight) // pieces
            self._declare("dense", inputs, 1, self.dense, relu=False)
        self.linear = nn.Linear(inputs, classes)
        self.multiply_adds += self.linear.weight.numel()
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = x
        if self.training and self.input_dropout:
            h = F.dropout(h, self.input_dropout) * (1 - self.input_dropout)
        for number, conv in enumerate(self.convs, 1):
            h = keep(taps, f"conv{number}", conv(h if number == 1 else self._dropped(h)))
        h = h.flatten(1)
        if self.dense is not None:
            h = keep(taps, "dense", self.dense(self._dropped(h)))
        return self.linear(self._dropped(h))

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.hidden_dropout, self.training) if self.hidden_dropout else h

    @torch.no_grad()
    def reset(self, seed: int) -> "Maxout":
        """Reinitialise the weights in place from ``seed`` alone: U(-irange, irange), biases 0."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                uniform(module, self.irange, generator)
        return self

    def limit_norms(self) -> None:
        """Scale down whatever exceeds its norm limit: kernels of each piece, rows of the dense and linear layers."""
        for conv in self.convs:
            conv.limit_norms()
        if self.dense is not None:
            limit_rows(self.dense.weight, DENSE_LIMIT)
        limit_rows(self.linear.weight, SOFTMAX_LIMIT)


class MaxoutConv(nn.Conv2d):
    """A convolutional layer of a ``Maxout`` net: channel c is the maximum of the outputs c, c + channels, c + 2 channels, ..."""

    def __init__(self, inputs: int, layer: Layer):
        super().__init__(inputs, layer.pieces * layer.channels, layer.kernel, padding=layer.pad)
        self.layer = layer

    def sizes(self, size: int) -> tuple[int, int]:
        """Sides of the maps before and after pooling, for an input of side ``size``."""
        detected = size + 2 * self.layer.pad - self.layer.kernel + 1
        return detected, math.ceil((detected - self.layer.pool) / self.layer.stride) + 1

    def forward(self, x: Tensor) -> Tensor:
        h = largest(super().forward(x), self.layer.pieces)
        return h if self.layer.pool == 1 else F.max_pool2d(h, self.layer.pool, self.layer.stride, ceil_mode=True)

    def limit_norms(self) -> None:
        limit_rows(self.weight, self.layer.limit)


class MaxoutDense(nn.Linear):
    """The dense maxout layer: unit u is the maximum of the outputs u, u + units, u + 2 units, ..."""

    def __init__(self, inputs: int, units: int, pieces: int):
        super().__init__(inputs, pieces * units)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return largest(super().forward(x), self.pieces)


def largest(h: Tensor, pieces: int) -> Tensor:
    """The elementwise maximum of ``pieces`` equal parts of axis 1; at ties the gradient goes to the first of them."""
    return _Largest.apply(h, pieces)


class _Largest(torch.autograd.Function):
    """``reduce(torch.maximum, h.chunk(pieces, 1))``, with a quarter of the memory passes in the backward."""

    @staticmethod
    def forward(ctx, h: Tensor, pieces: int) -> Tensor:
        parts = h.chunk(pieces, 1)
        best = reduce(torch.maximum, parts)
        ctx.like = torch.empty_like(h, device="meta")
        ctx.save_for_backward(*(part == best for part in parts[:-1]))
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        result = torch.empty_like(ctx.like, device=gradient.device)
        *parts, last = result.chunk(len(ctx.saved_tensors) + 1, 1)
        for part, here in zip(parts, ctx.saved_tensors, strict=True):
            torch.mul(gradient, here, out=part)
            gradient = gradient - part
        last.copy_(gradient)
        return result, None


@torch.no_grad()
def uniform(layer: nn.Conv2d | nn.Linear, scale: float, generator: torch.Generator) -> None:
    """Draw weights U(-scale, scale) from the generator and set the bias to 0."""
    draw = torch.rand(layer.weight.shape, generator=generator, device="cpu")
    layer.weight.copy_((2 * draw - 1) * scale)
    layer.bias.zero_()


@torch.no_grad()
def limit_rows(weight: Tensor, limit: float) -> None:
    """Scale down, in place, each weight[i] whose L2 norm exceeds ``limit``; the norm excludes the bias, as in pylearn2."""
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    weight.mul_((limit / norms.clamp(min=limit)).view(-1, *[1] * (weight.dim() - 1)))
