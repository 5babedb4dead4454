"""Growing a teacher from its student where Fisher information is largest (Whettam 2020, algorithm 1).

    cells = {f"cell{i}": cell for i, cell in enumerate(net.cells)}
    path = grow(cells, by_information(losses_of_a_batch, cells), size, target, generator)

The functions work on modules of any network, as long as these contain grouped convolutions.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcore.models.network import redraw

Ranking = Callable[[Mapping[str, int]], tuple[list[str], dict[str, float]]]


def channel_information(activation: Tensor, gradient: Tensor, *, variant: str = "code") -> Tensor:
    """Fisher information of each channel of a map (Theis et al. 2018, as used in Whettam 2020, eq. 3).

        Delta_c = 1/(2N) * sum_n g_nc^2
        code:   g_nc = sum_yx A_ncyx * dL_n/dA_ncyx     [V: the authors' program, after pytorch-prunes]
        paper:  g_nc = sum_yx dL_n/dA_ncyx              [V: slides, "the gradient for the channel"; the sum is inferred, I]

    activation: A [N, C, H, W]; gradient: dL_n/dA of each case's own loss, of the same shape. Returns [C]. Variant "code"
    estimates the increase of the loss if the channel were removed.
    Raises ValueError for other shapes or an unknown variant.
    """
    if activation.dim() != 4 or activation.shape != gradient.shape:
        raise ValueError(
            f"activation {tuple(activation.shape)} and gradient {tuple(gradient.shape)} are not maps [N, C, H, W] of one shape"
        )
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', not {variant!r}")
    product = activation * gradient if variant == "code" else gradient
    return product.sum((2, 3)).square().mean(0) / 2


def information(losses: Callable[[], Tensor], modules: Mapping[str, nn.Module], *, variant: str = "code") -> dict[str, Tensor]:
    """Fisher information of every channel of the modules' outputs, {name: [C]}.

    losses: runs the network on a batch and returns each case's own loss, [N]; their sum is differentiated, so that the batch
    size does not scale the gradients. (BatchNorm in train mode mixes the cases of a batch.) modules: each must run exactly
    once and return a map. Parameters get no gradient.
    Raises ValueError for a module that does not run, or runs twice.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if name in outputs:
                raise ValueError(f"module '{name}' runs more than once for a batch: give modules that run once")
            outputs[name] = output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            loss = losses().sum()
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in modules if name not in outputs]:
        raise ValueError(f"module '{missing[0]}' does not run for a batch: give modules that run once")
    gradients = torch.autograd.grad(loss, [outputs[name] for name in modules])
    return {
        name: channel_information(outputs[name].detach(), gradient, variant=variant)
        for name, gradient in zip(modules, gradients, strict=True)
    }


def grouped(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a module with more than one group, which can grow."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]


def halve_groups(module: nn.Module, generator: torch.Generator) -> bool:
    """Halve the groups of every grouped convolution in ``module``, in place; return whether there was any.

    Kernels then see twice as many channels, and are reinitialised; the number of channels stays the same. An odd number of groups
    becomes its largest divisor that is at most half of it. An optimiser with the old weights must be replaced.
    """
    layers = grouped(module)
    for layer in layers:
        layer.groups = max(d for d in range(1, layer.groups // 2 + 1) if layer.groups % d == 0)
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        layer.weight = nn.Parameter(layer.weight.new_empty(shape))
        redraw(layer, generator)
    return bool(layers)


def uniform(names: Sequence[str]) -> Ranking:
    """A ranking that cycles through the modules in the order of ``names``."""

    def rank(halvings: Mapping[str, int]) -> tuple[list[str], dict[str, float]]:
        return sorted(names, key=lambda name: halvings[name]), {}

    return rank


def at_random(names: Sequence[str], generator: torch.Generator) -> Ranking:
    """A ranking in a new random order at each step, the baseline for the ranking by information."""

    def rank(halvings: Mapping[str, int]) -> tuple[list[str], dict[str, float]]:
        return [names[i] for i in torch.randperm(len(names), generator=generator)], {}

    return rank


def by_information(losses: Callable[[], Tensor], modules: Mapping[str, nn.Module], *, variant: str = "code") -> Ranking:
    """A ranking by Fisher information, summed over a module's channels and recomputed at each step.

    losses: as in ``information``, with a new batch at each call.
    """

    def rank(halvings: Mapping[str, int]) -> tuple[list[str], dict[str, float]]:
        values = {name: channels.sum().item() for name, channels in information(losses, modules, variant=variant).items()}
        return sorted(values, key=lambda name: -values[name]), values

    return rank


def grow(
    modules: Mapping[str, nn.Module], ranking: Ranking, size: Callable[[], int], target: int, generator: torch.Generator
) -> list[dict]:
    """Repeatedly halve the groups of the first-ranked module that has any, until ``size()`` exceeds ``target``.

    ranking: number of halvings of each module so far -> names in order, and the values by which they were ranked. generator: for
    the new weights. Returns the path, one dict per step: module, size (after the step), groups ({module: largest number of
    groups}), information ({module: value}, empty if the ranking uses none).
    Raises ValueError if nothing is left to grow before the target is reached.
    """
    halvings, path = dict.fromkeys(modules, 0), []
    while size() <= target:
        names, values = ranking(halvings)
        name = next((name for name in names if halve_groups(modules[name], generator)), None)
        if name is None:
            raise ValueError(f"all groups are 1 at a size of {size():,}: choose a smaller target than {target:,}")
        halvings[name] += 1
        groups = {key: max((layer.groups for layer in grouped(module)), default=1) for key, module in modules.items()}
        path.append({"module": name, "size": size(), "groups": groups, "information": values})
    return path
