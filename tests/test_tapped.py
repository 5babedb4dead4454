"""Networks of other people: what Tapped leaves as it was, what it refuses, wrapped and compiled networks, dict outputs, matches."""

import copy
import pickle
import re

import pytest
import torch
from refusals import refused
from registry import KD, LABELS, X
from steps import batch, moved, state, step
from torch import nn
from torch.multiprocessing import spawn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models import resnet18

from kdcore import losses, methods
from kdcore.methods import Tapped, freeze

TAPS = {"early": "0", "late": "3"}


def plain(width=4, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.Tanh(), nn.Dropout(0.0), nn.Conv2d(width, width, 3, 2, 1), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def normalised(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))


def teacher():
    return freeze(Tapped(plain(6, seed=1), TAPS, X[:1]))


class Restless(nn.Module):
    """Counts its passes, draws random numbers, and keeps some modules in eval mode whatever ``train`` says."""

    def __init__(self):
        super().__init__()
        self.net = normalised()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def train(self, mode=True):
        super().train(mode)
        self.net[1].eval()
        return self

    def forward(self, x):
        self.passes += 1
        self.last = torch.rand(())  # a new tensor
        return self.net(x)


def snapshot(net):
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return tensors, [module.training for module in net.modules()], [parameter.requires_grad for parameter in net.parameters()]


def test_tapped_and_suggest_leave_the_network_as_it_was():
    net = Restless().train()
    net.net[4].eval(), net.net[6].eval(), net.net[0].weight.requires_grad_(False)
    net(X).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    tensors, modes, asking = snapshot(net)
    buffers = [id(buffer) for buffer in net.buffers()]
    for look in (lambda: Tapped(net, {"a": "net.3"}, X[:1]), lambda: Tapped.suggest(net, net, X[:1])):
        state = torch.get_rng_state()
        wrapped = look()
        assert torch.equal(torch.get_rng_state(), state)
        found = snapshot(net)
        assert all(torch.equal(found[0][key], tensors[key]) for key in tensors) and found[1:] == (modes, asking)
        assert [id(buffer) for buffer in net.buffers()] == buffers
        assert all(p.grad is old or torch.equal(p.grad, old) for p, old in zip(net.parameters(), gradients, strict=True))
        assert all(not module._forward_hooks for module in net.modules())
        if isinstance(wrapped, Tapped):
            assert wrapped.training == net.training
    assert modes[1:] != [True] * len(modes[1:])


def test_tapped_leaves_the_network_as_it_was_where_it_refuses():
    net = normalised().train()
    net[1].eval()
    before = snapshot(net)
    refused("has no module", Tapped, net, {"a": "9"}, X[:1])
    refused("neither a map", Tapped, nn.Sequential(net, nn.Unflatten(1, (1, 2, 5, 1))), {"a": "1"}, X[:1])
    assert snapshot(net)[1:] == before[1:]


def test_what_depends_on_frozen_parameters_is_known_when_they_thaw():
    net = freeze(plain())
    wrapped = Tapped(net, TAPS, X[:1])
    assert len(wrapped.parameters_before("late")) == 4 and not any(p.requires_grad for p in net.parameters())
    refused("train nothing", methods.fitnets, wrapped, teacher(), hint="late", guided="late")
    net.requires_grad_(True)
    assert len(methods.fitnets(wrapped, teacher(), hint="late", guided="late").stages[0].parameters) == 4 + 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_taps_itself(how):
    wrapped = Tapped(plain(), TAPS, X[:1])
    twin = how(wrapped)
    with torch.no_grad():
        twin.net[0].weight.zero_()
    assert not torch.equal(twin.features(X)[1]["early"], wrapped.features(X)[1]["early"])
    assert twin.parameters_before("early")[0] is twin.net[0].weight and twin.taps["late"].shape == (4, 4, 4)


class Answer(nn.Module):
    def __init__(self, kind, seed=0):
        super().__init__()
        self.net, self.kind = plain(seed=seed), kind

    def forward(self, x):
        logits = self.net(x)
        return {"dict": {"logits": logits, "loss": None}, "tuple": (x, logits), "list": [x, logits]}[self.kind]


