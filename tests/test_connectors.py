"""Connectors between taps: where they stand, their shape, type and device, for maps, tokens and vectors."""

import pytest
import torch
from refusals import refused
from registry import (
    LABELS,
    METHODS,
    OF_FEATURES,
    PAIRS,
    PRE,
    SMALL,
    SMALL_TAPS,
    WEIGHTS,
    X,
    equal,
    every,
    small,
    small_tapped,
    small_teacher,
    wider,
)  # fmt: skip
from steps import gradients, moved, state, step
from torch import nn
from torch.nn import functional as F

from kdcore import losses, methods
from kdcore.methods import Tapped, freeze
from kdcore.models import create


def shapes(method):
    return [tuple(connector.weight.shape) if isinstance(connector, nn.Conv2d) else type(connector) for connector in method.connectors]


def test_connectors_stand_where_widths_differ():
    assert shapes(methods.fsp(*equal(), pairs=PAIRS)) == [nn.Identity] * 6
    assert shapes(methods.activation_boundary(*equal(), taps=PRE, weights=WEIGHTS)) == [nn.Identity] * 3
    widths = [16, 16, 32, 32, 64, 64]
    assert shapes(methods.fsp(*wider(), pairs=PAIRS)) == [(2 * width, width, 1, 1) for width in widths]
    # the stems of all WRNs are equally wide
    assert shapes(methods.fsp(*wider(), pairs=[("stem", "group1")])) == [nn.Identity, (32, 16, 1, 1)]
    connectors = methods.activation_boundary(*wider(), taps=PRE, weights=WEIGHTS).connectors
    for (layer, norm), width in zip(connectors, (16, 32, 64), strict=True):
        assert layer.weight.shape == (2 * width, width, 1, 1) and layer.bias is None and norm.num_features == 2 * width
        assert layer.weight.std().item() == pytest.approx((2 / (2 * width)) ** 0.5, rel=0.15), "fan-out, as the authors have it"


def test_a_tap_of_two_pairs_has_one_connector():
    assert len(methods.fsp(*wider(), pairs=[("group1", "group2"), ("group2", "group3")]).connectors) == 3


def test_the_regressor():
    student, teacher = wider()
    for hint, guided, shape in (
        ("group2", "group1", (64, 16, 17, 17)),  # 32 -> 16 pixels
        ("group3", "group2", (128, 32, 9, 9)),
        ("group3", "group1", (128, 16, 25, 25)),
        ("group2", "group2", (64, 32, 1, 1)),
    ):
        method = methods.fitnets(student, teacher, hint=hint, guided=guided)
        assert shapes(method) == [shape] and method.connectors[0].bias is not None
    assert shapes(methods.fitnets(*equal(), hint="group2", guided="group2")) == [nn.Identity]
    own = nn.Conv2d(16, 64, 3, stride=2, padding=1)
    method = methods.fitnets(student, teacher, hint="group2", guided="group1", regressor=own)
    assert method.connectors[0] is own and all(any(p is q for q in method.stages[0].parameters) for p in own.parameters())


@pytest.mark.parametrize("build, words", [
    (lambda s, t: methods.fitnets(s, t, hint="group1", guided="group2"),
     r"student's 'group2' \(32 x 16 x 16\) is smaller than the teacher's 'group1' \(32 x 32 x 32\)"),
    (lambda s, t: methods.fitnets(s, t, hint="group9", guided="group2"), "the teacher has no tap 'group9': choose one of stem"),
    (lambda s, t: methods.fitnets(s, t, hint="group2", guided="middle"), "the student has no tap 'middle': choose one of stem"),
    (lambda s, t: methods.fsp(s, t, pairs=[("group1", "last")]), "the student has no tap 'last'"),
    (lambda s, t: methods.attention_transfer(s, t, taps=["layer1"]), "the student has no tap 'layer1'"),
    (lambda s, t: methods.activation_boundary(s, t, taps=["group1.before"], weights=[1]), "the student has no tap 'group1.before'"),
])  # fmt: skip
def test_impossible_pairs(build, words):
    with pytest.raises(ValueError, match=words):
        build(*wider())


def test_maps_of_different_sizes():
    shrinks = Tapped(nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.Flatten(), nn.Linear(384, 10)), {"group1": "0"}, torch.zeros(1, 3, 32, 32))
    teacher = freeze(create("resnet_8"))
    words = r"of tap 'group1' differ in size: student 6 x 8 x 8, teacher 16 x 32 x 32"
    with pytest.raises(ValueError, match=f"attention maps {words}"):
        methods.attention_transfer(shrinks, teacher, taps=["group1"])
    with pytest.raises(ValueError, match=f"activation boundaries {words}"):
        methods.activation_boundary(shrinks, teacher, taps=["group1"], weights=[1])


