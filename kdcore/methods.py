"""What each method does with a student and a teacher: which losses, on which taps, in which stages.

    method = methods.fsp(student, teacher, pairs=[("group1.first", "group1")])
    for stage in method.stages:
        optimiser = torch.optim.SGD(stage.parameters, lr=0.1)
        for x, labels in loader:
            loss = stage.loss(x, labels)
            ...

A student or teacher is any module with ``features(x) -> (logits, {tap: tensor})`` and ``taps``: the networks of
``kdcore.models``, or ``Tapped(your_model, ...)``. Taps are named as in those networks, "group3.pre" before a ReLU. A student
with a first stage of its own also has ``features(x, until=taps)`` and ``parameters_before(tap)``. Where a method reads logits
alone, any module that gives them will do. A teacher is frozen: call ``freeze(teacher)``.

Wherever a tap is named, a pair (the student's, the teacher's) stands for two names. What stands between two taps of different
widths, a connector, is made on the student's device and in its type. A ``Method`` can be copied and pickled: the copy trains
its own student and connectors. All functions raise ValueError for what they could not do right.
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
    """A stage of a method.

    terms: as ``Objective`` takes them, ``hard_labels()`` for None; parameters: of the student, all for None; connectors: what the
    terms find in ``Batch.connectors``, trained as well; knobs: weights among the terms that a schedule may move, by name; options:
    those of ``Objective``.
    """
    check_module(student, "student")
    trained = list(student.parameters() if parameters is None else parameters)
    trained += [parameter for connector in connectors for parameter in connector.parameters()]
    objective = Objective(name, student, teacher, _terms(terms), trained, connectors=connectors, **options)
    return Stage(name, objective, objective.parameters, dict(knobs or {}))


class Method(nn.Module):
    """A student and what its method adds to it (regressors, connectors), with the stages that train them.

    It holds all that training moves, so that a checkpoint of it is a checkpoint of the run. The teacher is not part of it:
    ``train()`` and ``parameters()`` do not reach it. ``copy.deepcopy`` copies the teacher, too; ``torch.save`` of a whole method
    needs terms that can be pickled, as all here can.
    """

    def __init__(self, student: nn.Module, stages: Sequence[Stage], connectors: Sequence[nn.Module] = ()):
        super().__init__()
        self.student, self.stages = student, list(stages)
        self.connectors = nn.ModuleList(connectors)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


class StageLoss(nn.Module):
    """The loss of a stage (one of ``method.stages``) as a module, whose forward pass is all of it, connectors included.

    What wraps a module can so wrap a stage: ``DistributedDataParallel(StageLoss(method, stage), find_unused_parameters=True)``.
    Each process gives it its own part of a batch. Raises ValueError for a stage of another method.
    """

    def __init__(self, method: Method, stage: Stage):
        super().__init__()
        if not isinstance(method, Method) or not any(stage is own for own in method.stages):
            shown = f"stage '{stage.name}'" if isinstance(stage, Stage) else f"{stage!r}"
            raise ValueError(f"{shown} is none of the method's: give one of method.stages")
        self.method, self.stage = method, stage

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.stage.loss(x, labels)


def _hard(batch: Batch) -> Tensor:
    return losses.cross_entropy(batch.logits, batch.labels, reduction="none").mean(-1)  # of each net of a stack


def _soft(batch: Batch, temperature: float | Tensor) -> Tensor:
    return losses.kd(batch.logits, batch.teacher.logits, temperature, reduction="none").mean(-1)


def _of_logits(batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return loss(batch.logits, batch.teacher.logits)


def hard_labels() -> list[tuple[float, Term]]:
    """Cross-entropy with the labels."""
    return [(1.0, _hard)]


def soft_targets(temperature: float | Tensor, soft_weight: float = 1.0, label_weight: float | None = None) -> list[tuple[float, Term]]:
    """b CE(labels) + a T^2 KL(teacher at T): the "+ KD" of any method (Hinton et al. 2015, section 2).

    temperature: T > 0, or one for each net of a stack [K, 1, 1]; soft_weight: a; label_weight: b. b is 1 - a for None, and a from
    0 to 1; where it is given, both are 0 or more. A term of weight 0 is left out, and with it what it would cost.
    Raises ValueError for numbers out of range.
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
    """The task alone: ``hard_labels()`` for None. student, teacher: any module that gives logits."""
    return _one_stage(student, teacher, task)


