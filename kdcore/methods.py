"""Each method as stages: which losses it puts on which taps of student and teacher.

    method = methods.fsp(student, teacher, pairs=[("group1.first", "group1")])
    for stage in method.stages:
        optimiser = torch.optim.SGD(stage.parameters, lr=0.1)
        for x, labels in loader:
            loss = stage.loss(x, labels)
            ...

A student or teacher is any module with ``features(x) -> (logits, {tap: tensor})`` and ``taps``: the networks of
``kdcore.models``, or ``Tapped(your_model, ...)``, with ".pre" for the tensor before a ReLU ("group3.pre"). Methods with a
separate first stage (FitNets, FSP, activation boundaries) also call the student's ``features(x, until=taps)`` and
``parameters_before(tap)``. Methods that read only logits take any module that returns them. Freeze the teacher first:
``freeze(teacher)``.

Wherever a method takes the name of a tap, it also takes a pair (the student's, the teacher's) if the names differ. Connectors,
which join taps of different widths, are made on the student's device and with its dtype. A ``Method`` can be copied and
pickled: the copy trains its own student and connectors. All functions raise ValueError for arguments that they cannot use.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from kdcore import losses
from kdcore.connectors import (
    as_list,
    as_pair,
    both_names,
    check_reached,
    checked_weights,
    find_taps,
    is_frozen_before,
    make_connector,
    make_regressor,
    parameters_before,
    placed_like,
    refuse_repeats,
    shape_of,
    tap_names,
)
from kdcore.models.tapped import Tapped
from kdcore.objective import Batch, Objective, Term
from kdcore.teacher import Knowledge, LogitTable, Statistics, check_module, freeze
from kdcore.training.stage import Stage

__all__ = [
    "Batch", "Knowledge", "LogitTable", "Method", "Objective", "StageLoss", "Statistics", "Tapped", "Term", "activation_boundary",
    "attention_transfer", "ban", "cwtm", "dkpp", "fitnets", "freeze", "fsp", "hard_labels", "jacobian", "kd", "labels_and_soft_targets",
    "logit_mimic", "plain", "soft_targets", "stage",
]  # fmt: skip


def stage(
    name: str,
    student: nn.Module,
    teacher: nn.Module | None,
    terms: Sequence[tuple[float | Tensor, Term]] | None,
    parameters: Sequence[nn.Parameter] | None = None,
    *,
    connectors: Sequence[nn.Module] = (),
    knobs: Mapping[str, Tensor] | None = None,
    **options,
) -> Stage:
    """Build a stage of a method.

    terms: as ``Objective`` takes them; None: ``hard_labels()``. parameters: those of the student to train; None: all.
    connectors: available to the terms as ``Batch.connectors``, and trained as well. knobs: weights among the terms that a
    schedule may set, by name. options: those of ``Objective``.
    """
    check_module(student, "student")
    trained = list(student.parameters() if parameters is None else parameters)
    trained += [parameter for connector in connectors for parameter in connector.parameters()]
    objective = Objective(name, student, teacher, _terms(terms), trained, connectors=connectors, **options)
    return Stage(name, objective, objective.parameters, dict(knobs or {}))


class Method(nn.Module):
    """A student and the modules that its method adds (regressors, connectors), with the stages that train them.

    It holds everything that training changes, so that its state is a checkpoint of the run. The teacher is not a submodule:
    ``train()`` and ``parameters()`` do not reach it, but ``copy.deepcopy`` copies it, too. ``torch.save`` of a whole method
    needs terms that can be pickled, as all terms of this module can.
    """

    def __init__(self, student: nn.Module, stages: Sequence[Stage], connectors: Sequence[nn.Module] = ()):
        super().__init__()
        self.student, self.stages = student, list(stages)
        self.connectors = nn.ModuleList(connectors)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


class StageLoss(nn.Module):
    """The loss of a stage (one of ``method.stages``) as a module, whose forward pass computes all of it, connectors included.

    This lets module wrappers wrap a stage: ``DistributedDataParallel(StageLoss(method, stage), find_unused_parameters=True)``.
    Each process passes its own part of a batch. Raises ValueError for a stage of another method.
    """

    def __init__(self, method: Method, stage: Stage):
        super().__init__()
        if not isinstance(method, Method) or not any(stage is own for own in method.stages):
            shown = f"stage '{stage.name}'" if isinstance(stage, Stage) else f"{stage!r}"
            raise ValueError(f"{shown} does not belong to the method: give one of method.stages")
        self.method, self.stage = method, stage

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.stage.loss(x, labels)


def _hard(batch: Batch) -> Tensor:
    return losses.cross_entropy(batch.logits, batch.labels, reduction="none").mean(-1)  # one value per net of a stack


def _soft(batch: Batch, temperature: float | Tensor) -> Tensor:
    return losses.kd(batch.logits, batch.teacher.logits, temperature, reduction="none").mean(-1)


def _of_logits(batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return loss(batch.logits, batch.teacher.logits)


def hard_labels() -> list[tuple[float, Term]]:
    """Cross-entropy with the labels."""
    return [(1.0, _hard)]


def soft_targets(temperature: float | Tensor, soft_weight: float = 1.0, label_weight: float | None = None) -> list[tuple[float, Term]]:
    """b CE(labels) + a T^2 KL(teacher at T): the "+ KD" of any method (Hinton et al. 2015, section 2).

    temperature: T > 0, or one for each net of a stack, [K, 1, 1]; soft_weight: a; label_weight: b, 0 or more as is a; None: b =
    1 - a, with a from 0 to 1. A term of weight 0 is left out, so that it costs nothing. Raises ValueError for numbers out of range.
    """
    losses.check_temperature(temperature)
    if label_weight is None:
        losses.check_number("soft_weight", soft_weight, 0.0, 1.0, "from 0 to 1")
        label_weight = 1 - soft_weight
    losses.check_number("soft_weight", soft_weight)
    losses.check_number("label_weight", label_weight)
    terms = [(label_weight, _hard), (soft_weight, partial(_soft, temperature=temperature))]
    return [(weight, term) for weight, term in terms if weight]


def plain(student: nn.Module, teacher: nn.Module | None = None, *, task: Sequence[tuple[float, Term]] | None = None) -> Method:
    """Train on the task alone, by default ``hard_labels()``. student, teacher: any module that returns logits."""
    return _one_stage(student, teacher, task)


def kd(student: nn.Module, teacher: nn.Module, *, temperature: float = 4.0, soft_weight: float = 0.9) -> Method:
    """Knowledge distillation (Hinton, Vinyals & Dean 2015): ``soft_targets``, see ``losses.kd``.

    student, teacher: any module that returns logits [B, C], the teacher frozen. temperature: T > 0; soft_weight: a, from 0 to 1.
    Raises ValueError for numbers out of range.
    """
    return _one_stage(student, teacher, soft_targets(temperature, soft_weight))


def logit_mimic(student: nn.Module, teacher: nn.Module | None) -> Method:
    """Regression on the teacher's logits, without labels (Ba & Caruana 2014): see ``losses.logit_mimic``.

    student, teacher: any module that returns logits; teacher=None if each batch comes with its logits, as a ``Knowledge``.
    """
    return _one_stage(student, teacher, [(1.0, partial(_of_logits, loss=losses.logit_mimic))])


def ban(student: nn.Module, teacher: nn.Module | None, *, label_weight: float = 0.0) -> Method:
    """Born-again networks (Furlanello et al. 2018): the teacher's softmax as the label, see ``losses.ban``.

    student, teacher: any module that returns logits. label_weight: 0 or more; 0 is BAN, without labels, 1 is BAN+L, the sum of
    both cross-entropies. Raises ValueError for a weight out of range.
    """
    losses.check_number("label_weight", label_weight)
    return _one_stage(student, teacher, [(1.0, partial(_of_logits, loss=losses.ban))] + ([(label_weight, _hard)] if label_weight else []))


def cwtm(student: nn.Module, teacher: nn.Module | None) -> Method:
    """Labels, with each case weighted by the teacher's confidence (Furlanello et al. 2018): see ``losses.cwtm``.

    student, teacher: any module that returns logits.
    """
    return _one_stage(student, teacher, [(1.0, _cwtm)])


def _cwtm(batch: Batch) -> Tensor:
    return losses.cwtm(batch.logits, batch.teacher.logits, batch.labels)


def dkpp(student: nn.Module, teacher: nn.Module | None) -> Method:
    """The teacher's softmax with all but its largest entry permuted anew at each step (Furlanello et al. 2018): see ``losses.dkpp``.

    student, teacher: any module that returns logits. The permutations are drawn from PyTorch's global generator.
    """
    return _one_stage(student, teacher, [(1.0, _dkpp)])


def _dkpp(batch: Batch) -> Tensor:
    return losses.dkpp(batch.logits, batch.teacher.logits, torch.rand_like(batch.teacher.logits, dtype=torch.float32))


def fitnets(
    student: nn.Module,
    teacher: nn.Module,
    *,
    hint: str,
    guided: str,
    temperature: float = 3.0,
    variant: str = "paper",
    regressor: nn.Module | None = None,
    weight: float | None = None,
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """FitNets (Romero et al. 2015): first the guided layer learns the hint, then the whole net learns labels and soft targets.

    hint: the teacher's tap; guided: the student's; both maps, both vectors, or equally many tokens. regressor: trained in the
    first stage together with the layers up to the guided tap. None: no regressor if the shapes agree, else a linear convolution
    whose kernel is the difference of the map sizes plus one (section 2.2; the paper uses the teacher's layer type), or a linear
    layer for vectors and tokens. The second stage, "kd", is H(y, P_S) + lambda H(P_T, P_S) at ``temperature``, without T^2;
    lambda is the knob "soft_weight", 4 until a schedule lowers it. weight: of the hint loss, a sum over the units of a layer.
    None: half the mean over units, this suite's choice: with weight 1, the equation as printed, training diverges at usual
    learning rates and needs a smaller one than in the second stage (1e-4 in section 4.2 of Yim et al. 2017).
    task: replaces the second stage by "train", without the knob. variant: of the losses, as in ``losses.hint`` and ``fitnets_kd``.
    Raises ValueError for unknown taps, shapes that no regressor can join, and numbers out of range.
    """
    losses.check_variant(variant)
    losses.check_temperature(temperature)
    if weight is not None:
        losses.check_number("weight", weight)
    own, target = find_taps(student, teacher, (guided, hint))
    if variant == "code" and len(target.shape) != 3:
        raise ValueError(f"variant 'code' of the hint loss is defined for maps: the teacher's '{hint}' is {shape_of(target)}")
    if weight is None:
        weight = 1 / (math.prod(target.shape) if variant == "paper" else target.shape[1])  # "code" already averages over the rest
    if regressor is None:
        regressor = make_regressor(own, target, f"student's '{guided}'", f"teacher's '{hint}'")
    regressor = placed_like(regressor, student)
    first = stage(
        "hint",
        student,
        teacher,
        [(weight, partial(_hint, guided=guided, hint=hint, variant=variant))],
        parameters_before(student, [guided]),
        until=[guided],
        connectors=[regressor],
    )
    last = stage("train", student, teacher, task) if task is not None else _labels_and_soft_targets(student, teacher, temperature, variant)
    return Method(student, [first, last], [regressor])


def labels_and_soft_targets(student: nn.Module, teacher: nn.Module, *, temperature: float = 3.0, variant: str = "paper") -> Method:
    """The second stage of FitNets alone (Romero et al. 2015, eq. 2): H(y, P_S) + lambda H(P_T, P_S), where lambda is the knob
    "soft_weight", 4 until a schedule lowers it. temperature, variant: as in ``losses.fitnets_kd``.

    student, teacher: any module that returns logits. Raises ValueError for numbers out of range.
    """
    losses.check_variant(variant)
    losses.check_temperature(temperature)
    return Method(student, [_labels_and_soft_targets(student, teacher, temperature, variant)])


def _labels_and_soft_targets(student: nn.Module, teacher: nn.Module, temperature: float, variant: str) -> Stage:
    soft = torch.tensor(4.0, device=next(student.parameters()).device)
    terms = [*hard_labels(), (soft, partial(_fitnets_kd, temperature=temperature, variant=variant))]
    return stage("kd", student, teacher, terms, knobs={"soft_weight": soft})


def _hint(batch: Batch, guided: str, hint: str, variant: str) -> Tensor:
    return losses.hint(batch.connectors[0](batch.own(guided)), batch.teacher.taps[hint], variant=variant)


def _fitnets_kd(batch: Batch, temperature: float, variant: str) -> Tensor:
    return losses.fitnets_kd(batch.logits, batch.teacher.logits, temperature, variant=variant)


def fsp(
    student: nn.Module,
    teacher: nn.Module,
    *,
    pairs: Sequence[tuple[str | tuple[str, str], str | tuple[str, str]]],
    weights: Sequence[float] | None = None,
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """Flow of solution procedure (Yim et al. 2017): first the FSP matrices, then the task.

    pairs: for each FSP matrix, the taps of the first and last layer of its section, both maps; each tap is a name, or (the
    student's, the teacher's). If their widths differ, a 1x1 convolution brings the student's map to the teacher's width
    (in the paper they are equal). weights: lambda_i, 0 or more; None: 0.01 each, this suite's choice (the paper gives no
    value): the loss is of fourth order in the activations and diverges with 1 at usual learning rates. task: None for
    ``hard_labels()``, or ``soft_targets(...)``. The first stage trains only the parameters that the taps depend on, so that
    its weight decay leaves the other layers alone.
    Raises ValueError for an empty list of pairs, repeated pairs, unknown taps, taps that are not maps, and weights out of range.
    """
    sections = [tuple(tap_names(tap) for tap in as_pair(pair, "pairs")) for pair in as_list(pairs, "pairs")]
    refuse_repeats(sections, "pairs")
    weights = [FSP_WEIGHT] * len(sections) if weights is None else checked_weights(weights, len(sections), "pair")
    connectors = {}
    for names in {tap: None for section in sections for tap in section}:
        own, target = find_taps(student, teacher, names)
        if not len(own.shape) == len(target.shape) == 3:
            raise ValueError(f"FSP is defined for maps, but {both_names(names)}: student {shape_of(own)}, teacher {shape_of(target)}")
        connectors[names] = placed_like(make_connector(own, target, normalised=False), student)
    places = [tuple((tap, list(connectors).index(tap)) for tap in section) for section in sections]
    first = stage(
        "fsp",
        student,
        teacher,
        [(1.0, partial(_fsp, places=places, weights=weights))],
        parameters_before(student, [mine for mine, _ in connectors]),
        until=list(dict.fromkeys(mine for mine, _ in connectors)),
        connectors=list(connectors.values()),
    )
    return Method(student, [first, stage("train", student, teacher, task)], list(connectors.values()))


FSP_WEIGHT = 0.01


def _fsp(batch: Batch, places: list, weights: list[float]) -> Tensor:
    for ((first, _), _), ((last, _), _) in places:
        still = [tap for tap in (first, last) if not batch.taps[tap].requires_grad]
        # one of the two may be frozen, not both; and a tap without gradient must depend on no parameter that trains
        if still and (len(still) == 2 or not is_frozen_before(batch.student, still[0])):
            batch.own(still[0])
    own = [tuple(batch.connectors[number](batch.taps[mine]) for (mine, _), number in section) for section in places]
    target = [tuple(batch.teacher.taps[theirs] for (_, theirs), _ in section) for section in places]
    return losses.fsp(own, target, weights)


def attention_transfer(
    student: nn.Module,
    teacher: nn.Module,
    *,
    taps: Sequence[str | tuple[str, str]],
    beta: float = 1e3,
    variant: str = "code",
    resize: str | None = None,
    skip_tokens: int = 0,
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """Attention transfer (Zagoruyko & Komodakis 2017): the task plus beta times the distance of attention maps, summed over ``taps``.

    taps: names, or (the student's, the teacher's) if they differ, of maps or of a transformer's tokens [B, N, C]. beta: 0 or
    more; 1000 belongs to variant "code". resize: "pool" for maps of different sizes, as in ``losses.attention_transfer``.
    skip_tokens: number of leading tokens to leave out in both networks: 1 if the first is a class token, which has no
    position in the image. task: None for ``hard_labels()``, or ``soft_targets(...)``.
    Raises ValueError for an empty list of taps, repeated or unknown taps, different sizes (without resize), a single position,
    a tap that no gradient reaches, and options out of range.
    """
    losses.check_variant(variant)
    losses.check_resize(resize)
    losses.check_number("beta", beta)
    pairs = [tap_names(tap) for tap in as_list(taps, "taps")]
    refuse_repeats(pairs, "taps")
    paired = [find_taps(student, teacher, names) for names in pairs]
    tokens = [len(own.shape) == 2 for own, _ in paired]
    if isinstance(skip_tokens, bool) or not isinstance(skip_tokens, Integral) or skip_tokens < 0 or (skip_tokens and not all(tokens)):
        raise ValueError(f"skip_tokens must be a number of tokens (0 for maps), not {skip_tokens!r}")
    for names, (own, target) in zip(pairs, paired, strict=True):
        sizes = f"student {shape_of(own)}, teacher {shape_of(target)}"
        if len(own.shape) != len(target.shape) or len(own.shape) == 1:
            raise ValueError(f"attention transfer takes two maps or the tokens of two transformers, but {both_names(names)}: {sizes}")
        if len(own.shape) == 2 and own.size != target.size:
            raise ValueError(f"{both_names(names)}: student and teacher differ in their number of tokens: {sizes}")
        if own.size != target.size and resize is None:
            raise ValueError(
                f'attention maps of {both_names(names)} differ in size: {sizes}; resize="pool" pools the larger to the smaller size'
            )
        sides = own.shape[:1] if len(own.shape) == 2 else map(min, own.shape[1:], target.shape[1:])
        if math.prod(sides) - skip_tokens < 2:
            raise ValueError(f"attention maps of {both_names(names)} have one position, where attention is constant: {sizes}")
        check_reached(student, names[0])
    term = partial(_attention, pairs=pairs, variant=variant, resize=resize, skip=skip_tokens)
    return _one_stage(student, teacher, [*_terms(task), (beta, term)])


def _attention(batch: Batch, pairs: list, variant: str, resize: str | None, skip: int) -> Tensor:
    def seen(tensor: Tensor) -> Tensor:
        return tensor[:, skip:] if skip else tensor

    return sum(
        losses.attention_transfer(seen(batch.own(mine)), seen(batch.teacher.taps[theirs]), variant=variant, resize=resize)
        for mine, theirs in pairs
    )


def activation_boundary(
    student: nn.Module,
    teacher: nn.Module,
    *,
    taps: Sequence[str | tuple[str, str]],
    weights: Sequence[float],
    margin: float = 1.0,
    batch_statistics: bool = False,
    task: Sequence[tuple[float, Term]] | None = None,
    task_teacher: nn.Module | None = None,
) -> Method:
    """Activation boundaries (Heo et al. 2019): first the sign of every neuron at ``taps`` (pre-activations), then the task.

    taps: names, or (the student's, the teacher's), of maps or vectors. weights: one per tap, 0 or more; the authors' code has
    (1/4, 1/2, 1) * 3/1000 from the first group to the last: the loss is a sum over neurons. margin: 0 or more. If the widths
    differ, a connector joins the taps: a 1x1 convolution (a linear layer for vectors) and BatchNorm. batch_statistics: run
    the teacher in train mode in the first stage, as in the authors' code: it normalises with the batch's statistics, and its
    running statistics drift (its weights do not change); the second stage uses the drifted ones, in eval mode. The drifted
    statistics become part of the method's state, so that a resumed run has them: move the teacher to its device first.
    task_teacher: the teacher of the second stage; None: the same one, as in most versions of the authors' code
    (bhheo/AB_distillation); from 4ac7d04 to d305517 (December 2018) it is a copy that has not drifted.
    Raises ValueError for an empty list of taps, repeated or unknown taps, different sizes, and numbers out of range.
    """
    pairs = [tap_names(tap) for tap in as_list(taps, "taps")]
    refuse_repeats(pairs, "taps")
    weights = checked_weights(weights, len(pairs), "tap")
    losses.check_number("margin", margin)
    connectors = []
    for names in pairs:
        own, target = find_taps(student, teacher, names)
        if len(own.shape) == 2 or len(target.shape) == 2:
            raise ValueError(f"activation boundaries are defined for maps and vectors, not for the tokens of {both_names(names)}")
        if own.shape[1:] != target.shape[1:]:
            raise ValueError(
                f"activation boundaries of {both_names(names)} differ in size: student {shape_of(own)}, teacher {shape_of(target)}"
            )
        connectors.append(placed_like(make_connector(own, target, normalised=True), student))
    until = list(dict.fromkeys(mine for mine, _ in pairs))
    first = stage(
        "boundary",
        student,
        teacher,
        [(1.0, partial(_boundary, pairs=pairs, weights=weights, margin=margin))],
        parameters_before(student, until),
        until=until,
        batch_statistics=batch_statistics,
        connectors=connectors,
    )
    method = Method(student, [first, stage("train", student, task_teacher or teacher, task)], connectors)
    if batch_statistics:
        method.statistics = Statistics(teacher)
    return method


def _boundary(batch: Batch, pairs: list, weights: list[float], margin: float) -> Tensor:
    parts = [
        losses.activation_boundary(connector(batch.own(mine)), batch.teacher.taps[theirs], margin=margin)
        for connector, (mine, theirs) in zip(batch.connectors, pairs, strict=True)
    ]
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def jacobian(student: nn.Module, teacher: nn.Module, *, weight: float = 1.0, task: Sequence[tuple[float, Term]] | None = None) -> Method:
    """Jacobian matching (Srinivas & Fleuret 2018): the task plus the distance between the input gradients of the label's logit.

    student, teacher: any module that returns logits; the student is differentiated twice, so a layer without a second
    derivative is refused (see ``losses.jacobian``). weight: of the distance, 0 or more. task: None for ``hard_labels()``.
    """
    losses.check_number("weight", weight)
    return _one_stage(student, teacher, [*_terms(task), (weight, _jacobian)], input_gradient=True)


def _jacobian(batch: Batch) -> Tensor:
    return losses.jacobian(*(losses.pick(logits, batch.labels) for logits in (batch.logits, batch.teacher.logits)), batch.x)


def _one_stage(student: nn.Module, teacher: nn.Module | None, terms: Sequence[tuple[float, Term]] | None, **options) -> Method:
    return Method(student, [stage("train", student, teacher, terms, **options)])


def _terms(task: Sequence[tuple[float, Term]] | None) -> Sequence[tuple[float, Term]]:
    if task is None:
        return hard_labels()
    if not task:
        raise ValueError("task has no terms: give hard_labels(), soft_targets(...), or None")
    return task
