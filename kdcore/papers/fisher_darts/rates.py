"""Learning rate and drop path of training and search."""

import math
from collections.abc import Mapping


def rates(config: Mapping, epoch: int) -> dict[str, float]:
    """Learning rate and drop path of an epoch. schedule: {factor, at} multiplies the rate by ``factor`` after each share of the
    epochs in ``at``; {cosine} anneals it along half a cosine to that value. Drop path grows in proportion to the epoch."""
    share, schedule = epoch / config["epochs"], config["schedule"]
    if "cosine" in schedule:
        lr = schedule["cosine"] + (config["lr"] - schedule["cosine"]) * (1 + math.cos(math.pi * share)) / 2
    else:
        lr = config["lr"] * schedule["factor"] ** sum(share >= at for at in schedule["at"])
    return {"lr": lr, "drop_path": config["drop_path"] * share}
