"""Attacks made from the honest messages of the round.

- A Little Is Enough: Baruch, Baruch, Goldberg, NeurIPS 2019 (arXiv 1902.06156).
- Inner-product manipulation: Xie, Koyejo, Gupta, UAI 2019 (arXiv 1903.03936).
- Mimic: Karimireddy, He, Jaggi, ICLR 2022 (arXiv 2006.09365).
- Min-Max, Min-Sum: Shejwalkar, Houmansadr, NDSS 2021.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from fedsim.checks import at_least_one, non_negative, one_of, positive
from fedsim.errors import ConfigError, many
from fedsim.robust.attack import Attack, Scene
from fedsim.values import Vector


@dataclass(frozen=True)
class Mimic(Attack):
    """A copy of the message of one honest client, the first of the cohort, which is thus over-represented."""

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return scene.alike(scene.honest[0])


@dataclass(frozen=True)
class IPM(Attack):
    """Inner-product manipulation: - eps times the mean of the honest messages.

    The plain mean turns around where f eps > n - f.

    Args:
        eps: factor; 0.1 is stealthy, 2 and more is not.
    """

    eps: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "eps")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return scene.alike(-self.eps * scene.honest.mean(0))


@dataclass(frozen=True)
class ALIE(Attack):
    """A Little Is Enough: ``mu - z sigma``, with mean and standard deviation of the honest messages by coordinate.

    By default ``z = Phi^-1((n - f - s) / (n - f))`` for ``s = floor(n / 2 + 1) - f``, the paper's, in which a majority
    is further from the mean than the attackers.

    Args:
        z: number of standard deviations; computed by default (1.5 in byzfl).
        sign: direction, - 1 as in the paper or + 1 as in byzfl.
        among: the default z as a quantile of the share of "honest" clients, see above, or of "all", (n - s) / n.
    """

    z: float | None = None
    sign: Literal[-1, 1] = -1
    among: Literal["honest", "all"] = "honest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None:
            non_negative(self, "z")
        if self.sign not in (-1, 1):
            raise ConfigError(f"ALIE.sign is {self.sign!r}; expected -1 or 1")
        one_of(self, "among", ("honest", "all"))

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        z = alie_z(scene.n, len(scene.own), self.among) if self.z is None else self.z
        return scene.alike(scene.honest.mean(0) + self.sign * z * deviation(scene.honest))

    def remark(self, n: int, f: int) -> str:
        """See ``Attack``: a z of 0 is the honest mean, and one below 0 the other direction."""
        if self.z is not None or not 0 < f < n or (z := alie_z(n, f, self.among)) > 0:
            return ""
        among = f"{many(n, 'client')} and {many(f, 'attacker')}"
        return f"ALIE is no attack with its z of {among}, {z:.3g}; set z, or have more attackers"


@dataclass(frozen=True)
class _Perturbed(Attack, ABC):
    """Base of Min-Max and Min-Sum: ``mu + gamma p`` with the largest gamma within a bound.

    Args:
        direction: p: "unit" is -mu / ||mu||, "sign" -sign(mu), "std" -sigma.
    """

    direction: Literal["unit", "sign", "std"] = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "direction", ("unit", "sign", "std"))

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        x = scene.honest
        mu = x.mean(0)
        norm = torch.linalg.vector_norm(mu)
        if self.direction == "std":
            p = -deviation(x)
        else:
            p = -mu / norm.clamp(min=1e-12) if self.direction == "unit" else -torch.sign(mu)
        return scene.alike(mu + self.gamma(x, mu, p) * p)

    def gamma(self, x: Tensor, mu: Vector, p: Vector) -> float:
        """The largest gamma."""
        off = (mu - x).double()
        p = p.double()
        squares = torch.cdist(off, off, compute_mode="donot_use_mm_for_euclid_dist").square()
        return self.largest(off.square().sum(1), off @ p, p.square().sum(), squares)

    @abstractmethod
    def largest(self, a: Tensor, b: Tensor, c: Tensor, squares: Tensor) -> float:
        """Largest gamma, where ``||mu + gamma p - x_i||^2 = a_i + 2 gamma b_i + gamma^2 c``, ``[h]``."""


@dataclass(frozen=True)
class MinMax(_Perturbed):
    """Min-Max: ``mu + gamma p``, as far as no honest message is further away than two honest ones are from each other.

    Args:
        direction: p: "unit" is -mu / ||mu||, "sign" -sign(mu), "std" -sigma.
    """

    def largest(self, a: Tensor, b: Tensor, c: Tensor, squares: Tensor) -> float:
        """See ``_Perturbed``."""
        bound = float(squares.max())
        return min(root(*ab, float(c), bound) for ab in zip(a.tolist(), b.tolist(), strict=True))


@dataclass(frozen=True)
class MinSum(_Perturbed):
    """Min-Sum: ``mu + gamma p``, as far as squared distances sum to no more than those of an honest message.

    Args:
        direction: p: "unit" is -mu / ||mu||, "sign" -sign(mu), "std" -sigma.
    """

    def largest(self, a: Tensor, b: Tensor, c: Tensor, squares: Tensor) -> float:
        """See ``_Perturbed``."""
        return root(float(a.sum()), float(b.sum()), len(a) * float(c), float(squares.sum(1).max()))


@dataclass(frozen=True)
class _LineSearch(Attack, ABC):
    """Base of attacks that know the rule: ``mu + t p`` with the t that moves its result furthest from mu.

    Args:
        evaluations: how often the rule is computed in a round.
    """

    evaluations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "evaluations")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        mu = scene.honest.mean(0)
        p = self.towards(scene.honest)

        def damage(t: float) -> float:
            return float(torch.linalg.vector_norm(scene.aggregate(scene.alike(mu + t * p)) - mu))

        best, worst, step, growing = 0.0, damage(0.0), 10.0, True
        for _ in range(self.evaluations - 1):
            ahead = damage(best + step)
            if ahead > worst:
                best, worst = best + step, ahead
                step *= 2 if growing else 1
            else:
                growing = False
                step *= -0.8                               # then search on both sides, ever closer
        return scene.alike(mu + best * p)

    @abstractmethod
    def towards(self, honest: Tensor) -> Vector:
        """The direction p."""


@dataclass(frozen=True)
class OptimalALIE(_LineSearch):
    """A Little Is Enough that knows the rule: its z moves the result furthest from the honest mean.

    Args:
        evaluations: how often the rule is computed in a round.
    """

    def towards(self, honest: Tensor) -> Vector:
        """See ``_LineSearch``."""
        return -deviation(honest)


@dataclass(frozen=True)
class OptimalIPM(_LineSearch):
    """Inner-product manipulation that knows the rule: its eps moves the result furthest from the honest mean.

    Args:
        evaluations: how often the rule is computed in a round.
    """

    def towards(self, honest: Tensor) -> Vector:
        """See ``_LineSearch``."""
        return -honest.mean(0)


def deviation(x: Tensor) -> Vector:
    """Standard deviation of the rows of ``x [h, D]`` by coordinate, with h - 1 in the denominator; 0 for one row."""
    return x.std(0) if len(x) > 1 else torch.zeros_like(x[0])


def alie_z(n: int, f: int, among: str = "honest") -> float:
    """The z of A Little Is Enough for ``f`` of ``n`` clients."""
    s = math.floor(n / 2 + 1) - f
    share = (n - f - s) / (n - f) if among == "honest" else (n - s) / n
    return NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6))


def root(a: float, b: float, c: float, bound: float) -> float:
    """Largest t >= 0 with ``a + 2 b t + c t^2 <= bound``, for ``a <= bound``; 0 if c is 0."""
    return (-b + math.sqrt(max(b * b - c * (a - bound), 0.0))) / c if c > 0 else 0.0
