"""The papers' compressed methods, transcribed in their notation in plain numpy: loops over clients, nothing stacked.

``f.grad(i, x, B)`` is client i's gradient on the rows B, ``batches(t, i)`` the rows of its steps in round t,
``gamma(t)`` the step size, ``C(t, i, v)`` client i's compressor (i = -1: the server's). With ``batches=None`` gradients
are those of whole shards. Each function returns the server's models after rounds 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.algorithms.quadratics import Quadratics

Cohorts = Sequence[Sequence[int]]
Batches = Callable[[int, int], list[np.ndarray]] | None
StepSize = Callable[[int], float]
C = Callable[[int, int, np.ndarray], np.ndarray]
History = list[np.ndarray]


def top_k(k: int) -> C:
    """The k entries of largest magnitude, of equal ones the first."""

    def compress(t: int, i: int, v: np.ndarray) -> np.ndarray:
        out = np.zeros_like(v)
        kept = np.argsort(-np.abs(v), kind="stable")[:k]
        out[kept] = v[kept]
        return out

    return compress


def gradient(f: Quadratics, batches: Batches, t: int, i: int, x: np.ndarray) -> np.ndarray:
    """Of the whole shard, or of all samples in the round's minibatches."""
    return f.grad(i, x, slice(None) if batches is None else np.concatenate(batches(t, i)))


def dcgd(f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C) -> History:
    """Khirirat et al. 2018."""
    history = []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * sum(C(t, i, gradient(f, batches, t, i, x)) for i in cohort) / len(cohort)
        history.append(x)
    return history


def ef14(f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C) -> History:
    """Seide et al. 2014, with gamma inside the compressor."""
    e, history = np.zeros((f.n, f.d)), []
    for t, cohort in enumerate(S, 1):
        total = np.zeros(f.d)
        for i in cohort:
            p = e[i] + gamma(t) * gradient(f, batches, t, i, x)
            v = C(t, i, p)
            e[i], total = p - v, total + v
        x = x - total / len(cohort)
        history.append(x)
    return history


def ef21(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, start: str = "dense",
    eta: float = 0.0, prox: Any = None,
) -> History:  # fmt: skip
    """Richtarik et al. 2021; with absent clients, server momentum eta and prox: Fatkhullin et al. 2021."""
    g = np.array([gradient(f, batches, 0, i, x) for i in range(f.n)])
    g = np.array([C(0, i, v) for i, v in enumerate(g)]) if start == "compressed" else g * (start == "dense")
    v, history = g.mean(0), []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * v
        x = x if prox is None else prox(x, gamma(t))
        for i in cohort:
            g[i] += C(t, i, gradient(f, batches, t, i, x) - g[i])
        v = eta * v + g.mean(0)
        history.append(x)
    return history


def ef21_plus(f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C) -> History:
    """Richtarik et al. 2021."""
    g, history = np.array([gradient(f, batches, 0, i, x) for i in range(f.n)]), []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * g.mean(0)
        for i in cohort:
            u = gradient(f, batches, t, i, x)
            b, m = C(t, i, u), g[i] + C(t, i, u - g[i])
            g[i] = m if np.linalg.norm(m - u) <= np.linalg.norm(b - u) else b
        history.append(x)
    return history


def ef21_w(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, L: np.ndarray
) -> History:
    """Richtarik et al. 2024: functions f_i / (n w_i) with weights w_i."""
    w = L / L.sum()
    g = np.array([gradient(f, batches, 0, i, x) / (f.n * w[i]) for i in range(f.n)])
    history = []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * w @ g
        for i in cohort:
            g[i] += C(t, i, gradient(f, batches, t, i, x) / (f.n * w[i]) - g[i])
        history.append(x)
    return history


def ef21_bc(f: Quadratics, x: np.ndarray, S: Cohorts, gamma: StepSize, C: C, C_M: C) -> History:
    """Fatkhullin et al. 2021: the server's message at the end of a round."""
    g_i = np.array([f.grad(i, x) for i in range(f.n)])
    g, history = g_i.mean(0), []
    for t, _ in enumerate(S, 1):
        x = x - gamma(t) * g
        for i in range(f.n):
            g_i[i] += C(t, i, f.grad(i, x) - g_i[i])
        g = g + C_M(t + 1, -1, g_i.mean(0) - g)            # the engine sends it in the next round
        history.append(x)
    return history


