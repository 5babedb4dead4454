"""Pseudo data: three ways to make unlabelled cases that resemble the training cases (Bucila et al. 2006, section 2).

A case is a row of values [V]: numbers, and for a nominal variable the index of its word (0, 1, ...). ``words`` [V]: number of
words of each variable, 0 if it is numeric. No value may be missing. Labels are not used.
"""

from collections.abc import Sequence

import numpy as np


def random(values: np.ndarray, cases: int, rng: np.random.Generator) -> np.ndarray:
    """RANDOM (section 2.1): each value is drawn independently from the training values of its variable.

    values [n, V] -> [cases, V]: each variable keeps its distribution, and all dependence between variables is lost.
    """
    return np.stack([column[rng.integers(len(column), size=cases)] for column in values.T], 1)


def munge(values: np.ndarray, words: Sequence[int], cases: int, rng: np.random.Generator, p: float, s: float) -> np.ndarray:
    """MUNGE (section 2.3, algorithm 1).

        repeat: T' <- T; for each e of T': e' <- the closest other case in the current T'; for each variable a,
            number:  with probability p   e_a <- N(e'_a, sd), e'_a <- N(e_a, sd),  sd = |e_a - e'_a| / s  (old values)
            nominal: with probability p   e_a <-> e'_a
        D <- D + T'

    values: training cases T [n, V], n >= 2; p: probability; s: local variance. Distance: Euclidean over the numbers, each scaled
    to [0, 1] over T, plus the number of nominal variables that differ. Returns the first ``cases`` of D, [cases, V].

    A case may be changed twice in a pass, as itself and as another's neighbour: a pass is sequential. Neighbours are found from
    one product of T' with the case; if rounding could decide between candidates, their distances are recomputed exactly.
    """
    nominal = np.array(words) > 0
    low, high = values[:, ~nominal].min(0), values[:, ~nominal].max(0)
    width = np.where(high > low, high - low, 1.0)
    start, names = (values[:, ~nominal] - low) / width, values[:, nominal].T.astype(np.int16)
    n, made = len(values), []
    for _ in range(-(-cases // n)):
        t, w = start.copy(), names.copy()  # numbers [n, numbers], words [nominal, n], so that a variable's words are contiguous
        squares = np.einsum("ij,ij->i", t, t)
        moved, swapped = rng.random(t.shape) < p, rng.random((n, len(w))) < p
        noise = rng.standard_normal((2, *t.shape))
        for e in range(n):
            apart = np.sqrt(np.maximum(squares - 2 * (t @ t[e]) + squares[e], 0)) + (w != w[:, e : e + 1]).sum(0)
            apart[e] = np.inf
            other = int(apart.argmin())
            near = np.flatnonzero(apart <= apart[other] + ROUNDING)
            if len(near) > 1:
                exact = np.sqrt(((t[near] - t[e]) ** 2).sum(1)) + (w[:, near] != w[:, e : e + 1]).sum(0)
                other = int(near[exact.argmin()])
            old, old_other, move = t[e].copy(), t[other].copy(), moved[e]
            sd = np.abs(old - old_other) / s
            t[e, move] = (old_other + sd * noise[0, e])[move]
            t[other, move] = (old + sd * noise[1, e])[move]
            squares[e], squares[other] = t[e] @ t[e], t[other] @ t[other]
            swap = swapped[e]
            w[swap, e], w[swap, other] = w[swap, other], w[swap, e]
        done = np.empty_like(values, dtype=np.float64)
        done[:, ~nominal], done[:, nominal] = t * width + low, w.T
        made.append(done)
    return np.concatenate(made)[:cases]


# The square root of a difference of squares has an error of up to about the square root of the machine precision.
ROUNDING = 1e-6


class NaiveBayesMixture:
    """NBE (section 2.2; Lowd & Domingos 2005): a mixture of naive Bayes distributions, with independent variables in each
    component, fitted by EM.

        P(x) = sum_c P(c) prod_a P(x_a | c),  x_a | c: a normal distribution, or a table of words

    The number of components doubles as long as the log-likelihood of a held-out tenth of the cases increases; a component with
    less than one case is dropped. Then the mixture is refitted to all cases.

    values [n, V] and words: as in the module. Attributes: weights [C], means and deviations [C, numbers], tables: [C, words] for
    each nominal variable.
    """

    STEPS, ENOUGH = 50, 1e-4  # most EM steps, and the relative gain of the likelihood below which EM ends

    def __init__(self, values: np.ndarray, words: Sequence[int], rng: np.random.Generator):
        self.words = np.array(words)
        # a normal distribution fitted to one value has no width: use a fraction of the variable's
        numbers = values[:, self.words == 0]
        self.narrowest = np.maximum(0.01 * numbers.std(0), 1e-9)
        held = rng.permutation(len(values))
        held, rest = held[: len(values) // 10], held[len(values) // 10 :]
        components, best, count = 1, -np.inf, 1
        while components <= len(rest) // 2:
            self._fit(values[rest], components, rng)
            likelihood = self._logs(values[held])[1].mean()
            if likelihood <= best:
                break
            best, count = likelihood, components
            components *= 2
        self._fit(values, count, rng)

    def sample(self, cases: int, rng: np.random.Generator) -> np.ndarray:
        """Draw new cases, [cases, V]."""
        component = rng.choice(len(self.weights), size=cases, p=self.weights)
        made = np.empty((cases, len(self.words)))
        made[:, self.words == 0] = rng.normal(self.means[component], self.deviations[component])
        for variable, table in zip(np.flatnonzero(self.words), self.tables, strict=True):
            made[:, variable] = (rng.random((cases, 1)) > table.cumsum(1)[component]).sum(1).clip(max=table.shape[1] - 1)
        return made

    def _fit(self, values: np.ndarray, components: int, rng: np.random.Generator) -> None:
        n = len(values)
        share = np.zeros((n, components))
        # each case starts in the component of the closest of C randomly drawn cases
        seeds = values[rng.choice(n, components, replace=False)]
        share[np.arange(n), self._closest(values, seeds)] = 1
        before = -np.inf
        for _ in range(self.STEPS):
            self._maximise(values, share)
            share, likelihood = self._logs(values)
            if likelihood.mean() - before < self.ENOUGH * abs(before):
                break
            before = likelihood.mean()

    def _closest(self, values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        scale = np.where(self.words == 0, np.maximum(values.std(0), 1e-9), 1)
        apart = np.zeros((len(values), len(seeds)))
        for a, count in enumerate(self.words):
            difference = values[:, a : a + 1] - seeds[:, a]
            apart += difference != 0 if count else (difference / scale[a]) ** 2
        return apart.argmin(1)

    def _maximise(self, values: np.ndarray, share: np.ndarray) -> None:
        held = share.sum(0)
        share, held = share[:, held >= 1], held[held >= 1]
        self.weights = held / held.sum()
        numbers = values[:, self.words == 0]
        self.means = share.T @ numbers / held[:, None]
        spread = share.T @ numbers**2 / held[:, None] - self.means**2
        self.deviations = np.maximum(np.sqrt(np.maximum(spread, 0)), self.narrowest)
        # one more case of each word (Laplace smoothing)
        self.tables = [
            (share.T @ (values[:, [a]] == np.arange(self.words[a])) + 1) / (held[:, None] + self.words[a])
            for a in np.flatnonzero(self.words)
        ]

    def _logs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(responsibility [n, C] of each component for each case, log-likelihood [n])."""
        logs = np.tile(np.log(self.weights), (len(values), 1))
        numbers, precision = values[:, self.words == 0], self.deviations**-2.0
        logs -= 0.5 * (numbers**2 @ precision.T - 2 * numbers @ (self.means * precision).T + (self.means**2 * precision).sum(1))
        logs -= np.log(self.deviations * np.sqrt(2 * np.pi)).sum(1)
        for variable, table in zip(np.flatnonzero(self.words), self.tables, strict=True):
            logs += np.log(table.T[values[:, variable].astype(int)])
        top = logs.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(logs - top).sum(1))
        return np.exp(logs - total[:, None]), total