def connectors(build, student, teacher):
    return [tuple(p.shape) for p in build(student, teacher).connectors.parameters()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_connectors_are_of_the_students_type(name, dtype):
    student, teacher = (Tapped(small(width, seed=width).to(dtype), SMALL_TAPS, X[:1].to(dtype)) for width in (4, 6))
    method = every(name, student, freeze(teacher))
    assert {p.dtype for p in method.parameters()} == {dtype}
    for stage in method.stages:
        stage.loss(X.to(dtype), LABELS).backward()


@pytest.mark.parametrize("name", OF_FEATURES)
def test_connectors_are_on_the_students_device_and_drawn_alike_everywhere(name):
    x = torch.empty(1, 3, 8, 8, device="meta")
    student, teacher = (Tapped(small(width).to("meta"), SMALL_TAPS, x) for width in (4, 6))
    method = every(name, student, freeze(teacher))
    assert {p.device.type for p in method.parameters()} == {"meta"}
    own = nn.Conv2d(4, 6, 1)
    assert methods.fitnets(student, teacher, hint="b", guided="b", regressor=own).connectors[0].weight.is_meta
    states = []
    for dtype in (torch.float32, torch.float64):
        student, teacher = (Tapped(small(width).to(dtype), SMALL_TAPS, X[:1].to(dtype)) for width in (4, 6))
        torch.manual_seed(3)
        states.append(every(name, student, freeze(teacher)).connectors.state_dict())
    assert all(torch.equal(states[0][key].double(), states[1][key].double()) for key in states[0])


def oblong(width, kernel=3, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, kernel, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.LazyLinear(10))
    net(torch.zeros(1, 3, 8, 12))
    return net


def test_maps_that_are_not_square():
    x, labels = torch.randn(4, 3, 8, 12), LABELS
    student = Tapped(oblong(4), {"one": "0", "two": "2"}, x[:1])
    teacher = freeze(Tapped(oblong(6, seed=1), {"one": "0", "two": "2"}, x[:1]))
    assert student.taps["one"] == (4, (8, 12)) and student.taps["two"].shape == (4, 4, 6)
    assert connectors(lambda s, t: methods.fitnets(s, t, hint="two", guided="one"), student, teacher) == [(6, 4, 5, 7), (6,)]
    narrow = freeze(Tapped(oblong(6, kernel=(3, 5), seed=1).requires_grad_(False), {"one": "0"}, x[:1]))
    assert narrow.taps["one"].shape == (6, 8, 10)
    assert connectors(lambda s, t: methods.fitnets(s, t, hint="one", guided="one"), student, narrow)[0] == (6, 4, 1, 3)
    refused(r"differ in size: student 4 x 8 x 12, teacher 6 x 8 x 10; resize", methods.attention_transfer, student, narrow, taps=["one"])
    for build in (
        lambda s, t: methods.fitnets(s, t, hint="two", guided="one", weight=1e-3),
        lambda s, t: methods.fsp(s, t, pairs=[("one", "two")]),
        lambda s, t: methods.attention_transfer(s, t, taps=["one", "two"]),
        lambda s, t: methods.activation_boundary(s, t, taps=["one"], weights=[0.1]),
    ):
        method = build(student, teacher)
        for stage in method.stages:
            method.zero_grad()
            stage.loss(x, labels).backward()
            assert all(p.grad is not None for p in stage.parameters)


def test_taps_of_other_names():
    """The same losses and gradients as with equal names, in every method."""
    mine = Tapped(small(), {f"my {tap}": name for tap, name in SMALL_TAPS.items()}, X[:1])
    teacher = small_teacher()
    pair = {tap: (f"my {tap}", tap) for tap in SMALL_TAPS}
    others = SMALL._replace(maps=[pair["b"]], pre=[pair["b"]], pairs=[(pair["a"], pair["b"])], guided="my b")
    for name in OF_FEATURES:
        results = []
        for taps, student in ((SMALL, small_tapped()), (others, mine)):
            torch.manual_seed(4)
            method = METHODS[name].build(student, teacher, taps)
            results.append(gradients(method, method.stages[0], X, LABELS))
        assert all(torch.equal(p, q) for p, q in zip(*results, strict=True)), name
    # one layer of the student may learn from two of the teacher, each through a connector of its own
    method = methods.activation_boundary(mine, freeze(small_tapped(6)), taps=[("my b", "b")], weights=[1.0])
    assert len(method.connectors) == 1
    refused("the teacher has no tap 'my b'", methods.attention_transfer, mine, teacher, taps=["my b"])


def test_attention_between_maps_of_different_size():
    student, teacher = small_tapped(), small_teacher()
    refused(
        'differ in size: student 4 x 4 x 4, teacher 6 x 8 x 8; resize="pool"',
        methods.attention_transfer,
        student,
        teacher,
        taps=[("b", "a")],
    )
    method = methods.attention_transfer(student, teacher, taps=[("b", "a")], resize="pool", beta=10.0)
    own, known = student.features(X)[1]["b"], teacher.features(X)[1]["a"]
    energy = known.square().sum(1).unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1)  # windows of 2 x 2
    distance = (F.normalize(own.square().sum(1).flatten(1)) - F.normalize(energy)).square().mean()
    expected = losses.cross_entropy(student(X), LABELS) + 10 * distance
    assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)


