"""Means, and centres that bound the influence of a row: geometric median and clipping around a centre.

- Geometric median: Pillutla, Kakade, Harchaoui, IEEE TSP 2022 (RFA, arXiv 1912.13445).
- Centered clipping: Karimireddy, He, Jaggi, ICML 2021 (arXiv 2012.10333).
- Self-centred clipping, for gossip: He, Karimireddy, Jaggi, 2022 (ClippedGossip, arXiv 2202.01545).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.checks import at_least_one, positive
from fedsim.errors import ConfigError
from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import RowStack
from fedsim.values import Vector


@dataclass(frozen=True)
class Mean(RobustRule):
    """Weighted mean: tolerates no Byzantine row."""

    robust = False
    weighted = True

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return stack.mean(weights)


@dataclass(frozen=True)
class NormMean(RobustRule):
    """Weighted mean of the rows divided by their norms: long rows gain no influence, and the length is lost."""

    weighted = True

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return stack.combine(torch.where(stack.norms > 0, weights / stack.norms, 0.0))


@dataclass(frozen=True)
class GeometricMedian(RobustRule):
    """Geometric median by the smoothed Weiszfeld algorithm from z = 0.

    ``z <- sum_i b_i x_i / sum_i b_i`` with ``b_i = w_i / max(nu, ||x_i - z||)``. The defaults are those of published
    code; with many iterations and a small nu the result is the geometric median itself.

    Args:
        iterations: number of steps T.
        nu: smallest distance that counts, in units of the rows.
    """

    iterations: int = 3
    nu: float = 0.1
    weighted = True

    def __post_init__(self) -> None:
        at_least_one(self, "iterations")
        positive(self, "nu")

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        g, z = stack.gram, torch.zeros(len(stack), dtype=torch.float64)   # z: its weights of the rows
        for _ in range(self.iterations):
            gz = g @ z
            distances = (g.diagonal() - 2 * gz + z @ gz).clamp(min=0).sqrt()
            b = weights / distances.clamp(min=self.nu)
            z = b / b.sum()
        return stack.combine(z)


@dataclass(frozen=True)
class CenteredClipping(RobustRule):
    """``v <- v + sum_i w_i (x_i - v) min(1, tau / ||x_i - v||)``, from the v of the previous round; at first from 0.

    Args:
        tau: clipping radius, in units of the rows.
        iterations: number of steps L in a round.
    """

    tau: float = 10.0
    iterations: int = 1
    weighted = True
    remembers = True

    def __post_init__(self) -> None:
        positive(self, "tau")
        at_least_one(self, "iterations")

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        v = at.last
        for _ in range(self.iterations):
            distances = stack.norms if v is None else stack.distances(v)
            w = weights * (self.tau / distances).clamp(max=1.0)
            step = stack.combine(w)
            v = step if v is None else step.add_(v, alpha=float(1 - w.sum()))
        assert v is not None
        return v


@dataclass(frozen=True)
class SelfCenteredClipping(RobustRule):
    """Gossip that clips what each neighbour adds: ``x_i + sum_j w_ij (x_j - x_i) min(1, tau / ||x_j - x_i||)``.

    Args:
        tau: clipping radius, in units of the messages.
    """

    tau: float = 1.0
    weighted = True
    local = True

    def __post_init__(self) -> None:
        positive(self, "tau")

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        if at.own is None:
            raise ConfigError(
                "SelfCenteredClipping needs a node's own row, which a server lacks; expected another rule, or gossip"
            )
        distances = stack.squares[at.own].sqrt()
        w = weights * (self.tau / distances).clamp(max=1.0)  # 1 for the own row, at distance 0
        w[at.own] += 1 - w.sum()
        return stack.combine(w)
