"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from torch import Tensor, nn

from kdcore.models.network import Network, blocks_per_group, conv, keep, relu


class WideResNet(Network):
    """WRN-depth-width: a 3x3 convolution to 16 channels, then three groups of (depth - 4) / 6 pre-activation blocks with
    16, 32 and 64 channels times ``width``, BatchNorm, ReLU, global average pooling, linear.

    dropout: dropout rate between the two convolutions of each block.

    Taps, for groups G = 1 to 3:
    stem: the output of the first convolution, before any BatchNorm or ReLU.
    groupG.first.pre, groupG.first: the group's first 3x3 convolution after the BatchNorm that follows it, before and after
        the ReLU (and before dropout).
    groupG.sum: the group's raw output, the sum of its last addition (used by attention transfer).
    groupG.pre, groupG: that sum after the next BatchNorm (of the next group's first block, or the final one), before and
        after the ReLU (activation boundaries use the former).
    pooled: the input of the linear layer.
    Raises ValueError for a depth that is not 6n + 4.
    """

    def __init__(self, depth: int, width: int, *, classes: int = 10, dropout: float = 0.0):
        super().__init__()
        blocks = blocks_per_group(depth, 4)
        channels = 16
        self.conv = conv(3, channels)
        self._declare("stem", channels, 32, self.conv, relu=False)
        self.groups = nn.ModuleList()
        for g, (outputs, size) in enumerate(((16 * width, 32), (32 * width, 16), (64 * width, 8)), 1):
            group = nn.ModuleList()
            for b in range(blocks):
                group.append(PreActivationBlock(channels, outputs, stride=2 if b == 0 and g > 1 else 1, dropout=dropout))
                channels = outputs
            self._declare(f"group{g}.first", channels, size, group[0].norm2)
            self._declare(f"group{g}.sum", channels, size, group[-1], relu=False)
            self.groups.append(group)
        self.norm = nn.BatchNorm2d(channels)
        for g, norm in enumerate((self.groups[1][0].norm1, self.groups[2][0].norm1, self.norm), 1):
            self._declare(f"group{g}", *self.taps[f"group{g}.sum"], norm)
        self._declare("pooled", channels, 1, self.norm, relu=False, pooled=True)
        self.linear = nn.Linear(channels, classes)
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = keep(taps, "stem", self.conv(x))
        for g, group in enumerate(self.groups, 1):
            for b, block in enumerate(group, 1):
                # the first block of a group applies BatchNorm and ReLU to the previous group's output
                h = block(h, taps, f"group{g - 1}" if b == 1 and g > 1 else "", f"group{g}.first" if b == 1 else "")
            keep(taps, f"group{g}.sum", h)
        return self.linear(keep(taps, "pooled", relu(self.norm(h), taps, "group3").mean((2, 3))))


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice, plus the input or, if the channels change, a 1x1 convolution of the
    activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, taps: dict[str, Tensor] | None = None, before: str = "", first: str = "") -> Tensor:
        """before, first: names of the taps for its activated input and its first convolution layer."""
        h = relu(self.norm1(x), taps, before)
        shortcut = x if self.shortcut is None else self.shortcut(h)
        h = relu(self.norm2(self.conv1(h)), taps, first)
        return self.conv2(self.dropout(h)) + shortcut
