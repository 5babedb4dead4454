"""Augmentation of whole batches, by index: a batch is one look-up in a strided view, no per-sample code."""

import torch
from torch import Tensor
from torch.nn import functional as F


class Views:
    """All shifted windows of a set of images, as one strided view of the padded set.

    ``views(index)`` with ``index`` int64 [..., 3] = (image, dy, dx), 0 <= dy, dx <= 2*pad, gives float32
    [..., C, H, W] in 0..1. dy = dx = pad is the image itself; smaller dy moves the picture down. The empty border is
    zero. There are (2*pad + 1)^2 views an image.
    """

    def __init__(self, images: Tensor, pad: int):
        self.shape = tuple(images.shape[1:])
        self.pad = pad
        height, width = self.shape[-2:]
        # [N, C, 2*pad+1, 2*pad+1, H, W], no copy of the pixels; the window axes stand behind the image axis
        windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
        self.windows = windows.permute(0, 2, 3, 1, 4, 5)

    def __call__(self, index: Tensor) -> Tensor:
        image, dy, dx = index.unbind(-1)
        return self.windows[image, dy, dx].to(torch.float32).div_(255)

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniformly drawn view of each image: int64 [...] -> [..., 3]."""
        shifts = torch.randint(2 * self.pad + 1, (*images.shape, 2), generator=generator)
        return torch.cat([images.unsqueeze(-1), shifts], -1)
