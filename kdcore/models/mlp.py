"""Fully connected ReLU nets, single or as a stack of nets of one shape that train side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.models.network import Tap


class MLP(nn.Module):
    """A multilayer perceptron, ``sizes[0] - ... - sizes[-1]``, with ReLU and optional dropout (Hinton et al. 2015, section 3).

    sizes: units of each layer, input and classes included, e.g. (784, 1200, 1200, 10).
    members: K nets of one shape, held as one stack of matrix products (their gradients never mix); None: one net.
    input_dropout, hidden_dropout: dropout rates of the input and of each hidden layer.

    ``net(x)``: x [B, ...] is flattened to [B, sizes[0]] and given to every member; [K, B, sizes[0]] gives each member
    its own batch. Logits are [B, C], or [K, B, C] for a stack. Taps: hidden1.pre, hidden1, hidden2.pre, ...
    """

    def __init__(self, sizes: Sequence[int], *, members: int | None = None, input_dropout=0.0, hidden_dropout=0.0):
        super().__init__()
        self.sizes, self.members = tuple(sizes), members
        self.input_dropout, self.hidden_dropout = input_dropout, hidden_dropout
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.zeros(members or 1, outputs, inputs) for inputs, outputs in pairs)
        self.biases = nn.ParameterList(torch.zeros(members or 1, outputs) for _, outputs in pairs)
        self.taps = {f"hidden{i}{tap}": Tap(width, 1) for i, width in enumerate(self.sizes[1:-1], 1) for tap in (".pre", "")}

    def reset(self, seeds: Sequence[int], std: float | None = None) -> "MLP":
        """Reinitialise the weights, member k from ``seeds[k]`` alone: N(0, std^2), or N(0, 2 / inputs) (He et al. 2015) without std."""
        if len(seeds) != (self.members or 1):
            raise ValueError(f"{len(seeds)} seeds for {self.members or 1} members")
        with torch.no_grad():
            for k, seed in enumerate(seeds):
                generator = torch.Generator().manual_seed(seed)
                for weight, bias in zip(self.weights, self.biases, strict=True):
                    scale = (2 / weight.shape[-1]) ** 0.5 if std is None else std
                    weight[k].copy_(torch.randn(weight[k].shape, generator=generator) * scale)
                    bias[k].zero_()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[0]

    def features(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        own = self.members is not None and x.dim() == 3 and x.shape[-1] == self.sizes[0]
        h = x if own else x.flatten(1)
        h, taps = F.dropout(h, self.input_dropout, self.training), {}
        last = len(self.weights)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), 1):
            if self.members is None:
                h = F.linear(h, weight.squeeze(0), bias.squeeze(0))  # weight[0] would copy the gradient
            else:
                h = torch.baddbmm(bias.unsqueeze(1), h.expand(self.members, -1, -1), weight.transpose(1, 2))
            if i < last:
                taps[f"hidden{i}.pre"] = h
                taps[f"hidden{i}"] = h = F.relu(h)
                h = F.dropout(h, self.hidden_dropout, self.training)
        return h, taps

    @torch.no_grad()
    def limit_norms(self, squared_length: float) -> None:
        """Scale down the incoming weights of each hidden unit whose squared length exceeds the limit (Hinton et al. 2012)."""
        for weight in self.weights[:-1]:
            norms = torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
            weight.mul_((squared_length**0.5 / norms).clamp_(max=1))
