"""Attention maps of networks: their similarity, and examples for the figure."""

import base64

import torch
from torch import Tensor, nn

from kdcore import losses
from kdcore.data.augment import Views
from kdcore.models.darts import Darts
from kdcore.models.densenet import DenseNet
from kdcore.papers.images import parts, spread

COMPARED = 1000  # test images on which the attention maps of teacher and student are compared
SHOWN = 3  # test images whose maps a record keeps


def attended(net: nn.Module) -> list[str]:
    """The taps whose attention is transferred, one for each map size."""
    if isinstance(net, Darts):
        cells = len(net.cells)
        return [f"cell{i}" for i in (0, cells // 3, 2 * cells // 3)]
    if isinstance(net, DenseNet):
        return ["stem", "stage2", "final"]
    return ["group1.sum", "group2.sum", "group3.sum"]


@torch.no_grad()
def similarity(student: nn.Module, teacher: nn.Module, views: Views) -> float:
    """Mean cosine between the attention maps of teacher and student at the three taps, over images of ``views``: 1 if they are equal."""
    cases, total = spread(len(views.windows), COMPARED, views.windows.device), 0.0
    student.eval()
    for part in parts(cases):
        x = views(views.plain(part))
        own, target = student.features(x)[1], teacher.features(x)[1]
        for mine, theirs in zip(attended(student), attended(teacher), strict=True):
            total += (losses.attention_map(own[mine]) * losses.attention_map(target[theirs])).sum().item()
    return total / len(cases) / len(attended(student))


@torch.no_grad()
def shown(net: nn.Module, views: Views, images: Tensor) -> list[dict]:
    """Attention maps of some images as bytes, scaled to a maximum of 255, together with the images, so that the figure needs no
    data set. images: uint8 [N, 3, H, W] on the CPU, those of ``views``."""
    cases = spread(len(images), SHOWN)[:SHOWN]
    net.eval()
    _, taps = net.features(views(views.plain(cases.to(views.windows.device))))
    entries = [{"image": _bytes(image), "shape": list(image.shape), "maps": []} for image in images[cases]]
    for tap in attended(net):
        attention = losses.attention_map(taps[tap]).view(len(cases), *taps[tap].shape[2:]).cpu()
        for entry, each in zip(entries, attention, strict=True):
            entry["maps"].append({"values": _bytes((255 * each / each.max().clamp(min=1e-12)).round().byte()), "shape": list(each.shape)})
    return entries


def _bytes(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
