"""Preprocessing of images: channel statistics, global contrast normalisation, ZCA whitening."""

import torch
from torch import Tensor


def channel_mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of each channel over all pixels, on a scale of 0..1. images: uint8 [N, C, H, W]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = channel.flatten().bincount(minlength=256).cpu().double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean).square()).sum().sqrt().item())
    return tuple(means), tuple(deviations)


def global_contrast_normalise(images: Tensor, scale: float = 55.0) -> Tensor:
    """Subtract each image's mean over channels and pixels, divide by its L2 norm and multiply by ``scale``: float32.

        x <- scale (x - mean(x)) / ||x - mean(x)||_2

    images: uint8 or float [N, C, H, W]. A constant image becomes zero. The same as pylearn2's ``global_contrast_normalize``
    with scale 55, which FitNets and maxout networks use (Goodfellow et al. 2013).
    """
    x = images.flatten(1).float()
    x = x - x.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True) / scale
    return (x / torch.where(norms < 1e-8, 1, norms)).view_as(images)


class ZCA:
    """ZCA whitening: the whitening that stays closest to the images (pylearn2's ``ZCA``; Krizhevsky 2009, appendix A).

        P = (S + filter_bias I)^(-1/2),   x <- P (x - m)

    m is the mean and S the covariance (divided by N) of the flattened training images. ``fit`` computes in float64,
    ``apply`` returns float32.
    """

    def __init__(self, filter_bias: float = 0.1):
        self.filter_bias = filter_bias

    def fit(self, images: Tensor) -> "ZCA":
        """Compute m and P from training images: float [N, C, H, W], or any [N, ...]."""
        x = images.flatten(1)
        mean = x.mean(0, dtype=torch.float64)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
        for part in x.split(5000):  # the float64 copy of a whole set would be 1.2 GB
            centred = part.double() - mean
            covariance.addmm_(centred.T, centred, alpha=1 / len(x))
        covariance.diagonal().add_(self.filter_bias)
        values, vectors = torch.linalg.eigh(covariance)
        self.mean, self.matrix = mean.float(), ((vectors / values.sqrt()) @ vectors.T).float()
        return self

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images, as in ``fit``; the result has their shape."""
        return torch.cat([(part.float() - self.mean) @ self.matrix for part in images.flatten(1).split(5000)]).view_as(images)
