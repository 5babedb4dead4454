"""The nets of Ba & Caruana 2014: recounted parameters, float64 twins, stochastic pooling, dropout, k-means features."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdcore.errors import KdcoreError
from kdcore.models import Layered, count_parameters, create
from kdcore.models.shallow import LocallyConnected, PatchFeatures, parse, scaled, stochastic_pool


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snn(maps: int, side: int) -> tuple[int, int]:
    """Parameters and hidden units of maps-p-1200L-30k where the pool leaves side x side places: recounted by hand."""
    parameters = (75 * maps + maps) + (maps * side**2 * 1200 + 1200) + (1200 * 30_000 + 30_000) + (30_000 * 10 + 10)
    return parameters, maps * 32**2 + maps * side**2 + 1200 + 30_000


# Table 2 prints ~70M and ~190k for 128 maps, ~54M and ~110k for 64: two digits each.
PRINTED = {128: ("70M", "190k"), 64: ("54M", "110k")}


def printed(parameters: int, hidden: int) -> tuple[str, str]:
    return f"{int(parameters / 1e6 + (0.5 if parameters < 60e6 else 0))}M", f"{round(hidden / 1e4) * 10}k"


def test_only_15_by_15_places_give_the_printed_counts():
    for maps, expected in PRINTED.items():
        assert printed(*snn(maps, 15)) == expected
        assert all(printed(*snn(maps, side))[0] != expected[0] for side in (13, 14, 16, 17))
    with torch.device("meta"):
        for maps in PRINTED:
            net = create(f"{maps}c-p-1200L-30k")
            assert (count_parameters(net), net.hidden_units) == snn(maps, 15)


# Weights and biases, layer by layer; units before and after each pool.
COUNTS = {
    "2000-2000": (3072 * 2000 + 2000 + 2000 * 2000 + 2000 + 20_010, 4000),
    "64c-p-64c-p-64c-p-16lc": (4864 + 2 * 102_464 + 9 * 16 * (64 * 9 + 1) + 1450, 64 * (1024 + 225 + 225 + 49 + 49 + 9) + 16 * 9),
    "64c-p-64c-p-128c-p-fc": (4864 + 102_464 + 204_928 + 11_530, 64 * (1024 + 225 + 225 + 49) + 128 * (49 + 9)),
    "128c-p-128c-p-128c-p-1000fc": (9728 + 2 * 409_728 + 1_153_000 + 10_010, 128 * (1024 + 225 + 225 + 49 + 49 + 9) + 1000),
}


@pytest.mark.parametrize("layers", COUNTS)
def test_recounted_parameters(layers):
    with torch.device("meta"):
        net = create(layers)
    assert (count_parameters(net), net.hidden_units) == COUNTS[layers]


def test_maps_of_every_layer():
    net = Layered("4c-p-4c-p-5c-p-2lc-7fc-3L-1k", classes=6)
    x = images(2, 3, 32, 32)
    logits, taps = net.features(x)
    assert [tuple(taps[f"layer{i}"].shape[1:]) for i in range(1, 8)] == [
        (4, 32, 32), (4, 15, 15), (5, 7, 7), (2, 3, 3), (7,), (3,), (1000,),
    ]  # fmt: skip
    assert logits.shape == (2, 6) and torch.equal(net.eval()(x), net.features(x)[0])
    assert "layer6.pre" not in taps and torch.equal(taps["layer5"], taps["layer5.pre"].relu())
    cut, some = net.features(x, until=["layer2"])
    assert cut is None and set(some) == {"layer1.pre", "layer1", "layer2.pre", "layer2"}
    assert len(net.parameters_before("layer2")) == 4


def test_a_shallow_net_equals_its_twin_in_float64():
    net = Layered("6c-p-5L-9", classes=4).eval()
    x = images(3, 3, 32, 32)
    first, linear, hidden, last = ([p.detach().double() for p in (layer.weight, layer.bias)] for layer in net.layers)
    padded = F.pad(x.double(), (2, 2, 2, 2)).unfold(2, 5, 1).unfold(3, 5, 1)  # [B, 3, 32, 32, 5, 5]
    maps = (torch.einsum("bcyxij,ocij->boyx", padded, first[0]) + first[1].view(-1, 1, 1)).clamp(min=0)
    pooled = maps.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))
    assert pooled.shape == (3, 6, 15, 15)
    h = pooled.permute(0, 2, 3, 1).flatten(1) @ linear[0].T + linear[1]
    expected = (h @ hidden[0].T + hidden[1]).clamp(min=0) @ last[0].T + last[1]
    assert torch.allclose(net(x).double(), expected, atol=1e-5)


def test_local_filters():
    layer, conv = LocallyConnected(3, 4, 5), torch.nn.Conv2d(3, 4, 3, padding=1)
    x = images(2, 3, 5, 5)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1).expand(25, -1, -1))
        layer.bias.copy_(conv.bias.view(-1, 1, 1).expand(-1, 5, 5))
        assert torch.allclose(layer(x), conv(x), atol=1e-5), "equal filters everywhere are a convolution"
        before = layer(x)
        layer.weight[7] = 0  # row 1, column 2
        changed = layer(x) != before
    assert changed[:, :, 1, 2].all() and changed.sum() == 2 * 4, "each place has filters of its own"
    assert torch.allclose(layer(x)[:, :, 1, 2], layer.bias[:, 1, 2].expand(2, -1))


def test_stochastic_pooling_by_hand():
    window = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]).view(1, 1, 3, 3)
    assert stochastic_pool(window, training=False).item() == pytest.approx((1 + 4 + 9 + 16) / 10)
    torch.manual_seed(0)
    drawn = stochastic_pool(window.expand(20_000, -1, -1, -1), training=True).flatten()
    for value in (1, 2, 3, 4):
        assert (drawn == value).double().mean().item() == pytest.approx(value / 10, abs=0.015)
    assert not (drawn == 0).any(), "what is 0 is never drawn"
    assert (stochastic_pool(torch.zeros(1, 2, 7, 7), True) == 0).all() and (stochastic_pool(torch.zeros(1, 2, 7, 7), False) == 0).all()


def test_stochastic_pooling_draws_from_its_own_window():
    h = images(4, 3, 32, 32).relu()
    pooled = stochastic_pool(h, training=True)
    windows = h.unfold(2, 3, 2).unfold(3, 3, 2).flatten(-2)
    assert pooled.shape == (4, 3, 15, 15) and (windows == pooled.unsqueeze(-1)).any(-1).all()
    assert torch.allclose(stochastic_pool(h, False).double(), (windows.double() ** 2).sum(-1) / windows.double().sum(-1), atol=1e-5)
    # the expectation of what is drawn in training is what is used at test time
    torch.manual_seed(1)
    mean = torch.stack([stochastic_pool(h[:1], True) for _ in range(400)]).mean(0)
    assert (mean - stochastic_pool(h[:1], False)).abs().max() < 0.25 and (mean - stochastic_pool(h[:1], False)).abs().mean() < 0.03


def test_the_gradient_goes_to_what_was_drawn():
    h = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pooled = stochastic_pool(h, training=True)
    pooled.sum().backward()
    assert h.grad.sum().item() == pooled.numel() and (h.grad == h.grad.round()).all()
    assert torch.isclose((h.detach() * h.grad).sum(), pooled.sum())


@pytest.mark.parametrize(
    "layers, options, expected",
    [
        ("4c-p-3L-20", {"input_dropout": 0.2, "dropout": 0.5}, [((2, 3, 32, 32), 0.2), ((2, 20), 0.5)]),
        ("8-9", {"dropout": 0.5}, [((2, 8), 0.5), ((2, 9), 0.5)]),
        ("4c-p-5lc", {"dropout": 0.5}, [((2, 5, 15, 15), 0.5)]),
        ("4c-p-fc", {"dropout": 0.5, "pooling": "stochastic"}, [((2, 4, 15, 15), 0.5)]),
        ("4c-p-6fc", {"dropout": 0.5}, [((2, 6), 0.5)]),
        ("4c-p-3L-20", {}, []),
    ],
)
def test_where_dropout_stands(monkeypatch, layers, options, expected):
    plain, seen = F.dropout, []

    def watched(x, share, training):
        if share:
            seen.append((tuple(x.shape), share))
        assert training == net.training
        return plain(x, share, training)

    monkeypatch.setattr(F, "dropout", watched)
    net = Layered(layers, **options)
    x = images(2, 3, 32, 32)
    net.train()(x)
    assert seen == expected
    assert torch.equal(net.eval()(x), net(x))


def test_initial_weights():
    net = Layered("32c-p-300L-500").reset(3)
    stds = [layer.weight.std().item() for layer in net.layers]
    expected = [math.sqrt(part) for part in (2 / 75, 1 / (32 * 225), 0.01**2, 1 / 500)]
    assert stds == pytest.approx(expected, rel=0.05)
    assert all(layer.bias.abs().sum() == 0 for layer in net.layers)
    again, other = Layered("32c-p-300L-500").reset(3), Layered("32c-p-300L-500").reset(4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not torch.equal(net.layers[0].weight, other.layers[0].weight)
    local = Layered("2c-p-p-p-200lc").layers[1]
    assert local.weight.std().item() == pytest.approx(math.sqrt(2 / 18), rel=0.03)
    _, taps = Layered("16c-p").eval().features(images(64, 3, 32, 32))
    assert taps["layer1.pre"].std().item() == pytest.approx(math.sqrt(2), rel=0.15), "maps keep the size of the pixels"


def test_notation():
    assert parse("128c-p-1200L-30k") == [("c", 128), ("p", 0), ("L", 1200), ("fc", 30_000)]
    assert parse("64c-p-16lc") == [("c", 64), ("p", 0), ("lc", 16)] and parse("8c-fc")[-1] == ("out", 0)
    assert parse("2000-500fc") == [("fc", 2000), ("fc", 500)]
    assert scaled("128c-p-1200L-30k", 0.25) == "32c-p-300L-7500fc"
    assert scaled("64c-p-64c-p-16lc", 0.01) == "1c-p-1c-p-1lc" and scaled("8c-p-fc", 1.0) == "8c-p-fc"
    with torch.device("meta"):
        assert create("32c-p-300L-7500fc").hidden_units == 32 * (1024 + 225) + 7800


@pytest.mark.parametrize(
    "layers, complaint",
    [
        ("8c-q", "'q' in '8c-q' is not a layer"),
        ("8c-0fc", "is not a layer"),
        ("8c-fc-3", "has layers after its output fc"),
        ("9-8c", "a layer of maps on top of a fully connected one"),
        ("9-p", "a layer of maps on top of a fully connected one"),
        ("8c-p-p-p-p-p", "pools maps of 1 x 1"),
    ],
)
def test_layers_that_cannot_be(layers, complaint):
    with pytest.raises(ValueError, match=complaint):
        Layered(layers)
    with pytest.raises(KdcoreError, match="cannot build network"):
        create(layers)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be 'max' or 'stochastic', not 'mean'"):
        Layered("4c-p", pooling="mean")


def brute_force(net: PatchFeatures, image: np.ndarray) -> np.ndarray:
    """The features of one image [3, H, W], patch by patch in float64, before they are standardised."""
    mean, whitening, centroids = (tensor.double().numpy() for tensor in (net.mean, net.whitening, net.centroids))
    rows, columns = image.shape[1] - 5, image.shape[2] - 5
    quadrants = np.zeros((2, 2, len(centroids)))
    for y in range(rows):
        for x in range(columns):
            patch = image[:, y : y + 6, x : x + 6].reshape(-1)
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
            distance = np.sqrt((((patch - mean) @ whitening - centroids) ** 2).sum(1))
            quadrants[int(y >= (rows + 1) // 2), int(x >= (columns + 1) // 2)] += np.maximum(0, distance.mean() - distance)
    return quadrants.reshape(-1)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (12, 3, 13, 14), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def fitted(pictures):
    return PatchFeatures(7).fit(pictures, patches=400, iterations=5, seed=1)


def test_features_patch_by_patch(fitted, pictures):
    pooled = fitted(pictures[:2].float())
    assert pooled.shape == (2, 28)
    for features, picture in zip(pooled, pictures, strict=False):
        assert np.allclose(features.numpy(), brute_force(fitted, picture.double().numpy()), rtol=1e-3, atol=1e-3)


def test_features_do_not_depend_on_how_many_go_at_a_time(fitted, pictures, monkeypatch):
    whole = fitted(pictures.float())
    monkeypatch.setattr(PatchFeatures, "VALUES", 1)
    assert torch.allclose(fitted(pictures.float()), whole, atol=1e-4)


def test_features_ignore_brightness(fitted, pictures):
    darker = pictures.float() / 2
    assert torch.allclose(fitted(darker + 40), fitted(darker), atol=1e-2)


def test_patches_are_whitened(pictures):
    """All patches of pictures of one size are drawn: a whitened eigenvector of eigenvalue v has the variance v / (v + 0.1)."""
    small = pictures[:, :, :6, :6].repeat(40, 1, 1, 1)  # one patch each, so that few numbers are many patches
    net = PatchFeatures(2).fit(small, patches=4000, iterations=1, seed=0)
    patches = small[:12].flatten(1).double()
    patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 10).sqrt()
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / 12)
    expected = (vectors / (values.clamp(min=0) + 0.1).sqrt()) @ vectors.T
    # 4,000 draws of 12 patches: their frequencies are off by a few per cent
    assert torch.allclose(net.whitening.double(), expected, atol=0.15) and torch.allclose(net.mean.double(), patches.mean(0), atol=0.05)
    assert torch.allclose(net.whitening, net.whitening.T, atol=1e-5), "ZCA, not PCA"


def test_centroids_find_the_clusters_and_follow_the_seed(pictures):
    flat = torch.zeros(40, 3, 6, 6, dtype=torch.uint8)
    flat[:20, 0], flat[20:, 2] = 200, 200  # two kinds of picture, one patch each
    net = PatchFeatures(2).fit(flat, patches=60, iterations=10, seed=0)
    # each kind is nearest to a centroid of its own, and tells it by one quadrant feature
    assert net(flat.float())[0].argmax() != net(flat.float())[-1].argmax()
    one, same, other = (PatchFeatures(5).fit(pictures, 200, 3, seed).centroids for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_standardised(fitted, pictures):
    net = PatchFeatures(7)
    net.load_state_dict(fitted.state_dict())
    raw = fitted(pictures.float())
    standardised = net.standardise(raw)(pictures.float())
    assert standardised.mean(0).abs().max() < 1e-4
    assert torch.allclose(standardised.std(0), raw.std(0) / (raw.var(0) + 0.01).sqrt(), atol=1e-3)
