"""Maxout networks: the papers' counts, a float64 twin, the gradient of the maximum, dropout, limits on norms, initial weights."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdcore.errors import KdcoreError
from kdcore.models import Maxout, Tap, count_parameters, create
from kdcore.models.maxout import DESIGNS, Layer, MaxoutConv, MaxoutDense, largest, limit_rows

# Weights without biases, counted by hand from the papers' layers: kernel^2 * inputs * channels * pieces, and the dense layers.
WEIGHTS = {
    "maxout_cifar": 64 * 3 * 192 + 64 * 96 * 384 + 25 * 192 * 384 + 192 * 25 * 1000 + 500 * 10,
    "maxout_mnist": 64 * 96 + 64 * 48 * 96 + 25 * 48 * 96 + 24 * 9 * 10,
    "fitnet_mnist": 25 * 32 + 9 * 16 * 32 + 25 * 16 * 32 + 9 * 16 * 32 + 9 * 16 * 48 + 9 * 12 * 48 + 12 * 9 * 10,
}
# (weights, mult-adds, layers with weights) as printed in the FitNets paper; FitNet 3's row is its own riddle.
PUBLISHED = {
    "maxout_cifar": (9.0e6, 725e6, 5),
    "fitnet_1": (250e3, 30e6, 11),
    "fitnet_2": (862e3, 108e6, 11),
    "fitnet_4": (2.5e6, 382e6, 19),
}
FITNET_3 = (1_503_304, 323_946_376)  # the printed 1.6M and 392M do not follow from its printed channels


def weights(net):
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def on_meta(name, **options):
    with torch.device("meta"):
        return create(name, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    net = on_meta(name)
    parameters, operations, layers = PUBLISHED[name]
    assert weights(net) == pytest.approx(parameters, rel=0.02)
    assert net.multiply_adds == pytest.approx(operations, rel=0.01)
    assert sum(p.dim() > 1 for p in net.parameters()) == layers


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_counted_by_hand(name):
    assert weights(on_meta(name)) == WEIGHTS[name]


def test_counts_that_are_known_to_the_unit():
    assert weights(on_meta("maxout_cifar")) == 9_044_360
    assert (weights(on_meta("fitnet_3")), on_meta("fitnet_3").multiply_adds) == FITNET_3
    # five linear maps for two of each of the 500 units, from 128 inputs
    assert weights(on_meta("fitnet_4_released")) - weights(on_meta("fitnet_4")) == 3 * 500 * 128
    assert weights(on_meta("fitnet_4_released")) == 2_736_712
    assert weights(on_meta("fitnet_mnist")) / weights(on_meta("maxout_mnist")) == pytest.approx(0.086, abs=5e-4), "about 8 %"
    # 100 classes: 90 more rows of 500; biases: one a linear map
    assert weights(on_meta("fitnet_4", classes=100)) - weights(on_meta("fitnet_4")) == 90 * 500
    assert count_parameters(on_meta("fitnet_1")) - weights(on_meta("fitnet_1")) == 2 * (3 * 16 + 3 * 32 + 48 + 48 + 64) + 1000 + 10


def test_mult_adds_by_hand():
    # MNIST's student: maps of 24, 22, 12, 10, 8, 6 before their pooling
    sides, products = (24, 22, 12, 10, 8, 6), (25 * 32, 9 * 16 * 32, 25 * 16 * 32, 9 * 16 * 32, 9 * 16 * 48, 9 * 12 * 48)
    assert on_meta("fitnet_mnist").multiply_adds == sum(s**2 * p for s, p in zip(sides, products, strict=True)) + 1080


def test_maps_have_the_papers_sizes():
    sides = {name: [tap.size for tap in on_meta(name).taps.values()] for name in DESIGNS}
    assert sides["maxout_cifar"] == [16, 7, 5, 1], "33, 15 and 9 before the pooling, whose windows may hang over"
    assert sides["maxout_mnist"] == [10, 4, 3]
    assert sides["fitnet_mnist"] == [24, 10, 12, 4, 8, 3]
    assert sides["fitnet_4"] == [32] * 4 + [16] * 6 + [8] * 6 + [1, 1]
    assert on_meta("fitnet_4").taps["conv11"] == Tap(80, 8) and on_meta("maxout_cifar").taps["conv2"] == Tap(192, 7)
    assert on_meta("fitnet_1").taps["conv6"].size == on_meta("fitnet_3").taps["conv8"].size == 8


@pytest.mark.parametrize("name", [*DESIGNS, "fitnet_4/16"])
def test_declared_taps_are_what_features_gives(name):
    net, design = on_meta(name, classes=7), DESIGNS[name.partition("/")[0]]
    logits, taps = net.features(torch.empty(2, design.channels, design.size, design.size, device="meta"))
    assert logits.shape == (2, 7) and list(taps) == list(net.taps)
    for tap, (channels, size) in net.taps.items():
        assert tuple(taps[tap].shape) == ((2, channels) if tap == "dense" else (2, channels, size, size))


def test_a_divisor_thins_every_layer():
    assert [tap.channels for tap in on_meta("fitnet_4/16").taps.values()] == [2] * 3 + [3] * 2 + [5] * 6 + [8] * 6 + [31]
    for name in ("fitnet_5", "maxout_svhn", "fitnet_4/0"):
        with pytest.raises(KdcoreError, match="unknown network .*fitnet_1 to fitnet_4"):
            create(name)


def naive(conv: MaxoutConv, x: np.ndarray) -> np.ndarray:
    """A maxout layer in float64, one output at a time; pooling windows are cut at the edge."""
    weight, bias, layer = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy(), conv.layer
    x = np.pad(x, ((0, 0), (0, 0), (layer.pad,) * 2, (layer.pad,) * 2))
    side = x.shape[-1] - layer.kernel + 1
    maps = np.zeros((len(x), layer.channels, side, side))
    for i in range(side):
        for j in range(side):
            window = x[:, :, i : i + layer.kernel, j : j + layer.kernel]
            values = np.einsum("ncij,ocij->no", window, weight) + bias
            maps[:, :, i, j] = np.stack([values[:, p * layer.channels : (p + 1) * layer.channels] for p in range(layer.pieces)]).max(0)
    places = range(0, layer.stride * (math.ceil((side - layer.pool) / layer.stride) + 1), layer.stride)
    return np.stack([np.stack([maps[:, :, i : i + layer.pool, j : j + layer.pool].max((2, 3)) for j in places], -1) for i in places], -2)


def shaken(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    return module


@pytest.mark.parametrize("layer", [Layer(3, 3, 1), Layer(2, 4, 0, 4, 2, pieces=3), Layer(2, 3, 1, 8, 1)])
def test_a_layer_equals_a_float64_loop(layer):
    conv = shaken(MaxoutConv(2, layer))
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = naive(conv, x.double().numpy())
    assert conv(x).shape == expected.shape and conv.sizes(8)[1] == expected.shape[-1]
    assert np.allclose(conv(x).detach().numpy(), expected, atol=1e-5)
    assert torch.allclose(conv(x.to(memory_format=torch.channels_last)), conv(x), atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 5])
def test_a_dense_unit_is_the_largest_of_its_pieces(pieces):
    layer = shaken(MaxoutDense(4, 3, pieces).double())
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    expected = np.stack([values[:, unit::3].max(1) for unit in range(3)], 1)
    assert np.allclose(layer(x).detach().numpy(), expected, rtol=1e-12)


def test_the_net_is_its_layers_in_turn():
    net = shaken(create("fitnet_mnist/4"))
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    h = x.double().numpy()
    for conv in net.convs:
        h = naive(conv, h)
    expected = h.reshape(2, -1) @ net.linear.weight.detach().double().numpy().T + net.linear.bias.detach().double().numpy()
    assert np.allclose(net(x).detach().numpy(), expected, atol=1e-4)
    dense = shaken(create("fitnet_1/8"))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    _, taps = dense.features(image)
    assert torch.allclose(taps["dense"], F.linear(taps["conv9"].flatten(1), dense.dense.weight, dense.dense.bias).view(2, 2, 62).amax(1))


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_the_gradient_of_the_maximum(pieces):
    h = torch.randn(2, 3 * pieces, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(largest(h, pieces), h.view(2, pieces, 3, 4, 5).amax(1))
    assert torch.autograd.gradcheck(lambda t: largest(t, pieces), (h,))
    last = h.detach().to(memory_format=torch.channels_last).requires_grad_()
    (largest(last, pieces) * 2).sum().backward()
    best = h.view(2, pieces, 3, 4, 5).argmax(1, keepdim=True)
    assert torch.equal(last.grad.view(2, pieces, 3, 4, 5), torch.zeros(2, pieces, 3, 4, 5).double().scatter(1, best, 2.0))


def test_a_tie_gives_its_gradient_once():
    h = torch.zeros(1, 4, 1, 1, requires_grad=True)
    largest(h, 4).sum().backward()
    assert h.grad.flatten().tolist() == [1, 0, 0, 0]


def test_initial_weights():
    net = create("fitnet_mnist", irange=0.3).reset(5)
    for p in net.parameters():
        if p.dim() == 1:
            assert p.abs().sum() == 0
        else:
            assert p.abs().max() <= 0.3 and p.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.1)
    first = {key: value.clone() for key, value in net.state_dict().items()}
    again = create("fitnet_mnist", irange=0.3).to(memory_format=torch.channels_last)
    before = torch.get_rng_state()
    again.reset(5)
    assert all(torch.equal(value, first[key]) for key, value in again.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    assert not torch.equal(net.reset(6).convs[1].weight, first["convs.1.weight"])
    assert create("fitnet_mnist").convs[0].weight.abs().max() <= 0.005


def test_rows_longer_than_the_limit_are_cut_to_it():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    limit_rows(weight, 2.0)
    assert torch.allclose(weight, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.equal(weight[1], torch.tensor([0.3, 0.4])), "untouched to the bit"


def test_limits_of_each_layer():
    net = create("maxout_mnist")
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(3.0)
    net.limit_norms()
    norms = [torch.linalg.vector_norm(layer.weight.flatten(1), dim=1) for layer in (*net.convs, net.linear)]
    for results, limit in zip(norms, (0.9, 1.9365, 1.9365, 1.9365), strict=True):
        assert torch.allclose(results, torch.tensor(limit), atol=1e-4)
    assert all((layer.bias == 3).all() for layer in (*net.convs, net.linear)), "biases are free"
    student = create("fitnet_1/4")
    with torch.no_grad():
        student.dense.weight.fill_(3.0)
    student.limit_norms()
    assert torch.allclose(torch.linalg.vector_norm(student.dense.weight, dim=1), torch.tensor(1.9), atol=1e-4)
    assert [layer.limit for layer in DESIGNS["maxout_cifar"].layers] == [0.9, 1.9365, 1.9365]
    assert {layer.limit for name in ("fitnet_1", "fitnet_4") for layer in DESIGNS[name].layers} == {0.9}
    assert [layer.limit for layer in DESIGNS["fitnet_mnist"].layers] == [0.9, 0.9] + [1.9365] * 4


def test_dropout_in_training_alone():
    net = shaken(create("maxout_mnist/8", input_dropout=0.2, hidden_dropout=0.5))
    x = torch.ones(3, 1, 28, 28)
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))
    plain = shaken(create("maxout_mnist/8"))
    assert torch.equal(net.eval()(x), plain(x))


def test_pixels_that_stay_are_not_scaled_and_hidden_values_are(monkeypatch):
    net, seen = create("maxout_mnist/8", input_dropout=0.25, hidden_dropout=0.5).train(), []
    monkeypatch.setattr(net.convs[0], "forward", lambda x: seen.append(x) or torch.ones(2, 6, 10, 10))
    monkeypatch.setattr(net.convs[1], "forward", lambda x: seen.append(x) or torch.ones(2, 6, 4, 4))
    net(torch.ones(2, 1, 28, 28))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0} and seen[0].mean().item() == pytest.approx(0.75, abs=0.05)
    assert set(seen[1].unique().tolist()) == {0.0, 2.0} and seen[1].mean().item() == pytest.approx(1, abs=0.15)


def test_parameters_before_a_tap_are_those_with_a_gradient():
    net = shaken(create("fitnet_1/8"))
    _, taps = net.features(torch.randn(2, 3, 32, 32))
    for tap in net.taps:
        gradients = torch.autograd.grad(taps[tap].sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
        reached = [p for p, gradient in zip(net.parameters(), gradients, strict=True) if gradient is not None]
        assert [id(p) for p in net.parameters_before(tap)] == [id(p) for p in reached], tap


def test_maxout_of_equal_pieces_is_the_net_of_one_piece():
    """The limit in which the maximum over pieces does nothing: a net of plain convolutions, and of pooling where the paper has it."""
    net = shaken(create("fitnet_mnist/4"))
    with torch.no_grad():
        for conv in net.convs:
            conv.weight.copy_(conv.weight[: conv.layer.channels].repeat(conv.layer.pieces, 1, 1, 1))
            conv.bias.copy_(conv.bias[: conv.layer.channels].repeat(conv.layer.pieces))
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    h = x
    for conv in net.convs:
        layer = conv.layer
        h = F.conv2d(h, conv.weight[: layer.channels], conv.bias[: layer.channels], padding=layer.pad)
        h = F.max_pool2d(h, layer.pool, layer.stride, ceil_mode=True)
    assert torch.allclose(net(x), F.linear(h.flatten(1), net.linear.weight, net.linear.bias), atol=1e-5)


def test_create_gives_a_maxout_net():
    assert isinstance(create("fitnet_2"), Maxout)
