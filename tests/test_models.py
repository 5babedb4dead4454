"""Networks: published parameter counts, float64 twins, stacks that equal single nets, weights, norms, taps, gradients."""

import pytest
import torch
from registry import NETS
from torch import nn

from kdcore.errors import KdcoreError
from kdcore.models import MLP, Network, Tap, count_parameters, create, names
from kdcore.models.maxout import DESIGNS


@pytest.mark.parametrize(
    "sizes, published",
    [((784, 1200, 1200, 10), 2_395_210), ((784, 800, 800, 10), 1_276_810)],  # recounted from Hinton 2015's layer sizes
)
def test_parameter_counts(sizes, published):
    assert count_parameters(MLP(sizes)) == published
    assert count_parameters(MLP(sizes, members=3)) == 3 * published


def test_forward_equals_torch_layers():
    net = MLP((6, 5, 4, 3)).reset([7])
    layers = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
    for i, layer in enumerate(layers[::2]):
        layer.weight.data, layer.bias.data = net.weights[i].data[0], net.biases[i].data[0]
    x = torch.randn(9, 2, 3)
    assert torch.allclose(net(x), nn.Sequential(*layers)(x.flatten(1)), atol=1e-6)


def test_a_member_of_a_stack_equals_the_net_alone():
    stack, alone = MLP((6, 5, 3), members=3).reset([1, 2, 3]), MLP((6, 5, 3)).reset([2])
    x = torch.randn(4, 6)
    assert torch.allclose(stack(x)[1], alone(x), atol=1e-6)
    own = torch.randn(3, 4, 6)
    assert torch.allclose(stack(own)[1], alone(own[1]), atol=1e-6), "each member sees its own batch"
    # gradients never mix: the loss of member 1 leaves the others alone
    stack(x)[1].square().sum().backward()
    alone(x).square().sum().backward()
    assert torch.allclose(stack.weights[0].grad[1], alone.weights[0].grad[0], atol=1e-5)
    assert stack.weights[0].grad[0].abs().sum() == 0


