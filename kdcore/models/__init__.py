"""Networks with named taps: ``net(x)`` returns logits, ``net.features(x)`` returns ``(logits, {tap: tensor})``."""

import re

from kdcore.errors import KdcoreError
from kdcore.models.darts import Darts
from kdcore.models.densenet import DenseNet
from kdcore.models.maxout import DESIGNS, Maxout
from kdcore.models.mlp import MLP
from kdcore.models.network import Network, Tap
from kdcore.models.resnet import ResNet, ResNet50
from kdcore.models.shallow import Layered
from kdcore.models.wide_resnet import WideResNet

__all__ = [
    "MLP", "Darts", "DenseNet", "Layered", "Maxout", "Network", "ResNet", "ResNet50", "Tap", "WideResNet", "count_parameters",
    "create", "names",
]  # fmt: skip

FAMILIES = {
    r"resnet_([1-9]\d*)(?:x([1-9]\d*))?": ResNet,
    r"wrn_([1-9]\d*)_([1-9]\d*)": WideResNet,
    r"densenet_bc_([1-9]\d*)_([1-9]\d*)": DenseNet,
    r"resnet50": ResNet50,
    r"darts_(v1|v2)_([1-9]\d*)_([1-9]\d*)": Darts,
    r"(maxout_(?:cifar|mnist)|fitnet_(?:[1-4]|4_released|mnist))(?:/([1-9]\d*))?": Maxout,
    r"(\d+k?(?:c|lc|fc|L)?-[\w-]+)": Layered,
}
CHOICES = (
    "resnet_D or resnet_DxK (D = 6n + 2 layers, K times the channels), wrn_D_K or densenet_bc_D_K (D = 6n + 4), resnet50, "
    "darts_v1_N_C or darts_v2_N_C (N cells, C channels), "
    'maxout_cifar, maxout_mnist, fitnet_1 to fitnet_4, fitnet_4_released or fitnet_mnist (append "/K" to divide its widths by K), '
    "or layers such as 128c-p-1200L-30k"
)


def names() -> list[str]:
    """Names of the papers' networks; ``create`` also takes other depths and widths of these families."""
    resnets = [f"resnet_{size}" for size in ("8", "14", "20", "26", "32", "14x4", "32x4")]
    sizes = ("10_1", "10_4", "16_1", "16_2", "16_4", "22_4", "28_1", "28_2", "28_5", "28_10", "40_1", "40_2")
    layers = ("2000-2000", "64c-p-64c-p-64c-p-16lc", "64c-p-64c-p-128c-p-fc", "128c-p-128c-p-128c-p-1000fc", "128c-p-1200L-30k")
    wide = [f"wrn_{size}" for size in sizes]
    cells = [f"darts_{size}" for size in ("v1_10_16", "v2_10_16", "v2_25_16", "v2_20_36")]
    return [*resnets, *wide, "densenet_bc_40_36", "densenet_bc_100_12", "resnet50", *cells, *DESIGNS, *layers]


def create(name: str, classes: int = 10, **options) -> Network:
    """Build a network by its name, with the weights of ``reset(0)``: resnet_26, resnet_14x4, wrn_16_2, densenet_bc_100_12, fitnet_4, ...

    options: further arguments of the network's class, such as ``dropout`` of a WideResNet.
    Raises KdcoreError for an unknown name or an impossible depth.
    """
    for pattern, family in FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            try:
                parts = (int(part) if part.isdigit() else part for part in match.groups() if part)
                return family(*parts, classes=classes, **options)
            except ValueError as error:
                raise KdcoreError(f"cannot build network '{name}' ({error}): choose {CHOICES}") from error
    raise KdcoreError(f"unknown network '{name}': choose {CHOICES}")


def count_parameters(net) -> int:
    """The number of trainable parameters of ``net``."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
