"""DARTS networks (Liu, Simonyan & Yang 2018): cells built from a genotype, and the mixture of all cells that a search trains.

A cell takes the outputs of the two cells before it, as its nodes 0 and 1, and makes four nodes more, each the sum of two
operations on earlier nodes; its output is the four side by side. The layout is that of quark0/darts [V].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.models.network import Network, conv, keep, redraw

NODES = 4
OPERATIONS = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip


class Genotype(NamedTuple):
    """The two operations of each node, (operation, the node that it takes), of normal and of reduction cells: 8 each."""

    normal: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, int], ...]


SEP, DIL, SKIP, MAX, AVG = "sep_conv_3x3", "dil_conv_3x3", "skip_connect", "max_pool_3x3", "avg_pool_3x3"
# quark0/darts, cnn/genotypes.py [V]: found by first and by second order; its "DARTS" is the second
GENOTYPES = {
    "v1": Genotype(
        normal=((SEP, 1), (SEP, 0), (SKIP, 0), (SEP, 1), (SKIP, 0), (SEP, 1), (SEP, 0), (SKIP, 2)),
        reduce=((MAX, 0), (MAX, 1), (SKIP, 2), (MAX, 0), (MAX, 0), (SKIP, 2), (SKIP, 2), (AVG, 0)),
    ),
    "v2": Genotype(
        normal=((SEP, 0), (SEP, 1), (SEP, 0), (SEP, 1), (SEP, 1), (SKIP, 0), (SKIP, 0), (DIL, 2)),
        reduce=((MAX, 0), (MAX, 1), (SKIP, 2), (MAX, 1), (MAX, 0), (SKIP, 2), (SKIP, 2), (MAX, 1)),
    ),
}


class Darts(Network):
    """A network of ``cells`` cells: a 3x3 convolution to 3 * ``channels``, then cells of ``channels``, of which the two at a
    third and at two thirds halve the map and double the channels; global average pooling, linear.

    genotype: a key of ``GENOTYPES``, or a ``Genotype``. groups: of the grouped convolutions of each cell, ``channels`` of
    the cell (depthwise) for None; where a cell has none, its number says nothing. auxiliary: with a second classifier on
    the cell at two thirds, for images of 32x32; ``features`` then has its logits as "auxiliary", which is no tap to
    compare.

    ``drop_path`` is a 0-dim tensor that a schedule may move: in training each operation but an identity is left out
    of an image with this probability (Larsson et al. 2017, as DARTS uses it), and scaled up by 1 / (1 - p) else. Set it
    to None where nothing is ever left out: the same outputs, without a product with 1 for each operation.

    Taps: stem, and cellI for I from 0: its 4 * channels, neither normalised nor rectified; pooled, what the linear layer sees.
    Raises ValueError for fewer than 3 cells, or as many groups as there are no cells.
    """

    def __init__(
        self,
        genotype: str | Genotype,
        cells: int,
        channels: int,
        *,
        classes: int = 10,
        groups: Sequence[int] | None = None,
        auxiliary: bool = False,
    ):
        super().__init__()
        genotype = GENOTYPES[genotype] if isinstance(genotype, str) else genotype
        if groups is not None and len(groups) != cells:
            raise ValueError(f"{len(groups)} groups for {cells} cells: give one number for each cell")
        self.stem = nn.Sequential(conv(3, 3 * channels), nn.BatchNorm2d(3 * channels))
        self._declare("stem", 3 * channels, 32, self.stem, relu=False)
        self.cells = nn.ModuleList()
        for i, (inputs, width, size, reduction, reduced) in enumerate(layout(cells, channels)):
            self.cells.append(Cell(genotype, inputs, width, reduction, reduced, None if groups is None else groups[i]))
            self._declare(f"cell{i}", NODES * width, size, self.cells[-1], relu=False)
        self._declare("pooled", NODES * width, 1, self.cells, relu=False, pooled=True)
        self.linear = nn.Linear(NODES * width, classes)
        self.head_at = 2 * cells // 3
        self.auxiliary = auxiliary_head(self.taps[f"cell{self.head_at}"].channels, classes) if auxiliary else None
        self.register_buffer("drop_path", torch.zeros(()), persistent=False)
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h = before = keep(taps, "stem", self.stem(x))
        scales = [None] * len(self.cells)
        if self.training and self.drop_path is not None:  # one draw for all operations of all cells
            draws = torch.rand(len(self.cells), 2 * NODES, len(x), 1, 1, 1, device=x.device)
            scales = ((draws >= self.drop_path).float() / (1 - self.drop_path)).to(h.dtype)
        for i, cell in enumerate(self.cells):
            before, h = h, keep(taps, f"cell{i}", cell(before, h, scales[i]))
            if i == self.head_at and self.auxiliary is not None and taps is not None:
                taps["auxiliary"] = self.auxiliary(h)
        return self.linear(keep(taps, "pooled", h.mean((2, 3))))

    @torch.no_grad()
    def reset(self, seed: int) -> "Darts":
        """Fresh weights, in place, drawn from ``seed`` alone: U(-a, a) with a = 1 / sqrt(inputs of a unit), PyTorch's own,
        which quark0/darts leaves as they are; BatchNorm 1 and 0 with fresh statistics."""
        _reset(self, torch.Generator().manual_seed(seed))
        return self

    @property
    def groups(self) -> list[int]:
        """Of the grouped convolutions of each cell, 1 where there is none: what builds the same net again."""
        return [max((m.groups for m in cell.modules() if isinstance(m, nn.Conv2d)), default=1) for cell in self.cells]


def layout(cells: int, channels: int) -> list[tuple[tuple[int, int], int, int, bool, bool]]:
    """For each cell: the channels of its two inputs, its own, the side of its map, whether it reduces, whether the one
    before did. Raises ValueError for fewer than 3 cells."""
    if cells < 3:
        raise ValueError(f"a DARTS network has 3 cells or more, not {cells}")
    found, inputs, size, reduced = [], (3 * channels, 3 * channels), 32, False
    for i in range(cells):
        reduction = i in (cells // 3, 2 * cells // 3)
        if reduction:
            channels, size = 2 * channels, size // 2
        found.append((inputs, channels, size, reduction, reduced))
        inputs, reduced = (inputs[1], NODES * channels), reduction
    return found


class Cell(nn.Module):
    """A cell of a genotype; groups: of its grouped convolutions, depthwise for None."""

    def __init__(self, genotype: Genotype, inputs: tuple[int, int], channels: int, reduction: bool, reduced: bool, groups: int | None):
        super().__init__()
        self.preprocess = preprocess(inputs, channels, reduced)
        edges = genotype.reduce if reduction else genotype.normal
        self.sources = [source for _, source in edges]
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if reduction and source < 2 else 1, groups=groups) for name, source in edges
        )

    def forward(self, first: Tensor, second: Tensor, scales: Tensor | None = None) -> Tensor:
        """first, second: outputs of the cell before the last one and of the last one; scales: of each operation and image,
        [8, B, 1, 1, 1], 0 where it is left out."""
        nodes = [layer(h) for layer, h in zip(self.preprocess, (first, second), strict=True)]
        for start in range(0, len(self.operations), 2):
            parts = []
            for i in (start, start + 1):
                h, layer = nodes[self.sources[i]], self.operations[i]
                dropped = scales is not None and not isinstance(layer, nn.Identity)
                parts.append(layer(h) * scales[i] if dropped else layer(h))
            nodes.append(parts[0] + parts[1])
        return torch.cat(nodes[2:], 1)


def preprocess(inputs: tuple[int, int], channels: int, reduced: bool, *, affine: bool = True) -> nn.ModuleList:
    """What brings both inputs to a cell's channels, the older one to the smaller map where the cell before reduced."""
    first = FactorizedReduce(inputs[0], channels, affine=affine) if reduced else convolution(inputs[0], channels, 1, affine=affine)
    return nn.ModuleList([first, convolution(inputs[1], channels, 1, affine=affine)])


