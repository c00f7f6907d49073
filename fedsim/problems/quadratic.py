"""Heterogeneous quadratics ``f_i(x) = (1/2) ||A_i x - c_i||^2``, with exact constants and minimiser."""

from __future__ import annotations

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError
from fedsim.models.losses import squared
from fedsim.problems.problem import TRAINING_ROWS, Problem, linear_module


def least_squares(
    n: int = 10,
    d: int = 20,
    rows: int | None = None,
    heterogeneity: float = 1.0,
    condition: float = 100.0,
    seed: int = 0,
) -> Problem:
    """Random least squares, scaled so that the largest ``L_i`` is 1.

    ``A_i = G_i diag(s)`` with standard normal ``G_i`` and ``s_j^2`` falling geometrically from 1 to ``1/condition``;
    ``c_i = A_i x_i`` where ``x_i = z + heterogeneity z_i`` minimises f_i, with standard normal ``z`` and ``z_i``.

    Args:
        n: number of clients.
        d: dimension.
        rows: rows of each client, ``d`` by default.
        heterogeneity: spread of the clients' minimisers; at 0 they coincide.
        condition: ratio of the largest to the smallest ``s_j^2``, at least 1.
        seed: seed of the random numbers.

    Raises:
        ConfigError: a setting is out of its range, or ``n rows < d`` so that the minimiser is not unique.
    """
    rows = d if rows is None else rows
    if min(n, d, rows) < 1:
        raise ConfigError(f"got n={n}, d={d}, rows={rows}; expected each to be at least 1")
    if n * rows < d:
        raise ConfigError(f"got {n} clients of {rows} rows; expected n * rows of at least d={d} for a unique minimiser")
    if not heterogeneity >= 0:
        raise ConfigError(f"got heterogeneity={heterogeneity}; expected a number of at least 0")
    if not condition >= 1:
        raise ConfigError(f"got condition={condition}; expected a number of at least 1")
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, rows, d)) * np.geomspace(1, 1 / condition, d) ** 0.5
    a /= np.linalg.norm(a, ord=2, axis=(1, 2)).max()
    own = rng.standard_normal(d) + heterogeneity * rng.standard_normal((n, d))
    return _sum_of_squares("least_squares", a, np.einsum("nmd,nd->nm", a, own))


def zeta_least_squares(n: int = 10, d: int = 100, zeta: float = 1.0, seed: int = 0) -> Problem:
    """Least squares with heterogeneity controlled by one number, zeta.

    ``f_i(x) = (1/2) ||A_i x - b_i||^2``, i = 1 to n, with ``A_i^2 = (i^2 / n) I`` and ``b_i`` normal with standard
    deviation ``zeta / i``. The gradients of the f_i at the minimiser of f are proportional to zeta. After the synthetic
    experiment of Gao, Islamov, Stich ("EControl", ICLR 2024, arXiv 2311.05645).

    Args:
        n: number of clients.
        d: dimension.
        zeta: heterogeneity; at 0 all clients have the same minimiser.
        seed: seed of the random numbers.

    Raises:
        ConfigError: a setting is out of its range.
    """
    if min(n, d) < 1 or not 0 <= zeta < np.inf:
        raise ConfigError(f"got n={n}, d={d}, zeta={zeta}; expected n and d of at least 1, zeta a number of at least 0")
    i = np.arange(1, n + 1)[:, None]
    b = zeta / i * np.random.default_rng(seed).standard_normal((n, d))
    return quadratic_from((i**2 / n)[:, :, None] * np.eye(d), i / n**0.5 * b)


def quadratic_from(hessians: np.ndarray, linear: np.ndarray) -> Problem:
    """Quadratics ``f_i(x) = (1/2) x^T H_i x - b_i^T x + (1/2) b_i^T H_i^+ b_i``, each with smallest value 0.

    Args:
        hessians: ``H_i``, ``[n, d, d]``, symmetric and positive semi-definite.
        linear: ``b_i``, ``[n, d]``, each in the range of its ``H_i``.

    Raises:
        ConfigError: the arguments do not meet these conditions, or the minimiser is not unique.
    """
    h, b = np.asarray(hessians, dtype=np.float64), np.asarray(linear, dtype=np.float64)
    if h.ndim != 3 or h.shape != (*b.shape, b.shape[-1]):
        raise ConfigError(f"got hessians {h.shape} and linear {b.shape}; expected [n, d, d] and [n, d]")
    if not np.isfinite(h).all() or not np.allclose(h, h.swapaxes(1, 2)):
        raise ConfigError("got a Hessian that is not symmetric; expected symmetric matrices of finite numbers")
    values, vectors = np.linalg.eigh(h)
    noise = 1e-12 * np.abs(values).max(1, keepdims=True)
    if (values < -noise).any():
        raise ConfigError(f"got a Hessian with eigenvalue {values.min():.3g}; expected positive semi-definite matrices")
    roots = np.sqrt(np.where(values > noise, values, 0))
    rotated = np.einsum("nij,ni->nj", vectors, b)
    if (np.abs(rotated[roots == 0]) > 1e-9 * np.abs(b).max()).any():
        raise ConfigError("got b_i outside the range of H_i, with f_i unbounded below; expected b_i = H_i v for some v")
    c = np.divide(rotated, roots, out=np.zeros_like(b), where=roots > 0)
    return _sum_of_squares("quadratic", roots[:, :, None] * vectors.swapaxes(1, 2), c)


def _sum_of_squares(name: str, a: np.ndarray, c: np.ndarray) -> Problem:
    """Problem of ``A_i [n, m, d]`` and ``c_i [n, m]``; rows are scaled by sqrt(m), as objectives are means."""
    n, m, d = a.shape
    h = np.einsum("nmi,nmj->nij", a, a)
    eigenvalues = np.linalg.eigvalsh(h.mean(0))
    if eigenvalues[0] <= 1e-12 * eigenvalues[-1]:
        raise ConfigError("the clients' mean Hessian is singular; expected positive definite, for a unique minimiser")
    minimizer = np.linalg.solve(h.mean(0), np.einsum("nmi,nm->i", a, c) / n)
    train = Split(
        torch.from_numpy(a.reshape(n * m, d) * m**0.5),
        torch.from_numpy(c.reshape(n * m) * m**0.5),
        np.repeat(np.arange(n), m),
    )
    return Problem(
        dataset=Dataset(name, train, train, classes=0, notes=TRAINING_ROWS),
        module=linear_module(d),
        loss=squared,
        penalty=None,
        minimizer=torch.from_numpy(minimizer),
        f_min=float(0.5 * np.square(a @ minimizer - c).sum(1).mean()),
        smoothness=float(eigenvalues[-1]),
        local_smoothness=np.linalg.eigvalsh(h)[:, -1],
        mu=float(eigenvalues[0]),
        curvature=1.0,
    )
