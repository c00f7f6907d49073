"""Local methods that overlap communication, transcribed in their papers' notation in plain numpy; everybody takes part.

``batches(t, i)`` are the rows of worker i's steps in round t, ``eta(t)`` the inner step size. Each function returns the
models after rounds 1, 2, ...: the server's, or those of all nodes ``[n, d]``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.algorithms.gossip_papers import Mixing, gossip
from tests.algorithms.papers import Batches, StepSize, mean
from tests.algorithms.quadratics import Quadratics

Rounds = list[np.ndarray]
Trained = Callable[[Quadratics, int, np.ndarray, list[np.ndarray], float], np.ndarray]


def trained(f: Quadratics, i: int, x: np.ndarray, rows: list[np.ndarray], eta: float) -> np.ndarray:
    """Worker i's model after one inner step for each entry of ``rows``."""
    for B in rows:
        x = x - eta * f.grad(i, x, B)
    return x


class AdamWSteps:
    """`trained` with AdamW (Loshchilov and Hutter 2019), a round of which is computed in two calls for each worker.

    Args:
        keep: whether its means and their count go on from round to round.
    """

    def __init__(self, keep: bool, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.01) -> None:
        self.keep, self.betas, self.decay = keep, betas, decay
        self.calls: dict[int, int] = {}
        self.means: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def __call__(self, f: Quadratics, i: int, x: np.ndarray, rows: list[np.ndarray], eta: float) -> np.ndarray:
        """See `trained`."""
        self.calls[i] = self.calls.get(i, 0) + 1
        if i not in self.means or (self.calls[i] % 2 and not self.keep):
            self.means[i] = np.zeros_like(x), np.zeros_like(x), 0
        (one, two), (m, v, k) = self.betas, self.means[i]
        for B in rows:
            g, k = f.grad(i, x, B), k + 1
            m, v = one * m + (1 - one) * g, two * v + (1 - two) * g * g
            x = x - eta * self.decay * x
            x = x - eta * (m / (1 - one**k)) / (np.sqrt(v / (1 - two**k)) + 1e-8)
        self.means[i] = m, v, k
        return x


def diloco(
    f: Quadratics, x: np.ndarray, batches: Batches, eta: StepSize, T: int, alpha: float, mu: float, nesterov: bool
) -> Rounds:
    history, m = [], np.zeros_like(x)
    for t in range(1, T + 1):
        D = x - mean([trained(f, i, x, batches(t, i), eta(t)) for i in range(f.n)])
        m = mu * m + D
        x = x - alpha * (D + mu * m if nesterov else m)
        history.append(x)
    return history


def slowmo(
    f: Quadratics, x: np.ndarray, batches: Batches, eta: StepSize, T: int, alpha: float, beta: float
) -> Rounds:
    history, u = [], np.zeros_like(x)
    for t in range(1, T + 1):
        ybar = mean([trained(f, i, x, batches(t, i), eta(t)) for i in range(f.n)])
        u = beta * u + (x - ybar) / eta(t)
        x = x - alpha * eta(t) * u
        history.append(x)
    return history


def co2(
    f: Quadratics, x: np.ndarray, batches: Batches, eta: StepSize, T: int, alpha: float, beta: float,
    phi: float = np.inf, gap: bool = False,
) -> Rounds:  # fmt: skip
    """One more round than T is not trained: it receives what is under way."""
    history: Rounds = []
    m, largest, x_prev = np.zeros_like(x), 0.0, x
    pending: tuple[np.ndarray, np.ndarray] | None = None
    for t in range(1, T + 2):
        if t <= T:
            buffer = mean([trained(f, i, x, batches(t, i), eta(t)) for i in range(f.n)])
        D = np.zeros_like(x) if pending is None else pending[0] - pending[1]
        largest = max(largest, float(np.sqrt(np.mean(D**2))))
        Lambda = 1 + float(np.sqrt(np.mean((x - x_prev) ** 2))) / largest if gap and largest else 1.0
        m = np.clip(beta * m + D / Lambda, -phi, phi)
        pending, x_prev, x = (x, buffer), x, x - alpha * m
        history.append(x)
    return history


