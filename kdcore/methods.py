"""What each method does with a student and a teacher: which losses, on which taps, in which phases.

    method = methods.fsp(student, teacher, pairs=[("group1.first", "group1")])
    for phase in method.phases:
        optimiser = torch.optim.SGD(phase.parameters, lr=0.1)
        for x, labels in loader:
            loss = phase.loss(x, labels)
            ...

A student or teacher is any module with ``features(x) -> (logits, {tap: tensor})`` and ``taps``: the networks of
``kdcore.models``, or ``Tapped(your_model, ...)``. Taps are named as in those networks, "group3.pre" before a ReLU. A student
with a first phase of its own also has ``features(x, until=taps)`` and ``parameters_before(tap)``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from kdcore import losses
from kdcore.data.augment import Views
from kdcore.models.network import Reached, Tap, Taps


class Knowledge:
    """What a teacher says of one batch: computed when first asked for, and once for all students that share it.

    teacher: a module with ``features``; x: the batch; logits: [B, C] where they are known, as from a table;
    differentiable: keep the graph back to ``x``, which then is a copy of the batch that asks for a gradient;
    batch_statistics: run the teacher in train mode, so that its BatchNorm takes the batch's statistics and its own drift.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        x: Tensor,
        logits: Tensor | None = None,
        *,
        differentiable: bool = False,
        batch_statistics: bool = False,
    ):
        self.x = x.detach().requires_grad_() if differentiable else x
        self.teacher, self.known = teacher, logits
        self.differentiable, self.batch_statistics = differentiable, batch_statistics

    @cached_property
    def _features(self) -> tuple[Tensor, Mapping[str, Tensor]]:
        with torch.set_grad_enabled(self.differentiable):
            if not self.batch_statistics:
                return self.teacher.features(self.x)
            self.teacher.train()
            try:
                return self.teacher.features(self.x)
            finally:
                self.teacher.eval()

    @property
    def logits(self) -> Tensor:
        return self._features[0] if self.known is None else self.known

    @property
    def taps(self) -> Mapping[str, Tensor]:
        return self._features[1]


class LogitTable:
    """A frozen teacher's logits on every view of a set of images, exact up to float16: in its place where its taps are not needed.

    teacher: in eval mode, on the device of the images; views: what gives the batches; classes: the number of its logits.

    ``table(index, x)``, with int64 index [B, 3 or 4] and x = views(index), gives float32 [B, classes], the ``logits`` of a
    ``Knowledge``. The key is the view (image, dy, dx[, flip]), never a place in a batch. On a CPU the teacher is asked
    for what is not there yet; on a GPU ``fill`` comes first, since a captured step cannot decide whom to ask. ``logits``
    holds all of it: 162 MB for 50,000 images, 162 views and 10 classes, NaN where the teacher was not asked yet.

    Raises ValueError for a teacher in train mode (its logits depend on the batch round an image), an index of another
    number of columns, or a table on a GPU that is read before it is filled.
    """

    def __init__(self, teacher: nn.Module, views: Views, classes: int):
        if teacher.training:
            raise ValueError("a table needs a teacher in eval mode: call freeze(teacher)")
        self.teacher, self.views = teacher, views
        self.columns, self.full = 3 + views.flip, False
        shape = (*views.windows.shape[: self.columns], classes)
        self.logits = torch.full(shape, torch.nan, dtype=torch.float16, device=views.windows.device)

    def __call__(self, index: Tensor, x: Tensor) -> Tensor:
        if index.shape[-1] != self.columns:
            raise ValueError(f"an index of this table has {self.columns} columns, not {index.shape[-1]}")
        if not self.full:
            if index.is_cuda:
                raise ValueError("a table on a GPU must be filled before it is read: call fill()")
            missing = self.logits[index.unbind(-1)][:, 0].isnan()
            if missing.any():
                self._ask(index[missing], x[missing])
        return self.logits[index.unbind(-1)].float()

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None, batch_size: int = 1000) -> None:
        """Ask the teacher for every view that is not there yet; progress: called with views done and views to do."""
        places, done = self.logits[..., 0].isnan().nonzero(), 0
        for index in places.split(batch_size):
            self._ask(index, self.views(index))
            done += len(index)
            progress(done, len(places))
        self.full = True

    @torch.no_grad()
    def _ask(self, index: Tensor, x: Tensor) -> None:
        # float32, whatever the step that asks trains in: an entry must not depend on who came first
        with torch.autocast(x.device.type, enabled=False):
            self.logits[index.unbind(-1)] = self.teacher(x).half()


