"""``fit()``: the one training loop. Stages, schedules, exact resume, no host sync inside an epoch."""

import hashlib
import json
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcore import paths, validation
from kdcore.errors import Damaged, Paused, TrialFailed


def seed_of(*parts) -> int:
    """A 63-bit seed that depends on every part: ``seed_of(3, "order", 0, 17)``.

    All randomness of a run is drawn from generators seeded so, anew for each epoch: no random state has to be carried
    from one epoch to the next, which is what makes a resumed run equal to one that was never interrupted.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


@dataclass
class Stage:
    """One optimisation phase: its own optimiser, schedule, trained parameters and loss.

    name: shown in progress and history.
    epochs: passes over what ``indices`` gives; or None, and ``steps``: updates, the last epoch being cut short.
    indices: generator -> int64 [steps, ...]: what one epoch sees, one row a step (case numbers, shifts, ...). Every
        epoch has as many.
    loss: one row of it, on the device -> the loss, a scalar, or one value for each member of a stack ([K]).
    schedule: epoch, or step where the length is given in steps (0, 1, ...) -> {"lr": ...} and, where they move,
        {"momentum": ..., knob: ...}.
    optimiser: settings of the rule: momentum, weight_decay, nesterov of SGD; alpha, eps of RMSprop; betas of Adam.
    parameters: what is trained; all of the model for None. The others are left alone, weight decay included.
    knobs: 0-dim tensors that the loss reads and the schedule moves, such as the weight of a term.
    clip: largest norm of the gradient of all parameters together.
    after_step: called after each update, e.g. to limit norms.
    at_end: what joins the row of the stage's last epoch, called as ``fit``'s evaluate is.
    rule: the optimiser's class, ``torch.optim.SGD``, ``RMSprop`` or ``Adam``.
    rate_factors: of the learning rate, one for each of ``parameters``; 1 for None.
    at_start: called before the first update, e.g. for fresh weights.
    watch: what is measured after each epoch, in place of ``fit``'s evaluate.
    stop: asked after each epoch with the history so far, the stage's own rows last; True ends the stage before its
        epochs are over. It must depend on the history alone, so that a resumed run ends where an uninterrupted one does.
    forget: epochs (0, 1, ...) that begin with a fresh optimiser: what it gathered so far, its momentum, is zero again.
    every: epochs from one measurement to the next; the last epoch always has one, and each epoch where ``stop`` asks.
    first: whether the first epoch has one, too, whatever ``every`` is.
    """

    name: str
    epochs: int | None
    indices: Callable[[torch.Generator], Tensor]
    loss: Callable[[Tensor], Tensor]
    schedule: Callable[[int], Mapping[str, float]]
    optimiser: Mapping[str, float] = field(default_factory=dict)
    parameters: Iterable[nn.Parameter] | None = None
    knobs: Mapping[str, Tensor] = field(default_factory=dict)
    clip: float | None = None
    after_step: Callable[[], None] | None = None
    at_end: Callable[[], dict] | None = None
    steps: int | None = None
    rule: type[torch.optim.Optimizer] = torch.optim.SGD
    rate_factors: Sequence[float] | None = None
    at_start: Callable[[], None] | None = None
    watch: Callable[[], dict] | None = None
    stop: Callable[[list[dict]], bool] | None = None
    forget: Collection[int] = ()
    every: int = 1
    first: bool = False

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage '{self.name}' needs either epochs or steps")

    def measures(self, epoch: int, epochs: int) -> bool:
        """Whether the epoch with this number (0, 1, ...), of so many, ends with a measurement."""
        asked = (epoch + 1) % self.every == 0 or (self.first and epoch == 0)
        return asked or epoch + 1 == epochs or self.stop is not None


class Measured(Exception):
    """Raised by ``Context(probe=True).fit``: what the whole run would take, from a few timed steps."""

    def __init__(self, seconds: float):
        super().__init__(f"{seconds:.0f} s")
        self.seconds = seconds


def fast_precision(device: str) -> str:
    """bfloat16 where the device multiplies it faster than float32 (GPUs from Ampere on, processors with its
    instructions), else float32: without them a product in bfloat16 takes ten times as long."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux
        return "float32"
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16"} else "float32"


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # of this process and of the children that it has waited for, in user and system