def ef21_sgdm(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, eta: float, double: bool = False
) -> History:
    """Fatkhullin, Tyurin, Richtarik 2023; before round 1 gradients of whole shards."""
    v = np.array([f.grad(i, x) for i in range(f.n)])
    u, g, history = v.copy(), v.copy(), []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * g.mean(0)
        for i in cohort:
            v[i] = (1 - eta) * v[i] + eta * gradient(f, batches, t, i, x)
            u[i] = (1 - eta) * u[i] + eta * v[i] if double else v[i]
            g[i] += C(t, i, u[i] - g[i])
        history.append(x)
    return history


def ef21_page(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, heads: Callable[[int], bool]
) -> History:
    """Fatkhullin et al. 2021; client i's last model is the one of the last round that it took part in."""
    v, last = np.array([f.grad(i, x) for i in range(f.n)]), np.array([x] * f.n)
    g, history = v.copy(), []
    for t, cohort in enumerate(S, 1):
        x = x - gamma(t) * g.mean(0)
        for i in cohort:
            change = gradient(f, batches, t, i, x) - gradient(f, batches, t, i, last[i])
            v[i], last[i] = f.grad(i, x) if heads(t) else v[i] + change, x
            g[i] += C(t, i, v[i] - g[i])
        history.append(x)
    return history


def econtrol(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, eta: float, start: str = "dense"
) -> History:
    """Gao, Islamov, Stich 2024."""
    h = np.array([gradient(f, batches, 0, i, x) for i in range(f.n)])
    h = np.array([C(0, i, v) for i, v in enumerate(h)]) if start == "compressed" else h * (start == "dense")
    e, history = np.zeros_like(h), []
    for t, cohort in enumerate(S, 1):
        for i in cohort:
            g = gradient(f, batches, t, i, x)
            D = C(t, i, eta * e[i] + g - h[i])
            e[i] += g - h[i] - D
            h[i] += D
        x = x - gamma(t) * h.mean(0)
        history.append(x)
    return history


def ec_ideal(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, x_star: np.ndarray
) -> History:
    """Gao, Islamov, Stich 2024."""
    h, e, history = np.array([f.grad(i, x_star) for i in range(f.n)]), np.zeros((f.n, f.d)), []
    for t, cohort in enumerate(S, 1):
        total = np.zeros(f.d)
        for i in cohort:
            g = gradient(f, batches, t, i, x)
            D = C(t, i, e[i] + g - h[i])
            e[i], total = e[i] + g - h[i] - D, total + D
        x = x - gamma(t) * (h.mean(0) + total / len(cohort))
        history.append(x)
    return history


def diana(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, alpha: float
) -> History:
    """Mishchenko et al. 2019."""
    h, history = np.zeros((f.n, f.d)), []
    for t, cohort in enumerate(S, 1):
        m = {i: C(t, i, gradient(f, batches, t, i, x) - h[i]) for i in cohort}
        x = x - gamma(t) * (h.mean(0) + sum(m.values()) / len(cohort))
        for i in cohort:
            h[i] += alpha * m[i]
        history.append(x)
    return history


def marina(
    f: Quadratics, x: np.ndarray, S: Cohorts, batches: Batches, gamma: StepSize, C: C, heads: Callable[[int], bool]
) -> History:
    """Gorbunov et al. 2021; with heads everybody sends its whole gradient, also when only some take part."""
    g, history = np.mean([f.grad(i, x) for i in range(f.n)], 0), []
    for t, cohort in enumerate(S, 1):
        before, x = x, x - gamma(t) * g
        if heads(t):
            g = np.mean([f.grad(i, x) for i in range(f.n)], 0)
        else:
            change = {i: gradient(f, batches, t, i, x) - gradient(f, batches, t, i, before) for i in cohort}
            g = g + sum(C(t, i, d) for i, d in change.items()) / len(cohort)
        history.append(x)
    return history
