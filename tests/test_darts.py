"""DARTS: published counts, a float64 twin, drop path, the auxiliary head, initial weights; the search against torch's own tools."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdcore.models import count_parameters, create
from kdcore.models.darts import (
    GENOTYPES,
    OPERATIONS,
    Cell,
    Darts,
    FactorizedReduce,
    Genotype,
    MixedDarts,
    auxiliary_head,
    edges,
    layout,
    operation,
)  # fmt: skip

SMALL = Genotype(
    normal=(("sep_conv_5x5", 0), ("dil_conv_5x5", 1), ("avg_pool_3x3", 0), ("skip_connect", 2)) + (("none", 1), ("sep_conv_3x3", 3)) * 2,
    reduce=(("max_pool_3x3", 0), ("skip_connect", 1)) + (("dil_conv_3x3", 0), ("avg_pool_3x3", 2)) * 3,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Whettam's thesis: counted with the auxiliary head. Without: recounted. quark0/darts: 36 channels and 20 cells, 3.3M.
COUNTS = {
    ("v2", 10, 16): (774_260, 338_794),
    ("v2", 25, 16): (1_354_980, 919_514),
    ("v1", 10, 16): (755_812, 320_346),
    ("v1", 25, 16): (1_303_492, 868_026),
    ("v2", 20, 36): (None, 3_349_342),
}
# The two orders of uniform growth, for cells 0 to 9; 3 and 6 reduce and have nothing to group.
UNIFORM = {"first": [1, 1, 1, 1, 1, 1, 1, 2, 4, 4], "last": [1, 1, 1, 1, 2, 2, 1, 4, 2, 2]}


@pytest.mark.parametrize("genotype, cells, channels", COUNTS)
def test_published_parameter_counts(genotype, cells, channels):
    with_head, without = COUNTS[genotype, cells, channels]
    with torch.device("meta"):
        assert (
            count_parameters(Darts(genotype, cells, channels))
            == without
            == count_parameters(create(f"darts_{genotype}_{cells}_{channels}"))
        )
        full = count_parameters(Darts(genotype, cells, channels, auxiliary=True))
    assert with_head is None or full == with_head


@pytest.mark.parametrize("order", UNIFORM)
def test_published_count_of_uniform_growth(order):
    with torch.device("meta"):
        net = Darts("v2", 10, 16, groups=UNIFORM[order], auxiliary=True)
        assert count_parameters(net) == 1_428_452 and net.groups == UNIFORM[order]
        assert count_parameters(Darts("v2", 10, 16, groups=UNIFORM[order])) == 992_986


def test_counts_of_buffers_and_of_grown_cells():
    with torch.device("meta"):
        plain = Darts("v2", 10, 16, auxiliary=True)
        assert sum(tensor.numel() for tensor in plain.state_dict().values()) == 774_260 + 10_287, "BatchNorm's statistics"
        # V2-10-f: 673,200 = 99 * 6800 more weights than the student; 99 C (C / g - 1) for a cell
        grown = [1, 2, 8, 1, 1, 2, 1, 1, 2, 64]
        more = [c * (c // g - 1) for c, g in zip([16] * 3 + [0] + [32] * 2 + [0] + [64] * 3, grown, strict=True) if c]
        net = Darts("v2", 10, 16, groups=grown, auxiliary=True)
        assert count_parameters(net) == 774_260 + 99 * sum(more)
        assert count_parameters(MixedDarts(8, 16)) == 1_930_618


def test_head_is_counted_apart():
    with torch.device("meta"):
        assert (
            count_parameters(auxiliary_head(256, 10)) == 256 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10 == 774_260 - 338_794
        )


def test_layout():
    result = layout(10, 16)
    assert [(width, size) for _, width, size, _, _ in result] == [(16, 32)] * 3 + [(32, 16)] * 3 + [(64, 8)] * 4
    assert [i for i, cell in enumerate(result) if cell[3]] == [3, 6] and [i for i, cell in enumerate(result) if cell[4]] == [4, 7]
    assert [inputs for inputs, *_ in result][:5] == [(48, 48), (48, 64), (64, 64), (64, 64), (64, 128)]
    with pytest.raises(ValueError, match="at least 3 cells, not 2"):
        layout(2, 16)
    with pytest.raises(ValueError, match="2 groups for 3 cells"):
        Darts("v2", 3, 4, groups=[1, 1])
    with pytest.raises(ValueError, match="no operation 'conv': choose one of none, max_pool_3x3"):
        operation("conv", 4, 1)


def norm64(h, layer):
    mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
    weight, bias = (1.0, 0.0) if layer.weight is None else (p.double().view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
    return (h - mean) / (var + layer.eps).sqrt() * weight + bias


def grouped64(h, weight, groups, dilation, stride):
    """A convolution that keeps the size, by shifted views: one product for each place of its kernel and each group."""
    outputs, _, side, _ = weight.shape
    reach = dilation * (side // 2)
    padded = F.pad(h, (reach,) * 4)
    height, width = h.shape[2:]
    parts = []
    for group, kernel in zip(padded.chunk(groups, 1), weight.double().chunk(groups, 0), strict=True):
        places = [
            torch.einsum(
                "bihw,oi->bohw",
                group[:, :, i * dilation : i * dilation + height : stride, j * dilation : j * dilation + width : stride],
                kernel[:, :, i, j],
            )
            for i in range(side)
            for j in range(side)
        ]
        parts.append(sum(places))
    return torch.cat(parts, 1)


def pool64(h, kind, stride):
    """3x3 windows, those over the edge smaller."""
    height, width = h.shape[2:]
    result = torch.empty(*h.shape[:2], -(-height // stride), -(-width // stride), dtype=h.dtype)
    for i in range(result.shape[2]):
        for j in range(result.shape[3]):
            y, x = i * stride, j * stride
            window = h[:, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].flatten(2)
            result[:, :, i, j] = window.amax(2) if kind == "max" else window.mean(2)
    return result


def separable64(h, layers, stride):
    _, depthwise, pointwise, norm = layers
    h = grouped64(h.relu(), depthwise.weight, depthwise.groups, depthwise.dilation[0], stride)
    return norm64(torch.einsum("bihw,oi->bohw", h, pointwise.weight.double()[:, :, 0, 0]), norm)


def halved64(h, layer):
    h = h.relu()
    first = torch.einsum("bihw,oi->bohw", h[:, :, ::2, ::2], layer.convs[0].weight.double()[:, :, 0, 0])
    second = torch.einsum("bihw,oi->bohw", h[:, :, 1::2, 1::2], layer.convs[1].weight.double()[:, :, 0, 0])
    return norm64(torch.cat([first, second], 1), layer.norm)


def operation64(name, layer, h, stride):
    if name == "none":
        return torch.zeros_like(h[:, :, ::stride, ::stride])
    if name == "skip_connect":
        return h if stride == 1 else halved64(h, layer)
    if "pool" in name:
        return pool64(h, name[:3], stride)
    if name.startswith("dil"):
        return separable64(h, layer, stride)
    return separable64(separable64(h, layer[:4], stride), layer[4:], 1)


def cell64(cell, edges_of, first, second, reduction):
    nodes = []
    for layer, h in zip(cell.preprocess, (first, second), strict=True):
        if isinstance(layer, FactorizedReduce):
            nodes.append(halved64(h, layer))
        else:
            nodes.append(norm64(torch.einsum("bihw,oi->bohw", h.relu(), layer[1].weight.double()[:, :, 0, 0]), layer[2]))
    for node in range(4):
        parts = []
        for i in (2 * node, 2 * node + 1):
            name, source = edges_of[i]
            parts.append(operation64(name, cell.operations[i], nodes[source], 2 if reduction and source < 2 else 1))
        nodes.append(sum(parts))
    return torch.cat(nodes[2:], 1)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_operations_equal_a_float64_twin(name, stride):
    layer, x = operation(name, 4, stride, groups=2), random(2, 4, 8, 8)
    kernels = {side: 4 * 2 * int(side) ** 2 + 16 + 8 for side in "35"}
    expected = {"sep": 2, "dil": 1}.get(name[:3], 0) * kernels.get(name[-1], 0)
    assert name == "skip_connect" or count_parameters(layer) == expected
    twin = operation64(name, layer, x.double(), stride)
    assert torch.allclose(layer(x).double(), twin, atol=1e-5) and layer(x).shape[2:] == (8 // stride, 8 // stride)
    assert torch.equal(x, random(2, 4, 8, 8)), "nodes are used again: nothing may write to them"


@pytest.mark.parametrize("genotype", ["v1", "v2", SMALL])
@torch.no_grad()
def test_network_equals_a_float64_twin(genotype):
    net = Darts(genotype, 4, 4, classes=3).reset(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(1 + 0.3 * random(len(module.weight)))
            module.bias.copy_(0.3 * random(len(module.bias), seed=1))
    x = random(2, 3, 8, 8)
    h = norm64(grouped64(x.double(), net.stem[0].weight, 1, 1, 1), net.stem[1])
    before, kinds = h, GENOTYPES.get(genotype) if isinstance(genotype, str) else genotype
    results = {"stem": h}
    for i, cell in enumerate(net.cells):
        reduction = i in (1, 2)
        before, h = h, cell64(cell, kinds.reduce if reduction else kinds.normal, before, h, reduction)
        results[f"cell{i}"] = h
    results["pooled"] = h.mean((2, 3))
    logits = results["pooled"] @ net.linear.weight.double().T + net.linear.bias.double()
    ours, taps = net.features(x)
    assert torch.allclose(ours.double(), logits, atol=1e-4)
    assert list(taps) == list(results) and all(torch.allclose(taps[name].double(), results[name], atol=1e-4) for name in results)


def test_initial_weights_are_pytorchs():
    net = Darts("v2", 4, 8).reset(3)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            limit = 1 / math.sqrt(module.weight[0].numel())
            size = module.weight.abs().max().item()
            assert size <= limit and (module.weight.numel() < 100 or size > 0.9 * limit)
    torch.manual_seed(0)
    theirs = nn.Conv2d(8, 8, 3, groups=8).weight
    ours = torch.cat([layer.weight.flatten() for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 8])
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15)
    again, other = Darts("v2", 4, 8).reset(3), Darts("v2", 4, 8).reset(4)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(net.linear.weight, other.linear.weight)


def test_taps_and_what_they_depend_on():
    net = create("darts_v2_5_4")
    assert {name: tuple(tap) for name, tap in net.taps.items()} == {
        "stem": (12, 32), "cell0": (16, 32), "cell1": (32, 16), "cell2": (32, 16), "cell3": (64, 8), "cell4": (64, 8), "pooled": (64, 1)
    }  # fmt: skip
    logits, taps = net.features(random(2, 3, 32, 32))
    assert all(tuple(taps[name].shape) == (2, *tap.shape) for name, tap in net.taps.items())
    before = net.parameters_before("cell1")
    gradients = torch.autograd.grad(taps["cell1"].sum(), list(net.parameters()), allow_unused=True)
    touched = [parameter for parameter, gradient in zip(net.parameters(), gradients, strict=True) if gradient is not None]
    assert len(touched) == len(before) and all(a is b for a, b in zip(touched, before, strict=True))


def test_drop_path_by_hand():
    """With all operations but identities left out, a cell is what its identities pass on."""
    cell = Cell(GENOTYPES["v2"], (4, 4), 4, False, False, None)
    first, second = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1)
    scales = torch.zeros(8, 3, 1, 1, 1)
    scales[6:] = 2.0
    zero = cell.preprocess[0](first)
    nodes = cell(first, second, scales).chunk(4, 1)
    assert nodes[0].abs().max() == nodes[1].abs().max() == 0
    # node 2: sep_conv of 1 (left out) + skip of 0; node 3: skip of 0 + dil_conv of node 0, twice its value
    assert torch.allclose(nodes[2], zero, atol=1e-5)
    dilated = cell.operations[7](nodes[0])
    assert torch.allclose(nodes[3], zero + 2 * dilated, atol=1e-5), "an identity is never scaled"


def test_drop_path_only_in_training_and_at_its_rate(monkeypatch):
    net, seen = create("darts_v2_3_4"), []
    original = Cell.forward
    monkeypatch.setattr(Cell, "forward", lambda self, a, b, scales=None: (seen.append(scales), original(self, a, b, scales))[1])
    x = random(40, 3, 8, 8)
    net.drop_path.fill_(0.2)
    torch.manual_seed(0)
    net(x)
    values = torch.stack(seen)
    assert values.shape == (3, 8, 40, 1, 1, 1) and values.unique().tolist() == [0.0, 1.25]
    assert values.mean().item() == pytest.approx(1, abs=0.05) and values[0].std(1).max() > 0, "each image on its own"
    seen.clear()
    net.eval()(x)
    assert seen == [None] * 3
    # nothing is left out at 0, and the number is no weight
    net.train().drop_path.fill_(0.0)
    seen.clear()
    net(x)
    assert torch.stack(seen).unique().tolist() == [1.0]
    assert "drop_path" not in net.state_dict()


def test_no_drop_path_is_a_drop_path_of_0():
    net, x = create("darts_v2_3_4"), random(4, 3, 8, 8)

    def outcome():
        logits = net(x)
        return logits, torch.cat([g.flatten() for g in torch.autograd.grad(logits.square().sum(), list(net.parameters()))])

    logits, gradient = outcome()
    net.drop_path = None
    state = torch.get_rng_state()
    again, its_gradient = outcome()
    assert torch.equal(again, logits) and torch.allclose(its_gradient, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


def test_auxiliary_head():
    net = Darts("v2", 3, 4, classes=7, auxiliary=True)
    x = random(2, 3, 32, 32)
    logits, taps = net.features(x)
    assert taps["auxiliary"].shape == (2, 7) and "auxiliary" not in net.taps and logits.shape == (2, 7)
    torch.manual_seed(0)
    plain = net(x)
    torch.manual_seed(0)
    assert torch.equal(net.features(x)[0], plain), "the head changes nothing"
    # on the cell at two thirds: its loss reaches that cell and nothing behind it
    gradients = torch.autograd.grad(taps["auxiliary"].sum(), list(net.parameters()), allow_unused=True)
    reached = {name for (name, _), gradient in zip(net.named_parameters(), gradients, strict=True) if gradient is not None}
    assert {name.split(".")[0] for name in reached} == {"stem", "cells", "auxiliary"} and any("cells.2." in name for name in reached)
    net.eval()
    h = taps["cell2"].relu()
    # 8x8, windows of 5 with stride 3: rows 0..4 and 3..7
    pooled = torch.stack([torch.stack([h[:, :, y : y + 5, x : x + 5].mean((2, 3)) for x in (0, 3)], -1) for y in (0, 3)], -2)
    assert torch.allclose(net.auxiliary[1](h), pooled, atol=1e-5)


def test_edges_of_a_search():
    assert len(edges()) == 14 and edges()[:5] == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    net = MixedDarts(3, 2)
    assert net.alphas.shape == (2, 14, 8) and "alphas" in net.state_dict() and net.alphas.std().item() == pytest.approx(1e-3, rel=0.2)
    assert not any(parameter is net.alphas for parameter in net.parameters())


@torch.no_grad()
def test_a_mixture_with_one_choice_is_that_operation():
    """Alphas far apart: the mixed network gives what its chosen operations give, all sources of a node in sum."""
    net, x = MixedDarts(3, 2), random(2, 3, 8, 8)
    alphas = torch.full_like(net.alphas, -1e4)
    choices = torch.arange(2 * 14).view(2, 14) % 8
    alphas.scatter_(2, choices.unsqueeze(2), 0.0)
    h = before = net.stem(x)
    for cell, kind in zip(net.cells, (0, 1, 1), strict=True):
        nodes = [cell.preprocess[0](before), cell.preprocess[1](h)]
        for node in range(2, 6):
            mine = [i for i, (to, _) in enumerate(edges()) if to == node]
            nodes.append(sum(cell.edges[i][choices[kind, i]](nodes[edges()[i][1]]) for i in mine))
        before, h = h, torch.cat(nodes[2:], 1)
    assert torch.allclose(net(x, alphas), net.linear(h.mean((2, 3))), atol=1e-4)
    assert not torch.allclose(net(x), net(x, alphas), atol=1e-2)


def test_genotype_from_alphas_by_hand():
    net = MixedDarts(3, 2)
    net.alphas.zero_()
    net.alphas[:, :, 0] = 9.0  # "none" never counts
    for edge, operation_, value in (
        (0, 4, 1.0),
        (1, 3, 2.0),
        (2, 1, 3.0),
        (3, 1, 1.0),
        (4, 5, 2.0),
        (7, 2, 5.0),
        (8, 7, 4.0),
        (13, 6, 1.0),
    ):
        net.alphas[0, edge, operation_] = value
    net.alphas[0, 7, 0] = 20.0  # its softmax is small then: edge 5, an even one, is not better than edge 8
    result = net.genotype()
    assert result.normal[:4] == (("skip_connect", 1), ("sep_conv_3x3", 0), ("max_pool_3x3", 0), ("sep_conv_5x5", 2))
    assert result.normal[4] == ("dil_conv_5x5", 3), "edge 8 is node 4's from node 3"
    assert result.normal[6] == ("dil_conv_3x3", 4)
    assert len(result.normal) == len(result.reduce) == 8
    assert Darts(result, 3, 4)(random(2, 3, 8, 8)).shape == (2, 10), "what is found can be built"
