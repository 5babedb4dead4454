"""One update of a stage: loss, gradient, optimiser; on a GPU a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from kdcore.training.stage import Stage

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
            loss = self.stage.loss_of(index)
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