OUTPUTS = {"dict": lambda out: out["logits"], "tuple": lambda out: out[1], "list": lambda out: out[-1]}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_makes_logits_of_what_a_network_returns(kind):
    net = Answer(kind)
    wrapped, same = Tapped(net, {"late": "net.3"}, X[:1], output=OUTPUTS[kind]), Tapped(net.net, {"late": "3"}, X[:1])
    assert torch.equal(wrapped(X), net.net(X))
    (logits, taps), (expected, maps) = wrapped.features(X), same.features(X)
    assert torch.equal(logits, expected) and torch.equal(taps["late"], maps["late"])
    assert wrapped.features(X, until=["late"])[0] is None
    large = freeze(Tapped(Answer(kind, seed=1), {"late": "net.3"}, X[:1], output=OUTPUTS[kind]))
    for build in (
        methods.kd,
        methods.jacobian,
        lambda s, t: methods.attention_transfer(s, t, taps=["late"]),
        lambda s, t: methods.fitnets(s, t, guided="late", hint="late"),
    ):
        bare = freeze(Tapped(large.net.net, {"late": "3"}, X[:1]))
        results, plainly = (build(s, t).stages[-1].loss(X, LABELS).item() for s, t in ((wrapped, large), (same, bare)))
        assert results == pytest.approx(plainly, rel=1e-6)
    refused(f"returns a {kind}.*output=", Tapped, net, {}, X[:1])
    refused("output= returns a", Tapped, net, {}, X[:1], output=lambda out: {"logits": out})
    # raw networks in methods of logits
    refused("output=", methods.kd(net, freeze(plain())).stages[0].loss, X, LABELS)
    refused("output=", methods.kd(plain(), freeze(net)).stages[0].loss, X, LABELS)


LOGITS = ["plain", "kd", "logit_mimic", "ban", "cwtm", "dkpp", "jacobian"]


@pytest.mark.parametrize("name", LOGITS)
def test_methods_of_logits_take_raw_networks(name):
    build, results = getattr(methods, name), []
    for wrap in (lambda net: net, lambda net: Tapped(net, {}, X[:1])):
        method = build(wrap(plain()), freeze(wrap(plain(6, seed=1))))
        torch.manual_seed(0)
        method.stages[0].loss(X, LABELS).backward()
        results.append([p.grad for p in method.student.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("build", [
    lambda s, t: methods.fitnets(s, t, guided="late", hint="late"),
    lambda s, t: methods.fsp(s, t, pairs=[("early", "late")]),
    lambda s, t: methods.attention_transfer(s, t, taps=["late"]),
    lambda s, t: methods.activation_boundary(s, t, taps=["late"], weights=[1.0]),
])  # fmt: skip
def test_methods_of_features_ask_for_taps(build):
    refused(r"the student \(Sequential\) has no taps: wrap it in Tapped\(student", build, plain(), teacher())
    refused(r"the teacher \(VGG\) has no taps: wrap it in Tapped\(teacher", build, Tapped(plain(), TAPS, X[:1]), freeze(VGG()))
    refused("DataParallel hides the taps.*StageLoss", build, DataParallel(Tapped(plain(), TAPS, X[:1])), teacher())


class VGG(nn.Module):
    """Built as torchvision's VGG, DenseNet and AlexNet are: ``features`` is a module."""

    def __init__(self, seed=0):
        super().__init__()
        self.features, self.classifier = plain(seed=seed)[:-1], nn.Linear(16, 10)

    def forward(self, x):
        return self.classifier(self.features(x))


def test_a_network_whose_features_are_a_module():
    net, large = VGG(), freeze(VGG(1))
    expected = 0.1 * losses.cross_entropy(net(X), LABELS) + 0.9 * losses.kd(net(X), large(X), 4.0)
    assert methods.kd(net, large).stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)
    assert Tapped(net, {"late": "features.3"}, X[:1]).taps["late"].shape == (4, 4, 4)


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.never, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(192, 10)

    def forward(self, x):
        h = self.a(x)
        return self.head((h if self.training else self.b(h)).flatten(1))


@pytest.mark.parametrize("make, name, words", [
    (lambda: Sometimes(), "never", "module 'never' did not run"),
    (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 1), nn.Flatten(), nn.Linear(128, 10)), "1", r"a sequence \[B, C, N\]"),
    (lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Flatten(), nn.Linear(192, 10)), "0", "has shape"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0), nn.Unflatten(0, (-1, 1))), "2", "has shape"),
    (lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(64, 5, batch_first=True), Pick()), "1", "a tuple: tap a module inside it"),
])  # fmt: skip
def test_modules_that_give_no_map_vector_or_tokens(make, name, words):
    refused(words, Tapped, make(), {"tap": name}, X[:1])


