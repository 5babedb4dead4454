"""DARTS networks (Liu, Simonyan & Yang 2018): cells built from a genotype, and the mixture of all cells that a search trains.

A cell takes the outputs of the two preceding cells as its nodes 0 and 1 and computes four more nodes, each the sum of two
operations on earlier nodes; its output is the concatenation of these four. The layout is that of quark0/darts [V].
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
    """The two edges (operation, source node) of each node, for normal and for reduction cells: 8 each."""

    normal: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, int], ...]


SEP, DIL, SKIP, MAX, AVG = "sep_conv_3x3", "dil_conv_3x3", "skip_connect", "max_pool_3x3", "avg_pool_3x3"
# quark0/darts, cnn/genotypes.py [V]: found by first- and by second-order search; its "DARTS" is the second
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
    """A network of ``cells`` cells: a 3x3 convolution to 3 * ``channels``, then cells of ``channels``, where the two at one
    third and two thirds of the depth halve the map and double the channels; global average pooling, linear.

    genotype: a key of ``GENOTYPES``, or a ``Genotype``. groups: number of groups of the grouped convolutions, one number for
    each cell (ignored in a cell without any); None: depthwise. auxiliary: add a second classifier to the cell at two thirds,
    for 32x32 images; ``features`` then returns its logits as "auxiliary", which is not a tap.

    ``drop_path`` is a 0-dim tensor that a schedule may set: in training, each operation except the identity is dropped for
    an image with this probability p (Larsson et al. 2017, as in DARTS) and otherwise scaled up by 1 / (1 - p). Set it to None
    if nothing is ever dropped: the same outputs, without multiplying each operation by 1.

    Taps: stem; cellI for I from 0, its 4 * channels, before any BatchNorm or ReLU; pooled, the input of the linear layer.
    Raises ValueError for fewer than 3 cells, and if ``groups`` does not have one number for each cell.
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
        """Reinitialise the weights in place from ``seed`` alone: U(-a, a) with a = 1 / sqrt(inputs of a unit), PyTorch's default,
        which quark0/darts keeps; BatchNorm with weight 1, bias 0 and fresh statistics."""
        _reset(self, torch.Generator().manual_seed(seed))
        return self

    @property
    def groups(self) -> list[int]:
        """Number of groups of the grouped convolutions of each cell, 1 if it has none: the argument that rebuilds this network."""
        return [max((m.groups for m in cell.modules() if isinstance(m, nn.Conv2d)), default=1) for cell in self.cells]


def layout(cells: int, channels: int) -> list[tuple[tuple[int, int], int, int, bool, bool]]:
    """For each cell: the channels of its two inputs, its own channels, the side of its map, whether it reduces, and whether the
    previous cell did. Raises ValueError for fewer than 3 cells."""
    if cells < 3:
        raise ValueError(f"a DARTS network has at least 3 cells, not {cells}")
    rows, inputs, size, reduced = [], (3 * channels, 3 * channels), 32, False
    for i in range(cells):
        reduction = i in (cells // 3, 2 * cells // 3)
        if reduction:
            channels, size = 2 * channels, size // 2
        rows.append((inputs, channels, size, reduction, reduced))
        inputs, reduced = (inputs[1], NODES * channels), reduction
    return rows


class Cell(nn.Module):
    """A cell of a genotype. groups: number of groups of its grouped convolutions; None: depthwise."""

    def __init__(self, genotype: Genotype, inputs: tuple[int, int], channels: int, reduction: bool, reduced: bool, groups: int | None):
        super().__init__()
        self.preprocess = preprocess(inputs, channels, reduced)
        edges = genotype.reduce if reduction else genotype.normal
        self.sources = [source for _, source in edges]
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if reduction and source < 2 else 1, groups=groups) for name, source in edges
        )

    def forward(self, first: Tensor, second: Tensor, scales: Tensor | None = None) -> Tensor:
        """first, second: outputs of the cell before the previous one and of the previous one. scales: factor for each operation
        and image, [8, B, 1, 1, 1], 0 to drop it."""
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
    """Modules that bring both inputs to the cell's channels, and the older one to the smaller map if the previous cell reduced."""
    first = FactorizedReduce(inputs[0], channels, affine=affine) if reduced else convolution(inputs[0], channels, 1, affine=affine)
    return nn.ModuleList([first, convolution(inputs[1], channels, 1, affine=affine)])