class View:
    """One batch as a term of a loss sees it: x, labels, the student's logits and taps, the teacher's knowledge.

    until: taps at which the student's forward pass ends; it has no logits then.
    """

    def __init__(self, student: nn.Module, x: Tensor, labels: Tensor, teacher: Knowledge, until: Sequence[str] | None = None):
        self.x, self.labels, self.teacher = x, labels, teacher
        self.logits, self.taps = student.features(x) if until is None else student.features(x, until=until)


Term = Callable[[View], Tensor]


class Phase:
    """One optimisation phase: a weighted sum of terms, and the parameters that it trains (no others move).

    terms: (weight, View -> scalar); a weight may be a 0-dim tensor that a schedule moves. until: the student's taps that
    the terms read, where they read no logits: layers after the last of them do not run. input_gradient: the terms
    differentiate the nets' outputs by the images. batch_statistics: the teacher runs in train mode.
    """

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[tuple[float | Tensor, Term]],
        parameters: Sequence[nn.Parameter],
        *,
        until: Sequence[str] | None = None,
        input_gradient: bool = False,
        batch_statistics: bool = False,
    ):
        self.name, self.terms, self.parameters = name, list(terms), list(parameters)
        self.nets, self.until = (student, teacher), until
        self.input_gradient, self.batch_statistics = input_gradient, batch_statistics

    def loss(self, x: Tensor, labels: Tensor, knowledge: Knowledge | None = None) -> Tensor:
        """The loss of a batch, a scalar. x [B, ...], labels int64 [B]; knowledge: of the same batch, for None the
        teacher's own, as the phase wants it (differentiable, with the batch's statistics)."""
        student, teacher = self.nets
        if knowledge is None:
            knowledge = Knowledge(teacher, x, differentiable=self.input_gradient, batch_statistics=self.batch_statistics)
        view = View(student, knowledge.x if self.input_gradient else x, labels, knowledge, self.until)
        return sum(weight * term(view) for weight, term in self.terms)


