"""One row for each loss, method and family of networks: the tests of all of them take their cases from here.

The examples of docs/adding_a_method.md and docs/adding_a_network.md stand here, too, each by the row that it shows: their code runs as
if it stood in the modules that the documents name.
"""

import importlib
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from kdcore import losses, methods
from kdcore.methods import Tapped, freeze, soft_targets
from kdcore.models import create

LABELS = torch.tensor([1, 0, 2, 1])
LOGITS, MAPS = (4, 3), (4, 4, 6, 8)  # of four cases


class Loss(NamedTuple):
    """A loss of a student and a teacher, in the tests of all losses."""

    call: Callable  # (student, teacher, **options) -> loss
    shape: tuple[int, ...]  # of what it takes: LOGITS, MAPS or another shape of four cases
    cases: bool = True  # has a value for each case: reduction="none"
    gradient: bool = True
    misfits: Callable = lambda teacher: [teacher[..., :2]]  # teachers that it refuses, beside those of another batch


def sections(features):
    """A map and the same at half the size, with half the channels: the two ends of a section for FSP."""
    return [(features, features[:, ::2, ::2, ::2])]


def draws_like(teacher, seed=0):
    return torch.rand(teacher.shape, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "kd": Loss(lambda s, t, **o: losses.kd(s, t, 4.0, **o), LOGITS),
    "fitnets_kd": Loss(lambda s, t, **o: losses.fitnets_kd(s, t, 3.0, **o), LOGITS),
    "fitnets_kd code": Loss(lambda s, t, **o: losses.fitnets_kd(s, t, 3.0, variant="code", **o), LOGITS),
    "logit_mimic": Loss(losses.logit_mimic, LOGITS),
    "ban": Loss(losses.ban, LOGITS),
    "cwtm": Loss(lambda s, t, **o: losses.cwtm(s, t, LABELS, **o), LOGITS),
    "dkpp": Loss(lambda s, t, **o: losses.dkpp(s, t, draws_like(t), **o), LOGITS),
    "hint": Loss(losses.hint, MAPS),
    "hint code": Loss(lambda s, t, **o: losses.hint(s, t, variant="code", **o), MAPS),
    "fsp": Loss(lambda s, t, **o: losses.fsp(sections(s), sections(t), **o), MAPS, misfits=lambda teacher: [teacher[:, :2]]),
    "attention_transfer": Loss(losses.attention_transfer, MAPS),
    "attention_transfer paper": Loss(lambda s, t, **o: losses.attention_transfer(s, t, variant="paper", **o), MAPS),
    "activation_boundary": Loss(losses.activation_boundary, MAPS),
    "activation_boundary_count": Loss(losses.activation_boundary_count, MAPS, gradient=False),
}

GROUPS = ["group1", "group2", "group3"]
PRE = [f"{group}.pre" for group in GROUPS]
SUMS = [f"{group}.sum" for group in GROUPS]
PAIRS = [(f"{group}.first", group) for group in GROUPS]
WEIGHTS = [0.25, 0.5, 1.0]  # of three taps
KD = soft_targets(3.0, 0.7)

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL_TAPS = {"a": "0", "b": "2", "c.pre": "4"}


class Taps(NamedTuple):
    """Names of taps, by what a method takes; all have equal sizes in student and teacher."""

    maps: list
    pre: list  # before a ReLU
    weights: list[float]  # of these
    pairs: list[tuple]  # (first, last layer) of a section
    hint: str
    guided: str


RESNETS = Taps(GROUPS, PRE[:2], [1.0, 2.0], PAIRS, "group2", "group2")
WIDE = RESNETS._replace(maps=SUMS, pairs=PAIRS[:2], hint="group2.sum", guided="group1")
SMALL = Taps(["b"], ["b"], [0.1], [("a", "b")], "b", "b")


def resnets():
    """Equal widths."""
    return create("resnet_8").reset(1), freeze(create("resnet_14").reset(2)), RESNETS


def wide():
    """16, 32, 64 channels against twice as many."""
    return create("wrn_10_1").reset(1), freeze(create("wrn_16_2").reset(2)), WIDE


def equal():
    """A student and a teacher of equal widths."""
    return resnets()[:2]


def wider():
    """A student and a teacher twice as wide."""
    return wide()[:2]


