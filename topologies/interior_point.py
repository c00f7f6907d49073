"""The fastest mixing Markov chain on a graph, as a semidefinite programme solved by a barrier method.

Boyd, Diaconis and Xiao, SIAM Review 46 (2004): minimise s over link weights p >= 0 with

    -s I <= W - 11^T/n <= s I,   W = I - sum_l p_l b_l b_l^T >= 0,   b_l = e_i - e_j for link l = (i, j).

As each b_l b_l^T has rank one, gradient and Hessian of the log barrier are closed forms (Boyd and Vandenberghe, Convex
Optimization, section 11). The minimiser of ``t s + barrier`` is within (barrier degree)/t of the optimum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from topologies.errors import TopologyError

GROWTH = 10.0
NEWTON_STEPS = 200


class _Links(NamedTuple):
    """Incidence ``b`` ``[n, m]``, and its absolute value, for the m links of n nodes."""

    b: np.ndarray
    ends: np.ndarray


def fastest_weights(n: int, i: np.ndarray, j: np.ndarray, gap: float) -> np.ndarray:
    """Weights ``[m]`` of the links (i, j) whose lam is at most ``gap`` above the smallest possible.

    Args:
        n: number of nodes, 2 or more, connected by the links.
        i: ``[m]`` one end of each link.
        j: ``[m]`` the other end.
        gap: largest duality gap.

    Raises:
        TopologyError: rounding stopped the optimisation.
    """
    m = len(i)
    b = np.zeros((n, m))
    b[i, np.arange(m)], b[j, np.arange(m)] = 1.0, -1.0
    links = _Links(b, abs(b))
    z = np.full(m + 1, 1 / (1 + links.ends.sum(axis=1).max()))  # p, then s: maximum-degree weights
    z[m] = 1.5
    degree = 3 * n + m
    t = 1.0
    while True:
        try:
            z = _centre(links, t, z)
        except np.linalg.LinAlgError:
            raise TopologyError("the fastest weights of this graph were not found: take metropolis") from None
        if degree / t <= gap:
            return z[:m]
        t = min(GROWTH * t, degree / gap)


def _deflated(links: _Links, p: np.ndarray) -> np.ndarray:
    """``W - 11^T/n`` for link weights p."""
    n = len(links.b)
    return np.asarray(np.eye(n) - 1 / n - (links.b * p) @ links.b.T)


def _value(links: _Links, t: float, z: np.ndarray) -> float:
    """``t s`` plus the barrier; infinity outside of it."""
    p, s = z[:-1], z[-1]
    values = np.linalg.eigvalsh(_deflated(links, p))
    slacks = np.concatenate([p, 1 - links.ends @ p, s - values, s + values])
    return np.inf if slacks.min() <= 0 else float(t * s - np.log(slacks).sum())


def _derivatives(links: _Links, t: float, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient ``[m + 1]`` and Hessian ``[m + 1, m + 1]``."""
    p, s = z[:-1], z[-1]
    own = 1 - links.ends @ p
    values, vectors = np.linalg.eigh(_deflated(links, p))
    along = vectors.T @ links.b
    gradient = np.append(links.ends.T @ (1 / own) - 1 / p, t)
    hessian = np.diag(np.append(1 / p**2, 0.0))
    hessian[:-1, :-1] += (links.ends.T / own**2) @ links.ends
    for sign in (1.0, -1.0):  # the slack s I - sign (W - 11^T/n) grows by sign b_l b_l^T with p_l
        slack = s - sign * values
        half = along / np.sqrt(slack)[:, None]
        gram = half.T @ half
        cross = sign * ((along / slack[:, None]) ** 2).sum(axis=0)
        gradient -= np.append(sign * gram.diagonal(), (1 / slack).sum())
        hessian[:-1, :-1] += gram**2
        hessian[:-1, -1] += cross
        hessian[-1, :-1] += cross
        hessian[-1, -1] += (1 / slack**2).sum()
    return gradient, hessian


def _centre(links: _Links, t: float, z: np.ndarray) -> np.ndarray:
    """Newton's method with backtracking, from inside, to the minimiser of ``t s + barrier``."""
    value = _value(links, t, z)
    for _ in range(NEWTON_STEPS):
        gradient, hessian = _derivatives(links, t, z)
        scale = 1 / np.sqrt(hessian.diagonal())
        ridge = np.diag(np.full(len(z), 10 * len(z) * np.finfo(float).eps))
        step = -scale * cho_solve(cho_factor(scale[:, None] * hessian * scale + ridge), scale * gradient)
        decrement = -gradient @ step
        if decrement < 1e-3:  # leaves s within decrement / t of the minimum
            return z
        length = 1.0
        while (new := _value(links, t, z + length * step)) > value - 0.25 * length * decrement:
            length /= 2
            if length < 1e-10:
                raise np.linalg.LinAlgError("no progress along Newton's step")
        z, value = z + length * step, new
    raise np.linalg.LinAlgError(f"no minimum in {NEWTON_STEPS} steps")
