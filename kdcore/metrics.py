"""Metrics of a trained classifier."""

import torch
from torch import Tensor


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each case is misclassified: logits [..., N, C], labels [N] -> bool [..., N]."""
    return logits.argmax(-1) != labels


def top_wrong(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each case's label is not among its k largest logits: logits [..., N, C], labels [N] -> bool [..., N]."""
    return (logits.topk(k).indices != labels.unsqueeze(-1)).all(-1)


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Confusion matrix, counts[label][prediction], for logits [N, C] and labels [N]."""
    classes = logits.shape[-1]
    return torch.bincount(labels * classes + logits.argmax(-1), minlength=classes**2).view(classes, classes).tolist()


def shift_errors(logits: Tensor, labels: Tensor, classes: list[int], shifts: list[float]) -> list[int]:
    """Number of misclassified cases for each shift added to the bias of ``classes``: logits [N, C], labels [N]."""
    shifted = logits.clone()
    counts = []
    for shift in shifts:
        shifted[:, classes] = logits[:, classes] + shift
        counts.append(int(wrong(shifted, labels).sum()))
    return counts


def best_shift(errors: list[int], shifts: list[float]) -> float:
    """The shift with the fewest errors; the middle one if several tie."""
    ties = [shift for shift, count in zip(shifts, errors, strict=True) if count == min(errors)]
    return ties[len(ties) // 2]


def gradient_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Parts of the gradient q - p of the cross-entropy with a teacher by the student's logits: logits [N, C], labels [N].

    Means over cases, with p = softmax(teacher) and q = softmax(student). gradient_true_class: |q_y - p_y|;
    gradient_other_classes: sum over i != y of |q_i - p_i|, the dark knowledge; gradient_labels: 1 - q_y, the part of the true
    class if the target is the label. As p and q sum to 1, the part of the true class is never the larger one; the two are equal
    if all q_i - p_i with i != y have the same sign, as with a label (Furlanello et al. 2018, section 3.2 [M?: its number], which
    has the signed sum of both parts).
    """
    q, p, labels = student.softmax(-1), teacher.softmax(-1), labels.unsqueeze(-1)
    gap = (q - p).abs()
    true = gap.gather(-1, labels).squeeze(-1)
    return {
        "gradient_true_class": true.mean(),
        "gradient_other_classes": gap.scatter(-1, labels, 0).sum(-1).mean(),
        "gradient_labels": 1 - q.gather(-1, labels).mean(),
    }