def small(width=4, classes=10, seed=0):
    """Without BatchNorm: its loss on a batch is the mean of those on its halves."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.Tanh(), nn.Conv2d(width, width, 3, 2, 1)]
    return nn.Sequential(*layers, nn.Sigmoid(), nn.Dropout(0.0), nn.Flatten(), nn.Linear(4 * width, classes))


def small_tapped(width=4, **options):
    return Tapped(small(width, **options), SMALL_TAPS, X[:1])


def small_teacher(**options):
    return freeze(small_tapped(6, seed=1, **options))


class Row(NamedTuple):
    """A method in the tests of all methods. Its name may have a comma: another form of a method, on the papers' networks alone."""

    build: Callable  # (student, teacher, taps: Taps, **options) -> Method
    hand: dict[str, Callable]  # by name of the stage: its loss by hand, from a ``Seen``; "train" may be left out where it is the task
    reads: str = ""  # "labels", "logits" (the teacher's): its last stage; "taps": any stage
    task: bool = False  # whether it has the option ``task``
    nets: Callable = resnets  # -> student, teacher, their taps
    side: int = 16  # of the images
    later: tuple[str, ...] = ()  # the modules that its first stage must not reach, by the beginnings of their names


class Seen(SimpleNamespace):
    """A batch, for a loss by hand: logits and taps (own) of the student, targets and taps (known) of the teacher, labels, x,
    the names of the taps, connectors, hard (cross-entropy with the labels) and task (the same, or that of the test)."""

    @classmethod
    def of(cls, method, student, teacher, taps, x, labels, task=None):
        x = x.clone().requires_grad_()
        (logits, own), (targets, known) = student.features(x), teacher.features(x)
        hard = F.cross_entropy(logits, labels)
        found = cls(logits=logits, own=own, targets=targets, known=known, x=x, labels=labels, taps=taps, hard=hard)
        found.connectors = method.connectors
        found.task = hard if task is None else 0.3 * hard + 0.7 * losses.kd(logits, targets, 3.0)
        return found


def hint_by_hand(b):
    """Half the mean over the 32 x 16 x 16 units that group 2 has for images of 32x32: the weight where none is given."""
    return losses.hint(b.connectors[0](b.own["group2"]), b.known["group2"]) / (32 * 16 * 16)


def fsp_by_hand(b, weights):
    total = 0
    for i, (weight, (first, last)) in enumerate(zip(weights, b.taps.pairs, strict=True)):
        flow = losses.fsp_matrix(b.connectors[2 * i](b.own[first]), b.connectors[2 * i + 1](b.own[last]))
        total += weight * (flow - losses.fsp_matrix(b.known[first], b.known[last])).square().sum((1, 2)).mean()
    return total


def boundary_by_hand(b):
    pairs = enumerate(zip(b.taps.weights, b.taps.pre, strict=True))
    return sum(weight * losses.activation_boundary(b.connectors[i](b.own[tap]), b.known[tap]) for i, (weight, tap) in pairs)


def dkpp_by_hand(b):
    with torch.random.fork_rng():  # the stage draws the same after us
        return losses.dkpp(b.logits, b.targets, torch.rand_like(b.targets, dtype=torch.float32))


def jacobian_by_hand(b):
    picked = [z[range(len(b.labels)), b.labels] for z in (b.logits, b.targets)]
    return b.task + losses.jacobian(*picked, b.x)


def fitnets(s, t, taps, **options):
    return methods.fitnets(s, t, hint=taps.hint, guided=taps.guided, **options)


def activation_boundary(s, t, taps, **options):
    return methods.activation_boundary(s, t, taps=taps.pre, weights=taps.weights, **options)


def of_logits(method):
    return lambda s, t, taps, **options: method(s, t, **options)


