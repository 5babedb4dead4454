"""Generations of one network: the best epoch of each, and their ensembles."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore import metrics


class Chosen(nn.Module):
    """The weights and statistics of a generation's epoch with the lowest loss, and the test logits [generations, N, C] of completed
    generations. They are buffers, so that a checkpoint of the run contains them."""

    def __init__(self, net: nn.Module, generations: int, cases: int, classes: int):
        super().__init__()
        self.net = (net,)  # in a tuple, so that a checkpoint does not contain its weights a second time
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lowest", torch.tensor(torch.inf))
        self.register_buffer("logits", torch.zeros(generations, cases, classes))
        self.copies = nn.Module()
        for name, value in net.state_dict().items():
            self.copies.register_buffer(name.replace(".", "_"), value.detach().clone())

    def offer(self, loss: Tensor) -> None:
        """Count an epoch, and keep the net's present state if its loss is the lowest so far."""
        self.epochs += 1
        if loss < self.lowest:
            self.lowest.fill_(loss)
            for copy, value in zip(self.copies.buffers(), self.net[0].state_dict().values(), strict=True):
                copy.copy_(value)

    def restore(self) -> None:
        """Load the kept state into the net, and reset the lowest loss for the next generation."""
        for copy, value in zip(self.copies.buffers(), self.net[0].state_dict().values(), strict=True):
            value.copy_(copy)
        self.lowest.fill_(torch.inf)


def ensembles(generations: Tensor, own: int, labels: Tensor, what: str) -> dict[str, float]:
    """Errors of ensembles of the last two, three, ... generations, of the best single generation, and of this trial's earlier ones.

    generations: test logits [G, N, C], the last ``own`` of them this trial's. what: whether an ensemble averages "probabilities" or
    "logits". Metrics of the trial's earlier generations have a prefix.
    """
    said = F.softmax(generations, -1) if what == "probabilities" else generations
    errors = 100 * metrics.wrong(generations, labels).double().mean(-1)
    measures = {"best_generation_test_error_percent": errors.min().item()}
    for last in range(len(generations) - own + 1, len(generations) + 1):
        prefix = "" if last == len(generations) else f"generation_{last}_"
        if prefix:
            measures |= _named(prefix, errors[last - 1].item())
        for count in range(2, last + 1):
            error = 100 * metrics.wrong(said[last - count : last].mean(0), labels).double().mean().item()
            measures |= _named(f"{prefix}ensemble_{count}_", error)
    return measures


def _named(prefix: str, error: float) -> dict[str, float]:
    return {f"{prefix}test_error_percent": error, f"{prefix}test_accuracy_percent": 100 - error}