def dco2(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, alpha: float, beta: float,
    gamma: float,
) -> Rounds:  # fmt: skip
    n, history = f.n, []
    x, m = [x0] * n, [np.zeros_like(x0)] * n
    pending: list[tuple[np.ndarray, np.ndarray]] | None = None
    for t in range(1, T + 1):
        y = [trained(f, i, x[i], batches(t, i), eta(t)) for i in range(n)]
        mixed = gossip(W(t), y)
        launched = [(x[i], y[i] + gamma * (mixed[i] - y[i])) for i in range(n)]
        for i in range(n):
            D = np.zeros_like(x0) if pending is None else pending[i][0] - pending[i][1]
            m[i] = beta * m[i] + D
            x[i] = x[i] - alpha * m[i]
        pending = launched
        history.append(np.stack(x))
    return history


def overlap_sgd(
    f: Quadratics, x0: np.ndarray, batches: Batches, eta: StepSize, T: int, alpha: float, beta: float
) -> Rounds:
    x, z, v, history = [x0] * f.n, x0, np.zeros_like(x0), []
    for t in range(1, T + 1):
        x = [(1 - alpha) * trained(f, i, x[i], batches(t, i), eta(t)) + alpha * z for i in range(f.n)]
        v = beta * v + (mean(x) - z)
        z = z + v
        history.append(z)
    return history


def cocod_sgd(f: Quadratics, x0: np.ndarray, batches: Batches, eta: StepSize, T: int) -> Rounds:
    x, history = [x0] * f.n, []
    for t in range(1, T + 1):
        average = mean(x)                                  # sent before the local steps, here after those of the last
        x = [average + trained(f, i, x[i], batches(t, i), eta(t)) - x[i] for i in range(f.n)]
        history.append(mean(x))
    return history


def streaming_diloco(
    f: Quadratics, x: np.ndarray, batches: Batches, eta: StepSize, T: int, fragments: list[np.ndarray], alpha: float,
    mu: float, tau: Callable[[int], int], own: float, trained: Trained = trained,
) -> Rounds:  # fmt: skip
    """``fragments`` are their coordinates, ``tau(K)`` the steps before one arrives, and ``own`` is their alpha."""
    F, history = len(fragments), []
    y, m, x = [x] * f.n, np.zeros_like(x), x.copy()
    for t in range(1, T + 1):
        old, new = fragments[(t - 1) % F], fragments[t % F]
        for i in range(f.n):
            rows = batches(t, i)
            at = tau(len(rows))
            y[i] = trained(f, i, y[i], rows[:at], eta(t)).copy()
            y[i][old] = own * y[i][old] + (1 - own) * x[old]
            y[i] = trained(f, i, y[i], rows[at:], eta(t))
        D = x[new] - mean(y)[new]
        m[new] = mu * m[new] + D
        x = x.copy()
        x[new] -= alpha * (D + mu * m[new])
        history.append(x)
    return history


def noloco(
    f: Quadratics, x0: np.ndarray, W: Mixing, batches: Batches, eta: StepSize, T: int, alpha: float, mu: float
) -> Rounds:
    n, history = f.n, []
    phi, delta = [x0] * n, [np.zeros_like(x0)] * n
    for t in range(1, T + 1):
        g = gossip(W(t), [trained(f, i, phi[i], batches(t, i), eta(t)) - phi[i] for i in range(n)])
        average = gossip(W(t), phi)
        delta = [mu * delta[i] + alpha * g[i] + alpha * (average[i] - phi[i]) for i in range(n)]
        phi = [phi[i] + delta[i] for i in range(n)]
        history.append(np.stack(phi))
    return history
