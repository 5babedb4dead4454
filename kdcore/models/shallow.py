"""The deep and shallow networks of Ba & Caruana 2014, in the notation of their table 2, and k-means patch features."""

import math
import re

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdcore.models.network import Network, keep, relu

POOL, STRIDE = 3, 2  # 32 -> 15 -> 7 -> 3: the only geometry that gives the table's 54M and 70M parameters
LOCAL = 3  # side of a locally connected filter (Hinton et al. 2012, arXiv 1207.0580, appendix F [M])
UNITS = r"([1-9]\d*)(k?)(c|lc|fc|L)?"


class Layered(Network):
    """A network written as in table 2, "128c-p-1200L-30k", with a linear layer of ``classes`` outputs (Ba & Caruana 2014).

    128c: convolution with 128 maps and a ``kernel`` x ``kernel`` filter, same padding; 16lc: locally connected, 16 maps, with a
    separate 3x3 filter at each position; 1000fc, 1000 or 30k: fully connected. A ReLU follows each of these. 1200L: fully
    connected and linear. p: 3x3 pooling with stride 2, without padding. fc: the output layer, written explicitly.

    pooling: "max", or "stochastic" (``stochastic_pool``). input_dropout: dropout rate of the input; dropout: that of every lc,
    fc and k layer, and of the input of an explicit output layer.

    Taps: layer1, layer2, ... for all layers with weights except the last, with ".pre" before a ReLU. ``hidden_units`` counts as
    the table does: every unit of every map, before and after pooling.
    Raises ValueError for layers that cannot be parsed or stacked.
    """

    def __init__(
        self, layers: str, *, classes: int = 10, kernel: int = 5, pooling: str = "max", input_dropout: float = 0.0, dropout: float = 0.0
    ):
        super().__init__()
        if pooling not in ("max", "stochastic"):
            raise ValueError(f"pooling must be 'max' or 'stochastic', not {pooling!r}")
        self.pooling, self.input_dropout, self.dropout = pooling, input_dropout, dropout
        self.kinds, self.layers = [], nn.ModuleList()
        self.hidden_units, channels, size = 0, 3, 32  # size 0: a vector
        for kind, units in parse(layers):
            self.kinds.append(kind)
            if kind in ("c", "lc", "p") and not size:
                raise ValueError(f"'{layers}' has a layer of maps on top of a fully connected one")
            if kind == "p":
                if size < POOL:
                    raise ValueError(f"'{layers}' pools maps of {size} x {size}")
                size = (size - POOL) // STRIDE + 1
            elif kind == "c":
                self.layers.append(nn.Conv2d(channels, units, kernel, padding=kernel // 2))
                channels = units
            elif kind == "lc":
                self.layers.append(LocallyConnected(channels, units, size))
                channels = units
            elif kind != "out":
                self.layers.append(nn.Linear(channels * size**2 if size else channels, units))
                channels, size = units, 0
            if kind != "out":
                self.hidden_units += channels * (size**2 if size else 1)
            if kind not in ("p", "out"):
                self._declare(f"layer{len(self.layers)}", channels, size or 1, self.layers[-1], relu=kind != "L")
        self.layers.append(nn.Linear(channels * size**2 if size else channels, classes))
        self.reset(0)

    def _run(self, x: Tensor, taps: dict[str, Tensor] | None) -> Tensor:
        h, number = F.dropout(x, self.input_dropout, self.training), 0
        for kind in self.kinds:
            if kind == "p":
                h = F.max_pool2d(h, POOL, STRIDE) if self.pooling == "max" else stochastic_pool(h, self.training)
                continue
            if kind != "out":
                layer, name = self.layers[number], f"layer{number + 1}"
                h = layer(_vector(h) if isinstance(layer, nn.Linear) else h)
                h = keep(taps, name, h) if kind == "L" else relu(h, taps, name)
                number += 1
            if kind in ("lc", "fc", "out"):
                h = F.dropout(h, self.dropout, self.training)
        return self.layers[-1](_vector(h))

    @torch.no_grad()
    def reset(self, seed: int) -> "Layered":
        """Reinitialise the weights in place from ``seed`` alone; biases are 0.

        Convolutions N(0, 2 / inputs) (He et al. 2015, "Delving deep into rectifiers", eq. 10: there is no BatchNorm), linear
        layers N(0, 1 / inputs), fully connected ReLU layers N(0, 0.01^2) as in Hinton et al. 2012 [M]: the curvature of the loss
        along the mean of 30,000 units grows with the square of their size and bounds the learning rate.
        """
        generator = torch.Generator().manual_seed(seed)
        kinds = [kind for kind in self.kinds if kind not in ("p", "out")]
        for kind, layer in zip([*kinds, "L"], self.layers, strict=True):
            inputs = layer.weight.shape[-1] if isinstance(layer, LocallyConnected) else layer.weight[0].numel()
            std = {"fc": 0.01, "L": math.sqrt(1 / inputs)}.get(kind, math.sqrt(2 / inputs))
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, device="cpu") * std)
            layer.bias.zero_()
        return self


