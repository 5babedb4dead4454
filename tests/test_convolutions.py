"""Every convolution that the suite trains with, on this processor: oneDNN's results against PyTorch's own plain kernels.

Run it under ``ONEDNN_MAX_CPU_ISA=AVX2`` as well: oneDNN picks other code there.
"""

from functools import cache

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore import models, papers
from kdcore.models import Darts, Layered, Maxout, Network
from kdcore.models.darts import MixedDarts
from kdcore.models.network import SubsampledConv2d, conv
from kdcore.models.shallow import scaled

LARGE = 2**26  # products of a case, above which one case is enough: plain kernels are slow


class Convolutions(TorchDispatchMode):
    """Keeps (input shape without the batch, weight shape, stride, padding, dilation, groups) of every convolution that runs."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, dilation, transposed, _, groups = arguments
            assert not transposed
            self.seen.add((tuple(x.shape[1:]), tuple(weight.shape), tuple(stride), tuple(padding), tuple(dilation), groups))
        return function(*arguments, **(keywords or {}))


def networks():
    """Every network that a config of any paper and budget names, by its name: what builds it."""
    results = {}
    for key in papers.names():
        paper = papers.get(key)
        for budget in paper.budgets:
            for arm in paper.budget_arms(budget):
                config = paper.config(budget, arm)
                for name in (config.get("network"), config.get("teacher_network")):
                    if name is not None:
                        results[name] = lambda name=name: models.create(name)
                if config.get("search"):
                    cells, channels = config["search"]["cells"], config["search"]["channels"]
                    results[f"search {cells} {channels}"] = lambda cells=cells, channels=channels: MixedDarts(cells, channels)
                if isinstance(config.get("layers"), str) and config["method"] != "features":
                    name = scaled(config["layers"], config["width"])
                    results[name] = lambda name=name, config=config: models.create(name, kernel=config["kernel"])
    return results


@cache
def shapes() -> list:
    """Of all networks, read off a forward pass without data: [C, H, W], the weight's shape, stride, padding, dilation, groups."""
    seen = set()
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"), torch.no_grad():
        for kind in (Network, Darts, MixedDarts, Maxout, Layered):
            patch.setattr(kind, "reset", lambda self, seed: self)  # initial weights take longer than all the rest
        for name, build in networks().items():
            net, x = build(), torch.empty(2, *((1, 28, 28) if "mnist" in name else (3, 32, 32)))
            with Convolutions() as convolutions:
                net.features(x) if isinstance(net, Network) else net(x)
            seen |= convolutions.seen
    return sorted(seen)


def products(shape) -> int:
    (_, height, width), (outputs, inputs, *side), stride, *_ = shape
    return height * width // (stride[0] * stride[1]) * outputs * inputs * side[0] * side[1]


def test_no_strided_pointwise_convolution_is_left_to_onednn():
    """Where it has few channels, oneDNN writes past its workspace in the gradient of the weights: the process ends, or it is wrong."""
    assert len(shapes()) > 500
    strided = [shape for shape in shapes() if shape[1][2:] == (1, 1) and max(shape[2]) > 1]
    assert not strided, f"strided 1x1 convolutions: {strided}"


@pytest.mark.parametrize("part", range(4))
def test_gradients_are_those_of_plain_kernels(part):
    generator = torch.Generator().manual_seed(0)
    for shape in shapes()[part::4]:
        inputs, weights, stride, padding, dilation, groups = shape
        cases = 1 if products(shape) > LARGE else 3
        x = torch.randn(cases, *inputs, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(weights, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
        results = []
        for onednn in (True, False):
            with torch.backends.mkldnn.flags(enabled=onednn):
                y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
                direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
                results.append((y, *torch.autograd.grad(y, (x, weight), direction)))
        for name, ours, plain in zip(("output", "input's gradient", "weight's gradient"), *results, strict=True):
            # sums of so many products of normal numbers, in another order: far below one such product
            scale = plain.abs().max().item()
            worst = (ours - plain).abs().max().item()
            assert worst <= 1e-4 * scale, f"{name} of {inputs}, {weights}, stride {stride}: {worst:.2g} beside {scale:.2g}"


@pytest.mark.parametrize("inputs, outputs", [(2, 3), (4, 4), (8, 16), (64, 128)])
def test_subsampled_convolution_is_the_strided_one(inputs, outputs):
    """The same function, parameters and names: in float64 and NCHW, where the strided one is right."""
    layer = conv(inputs, outputs, 1, 2).double()
    assert isinstance(layer, SubsampledConv2d) and [name for name, _ in layer.named_parameters()] == ["weight"]
    for size in (8, 9):
        x = torch.randn(3, inputs, size, size, dtype=torch.float64, requires_grad=True)
        expected = F.conv2d(x, layer.weight, stride=2)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        direction = torch.randn_like(expected)
        ours, theirs = (torch.autograd.grad(y, (x, layer.weight), direction) for y in (layer(x), expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