@dataclass
class Context:
    """What surrounds a run: where it computes, saves, reports, and when it must pause."""

    device: str = "cpu"
    precision: str = "float32"  # of the products in training: float32 or bfloat16; weights and updates are float32
    seed: int = 0
    checkpoint: Path | None = None
    report: Callable[[dict], None] = lambda row: None  # each row of the history, with done and total epochs
    deadline: float = math.inf
    probe: bool = False
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=_cpu_seconds)
    earlier: tuple[float, float] = (0.0, 0.0)  # seconds and CPU seconds of the runs that were interrupted
    say: Callable[[str], None] = warnings.warn  # one line that whoever runs this should read
    eager: str | None = None  # why steps on a GPU are no CUDA graph, once they are not

    def without_graph(self, why: str) -> None:
        """Keep why a stage's steps are no CUDA graph, and say it: once, since the stages of a run tend to share the reason."""
        if self.eager is None:
            self.eager = why
            self.say(why)

    @property
    def seconds(self) -> float:
        """Time spent on this run so far, in this process and in those that were interrupted."""
        return time.monotonic() - self.started + self.earlier[0]

    @property
    def cpu_seconds(self) -> float:
        """The same in seconds of processors, all threads and child processes together: what else runs here does not matter."""
        return _cpu_seconds() - self.cpu_started + self.earlier[1]

    def spent(self) -> dict[str, str]:
        """Seconds so far, as metadata of what is saved."""
        return {"seconds": str(self.seconds), "cpu_seconds": str(self.cpu_seconds)}

    def resume(self, metadata: Mapping[str, str]) -> None:
        """Count what an interrupted run had spent when it saved; of several files of one run the last counts."""
        self.earlier = (float(metadata["seconds"]), float(metadata["cpu_seconds"]))

    def keep(self, name: str, make: Callable[[], Any], row: Callable[[Any], dict] | None = None) -> Any:
        """What ``make()`` gives; where an interrupted run had saved it in the checkpoint folder, that.

        For trials without ``fit``, part by part: names are file names, and each must be asked for in the same order each time.
        What is kept is pickled (fitted models of scikit-learn have no other form), and read only with the digest that it was
        written with. row: of the result, what is reported once it is saved. Raises Paused after that where time is up.
        """
        path = None if self.checkpoint is None else self.checkpoint / f"{name}.safetensors"
        if path is not None and path.exists():
            try:
                tensors, metadata = paths.load_tensors(path, cohort=self.checkpoint.name, part=name)
                self.resume(metadata)
                return pickle.loads(tensors["pickle"].numpy().tobytes())
            except Damaged as error:
                self.say(f"the checkpoint {error}: this part is made again")
        made = make()
        if path is not None:
            content = torch.frombuffer(bytearray(pickle.dumps(made)), dtype=torch.uint8)
            paths.save_tensors(path, {"pickle": content}, {"cohort": self.checkpoint.name, "part": name} | self.spent())
        if row is not None:
            self.report(row(made))
        if time.time() > self.deadline:
            raise Paused
        return made

    def fit(self, model: nn.Module, stages: list[Stage], evaluate: Callable[[], dict]) -> list[dict]:
        """``fit()`` in this context; raises Measured instead for a probe."""
        if self.probe:
            raise Measured(_forecast(model, stages, evaluate, self))
        return fit(model, stages, evaluate, self)


