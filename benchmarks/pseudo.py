"""Both sides of the MUNGE benchmark: the algorithm as public ports write it, and ours. Cases per second, from 4,000 cases."""

import math
import random
import time

import numpy as np

from kdcore.papers.model_compression import munge

TRAIN, VARIABLES, P, S = 4000, 16, 0.2, 5.0  # the size of LETTER


def _cases(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (TRAIN, VARIABLES)).astype(float)


class PeerMunge:
    """A loop over cases around a loop over candidates, as in the ports. ``request``: our side's cases, of which this runs 1 in 500."""

    def __init__(self, seed: int, worker: int):
        self.values = (_cases(seed) / 15).tolist()
        self.random = random.Random(seed)

    def warm_up(self) -> None:
        self.run(1)

    def run(self, request: int) -> tuple[float, float]:
        start, t, count = time.perf_counter(), [list(row) for row in self.values], max(int(request) // 500, 1)
        for e in range(count):
            best, closest = math.inf, -1
            for other in range(TRAIN):
                if other != e:
                    apart = sum((a - b) ** 2 for a, b in zip(t[e], t[other], strict=True))
                    if apart < best:
                        best, closest = apart, other
            for a in range(VARIABLES):
                if self.random.random() < P:
                    mine, its = t[e][a], t[closest][a]
                    t[e][a], t[closest][a] = self.random.gauss(its, abs(mine - its) / S), self.random.gauss(mine, abs(mine - its) / S)
        return count, time.perf_counter() - start

    def rest(self) -> None:
        pass


class EngineMunge:
    """``munge.munge``. ``request``: the number of cases."""

    def __init__(self, seed: int, worker: int):
        self.values, self.rng = _cases(seed), np.random.default_rng(seed)

    def warm_up(self) -> None:
        munge.munge(self.values[:100], [0] * VARIABLES, 100, self.rng, P, S)

    def run(self, request: int) -> tuple[float, float]:
        start = time.perf_counter()
        made = munge.munge(self.values, [0] * VARIABLES, int(request), self.rng, P, S)
        return len(made), time.perf_counter() - start

    def rest(self) -> None:
        pass
