"""Baselines of the papers on FedSpeed, FedAMD and DFedSAM, transcribed as in `papers`."""

from __future__ import annotations

import numpy as np

from tests.algorithms.papers import Batches, Cohorts, StepSize, mean
from tests.algorithms.quadratics import Quadratics


def fednova(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, rho: float = 0.0,
    eta_g: float = 1.0, p: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Wang et al. 2020: a_i[k] is the weight of step k's gradient in the update, here by running the buffer itself."""
    p = np.ones(f.n) if p is None else p
    history = []
    for t, S in enumerate(cohorts, 1):
        d, norm = {}, {}
        for i in S:
            y, m, a, tau = x, np.zeros_like(x), 0.0, len(batches(t, i))
            for k, B in enumerate(batches(t, i)):
                m = rho * m + f.grad(i, y, B)
                y = y - eta(t) * m
                a += sum(rho**later for later in range(tau - k))
            d[i], norm[i] = (x - y) / (eta(t) * a), a
        q = {i: p[i] / sum(p[j] for j in S) for i in S}
        tau_eff = sum(q[i] * norm[i] for i in S)
        x = x - eta_g * tau_eff * eta(t) * sum(q[i] * d[i] for i in S)
        history.append(x)
    return history


def fedadmm(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, rho: float,
    eta_g: float | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Gong et al. 2022 with gradient steps on the augmented Lagrangian; theta the server's model."""
    w, y = [x] * f.n, [np.zeros_like(x) for _ in range(f.n)]
    theta, history = x, []
    for t, S in enumerate(cohorts, 1):
        Delta = []
        for i in S:
            new = theta
            for B in batches(t, i):
                new = new - eta(t) * (f.grad(i, new, B) + y[i] + rho * (new - theta))
            y_new = y[i] + rho * (new - theta)
            Delta.append((new + y_new / rho) - (w[i] + y[i] / rho))
            w[i], y[i] = new, y_new
        theta = theta + (len(S) / f.n if eta_g is None else eta_g) * mean(Delta)
        history.append(theta)
    return history


def mofedsam(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, rho: float, alpha: float,
    eta_g: float = 1.0,
) -> list[np.ndarray]:  # fmt: skip
    """Qu et al. 2022, Algorithm 2; where clients' numbers of steps differ, K is their mean."""
    Delta, history = np.zeros_like(x), []
    for t, S in enumerate(cohorts, 1):
        moved = []
        for i in S:
            y = x
            for B in batches(t, i):
                g = f.grad(i, y, B)
                y = y - eta(t) * (alpha * f.grad(i, y + rho * g / np.linalg.norm(g), B) + (1 - alpha) * Delta)
            moved.append(y - x)
        K = np.mean([len(batches(t, i)) for i in S])
        x, Delta = x + eta_g * mean(moved), -mean(moved) / (K * eta(t))
        history.append(x)
    return history


def fedgamma(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, rho: float, eta_g: float = 1.0
) -> list[np.ndarray]:
    """Dai et al. 2023: a client's new control variate is the mean of its ascended gradients, told by its steps."""
    c, c_i = np.zeros_like(x), [np.zeros_like(x) for _ in range(f.n)]
    history = []
    for t, S in enumerate(cohorts, 1):
        dy, dc = [], []
        for i in S:
            y, gradients = x, []
            for B in batches(t, i):
                g = f.grad(i, y, B)
                gradients.append(f.grad(i, y + rho * g / np.linalg.norm(g), B))
                y = y - eta(t) * (gradients[-1] - c_i[i] + c)
            dy.append(y - x)
            dc.append(mean(gradients) - c_i[i])
            c_i[i] = mean(gradients)
        x, c = x + eta_g * mean(dy), c + sum(dc) / f.n
        history.append(x)
    return history


def fedsmoo(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, lamb: float, rho: float
) -> list[np.ndarray]:
    """Sun et al. 2023 as their code has it (FL-Simulator): h_i in the units of weights, and the mean of all h_i."""
    h, mu = ([np.zeros_like(x) for _ in range(f.n)] for _ in range(2))
    s, history = np.zeros_like(x), []
    for t, S in enumerate(cohorts, 1):
        local = []
        for i in S:
            w = x
            for B in batches(t, i):
                u = f.grad(i, w, B) - mu[i] - s
                e = rho * u / np.linalg.norm(u)
                mu[i] = mu[i] + (e - s)
                w = w - eta(t) * (f.grad(i, w + e, B) + lamb * (w - x + h[i]))
            h[i] = h[i] + (w - x)
            local.append(w)
        active = mean([mu[i] for i in S])
        x, s = mean(local) + sum(h) / f.n, rho * active / np.linalg.norm(active)
        history.append(x)
    return history


def bvr_l_sgd(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, picked: list[int] | None = None,
    period: int = 1,
) -> list[np.ndarray]:  # fmt: skip
    """Murata and Suzuki 2021: stages of ``period`` rounds, and in t the model of ``picked[t - 1]``, or the mean."""
    v, before, history = {}, x, []
    for t, S in enumerate(cohorts, 1):
        for i in S:
            if (t - 1) % period == 0:
                v[i] = f.grad(i, x)
            else:
                B = np.concatenate(batches(t, i))
                v[i] = f.grad(i, x, B) - f.grad(i, before, B) + v[i]
        y = {}
        for i in S:
            y_prev, y[i], g = x, x, mean([v[j] for j in S])
            for B in batches(t, i):
                g = f.grad(i, y[i], B) - f.grad(i, y_prev, B) + g
                y_prev, y[i] = y[i], y[i] - eta(t) * g
        before, x = x, mean([y[i] for i in S]) if picked is None else y[picked[t - 1]]
        history.append(x)
    return history


def fedpage(
    f: Quadratics, x: np.ndarray, cohorts: Cohorts, batches: Batches, eta: StepSize, heads: list[bool],
    eta_g: StepSize = lambda t: 1.0,
) -> list[np.ndarray]:  # fmt: skip
    """Zhao et al. 2021: what a client sends is the mean of its K recursive gradients; round 1 is of heads."""
    before, g, history = x, np.zeros_like(x), []
    for t, S in enumerate(cohorts, 1):
        if t == 1 or heads[t - 1]:
            g = mean([f.grad(i, x) for i in range(f.n)])
        else:
            u = []
            for i in S:
                y_prev, y, own = before, x, [g]
                for k, B in enumerate(batches(t, i)):
                    rows = slice(None) if k == 0 else B
                    own.append(own[-1] + f.grad(i, y, rows) - f.grad(i, y_prev, rows))
                    y_prev, y = y, y - eta(t) * own[-1]
                u.append(mean(own[1:]))
            g = mean(u)
        before, x = x, x - eta_g(t) * g
        history.append(x)
    return history
