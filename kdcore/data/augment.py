"""Augmentation of whole batches by index: a batch is one look-up in a strided view, without per-sample code."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Views:
    """All shifted windows of a set of images, and their mirror images, as one strided view of the padded set.

    images: uint8 [N, C, H, W], or float32 (such as whitened images), which is not scaled.
    pad: width of the border in pixels, black or reflected (``border="zero" | "reflect"``), added before normalisation, like
    torchvision's RandomCrop before ToTensor.
    mean, std: of each channel, on a scale of 0..1: float32 (x / 255 - mean) / std; None gives x / 255.
    memory_format: ``torch.channels_last`` gives batches in that layout.

    ``views(index)`` with ``index`` int64 [..., 3] = (image, dy, dx), 0 <= dy, dx <= 2*pad, gives [..., C, H, W] of
    ``dtype``. dy = dx = pad is the image itself; a smaller dy moves the picture down. With ``flip`` the index is
    (image, dy, dx, flip), and flip = 1 gives the same window of the mirrored image. There are ``views.count`` views per
    image: (2*pad + 1)^2, twice that with flip.

    The padded set is held as uint8, twice with flip: 240 or 480 MB for CIFAR with pad 4. Raises ValueError for an unknown
    border, one wider than the image, a mean or std without one value per channel, or an index with a wrong number of columns.
    """

    def __init__(
        self,
        images: Tensor,
        pad: int,
        *,
        flip: bool = False,
        border: str = "zero",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.shape = tuple(images.shape[1:])
        self.pad, self.flip, self.dtype = pad, flip, dtype
        self.count = (2 * pad + 1) ** 2 * (2 if flip else 1)
        self.channels_last = memory_format == torch.channels_last
        height, width = self.shape[1:]
        self.normalisation = None
        if mean is not None or std is not None:
            self.normalisation = [self._per_row(values, images.device) for values in (mean, std)]
        padded = _padded(images, pad, border)
        if flip:
            padded = torch.stack([padded, padded.flip(-1)], 1)
        if self.channels_last:
            padded = padded.movedim(-3, -1).contiguous().movedim(-1, -3)
        # [N, 2*pad+1, 2*pad+1, (2,) C, H, W], without copying pixels; the window axes follow the image axis
        self.windows = padded.unfold(-2, height, 1).unfold(-2, width, 1).movedim((-4, -3), (1, 2))
        if self.channels_last:
            self.windows = self.windows.movedim(-3, -1)

    def __call__(self, index: Tensor) -> Tensor:
        if index.shape[-1] != 3 + self.flip:
            raise ValueError(f"these views take an index of {3 + self.flip} columns, not {index.shape[-1]}")
        x = self._look_up(index.reshape(-1, index.shape[-1]).unbind(-1))
        shape = (*index.shape[:-1], *x.shape[1:])
        x = x.float() if x.is_floating_point() else x.float().div_(255)
        if self.normalisation is not None:
            mean, std = self.normalisation
            x = x.flatten(-2) if self.channels_last else x
            x.sub_(mean).div_(std)
        x = x.to(self.dtype).reshape(shape)
        return x.movedim(-1, -3) if self.channels_last else x

    def _look_up(self, axes: tuple[Tensor, ...]) -> Tensor:
        if self.windows.device.type != "cpu":
            return self.windows[axes]
        # NumPy copies whole windows where PyTorch copies pixel by pixel: twice as fast
        return torch.from_numpy(self.windows.numpy()[tuple(axis.numpy() for axis in axes)])

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a view of each image uniformly: int64 [...] -> [..., 3], or [..., 4] with flip."""
        columns = [images.unsqueeze(-1), torch.randint(2 * self.pad + 1, (*images.shape, 2), generator=generator)]
        if self.flip:
            columns.append(torch.randint(2, (*images.shape, 1), generator=generator))
        return torch.cat(columns, -1)

    def plain(self, images: Tensor) -> Tensor:
        """The index of each image's unaugmented view: int64 [...] -> [..., 3], or [..., 4] with flip."""
        shift = torch.full_like(images, self.pad)
        return torch.stack([images, shift, shift] + [torch.zeros_like(images)] * self.flip, -1)

    def _per_row(self, values: Sequence[float] | None, device: torch.device) -> Tensor:
        channels, _, width = self.shape
        if values is None or len(values) != channels:
            raise ValueError(f"mean and std must have one value for each of the {channels} channels")
        values = torch.tensor(values, dtype=torch.float32, device=device)
        # repeated for a whole row of pixels: a broadcast over three neighbouring values would be slow
        return values.repeat(width) if self.channels_last else values.view(-1, 1, 1)


def cutout(x: Tensor, side: int) -> Tensor:
    """Set a random square of ``side`` pixels to 0 in each of the images [B, C, H, W] (DeVries & Taylor 2017, arXiv 1708.04552).

    Its centre is drawn uniformly over all pixels, on the images' device, so that part of the square may lie outside."""
    height, width = x.shape[-2:]
    centres = [torch.randint(size, (len(x), 1), device=x.device) for size in (height, width)]
    rows, columns = (
        (torch.arange(size, device=x.device) - centre + side // 2).unsqueeze(axis)
        for axis, size, centre in zip((2, 1), (height, width), centres, strict=True)
    )
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return x * ~inside.unsqueeze(1)


def _padded(images: Tensor, pad: int, border: str) -> Tensor:
    if border == "zero":
        return F.pad(images, (pad, pad, pad, pad))
    if border != "reflect":
        raise ValueError(f"border must be 'zero' or 'reflect', not {border!r}")
    for axis in (-2, -1):
        size = images.shape[axis]
        if pad >= size:
            raise ValueError(f"a border of {pad} px cannot be reflected from an image of {size} px")
        places = torch.arange(-pad, size + pad, device=images.device).abs()
        images = images.index_select(axis, size - 1 - (size - 1 - places).abs())
    return images
