"""Client sampling: a function of (seed, round) alone, so that all algorithms of a comparison see the same cohorts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim import seeds
from fedsim.checks import number, whole
from fedsim.errors import ConfigError, many

RANKED = 10_000
"""Number of clients up to which a cohort takes a draw for every client; above, the time depends on its size alone."""
SHARE = "a number above 0 (a cohort is not empty) and at most 1"


class Sampling(Protocol):
    """Rule that selects the cohort of a round."""

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """Ids of the clients that take part, sorted; at least one."""

    def expected(self, n: int) -> float:
        """Expected size of a cohort of ``n`` clients."""


@dataclass(frozen=True)
class FixedSize:
    """A cohort of fixed size, drawn uniformly without replacement.

    Up to 10,000 clients, it consists of those with the smallest random numbers; above, of the first places of a keyed
    permutation.

    Args:
        fraction: share of all clients, rounded to at least one client; by default 0.1, but 1 without a server and for a
            ``Problem``.
        size: number of clients; overrides ``fraction``.
    """

    fraction: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None:
            number("sampling.fraction", self.fraction, _is_share, f"{SHARE}; for a number of clients use size")
        if self.size is not None:
            whole("sampling.size", self.size, 1)

    def expected(self, n: int) -> float:
        """See ``Sampling``."""
        if self.size is not None and self.size > n:
            clients = many(n, "client")
            raise ConfigError(f"sampling.size is {self.size}, and the run has {clients}; expected at most {n}")
        share = 0.1 if self.fraction is None else self.fraction
        return float(self.size or max(1, round(share * n)))

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """See ``Sampling``."""
        size = int(self.expected(n))
        if size == n:
            return np.arange(n)
        if n > RANKED:
            return np.sort(seeds.places(seed, "cohort", round, n, size))
        return np.sort(np.argsort(seeds.bits(seed, "cohort", round, np.arange(n)))[:size])


@dataclass(frozen=True)
class Bernoulli:
    """Independent participation of each client with equal probability, conditional on a cohort that is not empty.

    An empty draw is replaced by one from this conditional distribution: the smallest id by inversion, then the others.
    With more than 10,000 clients, the smallest id is always drawn in this way, and then the gaps between the others.

    Args:
        p: probability that a client takes part.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        number("sampling.p", self.p, _is_share, SHARE)

    def expected(self, n: int) -> float:
        """See ``Sampling``; conditional on a cohort that is not empty."""
        return self.p * n / -math.expm1(n * math.log1p(-self.p)) if self.p < 1 else n

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """See ``Sampling``."""
        if self.p == 1:
            return np.arange(n)
        if n > RANKED:
            return self._skipping(seed, round, n)
        chosen = np.flatnonzero(seeds.uniform(seed, "cohort", round, np.arange(n), 0) < self.p)
        if len(chosen):
            return chosen
        u = seeds.uniform(seed, "cohort", round, np.arange(n), 1)
        first = self._smallest(u[0], n)
        return np.append(first, first + 1 + np.flatnonzero(u[first + 1 :] < self.p))

    def _smallest(self, u: float, n: int) -> int:
        """Smallest id of a cohort that is not empty, from a uniform draw."""
        empty = n * math.log1p(-self.p)                    # log-probability of an empty cohort
        return min(n - 1, int(math.log1p(u * math.expm1(empty)) / math.log1p(-self.p)))

    def _skipping(self, seed: int, round: int, n: int) -> np.ndarray:
        """Cohort by its smallest id and geometric gaps, drawn as many at a time as are expected."""
        parts = [np.array([self._smallest(float(seeds.uniform(seed, "cohort", round, 0)), n)])]
        size, drawn = int(self.p * n + 4 * (self.p * n) ** 0.5) + 8, 1
        while (last := int(parts[-1][-1])) < n:
            u = seeds.uniform(seed, "cohort", round, np.arange(drawn, drawn + size))
            gaps = np.minimum(np.log1p(-u) / math.log1p(-self.p), n).astype(np.int64)
            parts.append(last + np.cumsum(gaps + 1))
            drawn += size
        ids = np.concatenate(parts)
        return ids[: np.searchsorted(ids, n)]


def _is_share(value: float) -> bool:
    return 0 < value <= 1