def operation(name: str, channels: int, stride: int, *, affine: bool = True, groups: int | None = None) -> nn.Module:
    """Build an operation on maps of ``channels``. affine: whether its BatchNorms learn scale and shift. groups: number of groups
    of its grouped convolutions; None: ``channels``. Raises ValueError for an unknown name."""
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
    """ReLU, grouped convolution (depthwise if groups equals channels), 1x1 convolution, BatchNorm."""
    grouped = nn.Conv2d(channels, channels, side, stride, dilation * (side // 2), dilation, groups, bias=False)
    return nn.Sequential(nn.ReLU(), grouped, conv(channels, channels, 1), nn.BatchNorm2d(channels, affine=affine))


def convolution(inputs: int, outputs: int, side: int, *, affine: bool = True) -> nn.Sequential:
    """ReLU, convolution, BatchNorm."""
    return nn.Sequential(nn.ReLU(), conv(inputs, outputs, side), nn.BatchNorm2d(outputs, affine=affine))


class FactorizedReduce(nn.Module):
    """Halve a map: ReLU, two 1x1 convolutions with stride 2 that give half of the outputs each, the second shifted by one pixel
    down and to the right, BatchNorm."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool = True):
        super().__init__()
        self.convs = nn.ModuleList([conv(inputs, outputs // 2, 1, 2), conv(inputs, outputs - outputs // 2, 1, 2)])
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(x)
        return self.norm(torch.cat([self.convs[0](h), self.convs[1](h[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """The operation "none": zeros of the output's size."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class MixedCell(nn.Module):
    """A cell with the weighted sum of all operations on every edge, as trained in a search. BatchNorms learn no scale or shift,
    and one follows each pooling."""

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
        """weights: one for each edge and operation, [14, 8]."""
        nodes = [layer(h) for layer, h in zip(self.preprocess, (first, second), strict=True)]
        heard: list[Tensor] = []
        for (node, source), choices, shares in zip(edges(), self.edges, weights, strict=True):
            heard.append(sum(share * layer(nodes[source]) for share, layer in zip(shares, choices, strict=True)))
            if len(heard) == node:
                nodes.append(sum(heard))
                heard = []
        return torch.cat(nodes[2:], 1)


def edges() -> list[tuple[int, int]]:
    """(node, source) of every edge of a cell in a search: each of the nodes 2 to 5 takes all nodes before it."""
    return [(node, source) for node in range(2, 2 + NODES) for source in range(node)]


class MixedDarts(nn.Module):
    """The mixture of all genotypes (Liu et al. 2018, eq. 2): each edge is the mean of all operations, weighted by the softmax of
    its alphas, which all normal cells share, as do all reduction cells. Otherwise as ``Darts``.

    ``alphas``, [2, 14, 8] (normal or reduction, edge, operation), is a buffer, so that the weights' optimiser does not change it.
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
        """alphas: used in place of ``self.alphas``."""
        weights = (self.alphas if alphas is None else alphas).softmax(-1)
        h = before = self.stem(x)
        for cell, reduction in zip(self.cells, self.reductions, strict=True):
            before, h = h, cell(before, h, weights[int(reduction)])
        return self.linear(h.mean((2, 3)))

    @torch.no_grad()
    def reset(self, seed: int) -> "MixedDarts":
        """Reinitialise the weights in place from ``seed`` alone, as in ``Darts``; alphas N(0, 0.001^2)."""
        generator = torch.Generator().manual_seed(seed)
        _reset(self, generator)
        self.alphas.copy_(1e-3 * torch.randn(self.alphas.shape, generator=generator, device="cpu"))
        return self

    def genotype(self) -> Genotype:
        """The genotype that the alphas select (Liu et al. 2018, section 2.4): for each node, the two sources whose best operation
        other than "none" has the largest weights, each with that operation."""
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
    """A classifier on an 8x8 map: average pooling to 2x2, convolutions to 128 channels and to 768 x 1 x 1, linear."""
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
