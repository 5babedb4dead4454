"""Every distillation loss: a pure function under its equation.

Shapes: ``B`` cases, ``C`` classes; ``...`` stands for any leading axes, such as the members of a stack of nets.
Maps are [B, C, H, W] with ``C`` channels. Arithmetic is float32 or better, also under autocast. ``reduction="mean"``
averages over cases, ``"none"`` keeps them. No gradient flows into the teacher (`kd` leaves that to its caller).
Weights between the terms of a method (lambda, beta) are the caller's, unless an argument is said to hold them.
``variant="paper"`` is the formula in print, ``"code"`` what the authors' program computes, where the two differ.
In the sources, [V: where] was read there, [M] is cited from memory, [M?] from memory and in doubt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _logits(*tensors: Tensor) -> list[Tensor]:
    """Half precision is widened: a softmax at high temperature lives on differences that 8 bits cannot hold."""
    if len({tensor.shape[-1] for tensor in tensors}) > 1:
        raise ValueError(f"logits of different class counts: {[tuple(tensor.shape) for tensor in tensors]}")
    return [_widen(tensor) for tensor in tensors]


def _mismatch(name: str, tensor: Tensor, student: Tensor) -> ValueError:
    return ValueError(f"{name} of shape {tuple(tensor.shape)} does not fit student of shape {tuple(student.shape)}")


def _logit_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Widened, the teacher detached. A teacher may lack leading axes of the student: one teacher for a stack."""
    if student.shape[max(student.dim() - teacher.dim(), 0) :] != teacher.shape:
        raise _mismatch("teacher", teacher, student)
    return _widen(student), _widen(teacher.detach())


def _feature_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Widened, the teacher detached."""
    if student.shape != teacher.shape:
        raise _mismatch("teacher", teacher, student)
    return _widen(student), _widen(teacher.detach())


def _map(name: str, tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        raise ValueError(f"{name} must be a map of shape [B, C, H, W], not {tuple(tensor.shape)}")
    return _widen(tensor)


def _unit(rows: Tensor) -> Tensor:
    """Rows [B, D] at length 1. A row of zeros stays zero with a finite gradient, where a division by a tiny constant explodes."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / (norm + (norm == 0))


def _check_variant(variant: str) -> None:
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', not {variant!r}")


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
    if isinstance(temperature, Tensor):
        temperature = temperature.to(student)
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    per_case = (temperature**2 * log_p.exp() * (log_p - log_q)).sum(-1)
    return _reduce(per_case, reduction)


def fitnets_kd(student: Tensor, teacher: Tensor, temperature: float, *, variant: str = "paper", reduction: str = "mean") -> Tensor:
    """Soft targets as FitNets uses them: no factor T^2 (Romero et al. 2015, second term of eq. 2 [M: its number]).

        paper:  L = - sum_i p_i(T) * log q_i(T),   p(T) = softmax(v / T),  q(T) = softmax(z / T)
        code:   L = - sum_i p_i(T) * log q_i(1)    [V: KDCost.py: the student's division by T is undone before it is used]

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; temperature: T > 0, 3 in
    the paper. The minimum is the teacher's entropy at T, not 0. The paper's variant has the gradient of `kd` / T^2.
    Raises ValueError where the shapes differ or the variant is unknown.
    """
    _check_variant(variant)
    student, teacher = _logit_pair(student, teacher)
    return ban(student / temperature if variant == "paper" else student, teacher / temperature, reduction=reduction)


