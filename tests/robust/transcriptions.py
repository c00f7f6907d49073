"""The rules as their papers write them, on whole matrices in numpy float64."""

from __future__ import annotations

from itertools import combinations

import numpy as np

Rows = np.ndarray


def distances(x: Rows) -> np.ndarray:
    out: np.ndarray = ((x[:, None] - x) ** 2).sum(2)
    return out


def krum_order(x: Rows, f: int, neighbours: int | None = None, power: float = 1.0) -> list[int]:
    n = len(x)
    k = n - f - 2 if neighbours is None else neighbours
    scores = [np.sort(np.delete(row, i) ** power)[:k].sum() for i, row in enumerate(distances(x))]
    return list(np.argsort(scores, kind="stable"))


def multi_krum(x: Rows, f: int, m: int) -> np.ndarray:
    out: np.ndarray = x[krum_order(x, f)[:m]].mean(0)
    return out


def nearest(x: Rows, center: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(np.abs(x - center), 0, kind="stable")[:count]
    out: np.ndarray = np.take_along_axis(x, order, 0).mean(0)
    return out


def trimmed(x: Rows, f: int) -> np.ndarray:
    out: np.ndarray = np.sort(x, 0)[f : len(x) - f].mean(0)
    return out


def bulyan(x: Rows, f: int) -> np.ndarray:
    left, chosen = list(range(len(x))), list[int]()
    while len(chosen) < len(x) - 2 * f:
        chosen.append(left.pop(krum_order(x[left], f, max(1, len(left) - f - 2))[0]))
    theta = x[chosen]
    return nearest(theta, np.median(theta, 0), len(theta) - 2 * f)


def geometric_median(x: Rows, w: np.ndarray, steps: int, nu: float) -> np.ndarray:
    z = np.zeros(x.shape[1])
    for _ in range(steps):
        b = w / np.maximum(nu, np.linalg.norm(x - z, axis=1))
        z = b @ x / b.sum()
    return z


def clip(x: Rows, v: np.ndarray, w: np.ndarray, tau: float, steps: int) -> np.ndarray:
    for _ in range(steps):
        off = x - v
        v = v + (w * np.minimum(1, tau / np.linalg.norm(off, axis=1))) @ off
    return v


def mda(x: Rows, f: int) -> np.ndarray:
    d = distances(x)
    best = min(combinations(range(len(x)), len(x) - f), key=lambda s: d[np.ix_(s, s)].max())
    out: np.ndarray = x[list(best)].mean(0)
    return out


def around(x: Rows, center: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(((x - center) ** 2).sum(1), kind="stable")[:count]
    out: np.ndarray = x[order].mean(0)
    return out


def caf(x: Rows, f: int) -> np.ndarray:
    c, found = np.ones(len(x)), []
    while c.sum() > len(x) - 2 * f:
        mu = c @ x / c.sum()
        off = x - mu
        values, vectors = np.linalg.eigh(off.T @ (c[:, None] * off) / c.sum())
        found.append((values[-1], mu))
        t = (off @ vectors[:, -1]) ** 2
        c = c * np.maximum(0, 1 - t / t[c > 0].max())
    best: np.ndarray = min(found, key=lambda pair: pair[0])[1]
    return best


def nnm(x: Rows, f: int) -> Rows:
    return np.stack([around(x, row, len(x) - f) for row in x])


def flag(x: Rows, m: int, lam: float = 0.0, steps: int = 5) -> np.ndarray:
    """The paper's objective and IRLS, with singular vectors of ``[d, p + p (p - 1)]`` matrices."""
    p = len(x)
    u = (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    pairs = [(u[:, i] - u[:, j]) / np.linalg.norm(u[:, i] - u[:, j]) for i in range(p) for j in range(p) if i != j]
    both = np.stack(pairs, 1)

    def of(y: np.ndarray, columns: np.ndarray) -> np.ndarray:
        out: np.ndarray = ((y.T @ columns) ** 2).sum(0)
        return out

    def objective(y: np.ndarray) -> float:
        rest = lam / (p - 1) * np.sqrt(np.maximum(0, 1 - of(y, both))).sum()
        return float(np.sqrt(np.maximum(0, 1 - of(y, u))).sum() + rest)

    y = np.linalg.svd(u, full_matrices=False)[0][:, :m]
    value = objective(y)
    for _ in range(steps):
        a = (np.abs(1 - of(y, u)) + 1e-7) ** -0.25
        b = np.sqrt(lam / (p - 1)) * (np.abs(1 - of(y, both)) + 1e-7) ** -0.25
        new = np.linalg.svd(np.hstack([a * u, b * both]), full_matrices=False)[0][:, :m]
        after = objective(new)
        if after >= value:
            break
        y, gain, value = new, value - after, after
        if gain < 1e-10:
            break
    out: np.ndarray = y @ (y.T @ u.sum(1)) / p
    return out


def flag_code(x: Rows, start: np.ndarray, lam: float = 0.0) -> np.ndarray:
    """The released code from the orthonormal ``start [d, m]``: one iteration, scale 1 / m, pairs as differences."""
    p, m = len(x), start.shape[1]
    u = (x / np.linalg.norm(x, axis=1, keepdims=True)).T

    def missing(y: np.ndarray, v: np.ndarray) -> float:
        return float(1 - ((y.T @ v) ** 2).sum())

    columns = [(abs(missing(start, u[:, i])) + 1e-7) ** -0.25 * u[:, i] for i in range(p)]
    for i in range(p):
        for j in range(p):
            if i != j and lam:
                off = u[:, i] - u[:, j]
                columns.append((abs(missing(start, off)) + 1e-7) ** -0.25 * lam / (p * (p - 1)) * off)
    y = np.linalg.svd(np.stack(columns, 1), full_matrices=False)[0][:, :m]
    before, after = (sum(max(0.0, missing(z, u[:, i])) ** 0.5 for i in range(p)) for z in (start, y))
    y = y if before - after > 0 else start
    out: np.ndarray = y @ (y.T @ u.sum(1)) / m
    return out
