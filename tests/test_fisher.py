"""Growing by Fisher information: values by hand, what the information means, groups halved, published ends of uniform growth."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdcore.models.darts import Darts, auxiliary_head
from kdcore.papers.fisher_darts import fisher


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Two(nn.Module):
    """Two convolutional modules, one after the other, and a linear layer: nothing of kdcore's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.second = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.linear = nn.Linear(12, 5)
        self.double()

    def forward(self, x):
        return self.linear(self.second(self.first(x).tanh()).relu().mean((2, 3)))


def test_channel_information_by_hand():
    activation = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]], [[[-1.0, 1.0]], [[2.0, 2.0]]]])  # 2 cases, 2 channels, 1 x 2
    gradient = torch.tensor([[[[1.0, -1.0]], [[5.0, 1.0]]], [[[2.0, 4.0]], [[0.5, -1.0]]]])
    # code: g = 1 - 2, 0 + 3; -2 + 4, 1 - 2. paper: g = 0, 6; 6, -0.5
    assert fisher.channel_information(activation, gradient).tolist() == [(1 + 4) / 4, (9 + 1) / 4]
    assert fisher.channel_information(activation, gradient, variant="paper").tolist() == [36 / 4, (36 + 0.25) / 4]
    with pytest.raises(ValueError, match="variant must be 'paper' or 'code', not 'abs'"):
        fisher.channel_information(activation, gradient, variant="abs")
    with pytest.raises(ValueError, match="not maps"):
        fisher.channel_information(activation, gradient[:1])


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_information_equals_one_case_at_a_time(variant):
    net, x, labels = Two(), random(6, 3, 5, 4), torch.tensor([0, 4, 2, 2, 1, 3])
    modules = {"first": net.first, "second": net.second}
    result = fisher.information(lambda: F.cross_entropy(net(x), labels, reduction="none"), modules, variant=variant)
    expected = {"first": torch.zeros(8, dtype=torch.float64), "second": torch.zeros(12, dtype=torch.float64)}
    for n in range(6):
        first = net.first(x[n : n + 1])
        second = net.second(first.tanh())
        loss = F.cross_entropy(net.linear(second.relu().mean((2, 3))), labels[n : n + 1])
        for name, a, g in zip(modules, (first, second), torch.autograd.grad(loss, (first, second)), strict=True):
            for c in range(a.shape[1]):
                value = sum((a[0, c, i, j] if variant == "code" else 1) * g[0, c, i, j] for i in range(5) for j in range(4))
                expected[name][c] += value.item() ** 2 / 12
    assert all(torch.allclose(result[name], expected[name], rtol=1e-9) for name in modules)
    assert all(parameter.grad is None for parameter in net.parameters()) and not result["first"].requires_grad
    # the same cases twice tell as much
    twice = fisher.information(
        lambda: F.cross_entropy(net(x.repeat(2, 1, 1, 1)), labels.repeat(2), reduction="none"), modules, variant=variant
    )
    assert all(torch.allclose(result[name], twice[name]) for name in modules)


def test_the_codes_form_is_what_switching_a_channel_off_costs():
    """Where the loss is linear in a channel, exactly: half the mean square of the change."""
    layer, weights, x = nn.Conv2d(3, 4, 1).double(), random(4, seed=3), random(5, 3, 2, 2)
    channels = fisher.information(lambda: torch.einsum("nchw,c->n", layer(x), weights), {"layer": layer})["layer"]
    for c in range(4):
        off = weights * (torch.arange(4) != c)
        change = torch.einsum("nchw,c->n", layer(x), weights) - torch.einsum("nchw,c->n", layer(x), off)
        assert channels[c].item() == pytest.approx(change.square().mean().item() / 2)


def test_modules_must_run_once():
    net, x = Two(), random(2, 3, 4, 4)
    with pytest.raises(ValueError, match="module 'idle' does not run"):
        fisher.information(lambda: net(x).sum(1), {"idle": nn.Conv2d(1, 1, 1)})
    with pytest.raises(ValueError, match="module 'first' runs more than once"):
        fisher.information(lambda: (net(x) + net(x)).sum(1), {"first": net.first})
    assert not net.first._forward_hooks, "no hook stays behind"


