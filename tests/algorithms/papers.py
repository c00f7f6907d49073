"""The papers' algorithms, transcribed in their notation in plain numpy: loops over clients and steps, nothing stacked.

``f.grad(i, x, B)`` is client i's gradient on the rows B, ``batches(t, i)`` the rows of its steps in round t, ``eta(t)``
the round's local step size. Each function returns the server's models after rounds 1, 2, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.algorithms.quadratics import Quadratics

Cohorts = Sequence[Sequence[int]]
Batches = Callable[[int, int], list[np.ndarray]]
StepSize = Callable[[int], float]


def mean(rows: list[np.ndarray]) -> np.ndarray:
    """Uniform mean over clients."""
    return sum(rows) / len(rows)


def fedavg(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, eta_g: float = 1.0,
    theta: float = 0.0, p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """McMahan et al. 2017, with heavy ball (theta), a server step, and weights ``p`` renormalised over the cohort."""
    p = np.ones(f.n) if p is None else p
    history = []
    for t, S in enumerate(cohorts, 1):
        y = {}
        for i in S:
            y[i], m = x, np.zeros_like(x)
            for B in batches(t, i):
                m = theta * m + f.grad(i, y[i], B)
                y[i] = y[i] - eta(t) * m
        x = x + eta_g * sum(p[i] * (y[i] - x) for i in S) / sum(p[i] for i in S)
        history.append(x)
    return history


def fedprox(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, mu: float, eta_g: float = 1.0,
    p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Li et al. 2020, Algorithm 2, with gradient steps on h(w) = F_i(w) + (mu/2) ||w - w^t||^2 for the solver."""
    p = np.ones(f.n) if p is None else p
    history, w_t = [], x
    for t, S in enumerate(cohorts, 1):
        w = {}
        for i in S:
            w[i] = w_t
            for B in batches(t, i):
                grad_h = f.grad(i, w[i], B) + mu * w[i] - mu * w_t
                w[i] = w[i] - eta(t) * grad_h
        w_bar = sum(p[i] * w[i] for i in S) / sum(p[i] for i in S)
        w_t = (1 - eta_g) * w_t + eta_g * w_bar
        history.append(w_t)
    return history