def fit(model: nn.Module, stages: list[Stage], evaluate: Callable[[], dict], context: Context | None = None) -> list[dict]:
    """Train ``model`` through ``stages`` and return the history, one dict an epoch.

    model: holds everything that any stage trains, on the context's device.
    evaluate: called after every epoch in eval mode without gradients; what it returns joins the epoch's row. Tensors
        are read as lists.
    context: seed, device, the folder to resume from and save to (at most every ``CHECKPOINT_SECONDS``, and always
        before a pause), and the time.time() after which no further epoch starts.

    A row holds stage, epoch (from 1 in its stage), lr, loss (mean over the epoch, a list for a stack), and evaluate's
    entries. Raises TrialFailed("nan") where the loss stops being finite, Paused at the deadline or on SIGTERM/SIGINT.
    """
    context = context or Context()
    saved = Checkpoint(context.checkpoint, context.say)
    history, optimiser_state, spent = saved.load(model)
    if spent:
        context.resume(spent)
    done = len(history)
    # Counted from the last, which is number 0: the last stage of every arm sees the same batches.
    numbers = range(len(stages) - 1, -1, -1)
    epochs = [_epochs(stage, context.seed, number) for number, stage in zip(numbers, stages, strict=True)]
    last_save, longest = time.monotonic(), 0.0
    with _signals() as stop:
        first = 0  # epochs in the stages before this one
        for place, (number, stage) in enumerate(zip(numbers, stages, strict=True)):
            if stage.stop is not None:
                known = range(1, min(done - first, epochs[place]) + 1)
                epochs[place] = next((count for count in known if stage.stop(history[: first + count])), epochs[place])
            if done >= first + epochs[place]:
                first += epochs[place]
                continue
            if done == first and stage.at_start is not None:
                stage.at_start()
            step = Step(model, stage, context.device, context.precision, context.without_graph)
            if done > first:
                step.load(optimiser_state)
            for epoch in range(done - first, epochs[place]):
                started = time.monotonic()
                if epoch in stage.forget:
                    step.forget()
                loss = _epoch(step, epoch, _draw(stage, context.seed, number, epoch))
                row = {"stage": stage.name, "epoch": epoch + 1, "lr": step.values["lr"], "loss": loss}
                if not all(math.isfinite(x) for x in (loss if isinstance(loss, list) else [loss])):
                    raise TrialFailed(
                        "nan", f"the loss is not finite in epoch {epoch + 1} of stage '{stage.name}': lower the learning rate"
                    )
                if stage.measures(epoch, epochs[place]):
                    row |= _evaluated(model, stage.watch or evaluate)
                history.append(row)
                if stage.stop is not None and stage.stop(history):
                    epochs[place] = epoch + 1
                last = epoch + 1 == epochs[place]
                if stage.at_end is not None and last:
                    row |= _evaluated(model, stage.at_end)
                done += 1
                context.report(row | {"done": done, "total": sum(epochs)})
                longest = max(longest, time.monotonic() - started)
                finished = done == sum(epochs)
                pause = not finished and (stop.requested or time.time() + longest > context.deadline)
                if pause or finished or time.monotonic() - last_save >= CHECKPOINT_SECONDS:
                    saved.save(model, step, history, context.spent())
                    last_save = time.monotonic()
                if pause:
                    raise Paused
                if last:
                    break
            first += epochs[place]
    return history


# Writing a checkpoint costs tens of milliseconds: not more often than this, unless a test asks for it.
CHECKPOINT_SECONDS = validation.environment_seconds("KDCORE_CHECKPOINT_SECONDS", 10)


def _epochs(stage: Stage, seed: int, number: int) -> int:
    return stage.epochs if stage.steps is None else math.ceil(stage.steps / len(_draw(stage, seed, number, 0)))


def _draw(stage: Stage, seed: int, number: int, epoch: int) -> Tensor:
    torch.manual_seed(seed_of(seed, "noise", number, epoch))  # dropout
    return stage.indices(torch.Generator().manual_seed(seed_of(seed, "order", number, epoch)))


def _epoch(step: "Step", epoch: int, indices: Tensor) -> float | list[float]:
    stage, total = step.stage, None
    first = epoch * len(indices)  # steps before this epoch
    rows = indices[: None if stage.steps is None else stage.steps - first]
    step.model.train()
    if stage.steps is None:
        step.set(stage.schedule(epoch))
    for number, index in enumerate(rows.to(step.device, non_blocking=True).unbind(0), first):
        if stage.steps is not None:
            step.set(stage.schedule(number))
        loss = step(index)
        # stays on the device: the host reads one number an epoch; a copy, since a graph writes each loss to the same place
        total = loss.to(torch.float64, copy=True) if total is None else total.add_(loss)
    return (total / len(rows)).tolist()


def _evaluated(model: nn.Module, evaluate: Callable[[], dict]) -> dict:
    model.eval()
    with torch.no_grad():
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in evaluate().items()}


def _forecast(model: nn.Module, stages: list[Stage], evaluate: Callable[[], dict], context: Context, steps: int = 12) -> float:
    """Seconds that ``fit`` would take at most (no stage stopped early), from ``steps`` timed steps of each stage and one evaluation."""

    def timed(work) -> float:
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    total, usual = 0.0, timed(lambda: _evaluated(model, evaluate))
    for number, stage in enumerate(stages):
        evaluation = usual if stage.watch is None else timed(lambda: _evaluated(model, stage.watch))  # noqa: B023 (called at once)
        step = Step(model, stage, context.device, context.precision, context.without_graph)
        indices = _draw(stage, context.seed, number, 0)
        _epoch(step, 0, indices[:3])  # the first steps pay for allocation
        count, epochs = min(steps, len(indices)), _epochs(stage, context.seed, number)
        seconds = timed(lambda: _epoch(step, 0, indices[:count]))  # noqa: B023 (called at once)
        measured = sum(stage.measures(epoch, epochs) for epoch in range(epochs))
        total += seconds / count * (stage.steps or epochs * len(indices)) + measured * evaluation
    return total


