"""Compressed gossip in plain numpy, in the notation of the papers, with every node's copies of its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.algorithms.quadratics import Quadratics

Operator = Callable[[np.ndarray], np.ndarray]


def top(k: int) -> Operator:
    """The k entries of largest magnitude of each row; of equal ones those of lowest index."""

    def compress(x: np.ndarray) -> np.ndarray:
        out = np.zeros_like(x)
        for row, to in zip(x, out, strict=True):
            kept = np.lexsort((np.arange(len(row)), -abs(row)))[:k]
            to[kept] = row[kept]
        return out

    return compress


def gradients(f: Quadratics, x: np.ndarray) -> np.ndarray:
    """Every node's own gradient at its own model, ``[n, d]``."""
    return np.array([f.grad(i, x[i]) for i in range(f.n)])


def choco(
    f: Quadratics, W: np.ndarray, x: np.ndarray, C: Operator, eta: float, gamma: float, T: int
) -> list[np.ndarray]:
    """CHOCO-SGD with full gradients; CHOCO-Gossip for eta = 0."""
    xhat, path = np.zeros_like(x), []
    for _ in range(T):
        x = x - eta * gradients(f, x)
        xhat = xhat + C(x - xhat)
        x = x + gamma * np.array([sum(W[i, j] * (xhat[j] - xhat[i]) for j in range(len(W))) for i in range(len(W))])
        path.append(x)
    return path


def deep_squeeze(
    f: Quadratics, W: np.ndarray, x: np.ndarray, C: Operator, eta: float, gamma: float, T: int
) -> list[np.ndarray]:
    """DeepSqueeze with full gradients."""
    e, path = np.zeros_like(x), []
    for _ in range(T):
        half = x - eta * gradients(f, x)
        p = half + e
        q = C(p)
        e = p - q
        x = half + gamma * (W - np.eye(len(W))) @ q
        path.append(x)
    return path


def beer(
    f: Quadratics, W: np.ndarray, x: np.ndarray, C: Operator, eta: float, gamma: float, T: int
) -> list[np.ndarray]:
    """BEER with full gradients."""
    v, h, g, path, away = gradients(f, x), np.zeros_like(x), np.zeros_like(x), [], W - np.eye(len(W))
    for _ in range(T):
        new = x + gamma * away @ h - eta * v
        h = h + C(new - h)
        v = v + gamma * away @ g + gradients(f, new) - gradients(f, x)
        g = g + C(v - g)
        x = new
        path.append(x)
    return path
