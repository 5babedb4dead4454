"""A step as a CUDA graph, on stand-ins for torch.cuda: what is put back, what is said and recorded where recording fails.

The stand-ins know only what matters here: a "graph" runs its step when it is replayed, not when it is recorded. What a GPU
itself does is in tests/test_cuda.py.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from kdcore.training import Context, Run, Stage, Step, fit
from kdcore.trials import child


class Generator:
    """A GPU's default generator: its state is an offset, which a recording that breaks off leaves stuck."""

    def __init__(self):
        self.state = {"offset": 40, "recording": False}

    def draw(self) -> int:
        if self.state["recording"] != FakeCuda.recording:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.state["offset"] += 4
        return self.state["offset"]

    def clone_state(self) -> "Generator":
        copy = Generator()
        copy.state = dict(self.state)
        return copy

    def get_offset(self) -> int:
        return self.state["offset"]

    def set_offset(self, offset: int) -> None:
        self.state["offset"] = offset

    def graphsafe_set_state(self, other: "Generator") -> None:
        self.state = other.state


class FakeCuda:
    """In place of the parts of torch.cuda that ``Step`` uses. fails: "", or where a recording breaks off: "begin" or "end"."""

    recording = False

    def __init__(self, monkeypatch, fails: str = ""):
        self.fails, self.stream, self.captures, self.warm_up = fails, "default", 0, 0
        self.generator = Generator()
        for name in ("device", "graph", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "default_generators", (self.generator,))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self.stream))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream.name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("side"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)

    @contextmanager
    def _device(self, device):
        yield

    @contextmanager
    def _stream(self, stream):
        before, self.stream = self.stream, stream.name
        self.warm_up += 1
        yield
        self.stream = before

    @contextmanager
    def _graph(self, graph, pool, stream):
        self.captures += 1
        if self.fails == "begin":
            raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")
        before, self.stream = self.stream, stream.name
        self.generator.state["recording"] = FakeCuda.recording = True
        try:
            yield
        finally:
            FakeCuda.recording = False
            if self.fails == "end":  # as torch leaves it: the stream in force, the generator stuck
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture\nsearch for ...")
            self.generator.state["recording"] = False
            self.stream = before


class Stream:
    def __init__(self, name: str):
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        pass


class Graph:
    """Replays what its owner gave it; see ``on_a_gpu``."""

    def replay(self) -> None:
        self.step.static_loss = self.step._eager(self.step.static_index)


