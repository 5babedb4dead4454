"""The networks of Ba & Caruana 2014, deep and shallow, in the notation of their table 2; k-means features of patches."""

import math
import re

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdcore.models.network import Network, keep, relu

POOL, STRIDE = 3, 2  # 32 -> 15 -> 7 -> 3: the one geometry that gives the table's 54M and 70M parameters
LOCAL = 3  # side of a locally connected filter (Hinton et al. 2012, arXiv 1207.0580, appendix F [M])
UNITS = r"([1-9]\d*)(k?)(c|lc|fc|L)?"


class Layered(Network):
    """Layers as table 2 writes them, "128c-p-1200L-30k", and a linear layer of ``classes`` outputs (Ba & Caruana 2014).

    128c: convolution, 128 maps, ``kernel`` x ``kernel``, of the size of its input; 16lc: locally connected, 16 maps, a 3x3
    filter of its own at every place; 1000fc, 1000 or 30k: fully connected; ReLU after each of them. 1200L: fully connected
    and linear. p: pooling of 3x3 places, two apart, none beyond the border. fc: the output layer, written out.

    pooling: "max", or "stochastic" (``stochastic_pool``). input_dropout: share of the input values set to zero in training;
    dropout: of the units of every lc, fc and k layer, and of what enters an output layer that is written out.

    Taps: layer1, layer2, ... for the layers with weights but the last, with ".pre" before a ReLU. ``hidden_units`` counts as
    the table does: every unit of every map, before and after pooling.
    Raises ValueError for layers that cannot be read or put on top of each other.
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
        """Fresh weights, in place, drawn from ``seed`` alone; biases are 0.

        Maps N(0, 2 / inputs) (He et al. 2015, "Delving deep into rectifiers", eq. 10: there is no BatchNorm), linear layers
        N(0, 1 / inputs), ReLU layers N(0, 0.01^2) as in Hinton et al. 2012 [M]: the curvature of a loss along the mean of
        30,000 units grows with the square of their size, and bounds the rate.
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
    """Maps [B, C, H, W] as vectors, place by place: the order they have in memory, where the other one would cost a copy
    forward and another backward."""
    return h.permute(0, 2, 3, 1).flatten(1) if h.dim() == 4 else h