def logit_mimic(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Regression on the teacher's logits (Ba & Caruana 2014, eq. 1 [M: its number; the formula V: slides]).

        L = 1/2 * sum_i (z_i - v_i)^2, averaged over cases: 1 / (2N) * sum_n ||z_n - v_n||^2

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes. Whether the targets are
    first brought to zero mean and unit variance over the transfer set [M?] is up to the caller.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return _reduce(0.5 * (student - teacher).square().sum(-1), reduction)


def hint(student: Tensor, teacher: Tensor, *, variant: str = "paper", reduction: str = "mean") -> Tensor:
    """Hint training of the guided layer (FitNets, Romero et al. 2015, eq. 3 [M: its number]).

        paper:  L = 1/2 * ||u - r||^2              summed over all units of a case
        code:   L = 1/2 * ||u - r||^2 / (C W)      [V: HintCost.py: sum over the rows of a map, then mean over all else]

    student: what the regressor makes of the guided layer, r [B, ...]; teacher: the hint layer u, same shape ([B, C, H, W]
    for the code, whose nets store maps as C, H, W, B and sum over their axis 1).
    Raises ValueError where the shapes differ or the variant is unknown.
    """
    _check_variant(variant)
    student, teacher = _feature_pair(student, teacher)
    per_case = 0.5 * (student - teacher).square().flatten(1).sum(1)
    if variant == "code":
        _, channels, _, width = _map("student", student).shape
        per_case = per_case / (channels * width)
    return _reduce(per_case, reduction)


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow of solution procedure between two layers (Yim et al. 2017, eq. 1 [V]).

        G_ij = sum_{y,x} F1_{i,y,x} * F2_{j,y,x} / (h w)

    first, second: maps F1 [B, C1, H, W] and F2 [B, C2, H, W] of one net. Where their sizes differ the larger is
    max-pooled to h x w of the smaller, which must divide it. Returns [B, C1, C2].
    Raises ValueError for maps of different batches or sizes that do not divide.
    """
    shapes = f"first of shape {tuple(first.shape)} does not fit second of shape {tuple(second.shape)}"
    first, second = _map("first", first), _map("second", second)
    if first.shape[0] != second.shape[0]:
        raise ValueError(shapes)
    size = height, width = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    maps = []
    for features in (first, second):
        rows, columns = features.shape[2:]
        if rows % height or columns % width:
            raise ValueError(shapes)
        pooled = features if (rows, columns) == size else F.max_pool2d(features, (rows // height, columns // width))
        maps.append(pooled.flatten(2))
    with torch.autocast(first.device.type, enabled=False):  # it would take the product in half precision
        return maps[0] @ maps[1].transpose(1, 2) / (height * width)


def fsp(
    student: Sequence[tuple[Tensor, Tensor]],
    teacher: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Distance of the FSP matrices (Yim et al. 2017, eq. 2 [V]).

        L = sum_i lambda_i * ||G_i(teacher) - G_i(student)||_F^2, averaged over cases

    student, teacher: for each i the pair of maps that `fsp_matrix` takes, of equal channel counts in both nets (sizes
    may differ); weights: lambda_i, 1 each for None (the paper has them equal and does not give their value).
    Squares are summed: a mean over the matrix, as in later libraries, is C1 * C2 times smaller.
    Raises ValueError for different numbers of pairs or weights, and for matrices of different shapes.
    """
    weights = [1.0] * len(student) if weights is None else weights
    if not len(student) == len(teacher) == len(weights) > 0:
        raise ValueError(
            f"student has {len(student)} pairs, teacher {len(teacher)}, weights {len(weights)}: they must be as many, at least one"
        )
    distances = []
    for weight, student_maps, teacher_maps in zip(weights, student, teacher, strict=True):
        flow, target = _feature_pair(fsp_matrix(*student_maps), fsp_matrix(*teacher_maps))
        distances.append(weight * (flow - target).square().sum((1, 2)))
    return _reduce(torch.stack(distances).sum(0), reduction)


def attention_map(features: Tensor) -> Tensor:
    """Where a layer looks: its channels' squares, at length 1 (Zagoruyko & Komodakis 2017, F_sum^2 [M: the name]).

        Q_yx = sum_c A_{c,y,x}^2,   returned as Q / ||Q||_2

    features: map A [B, C, H, W]. Returns [B, H * W]; zeros for a map of zeros. The authors' code takes the mean over
    channels, which the division by the length makes the same.
    """
    return _unit(_map("features", features).square().mean(1).flatten(1))


def attention_transfer(student: Tensor, teacher: Tensor, *, variant: str = "code", reduction: str = "mean") -> Tensor:
    """Distance of the attention maps of two layers (Zagoruyko & Komodakis 2017), with Q from `attention_map`.

        paper:  L = 1/2 * ||Q_s - Q_t||_2            eq. 2, p = 2 [V: issue 34 of the authors' repository]
        code:   L = ||Q_s - Q_t||_2^2 / (H W)        [V: utils.py: mean of the squares over cases and positions]

    student: map [B, C, H, W]; teacher: map [B, C', H, W], any number of channels. Both are to be multiplied by beta and
    summed over layers. beta = 1000 belongs to the code's variant, in which an 8 x 8 map weighs 16 times as much as one of
    32 x 32.
    Raises ValueError where the batches or sizes differ or the variant is unknown.
    """
    _check_variant(variant)
    own, target = attention_map(student), attention_map(teacher.detach())
    if student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise _mismatch("teacher", teacher, student)
    if variant == "paper":
        return _reduce(0.5 * torch.linalg.vector_norm(own - target, dim=1), reduction)
    return _reduce((own - target).square().mean(1), reduction)


def activation_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Squared hinge that puts each neuron on the teacher's side of its ReLU (Heo et al. 2019, eq. 4 [M?: its number]).

        L = sum_i  [t_i > 0] * max(0, mu - s_i)^2 + [t_i <= 0] * max(0, mu + s_i)^2

    student: pre-activations s [B, ...] (through a connector where the widths differ); teacher: pre-activations t, same
    shape, after batch norm and before the ReLU; margin: mu. It is 0 where every s_i has the teacher's sign and a size of
    mu or more, so at student = teacher only if no |t_i| < mu. The authors' code [V] is this sum over all neurons divided
    by the batch, with weights 1, 1/2, 1/4 from the last layer to the first, and all times 3/1000.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _feature_pair(student, teacher)
    per_neuron = torch.where(teacher > 0, margin - student, margin + student).relu().square()
    return _reduce(per_neuron.flatten(1).sum(1), reduction)


def activation_boundary_count(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Neurons of a case on the wrong side: what `activation_boundary` stands for (Heo et al. 2019, eq. 3 [M?: its number]).

        L = || [t > 0] - [s > 0] ||_1

    student, teacher: pre-activations [B, ...]. For reporting: it is piecewise constant and has no gradient.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _feature_pair(student, teacher)
    return _reduce(((student > 0) != (teacher > 0)).flatten(1).sum(1).to(student.dtype), reduction)


def jacobian(student: Tensor, teacher: Tensor, inputs: Tensor, *, reduction: str = "mean") -> Tensor:
    """Distance of the directions of two input gradients (Srinivas & Fleuret 2018, arXiv 1803.00443 [M: the formula]).

        L = || J_s / ||J_s||_2 - J_t / ||J_t||_2 ||_2^2,   J = d output / d inputs of one case, flattened

    student, teacher: one scalar output a case [B], such as the logit of the label (the paper's own choice for attention
    maps is the position of the largest attention [M]); inputs: [B, ...], which required a gradient when both nets saw it.
    The result can be differentiated through the student; the teacher's graph is kept, for other students to use.
    Through batch norm in training mode the cases of a batch mix: J is then the gradient of the batch's sum.
    Raises ValueError where an output is not [B] or was computed without a graph.
    """
    gradients = []
    for name, output in (("student", student), ("teacher", teacher)):
        if output.shape != inputs.shape[:1]:
            raise ValueError(f"{name} of shape {tuple(output.shape)} is not one scalar a case of inputs of shape {tuple(inputs.shape)}")
        gradient = None
        if inputs.requires_grad and output.requires_grad:
            ones, differentiable = torch.ones_like(output), name == "student"
            with torch.autocast(output.device.type, enabled=False):
                (gradient,) = torch.autograd.grad(output, inputs, ones, create_graph=differentiable, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(f"{name} has no graph back to inputs: call inputs.requires_grad_() before the net sees them, outside no_grad")
        gradients.append(_unit(_widen(gradient).flatten(1)))
    return _reduce((gradients[0] - gradients[1]).square().sum(1), reduction)


def ban(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Born-again networks: the teacher's softmax as the label, not softened (Furlanello et al. 2018, section 3 [V: T = 1]).

        L = - sum_i p_i * log q_i,   p = softmax(v),  q = softmax(z)

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes. The minimum is the
    teacher's entropy, not 0. BAN+L adds `cross_entropy` to it.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return _reduce(-(teacher.softmax(-1) * F.log_softmax(student, -1)).sum(-1), reduction)


def cwtm(student: Tensor, teacher: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Confidence weighted by teacher max (Furlanello et al. 2018, eq. 10 [M?: its number; the formula V]).

        L = sum_n w_n * (- log q_n,y),   w_n = max_i p_n,i / sum_m max_i p_m,i,   p = softmax(v),  q = softmax(z)

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; labels: int64 [..., B].
    The sums run over the cases of the minibatch, whether the teacher is right or not. ``reduction="none"`` gives
    B * w_n * (- log q_n,y), whose mean over the cases is L. As in `cross_entropy`, the minimum is 0, at certainty.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    if student.shape[max(student.dim() - 1 - labels.dim(), 0) : -1] != labels.shape:
        raise _mismatch("labels", labels, student)
    confidence = teacher.softmax(-1).amax(-1)
    weights = confidence / confidence.mean(-1, keepdim=True)
    return _reduce(weights * cross_entropy(student, labels, reduction="none"), reduction)


def permuted_predictions(teacher: Tensor, draws: Tensor) -> Tensor:
    """Logits [..., B, C] whose largest entry of each case stays in place and whose others are shuffled among themselves.

    draws: independent uniform numbers from 0 to 1, of the teacher's shape: each case's others take the order of its own,
    so that every one of their (C - 1)! permutations is equally likely. To permute the logits is to permute their softmax.
    """
    top = teacher.argmax(-1, keepdim=True)
    sources = draws.scatter(-1, top, 2.0).argsort(-1)  # the others in random order, then the top
    places = torch.zeros_like(draws).scatter(-1, top, 1.0).argsort(dim=-1, stable=True)  # the others in order, then the top
    return teacher.scatter(-1, places, teacher.gather(-1, sources))


def dkpp(student: Tensor, teacher: Tensor, draws: Tensor, *, reduction: str = "mean") -> Tensor:
    """Dark knowledge with permuted predictions (Furlanello et al. 2018, eq. 11 [M?: its number; the formula V]).

        L = - sum_i p_pi(i) * log q_i,   p = softmax(v),  q = softmax(z),  pi(argmax p) = argmax p

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; draws: what orders the
    permutations of `permuted_predictions`, ``torch.rand_like(teacher)``. The paper does not say whether it kept them: with
    new draws each call has permutations of its own, with draws that belong to the cases each case keeps its own. The
    minimum is the teacher's entropy, not 0.
    Raises ValueError where the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return ban(student, permuted_predictions(teacher, draws), reduction=reduction)
