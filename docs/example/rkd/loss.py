"""The losses of Park, Kim, Lu & Cho 2019, which compare pairs and triplets of images: a single image has no loss of its own."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.losses import no_autocast


def distance_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """l(|t_i - t_j| / mu_t, |s_i - s_j| / mu_s), the mean over all pairs; mu is a net's mean distance between two images, l the Huber
    loss (section 3.2.1). student [B, C], teacher [B, D], B >= 2; C and D may differ. Scalar. Raises ValueError for other shapes."""
    return F.huber_loss(*(_distances(features) for features in _checked(student, teacher, 2)))


def angle_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """l(cosine of the angle at j between i and k in the teacher, the same in the student), the mean over all triplets (section 3.2.2).
    Shapes and errors as in ``distance_wise``, but B >= 3."""
    with no_autocast(student):
        return F.huber_loss(*(_cosines(features) for features in _checked(student, teacher, 3)))


def _distances(features: Tensor) -> Tensor:
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distances * (len(features) * (len(features) - 1)) / distances.sum()  # the diagonal is 0, and not counted as pairs


def _cosines(features: Tensor) -> Tensor:
    """[j, i, k]: the cosine at corner j. Two coinciding images have no direction: 0, without a gradient, which would be infinite."""
    between = features[None] - features[:, None]
    squares = between.square().sum(-1, keepdim=True)
    directions = torch.where(squares > 0, between / squares.where(squares > 0, 1).sqrt(), 0)
    return directions @ directions.mT


def _checked(student: Tensor, teacher: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if not student.dim() == teacher.dim() == 2 or len(student) != len(teacher) or len(student) < least:
        raise ValueError(f"the features must be [B, C] and [B, D], B >= {least}, not {tuple(student.shape)} and {tuple(teacher.shape)}")
    return student.float(), teacher.detach().float()
