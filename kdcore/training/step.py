"""One update of a stage: loss, gradient, optimiser; on a GPU, a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from kdcore.training.stage import Stage

WARM_UP = 3  # eager steps before a graph is captured, as in torch.cuda.make_graphed_callables


class Step:
    """One update of a stage: loss, gradient, optimiser. On a GPU the whole step is one CUDA graph; if it cannot be captured,
    steps run eagerly, and ``say`` is called with the reason."""

    def __init__(self, model: nn.Module, stage: Stage, device: str, precision: str = "float32", say: Callable[[str], None] = warnings.warn):
        self.model, self.stage, self.device, self.say = model, stage, device, say
        self.half = precision == "bfloat16"
        self.parameters = list(model.parameters() if stage.parameters is None else stage.parameters)
        self.cuda = device.startswith("cuda")
        factors = [1.0] * len(self.parameters) if stage.rate_factors is None else stage.rate_factors
        self.factors = list(dict.fromkeys(factors))
        groups = [
            # On a GPU the graph reads the learning rate from a tensor, so that a schedule needs no new graph.
            {"params": [p for p, own in zip(self.parameters, factors, strict=True) if own == factor], "lr": self._rate()}
            for factor in self.factors
        ]
        # Capturable: the step count is a tensor on the GPU. The optimisers' loop over single tensors would read the learning rate
        # on the host and freeze it in the graph; foreach kernels (see torch.optim.RMSprop) and fused SGD do not.
        speed = {"fused": True} if stage.rule is torch.optim.SGD else {"capturable": True, "foreach": True} if self.cuda else {}
        self.optimiser = stage.rule(groups, lr=self._rate(), **speed, **stage.optimiser)
        self.graph, self.stream, self.values = None, None, {}
        self.eager = not self.cuda

    def _rate(self) -> Tensor | float:
        return torch.zeros((), device=self.device) if self.cuda else 0.0

    def set(self, values: Mapping[str, float]) -> None:
        """Set learning rate, momentum and knobs."""
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
        """Take one step on a row of indices; return the detached loss before the update, which the next step may overwrite."""
        if not self.eager and (self.graph is None or (index.shape, index.dtype) != (self.static_index.shape, self.static_index.dtype)):
            with torch.cuda.device(self.device):  # streams and generator belong to the current device
                self._capture(index)
        if self.eager:
            return self._eager(index)
        self.static_index.copy_(index)
        self.graph.replay()
        return self.static_loss

    def _eager(self, index: Tensor) -> Tensor:
        # no cache of cast weights: each is used once per step, and a captured graph must not read an old cast
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            loss = self.stage.loss_of(index)
        # None, not zero: the backward pass allocates new gradients, during capture in the graph's own memory
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        if self.stage.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)  # without error_if_nonfinite: no host sync
        self.optimiser.step()
        if self.stage.after_step is not None:
            self.stage.after_step()
        return loss.detach()

    def _capture(self, index: Tensor) -> None:
        """Capture a step as a CUDA graph, leaving weights, buffers, momenta and the random state as they were. If capture
        fails, ``eager`` is set.

        The first capture is preceded by three eager steps, in which libraries choose their kernels and allocate workspaces and
        the optimiser creates its momenta: none of this may happen during capture. (SGD's first update sets momentum =
        gradient; from a momentum of zeros it is 0 * factor + gradient, the same without dampening, which nothing here sets.
        Adam's and RMSprop's moments and counts start at zero.) Capturing again for a new momentum needs no such steps. Both
        run on a separate stream, as capture requires, and so does gradient accumulation; capture does not execute the step.
        BatchNorm's batch count is a buffer that the graph updates; ``after_step`` is part of the graph.

        Dropout in a graph reads seed and offset from tensors that each replay fills from the default generator, which is
        registered with every graph: ``torch.manual_seed`` at the start of an epoch holds for replays, which draw the same
        numbers as eager steps. The warm-up steps' draws are undone, so that a resumed run, which captures its graph in
        another epoch, draws the same numbers.
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
            # A capture that fails leaves its stream current, and generator and allocator in capture mode
            # (dropout would raise "Offset increment outside graph capture").
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
            self.say(f"stage '{self.stage.name}' trains more slowly, without a CUDA graph: its step cannot be captured ({reason})")

    def _momenta(self) -> Iterator[tuple[str, Tensor]]:
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimiser.{i}.{key}", value

    def state(self) -> dict[str, Tensor]:
        """Copies of the optimiser's tensors, by name."""
        return {name: value.detach().clone() for name, value in self._momenta()}

    def forget(self) -> None:
        """Reset the optimiser in place, so that a captured graph stays valid."""
        for _, value in self._momenta():
            value.zero_()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore tensors that ``state`` returned."""
        for name, value in tensors.items():
            _, i, key = name.split(".")
            parameter = self.parameters[int(i)]
            if value.shape == parameter.shape:
                # with the parameter's memory layout: the fused update walks both from end to end, whatever their strides
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.optimiser.state[parameter][key] = value.to(parameter.device)  # a step count is 0-dim
