"""The decentralized papers, transcribed in their notation in plain numpy: loops over nodes, nothing stacked.

``W(t)`` is the mixing matrix of round t, ``batches(t, i)`` the rows of node i's steps, ``eta(t)`` the step size. Each
function returns the nodes' models ``[n, d]`` after rounds 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.algorithms.papers import Batches, StepSize
from tests.algorithms.quadratics import Quadratics

Mixing = Callable[[int], np.ndarray]


def gossip(W: np.ndarray, z: list[np.ndarray]) -> list[np.ndarray]:
    """``z_i <- sum_l w_il z_l``."""
    return [sum(W[i, j] * z[j] for j in range(len(z))) for i in range(len(z))]


def dfedavg(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int,
    theta: float = 0.0, Q: int = 1, combine_first: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """Sun et al. 2023: heavy ball with a buffer that starts at 0 in every round, and Q exchanges."""
    x = [x0] * f.n
    history = []
    for t in range(1, T + 1):
        for _ in range(Q if combine_first else 0):
            x = gossip(W(t), x)
        for i in range(f.n):
            m = np.zeros_like(x0)
            for B in batches(t, i):
                m = theta * m + f.grad(i, x[i], B)
                x[i] = x[i] - eta(t) * m
        for _ in range(0 if combine_first else Q):
            x = gossip(W(t), x)
        history.append(np.array(x))
    return history


def dfedsam(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, rho: float, Q: int = 1,
    combine_first: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """Shi et al. 2023, or with the exchanges first."""
    x = [x0] * f.n
    history = []
    for t in range(1, T + 1):
        y = list(x)
        for _ in range(Q if combine_first else 0):
            y = gossip(W(t), y)
        for i in range(f.n):
            for B in batches(t, i):
                g = f.grad(i, y[i], B)
                y[i] = y[i] - eta(t) * f.grad(i, y[i] + rho * g / np.linalg.norm(g), B)
        for _ in range(0 if combine_first else Q):
            y = gossip(W(t), y)
        x = y
        history.append(np.array(x))
    return history


def gradients(f: Quadratics, x: list[np.ndarray], batches: Batches, t: int) -> list[np.ndarray]:
    """Every node's mean gradient over the samples of its minibatches of round t."""
    return [f.grad(i, x[i], np.concatenate(batches(t, i))) for i in range(f.n)]


def dpsgd(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, beta: float = 0.0
) -> list[np.ndarray]:
    """Lian et al. 2017, Algorithm 1: the gradient at the node's own model, before the exchange; momentum of workers."""
    x, m = [x0] * f.n, [np.zeros_like(x0)] * f.n
    history = []
    for t in range(1, T + 1):
        g, half = gradients(f, x, batches, t), gossip(W(t), x)
        m = [beta * m[i] + (1 - beta) * g[i] for i in range(f.n)]
        x = [half[i] - eta(t) * m[i] for i in range(f.n)]
        history.append(np.array(x))
    return history


def dsgt(f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int) -> list[np.ndarray]:
    """Pu and Nedić 2021; round 0 is of the first gradients."""
    x = [x0] * f.n
    g = y = gradients(f, x, batches, 0)
    history = []
    for t in range(1, T + 1):
        x = gossip(W(t), [x[i] - eta(t) * y[i] for i in range(f.n)])
        g_plus, mixed = gradients(f, x, batches, t), gossip(W(t), y)
        y = [mixed[i] + g_plus[i] - g[i] for i in range(f.n)]
        g = g_plus
        history.append(np.array(x))
    return history


def extra(f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int) -> list[np.ndarray]:
    """Shi et al. 2015: x^{k+2} = (I + W) x^{k+1} - W~ x^k - alpha (grad f(x^{k+1}) - grad f(x^k)) with one W."""
    W_, eye = W(1), np.eye(f.n)
    x_k = [x0] * f.n
    g_k = gradients(f, x_k, batches, 1)
    mixed = gossip(W_, x_k)
    x_k1 = [mixed[i] - eta(1) * g_k[i] for i in range(f.n)]
    history = [np.array(x_k1)]
    for t in range(2, T + 1):
        g_k1 = gradients(f, x_k1, batches, t)
        new, old = gossip(eye + W_, x_k1), gossip((eye + W_) / 2, x_k)
        x_k2 = [new[i] - old[i] - (eta(t) * g_k1[i] - eta(t - 1) * g_k[i]) for i in range(f.n)]
        x_k, x_k1, g_k = x_k1, x_k2, g_k1
        history.append(np.array(x_k1))
    return history