def fedopt(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, optimizer: str, eta_g: float,
    beta1: float, beta2: float, tau: float, v0: float | None = None, p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Reddi et al. 2021, Algorithm 2, one coordinate after the other; from ``v0`` = tau^2 on."""
    p = np.ones(f.n) if p is None else p
    m, v = [0.0] * f.d, [tau**2 if v0 is None else v0] * f.d
    history = []
    for t, S in enumerate(cohorts, 1):
        Delta_i = {}
        for i in S:
            x_i = x
            for B in batches(t, i):
                x_i = x_i - eta(t) * f.grad(i, x_i, B)
            Delta_i[i] = x_i - x
        x = x.copy()
        for j in range(f.d):
            Delta = sum(p[i] * Delta_i[i][j] for i in S) / sum(p[i] for i in S)
            m[j] = beta1 * m[j] + (1 - beta1) * Delta
            if optimizer == "adagrad":
                v[j] += Delta**2
            elif optimizer == "yogi":                      # up where the square is above v, down where it is below
                v[j] += (1 - beta2) * Delta**2 * (1 if Delta**2 > v[j] else -1)
            else:
                v[j] = beta2 * v[j] + (1 - beta2) * Delta**2
            x[j] += eta_g * m[j] / (math.sqrt(v[j]) + tau)
        history.append(x)
    return history


def fedcm(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, alpha: float, eta_g: float = 1.0,
    p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Xu et al. 2021: Delta is what the round moved per local step, for K the clients' mean number of steps."""
    p = np.ones(f.n) if p is None else p
    Delta, history = np.zeros_like(x), []
    for t, S in enumerate(cohorts, 1):
        y, q = {}, {i: p[i] / sum(p[j] for j in S) for i in S}
        for i in S:
            y[i] = x
            for B in batches(t, i):
                y[i] = y[i] - eta(t) * (alpha * f.grad(i, y[i], B) + (1 - alpha) * Delta)
        K = sum(q[i] * len(batches(t, i)) for i in S)
        moved = sum(q[i] * (y[i] - x) for i in S)
        x, Delta = x + eta_g * moved, moved / (-eta(t) * K)
        history.append(x)
    return history


def fedsam(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, rho: float, eta_g: float = 1.0
) -> list[np.ndarray]:
    """Qu et al. 2022, Algorithm 1: both gradients of a step on the same rows."""
    history = []
    for t, S in enumerate(cohorts, 1):
        y = dict.fromkeys(S, x)
        for i in S:
            for B in batches(t, i):
                g = f.grad(i, y[i], B)
                y[i] = y[i] - eta(t) * f.grad(i, y[i] + rho * g / np.linalg.norm(g), B)
        x = x + eta_g * mean([y[i] - x for i in S])
        history.append(x)
    return history


def scaffold(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, eta_g: float = 1.0,
    option: str = "II",
) -> list[np.ndarray]:  # fmt: skip
    """Karimireddy et al. 2020, Algorithm 1."""
    c, c_i = np.zeros_like(x), [np.zeros_like(x) for _ in range(f.n)]
    history = []
    for t, S in enumerate(cohorts, 1):
        dy, dc = [], []
        for i in S:
            y, K = x, len(batches(t, i))
            for B in batches(t, i):
                y = y - eta(t) * (f.grad(i, y, B) - c_i[i] + c)
            c_plus = f.grad(i, x) if option == "I" else c_i[i] - c + (x - y) / (K * eta(t))
            dy.append(y - x)
            dc.append(c_plus - c_i[i])
            c_i[i] = c_plus
        x = x + eta_g * mean(dy)
        c = c + sum(dc) / f.n
        history.append(x)
    return history


def fedspeed(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, lam: float, rho: float,
    alpha: float = 1.0, normalized: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """Sun et al. 2023, Algorithm 1: prox-correction ghat_i, and the mean of the ACTIVE clients' amended models."""
    ghat = [np.zeros_like(x) for _ in range(f.n)]
    history = []
    for t, S in enumerate(cohorts, 1):
        amended = []
        for i in S:
            y = x
            for B in batches(t, i):
                g1 = f.grad(i, y, B)
                g2 = f.grad(i, y + (rho / np.linalg.norm(g1) if normalized else rho) * g1, B)
                y = y - eta(t) * ((1 - alpha) * g1 + alpha * g2 - ghat[i] + (y - x) / lam)
            ghat[i] = ghat[i] - (y - x) / lam
            amended.append(y - lam * ghat[i])
        x = mean(amended)
        history.append(x)
    return history


def fedspeed_code(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, lamb: float, rho: float,
    alpha: float = 1.0, normalized: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """The authors' code (FL-Simulator): h_i in the units of weights, and the mean of ALL h_i at the server."""
    h = [np.zeros_like(x) for _ in range(f.n)]
    history = []
    for t, S in enumerate(cohorts, 1):
        local = []
        for i in S:
            w, q = x, h[i] - x
            for B in batches(t, i):
                g1 = f.grad(i, w, B)
                g2 = f.grad(i, w + (rho / np.linalg.norm(g1) if normalized else rho) * g1, B)
                w = w - eta(t) * ((1 - alpha) * g1 + alpha * g2 + lamb * q + lamb * w)
            h[i] = h[i] + (w - x)
            local.append(w)
        x = mean(local) + sum(h) / f.n
        history.append(x)
    return history


def feddyn(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, a: float,
    p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Acar et al. 2021 with K gradient steps for the argmin: g_i at the clients, h at the server."""
    p = np.ones(f.n) / f.n if p is None else p / p.sum()
    h, g = np.zeros_like(x), [np.zeros_like(x) for _ in range(f.n)]
    history = []
    for t, S in enumerate(cohorts, 1):
        y = {}
        for i in S:
            y[i] = x
            for B in batches(t, i):
                y[i] = y[i] - eta(t) * (f.grad(i, y[i], B) - g[i] + a * (y[i] - x))
            g[i] = g[i] - a * (y[i] - x)
        h = h - a * sum(p[i] * (y[i] - x) for i in S)
        x = sum(p[i] * y[i] for i in S) / sum(p[i] for i in S) - h / a
        history.append(x)
    return history


def fedamd(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, anchors: Cohorts, batches: Batches, eta: StepSize,
    eta_s: float = 1.0,
) -> list[np.ndarray]:  # fmt: skip
    """Wu et al. 2023: the SERVER stores every v_i; ``anchors[t - 1]`` are the clients of S whose coin came up heads."""
    v = [f.grad(i, x) for i in range(f.n)]
    history = []
    for t, (S, heads) in enumerate(zip(cohorts, anchors, strict=True), 1):
        v_bar = mean(v)
        u = []
        for i in S:
            if i in heads:
                v[i] = f.grad(i, x)
                continue
            y_prev, y, g = x, x, v_bar
            for B in batches(t, i):
                g = g - f.grad(i, y_prev, B) + f.grad(i, y, B)
                y_prev, y = y, y - eta(t) * g
            u.append(x - y)
        x = x - eta_s * mean(u) if u else x
        history.append(x)
    return history


def bvr_l_sgd(
    f: Quadratics, x: np.ndarray, rounds: int, batches: Batches, eta: float, averaging_every: int
) -> list[np.ndarray]:
    """Murata and Suzuki 2021 with averaging in place of one random worker; its minibatches are of every other round."""
    history = []
    for r in range(rounds):
        v, y_K = mean([f.grad(i, x) for i in range(f.n)]), []
        for i in range(f.n):
            y_prev, y, g = x, x, v
            for B in batches(1 + averaging_every * r, i):
                g = g - f.grad(i, y_prev, B) + f.grad(i, y, B)
                y_prev, y = y, y - eta * g
            y_K.append(y)
        x = mean(y_K)
        history.append(x)
    return history


def gradient_descent(f: Quadratics, x: np.ndarray, rounds: int, eta: float) -> list[np.ndarray]:
    """``x <- x - eta grad f(x)``."""
    history = []
    for _ in range(rounds):
        x = x - eta * mean([f.grad(i, x) for i in range(f.n)])
        history.append(x)
    return history