WARM_UP = 3  # eager steps before a graph is recorded, as torch.cuda.make_graphed_callables takes


class Step:
    """One update of a stage: loss, gradient, optimiser. On a GPU the whole step is one CUDA graph; where that cannot be recorded
    the steps run one kernel at a time, and ``say`` hears why."""

    def __init__(self, model: nn.Module, stage: Stage, device: str, precision: str = "float32", say: Callable[[str], None] = warnings.warn):
        self.model, self.stage, self.device, self.say = model, stage, device, say
        self.half = precision == "bfloat16"
        self.parameters = list(model.parameters() if stage.parameters is None else stage.parameters)
        self.cuda = device.startswith("cuda")
        factors = [1.0] * len(self.parameters) if stage.rate_factors is None else stage.rate_factors
        self.factors = list(dict.fromkeys(factors))
        groups = [
            # On a GPU the graph reads the rate from a tensor, so that a schedule needs no new graph.
            {"params": [p for p, own in zip(self.parameters, factors, strict=True) if own == factor], "lr": self._rate()}
            for factor in self.factors
        ]
        # Capturable: the count of steps is a tensor on the GPU. The rules' loop over single tensors would read the rate on the
        # host and freeze it in the graph; their foreach kernels do not (torch.optim.RMSprop says so), nor does fused SGD.
        speed = {"fused": True} if stage.rule is torch.optim.SGD else {"capturable": True, "foreach": True} if self.cuda else {}
        self.optimiser = stage.rule(groups, lr=self._rate(), **speed, **stage.optimiser)
        self.graph, self.stream, self.values = None, None, {}
        self.eager = not self.cuda

    def _rate(self) -> Tensor | float:
        return torch.zeros((), device=self.device) if self.cuda else 0.0

    def set(self, values: Mapping[str, float]) -> None:
        """Put learning rate, momentum and knobs in force."""
        for key, value in values.items():
            if self.values.get(key) == value:
                continue
            if key in self.stage.knobs:
                self.stage.knobs[key].fill_(value)
                continue
            for group, factor in zip(self.optimiser.param_groups, self.factors, strict=True):
                if key != "lr":
                    group[key] = value
                    self.graph = None  # a momentum is a constant of the graph
                elif self.cuda:
                    group[key].fill_(factor * value)
                else:
                    group[key] = factor * value
        self.values = dict(values)

    def __call__(self, index: Tensor) -> Tensor:
        """One step on one row of indices; the loss before the update, detached. The next step may overwrite it."""
        if not self.eager and (self.graph is None or (index.shape, index.dtype) != (self.static_index.shape, self.static_index.dtype)):
            with torch.cuda.device(self.device):  # streams and generator are those of the current one
                self._capture(index)
        if self.eager:
            return self._eager(index)
        self.static_index.copy_(index)
        self.graph.replay()
        return self.static_loss

    def _eager(self, index: Tensor) -> Tensor:
        # no cache of cast weights: each is used once a step, and a captured graph must not read an old cast
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            loss = self.stage.loss(index)
        # None, not zero: the backward pass allocates the gradients anew, in the graph's own memory while it is recorded
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        if self.stage.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)  # without error_if_nonfinite it never asks the device
        self.optimiser.step()
        if self.stage.after_step is not None:
            self.stage.after_step()
        return loss.detach()

    def _capture(self, index: Tensor) -> None:
        """Record a step as a CUDA graph. Weights, buffers, momenta and the random state are afterwards as they were before,
        whether it succeeds or not; where it does not, ``eager`` is set.

        The first time, three steps run eagerly before: libraries choose their kernels and take their workspaces, and the
        optimiser makes its momenta, none of which may happen while a graph is recorded. (SGD's first update has momentum =
        gradient, that from a momentum of zeros has 0 * factor + gradient: with no dampening, which nothing here sets, they are
        equal. Adam's and RMSprop's moments and counts begin with zeros.) A graph that another momentum makes necessary needs
        no such steps. Both happen on a stream of their own, as capture asks for, on which gradients are accumulated, too; recorded
        steps do not run. BatchNorm's count of batches is a buffer that the graph moves; ``after_step`` is part of the graph.

        Dropout in a graph reads seed and offset from tensors that each replay fills from the default generator's, which is
        registered with every graph: ``torch.manual_seed`` at the start of an epoch holds for replays, and these draw what
        eager steps would. What the first steps took from it is given back, so that a resumed run, which records its graph in
        another epoch, draws the same.
        """
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        noise, offset = generator.clone_state(), generator.get_offset()
        current = torch.cuda.current_stream()
        torch.cuda.synchronize()  # an older graph may still be running
        self.graph = None
        first = self.stream is None or index.shape != self.static_index.shape
        self.stream, self.static_index = self.stream or torch.cuda.Stream(), index.clone()
        moved = list({id(t): t for t in (*self.parameters, *self.model.parameters(), *self.model.buffers())}.values())
        before, momenta = [tensor.detach().clone() for tensor in moved], self.state()
        self.stream.wait_stream(current)
        if first:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UP):
                    self._eager(self.static_index)
        current.wait_stream(self.stream)
        self.optimiser.zero_grad(set_to_none=True)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                self.static_loss = self._eager(self.static_index)
        except RuntimeError as error:
            self.eager = True
            # A recording that breaks off leaves its stream in force, the generator in the belief that it still records
            # (dropout would raise "Offset increment outside graph capture"), and the allocator likewise.
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(noise)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            self.optimiser.zero_grad(set_to_none=True)
            reason = (str(error) or type(error).__name__).splitlines()[0]
        else:
            self.graph = graph
            generator.set_offset(offset)
        with torch.no_grad():
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)
        for name, value in self._momenta():
            value.copy_(momenta[name]) if name in momenta else value.zero_()
        if self.eager:
            self.say(f"stage '{self.stage.name}' trains without a CUDA graph, slower: its step cannot be recorded ({reason})")

    def _momenta(self) -> Iterator[tuple[str, Tensor]]:
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimiser.{i}.{key}", value

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors by name, copied."""
        return {name: value.detach().clone() for name, value in self._momenta()}

    def forget(self) -> None:
        """A fresh optimiser, in place: a captured graph goes on with it."""
        for _, value in self._momenta():
            value.zero_()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave."""
        for name, value in tensors.items():
            _, i, key = name.split(".")
            parameter = self.parameters[int(i)]
            if value.shape == parameter.shape:
                # laid out in memory as the parameter: the fused update walks both from end to end, whatever their strides
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.optimiser.state[parameter][key] = value.to(parameter.device)  # a count of steps has no shape


