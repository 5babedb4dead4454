"""Residual networks for 32x32 images: He et al.'s CIFAR nets, and the ResNet-50 of a born-again re-implementation."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.models.network import Network, blocks_per_group, conv, keep, relu


class ResNet(Network):
    """The CIFAR ResNet with 6n + 2 layers (He et al. 2015, "Deep residual learning", section 4.2).

    A 3x3 convolution, then three groups of n basic blocks with 16, 32 and 64 channels times ``width``, BatchNorm and
    ReLU after every convolution (the last ReLU of a block after the addition), global average pooling, linear.

    Taps, for groups G = 1 to 3: stem; groupG.first, the output of the group's first convolution layer (where FSP's sections
    start); groupG.blockB, the output of each block; groupG, the output of the last block. Each of these is taken after a ReLU,
    with ".pre" before it (after BatchNorm and addition). pooled: the input of the linear layer.
    Raises ValueError for a depth that is not 6n + 2.
    """

    def __init__(self, depth: int, width: int = 1, *, classes: int = 10):
        super().__init__()
        blocks = blocks_per_group(depth, 2)
        channels = 16 * width
        self.conv = conv(3, channels)
        self.norm = nn.BatchNorm2d(channels)
        self._declare("stem", channels, 32, self.norm)
        self.groups = nn.ModuleList()
        for g, (outputs, size) in enumerate(((16 * width, 32), (32 * width, 16), (64 * width, 8)), 1):
            group = nn.ModuleList()
            for b in range(1, blocks + 1):
                block = BasicBlock(channels, outputs, stride=2 if b == 1 and g > 1 else 1)
                if b == 1:
                    self._declare(f"group{g}.first", outputs, size, block.norm1)
                self._declare(f"group{g}.block{b}", outputs, size, block)
                group.append(block)
                channels = outputs
            self._declare(f"group{g}", channels, size, group[-1])
            self.groups.append(group)
        self._declare("pooled", channels, 1, self.groups, relu=False, pooled=True)
        self.linear = nn.Linear(channels, classes)
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = relu(self.norm(self.conv(x)), taps, "stem")
        for g, group in enumerate(self.groups, 1):
            for b, block in enumerate(group, 1):
                h = block(h, taps, f"group{g}.first" if b == 1 else "", f"group{g}.block{b}")
            if taps is not None:
                taps[f"group{g}.pre"], taps[f"group{g}"] = taps[f"group{g}.block{b}.pre"], h
        return self.linear(keep(taps, "pooled", h.mean((2, 3))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: option A of He et al. 2015, section 3.3."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, taps: dict[str, Tensor] | None = None, first: str = "", name: str = "") -> Tensor:
        """first, name: names of the taps for its first convolution layer and its output."""
        h = relu(self.norm1(self.conv1(x)), taps, first)
        return relu(self.norm2(self.conv2(h)) + self.shortcut(x), taps, name)

    def shortcut(self, x: Tensor) -> Tensor:
        """x itself; if the block changes shape, x subsampled by the stride and padded with channels of zeros."""
        stride, more = self.conv1.stride[0], self.conv1.out_channels - self.conv1.in_channels
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, more)) if more else x


class ResNet50(Network):
    """ResNet-50 for CIFAR: 3x3 stem without max-pooling, 3-4-6-3 bottlenecks with the stride in their 3x3 convolution.

    The widely used layout of kuangliu/pytorch-cifar, which nocotan/born_again_neuralnet trains (there from PyTorch's default
    initial weights). Taps: layer1 to layer4, the outputs of the four groups, each with ".pre" before the ReLU; pooled.
    """

    def __init__(self, *, classes: int = 10):
        super().__init__()
        channels = 64
        self.conv = conv(3, channels)
        self.norm = nn.BatchNorm2d(channels)
        self.layers = nn.ModuleList()
        for i, (blocks, width, size) in enumerate(((3, 64, 32), (4, 128, 16), (6, 256, 8), (3, 512, 4)), 1):
            layer = nn.ModuleList()
            for b in range(blocks):
                layer.append(Bottleneck(channels, width, stride=2 if b == 0 and i > 1 else 1))
                channels = 4 * width
            self._declare(f"layer{i}", channels, size, layer)
            self.layers.append(layer)
        self._declare("pooled", channels, 1, self.layers, relu=False, pooled=True)
        self.linear = nn.Linear(channels, classes)
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = relu(self.norm(self.conv(x)))
        for i, layer in enumerate(self.layers, 1):
            for b, block in enumerate(layer, 1):
                h = block(h, taps, f"layer{i}" if b == len(layer) else "")
        return self.linear(keep(taps, "pooled", h.mean((2, 3))))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution to four times the ``width``; a 1x1 convolution on the shortcut where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.norm3 = nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Identity()
        if inputs != 4 * width:
            self.shortcut = nn.Sequential(conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor, taps: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
        """name: name of the tap for its output."""
        h = relu(self.norm1(self.conv1(x)))
        h = relu(self.norm2(self.conv2(h)))
        return relu(self.norm3(self.conv3(h)) + self.shortcut(x), taps, name)
