"""Differentiable architecture search (DARTS; Liu, Simonyan & Yang 2018), a bilevel problem in weights and architecture.

search = Search(MixedDarts(8, 16), order=2)
loss = search.loss((x, labels), (held_out_x, held_out_labels))  # updates alpha; returns the loss to train the weights
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcore.losses import cross_entropy
from kdcore.models.darts import MixedDarts

Batch = tuple[Tensor, Tensor]


class Search(nn.Module):
    """A mixed network and the optimiser of its architecture: Adam on the alphas, for the loss on held-out images.

        min_alpha L_val(w*(alpha), alpha)   with   w*(alpha) ~ w - xi dL_train/dw          (eq. 3 to 6)

    order: 1 approximates w* by w (xi = 0 in the paper); 2 by the one step, with second derivatives as a difference of
    gradients at w +- e v, v = dL_val/dw*, e = 0.01 / |v| (eq. 7 and 8). ``rate``, a 0-dim tensor, is xi, which a schedule
    sets to the learning rate of the weights. As in eq. 6, the step has neither momentum nor weight decay; the authors' code
    includes both.

    lr, betas, weight_decay: of Adam. Its moments are buffers, so that a checkpoint of this module contains the whole search.
    Raises ValueError for another order.
    """

    def __init__(self, net: MixedDarts, order: int, *, lr: float = 3e-4, betas: Sequence[float] = (0.5, 0.999), weight_decay: float = 1e-3):
        super().__init__()
        if order not in (1, 2):
            raise ValueError(f"the order of a search is 1 or 2, not {order!r}")
        self.net, self.order = net, order
        self.lr, self.betas, self.weight_decay = lr, tuple(betas), weight_decay
        self.register_buffer("rate", torch.zeros(()), persistent=False)
        self.register_buffer("moments", torch.zeros(2, *net.alphas.shape))
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, train: Batch, held_out: Batch) -> Tensor:
        """Update the architecture, then return the loss on the training images, a scalar.

        train, held_out: images [B, 3, H, W] and labels int64 [B] of the two halves.
        """
        self.move(self.gradient(train, held_out))
        return self._loss(train, None)

    def gradient(self, train: Batch, held_out: Batch) -> Tensor:
        """d L_val / d alpha, [2, 14, 8], to first or second order. The weights are left unchanged."""
        alphas = self.net.alphas.clone().requires_grad_()
        if self.order == 1:
            return torch.autograd.grad(self._loss(held_out, alphas), alphas)[0]
        weights = list(self.net.parameters())
        kept = [weight.detach().clone() for weight in weights]
        self._set(weights, kept, torch.autograd.grad(self._loss(train, alphas), weights), -self.rate)
        first, *direction = torch.autograd.grad(self._loss(held_out, alphas), [alphas, *weights])
        step = 0.01 / torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in direction]))
        ends = []
        for sign in (1, -1):
            self._set(weights, kept, direction, sign * step)
            ends.append(torch.autograd.grad(self._loss(train, alphas), alphas)[0])
        self._set(weights, kept)
        return first - self.rate * (ends[0] - ends[1]) / (2 * step)

    @torch.no_grad()
    def move(self, gradient: Tensor) -> None:
        """One step of Adam on the alphas, with weight decay added to the gradient as in ``torch.optim.Adam``."""
        alphas, (first, second) = self.net.alphas, self.moments
        gradient = gradient + self.weight_decay * alphas
        self.steps += 1
        for moment, value, beta in ((first, gradient, self.betas[0]), (second, gradient.square(), self.betas[1])):
            moment.lerp_(value, 1 - beta)
        size = (second / (1 - self.betas[1] ** self.steps)).sqrt() + 1e-8
        alphas -= self.lr * first / (1 - self.betas[0] ** self.steps) / size

    def _loss(self, batch: Batch, alphas: Tensor | None) -> Tensor:
        x, labels = batch
        return cross_entropy(self.net(x, alphas), labels)

    @staticmethod
    @torch.no_grad()
    def _set(weights: list[nn.Parameter], kept: list[Tensor], direction=None, scale: Tensor | float = 0.0) -> None:
        """Set the weights to the kept ones plus ``scale`` times a direction."""
        for i, weight in enumerate(weights):
            weight.copy_(kept[i] if direction is None else kept[i] + scale * direction[i])