def test_groups_are_halved():
    net, kept = Two(), Two()
    counts = [sum(p.numel() for p in net.first.parameters())]
    for groups in (4, 2, 1):
        assert fisher.halve_groups(net.first, generator())
        layer = net.first[1]
        assert layer.groups == groups and layer.weight.shape == (8, 8 // groups, 3, 3)
        assert layer.weight.abs().max() <= (9 * 8 / groups) ** -0.5 and layer.weight.std() > 0
        counts.append(sum(p.numel() for p in net.first.parameters()))
        assert net(random(2, 3, 4, 4)).shape == (2, 5)
    assert [b - a for a, b in zip(counts, counts[1:], strict=False)] == [72, 144, 288]
    assert not fisher.halve_groups(net.first, generator()), "full convolutions are at their end"
    assert torch.equal(net.first[0].weight, kept.first[0].weight), "what has no groups is left alone"
    assert torch.equal(net.second.weight, kept.second.weight)
    other = Two()
    for _ in range(3):
        fisher.halve_groups(other.first, generator())
    assert torch.equal(other.first[1].weight, net.first[1].weight), "the weights come from the generator"


def test_odd_groups():
    layer = nn.Conv2d(36, 36, 1, groups=36)
    results = []
    while fisher.halve_groups(layer, generator()):
        results.append(layer.groups)
    assert results == [18, 9, 3, 1]


def size_with_head(net):
    with torch.device("meta"):
        head = auxiliary_head(net.taps[f"cell{net.head_at}"].channels, 10)
    return lambda: sum(tensor.numel() for part in (net, head) for tensor in part.state_dict().values())


@pytest.mark.parametrize("order, ends", [(1, [1, 1, 1, 1, 1, 1, 1, 2, 4, 4]), (-1, [1, 1, 1, 1, 2, 2, 1, 4, 2, 2])])
def test_uniform_growth_ends_at_the_published_count(order, ends):
    """1,428,452 parameters in the thesis, and BatchNorm's 10,287 statistics; above 1.4M less 2.5 %."""
    net = Darts("v2", 10, 16)
    cells = {f"cell {i}": cell for i, cell in enumerate(net.cells)}
    path = fisher.grow(cells, fisher.uniform(list(cells)[::order]), size_with_head(net), 1_365_000, generator())
    assert net.groups == ends and path[-1]["size"] == 1_428_452 + 10_287
    assert path[-2]["size"] <= 1_365_000 and len(path) == 3 * 4 + {1: 2 * 5 + 5 + 4 + 4, -1: 2 * 4 + 4 + 5 + 5}[order]
    first = [step["module"] for step in path[:9]]
    normal = [f"cell {i}" for i in (0, 1, 2, 4, 5, 7, 8, 9)][::order]
    assert first == [*normal, normal[0]], "one after the other; reduction cells have nothing to grow"
    assert path[0]["groups"] == {f"cell {i}": (1 if i in (3, 6) else (16, 32, 64)[(i > 3) + (i > 6)]) for i in range(10)} | {
        normal[0]: 8 if order == 1 else 32
    }


def test_growth_follows_the_ranking():
    net = Two()
    modules, values = {"first": net.first, "second": net.second}, iter([1.0, 3.0, 3.0, 3.0, 0.5])
    seen = []

    def ranking(halvings):
        seen.append(dict(halvings))
        value = next(values)
        return (["first", "second"] if value < 2 else ["second", "first"]), {"first": 2.0, "second": value}

    size = lambda: sum(p.numel() for p in net.parameters())  # noqa: E731
    start = size()
    path = fisher.grow(modules, ranking, size, start + 72 + 216 + 432 + 144, generator())
    assert [step["module"] for step in path] == ["first", "second", "second", "first", "first"], "second is at its end after two"
    assert [step["size"] - start for step in path] == [72, 288, 720, 864, 1152], "until it is above the target"
    assert [step["groups"]["second"] for step in path] == [4, 2, 1, 1, 1] and path[0]["information"] == {"first": 2.0, "second": 1.0}
    assert seen[3] == {"first": 1, "second": 2}
    assert fisher.grow(modules, ranking, size, 0, generator()) == [], "large enough as it is"
    with pytest.raises(ValueError, match="all groups are 1 at a size of"):
        fisher.grow(modules, fisher.uniform(list(modules)), size, 10_000, generator())


def test_information_chooses_what_matters():
    """A module whose output hardly counts is passed over, whichever stands first."""

    class Sum(nn.Module):
        def __init__(self, scales):
            super().__init__()
            torch.manual_seed(0)
            self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in scales)
            self.scales = scales

        def forward(self, x):
            return sum(scale * branch(x) for scale, branch in zip(self.scales, self.branches, strict=True)).mean((2, 3))

    x, labels = random(8, 4, 4, 4).float(), torch.arange(8) % 4
    for scales, best in (((0.01, 1.0), "1"), ((1.0, 0.01), "0")):
        net = Sum(scales)
        modules = dict(net.branches.named_children())
        rank = fisher.by_information(lambda net=net: F.cross_entropy(net(x), labels, reduction="none"), modules)
        names, results = rank({})
        assert names[0] == best and results[best] > 100 * min(results.values())
        path = fisher.grow(modules, rank, lambda net=net: sum(p.numel() for p in net.parameters()), 81, generator())
        assert [step["module"] for step in path] == [best]


def test_random_order_depends_on_the_generator_alone():
    names = [f"cell {i}" for i in range(8)]
    first, again, other = (fisher.at_random(names, generator(seed)) for seed in (0, 0, 1))
    orders = [first({})[0] for _ in range(3)]
    assert orders == [again({})[0] for _ in range(3)] != [other({})[0] for _ in range(3)]
    assert all(sorted(order) == names for order in orders) and orders[0] != orders[1]
