"""The search of DARTS: the architecture's gradient by hand, its step against torch's own Adam."""

import math

import pytest
import torch
from torch import nn

from kdcore.models.darts import (
    MixedDarts,
)  # fmt: skip
from kdcore.papers.fisher_darts.search import Search


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Bowl(nn.Module):
    """A network of one weight w and one alpha a whose losses have derivatives in closed form: logits (w a, 0)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("alphas", torch.tensor(0.4, dtype=torch.float64))

    def forward(self, x, alphas=None):
        return torch.stack([x * self.w * (self.alphas if alphas is None else alphas), torch.zeros_like(x)], 1)


def slope(z, y):
    """d/dz and d2/dz2 of the cross-entropy of logits (z, 0)."""
    p = 1 / (1 + math.exp(-z))
    return p - (y == 0), p * (1 - p)


@pytest.mark.parametrize("order", [1, 2])
def test_gradient_of_the_architecture_by_hand(order):
    """One weight, one alpha: dL_val(w - xi dL_train/dw, a)/da = dL_val/da - xi d2L_train/(da dw) dL_val/dw*."""
    net = Bowl()
    search = Search(net, order)
    search.rate.fill_(0.3)
    search.rate = search.rate.double()
    train, held_out = [(torch.tensor([x], dtype=torch.float64), torch.tensor([y])) for x, y in ((2.0, 0), (-1.5, 0))]
    w, a, xi = 0.7, 0.4, 0.3
    (first, second), step = slope(2.0 * w * a, 0), w
    if order == 2:
        step = w - xi * first * 2.0 * a
    (outer, _) = slope(-1.5 * step * a, 0)
    expected = outer * -1.5 * step
    if order == 2:
        mixed = second * (2.0 * w) * (2.0 * a) + first * 2.0
        expected -= xi * mixed * outer * -1.5 * a
    result = search.gradient(train, held_out)
    assert result.item() == pytest.approx(expected, rel=1e-4)
    assert net.w.item() == 0.7 and net.w.grad is None, "the weight is as before"


def test_architecture_step_is_adams():
    net = nn.Module()
    net.register_buffer("alphas", random(2, 14, 8, seed=9))
    search = Search(net, 1, lr=0.01)
    alphas = nn.Parameter(net.alphas.clone())
    adam = torch.optim.Adam([alphas], lr=0.01, betas=(0.5, 0.999), weight_decay=1e-3)
    for seed in range(4):
        gradient = random(2, 14, 8, seed=seed)
        alphas.grad = gradient.clone()
        adam.step()
        search.move(gradient)
    assert torch.allclose(search.net.alphas, alphas.detach(), atol=1e-6)
    assert {"moments", "steps", "net.alphas"} <= set(search.state_dict()), "a checkpoint holds all of it"
    with pytest.raises(ValueError, match="order of a search is 1 or 2, not 3"):
        Search(net, 3)


def test_a_step_of_the_search_moves_both():
    search = Search(MixedDarts(3, 2), 2)
    search.rate.fill_(0.025)
    alphas = search.net.alphas.clone()
    batches = [(random(2, 3, 8, 8, seed=seed), torch.tensor([1, 4])) for seed in (0, 1)]
    loss = search.loss(*batches)
    loss.backward()
    moved = (search.net.alphas - alphas).abs()
    assert moved.max().item() == pytest.approx(3e-4, rel=1e-3), "Adam's first step is its rate"
    assert all(parameter.grad is not None for parameter in search.net.parameters())