class TinyViT(nn.Module):
    """4 patches and a class token."""

    def __init__(self, width, depth, seed=0, classes=10):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.start = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.start.expand(len(x), -1, -1), patches], 1))[:, 0])


def transformers(**options):
    student = Tapped(TinyViT(8, 1), {"block": "encoder.layers.0", "logits": "head", "embed": "embed"}, X[:1])
    taps = {"block": "encoder.layers.1", "logits": "head", "embed": "embed"}
    return student, freeze(Tapped(TinyViT(12, 2, seed=1, **options), taps, X[:1]))


def test_tokens_of_transformers():
    student, teacher = transformers()
    assert student.taps["block"].shape == (5, 8) and teacher.taps["block"] == (12, 5) and student.taps["logits"].shape == (10,)
    method = methods.fitnets(student, teacher, hint="block", guided="block", weight=1.0)
    (regressor,) = method.connectors
    own, known = student.features(X)[1]["block"], teacher.features(X)[1]["block"]
    expected = 0.5 * (known - own @ regressor.weight.T - regressor.bias).square().sum((1, 2)).mean()
    assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)
    before = state(student)
    step(method, method.stages[0], X, LABELS)
    assert moved(student, before) == {key for key in before if "head" not in key}, "the pass ends at the tap"

    for skip in (0, 1):
        student, teacher = transformers()
        method = methods.attention_transfer(student, teacher, taps=["block"], skip_tokens=skip)
        own, known = (F.normalize(net.features(X)[1]["block"][:, skip:].square().sum(2)) for net in (student, teacher))
        expected = losses.cross_entropy(student(X), LABELS) + 1000 * (own - known).square().mean()
        assert method.stages[0].loss(X, LABELS).item() == pytest.approx(expected.item(), rel=1e-4)
    refused("one position", methods.attention_transfer, student, teacher, taps=["block"], skip_tokens=4)
    refused("skip_tokens", methods.attention_transfer, student, teacher, taps=["block"], skip_tokens=-1)
    refused("FSP is defined for maps", methods.fsp, student, teacher, pairs=[("block", "block")])
    refused("not for the tokens", methods.activation_boundary, student, teacher, taps=["block"], weights=[1.0])
    refused("two maps or the tokens", methods.attention_transfer, student, teacher, taps=[("block", "embed")])
    refused("two maps or the tokens", methods.attention_transfer, student, teacher, taps=["logits"])
    refused("no default regressor leads", methods.fitnets, student, teacher, guided="block", hint="embed")
    refused("defined for maps", methods.fitnets, student, teacher, guided="block", hint="block", variant="code")
    longer = freeze(Tapped(TinyViT(12, 1), {"block": "encoder.layers.0"}, torch.zeros(1, 3, 12, 8)))
    refused("differ in their number of tokens", methods.attention_transfer, student, longer, taps=["block"])
    refused("no default regressor leads", methods.fitnets, student, longer, guided="block", hint="block")


def test_vectors_have_linear_connectors():
    student, teacher = transformers(classes=12)
    method = methods.fitnets(student, teacher, guided="logits", hint="logits", task=methods.hard_labels())
    assert [tuple(p.shape) for p in method.connectors.parameters()] == [(12, 10), (12,)]
    step(method, method.stages[0], X, LABELS)
    method = methods.activation_boundary(student, teacher, taps=["logits"], weights=[1.0], task=methods.hard_labels())
    ((layer, norm),) = method.connectors
    assert layer.weight.shape == (12, 10) and layer.bias is None and isinstance(norm, nn.BatchNorm1d)
    step(method, method.stages[0], X, LABELS)
    same = methods.fitnets(*transformers(), guided="logits", hint="logits")
    assert shapes(same) == [nn.Identity]
