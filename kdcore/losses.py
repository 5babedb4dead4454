"""Every distillation loss: a pure function under its equation.

Shapes: ``B`` cases, ``C`` classes; ``...`` stands for any leading axes, such as the members of a stack of nets.
Maps are [B, C, H, W] with ``C`` channels. Arithmetic is float32 or better, even under autocast. ``reduction="mean"``
averages over cases, ``"none"`` returns one value per case. No gradient flows into the teacher.
Weights between the terms of a method (lambda, beta) are left to the caller, except where a function takes ``weights``.
``variant="paper"`` is the printed formula, ``"code"`` what the authors' program computes, where the two differ.
Sources: [V: where] was verified there, [M] is cited from memory, [M?] from memory and uncertain.

Every function raises ValueError for what would make a loss silently wrong: tensors that are empty, not floating point or on
different devices; shapes that do not fit (a teacher's logits may lack leading axes, nothing else is broadcast); fewer
than two classes, where a softmax is constant; labels that are not class numbers; temperatures and weights out of range; an
unknown variant or reduction. Values on an accelerator are not checked, since that would cost a host sync at every step.
Logits must be finite: a class masked by -inf in both networks gives NaN, as in ``torch.nn.functional.kl_div``. Leave it out.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLDEST, HOTTEST = 1e-6, 1e6  # beyond these, float32 cannot hold z / T or the differences between softened probabilities
TWICE = "it has no second derivative: replace it (a hard sigmoid by a sigmoid, say), or use another method"


def _widen(tensor: Tensor) -> Tensor:
    """Half precision as float32: a softmax at high temperature rests on differences that 8 bits cannot hold."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mismatch(name: str, tensor: Tensor, student: Tensor, why: str = "") -> ValueError:
    return ValueError(f"{name} of shape {tuple(tensor.shape)} does not fit student of shape {tuple(student.shape)}{why}")


def _checked(name: str, tensor: Tensor, axes: int, form: str) -> Tensor:
    """The tensor itself, if it is a dense, non-empty floating-point tensor with at least ``axes`` axes; form: how to describe them."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must hold floating-point numbers, not {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense, not {tensor.layout}: call to_dense()")
    if tensor.dim() < axes:
        raise ValueError(f"{name} must be {form}, not of shape {tuple(tensor.shape)}")
    if not tensor.numel():
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is empty")
    return tensor


def _together(name: str, tensor: Tensor, student: Tensor) -> None:
    if tensor.device != student.device:
        raise ValueError(f"{name} is on {tensor.device} and student on {student.device}: move both to one device")


def _logits(name: str, tensor: Tensor) -> Tensor:
    if _checked(name, tensor, 2, "logits [..., B, C]").shape[-1] < 2:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} has one class, whose softmax is always 1: for a binary problem give two logits, "
            "such as (0, z)"
        )
    return tensor


def _logit_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked and widened, the teacher detached. It may lack leading axes of the student: one teacher for a stack."""
    _logits("student", student), _logits("teacher", teacher)
    _together("teacher", teacher, student)
    if student.shape[max(student.dim() - teacher.dim(), 0) :] != teacher.shape:
        other = student.shape[-1] != teacher.shape[-1]
        raise _mismatch("teacher", teacher, student, ": different class counts" if other else ": only leading axes may be missing")
    return _widen(student), _widen(teacher.detach())