class Method(nn.Module):
    """A student and what its method adds to it (regressors, connectors), with the phases that train them.

    It holds all that training moves, so that a checkpoint of it is a checkpoint of the run. The teacher is not part of it:
    ``train()`` and ``parameters()`` do not reach it. ``knobs`` are weights of terms that a schedule may move.
    """

    def __init__(self, student: nn.Module, connectors: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.student = student
        self.connectors = nn.ModuleList(list((connectors or {}).values()))
        self.phases: list[Phase] = []
        self.knobs: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


class Statistics(nn.Module):
    """A teacher's buffers, the very tensors and no copies: in a checkpoint of the method they are what drifts."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        for name, buffer in teacher.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer)


def freeze(teacher: nn.Module) -> nn.Module:
    """The teacher in eval mode, its weights out of every gradient."""
    return teacher.eval().requires_grad_(False)


# ---------------------------------------------------------------- what the student is asked for in its last phase


def hard_labels() -> list[tuple[float, Term]]:
    """Cross-entropy with the labels."""
    return [(1.0, lambda view: losses.cross_entropy(view.logits, view.labels))]


def soft_targets(temperature: float, soft_weight: float = 1.0) -> list[tuple[float, Term]]:
    """(1 - a) CE(labels) + a T^2 KL(teacher at T): the "+ KD" of any method (Hinton et al. 2015, section 2).

    soft_weight: a. A term of weight 0 is left out, and with it what it would cost.
    """
    ((_, hard),) = hard_labels()
    terms = [
        (1 - soft_weight, hard),
        (soft_weight, lambda view: losses.kd(view.logits, view.teacher.logits.detach(), temperature)),
    ]
    return [(weight, term) for weight, term in terms if weight]


# ---------------------------------------------------------------- the methods


def plain(student: nn.Module, teacher: nn.Module | None = None, *, task: Sequence[tuple[float, Term]] | None = None) -> Method:
    """The task alone: ``hard_labels()`` for None."""
    return _one_phase(student, teacher, task or hard_labels())


def kd(student: nn.Module, teacher: nn.Module, *, temperature: float = 4.0, soft_weight: float = 0.9) -> Method:
    """Knowledge distillation (Hinton, Vinyals & Dean 2015): see ``losses.kd``."""
    return _one_phase(student, teacher, soft_targets(temperature, soft_weight))


def logit_mimic(student: nn.Module, teacher: nn.Module) -> Method:
    """Regression on the teacher's logits, no labels (Ba & Caruana 2014): see ``losses.logit_mimic``."""
    return _one_phase(student, teacher, [(1.0, lambda view: losses.logit_mimic(view.logits, view.teacher.logits))])


def ban(student: nn.Module, teacher: nn.Module, *, label_weight: float = 0.0) -> Method:
    """Born-again networks (Furlanello et al. 2018): the teacher's softmax as the label, see ``losses.ban``.

    label_weight: 0 for BAN, which sees no label, 1 for BAN+L, the sum of both cross-entropies.
    """
    terms = [(1.0, lambda view: losses.ban(view.logits, view.teacher.logits))]
    return _one_phase(student, teacher, terms + ([(label_weight, hard_labels()[0][1])] if label_weight else []))


def cwtm(student: nn.Module, teacher: nn.Module) -> Method:
    """Labels, each case weighted by the teacher's confidence (Furlanello et al. 2018): see ``losses.cwtm``."""
    return _one_phase(student, teacher, [(1.0, lambda view: losses.cwtm(view.logits, view.teacher.logits, view.labels))])


def dkpp(student: nn.Module, teacher: nn.Module) -> Method:
    """The teacher's softmax with all but its largest entry permuted, anew in each step (Furlanello et al. 2018): see ``losses.dkpp``."""

    def term(view: View) -> Tensor:
        return losses.dkpp(view.logits, view.teacher.logits, torch.rand_like(view.teacher.logits, dtype=torch.float32))

    return _one_phase(student, teacher, [(1.0, term)])


def fitnets(
    student: nn.Module,
    teacher: nn.Module,
    *,
    hint: str,
    guided: str,
    temperature: float = 3.0,
    variant: str = "paper",
    regressor: nn.Module | None = None,
    weight: float = 1.0,
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """FitNets (Romero et al. 2015): first the guided layer learns the hint, then the whole net learns labels and soft targets.

    hint: the teacher's tap, guided: the student's. The first phase trains only what the guided tap depends on, and the
    regressor: none where the shapes agree, for None a linear convolution whose kernel is the difference of the sizes
    plus one (section 2.2; the paper's has the type of the teacher's layer). The second, "kd", is H(y, P_S) + lambda
    H(P_T, P_S) at ``temperature`` without T^2; lambda is the knob "soft_weight", 4 here until a schedule lowers it.
    weight: of the hint loss. task: another second phase, "train", without the knob.
    """
    own, target = _tap(student, guided, "student"), _tap(teacher, hint, "teacher")
    if regressor is None:
        regressor = nn.Identity() if own == target else _regressor(own, target, f"student's '{guided}'", f"teacher's '{hint}'")
    method = Method(student, {"regressor": regressor})
    first = [(weight, lambda view: losses.hint(regressor(view.taps[guided]), view.teacher.taps[hint], variant=variant))]
    trained = [*_before(student, [guided]), *regressor.parameters()]
    method.phases = [Phase("hint", student, teacher, first, trained, until=[guided])]
    if task is not None:
        method.phases.append(_task(student, teacher, task))
        return method
    method.knobs["soft_weight"] = soft = torch.tensor(4.0, device=_device(student))
    second = [*hard_labels(), (soft, lambda view: losses.fitnets_kd(view.logits, view.teacher.logits, temperature, variant=variant))]
    method.phases.append(Phase("kd", student, teacher, second, list(student.parameters())))
    return method


def fsp(
    student: nn.Module,
    teacher: nn.Module,
    *,
    pairs: Sequence[tuple[str, str]],
    weights: Sequence[float] | None = None,
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """Flow of solution procedure (Yim et al. 2017): first the FSP matrices, then the task.

    pairs: the taps (first, last layer of a section) between which a matrix stands, of the same names in both nets; where
    their widths differ a 1x1 convolution brings the student's map to the teacher's width (the paper has them equal).
    weights: lambda_i. task: ``hard_labels()`` for None, or ``soft_targets(...)``. The first phase trains only what the
    taps depend on, so that its weight decay leaves the other layers alone.
    """
    connectors = {}
    for tap in {tap: None for pair in pairs for tap in pair}:
        own, target = _tap(student, tap, "student"), _tap(teacher, tap, "teacher")
        connectors[tap] = _widened(own, target, normalised=False)
    method = Method(student, connectors)

    def term(view: View) -> Tensor:
        own = [tuple(connectors[tap](view.taps[tap]) for tap in pair) for pair in pairs]
        return losses.fsp(own, [tuple(view.teacher.taps[tap] for tap in pair) for pair in pairs], weights)

    trained = [*_before(student, connectors), *method.connectors.parameters()]
    method.phases = [Phase("fsp", student, teacher, [(1.0, term)], trained, until=list(connectors)), _task(student, teacher, task)]
    return method


def attention_transfer(
    student: nn.Module,
    teacher: nn.Module,
    *,
    taps: Sequence[str | tuple[str, str]],
    beta: float = 1e3,
    variant: str = "code",
    task: Sequence[tuple[float, Term]] | None = None,
) -> Method:
    """Attention transfer (Zagoruyko & Komodakis 2017): the task and beta times the distance of attention maps, summed over ``taps``.

    taps: names, or (the student's, the teacher's) where they differ.
    """
    pairs = [(tap, tap) if isinstance(tap, str) else tap for tap in taps]
    for mine, theirs in pairs:
        own, target = _tap(student, mine, "student"), _tap(teacher, theirs, "teacher")
        if own.size != target.size:
            names = f"tap '{mine}'" if mine == theirs else f"taps '{mine}' and '{theirs}'"
            raise ValueError(f"attention maps of {names} differ in size: student {_shape(own)}, teacher {_shape(target)}")

    def term(view: View) -> Tensor:
        return sum(losses.attention_transfer(view.taps[mine], view.teacher.taps[theirs], variant=variant) for mine, theirs in pairs)

    return _one_phase(student, teacher, [*(task or hard_labels()), (beta, term)])


def activation_boundary(
    student: nn.Module,
    teacher: nn.Module,
    *,
    taps: Sequence[str],
    weights: Sequence[float],
    margin: float = 1.0,
    batch_statistics: bool = False,
    task: Sequence[tuple[float, Term]] | None = None,
    task_teacher: nn.Module | None = None,
) -> Method:
    """Activation boundaries (Heo et al. 2019): first the sign of every neuron at ``taps`` (pre-activations), then the task.

    weights: one a tap; the authors' code has (1/4, 1/2, 1) * 3/1000 from the first group to the last. A connector, 1x1
    convolution and BatchNorm, stands where the widths differ. batch_statistics: as in the authors' code, the teacher is in
    train mode in the first phase: it sees the batch's statistics, its running ones drift (its weights never move), and
    the second phase runs with the drifted ones in eval mode. They are then part of the method's state, so that a resumed
    run goes on with them: bring the teacher to its device before. task_teacher: who teaches in the second phase, the same
    for None; in the authors' code a copy of the teacher that has not drifted.
    """
    if len(weights) != len(taps):
        raise ValueError(f"activation boundaries need one weight a tap: {len(weights)} for {len(taps)} taps")
    connectors = {}
    for tap in taps:
        own, target = _tap(student, tap, "student"), _tap(teacher, tap, "teacher")
        if own.size != target.size:
            raise ValueError(f"activation boundaries of tap '{tap}' differ in size: student {_shape(own)}, teacher {_shape(target)}")
        connectors[tap] = _widened(own, target, normalised=True)
    method = Method(student, connectors)
    if batch_statistics:
        method.statistics = Statistics(teacher)

    def term(view: View) -> Tensor:
        parts = [losses.activation_boundary(connectors[tap](view.taps[tap]), view.teacher.taps[tap], margin=margin) for tap in taps]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    trained = [*_before(student, taps), *method.connectors.parameters()]
    first = Phase("boundary", student, teacher, [(1.0, term)], trained, until=taps, batch_statistics=batch_statistics)
    method.phases = [first, _task(student, task_teacher or teacher, task)]
    return method


def jacobian(student: nn.Module, teacher: nn.Module, *, weight: float = 1.0, task: Sequence[tuple[float, Term]] | None = None) -> Method:
    """Jacobian matching (Srinivas & Fleuret 2018): the task and the distance of the input gradients of the label's logit."""

    def term(view: View) -> Tensor:
        own, target = (logits.gather(1, view.labels.unsqueeze(1)).squeeze(1) for logits in (view.logits, view.teacher.logits))
        return losses.jacobian(own, target, view.x)

    return _one_phase(student, teacher, [*(task or hard_labels()), (weight, term)], input_gradient=True)


def _one_phase(student: nn.Module, teacher: nn.Module | None, terms, **options) -> Method:
    method = Method(student)
    method.phases = [Phase("train", student, teacher, terms, list(student.parameters()), **options)]
    return method


def _task(student: nn.Module, teacher: nn.Module, task) -> Phase:
    return Phase("train", student, teacher, task or hard_labels(), list(student.parameters()))


# ---------------------------------------------------------------- taps, and what stands between two of them


def _tap(net: nn.Module, name: str, whose: str) -> Tap:
    if name not in net.taps:
        raise ValueError(f"the {whose} has no tap '{name}': choose one of {', '.join(net.taps)}")
    return net.taps[name]


def _shape(tap: Tap) -> str:
    return f"{tap.channels} x {tap.size} x {tap.size}"


def _before(student: nn.Module, taps) -> list[nn.Parameter]:
    """What any of the taps depends on, in the order of the net."""
    wanted = {id(parameter) for tap in taps for parameter in student.parameters_before(tap)}
    return [parameter for parameter in student.parameters() if id(parameter) in wanted]


def _regressor(own: Tap, target: Tap, own_name: str, target_name: str) -> nn.Module:
    if own.size < target.size:
        raise ValueError(f"the {own_name} ({_shape(own)}) is smaller than the {target_name} ({_shape(target)}): choose a wider map")
    layer = nn.Conv2d(own.channels, target.channels, own.size - target.size + 1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer


def _widened(own: Tap, target: Tap, *, normalised: bool) -> nn.Module:
    if own.channels == target.channels:
        return nn.Identity()
    layer = nn.Conv2d(own.channels, target.channels, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return nn.Sequential(layer, nn.BatchNorm2d(target.channels)) if normalised else layer


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


class Tapped(nn.Module):
    """Any network with taps of your choice: ``Tapped(resnet18(), {"layer3": "layer3"}, torch.zeros(1, 3, 224, 224))``.

    modules: {tap: dotted name of a submodule}, whose output is the tap. example: a batch of one image, from which the
    taps' shapes are read, and which parameters each depends on (of those that ask for a gradient).
    Raises ValueError for a name that the network does not have, a module that runs more than once in a forward pass, and
    an output that is no map or vector or that a later layer overwrites.
    """

    def __init__(self, net: nn.Module, modules: Mapping[str, str], example: Tensor):
        super().__init__()
        self.net, self.sources = net, dict(modules)
        known = [name for name, _ in net.named_modules() if name]
        for name in modules.values():
            if name not in known:
                raise ValueError(f"the network has no module '{name}': choose one of {', '.join(known)}")
        self.taps: dict[str, Tap] = {}
        self._depends: dict[str, set[str]] = {}
        training = net.training
        self.eval()
        with torch.enable_grad():
            _, found = self.features(example)
            for tap, name in modules.items():
                if not isinstance(found.get(tap), Tensor) or found[tap].dim() not in (2, 4):
                    raise ValueError(f"the output of '{name}' is neither a map [B, C, H, W] nor a vector [B, C]")
                output = self.features(example, until=[tap])[1][tap]
                if output._version != found[tap]._version:
                    raise ValueError(f"the output of '{name}' is overwritten in place by what follows: tap that, or make it not in place")
                self.taps[tap] = Tap(output.shape[1], output.shape[-1] if output.dim() == 4 else 1)
                self._depends[tap] = _sources(output, net)
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def features(self, x: Tensor, until: Sequence[str] | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and the taps. until: taps; the pass stops at the last of them, and the logits are None."""
        taps = Taps(until)

        def keep(tap: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if tap in taps:
                raise ValueError(f"module '{self.sources[tap]}' runs more than once in a forward pass: tap one that runs once")
            taps[tap] = output

        hooks = [self.net.get_submodule(name).register_forward_hook(partial(keep, tap)) for tap, name in self.sources.items()]
        try:
            return self.net(x), taps
        except Reached:
            return None, taps
        finally:
            for hook in hooks:
                hook.remove()

    def parameters_before(self, tap: str) -> list[nn.Parameter]:
        """The parameters that the tensor of ``tap`` depends on: all that training on it alone can move."""
        return [parameter for name, parameter in self.net.named_parameters() if name in self._depends[tap]]


def _sources(output: Tensor, net: nn.Module) -> set[str]:
    """Names of the trained parameters of ``net`` that ``output`` was computed from."""
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if not output.requires_grad:
        return set()
    gradients = torch.autograd.grad(output.sum(), list(trained.values()), allow_unused=True)
    return {name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None}
