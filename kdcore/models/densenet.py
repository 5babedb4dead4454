"""Densely connected networks with bottlenecks and compression, DenseNet-BC (Huang et al. 2017)."""

from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdcore.models.network import Network, blocks_per_group, conv, keep, relu


class DenseNet(Network):
    """DenseNet-BC for CIFAR (Huang et al. 2017, section 3): a 3x3 convolution to 2k channels for ``growth`` k, then three
    stages of (depth - 4) / 6 dense layers, with a transition that halves channels and map size before stages 2 and 3,
    BatchNorm, ReLU, global average pooling, linear.

    Taps, one for each map size: stem, the first convolution; stage2, the end of the second stage (all its channels), both
    before any BatchNorm or ReLU; final.pre and final, the end of the third stage after the last BatchNorm, before and after
    its ReLU. pooled: the input of the linear layer.

    recompute: in training, store only what each layer appends and recompute its bottleneck in the backward pass. Memory then
    grows with the channels instead of layers times channels, at the cost of one more pass through the 1x1 convolutions
    (Pleiss et al. 2017, arXiv 1707.06990). Outputs, gradients and BatchNorm statistics stay the same.
    Raises ValueError for a depth that is not 6n + 4.
    """

    def __init__(self, depth: int, growth: int, *, classes: int = 10, recompute: bool = False):
        super().__init__()
        layers = blocks_per_group(depth, 4)
        channels = 2 * growth
        self.conv = conv(3, channels)
        self._declare("stem", channels, 32, self.conv, relu=False)
        self.stages = nn.ModuleList()
        for number in (1, 2, 3):
            stage = Stage(recompute)
            if number > 1:
                stage.append(Transition(channels))
                channels //= 2
            for _ in range(layers):
                stage.append(DenseLayer(channels, growth))
                channels += growth
            if number == 2:
                self._declare("stage2", channels, 16, stage, relu=False)
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels)
        self._declare("final", channels, 8, self.norm)
        self._declare("pooled", channels, 1, self.norm, relu=False, pooled=True)
        self.linear = nn.Linear(channels, classes)
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = keep(taps, "stem", self.conv(x))
        h = self.stages[0](h)
        h = keep(taps, "stage2", self.stages[1](h))
        h = self.stages[2](h)
        return self.linear(keep(taps, "pooled", relu(self.norm(h), taps, "final").mean((2, 3))))


class Stage(nn.Sequential):
    """Dense layers, preceded by a transition in all stages but the first; recompute: as in ``DenseNet``."""

    def __init__(self, recompute: bool):
        super().__init__()
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return super().forward(x)
        layers = list(self)
        if isinstance(layers[0], Transition):
            x = layers.pop(0)(x)
        parts = [x]
        for layer in layers:
            # nothing in a bottleneck is random, and a captured step cannot save the random state
            h = checkpoint(
                layer.bottleneck, *parts, use_reentrant=False, preserve_rng_state=False, context_fn=lambda n=layer.norm1: _once(n)
            )
            parts.append(layer.grow(h))
        return torch.cat(parts, 1)


def _once(norm: nn.BatchNorm2d):
    """Contexts for the forward pass and for the recomputation, which leaves the running statistics alone."""

    @contextmanager
    def still():
        kept = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            norm.momentum, norm.num_batches_tracked = kept

    return nullcontext(), still()


class DenseLayer(nn.Module):
    """Appends k channels: BatchNorm, ReLU, 1x1 convolution to 4k, BatchNorm, ReLU, 3x3 convolution to k."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, 4 * growth, 1)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(self.bottleneck(x))], 1)

    def bottleneck(self, *parts: Tensor) -> Tensor:
        """The bottleneck's 4k channels; the input may come in parts."""
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self.conv1(relu(self.norm1(x)))

    def grow(self, h: Tensor) -> Tensor:
        """The k channels that the layer appends."""
        return self.conv2(relu(self.norm2(h)))


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to half the channels, 2x2 average pooling."""

    def __init__(self, inputs: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = conv(inputs, inputs // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(relu(self.norm(x))), 2)
