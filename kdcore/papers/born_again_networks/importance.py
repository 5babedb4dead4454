"""Does BAN weight its cases by the teacher's confidence (section 3.2)? CWTM's weights beside BAN's first gradient."""

import torch
from torch import Tensor

BINS = 10  # of the teacher's confidence


def importance(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, list]:
    """Importance weights against the teacher's confidence max_i p_i, in bins of equal width.

    student, teacher: logits [N, C]; labels: int64 [N]. Returns three lists with one value per bin: cases, their number;
    cwtm_weight, CWTM's mean weight relative to the overall mean; true_class_weight, the true-class part of BAN's gradient over
    that of the label gradient, |q_y - p_y| / (1 - q_y), each summed over the bin. Weights of an empty bin are None.
    """
    q, p = student.softmax(-1), teacher.softmax(-1)
    confidence = p.amax(-1)
    q, p = (each.gather(-1, labels.unsqueeze(-1)).squeeze(-1) for each in (q, p))
    bins = (confidence * BINS).long().clamp(max=BINS - 1)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64, device=bins.device).index_add_(0, bins, values.double())

    cases = summed(torch.ones_like(confidence))
    weight, ratio = summed(confidence / confidence.mean()) / cases, summed((q - p).abs()) / summed(1 - q)
    return {
        "cases": [int(count) for count in cases],
        "cwtm_weight": [None if value != value else value for value in weight.tolist()],
        "true_class_weight": [None if value != value else value for value in ratio.tolist()],
    }