class Pick(nn.Module):
    def forward(self, pair):
        return pair[0][:, -1]


def test_a_module_that_stops_running_is_noticed():
    wrapped = Tapped(Sometimes(), {"b": "b"}, X[:1]).train()
    for until in (None, ["b"]):
        refused("module 'b' did not run in a forward pass", wrapped.features, X, until)
    refused("no tap 'c': choose one of b", wrapped.features, X, ["c"])


def test_compiled_networks():
    compiled = torch.compile(plain(), backend="eager")
    large = freeze(torch.compile(plain(6, seed=1), backend="eager"))
    for student in (compiled, Tapped(compiled, {}, X[:1])):
        method = methods.kd(student, large)
        expected = methods.kd(plain(), freeze(plain(6, seed=1))).stages[0].loss(X, LABELS)
        method.zero_grad()
        result = method.stages[0].loss(X, LABELS)
        result.backward()
        assert result.item() == pytest.approx(expected.item(), rel=1e-5) and compiled._orig_mod[0].weight.grad.abs().sum() > 0
    in_place = plain()
    in_place.compile(backend="eager")
    for net, name in ((compiled, "_orig_mod.3"), (in_place, "3"), (nn.Sequential(compiled), "0._orig_mod.3")):
        refused("before torch.compile", Tapped, net, {"late": name}, X[:1])
    refused("before torch.compile", methods.jacobian, compiled, freeze(plain()))
    refused("before torch.compile", methods.jacobian, plain(), large)
    # taps first, then compiled: its features are those of the network itself
    outside = torch.compile(Tapped(plain(), TAPS, X[:1]), backend="eager")
    method = methods.fitnets(outside, teacher(), guided="late", hint="late")
    method.stages[0].loss(X, LABELS).backward()
    assert outside.net[0].weight.grad.abs().sum() > 0 and outside.net[7].weight.grad is None


def test_data_parallel():
    method = methods.kd(DataParallel(plain()), freeze(DataParallel(plain(6, seed=1))))
    expected = methods.kd(plain(), freeze(plain(6, seed=1))).stages[0].loss(X, LABELS).item()
    assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected, rel=1e-6)
    refused("inside DataParallel.*StageLoss", Tapped, DataParallel(plain()), {"late": "module.3"}, X[:1])


STAGED = {
    "fitnets": lambda s, t: methods.fitnets(s, t, guided="late", hint="late"),
    "fsp": lambda s, t: methods.fsp(s, t, pairs=[("early", "late")], weights=[1.0]),
    "attention_transfer": lambda s, t: methods.attention_transfer(s, t, taps=["late"]),
    "jacobian": methods.jacobian,
}