def _vector(h: Tensor) -> Tensor:
    """Maps [B, C, H, W] flattened position by position, their order in memory: the other order would cost a copy in the forward
    and in the backward pass."""
    return h.permute(0, 2, 3, 1).flatten(1) if h.dim() == 4 else h


class LocallyConnected(nn.Module):
    """A 3x3 convolution with a separate filter at each position: maps [B, inputs, size, size] -> [B, outputs, size, size]."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size**2, outputs, inputs * LOCAL**2))
        self.bias = nn.Parameter(torch.zeros(outputs, size, size))

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, LOCAL, padding=LOCAL // 2)  # [B, inputs * 9, positions]
        return torch.einsum("bip,poi->bop", windows, self.weight).view(-1, *self.bias.shape) + self.bias


def parse(layers: str) -> list[tuple[str, int]]:
    """(kind, units) of each layer; kinds are "c", "lc", "L", "fc" (k too), "p" and "out" (the last two with 0 units).

    Raises ValueError for what is not a layer.
    """
    parsed = []
    for word in layers.split("-"):
        if word in ("p", "fc"):
            parsed.append(({"p": "p", "fc": "out"}[word], 0))
        elif match := re.fullmatch(UNITS, word):
            number, thousand, kind = match.groups()
            parsed.append((kind or "fc", int(number) * (1000 if thousand else 1)))
        else:
            raise ValueError(f"'{word}' in '{layers}' is not a layer: write 128c, 16lc, 1200L, 1000fc, 30k, p or fc")
    if "out" in [kind for kind, _ in parsed[:-1]]:
        raise ValueError(f"'{layers}' has layers after its output fc")
    return parsed


def scaled(layers: str, width: float) -> str:
    """The same layers with ``width`` times as many units each, rounded, at least one: "128c-p-30k" at 0.25 is "32c-p-7500fc"."""
    words = [f"{max(1, round(width * units))}{kind}" if units else {"p": "p", "out": "fc"}[kind] for kind, units in parse(layers)]
    return "-".join(words)


def stochastic_pool(h: Tensor, training: bool) -> Tensor:
    """Stochastic pooling over 3x3 windows with stride 2 (Zeiler & Fergus 2013, section 3 [M]).

        training: a_l for a position l of the window drawn with p_l = a_l / sum_k a_k;   else  sum_l p_l a_l

    h: activations a >= 0, [B, C, H, W]. A window of zeros gives 0.
    """
    if not training:
        total = F.avg_pool2d(h, POOL, STRIDE)
        return F.avg_pool2d(h.square(), POOL, STRIDE) / (total + (total == 0))
    return _Drawn.apply(h)


class _Drawn(torch.autograd.Function):
    """The value at one position of each window, drawn with probability in proportion to it.

    Sums and masks work on whole maps in their memory order: looking up each position takes twice as long on a CPU.
    """

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        places = _places(_parts(h.float()), h.shape)
        total = sum(places)
        draw = torch.rand_like(total) * total
        value, bound, drawn, later = places[0].clone(), places[0].clone(), torch.zeros_like(total), torch.empty_like(total)
        for place in places[1:]:
            torch.le(bound, draw, out=later)  # 1 up to the position drawn, then 0, since the bounds never decrease
            value.lerp_(place, later)
            drawn += later
            bound += place
        ctx.save_for_backward(drawn)
        ctx.like = torch.empty_like(h, device="meta")
        return value.to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (drawn,) = ctx.saved_tensors
        result, here = torch.zeros_like(ctx.like, device=gradient.device), torch.empty_like(gradient)
        parts = _parts(result)
        for number, place in enumerate(_places(parts, result.shape)):
            place.addcmul_(gradient, torch.eq(drawn, number, out=here))
        for number, part in enumerate(parts):
            result[:, :, number // STRIDE :: STRIDE, number % STRIDE :: STRIDE] = part
        return result


def _parts(h: Tensor) -> list[Tensor]:
    """Copies of every second row and column of maps [B, C, H, W], one for each of the four offsets."""
    return [h[:, :, i::STRIDE, j::STRIDE].clone() for i in range(STRIDE) for j in range(STRIDE)]


def _places(parts: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """For each position of a window, its values in all windows of maps of shape [B, C, H, W], as strided views [B, C, rows, columns]."""
    rows, columns = ((side - POOL) // STRIDE + 1 for side in shape[2:])
    return [
        parts[STRIDE * (i % STRIDE) + j % STRIDE][:, :, i // STRIDE : i // STRIDE + rows, j // STRIDE : j // STRIDE + columns]
        for i in range(POOL)
        for j in range(POOL)
    ]


class PatchFeatures(nn.Module):
    """Single-layer k-means features: images [B, 3, H, W] in 0..255 -> [B, 4 K] (Coates, Lee & Ng 2011 [M]).

    Each 6x6 patch has its mean subtracted, is divided by sqrt(its variance + 10), whitened (ZCA, with 0.1 added to the
    eigenvalues) and compared with K centroids. Feature k of a patch is max(0, mean distance - distance to centroid k); features
    are summed over each quadrant of the image, then standardised over the training images.
    """

    SIDE, CONTRAST, WHITENING, VALUES = 6, 10.0, 0.1, 2**24

    def __init__(self, units: int):
        super().__init__()
        values = 3 * self.SIDE**2
        for name, shape in (("mean", [values]), ("whitening", [values, values]), ("centroids", [units, values])):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("feature_mean", torch.zeros(4 * units))
        self.register_buffer("feature_std", torch.ones(4 * units))

    def fit(self, images: Tensor, patches: int, iterations: int, seed: int) -> "PatchFeatures":
        """Fit the centroids by ``iterations`` of k-means on ``patches`` random patches of images [N, 3, H, W] in 0..255."""
        from sklearn.cluster import KMeans

        generator, side = torch.Generator().manual_seed(seed), self.SIDE
        count, _, height, width = images.shape
        n, y, x = (torch.randint(end, (patches,), generator=generator) for end in (count, height - side + 1, width - side + 1))
        windows = images.cpu().unfold(2, side, 1).unfold(3, side, 1)
        chosen = self._contrast(windows[n, :, y, x].flatten(1).float())
        self.mean.copy_(chosen.mean(0))
        centred = chosen.double() - chosen.mean(0, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        self.whitening.copy_((vectors / (values + self.WHITENING).sqrt()) @ vectors.T)
        white = (chosen.to(self.mean) - self.mean) @ self.whitening
        means = KMeans(len(self.centroids), init="random", n_init=1, max_iter=iterations, random_state=seed % 2**32)
        self.centroids.copy_(torch.from_numpy(means.fit(white.cpu().numpy()).cluster_centers_))
        return self

    def standardise(self, features: Tensor) -> "PatchFeatures":
        """Set mean and deviation from features [N, 4 K] of the training images; deviations below 0.1 are not scaled up to 1."""
        self.feature_mean.copy_(features.mean(0))
        self.feature_std.copy_((features.var(0) + 0.01).sqrt())
        return self

    def _contrast(self, patches: Tensor) -> Tensor:
        patches = patches - patches.mean(1, keepdim=True)
        return patches / (patches.var(1, keepdim=True) + self.CONTRAST).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        each = (x.shape[2] - self.SIDE + 1) * (x.shape[3] - self.SIDE + 1) * len(self.centroids)
        parts = x.split(max(1, self.VALUES // each))  # all patches of all images would not fit in memory
        return (torch.cat([self._pooled(part) for part in parts]) - self.feature_mean) / self.feature_std

    def _pooled(self, x: Tensor) -> Tensor:
        rows, columns = (side - self.SIDE + 1 for side in x.shape[2:])
        patches = self._contrast(F.unfold(x, self.SIDE).transpose(1, 2).flatten(0, 1))
        distances = torch.cdist((patches - self.mean) @ self.whitening, self.centroids)
        near = (distances.mean(1, keepdim=True) - distances).relu().view(len(x), rows, columns, -1)
        top, left = (rows + 1) // 2, (columns + 1) // 2
        quadrants = (near[:, :top, :left], near[:, :top, left:], near[:, top:, :left], near[:, top:, left:])
        return torch.cat([quadrant.sum((1, 2)) for quadrant in quadrants], 1)
