"""Smoothness constants from which theoretical step sizes are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Constants:
    """Constants of ``f(x) = (1/n) sum_i f_i(x)``.

    Attributes:
        L: Lipschitz constant of the gradient of f.
        L_i: those of the gradients of the f_i, one for each client.
        d: dimension of x.
        mu: f(x) - min f <= ||grad f(x)||^2 / (2 mu), as for strongly convex f; 0 if no such mu is known.
        L_samples: l with mean_i mean_j ||grad f_ij(x) - grad f_ij(y)||^2 <= l^2 ||x - y||^2, up to a term that all
            samples j share; None if unknown.
        sharing: largest number of clients whose f_i depend on the same coordinate; 0 for n.
    """

    L: float
    L_i: tuple[float, ...]
    d: int
    mu: float = 0.0
    sharing: int = 0
    L_samples: float | None = None

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.L_i)

    @property
    def L_AM(self) -> float:
        """Arithmetic mean of the L_i."""
        return float(np.mean(self.L_i))

    @property
    def L_QM(self) -> float:
        """Quadratic mean of the L_i."""
        return float(np.sqrt(np.mean(np.square(self.L_i))))

    @property
    def L_max(self) -> float:
        """Largest of the L_i."""
        return max(self.L_i)

    @property
    def L_var(self) -> float:
        """Variance of the L_i: L_QM^2 - L_AM^2."""
        return float(np.var(self.L_i))
