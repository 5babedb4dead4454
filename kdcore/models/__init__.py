"""Networks with named taps. ``net(x)`` gives logits, ``net.features(x)`` gives ``(logits, {tap: tensor})``."""

from kdcore.models.mlp import MLP

__all__ = ["MLP", "count_parameters"]


def count_parameters(net) -> int:
    """The number of trained values in ``net``."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