class LocallyConnected(nn.Module):
    """A 3x3 convolution whose filters differ from place to place: maps [B, inputs, size, size] -> [B, outputs, size, size]."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size**2, outputs, inputs * LOCAL**2))
        self.bias = nn.Parameter(torch.zeros(outputs, size, size))

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, LOCAL, padding=LOCAL // 2)  # [B, inputs * 9, places]
        return torch.einsum("bip,poi->bop", windows, self.weight).view(-1, *self.bias.shape) + self.bias


def parse(layers: str) -> list[tuple[str, int]]:
    """(kind, units) of each layer of a word: "c", "lc", "L", "fc" (k too), "p" and "out" (without units: 0).

    Raises ValueError for what is no layer.
    """
    found = []
    for word in layers.split("-"):
        if word in ("p", "fc"):
            found.append(({"p": "p", "fc": "out"}[word], 0))
        elif match := re.fullmatch(UNITS, word):
            number, thousand, kind = match.groups()
            found.append((kind or "fc", int(number) * (1000 if thousand else 1)))
        else:
            raise ValueError(f"'{word}' of '{layers}' is no layer: write 128c, 16lc, 1200L, 1000fc, 30k, p or fc")
    if "out" in [kind for kind, _ in found[:-1]]:
        raise ValueError(f"'{layers}' has layers after its output fc")
    return found


def scaled(layers: str, width: float) -> str:
    """The same layers with ``width`` times the units each, rounded, at least one: "128c-p-30k" at 0.25 is "32c-p-7500fc"."""
    words = [f"{max(1, round(width * units))}{kind}" if units else {"p": "p", "out": "fc"}[kind] for kind, units in parse(layers)]
    return "-".join(words)


def stochastic_pool(h: Tensor, training: bool) -> Tensor:
    """Stochastic pooling of windows of 3x3 places, two apart (Zeiler & Fergus 2013, section 3 [M]).

        training: one place l of the window, drawn with p_l = a_l / sum_k a_k;   else  sum_l p_l a_l

    h: activations a >= 0, [B, C, H, W]. A window of zeros gives 0.
    """
    if not training:
        total = F.avg_pool2d(h, POOL, STRIDE)
        return F.avg_pool2d(h.square(), POOL, STRIDE) / (total + (total == 0))
    return _Drawn.apply(h)


class _Drawn(torch.autograd.Function):
    """One place of each window, drawn in proportion to its value.

    Sums and masks of whole maps in their own memory order: looking each place up takes twice as long on a CPU.
    """

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        places = _places(_parts(h.float()), h.shape)
        total = sum(places)
        draw = torch.rand_like(total) * total
        value, bound, drawn, later = places[0].clone(), places[0].clone(), torch.zeros_like(total), torch.empty_like(total)
        for place in places[1:]:
            torch.le(bound, draw, out=later)  # 1 up to the place that is drawn, then 0: the bounds never fall
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
    """Copies of every second row and column of maps [B, C, H, W], one for each of the four that can be the first."""
    return [h[:, :, i::STRIDE, j::STRIDE].clone() for i in range(STRIDE) for j in range(STRIDE)]


def _places(parts: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """For each place of a window, its values in all windows of maps of a shape [B, C, H, W]: views [B, C, rows, columns]."""
    rows, columns = ((side - POOL) // STRIDE + 1 for side in shape[2:])
    return [
        parts[STRIDE * (i % STRIDE) + j % STRIDE][:, :, i // STRIDE : i // STRIDE + rows, j // STRIDE : j // STRIDE + columns]
        for i in range(POOL)
        for j in range(POOL)
    ]


class PatchFeatures(nn.Module):
    """A single layer of k-means features: images [B, 3, H, W] of 0..255 -> [B, 4 K] (Coates, Lee & Ng 2011 [M]).

    Every 6x6 patch, less its mean, divided by sqrt(its variance + 10) and whitened (ZCA, 0.1 added to the eigenvalues), is
    compared with K centroids. Feature k of a patch is max(0, mean distance - its distance to k); features are summed over
    each quadrant of the image, then brought to zero mean and unit variance over the training images.
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
        """Centroids of ``patches`` random patches of images [N, 3, H, W] in 0..255, after ``iterations`` of k-means."""
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
        """Take mean and deviation of the features [N, 4 K] of the training images; what varies by less than 0.1 is not blown up."""
        self.feature_mean.copy_(features.mean(0))
        self.feature_std.copy_((features.var(0) + 0.01).sqrt())
        return self

    def _contrast(self, patches: Tensor) -> Tensor:
        patches = patches - patches.mean(1, keepdim=True)
        return patches / (patches.var(1, keepdim=True) + self.CONTRAST).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        each = (x.shape[2] - self.SIDE + 1) * (x.shape[3] - self.SIDE + 1) * len(self.centroids)
        parts = x.split(max(1, self.VALUES // each))  # all patches of all images would not fit
        return (torch.cat([self._pooled(part) for part in parts]) - self.feature_mean) / self.feature_std

    def _pooled(self, x: Tensor) -> Tensor:
        rows, columns = (side - self.SIDE + 1 for side in x.shape[2:])
        patches = self._contrast(F.unfold(x, self.SIDE).transpose(1, 2).flatten(0, 1))
        distances = torch.cdist((patches - self.mean) @ self.whitening, self.centroids)
        near = (distances.mean(1, keepdim=True) - distances).relu().view(len(x), rows, columns, -1)
        top, left = (rows + 1) // 2, (columns + 1) // 2
        quadrants = (near[:, :top, :left], near[:, :top, left:], near[:, top:, :left], near[:, top:, left:])
        return torch.cat([quadrant.sum((1, 2)) for quadrant in quadrants], 1)
