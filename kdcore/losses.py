"""Every distillation loss: a pure function under its equation.

Shapes: ``B`` cases, ``C`` classes; ``...`` stands for any leading axes, such as the members of a stack of nets.
Arithmetic is float32 or better, also under autocast. ``reduction="mean"`` averages over cases, ``"none"`` keeps them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _logits(*tensors: Tensor) -> list[Tensor]:
    """Half precision is widened: a softmax at high temperature lives on differences that 8 bits cannot hold."""
    if len({tensor.shape[-1] for tensor in tensors}) > 1:
        raise ValueError(f"logits of different class counts: {[tuple(tensor.shape) for tensor in tensors]}")
    return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]


def _reduce(per_case: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
    return per_case.mean() if reduction == "mean" else per_case


def cross_entropy(student: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Hard-label loss at T = 1.

        L = -log softmax(z)_y

    student: logits z [..., B, C]; labels: int64 [..., B], broadcast over the leading axes of the logits.
    """
    (student,) = _logits(student)
    log_p = F.log_softmax(student, -1)
    picked = log_p.gather(-1, labels.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return _reduce(-picked, reduction)


def kd(student: Tensor, teacher: Tensor, temperature: float | Tensor, *, reduction: str = "mean") -> Tensor:
    """Soft targets (Hinton, Vinyals & Dean 2015, eq. 1 and section 2).

        L = T^2 * sum_i p_i(T) * (log p_i(T) - log q_i(T)),   p(T) = softmax(v / T),  q(T) = softmax(z / T)

    student: logits z [..., B, C]; teacher: logits v, broadcast against them; temperature: T > 0, a number or a tensor
    that broadcasts against the logits (one T for each member of a stack: [K, 1, 1]).

    The factor T^2 keeps the gradient, T * (q - p) / N, of the same size whatever T is; as T grows it tends to
    (z - v) / (N C) for logits with zero mean over the C classes (eq. 4, where the paper writes N for C). This is the
    cross-entropy of the paper less the teacher's entropy, which has no gradient: it is 0 where student = teacher.
    Raises ValueError where the class counts differ.
    """
    student, teacher = _logits(student, teacher)
    temperature = torch.as_tensor(temperature, dtype=student.dtype, device=student.device)
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    per_case = (temperature.square() * log_p.exp() * (log_p - log_q)).sum(-1)
    return _reduce(per_case, reduction)