def operation(name: str, channels: int, stride: int, *, affine: bool = True, groups: int | None = None) -> nn.Module:
    """An operation on a map of ``channels``. affine: do its BatchNorms learn a scale and a shift; groups: of its grouped
    convolutions, ``channels`` for None. Raises ValueError for an unknown name."""
    if name not in OPERATIONS:
        raise ValueError(f"no operation '{name}': choose one of {', '.join(OPERATIONS)}")
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
    kind, _, size = name.rpartition("_")
    side = int(size[0])
    if kind == "max_pool":
        return nn.MaxPool2d(side, stride, side // 2)
    if kind == "avg_pool":
        return nn.AvgPool2d(side, stride, side // 2, count_include_pad=False)
    groups = channels if groups is None else groups
    if kind == "dil_conv":
        return separable(channels, side, stride, 2, groups, affine)
    return nn.Sequential(*separable(channels, side, stride, 1, groups, affine), *separable(channels, side, 1, 1, groups, affine))


def separable(channels: int, side: int, stride: int, dilation: int, groups: int, affine: bool) -> nn.Sequential:
    """ReLU, a grouped convolution (depthwise where there are as many groups as channels), a 1x1 convolution, BatchNorm."""
    grouped = nn.Conv2d(channels, channels, side, stride, dilation * (side // 2), dilation, groups, bias=False)
    return nn.Sequential(nn.ReLU(), grouped, conv(channels, channels, 1), nn.BatchNorm2d(channels, affine=affine))


def convolution(inputs: int, outputs: int, side: int, *, affine: bool = True) -> nn.Sequential:
    """ReLU, convolution, BatchNorm."""
    return nn.Sequential(nn.ReLU(), conv(inputs, outputs, side), nn.BatchNorm2d(outputs, affine=affine))


class FactorizedReduce(nn.Module):
    """A map at half its size: ReLU, two 1x1 convolutions that look at every other pixel, the second one pixel further down
    and to the right than the first, half of the outputs each, BatchNorm."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool = True):
        super().__init__()
        self.convs = nn.ModuleList([conv(inputs, outputs // 2, 1, 2), conv(inputs, outputs - outputs // 2, 1, 2)])
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(x)
        return self.norm(torch.cat([self.convs[0](h), self.convs[1](h[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """No operation: zeros of the size that one would have."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class MixedCell(nn.Module):
    """A cell with every operation on every edge, weighted: what a search trains. BatchNorms learn no scale and no shift,
    and one stands behind each pooling."""

    def __init__(self, inputs: tuple[int, int], channels: int, reduction: bool, reduced: bool):
        super().__init__()
        self.preprocess = preprocess(inputs, channels, reduced, affine=False)
        self.edges = nn.ModuleList()
        for _, source in edges():
            choices = [operation(name, channels, 2 if reduction and source < 2 else 1, affine=False) for name in OPERATIONS]
            self.edges.append(
                nn.ModuleList(
                    nn.Sequential(layer, nn.BatchNorm2d(channels, affine=False)) if name.endswith("pool_3x3") else layer
                    for name, layer in zip(OPERATIONS, choices, strict=True)
                )
            )

    def forward(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """weights: of each edge and operation, [14, 8]."""
        nodes = [layer(h) for layer, h in zip(self.preprocess, (first, second), strict=True)]
        heard: list[Tensor] = []
        for (node, source), choices, shares in zip(edges(), self.edges, weights, strict=True):
            heard.append(sum(share * layer(nodes[source]) for share, layer in zip(shares, choices, strict=True)))
            if len(heard) == node:
                nodes.append(sum(heard))
                heard = []
        return torch.cat(nodes[2:], 1)


def edges() -> list[tuple[int, int]]:
    """(node, its source) of every edge of a cell in a search: each of the nodes 2 to 5 hears all before it."""
    return [(node, source) for node in range(2, 2 + NODES) for source in range(node)]


class MixedDarts(nn.Module):
    """The network of all genotypes at once (Liu et al. 2018, eq. 2): each edge of a cell is the mean of all operations, weighted
    by the softmax of its alphas; normal cells share theirs, and so do reduction cells. Otherwise as ``Darts``.

    ``alphas``, [2, 14, 8] (normal and reduction; edge; operation), is a buffer: no optimiser of weights moves it.
    """

    def __init__(self, cells: int, channels: int, *, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 3 * channels), nn.BatchNorm2d(3 * channels))
        self.cells, self.reductions = nn.ModuleList(), []
        for inputs, width, _, reduction, reduced in layout(cells, channels):
            self.cells.append(MixedCell(inputs, width, reduction, reduced))
            self.reductions.append(reduction)
        self.linear = nn.Linear(NODES * width, classes)
        self.register_buffer("alphas", torch.zeros(2, len(edges()), len(OPERATIONS)))
        self.reset(0)

    def forward(self, x: Tensor, alphas: Tensor | None = None) -> Tensor:
        """alphas: its own for None."""
        weights = (self.alphas if alphas is None else alphas).softmax(-1)
        h = before = self.stem(x)
        for cell, reduction in zip(self.cells, self.reductions, strict=True):
            before, h = h, cell(before, h, weights[int(reduction)])
        return self.linear(h.mean((2, 3)))

    @torch.no_grad()
    def reset(self, seed: int) -> "MixedDarts":
        """Fresh weights, in place, drawn from ``seed`` alone, as those of ``Darts``; alphas N(0, 0.001^2)."""
        generator = torch.Generator().manual_seed(seed)
        _reset(self, generator)
        self.alphas.copy_(1e-3 * torch.randn(self.alphas.shape, generator=generator, device="cpu"))
        return self

    def genotype(self) -> Genotype:
        """What the alphas say (Liu et al. 2018, section 2.4): of each node the two sources whose best operation, "none" aside,
        weighs most, each with this operation."""
        kinds = []
        for weights in self.alphas.softmax(-1)[..., 1:].tolist():
            chosen = []
            for node in range(2, 2 + NODES):
                mine = [(max(shares), source, shares) for (to, source), shares in zip(edges(), weights, strict=True) if to == node]
                best = sorted(mine, key=lambda edge: -edge[0])[:2]
                chosen += [(OPERATIONS[1:][shares.index(share)], source) for share, source, shares in best]
            kinds.append(tuple(chosen))
        return Genotype(*kinds)


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """A classifier on a map of 8x8: average pooling to 2x2, convolutions to 128 and to 768 x 1 x 1, linear."""
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, 3),
        *(conv(channels, 128, 1), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


def _reset(net: nn.Module, generator: torch.Generator) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            redraw(module, generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
