"""What a trained classifier is measured by."""

import torch
from torch import Tensor


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the largest logit is not the label: logits [..., N, C], labels [N] -> bool [..., N]."""
    return logits.argmax(-1) != labels


def top_wrong(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Where the label is not among the k largest logits: logits [..., N, C], labels [N] -> bool [..., N]."""
    return (logits.topk(k).indices != labels.unsqueeze(-1)).all(-1)


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts[label][prediction] of logits [N, C] and labels [N]."""
    classes = logits.shape[-1]
    return torch.bincount(labels * classes + logits.argmax(-1), minlength=classes**2).view(classes, classes).tolist()


def shift_errors(logits: Tensor, labels: Tensor, classes: list[int], shifts: list[float]) -> list[int]:
    """Errors after ``shift`` is added to the bias of ``classes``, for each shift: logits [N, C], labels [N]."""
    shifted = logits.clone()
    counts = []
    for shift in shifts:
        shifted[:, classes] = logits[:, classes] + shift
        counts.append(int(wrong(shifted, labels).sum()))
    return counts


def best_shift(errors: list[int], shifts: list[float]) -> float:
    """The shift with the fewest errors; the middle one where several tie."""
    ties = [shift for shift, count in zip(shifts, errors, strict=True) if count == min(errors)]
    return ties[len(ties) // 2]