def _feature_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked and widened, the teacher detached."""
    for name, tensor in (("student", student), ("teacher", teacher)):
        _checked(name, tensor, 2, "features [B, ...]")
    _together("teacher", teacher, student)
    if student.shape != teacher.shape:
        raise _mismatch("teacher", teacher, student)
    return _widen(student), _widen(teacher.detach())


def _map(name: str, tensor: Tensor) -> Tensor:
    if _checked(name, tensor, 1, "a map of shape [B, C, H, W]").dim() != 4:
        raise ValueError(f"{name} must be a map of shape [B, C, H, W], not {tuple(tensor.shape)}")
    return _widen(tensor)


def no_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context in which products of float32 tensors are computed in float32, even under autocast."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)  # the meta device has no autocast


def pick(logits: Tensor, labels: Tensor) -> Tensor:
    """Each case's logit of its label: [..., B] from logits [..., B, C] and labels int64 [..., B], which may lack leading axes.

    Raises ValueError for labels of another dtype or shape and, on a CPU, for labels outside 0..C-1. (On an accelerator,
    PyTorch's own assertion then ends the process.)
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be class numbers in an int64 tensor, not {kind}: use labels.long(), or argmax(-1) of one-hot rows")
    _together("labels", labels, logits)
    cases = logits.shape[:-1]
    if not labels.dim() or cases[max(len(cases) - labels.dim(), 0) :] != labels.shape:
        raise _mismatch("labels", labels, logits, ": one class number for each case")
    try:
        return logits.gather(-1, labels.expand(cases).unsqueeze(-1)).squeeze(-1)
    except RuntimeError:  # raised by the look-up itself, so that a check costs nothing
        if labels.is_inference() and not torch.is_inference_mode_enabled():  # cannot be saved for the backward pass
            return pick(logits, labels.clone())
        if labels.device.type != "cpu":
            raise
        raise ValueError(f"labels must lie from 0 to {logits.shape[-1] - 1} for {logits.shape[-1]} classes") from None


def known(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read without a host sync and without breaking graph capture."""
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


def check_number(
    name: str, value: float | Tensor, low: float = 0.0, high: float = float("inf"), what: str = "of 0 or more", *, several: bool = False
) -> None:
    """Raises ValueError for anything but a finite number from ``low`` to ``high``. Values of a tensor are checked where that is free.

    several: whether a tensor may hold more than one number.
    """
    if isinstance(value, Tensor):
        wrong = value.is_complex() or value.dtype == torch.bool or not value.numel() or (value.numel() > 1 and not several)
        wrong = wrong or (known(value) and not bool((value.isfinite() & (value >= low) & (value <= high)).all()))
    else:
        wrong = isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high or value == float("inf")
    if wrong:
        shown = repr(value)
        if isinstance(value, Tensor):
            shown = value.tolist() if known(value) else f"a tensor of shape {tuple(value.shape)}"
        raise ValueError(f"{name} must be a finite number {what}, not {shown}")


def check_temperature(temperature: float | Tensor) -> None:
    """Raises ValueError for a temperature that is not above 0 (from 1e-6 to 1e6)."""
    check_number("temperature", temperature, COLDEST, HOTTEST, "above 0, from 1e-6 to 1e6", several=True)


def _temperature(temperature: float | Tensor, student: Tensor) -> float | Tensor:
    """A number, or a tensor that broadcasts against the logits with one value for all classes."""
    check_temperature(temperature)
    if not isinstance(temperature, Tensor):
        return temperature
    sizes = (1,) * (student.dim() - temperature.dim()) + tuple(temperature.shape)
    if len(sizes) > student.dim() or sizes[-1] != 1 or any(own not in (1, size) for own, size in zip(sizes, student.shape, strict=True)):
        raise _mismatch("temperature", temperature, student, ": give one value for all classes, [K, 1, 1] for a stack of K")
    return temperature.to(student)


def check_variant(variant: str) -> None:
    """Raises ValueError unless the variant is 'paper' or 'code'."""
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', not {variant!r}")


def _unit(rows: Tensor) -> Tensor:
    """Rows [B, D] scaled to unit length. A row of zeros stays zero, with a finite gradient (an epsilon in the divisor would make
    it explode)."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / (norm + (norm == 0))


def _reduce(per_case: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
    return per_case.mean() if reduction == "mean" else per_case


def cross_entropy(student: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy with hard labels, at T = 1.

        L = -log softmax(z)_y

    student: logits z [..., B, C]; labels: class numbers, int64 [..., B], which may lack leading axes of the logits. In nats.
    Raises ValueError for labels of another dtype or shape and, on a CPU, for labels outside 0..C-1.
    """
    log_p = F.log_softmax(_widen(_logits("student", student)), -1)
    return _reduce(-pick(log_p, labels), reduction)


def kd(student: Tensor, teacher: Tensor, temperature: float | Tensor, *, reduction: str = "mean") -> Tensor:
    """Soft targets (Hinton, Vinyals & Dean 2015, eq. 1 and section 2).

        L = T^2 * sum_i p_i(T) * (log p_i(T) - log q_i(T)),   p(T) = softmax(v / T),  q(T) = softmax(z / T)

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; temperature: T > 0, a number
    or a tensor that broadcasts against the logits and has one value for all classes (one T for each member of a stack:
    [K, 1, 1]). In nats, times T^2.

    The factor T^2 keeps the size of the gradient, T * (q - p) / N, roughly independent of T; as T grows, the gradient tends
    to (z - v) / (N C) for logits with zero mean over the C classes (eq. 4, where the paper writes N for C). This is the
    paper's cross-entropy minus the teacher's entropy, which has no gradient: it is 0 for student = teacher.
    Raises ValueError if the shapes differ or T is not above 0.
    """
    student, teacher = _logit_pair(student, teacher)
    temperature = _temperature(temperature, student)
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    per_case = (temperature**2 * log_p.exp() * (log_p - log_q)).sum(-1)
    return _reduce(per_case, reduction)


def fitnets_kd(student: Tensor, teacher: Tensor, temperature: float | Tensor, *, variant: str = "paper", reduction: str = "mean") -> Tensor:
    """Soft targets as in FitNets, without the factor T^2 (Romero et al. 2015, second term of eq. 2 [M: its number]).

        paper:  L = - sum_i p_i(T) * log q_i(T),   p(T) = softmax(v / T),  q(T) = softmax(z / T)
        code:   L = - sum_i p_i(T) * log q_i(1)    [V: KDCost.py: the student's division by T is undone before it is used]

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; temperature: T > 0 as in
    `kd`, 3 in the paper. In nats. The minimum is the teacher's entropy at T, not 0. Variant "paper" has the gradient of `kd` / T^2.
    Raises ValueError if the shapes differ, T is not above 0 or the variant is unknown.
    """
    check_variant(variant)
    student, teacher = _logit_pair(student, teacher)
    temperature = _temperature(temperature, student)
    return ban(student / temperature if variant == "paper" else student, teacher / temperature, reduction=reduction)


def logit_mimic(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Regression on the teacher's logits (Ba & Caruana 2014, eq. 1 [M: its number; the formula V: slides]).

        L = 1/2 * sum_i (z_i - v_i)^2, averaged over cases: 1 / (2N) * sum_n ||z_n - v_n||^2

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes. Standardising the targets to
    zero mean and unit variance over the transfer set [M?] is left to the caller.
    Raises ValueError if the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return _reduce(0.5 * (student - teacher).square().sum(-1), reduction)


def hint(student: Tensor, teacher: Tensor, *, variant: str = "paper", reduction: str = "mean") -> Tensor:
    """Hint training of the guided layer (FitNets, Romero et al. 2015, eq. 3 [M: its number]).

        paper:  L = 1/2 * ||u - r||^2              summed over all units of a case
        code:   L = 1/2 * ||u - r||^2 / (C W)      [V: HintCost.py: sum over the rows of a map, then mean over the rest]

    student: the regressor's output for the guided layer, r [B, ...]: a map, a vector or tokens; teacher: the hint layer u,
    same shape (variant "code" needs [B, C, H, W]: its nets store maps as C, H, W, B and sum over axis 1).
    Raises ValueError if the shapes differ, the variant is unknown, or variant "code" gets anything but maps.
    """
    check_variant(variant)
    student, teacher = _feature_pair(student, teacher)
    per_case = 0.5 * (student - teacher).square().flatten(1).sum(1)
    if variant == "code":
        _, channels, _, width = _map("student", student).shape
        per_case = per_case / (channels * width)
    return _reduce(per_case, reduction)


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow of solution procedure between two layers (Yim et al. 2017, eq. 1 [V]).

        G_ij = sum_{y,x} F1_{i,y,x} * F2_{j,y,x} / (h w)

    first, second: maps F1 [B, C1, H, W] and F2 [B, C2, H, W] of one net. If their sizes differ, the larger is max-pooled
    to the smaller's h x w, which must divide its own. Returns [B, C1, C2].
    Raises ValueError for tensors that are not maps, for different batch sizes, and for map sizes that do not divide.
    """
    first, second = _map("first", first), _map("second", second)
    _together("second", second, first)
    size = height, width = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    nested = size in (first.shape[2:], second.shape[2:]) and not any(h % height or w % width for *_, h, w in (first.shape, second.shape))
    if first.shape[0] != second.shape[0] or not nested:
        raise ValueError(
            f"first of shape {tuple(first.shape)} does not fit second of shape {tuple(second.shape)}: "
            "batch sizes must be equal, and the sides of the smaller map must divide those of the larger"
        )
    common = torch.promote_types(first.dtype, second.dtype)
    maps = []
    for features in (first.to(common), second.to(common)):
        rows, columns = features.shape[2:]
        pooled = features if (rows, columns) == size else F.max_pool2d(features, (rows // height, columns // width))
        maps.append(pooled.flatten(2))
    with no_autocast(first):  # autocast would compute the product in half precision
        return maps[0] @ maps[1].transpose(1, 2) / (height * width)


def fsp(
    student: Sequence[tuple[Tensor, Tensor]],
    teacher: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Distance between FSP matrices (Yim et al. 2017, eq. 2 [V]).

        L = sum_i lambda_i * ||G_i(teacher) - G_i(student)||_F^2, averaged over cases

    student, teacher: for each i the pair of maps that `fsp_matrix` takes, with the same channel counts in both nets (sizes
    may differ); weights: lambda_i, 0 or more; None: 1 each, the equation as printed (the paper has them equal and gives no
    value). For training take less (`kdcore.methods.fsp`: 0.01): the loss is of fourth order in the activations and a sum
    over C1 * C2 entries, so that with 1 it diverges at usual learning rates.
    Squares are summed: a mean over the matrix, as in later libraries, is C1 * C2 times smaller.
    Raises ValueError for empty lists, lists of different lengths, matrices of different shapes, and negative weights.
    """
    if not all(isinstance(each, Sequence) for each in (student, teacher, weights or ())):
        raise ValueError("fsp takes lists: pairs of maps for student and for teacher, and weights")
    weights = [1.0] * len(student) if weights is None else weights
    if not len(student) == len(teacher) == len(weights) > 0:
        raise ValueError(
            f"student has {len(student)} pairs, teacher {len(teacher)}, weights {len(weights)}: give the same number of each, at least one"
        )
    distances = []
    for weight, student_maps, teacher_maps in zip(weights, student, teacher, strict=True):
        check_number("a weight of fsp", weight)
        if not len(student_maps) == len(teacher_maps) == 2:
            raise ValueError(f"an FSP matrix takes two maps: give pairs, not {len(student_maps)} and {len(teacher_maps)} maps")
        flow, target = _feature_pair(fsp_matrix(*student_maps), fsp_matrix(*teacher_maps))
        distances.append(weight * (flow - target).square().sum((1, 2)))
    return _reduce(torch.stack(distances).sum(0), reduction)


def attention_map(features: Tensor) -> Tensor:
    """Attention map of a layer: squares summed over channels, at unit length (Zagoruyko & Komodakis 2017, F_sum^2 [M: the name]).

        Q_yx = sum_c A_{c,y,x}^2,   returned as Q / ||Q||_2

    features: map A [B, C, H, W], returns [B, H * W]; or the tokens of a transformer [B, N, C], returns [B, N]. Zero features
    give zeros. The authors' code takes the mean over channels, which is the same after normalisation.
    Raises ValueError for other shapes, and for a single position, whose attention is always 1.
    """
    return _attention(_energy("features", features))


def _energy(name: str, features: Tensor) -> Tensor:
    """The mean square over channels at each position: [B, H, W] or [B, N]."""
    _checked(name, features, 1, "a map of shape [B, C, H, W] or tokens [B, N, C]")
    if features.dim() not in (3, 4):
        raise ValueError(f"{name} must be a map of shape [B, C, H, W] or tokens [B, N, C], not {tuple(features.shape)}")
    return _widen(features).square().mean(1 if features.dim() == 4 else 2)


def _attention(energy: Tensor) -> Tensor:
    if energy[0].numel() < 2:
        raise ValueError("an attention map with one position is constant: choose a layer with larger maps")
    return _unit(energy.flatten(1))


def attention_transfer(
    student: Tensor, teacher: Tensor, *, variant: str = "code", resize: str | None = None, reduction: str = "mean"
) -> Tensor:
    """Distance between the attention maps of two layers (Zagoruyko & Komodakis 2017), with Q from `attention_map`.

        paper:  L = 1/2 * ||Q_s - Q_t||_2            eq. 2, p = 2 [V: issue 34 of the authors' repository]
        code:   L = ||Q_s - Q_t||_2^2 / (H W)        [V: utils.py: mean of the squares over cases and positions]

    student: map [B, C, H, W]; teacher: map [B, C', H, W], any number of channels; or tokens [B, N, C] and [B, N, C']. Multiply
    either variant by beta and sum over layers. beta = 1000 belongs to variant "code", in which an 8 x 8 map weighs 16 times
    as much as a 32 x 32 map. resize: "pool" for maps of different sizes: the larger map's sums of squares are averaged over
    adaptive windows (as in ``F.adaptive_avg_pool2d``) to the smaller size, then scaled to unit length.
    Raises ValueError if batch sizes or kinds differ, if sizes differ without resize="pool", if a map has one position, and for
    an unknown option.
    """
    check_variant(variant)
    check_resize(resize)
    own, target = _energy("student", student), _energy("teacher", teacher).detach()
    _together("teacher", teacher, student)
    if own.shape != target.shape:
        if own.dim() != target.dim() or len(own) != len(target) or own.dim() == 2:
            raise _mismatch("teacher", teacher, student)
        if resize is None:
            raise _mismatch("teacher", teacher, student, ': resize="pool" pools the attention of the larger map to the smaller size')
        size = [min(sides) for sides in zip(own.shape[1:], target.shape[1:], strict=True)]
        own, target = (each if list(each.shape[1:]) == size else F.adaptive_avg_pool2d(each, size) for each in (own, target))
    own, target = _attention(own), _attention(target)
    if variant == "paper":
        return _reduce(0.5 * torch.linalg.vector_norm(own - target, dim=1), reduction)
    return _reduce((own - target).square().mean(1), reduction)


def check_resize(resize: str | None) -> None:
    """Raises ValueError unless resize is None or 'pool'."""
    if resize not in (None, "pool"):
        raise ValueError(f"resize must be None or 'pool', not {resize!r}")


def activation_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """Squared hinge loss that pushes each neuron to the teacher's side of its ReLU (Heo et al. 2019, eq. 4 [M?: its number]).

        L = sum_i  [t_i > 0] * max(0, mu - s_i)^2 + [t_i <= 0] * max(0, mu + s_i)^2

    student: pre-activations s [B, ...] (through a connector if the widths differ); teacher: pre-activations t, same shape,
    after BatchNorm and before the ReLU; margin: mu. It is 0 when every s_i has the teacher's sign and a magnitude of at
    least mu, hence for student = teacher only if no |t_i| < mu. The authors' code [V] is this sum over all neurons divided by
    the batch size, with weights 1, 1/2, 1/4 from the last layer to the first, times 3/1000.
    Raises ValueError if the shapes differ or the margin is negative.
    """
    check_number("margin", margin)
    student, teacher = _feature_pair(student, teacher)
    per_neuron = torch.where(teacher > 0, margin - student, margin + student).relu().square()
    return _reduce(per_neuron.flatten(1).sum(1), reduction)


def activation_boundary_count(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Number of neurons on the wrong side, which `activation_boundary` approximates (Heo et al. 2019, eq. 3 [M?: its number]).

        L = || [t > 0] - [s > 0] ||_1

    student, teacher: pre-activations [B, ...]. For reporting only: it is piecewise constant and has no gradient.
    Raises ValueError if the shapes differ.
    """
    student, teacher = _feature_pair(student, teacher)
    return _reduce(((student > 0) != (teacher > 0)).flatten(1).sum(1).to(student.dtype), reduction)


def jacobian(student: Tensor, teacher: Tensor, inputs: Tensor, *, reduction: str = "mean") -> Tensor:
    """Distance between the directions of two input gradients (Srinivas & Fleuret 2018, arXiv 1803.00443 [M: the formula]).

        L = || J_s / ||J_s||_2 - J_t / ||J_t||_2 ||_2^2,   J = d output / d inputs of one case, flattened

    student, teacher: one scalar output per case [B], such as the logit of the label (for attention maps, the paper takes
    the position of the largest attention [M]); inputs: [B, ...], which required a gradient in both forward passes.
    The result, from 0 to 4, can be differentiated through the student; the teacher's graph is kept for other students.
    BatchNorm in train mode mixes the cases of a batch: J is then the gradient of the sum over the batch.
    Raises ValueError if an output is not [B] or has no graph, if inputs have a single value per case (whose direction is
    constant), and if the student cannot be differentiated twice.
    """
    if _checked("inputs", inputs, 2, "images [B, ...]")[0].numel() < 2:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)} have one value per case: a direction needs at least two")
    gradients = []
    for name, output in (("student", student), ("teacher", teacher)):
        _checked(name, output, 1, "one scalar per case [B]")
        _together(name, output, inputs)
        if output.shape != inputs.shape[:1]:
            raise ValueError(f"{name} of shape {tuple(output.shape)} is not one scalar per case of inputs of shape {tuple(inputs.shape)}")
        gradient = None
        if inputs.requires_grad and output.requires_grad:
            ones, differentiable = torch.ones_like(output), name == "student"
            try:
                with no_autocast(output):
                    (gradient,) = torch.autograd.grad(
                        output, inputs, ones, create_graph=differentiable, retain_graph=True, allow_unused=True
                    )
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                raise ValueError(f"the {name} has a checkpoint that gives no input gradient: give it use_reentrant=False") from error
        if gradient is None:
            raise ValueError(f"{name} has no graph back to inputs: call inputs.requires_grad_() before the forward pass, outside no_grad")
        if name == "student" and torch.is_grad_enabled():
            _check_twice(output, gradient)
        gradients.append(_unit(_widen(gradient).flatten(1)))
    return _reduce((gradients[0] - gradients[1]).square().sum(1), reduction)


def _check_twice(output: Tensor, gradient: Tensor) -> None:
    """Raises ValueError if the input gradient cannot be differentiated because part of the graph has no second derivative.

    Walks over the graph, a few hundred nodes: less than a thousandth of the time of a backward pass.
    """
    if not gradient.requires_grad:
        raise ValueError("the student's input gradient depends on none of its parameters: Jacobian matching cannot train it")
    waiting, seen = [output.grad_fn, gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [source for source, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)  # an autograd.Function written in Python
        once = function is not None and hasattr(function.backward, "__wrapped__")  # wrapped by once_differentiable
        if once or node.name().endswith(("NotImplemented", "DelayedError", "::Error")):
            what = f"'{function.__name__}'" if once else "an activation or layer"
            raise ValueError(f"the student has {what} that Jacobian matching cannot differentiate twice: {TWICE}")


def ban(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Born-again networks: the teacher's softmax at T = 1 as the label (Furlanello et al. 2018, section 3 [V: T = 1]).

        L = - sum_i p_i * log q_i,   p = softmax(v),  q = softmax(z)

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes. The minimum is the
    teacher's entropy, not 0. BAN+L adds `cross_entropy` to it.
    Raises ValueError if the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return _reduce(-(teacher.softmax(-1) * F.log_softmax(student, -1)).sum(-1), reduction)


def cwtm(student: Tensor, teacher: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Confidence weighted by teacher max (Furlanello et al. 2018, eq. 10 [M?: its number; the formula V]).

        L = sum_n w_n * (- log q_n,y),   w_n = max_i p_n,i / sum_m max_i p_m,i,   p = softmax(v),  q = softmax(z)

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; labels: class numbers, int64
    [..., B], or without leading axes.
    The sums run over all cases of the mini-batch, including those that the teacher gets wrong. ``reduction="none"`` gives
    B * w_n * (- log q_n,y), whose mean over the cases is L. As with `cross_entropy`, the minimum is 0, at certainty.
    Raises ValueError if the shapes differ and, like `cross_entropy`, for labels that are not class numbers.
    """
    student, teacher = _logit_pair(student, teacher)
    confidence = teacher.softmax(-1).amax(-1)
    weights = confidence / confidence.mean(-1, keepdim=True)
    return _reduce(weights * cross_entropy(student, labels, reduction="none"), reduction)


def permuted_predictions(teacher: Tensor, draws: Tensor) -> Tensor:
    """Permute each case's logits [..., B, C], except the largest, which stays in place.

    teacher: logits [..., B, C]; draws: independent random numbers of the teacher's shape, float32 or float64 (half precision
    has ties), such as ``torch.rand_like(teacher, dtype=torch.float32)``. Their order gives the permutation, so that all
    (C - 1)! permutations are equally likely. Permuting the logits permutes their softmax.
    Raises ValueError for fewer than two classes and for draws of another shape or dtype.
    """
    _logits("teacher", teacher)
    _together("draws", _checked("draws", draws, 2, "random numbers [..., B, C]"), teacher)
    if draws.shape != teacher.shape or draws.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"draws of shape {tuple(draws.shape)} and dtype {draws.dtype} do not fit teacher of shape {tuple(teacher.shape)}: "
            "use torch.rand_like(teacher, dtype=torch.float32)"
        )
    top = teacher.argmax(-1, keepdim=True)
    sources = draws.scatter(-1, top, torch.inf).argsort(-1)  # the others in random order, then the top
    places = torch.zeros_like(draws).scatter(-1, top, 1.0).argsort(dim=-1, stable=True)  # the others in order, then the top
    return teacher.scatter(-1, places, teacher.gather(-1, sources))


def dkpp(student: Tensor, teacher: Tensor, draws: Tensor, *, reduction: str = "mean") -> Tensor:
    """Dark knowledge with permuted predictions (Furlanello et al. 2018, eq. 11 [M?: its number; the formula V]).

        L = - sum_i p_pi(i) * log q_i,   p = softmax(v),  q = softmax(z),  pi(argmax p) = argmax p

    student: logits z [..., B, C]; teacher: logits v of the same shape, or without leading axes; draws: as in
    `permuted_predictions`. The paper does not say whether its permutations were fixed: new draws at each call give new
    permutations, draws stored per case give each case a fixed one. In nats. The minimum is the teacher's entropy, not 0.
    With two classes there is nothing to permute: it is `ban`.
    Raises ValueError if the shapes differ.
    """
    student, teacher = _logit_pair(student, teacher)
    return ban(student, permuted_predictions(teacher, draws), reduction=reduction)
