"""Pairs of a student's and a teacher's tap, and the modules that join two of different shape."""

from collections.abc import Sequence

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kdcore import losses
from kdcore.models.network import Tap
from kdcore.models.tapped import STAGE_LOSS
from kdcore.objective import WITHOUT_GRADIENT
from kdcore.teacher import check_module, tapped


def as_list(taps: Sequence, what: str) -> list:
    if isinstance(taps, str) or not isinstance(taps, Sequence) or not taps:
        raise ValueError(f"{what} must be a list with at least one entry, not {taps!r}")
    return list(taps)


def as_pair(pair: Sequence, what: str) -> Sequence:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{what} has an entry that is not a pair: {pair!r}")
    return pair


def tap_names(tap: str | tuple[str, str]) -> tuple[str, str]:
    """The names (the student's, the teacher's) of a tap given as one name or two."""
    return (tap, tap) if isinstance(tap, str) else tuple(as_pair(tap, "taps"))


def both_names(names: tuple[str, str]) -> str:
    mine, theirs = names
    return f"tap '{mine}'" if mine == theirs else f"taps '{mine}' and '{theirs}'"


def refuse_repeats(entries: list, what: str) -> None:
    if len(set(entries)) < len(entries):
        raise ValueError(f"{what} has an entry twice: give it a larger weight if it is to count more")


def checked_weights(weights: Sequence[float], count: int, what: str) -> list[float]:
    if not isinstance(weights, Sequence) or len(weights) != count:
        given = len(weights) if isinstance(weights, Sequence) else repr(weights)
        raise ValueError(f"give a list with one weight per {what}: {given} for {count} {what}s")
    for weight in weights:
        losses.check_number("a weight", weight)
    return list(weights)


def find_taps(student: nn.Module, teacher: nn.Module, names: tuple[str, str]) -> list[Tap]:
    """The student's tap and the teacher's. Raises ValueError for a network without taps, and for an unknown tap."""
    taps = []
    for net, whose, name in ((student, "student", names[0]), (teacher, "teacher", names[1])):
        if net is None and whose == "teacher":
            raise ValueError("this method reads the teacher's features: give it a teacher")
        check_module(net, whose)
        if not tapped(net):
            if isinstance(net, DataParallel | DistributedDataParallel):
                raise ValueError(f"{type(net).__name__} hides the taps of the {whose}: {STAGE_LOSS}")
            raise ValueError(f"the {whose} ({type(net).__name__}) has no taps: wrap it in Tapped({whose}, {{tap: module}}, example)")
        if name not in net.taps:
            raise ValueError(f"the {whose} has no tap '{name}': choose one of {', '.join(net.taps)}")
        taps.append(net.taps[name])
    return taps


def shape_of(tap: Tap) -> str:
    return " x ".join(map(str, tap.shape))


def parameters_before(student: nn.Module, taps: Sequence[str]) -> list[nn.Parameter]:
    """The trainable parameters that any of the taps depends on, in the order of the network."""
    if not hasattr(student, "parameters_before"):
        raise ValueError(f"the student ({type(student).__name__}) cannot say what its taps depend on: give it parameters_before(tap)")
    wanted = {id(parameter) for tap in taps for parameter in student.parameters_before(tap) if parameter.requires_grad}
    return [parameter for parameter in student.parameters() if id(parameter) in wanted]


def check_reached(student: nn.Module, tap: str) -> None:
    """Raises ValueError if no trainable parameter of the student lies before the tap, where that is known without running it."""
    if hasattr(student, "parameters_before") and not parameters_before(student, [tap]):
        raise ValueError(f"no gradient of the student reaches tap '{tap}': {WITHOUT_GRADIENT}")


def is_frozen_before(student: nn.Module, tap: str) -> bool:
    parameters = student.parameters_before(tap)
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def placed_like(connector: nn.Module, student: nn.Module) -> nn.Module:
    """Move a connector to the student's device and dtype. It was drawn on the CPU, so its weights do not depend on the device."""
    like = next((parameter for parameter in student.parameters() if parameter.is_floating_point()), None)
    return connector if like is None else connector.to(like.device, like.dtype)


def make_regressor(own: Tap, target: Tap, own_name: str, target_name: str) -> nn.Module:
    if own.shape == target.shape:
        return nn.Identity()
    if len(own.shape) != len(target.shape) or (len(own.shape) == 2 and own.size != target.size):
        raise ValueError(
            f"no default regressor leads from the {own_name} ({shape_of(own)}) to the {target_name} ({shape_of(target)}): give regressor="
        )
    if len(own.shape) == 3:
        kernel = [mine - theirs + 1 for mine, theirs in zip(own.shape[1:], target.shape[1:], strict=True)]
        if min(kernel) < 1:
            raise ValueError(
                f"the {own_name} ({shape_of(own)}) is smaller than the {target_name} ({shape_of(target)}): choose a larger map"
            )
        layer = nn.Conv2d(own.channels, target.channels, kernel)
    else:
        layer = nn.Linear(own.channels, target.channels)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer


def make_connector(own: Tap, target: Tap, *, normalised: bool) -> nn.Module:
    if own.channels == target.channels:
        return nn.Identity()
    if len(own.shape) == 1:
        layer, norm = nn.Linear(own.channels, target.channels, bias=False), nn.BatchNorm1d
    else:
        layer, norm = nn.Conv2d(own.channels, target.channels, 1, bias=False), nn.BatchNorm2d
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return nn.Sequential(layer, norm(target.channels)) if normalised else layer
