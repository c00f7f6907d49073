"""Rules that select rows by their distances: Krum and its descendants, the subset of least diameter, nearest rows.

- Krum, Multi-Krum: Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017 (arXiv 1703.02757).
- Bulyan: El Mhamdi, Guerraoui, Rouault, ICML 2018 (arXiv 1802.07927).
- Minimum-diameter averaging: El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, PODC 2020; also called Brute.
- MoNNA: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, ICML 2023 (arXiv 2209.10931).
- AKSEL: Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault, OPODIS 2020.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.checks import one_of, whole
from fedsim.errors import ConfigError
from fedsim.robust.coordinates import by_coordinate, median, nearest
from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import RowStack
from fedsim.values import Vector

Neighbours = Literal["n-f-2", "n-f-1"]


@dataclass(frozen=True)
class Krum(RobustRule):
    """The row with the least sum of squared distances to its n - f - 2 nearest others (the paper's convention).

    Args:
        f: Byzantine rows; n >= 2 f + 3.
        neighbours: number of others; "n-f-1" is that of byzfl and of Flag Aggregator's code.
        squared: sum squared distances; false in Flag Aggregator's code.
    """

    f: int = 1
    neighbours: Neighbours = "n-f-2"
    squared: bool = True
    needs = (2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "neighbours", ("n-f-2", "n-f-1"))

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        scores = scores_of(stack.squares, len(stack) - self.f - int(self.neighbours[-1]), self.squared)
        return stack.combine(equal(scores.argsort(stable=True)[:1], len(stack)))


@dataclass(frozen=True)
class MultiKrum(RobustRule):
    """Mean of the m rows with the least sums of squared distances to their n - f - 2 nearest others.

    Args:
        f: Byzantine rows; n >= 2 f + 3.
        m: number of rows in the mean; by default n - f - 2, the paper's most (byzfl: n - f).
        neighbours: number of others; "n-f-1" is that of byzfl and of Flag Aggregator's code.
        squared: sum squared distances; false in Flag Aggregator's code.
    """

    f: int = 1
    m: int | None = None
    neighbours: Neighbours = "n-f-2"
    squared: bool = True
    needs = (2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "neighbours", ("n-f-2", "n-f-1"))
        if self.m is not None:
            whole("MultiKrum.m", self.m, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        n = len(stack)
        m = n - self.f - 2 if self.m is None else self.m
        if m > n - self.f:
            raise ConfigError(f"MultiKrum.m is {m}; expected at most n - f = {n - self.f}, the number of honest rows")
        scores = scores_of(stack.squares, n - self.f - int(self.neighbours[-1]), self.squared)
        return stack.combine(equal(scores.argsort(stable=True)[:m], n))


@dataclass(frozen=True)
class Bulyan(RobustRule):
    """Coordinate-wise mean of the n - 4 f values nearest to the median of n - 2 f rows, which repeated Krum selects.

    Krum selects one row at a time among those that are left, with r - f - 2 neighbours of r rows, at least one.

    Args:
        f: Byzantine rows; n >= 4 f + 3.
    """

    f: int = 1
    needs = (4, 3)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        there, chosen = list(range(len(stack))), list[int]()
        while len(chosen) < len(stack) - 2 * self.f:
            scores = scores_of(stack.squares[there][:, there], max(1, len(there) - self.f - 2))
            chosen.append(there.pop(int(scores.argsort(stable=True)[0])))
        return by_coordinate(stack, lambda values: nearest(values, median(values), 2 * self.f), sorted(chosen))


@dataclass(frozen=True)
class MDA(RobustRule):
    """Minimum-diameter averaging: mean of the n - f rows whose largest distance is least; the first such subset.

    The subset is found exactly: a diameter is feasible if f rows are a vertex cover of the pairs further apart, which a
    search tree of depth f decides, and the least feasible one is found by bisection.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
    """

    f: int = 1
    needs = (2, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        squares, n = stack.squares, len(stack)
        diameters = torch.unique(squares)
        least = bisect_left(range(len(diameters)), True, key=lambda k: covers(squares > diameters[k], self.f))
        far = squares > diameters[least]
        chosen, out = list[int](), set[int]()
        for i in range(n):
            without = out | set(far[i].nonzero().flatten().tolist())
            if i in out or len(chosen) == n - self.f:
                continue
            if len(without) <= self.f and covers(remaining(far, without), self.f - len(without)):
                chosen.append(i)
                out = without
            else:
                out.add(i)
        return stack.combine(equal(torch.tensor(chosen), n))


@dataclass(frozen=True)
class MoNNA(RobustRule):
    """Mean of the n - f rows nearest to one's own: a rule for gossip, where every node has its own.

    Args:
        f: Byzantine rows, among a node and its neighbours; n >= 2 f + 1.
        own: row that a server trusts; leave it out in gossip.
    """

    f: int = 1
    own: int | None = None
    needs = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own is not None:
            whole("MoNNA.own", self.own, 0)

    @property
    def local(self) -> bool:  # type: ignore[override]
        """True unless a trusted row is given."""
        return self.own is None

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        own, n = self.own if at.own is None else at.own, len(stack)
        if own is None or own >= n:
            raise ConfigError(f"MoNNA.own is {own}; expected the number of a trusted row below {n}")
        squares = stack.squares[own].clone()
        squares[own] = -1.0
        return stack.combine(equal(squares.argsort(stable=True)[: n - self.f], n))


@dataclass(frozen=True)
class AKSEL(RobustRule):
    """Mean of the rows nearest to the coordinate-wise median.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
        keep: number of rows in the mean: n - f, or the nearest half ("mid", its authors' default).
    """

    f: int = 1
    keep: Literal["n-f", "mid"] = "n-f"
    needs = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "keep", ("n-f", "mid"))

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        n = len(stack)
        far = stack.distances(by_coordinate(stack, median))
        count = n - self.f if self.keep == "n-f" else (n + 1) // 2
        return stack.combine(equal(far.argsort(stable=True)[:count], n))


def scores_of(squares: Tensor, count: int, squared: bool = True) -> Tensor:
    """Sum of the distances of every row to its ``count`` nearest others, ``[n]``."""
    among = squares if squared else squares.sqrt()
    others = among + torch.diag(torch.full((len(among),), torch.inf, dtype=among.dtype))
    return others.sort(1).values[:, :count].sum(1)


def equal(chosen: Tensor, n: int) -> Tensor:
    """Weights ``[n]`` of the mean of the rows ``chosen``."""
    w = torch.zeros(n, dtype=torch.float64)
    w[chosen] = 1 / len(chosen)
    return w


def remaining(edges: Tensor, without: Collection[int]) -> Tensor:
    """The graph, bool ``[n, n]``, without some of its vertices."""
    edges, gone = edges.clone(), list(without)
    edges[gone] = False
    edges[:, gone] = False
    return edges


def covers(edges: Tensor, most: int) -> bool:
    """Return whether ``most`` vertices can touch every edge of a graph, bool ``[n, n]`` and symmetric."""
    degrees = edges.sum(1)
    vertex = int(degrees.argmax())
    degree = int(degrees[vertex])
    if degree == 0:
        return True
    if degree * most < int(degrees.sum()) // 2:            # too many edges for so few vertices
        return False
    others = edges[vertex].nonzero().flatten().tolist()    # the vertex, or else all that it touches
    return any(
        len(taken) <= most and covers(remaining(edges, taken), most - len(taken)) for taken in ([vertex], others)
    )