def kd(student: nn.Module, teacher: nn.Module, *, temperature: float = 4.0, soft_weight: float = 0.9) -> Method:
    """Knowledge distillation (Hinton, Vinyals & Dean 2015): ``soft_targets``, see ``losses.kd``.

    student, teacher: any module that gives logits [B, C], the teacher frozen. temperature: T > 0; soft_weight: a, from 0 to 1.
    Raises ValueError for numbers out of range.
    """
    return _one_stage(student, teacher, soft_targets(temperature, soft_weight))


def logit_mimic(student: nn.Module, teacher: nn.Module | None) -> Method:
    """Regression on the teacher's logits, no labels (Ba & Caruana 2014): see ``losses.logit_mimic``.

    student, teacher: any module that gives logits; no teacher where each batch brings its logits, as a ``Knowledge``.
    """
    return _one_stage(student, teacher, [(1.0, partial(_of_logits, loss=losses.logit_mimic))])


def ban(student: nn.Module, teacher: nn.Module | None, *, label_weight: float = 0.0) -> Method:
    """Born-again networks (Furlanello et al. 2018): the teacher's softmax as the label, see ``losses.ban``.

    student, teacher: any module that gives logits. label_weight: 0 or more, 0 for BAN, which sees no label, 1 for BAN+L, the
    sum of both cross-entropies. Raises ValueError for a weight out of range.
    """
    losses.check_number("label_weight", label_weight)
    return _one_stage(student, teacher, [(1.0, partial(_of_logits, loss=losses.ban))] + ([(label_weight, _hard)] if label_weight else []))


def cwtm(student: nn.Module, teacher: nn.Module | None) -> Method:
    """Labels, each case weighted by the teacher's confidence (Furlanello et al. 2018): see ``losses.cwtm``.

    student, teacher: any module that gives logits.
    """
    return _one_stage(student, teacher, [(1.0, _cwtm)])


def _cwtm(batch: Batch) -> Tensor:
    return losses.cwtm(batch.logits, batch.teacher.logits, batch.labels)


