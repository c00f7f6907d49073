"""Rules that look at directions in which rows lie: Flag Aggregator, and filtering by covariance (CAF).

Flag Aggregator: Almasi, Mishra, Vamanan, Ravi, ICLR 2024 (arXiv 2302.05865). For unit vectors u_i = g_i / ||g_i|| and a
subspace Y ``[d, m]``, Y^T Y = I, it minimises

    A(Y) = sum_i sqrt(1 - ||Y^T u_i||^2) + lam / (p - 1) sum_{i != j} sqrt(1 - ||Y^T u_ij||^2),
    u_ij = (u_i - u_j) / ||u_i - u_j||,

by at most five iterations of reweighted least squares (flag IRLS, Mankovich, King, Peterson, Kirby, CVPR 2022), with
m = ceil((p + 1) / 2), and returns (1 / p) Y Y^T sum_i u_i. All of it is done on the Gram matrix of the u_i.

CAF: Allouah, Guerraoui, Stephan, ICML 2025 (arXiv 2505.01874), Algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.checks import at_least_one, non_negative, one_of, whole
from fedsim.errors import ConfigError
from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import RowStack
from fedsim.values import Vector

EPS, TOLERANCE = 1e-7, 1e-10
SMALL = 1e-12
"""Share of the largest eigenvalue below which one is taken for 0."""


class Subspace(NamedTuple):
    """What Gram matrices say of a subspace Y.

    Attributes:
        weights: ``[p]`` weights of the u_i in ``Y Y^T sum_i u_i``; None for one that is not spanned by the u_i.
        single: ``||Y^T u_i||^2``, ``[p]``.
        pairs: ``||Y^T (u_i - u_j)||^2``, ``[p, p]``.
    """

    weights: Tensor | None
    single: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class FlagAggregator(RobustRule):
    """Flag Aggregator: the rows' directions, projected to the subspace that explains most of them.

    In the form "paper" the start is the flag mean, and the scale 1 / p. The released code ("code") differs: one
    iteration, from a random subspace (with seed 1); the scale 1 / m; pairs are differences of unit vectors, not
    normalised, multiplied by lam / (p (p - 1)) rather than the root of a weight; pairs do not count in the objective,
    which decides whether the iteration is kept. Both lose the length of the gradients: this is normalised descent.
    ``normalise=False`` is Algorithm 1 to the letter, (1 / p) Y Y^T sum_i g_i, which is not robust.

    Args:
        m: dimension of the subspace; by default ceil((p + 1) / 2), as in the paper.
        lam: weight lambda of the pairs.
        iterations: most iterations; 1 in the form "code".
        normalise: project unit vectors, rather than the rows themselves.
        form: "paper" or "code", see above.
    """

    m: int | None = None
    lam: float = 0.0
    iterations: int = 5
    normalise: bool = True
    form: Literal["paper", "code"] = "paper"
    needs = (0, 2)

    def __post_init__(self) -> None:
        if self.m is not None:
            whole("FlagAggregator.m", self.m, 1)
        non_negative(self, "lam")
        at_least_one(self, "iterations")
        one_of(self, "form", ("paper", "code"))
        if self.form == "code" and not self.normalise:
            raise ConfigError('FlagAggregator.normalise is False; expected True in the form "code", which always does')

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        p, k = len(stack), stack.cosines
        m = math.ceil((p + 1) / 2) if self.m is None else self.m
        if m > p:
            raise ConfigError(f"FlagAggregator.m is {m}; expected at most the {p} rows")
        inverse = torch.where(stack.norms > 0, 1 / stack.norms, 0.0)
        if self.form == "code":
            return self._code(stack, k, inverse, m)
        lengths = torch.ones(p, dtype=torch.float64) if self.normalise else stack.norms
        y = flag_mean(k, torch.eye(p, dtype=torch.float64), m, lengths)
        objective = self._objective(y, k)
        for _ in range(self.iterations):
            new = flag_mean(k, self._weights(y, k), m, lengths)
            after = self._objective(new, k)
            if after >= objective:
                break
            y, gained, objective = new, objective - after, after
            if gained < TOLERANCE:
                break
        assert y.weights is not None
        return stack.combine(y.weights * inverse / p)

    def _code(self, stack: RowStack, k: Tensor, inverse: Tensor, m: int) -> Vector:
        """The released code: one iteration from a random subspace, kept if it explains more of the rows."""
        generator = torch.Generator().manual_seed(1)
        d, dtype = stack.rows.shape[1], stack.rows.dtype
        start = (torch.rand(d, m, generator=generator, dtype=dtype) - 0.5).to(stack.rows.device)
        basis = torch.linalg.qr(start).Q                   # [d, m]
        y = torch.stack([(basis.T @ stack.combine(e)).double().cpu() for e in torch.diag(inverse)], 1)   # [m, p]
        old = Subspace(None, y.square().sum(0), (y[:, :, None] - y[:, None]).square().sum(0))
        new = flag_mean(k, self._weights(old, k), m)
        if float((1 - old.single).clamp(min=0).sqrt().sum() - (1 - new.single).clamp(min=0).sqrt().sum()) > 0:
            assert new.weights is not None
            return stack.combine(new.weights * inverse / m)
        out: Vector = basis @ (y.sum(1).to(basis) / m)
        return out

    def _objective(self, y: Subspace, k: Tensor) -> float:
        value = (1 - y.single).clamp(min=0).sqrt().sum()
        if self.lam:
            value = value + self.lam / (len(k) - 1) * (1 - explained(y, k)).clamp(min=0).sqrt().fill_diagonal_(0).sum()
        return float(value)

    def _weights(self, y: Subspace, k: Tensor) -> Tensor:
        """S ``[p, p]``: the next subspace has the leading left singular vectors of ``U S^(1/2)``."""
        s, p = torch.diag(((1 - y.single).abs() + EPS) ** -0.5), len(k)
        if not self.lam:
            return s
        if self.form == "code":
            pairs = ((1 - y.pairs).abs() + EPS) ** -0.5 * (self.lam / (p * (p - 1))) ** 2
        else:
            apart = distances(k)
            pairs = ((1 - explained(y, k)).abs() + EPS) ** -0.5 * self.lam / (p - 1)
            pairs = torch.where(apart > 0, pairs / apart, 0.0)
        pairs.fill_diagonal_(0)
        return s + 2 * (torch.diag(pairs.sum(1)) - pairs)    # both orders of every pair


def flag_mean(k: Tensor, s: Tensor, m: int, lengths: Tensor | None = None) -> Subspace:
    """Leading ``m`` left singular vectors of ``U S^(1/2)``, for unit vectors U with Gram matrix ``k [p, p]``.

    They are ``U A`` for ``A = S^(1/2) V L^(-1/2)`` and the leading eigenpairs (L, V) of ``S^(1/2) K S^(1/2)``.
    """
    values, vectors = torch.linalg.eigh(s)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ k @ root)
    values, vectors = values[-m:], vectors[:, -m:]
    there = values > SMALL * values[-1]
    a = root @ (vectors[:, there] / values[there].sqrt())
    y = a.T @ k                                            # [m, p], Y^T U
    total = y.sum(1) if lengths is None else y @ lengths
    return Subspace(a @ total, y.square().sum(0), (y[:, :, None] - y[:, None]).square().sum(0))


def distances(k: Tensor) -> Tensor:
    """Squared distances of unit vectors (or zeros) with Gram matrix ``k``, ``[p, p]``; 0 for those that are equal."""
    norms = k.diagonal()
    apart: Tensor = norms[:, None] + norms - 2 * k
    return apart * (apart > EPS)


def explained(y: Subspace, k: Tensor) -> Tensor:
    """``||Y^T u_ij||^2``, ``[p, p]``; 1 where u_i = u_j."""
    apart = distances(k)
    return torch.where(apart > 0, y.pairs / apart, 1.0)


@dataclass(frozen=True)
class CAF(RobustRule):
    """Covariance-bound agnostic filter: the weighted mean whose covariance had the least largest eigenvalue.

    Weights c_i start at 1. For the weighted mean mu, and the leading eigenvector v of the weighted covariance,
    ``c_i <- c_i (1 - t_i / max t_j)`` with ``t_i = <x_i - mu, v>^2``, until ``sum_i c_i <= n - 2 f``. The largest
    t_j is that of the rows that still count (c_j > 0), so that every step removes a row.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
    """

    f: int = 1
    needs = (2, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        g, n = stack.gram, len(stack)
        c = torch.ones(n, dtype=torch.float64)
        best, least = c / n, torch.inf
        while float(c.sum()) > n - 2 * self.f:
            w = c / c.sum()
            centered = g - (g @ w)[:, None] - (g @ w) + w @ g @ w
            root = w.sqrt()
            values, vectors = torch.linalg.eigh(root[:, None] * centered * root)
            value = float(values[-1])
            if value < least:
                best, least = w, value
            if value <= 0:
                break                                      # all rows that count are equal
            t = (centered @ (root * vectors[:, -1])).square() / value   # <x_i - mu, v>^2
            top = t[c > 0].max()
            if not float(top) > 0:
                break
            c = torch.where(c > 0, c * (1 - t / top).clamp(min=0), 0.0)
        return stack.combine(best)
