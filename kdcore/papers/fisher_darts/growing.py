"""Growing a DARTS network cell by cell, in the order of Fisher information or of a baseline."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kdcore.models.darts import Darts, auxiliary_head
from kdcore.papers.fisher_darts import fisher

UNIFORM = ("first cell first", "last cell first")


def grow(
    way: str,
    start: Callable[[], Darts],
    losses: Callable[[Darts], Tensor] | None,
    *,
    target: int,
    generator: torch.Generator,
    variant: str = "code",
) -> tuple[list[int], dict[str, list[dict]]]:
    """The final groups of each cell, and the paths of growth by name, as returned by ``fisher.grow``.

    way: "fisher", "random" or "uniform", which grows in both orders and keeps the groups of the first. start: returns a new copy
    of the network to grow. losses: of a new batch, one per case [N]; None in a rehearsal, which grows to the same size uniformly,
    without data. target, variant, generator: as in ``fisher``. As in the authors' code, the size includes the auxiliary head, which
    the network does not have, and BatchNorm's statistics.
    """

    def grown(ranking: Callable[[Darts, dict], fisher.Ranking]) -> tuple[Darts, list[dict]]:
        net = start()
        cells = {f"cell {i}": cell for i, cell in enumerate(net.cells)}
        with torch.device("meta"):
            head = auxiliary_head(net.taps[f"cell{net.head_at}"].channels, net.linear.out_features)
        size = lambda: sum(tensor.numel() for part in (net, head) for tensor in part.state_dict().values())  # noqa: E731
        return net, fisher.grow(cells, ranking(net, cells), size, target, generator)

    if way == "fisher" and losses is not None:
        net, path = grown(lambda net, cells: fisher.by_information(partial(losses, net), cells, variant=variant))
    elif way == "random":
        net, path = grown(lambda net, cells: fisher.at_random(list(cells), generator))
    else:
        net, path = grown(lambda net, cells: fisher.uniform(list(cells)))
    if way != "uniform":
        return net.groups, {way: path}
    _, other = grown(lambda net, cells: fisher.uniform(list(cells)[::-1]))
    return net.groups, dict(zip(UNIFORM, (path, other), strict=True))