class Checkpoint:
    """Model, optimiser and history in one safetensors file (the history is JSON in its header; nothing is pickled), with a digest, and
    bound to the folder that it lies in.

    No random state is stored: ``seed_of`` makes it a function of seed, stage and epoch. The stage and the place in the
    schedule follow from the length of the history.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None] = warnings.warn):
        self.path = None if folder is None else folder / "state.safetensors"
        self.say = say

    def save(self, model: nn.Module, step: Step, history: list[dict], spent: dict[str, str]) -> None:
        if self.path is None:
            return
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        tensors |= {k: v.cpu().contiguous() for k, v in step.state().items()}
        paths.save_tensors(self.path, tensors, {"cohort": self.path.parent.name, "history": json.dumps(history)} | spent)

    def load(self, model: nn.Module) -> tuple[list[dict], dict[str, Tensor], dict[str, str]]:
        """History, optimiser tensors and time spent of the saved run, its weights in ``model``; nothing where there is none.

        A damaged file, another cohort's, or another network's is moved aside, and the run starts over.
        """
        if self.path is None or not self.path.exists():
            return [], {}, {}
        try:
            tensors, metadata = paths.load_tensors(self.path, cohort=self.path.parent.name)
            weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            own = model.state_dict()
            # compared before any is copied: a model that is half loaded would train on
            if {k: (v.shape, v.dtype) for k, v in weights.items()} != {k: (v.shape, v.dtype) for k, v in own.items()}:
                raise Damaged(f"{self.path} is another network's and was moved to {paths.set_aside(self.path).name}")
        except Damaged as error:
            self.say(f"the checkpoint {error}: the trial starts over")
            return [], {}, {}
        model.load_state_dict(weights)
        spent = {key: metadata[key] for key in ("seconds", "cpu_seconds")}
        return json.loads(metadata["history"]), {k: v for k, v in tensors.items() if k.startswith("optimiser.")}, spent


class _Stop:
    requested = False


@contextmanager
def _signals():
    """SIGTERM and SIGINT ask for a pause at the end of the epoch (in the main thread; elsewhere they are not ours)."""
    stop, old = _Stop(), {}

    def request(*_):
        stop.requested = True

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, request)
    except ValueError:
        pass
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