def exact_diffusion(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int
) -> list[np.ndarray]:
    """Yuan et al. 2019, Algorithm 1, with A~ = (I + A) / 2 and psi_{i,-1} = w_{i,-1}."""
    w = psi = [x0] * f.n
    history = []
    for t in range(1, T + 1):
        g = gradients(f, w, batches, t)
        psi_new = [w[i] - eta(t) * g[i] for i in range(f.n)]
        phi = [psi_new[i] + w[i] - psi[i] for i in range(f.n)]
        w, psi = gossip((np.eye(f.n) + W(t)) / 2, phi), psi_new
        history.append(np.array(w))
    return history


def sgp(f: Quadratics, x0: np.ndarray, P: Mixing, batches: Batches, eta: StepSize, T: int) -> list[np.ndarray]:
    """Assran et al. 2019, Algorithm 1: the de-biased z_i; with several local steps, all of them from z_i."""
    x, w, z = [x0] * f.n, [np.ones(1)] * f.n, [x0] * f.n
    history = []
    for t in range(1, T + 1):
        for i in range(f.n):
            y = z[i]
            for B in batches(t, i):
                y = y - eta(t) * f.grad(i, y, B)
            x[i] = x[i] + (y - z[i])
        x, w = gossip(P(t), x), gossip(P(t), w)
        z = [x[i] / w[i] for i in range(f.n)]
        history.append(np.array(z))
    return history


def nids(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, theta: float = 0.5,
    lam: float = 0.0,
) -> list[np.ndarray]:  # fmt: skip
    """Li, Shi, Yan 2019, Algorithm 1, with c alpha = theta for every node and r = lam ||x||_1."""

    def prox(z: np.ndarray, t: int) -> np.ndarray:
        return np.where(z > eta(t) * lam, z - eta(t) * lam, np.where(z < -eta(t) * lam, z + eta(t) * lam, 0))

    x_k = [x0] * f.n
    g_k = gradients(f, x_k, batches, 1)
    z = [x_k[i] - eta(1) * g_k[i] for i in range(f.n)]
    x = [prox(z_i, 1) for z_i in z]
    history = [np.array(x)]
    for t in range(2, T + 1):
        g = gradients(f, x, batches, t)
        W_tilde = np.eye(f.n) - theta * (np.eye(f.n) - W(t))
        heard = gossip(W_tilde, [2 * x[i] - x_k[i] - eta(t) * g[i] + eta(t - 1) * g_k[i] for i in range(f.n)])
        z = [z[i] - x[i] + heard[i] for i in range(f.n)]
        x_k, g_k, x = x, g, [prox(z_i, t) for z_i in z]
        history.append(np.array(x))
    return history


def d2(f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int) -> list[np.ndarray]:
    """Tang et al. 2018, Algorithm 1."""
    x_t = [x0] * f.n
    g_t = gradients(f, x_t, batches, 1)
    x = gossip(W(1), [x_t[i] - eta(1) * g_t[i] for i in range(f.n)])
    history = [np.array(x)]
    for t in range(2, T + 1):
        g = gradients(f, x, batches, t)
        half = [2 * x[i] - x_t[i] - eta(t) * g[i] + eta(t - 1) * g_t[i] for i in range(f.n)]
        x_t, g_t, x = x, g, gossip(W(t), half)
        history.append(np.array(x))
    return history


def kgt(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, eta_s: float = 1.0
) -> list[np.ndarray]:
    """Liu et al. 2023; z_i is the mean corrected gradient of node i's steps, and c_i begins at 0."""
    x, c = [x0] * f.n, [np.zeros_like(x0)] * f.n
    history = []
    for t in range(1, T + 1):
        z = []
        for i in range(f.n):
            y, corrected = x[i], []
            for B in batches(t, i):
                corrected.append(f.grad(i, y, B) + c[i])
                y = y - eta(t) * corrected[-1]
            z.append(sum(corrected) / len(corrected))
        K = [len(batches(t, i)) for i in range(f.n)]
        x = gossip(W(t), [x[i] - K[i] * eta_s * eta(t) * z[i] for i in range(f.n)])
        heard = gossip(W(t), z)
        c = [c[i] - z[i] + heard[i] for i in range(f.n)]
        history.append(np.array(x))
    return history


def qg_dsgdm(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, beta: float, mu: float,
    nesterov: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """Lin et al. 2021, Algorithm 1: m^ is the quasi-global momentum."""
    x, m_hat = [x0] * f.n, [np.zeros_like(x0)] * f.n
    history = []
    for t in range(1, T + 1):
        g, half = gradients(f, x, batches, t), []
        for i in range(f.n):
            m = beta * m_hat[i] + g[i]
            half.append(x[i] - eta(t) * (g[i] + beta * m if nesterov else m))
        new = gossip(W(t), half)
        d = [(x[i] - new[i]) / eta(t) for i in range(f.n)]
        m_hat = [mu * m_hat[i] + (1 - mu) * d[i] for i in range(f.n)]
        x = new
        history.append(np.array(x))
    return history
