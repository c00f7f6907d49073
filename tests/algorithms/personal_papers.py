"""Papers on personalisation, transcribed as in `papers`; each returns the server's models and the clients' own."""

from __future__ import annotations

import numpy as np

from tests.algorithms.papers import Batches, Cohorts, StepSize, mean
from tests.algorithms.quadratics import Quadratics

Models = tuple[list[np.ndarray], list[list[np.ndarray]]]
"""Server models by round, and the personal models of all clients by round."""


def ditto(
    f: Quadratics, w: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, eta_p: StepSize, lam: float
) -> Models:
    """Li et al. 2021, Algorithm 1: w^t is what was received."""
    v, history, own = [w] * f.n, [], []
    for t, S in enumerate(cohorts, 1):
        ends = []
        for i in S:
            w_i, v_i = w, v[i]
            for B in batches(t, i):
                v_i = v_i - eta_p(t) * (f.grad(i, v_i, B) + lam * (v_i - w))
                w_i = w_i - eta(t) * f.grad(i, w_i, B)
            ends.append(w_i)
            v = [*v[:i], v_i, *v[i + 1 :]]
        w = mean(ends)
        history.append(w)
        own.append(v)
    return history, own


def pfedme(
    f: Quadratics, w: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, eta_p: StepSize, lam: float,
    K: int, beta: float,
) -> Models:  # fmt: skip
    """Dinh et al. 2020, Algorithm 1; theta_i goes on from minibatch to minibatch."""
    own, thetas, history = [], [w] * f.n, []
    for t, S in enumerate(cohorts, 1):
        ends = []
        for i in S:
            w_i = theta = w
            for B in batches(t, i):
                for _ in range(K):
                    theta = theta - eta_p(t) * (f.grad(i, theta, B) + lam * (theta - w_i))
                w_i = w_i - eta(t) * lam * (w_i - theta)
            ends.append(w_i)
            thetas = [*thetas[:i], theta, *thetas[i + 1 :]]
        w = (1 - beta) * w + beta * mean(ends)
        history.append(w)
        own.append(thetas)
    return history, own


def per_fedavg(
    f: Quadratics, w: np.ndarray, cohorts: Cohorts, batches: Batches, beta: StepSize, alpha: StepSize
) -> list[np.ndarray]:
    """Fallah et al. 2020, Algorithm 1, FO: a pair of minibatches for each step."""
    history = []
    for t, S in enumerate(cohorts, 1):
        ends = []
        for i in S:
            w_i, B = w, list(batches(t, i))
            for D, D_ in zip(B[::2], B[1::2], strict=False):   # an odd one out has no partner
                adapted = w_i - alpha(t) * f.grad(i, w_i, D)
                w_i = w_i - beta(t) * f.grad(i, adapted, D_)
            ends.append(w_i)
        w = mean(ends)
        history.append(w)
    return history