def test_initial_weights():
    net = MLP((784, 800, 10)).reset([0], std=0.01)
    assert net.weights[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert MLP((784, 800, 10)).reset([0]).weights[0].std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert all(bias.abs().sum() == 0 for bias in net.biases)
    with pytest.raises(ValueError, match="2 seeds for 3 members"):
        MLP((4, 3), members=3).reset([1, 2])


def test_norm_limit_touches_only_what_is_too_long():
    net = MLP((4, 2, 2))
    with torch.no_grad():
        net.weights[0][0] = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])  # squared lengths 25 and 2
        net.weights[1][0] = torch.tensor([[30.0, 40.0], [1.0, 1.0]])
    net.limit_norms(15.0)
    assert net.weights[0][0, 0].square().sum().item() == pytest.approx(15, rel=1e-5)
    assert torch.equal(net.weights[0][0, 1], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert net.weights[1][0, 0].tolist() == [30.0, 40.0], "the output layer is no hidden unit"
    assert (net.weights[0][0, 0, 0] / net.weights[0][0, 0, 1]).item() == pytest.approx(0.75), "the direction stays"


@torch.no_grad()
def test_dropout_only_in_training_and_at_its_rates():
    """Through identities a one stays what dropout makes of it: 0, or 1 over the share that stays; two places of it in a row."""
    net = MLP((500, 500, 500), input_dropout=0.2, hidden_dropout=0.5)
    for weight in net.weights:
        weight[0] = torch.eye(500)
    x = torch.ones(64, 500)
    torch.manual_seed(0)
    logits, taps = net.train().features(x)
    hidden = taps["hidden1"]
    assert torch.allclose(hidden.unique(), torch.tensor([0.0, 1 / 0.8])) and torch.allclose(logits.unique(), torch.tensor([0.0, 1 / 0.4]))
    assert (hidden == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (logits[hidden > 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(net.eval()(x), x)


def test_taps_name_what_features_gives():
    net = MLP((6, 5, 4, 3)).reset([0])
    logits, taps = net.features(torch.randn(2, 6))
    assert (
        {name: Tap(tensor.shape[-1], 1) for name, tensor in taps.items()}
        == net.taps
        == {"hidden1.pre": (5, 1), "hidden1": (5, 1), "hidden2.pre": (4, 1), "hidden2": (4, 1)}
    )
    assert torch.equal(taps["hidden1"], taps["hidden1.pre"].relu())
    assert logits.shape == (2, 3)


COUNTS = {name: row.count for name, row in NETS.items() if row.count}
MILLIONS = {("resnet_14x4", 100): 2.76, ("resnet_32x4", 100): 7.41, ("wrn_28_10", 10): 36.5, ("densenet_bc_100_12", 100): 0.8}
SMALL = [name for name, row in NETS.items() if row.small]
QUICK = [name for name in SMALL if name != "resnet50"]  # to build, too


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        assert count_parameters(create(name)) == COUNTS[name]


@pytest.mark.parametrize("name", [*SMALL, "darts_v2_4_4"])
def test_the_pooled_tap_is_what_the_linear_layer_sees(name):
    """A vector, and the logits are a linear function of it; its gradient reaches all parameters but the linear layer's."""
    net = create(name).eval()
    logits, taps = net.features(images(2, 3, 32, 32))
    assert net.taps["pooled"].shape == taps["pooled"].shape[1:] == (net.linear.in_features,)
    assert torch.allclose(logits, taps["pooled"] @ net.linear.weight.T + net.linear.bias, atol=1e-5)
    linear = {id(parameter) for parameter in net.linear.parameters()}
    assert [id(p) for p in net.parameters_before("pooled")] == [id(p) for p in net.parameters() if id(p) not in linear]


@pytest.mark.parametrize("name, classes", MILLIONS)
def test_published_parameter_counts_in_millions(name, classes):
    with torch.device("meta"):
        count = count_parameters(create(name, classes)) / 1e6
    assert count == pytest.approx(MILLIONS[name, classes], abs=0.05 if MILLIONS[name, classes] in (36.5, 0.8) else 0.005)


def test_every_name_can_be_created_and_a_wrong_one_says_what_exists():
    with torch.device("meta"):
        assert all(isinstance(create(name), Network) for name in names())
        assert set(COUNTS) - {"plain_2"} <= set(names()), "all but the example of docs/adding_a_network.md"
        assert len(create("resnet_38x3").groups[0]) == 6, "any depth 6n + 2"
    for name in ("resnet_9", "resnet_2", "wrn_15_2", "wrn_4_1", "densenet_bc_112_33x", "densenet_bc_101_12"):
        with pytest.raises(KdcoreError, match=r"resnet_D or .*wrn_D_K or densenet_bc_D_K .*resnet50"):
            create(name)
    for name in ("vgg", "wrn_16", "resnet_8x0", "resnet_8x", "resnet_8 ", "xresnet_8", ""):
        with pytest.raises(KdcoreError, match=rf"unknown network '{name}': choose resnet_D"):
            create(name)
    with pytest.raises(KdcoreError, match=r"cannot build network 'wrn_15_2' \(the depth is 6n \+ 4 with n of 1 or more, not 15\)"):
        create("wrn_15_2")


@pytest.mark.parametrize("name", [name for name in dict.fromkeys([*names(), *NETS]) if name not in DESIGNS])  # those: test_maxout
def test_declared_taps_are_what_features_gives(name):
    with torch.device("meta"):
        net = create(name, classes=7)
        logits, taps = net.features(torch.empty(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert {tap: tuple(tensor.shape) for tap, tensor in taps.items()} == {
        tap: (2, channels, size, size) if size > 1 else (2, channels) for tap, (channels, size) in net.taps.items()
    }
    assert all(isinstance(tap, Tap) for tap in net.taps.values())


def test_taps_of_each_family():
    pairs = lambda *taps: {f"{tap}{end}" for tap in taps for end in (".pre", "")}  # noqa: E731
    groups = [f"group{g}" for g in (1, 2, 3)]
    with torch.device("meta"):
        taps = {name: create(name).taps for name in ("resnet_8", "resnet_14", "resnet_8x4", "wrn_16_2", "densenet_bc_16_6", "resnet50")}
    blocks = (f"{g}.{x}" for g in groups for x in ("first", "block1", "block2"))
    assert set(taps["resnet_14"]) == {"pooled"} | pairs("stem", *groups, *blocks)
    assert set(taps["wrn_16_2"]) == {"stem", "pooled"} | pairs(*groups, *(f"{g}.first" for g in groups)) | {f"{g}.sum" for g in groups}
    assert set(taps["densenet_bc_16_6"]) == {"stem", "stage2", "final.pre", "final", "pooled"}
    assert set(taps["resnet50"]) == {"pooled"} | pairs("layer1", "layer2", "layer3", "layer4")
    # one size a group, channels 16, 32, 64 times the width: FSP pairs a group's first layer with its last
    for name, width in (("resnet_8", 1), ("resnet_8x4", 4), ("wrn_16_2", 2)):
        for tap in (".first.pre", ".first", ".pre", ""):
            sizes = [taps[name][f"group{g}{tap}"] for g in (1, 2, 3)]
            assert sizes == [(16 * width, 32), (32 * width, 16), (64 * width, 8)]
    # 2k = 12; 12 + 2 * 6 = 24 halved, + 12 = 24; halved, + 12
    assert [taps["densenet_bc_16_6"][tap] for tap in ("stem", "stage2", "final")] == [(12, 32), (24, 16), (24, 8)]
    assert [taps["resnet50"][f"layer{i}"] for i in (1, 2, 3, 4)] == [(256, 32), (512, 16), (1024, 8), (2048, 4)]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_taps_change_nothing_and_hold_what_they_name(name, training):
    net, x = create(name).train(training), images(2, 3, 16, 8)
    with torch.no_grad():
        plain, again = net(x.clone()), net(x)
        logits, taps = net.features(x)
    assert torch.equal(plain, logits) and torch.equal(plain, again)
    assert torch.equal(x, images(2, 3, 16, 8)), "the images are not written to"
    for tap, tensor in taps.items():
        if tap.endswith(".pre"):
            assert (tensor < 0).any(), "a tap before its ReLU has not been rectified in place"
            assert torch.equal(taps[tap.removesuffix(".pre")], tensor.relu())
        elif f"{tap}.pre" not in taps and tap != "pooled":
            assert (tensor < 0).any(), "a tap without a ReLU has not been rectified in place"
    if name == "resnet_14":
        assert taps["group2"] is taps["group2.block2"] and taps["group2.pre"] is taps["group2.block2.pre"]


def bn64(h, norm):
    """BatchNorm in training: the batch's mean and biased variance."""
    mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
    weight, bias = (p.detach().double().view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return (h - mean) / (var + norm.eps).sqrt() * weight + bias


def conv64(h, layer, stride=1):
    """A convolution as a sum over its kernel's places: shifted views times one matrix each."""
    weight = layer.weight.detach().double()
    k, (height, width) = weight.shape[-1], h.shape[-2:]
    pad = torch.zeros(*h.shape[:2], height + k - 1, width + k - 1, dtype=h.dtype)
    pad[:, :, k // 2 : k // 2 + height, k // 2 : k // 2 + width] = h
    places = [
        torch.einsum("bihw,oi->bohw", pad[:, :, i : i + height : stride, j : j + width : stride], weight[:, :, i, j])
        for i in range(k)
        for j in range(k)
    ]
    return sum(places)


def linear64(h, layer):
    return h.mean((2, 3)) @ layer.weight.detach().double().T + layer.bias.detach().double()


def shaken(net):
    """Another scale and shift for each channel: with 1 and 0 a forgotten or swapped BatchNorm would not show."""
    for i, p in enumerate(net.parameters()):
        if p.dim() == 1:
            p.data += 0.3 * images(*p.shape, seed=i)
    return net.train()


def close(mine, theirs):
    return torch.allclose(mine.detach().double(), theirs, rtol=1e-3, atol=1e-4)


def test_wide_resnet_equals_its_float64_twin():
    net, x = shaken(create("wrn_16_2", classes=5)), images(3, 3, 8, 8)
    logits, taps = net.features(x)
    twin = {"stem": conv64(x.double(), net.conv)}
    h = twin["stem"]
    for g, group in enumerate(net.groups, 1):
        for b, block in enumerate(group):
            pre = bn64(h, block.norm1)
            a = pre.clamp(min=0)
            stride = 2 if g > 1 and b == 0 else 1
            inner = bn64(conv64(a, block.conv1, stride), block.norm2)
            if b == 0:
                twin[f"group{g}.first.pre"] = inner
                if g > 1:
                    twin[f"group{g - 1}.pre"] = pre
            # width 2: the channels change in the first block of every group, group 1 (16 to 32) included
            h = conv64(inner.clamp(min=0), block.conv2) + (conv64(a, block.shortcut, stride) if b == 0 else h)
        twin[f"group{g}.sum"] = h
    twin["group3.pre"] = bn64(h, net.norm)
    assert close(logits, linear64(twin["group3.pre"].clamp(min=0), net.linear))
    assert set(twin) == {tap for tap in taps if f"{tap}.pre" not in taps} - {"pooled"}
    assert all(close(taps[tap], tensor) for tap, tensor in twin.items())


def test_resnet_equals_its_float64_twin():
    net, x = shaken(create("resnet_14", classes=5)), images(3, 3, 8, 8)
    logits, taps = net.features(x)
    twin = {"stem.pre": bn64(conv64(x.double(), net.conv), net.norm)}
    h = twin["stem.pre"].clamp(min=0)
    for g, group in enumerate(net.groups, 1):
        for b, block in enumerate(group, 1):
            stride = 2 if g > 1 and b == 1 else 1
            inner = bn64(conv64(h, block.conv1, stride), block.norm1)
            if b == 1:
                twin[f"group{g}.first.pre"] = inner
            out = bn64(conv64(inner.clamp(min=0), block.conv2), block.norm2)
            out[:, : h.shape[1]] += h[:, :, ::stride, ::stride]
            twin[f"group{g}.block{b}.pre"] = twin[f"group{g}.pre"] = out
            h = out.clamp(min=0)
    assert close(logits, linear64(h, net.linear))
    assert set(twin) == {tap for tap in taps if tap.endswith(".pre")}
    assert all(close(taps[tap], tensor) for tap, tensor in twin.items())


def test_recomputed_bottlenecks_change_nothing_but_memory():
    """Two training steps: outputs, gradients and statistics to the bit, with fewer bytes kept for the backward pass."""
    results = []
    for options in ({}, {"recompute": True}):
        net = create("densenet_bc_22_6", classes=5, **options)
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        for seed in (0, 1):
            net.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                logits = net.train()(images(4, 3, 8, 8, seed=seed))
            logits.square().sum().backward()
        results.append(([logits, *(p.grad for p in net.parameters()), *net.buffers()], kept, net.eval()(images(2, 3, 8, 8))))
    (plain, much, shown), (recomputed, little, again) = results
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))
    assert torch.equal(shown, again), "in eval mode nothing is recomputed"
    assert little < 0.8 * much


def test_densenet_equals_its_float64_twin():
    net, x = shaken(create("densenet_bc_16_6", classes=5)), images(3, 3, 8, 8)
    logits, taps = net.features(x)
    act = lambda h, norm: bn64(h, norm).clamp(min=0)  # noqa: E731
    h = twin = conv64(x.double(), net.conv)
    assert close(taps["stem"], twin)
    for s, stage in enumerate(net.stages, 1):
        parts = list(stage)
        if s > 1:
            h = conv64(act(h, parts[0].norm), parts[0].conv)
            h = (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4
            parts = parts[1:]
        assert len(parts) == 2
        for layer in parts:
            h = torch.cat([h, conv64(act(conv64(act(h, layer.norm1), layer.conv1), layer.norm2), layer.conv2)], 1)
        if s == 2:
            assert close(taps["stage2"], h)
    assert close(taps["final.pre"], bn64(h, net.norm))
    assert close(logits, linear64(act(h, net.norm), net.linear))


def test_resnet50_equals_its_float64_twin():
    net, x = shaken(create("resnet50", classes=5)), images(3, 3, 16, 16)
    logits, taps = net.features(x)
    act = lambda h, norm: bn64(h, norm).clamp(min=0)  # noqa: E731
    h = act(conv64(x.double(), net.conv), net.norm)
    for i, layer in enumerate(net.layers, 1):
        assert len(layer) == (3, 4, 6, 3)[i - 1]
        for b, block in enumerate(layer):
            stride = 2 if i > 1 and b == 0 else 1
            inner = act(conv64(act(conv64(h, block.conv1), block.norm1), block.conv2, stride), block.norm2)
            shortcut = bn64(conv64(h, block.shortcut[0], stride), block.shortcut[1]) if b == 0 else h
            pre = bn64(conv64(inner, block.conv3), block.norm3) + shortcut
            h = pre.clamp(min=0)
        assert torch.allclose(taps[f"layer{i}.pre"].detach().double(), pre, rtol=1e-2, atol=1e-2)
    assert torch.allclose(logits.detach().double(), linear64(h, net.linear), rtol=1e-2, atol=1e-2)


def test_option_a_shortcut_by_hand():
    block = create("resnet_8").groups[1][0]  # 16 to 32 channels, stride 2
    x = torch.arange(16 * 4 * 4.0).view(1, 16, 4, 4)
    out = block.shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert out[0, 0].tolist() == [[0, 2], [8, 10]], "every second row and column"
    assert out[0, 3].tolist() == [[48, 50], [56, 58]], "channel 3 begins at 48"
    assert out[0, 16:].abs().sum() == 0, "the new channels are zeros"
    assert create("resnet_8").groups[0][0].shortcut(x) is x
    # dead convolutions leave the shortcut alone: the block is its ReLU
    torch.nn.init.zeros_(block.norm2.weight)
    assert torch.equal(block.eval()(x - 100), out.sub(100).clamp(min=0) * (torch.arange(32) < 16).view(1, 32, 1, 1))


@pytest.mark.parametrize("name", SMALL)
def test_parameters_before_a_tap_are_those_with_a_gradient(name):
    net = create(name)
    taps = net.features(images(2, 3, 8, 8))[1]
    for tap in net.taps:
        grads = torch.autograd.grad(taps[tap].sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
        reached = [p for p, grad in zip(net.parameters(), grads, strict=True) if grad is not None]
        before = net.parameters_before(tap)
        assert len(before) == len(reached) and all(a is b for a, b in zip(before, reached, strict=True)), tap
    with pytest.raises(ValueError, match="no tap 'nope': choose one of "):
        net.parameters_before("nope")


@pytest.mark.parametrize("name", QUICK)
def test_weights_depend_on_the_seed_alone(name):
    net = create(name)
    first = {k: v.clone() for k, v in net.state_dict().items()}
    assert all(torch.equal(v, first[k]) for k, v in create(name).reset(0).state_dict().items())
    net.train()(images(4, 3, 8, 8)).sum().backward()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    held = list(net.parameters())
    with torch.no_grad():
        for p in held:
            p.add_(1)
    assert net.reset(0) is net
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    assert all(torch.equal(v, first[k]) for k, v in net.state_dict().items()), "statistics of BatchNorm included"
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True)), "in place: an optimiser or graph keeps them"
    other = net.reset(1).state_dict()
    assert all((other[k] != v).any() for k, v in first.items() if v.dim() > 1)
    clast = create(name).to(memory_format=torch.channels_last).reset(0).state_dict()
    assert all(torch.equal(v, first[k]) for k, v in clast.items())


@pytest.mark.parametrize("name", ["resnet_8x4", "wrn_10_4", "densenet_bc_40_36"])
def test_initial_weights_are_those_of_he(name):
    net = create(name).reset(3)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 20_000]
    assert len(convs) >= 4
    for layer in convs:
        out, _, height, width = layer.weight.shape
        assert layer.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.03)
        assert layer.weight.mean().abs() < 0.03 * layer.weight.std()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
    bound = net.linear.in_features**-0.5
    assert 0.97 * bound < net.linear.weight.abs().max() <= bound and (net.linear.bias == 0).all()
    assert net.linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_eval_mode_is_a_function_of_the_image_alone():
    for name in QUICK:
        net, x = create(name), images(6, 3, 8, 8)
        net.train()(x)  # moves the statistics
        net.eval()
        with torch.no_grad():
            whole = net(x)
            assert torch.equal(whole, net(x))
            assert torch.allclose(whole[4:], net(x[4:]), atol=1e-5), "no case sees the others"


def test_dropout_only_in_training_and_inside_the_blocks():
    net, plain, x = create("wrn_10_2", dropout=0.3), create("wrn_10_2"), images(2, 3, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    net.train()
    assert torch.equal(plain.train()(x), plain(x)), "none unless asked for"
    (one, taps), (other, again) = net.features(x), net.features(x)
    assert not torch.equal(one, other)
    assert torch.equal(taps["group1.first"], again["group1.first"]), "before dropout"
    assert not torch.equal(taps["group1.sum"], again["group1.sum"])
    seen = []
    net.groups[0][0].conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first = net.features(images(8, 3, 32, 32))[1]["group1.first"]
    assert (seen[0][first > 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    with pytest.raises(KdcoreError, match="dropout probability"):
        create("wrn_10_2", dropout=1.5)


@pytest.mark.parametrize("name", QUICK)
def test_channels_last_and_autocast(name):
    net, x = create(name).train(), images(8, 3, 16, 16)
    logits = net(x)
    last = create(name).to(memory_format=torch.channels_last).train()
    theirs, taps = last.features(x.to(memory_format=torch.channels_last))
    assert torch.allclose(logits, theirs, atol=1e-4)
    assert all(tap.is_contiguous(memory_format=torch.channels_last) for tap in taps.values() if tap.dim() == 4), "no tap falls back"
    with torch.autocast("cpu", torch.bfloat16):
        half, taps = net.features(x)
    assert half.dtype == torch.bfloat16
    half.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in net.parameters())
    assert (half.float() - logits).norm() < 0.1 * logits.norm()


def test_second_derivatives_pass_the_rectified_in_place():
    """The Jacobian loss differentiates a gradient: against central differences in float64."""
    net, x = create("wrn_10_1").double().eval(), images(1, 3, 8, 8).double().requires_grad_()
    weight = net.groups[1][0].conv1.weight

    def penalty():
        (gradient,) = torch.autograd.grad(net(x)[0, 3], x, create_graph=True)
        return gradient.square().sum()

    (slope,) = torch.autograd.grad(penalty(), weight)
    direction, step = images(*weight.shape, seed=1).double(), 1e-6
    values = []
    for sign in (1, -2):
        weight.data += sign * step * direction
        values.append(penalty().item())
    assert (slope * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)