def in_two(rank, folder):
    """One of two processes: its half of the batch, each stage of each method under DistributedDataParallel."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, labels, results = X[2 * rank :][:2], LABELS[2 * rank :][:2], {}
    for name, build in STAGED.items():
        student = Tapped(plain(), TAPS, X[:1])
        torch.manual_seed(3)
        method = build(student, teacher())
        for stage in method.stages:
            loss = DistributedDataParallel(methods.StageLoss(method, stage), find_unused_parameters=True)
            method.zero_grad()
            loss(x, labels).backward()
            results[f"{name}, {stage.name}"] = [p.grad for p in stage.parameters]
    # a student wrapped on its own: right where the whole pass is seen and nothing stands beside it, else refused
    for name, build in (("kd", methods.kd), ("attention_transfer", STAGED["attention_transfer"])):
        net = DistributedDataParallel(plain())
        student = net if name == "kd" else Tapped(net, {"late": "module.3"}, X[:1])
        build(student, teacher()).stages[0].loss(x, labels).backward()
        results[f"{name}, wrapped"] = [p.grad for p in net.parameters()]
    student = Tapped(DistributedDataParallel(plain()), {tap: f"module.{name}" for tap, name in TAPS.items()}, X[:1])
    for name in ("fitnets", "fsp", "jacobian"):
        refused("methods.StageLoss", STAGED[name], student, teacher())
    refused("methods.StageLoss", student.features, x, ["late"])
    refused("hides the taps", STAGED["fitnets"], DistributedDataParallel(Tapped(plain(), TAPS, X[:1])), teacher())
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_the_gradient_of_the_joint_batch(tmp_path):
    spawn(in_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = {}
    for name, build in STAGED.items():
        torch.manual_seed(3)
        student = Tapped(plain(), TAPS, X[:1])
        torch.manual_seed(3)
        method = build(student, teacher())
        for stage in method.stages:
            method.zero_grad()
            stage.loss(X, LABELS).backward()
            expected[f"{name}, {stage.name}"] = [p.grad.clone() for p in stage.parameters]
    for name, build in (("kd", methods.kd), ("attention_transfer", STAGED["attention_transfer"])):
        student = Tapped(plain(), TAPS, X[:1])
        build(student, teacher()).stages[0].loss(X, LABELS).backward()
        expected[f"{name}, wrapped"] = [p.grad for p in student.parameters()]
    assert set(first) == set(second) == set(expected) and len(first) == 8
    for stage, gradients in expected.items():
        assert all(torch.equal(p, q) for p, q in zip(first[stage], second[stage], strict=True)), f"{stage}: not synchronised"
        for results, own in zip(first[stage], gradients, strict=True):
            assert torch.allclose(results, own, rtol=1e-4, atol=1e-5 * own.abs().max().item()), f"{stage}: not the joint batch's"
    assert "fitnets, hint" in first and "fsp, fsp" in first


def test_suggest_by_hand():
    student, deep = plain(4), nn.Sequential(plain(8)[:4], nn.Conv2d(8, 4, 3, padding=1), *list(plain(4).children())[4:])
    table = Tapped.suggest(student, deep, X[:1])
    rows = {row.student: row for row in table}
    assert list(rows)[:6] == ["0", "1", "3", "4", "5", "6"], "in the order in which they run, without dropout"
    assert rows["0"] == ("0", (4, 8, 8), "0.0", (8, 8, 8)) and rows["0"].match == "same resolution"
    assert rows["3"] == ("3", (4, 4, 4), "1", (4, 4, 4)) and rows["3"].match == "same shape", "the last of each"
    assert rows["7"] == ("7", (10,), "5", (10,)) and rows["7"].match == "same shape"
    others = [row for row in table if row.student is None]
    assert ("0.3", (8, 4, 4)) in {(row.teacher, row.teacher_shape) for row in others} and all(row.match == "" for row in others)
    lines = str(table).splitlines()
    assert lines[0].split() == ["student", "shape", "teacher", "shape", "match"] and len(lines) == len(table) + 1
    assert lines[1].split("  ")[0] == "0" and "4 x 8 x 8" in lines[1] and lines[1].endswith("same resolution")


def test_suggested_layers_can_be_tapped():
    from torchvision.models import resnet18, resnet50  # slow to import for the processes of the test above

    x = torch.zeros(1, 3, 32, 32)
    student, deep = resnet18(num_classes=10), resnet50(num_classes=10)
    table = Tapped.suggest(student, deep, x)
    pairs = {row.student: row.teacher for row in table if row.student}
    assert all(pairs[f"layer{k}"] == f"layer{k}" for k in (1, 2, 3, 4)) and pairs["fc"] == "fc"
    assert "bn1" not in pairs, "overwritten in place"
    assert not any(row.student and row.student.endswith(".relu") for row in table), "runs twice"
    chosen = [row for row in table if row.match and len(row.student_shape) == 3][:6]
    own = Tapped(student, {row.student: row.student for row in chosen}, x)
    other = Tapped(deep, {row.teacher: row.teacher for row in chosen}, x)
    for row in chosen:
        assert own.taps[row.student].shape == row.student_shape and other.taps[row.teacher].shape == row.teacher_shape
    methods.attention_transfer(own, freeze(other), taps=[(row.student, row.teacher) for row in chosen])


def test_attention_is_that_of_the_layers_suggested():
    """From the table to a loss, by hand."""
    student, large = plain(), plain(6, seed=1)
    row = next(row for row in Tapped.suggest(student, large, X[:1]) if row.student == "3")
    own, large = Tapped(student, {"late": row.student}, X[:1]), freeze(Tapped(large, {"late": row.teacher}, X[:1]))
    q, p = (F.normalize(net.features(X)[1]["late"].square().sum(1).flatten(1)) for net in (own, large))
    expected = losses.cross_entropy(own(X), LABELS) + 1000 * (q - p).square().mean()
    assert methods.attention_transfer(own, large, taps=["late"]).stages[0].loss(X, LABELS).item() == pytest.approx(
        expected.item(), rel=1e-4
    )


@pytest.mark.parametrize(("arguments", "words"), [
    ((None, TAPS, X[:1]), "must be a torch.nn.Module"),
    ((plain(), ["3"], X[:1]), "must be a dict"),
    ((plain(), {"late": 3}, X[:1]), "must be a dict"),
    ((plain(), TAPS, (1, 3, 8, 8)), "give it a tensor"),
    ((plain(), TAPS, X[:1, :2]), "does not run on an example of shape"),
    ((normalised(), {}, X[0]), "does not run on an example of shape"),
    ((plain(), TAPS, X[:1].double()), "move both to one dtype and device"),
    ((plain(), TAPS, X[:1].to("meta")), "move both to one dtype and device"),
    ((nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), {"early": "0"}, X[:1]), "lazy parameters"),
])  # fmt: skip
def test_what_cannot_be_tapped_is_refused_in_a_sentence(arguments, words):
    refused(words, Tapped, *arguments)
    if "dict" not in words:
        net, _, example = arguments
        refused(words, Tapped.suggest, plain(), net, example)


@pytest.mark.parametrize(("output", "words"), [("logits", "must be a function"), (lambda out: out["b"], "does not fit what")])
def test_an_output_that_does_not_fit_is_refused(output, words):
    class Named(nn.Module):
        def forward(self, x):
            return {"a": x}

    refused(words, Tapped, Named(), {}, X[:1], output=output)


def test_tapped_in_inference_mode():
    with torch.inference_mode():
        net = plain()
    refused("made under torch.inference_mode", Tapped, net, TAPS, X[:1])
    net = plain()
    with torch.inference_mode():
        tapped = Tapped(net, TAPS, X[:1].clone())
    assert len(tapped.parameters_before("late")) == 4


def torchvision_net(seed=0):
    torch.manual_seed(seed)
    return resnet18(num_classes=10)


def tapped(seed=0, taps=("layer1", "layer2", "layer3")):
    return Tapped(torchvision_net(seed), {tap: tap for tap in taps}, torch.zeros(1, 3, 64, 64))


def test_taps_of_a_torchvision_net():
    net = tapped(taps=("relu", "layer1", "layer2.0", "layer3", "avgpool", "fc"))
    assert net.taps == {"relu": (64, 32), "layer1": (64, 16), "layer2.0": (128, 8), "layer3": (256, 4), "avgpool": (512, 1), "fc": (10, 1)}
    x, _ = batch(64, 2)
    net.eval()
    logits, taps = net.features(x)
    assert torch.equal(logits, net.net(x)) and torch.equal(net(x), logits) and torch.equal(taps["fc"], logits)
    h = net.net.layer1(net.net.maxpool(net.net.relu(net.net.bn1(net.net.conv1(x)))))
    assert torch.equal(taps["layer1"], h) and torch.equal(taps["layer3"], net.net.layer3(net.net.layer2(h)))
    assert {tap: (tensor.shape[1], tensor.shape[-1] if tensor.dim() == 4 else 1) for tap, tensor in taps.items()} == net.taps
    assert all(not module._forward_hooks for module in net.modules()), "the user's net is left as it was"


def test_parameters_before_a_tap():
    net = tapped(taps=("relu", "layer2.0", "layer3", "fc"))
    names = {id(parameter): name for name, parameter in net.net.named_parameters()}
    before = {tap: [names[id(parameter)] for parameter in net.parameters_before(tap)] for tap in net.taps}
    every = list(names.values())
    early = ("conv1", "bn1")
    assert before["relu"] == [name for name in every if name.startswith(early)]
    assert before["layer2.0"] == [name for name in every if name.startswith((*early, "layer1", "layer2.0."))]
    assert before["layer3"] == [name for name in every if name.startswith((*early, "layer1", "layer2", "layer3"))]
    assert before["fc"] == every


def test_parameters_before_do_not_depend_on_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.second, self.first = nn.Linear(4, 2), nn.Conv2d(5, 4, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.head(self.second(self.first(x)).mean((2, 3)))

    net = Tapped(Backwards(), {"a": "first", "b": "second"}, torch.zeros(1, 3, 4, 4))
    assert [tuple(p.shape) for p in net.parameters_before("a")] == [(5, 3, 1, 1), (5,)]
    assert [tuple(p.shape) for p in net.parameters_before("b")] == [(4, 5, 1, 1), (4,), (5, 3, 1, 1), (5,)]


def test_wrapping_changes_nothing():
    net = torchvision_net()
    before = state(net)
    for training in (True, False):
        wrapped = Tapped(net.train(training), {"layer1": "layer1"}, torch.randn(1, 3, 64, 64))
        assert wrapped.training == wrapped.net.layer4.training == training
    assert moved(net, before) == set() and all(parameter.grad is None for parameter in net.parameters())
    twin = copy.deepcopy(wrapped)
    assert set(twin.features(torch.randn(2, 3, 64, 64))[1]) == {"layer1"}, "a copy taps itself"
    frozen = Tapped(freeze(net), {"layer1": "layer1"}, torch.zeros(1, 3, 64, 64))
    assert not frozen.training and frozen.taps == wrapped.taps


def test_a_plain_sequential():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    wrapped = Tapped(net, {"hidden1": "2", "hidden2.pre": "3"}, torch.zeros(1, 3, 2, 2))
    assert wrapped.taps == {"hidden1": (7, 1), "hidden2.pre": (5, 1)}
    x = torch.randn(4, 3, 2, 2)
    logits, taps = wrapped.features(x)
    assert torch.equal(taps["hidden1"], net[:3](x)) and torch.equal(taps["hidden2.pre"], net[:4](x)) and torch.equal(logits, net(x))
    stopped, taps = wrapped.features(x, until=["hidden1"])
    assert stopped is None and list(taps) == ["hidden1"]
    assert len(wrapped.parameters_before("hidden1")) == 2 and len(wrapped.parameters_before("hidden2.pre")) == 4


@pytest.mark.parametrize("name, words", [
    ("layer9", "the network has no module 'layer9': choose one of conv1, bn1"),
    ("bn1", "the output of 'bn1' is overwritten by an in-place layer"),
    ("layer1.0.bn2", "the output of 'layer1.0.bn2' is overwritten by an in-place layer"),
    ("layer1.0.relu", "module 'layer1.0.relu' runs more than once"),
])  # fmt: skip
def test_modules_that_cannot_be_tapped(name, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Tapped(torchvision_net(), {"tap": name}, torch.zeros(1, 3, 64, 64))


def test_an_output_that_is_no_map():
    net = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"the output of '1' is neither a map \[B, C, H, W\] nor a vector"):
        Tapped(net, {"a": "1"}, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("build", [
    lambda s, t: methods.fitnets(s, t, hint="layer2", guided="layer2"),
    lambda s, t: methods.fsp(s, t, pairs=[("layer1", "layer2")]),
    lambda s, t: methods.attention_transfer(s, t, taps=["layer1", "layer2"], task=KD),
    lambda s, t: methods.jacobian(s, t),
])  # fmt: skip
def test_methods_train_wrapped_nets(build):
    student, teacher = tapped(0, ("layer1", "layer2")), freeze(tapped(1, ("layer1", "layer2")))
    method, frozen = build(student, teacher), state(teacher)
    for stage in method.stages:
        before = state(student)
        step(method, stage, *batch(32, 4))
        later = {key for key in before if key.startswith(("net.layer3", "net.layer4", "net.fc"))}
        assert moved(student, before) == (set(before) - later if stage.loss.until else set(before))
    assert moved(teacher, frozen) == set()