class Recorded(Step):
    """A Step of the CPU that takes itself for one of a GPU. While it is recorded nothing runs."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.eager = False

    def _eager(self, index):
        if FakeCuda.recording:
            self.fake.generator.draw()
            return torch.tensor(torch.nan)
        return super()._eager(index)

    def _capture(self, index):
        before = self.fake.generator.state["offset"]
        super()._capture(index)
        if self.graph is not None:
            self.graph.step = self
        assert self.fake.stream == "default"
        assert self.fake.generator.state == {"offset": before, "recording": False}, "the random state is as it was"


class Net(nn.Module):
    def __init__(self, fake):
        super().__init__()
        self.layer, self.other, self.norm, self.fake = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), fake
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number / 7)

    def forward(self, x):
        if self.fake is not None and not FakeCuda.recording:
            self.fake.generator.draw()  # dropout
        return self.norm(self.layer(x))


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def stage_of(net: Net, **options) -> Stage:
    @torch.no_grad()
    def after_step():
        for layer in (net.layer, net.other):  # the other layer is not among what is trained
            layer.weight.clamp_(-0.9, 0.9)

    knob = torch.ones(())
    options = {"rule": torch.optim.SGD, "optimiser": {"momentum": 0.9}, "schedule": lambda epoch: {"lr": 0.1, "weight": 2.0}} | options
    return Stage(
        "train",
        epochs=3,
        indices=lambda generator: torch.randperm(40, generator=generator).view(4, 10),
        loss=lambda index: knob * net(X[index]).square().mean() + net.layer.weight.sum(),
        parameters=[*net.layer.parameters(), *net.norm.parameters()],
        after_step=after_step,
        knobs={"weight": knob},
        **options,
    )


def on_a_gpu(monkeypatch, fails: str = "", **options):
    """History, net and stand-ins of a run whose steps are Recorded, and its context."""
    fake = FakeCuda(monkeypatch, fails)
    monkeypatch.setattr(Recorded, "fake", fake, raising=False)
    monkeypatch.setattr("kdcore.training.loop.Step", Recorded)
    net, said = Net(fake), []
    context = Context(say=said.append)
    return fit(net, [stage_of(net, **options)], dict, context), net, fake, context, said


RULES = [
    {},
    {"rule": torch.optim.Adam, "optimiser": {"weight_decay": 0.01}},
    {"rule": torch.optim.RMSprop, "optimiser": {"alpha": 0.9}},
    {"schedule": lambda epoch: {"lr": 0.1 / (1 + epoch), "momentum": 0.5 + 0.1 * epoch, "weight": 1.0 + epoch}},
    {"clip": 0.1, "before_epoch": lambda step, epoch: step.forget() if epoch == 1 else None},
]


@pytest.mark.parametrize("fails", ["", "begin", "end"])
@pytest.mark.parametrize("options", RULES, ids=["sgd", "adam", "rmsprop", "moving momentum", "clip and forget"])
def test_a_step_trains_the_same_recorded_or_not(fails, options, monkeypatch):
    """Weights, buffers, momenta, knobs and random state are exactly those of plain steps, also where a recording fails."""
    plain = Net(None)
    expected = fit(plain, [stage_of(plain, **options)], dict)
    history, net, fake, context, said = on_a_gpu(monkeypatch, fails, **options)
    assert history == expected
    for (name, value), other in zip(plain.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert net.norm.num_batches_tracked == 12
    assert bool(context.eager) == bool(fails) and len(said) == bool(fails)
    if fails:
        assert said == [context.eager] and said[0].startswith(
            "stage 'train' trains more slowly, without a CUDA graph: its step cannot be captured"
        )
        assert said[0].endswith(
            "(CUDA error: "
            + {"begin": "operation not permitted)", "end": "operation failed due to a previous error during capture)"}[fails]
        )
        assert fake.captures == 1


def test_a_new_momentum_is_recorded_without_warming_up_again(monkeypatch):
    history, net, fake, *_ = on_a_gpu(monkeypatch, **RULES[3])
    assert (fake.captures, fake.warm_up) == (3, 1)
    assert fake.generator.get_offset() == 40 + 4 * 12, "one draw a step; what the first steps drew is given back"


def test_a_row_of_another_shape_is_another_graph(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(Recorded, "fake", fake, raising=False)
    net, plain = Net(fake), Net(None)
    step, reference = (kind(each, stage_of(each), "cpu") for kind, each in ((Recorded, net), (Step, plain)))
    for rows in (10, 10, 7, 1, 10):
        index = torch.arange(rows + 1)
        for each in (step, reference):
            each.set({"lr": 0.1})
        assert torch.equal(step(index), reference(index))
    assert fake.captures == 4


def test_an_error_of_the_loss_itself_is_no_reason_to_go_on(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(Recorded, "fake", fake, raising=False)
    net = Net(fake)
    step = Recorded(net, stage_of(net), "cpu")
    step.set({"lr": 0.1})
    with pytest.raises(IndexError):
        step(torch.tensor([1000] * 4))
    assert fake.captures == 0 and step.graph is None


def test_the_first_loss_of_an_epoch_is_not_overwritten_by_the_last(monkeypatch):
    """A graph writes every loss to one place; the mean of an epoch in float64 must not be made there."""
    place = torch.zeros((), dtype=torch.float64)
    monkeypatch.setattr(Step, "__call__", lambda step, index: place.fill_(float(index)))
    net = nn.Linear(1, 1)
    stage = Stage("s", epochs=1, indices=lambda g: torch.tensor([3, 5, 10]), loss=lambda i: None, schedule=lambda e: {"lr": 0.1})
    assert fit(net, [stage], dict)[0]["loss"] == 6.0


def test_the_record_says_that_there_was_no_graph(tmp_path, monkeypatch):
    from kdcore import papers
    from kdcore.papers.spec import Cohort
    from kdcore.trials.store import Store

    def prepare(trials, context, teacher_weights):
        context.without_graph("no graph here")
        context.without_graph("nor there")
        return Run(lambda history: [{"metrics": {"test_error_percent": 1.0}, "history": history}])

    paper, events, store = papers.get("hinton_mnist"), [], Store(tmp_path)
    trial = paper.trial("smoke", "small", 0)
    monkeypatch.setattr(paper, "prepare", prepare)
    child.train(Cohort((trial,)), store, "cpu", "auto", float("inf"), lambda event, **more: events.append((event, more)), {trial.id})
    assert store.get(trial)["environment"]["without_graph"] == "no graph here"
    assert events == [("said", {"message": "no graph here"})]