def dkpp(student: nn.Module, teacher: nn.Module | None) -> Method:
    """The teacher's softmax with all but its largest entry permuted, anew in each step (Furlanello et al. 2018): see ``losses.dkpp``.

    student, teacher: any module that gives logits. The permutations are drawn from PyTorch's global generator.
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

    hint: the teacher's tap, guided: the student's; both maps, both vectors, or tokens of one number. The first stage trains
    only what the guided tap depends on, and the regressor: none where the shapes agree, for None a linear convolution whose
    kernel is the difference of the sizes plus one (section 2.2; the paper's has the type of the teacher's layer), a linear
    layer for vectors and tokens. The second, "kd", is H(y, P_S) + lambda H(P_T, P_S) at ``temperature`` without T^2; lambda
    is the knob "soft_weight", 4 here until a schedule lowers it. weight: of the hint loss, a sum over the units of a layer;
    for None such that it is half the mean over them, the suite's own: with 1, the equation as it stands, it diverges at
    usual rates and asks for a smaller one than the second stage (1e-4 in section 4.2 of Yim et al. 2017).
    task: another second stage, "train", without the knob. variant: of the losses, as in ``losses.hint`` and ``fitnets_kd``.
    Raises ValueError for unknown taps, shapes that no regressor joins and numbers out of range.
    """
    losses.check_variant(variant)
    losses.check_temperature(temperature)
    if weight is not None:
        losses.check_number("weight", weight)
    own, target = find_taps(student, teacher, (guided, hint))
    if variant == "code" and len(target.shape) != 3:
        raise ValueError(f"the code's variant of the hint loss is defined for maps: the teacher's '{hint}' is {shape_of(target)}")
    if weight is None:
        weight = 1 / (math.prod(target.shape) if variant == "paper" else target.shape[1])  # the code's has the mean over the rest
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
    """The second stage of FitNets alone (Romero et al. 2015, eq. 2): H(y, P_S) + lambda H(P_T, P_S), lambda being the knob
    "soft_weight", 4 until a schedule lowers it. temperature, variant: as in ``losses.fitnets_kd``.

    student, teacher: any module that gives logits. Raises ValueError for numbers out of range.
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

    pairs: the taps (first, last layer of a section) between which a matrix stands, maps; each of them a name, or (the
    student's, the teacher's). Where their widths differ a 1x1 convolution brings the student's map to the teacher's width
    (the paper has them equal). weights: lambda_i of 0 or more; 0.01 each for None, the suite's own (the paper does not give
    its value): the loss is of fourth order in the activations, and with 1 it diverges at usual rates. task:
    ``hard_labels()`` for None, or ``soft_targets(...)``. The first stage trains only what the taps depend on, so that its
    weight decay leaves the other layers alone.
    Raises ValueError for no or repeated pairs, unknown taps, taps that are no maps, and weights out of range.
    """
    sections = [tuple(tap_names(tap) for tap in as_pair(pair, "pairs")) for pair in as_list(pairs, "pairs")]
    refuse_repeats(sections, "pairs")
    weights = [FSP_WEIGHT] * len(sections) if weights is None else checked_weights(weights, len(sections), "pair")
    connectors = {}
    for names in {tap: None for section in sections for tap in section}:
        own, target = find_taps(student, teacher, names)
        if not len(own.shape) == len(target.shape) == 3:
            raise ValueError(f"FSP is defined for maps: of {both_names(names)}, student {shape_of(own)}, teacher {shape_of(target)}")
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
        # one of the two may be frozen, not both; nor may it depend on what trains, out of reach of the gradient
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
    """Attention transfer (Zagoruyko & Komodakis 2017): the task and beta times the distance of attention maps, summed over ``taps``.

    taps: names, or (the student's, the teacher's) where they differ: maps, or tokens [B, N, C] of a transformer. beta: 0 or
    more; 1000 belongs to the code's variant. resize: "pool" for maps of different size, as in ``losses.attention_transfer``.
    skip_tokens: so many tokens at the front of both networks' are left out, 1 where the first is a class token, which
    stands for no place in the image. task: ``hard_labels()`` for None, or ``soft_targets(...)``.
    Raises ValueError for no or repeated taps, unknown ones, sizes that differ (without resize), a single position, a tap that
    no gradient reaches, and options out of range.
    """
    losses.check_variant(variant)
    losses.check_resize(resize)
    losses.check_number("beta", beta)
    pairs = [tap_names(tap) for tap in as_list(taps, "taps")]
    refuse_repeats(pairs, "taps")
    found = [find_taps(student, teacher, names) for names in pairs]
    tokens = [len(own.shape) == 2 for own, _ in found]
    if isinstance(skip_tokens, bool) or not isinstance(skip_tokens, Integral) or skip_tokens < 0 or (skip_tokens and not all(tokens)):
        raise ValueError(f"skip_tokens must be a number of tokens, 0 for maps, not {skip_tokens!r}")
    for names, (own, target) in zip(pairs, found, strict=True):
        sizes = f"student {shape_of(own)}, teacher {shape_of(target)}"
        if len(own.shape) != len(target.shape) or len(own.shape) == 1:
            raise ValueError(f"attention transfer takes two maps or the tokens of two transformers: of {both_names(names)}, {sizes}")
        if len(own.shape) == 2 and own.size != target.size:
            raise ValueError(f"attention over the tokens of {both_names(names)} differs in their number: {sizes}")
        if own.size != target.size and resize is None:
            raise ValueError(
                f'attention maps of {both_names(names)} differ in size: {sizes}; resize="pool" brings the larger to the smaller'
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

    taps: names, or (the student's, the teacher's), maps or vectors. weights: one a tap, 0 or more; the authors' code has
    (1/4, 1/2, 1) * 3/1000 from the first group to the last: the loss is a sum over neurons. margin: 0 or more. A connector,
    1x1 convolution (linear layer for vectors) and BatchNorm, stands where the widths differ. batch_statistics: as in the
    authors' code, the teacher is in train mode in the first stage: it sees the batch's statistics, its running ones drift
    (its weights never move), and the second stage runs with the drifted ones in eval mode. They are then part of the
    method's state, so that a resumed run goes on with them: bring the teacher to its device before. task_teacher: who
    teaches in the second stage, the same for None, as in most versions of the authors' code (bhheo/AB_distillation); from 4ac7d04
    to d305517 (December 2018) it is a copy that has not drifted.
    Raises ValueError for no or repeated taps, unknown ones, sizes that differ, and numbers out of range.
    """
    pairs = [tap_names(tap) for tap in as_list(taps, "taps")]
    refuse_repeats(pairs, "taps")
    weights = checked_weights(weights, len(pairs), "tap")
    losses.check_number("margin", margin)
    connectors = []
    for names in pairs:
        own, target = find_taps(student, teacher, names)
        if len(own.shape) == 2 or len(target.shape) == 2:
            raise ValueError(f"activation boundaries are defined for maps and vectors, not for tokens: {both_names(names)}")
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
    """Jacobian matching (Srinivas & Fleuret 2018): the task and the distance of the input gradients of the label's logit.

    student, teacher: any module that gives logits; the student is differentiated twice, and refused where it has a layer
    without a second derivative (see ``losses.jacobian``). weight: of the distance, 0 or more. task: ``hard_labels()`` for None.
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