AFTER_GROUP_2 = ("groups.2.0.conv", "groups.2.0.norm2", "groups.2.0.shortcut", "norm", "linear")  # of a WideResNet
METHODS = {
    "plain": Row(of_logits(methods.plain), {}, "labels"),
    "kd": Row(of_logits(methods.kd), {"train": lambda b: 0.1 * b.hard + 0.9 * losses.kd(b.logits, b.targets, 4.0)}, "labels logits"),
    "logit_mimic": Row(of_logits(methods.logit_mimic), {"train": lambda b: losses.logit_mimic(b.logits, b.targets)}, "logits"),
    "ban": Row(of_logits(methods.ban), {"train": lambda b: losses.ban(b.logits, b.targets)}, "logits"),
    "ban, labels too": Row(
        lambda s, t, taps: methods.ban(s, t, label_weight=2.0), {"train": lambda b: losses.ban(b.logits, b.targets) + 2 * b.hard}
    ),
    "cwtm": Row(of_logits(methods.cwtm), {"train": lambda b: losses.cwtm(b.logits, b.targets, b.labels)}, "labels logits"),
    "dkpp": Row(of_logits(methods.dkpp), {"train": dkpp_by_hand}, "logits"),
    "jacobian": Row(of_logits(methods.jacobian), {"train": jacobian_by_hand}, "labels", task=True),
    "fitnets": Row(
        fitnets,
        {"hint": hint_by_hand, "kd": lambda b: b.hard + 4 * losses.fitnets_kd(b.logits, b.targets, 3.0)},
        "labels logits taps",
        later=("groups.2", "linear"),
    ),
    "fitnets, larger map": Row(
        lambda s, t, taps: fitnets(s, t, taps, weight=1.0, variant="code"),
        {
            "hint": lambda b: losses.hint(b.connectors[0](b.own["group1"]), b.known["group2.sum"], variant="code"),
            "kd": lambda b: b.hard + 4 * losses.fitnets_kd(b.logits, b.targets, 3.0, variant="code"),
        },
        nets=wide,
        side=32,  # the regressor's kernel belongs to maps of such images
        later=("groups.1.0.conv", "groups.1.0.norm2", "groups.1.0.shortcut", "groups.2", "norm", "linear"),
    ),
    "fsp": Row(
        lambda s, t, taps, **o: methods.fsp(s, t, pairs=taps.pairs, **o),
        {"fsp": lambda b: fsp_by_hand(b, [0.01] * 3)},
        "labels taps",
        task=True,
        later=("linear",),
    ),
    "fsp, two sections": Row(
        lambda s, t, taps, **o: methods.fsp(s, t, pairs=taps.pairs, weights=[1.0, 2.0], **o),
        {"fsp": lambda b: fsp_by_hand(b, [1.0, 2.0])},
        task=True,
        nets=wide,
        later=AFTER_GROUP_2,
    ),
    "attention_transfer": Row(
        lambda s, t, taps, **o: methods.attention_transfer(s, t, taps=taps.maps, **o),
        {"train": lambda b: b.task + 1000 * sum(losses.attention_transfer(b.own[tap], b.known[tap]) for tap in b.taps.maps)},
        "labels taps",
        task=True,
        nets=wide,
    ),
    "activation_boundary": Row(activation_boundary, {"boundary": boundary_by_hand}, "labels taps", task=True, later=("groups.2", "linear")),
    "activation_boundary, wider": Row(activation_boundary, {"boundary": boundary_by_hand}, task=True, nets=wide, later=AFTER_GROUP_2),
}


class Net(NamedTuple):
    """A network in the tests of all networks."""

    small: bool = False  # one of few layers, that has every tap of its family: it is run
    count: int | None = None  # its parameters for 10 classes, as published or recounted from the paper's layers


# 0.27M and 0.46M, 36.5M, 0.8M and so on are the published ones.
NETS = {
    "resnet_8": Net(count=75_290),
    "resnet_14": Net(small=True, count=172_506),
    "resnet_20": Net(count=269_722),
    "resnet_26": Net(count=366_938),
    "resnet_32": Net(count=464_154),
    "resnet_8x4": Net(small=True),
    "wrn_10_1": Net(small=True, count=77_850),
    "wrn_10_4": Net(count=1_198_810),
    "wrn_16_1": Net(count=175_066),
    "wrn_16_2": Net(small=True, count=691_674),
    "wrn_16_4": Net(count=2_748_890),
    "wrn_22_4": Net(count=4_298_970),
    "wrn_28_2": Net(count=1_467_610),
    "wrn_40_1": Net(count=563_930),
    "wrn_40_2": Net(count=2_243_546),
    "densenet_bc_16_6": Net(small=True),
    "densenet_bc_40_36": Net(count=1_542_682),
    "densenet_bc_100_12": Net(count=769_162),
    "resnet50": Net(small=True, count=23_520_842),
}

DOCS = Path(__file__).parents[1] / "docs"


def run(document):
    """Run a document's Python blocks in order: one that begins with the path of a module, "# kdcore/losses.py", in that module (a new
    one where there is none), one with "# tests/registry.py" here, the others in a namespace of their own, which is returned."""
    names = {"__name__": "__main__"}
    text = (DOCS / document).read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        code = compile("\n" * text.count("\n", 0, block.start(1)) + block[1], str(DOCS / document), "exec")
        home = re.match(r"# (kdcore/\S+|tests/registry)\.py\n", block[1])
        exec(code, vars(_module(home[1])) if home else names)  # noqa: S102
    return names


def _module(path):
    if path == "tests/registry":
        return sys.modules[__name__]
    name = path.removesuffix("/__init__").replace("/", ".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return sys.modules.setdefault(name, types.ModuleType(name))


EXAMPLES = {document: run(document) for document in ("adding_a_method.md", "adding_a_network.md", "figures.md")}

EVERY = [name for name in METHODS if "," not in name]
STAGED = [name for name, row in METHODS.items() if row.later]
OF_FEATURES = [name for name in EVERY if "taps" in METHODS[name].reads]
OF_LOGITS = [name for name in EVERY if name not in OF_FEATURES]


def every(name, student, teacher, **options):
    """A method of small networks."""
    return METHODS[name].build(student, teacher, SMALL, **options)
