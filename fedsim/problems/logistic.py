"""Binary logistic regression of the EF21 experiments (Richtárik, Sokolov, Fatkhullin; NeurIPS 2021, arXiv 2106.05203).

``f_i(x) = mean_j log(1 + exp(-b_j a_j . x)) + r(x)`` over client i's rows, where ``r`` is

- l2: ``(lam/2) ||x||^2``, with smoothness and strong convexity lam;
- nonconvex: ``lam sum_j x_j^2 / (1 + x_j^2)``, with smoothness 2 lam.

Rows are assigned to clients in file order, in equal blocks; the last client also gets the remainder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError, suggest
from fedsim.models.losses import logistic
from fedsim.problems.problem import TRAINING_ROWS, Problem, largest_eigenvalue, linear_module, owners, row_weights


def l2(x: Tensor, lam: float) -> Tensor:
    """``(lam/2) ||x||^2`` of ``x [d]``, 0-dim."""
    return 0.5 * lam * x.square().sum()


def nonconvex(x: Tensor, lam: float) -> Tensor:
    """``lam sum_j x_j^2 / (1 + x_j^2)`` of ``x [d]``, 0-dim."""
    squares = x.square()
    return lam * (squares / (1 + squares)).sum()


PENALTIES = {"l2": (l2, 1.0, 1.0), "nonconvex": (nonconvex, 2.0, 0.0)}
"""Penalty by name, with its smoothness and its strong convexity as multiples of lam."""


def logistic_regression(
    data: Dataset | tuple[np.ndarray, np.ndarray],
    n: int = 20,
    lam: float = 0.1,
    regularizer: Literal["l2", "nonconvex"] = "l2",
) -> Problem:
    """Logistic regression on real data, heterogeneous through the order of the file.

    ``smoothness`` is that of f, the mean of the clients' means. EF21's own L is ``pooled_smoothness``, which differs in
    the fourth digit where ``n`` does not divide the number of rows. ``mu`` is that of the penalty.

    Args:
        data: features ``[N, d]`` and labels ``[N]`` of two values, the larger being the positive class; or a data set
            of two classes, whose inputs are flattened.
        n: number of clients.
        lam: weight of the penalty.
        regularizer: "l2" (the minimiser is computed) or "nonconvex" (no minimiser is known; ``f >= 0``).

    Raises:
        ConfigError: a setting is out of its range, or the labels do not take exactly two values.
    """
    if regularizer not in PENALTIES:
        raise ConfigError(f"regularizer is {regularizer!r}; {suggest(str(regularizer), PENALTIES)}")
    if not 0 <= lam < np.inf or (regularizer == "l2" and lam == 0):
        raise ConfigError(f"got lam={lam}; expected a positive number (or 0 with 'nonconvex')")
    dataset = _binary_dataset(data)
    rows, d = dataset.train.x.shape
    if not 1 <= n <= rows:
        raise ConfigError(f"got n={n} clients for {rows} rows; expected 1 to {rows}")
    client = np.minimum(np.arange(rows) // (rows // n), n - 1)
    penalty, smooth, convex = PENALTIES[regularizer]
    features = dataset.train.x.numpy()
    curvature, local_curvature = _curvatures(features, client)
    problem = Problem(
        dataset=replace(dataset, train=dataset.train._replace(client=client)),
        module=linear_module(d),
        loss=logistic,
        penalty=partial(penalty, lam=lam),
        minimizer=None,
        f_min=None,
        smoothness=curvature + smooth * lam,
        local_smoothness=local_curvature + smooth * lam,
        mu=convex * lam,
        curvature=1 / 4,
        pooled_smoothness=largest_eigenvalue(features) / (4 * rows) + smooth * lam,
    )
    if regularizer == "nonconvex":
        return problem
    x = _newton(problem, lam)
    return replace(problem, minimizer=x, f_min=float(problem.value(x)))


def _binary_dataset(data: Dataset | tuple[np.ndarray, np.ndarray]) -> Dataset:
    """The data as float64 ``[N, d]`` and int64 ``[N]`` in {0, 1}, without owners."""
    if isinstance(data, Dataset):
        if not isinstance(data.train.x, Tensor):
            raise ConfigError(f"got inputs of shapes {data.input_shape}; expected one tensor of features [N, d]")
        values = np.unique(data.train.y.numpy())
        train, test = (_binary(s.x.flatten(1).numpy(), s.y.numpy(), values) for s in (data.train, data.test))
        return Dataset(data.name, train, test, classes=2, notes=data.notes)
    features, labels = (np.asarray(part) for part in data)
    rows = _binary(features, labels, np.unique(labels))
    return Dataset("logistic_regression", rows, rows, classes=2, notes=TRAINING_ROWS)


def _binary(features: np.ndarray, labels: np.ndarray, values: np.ndarray) -> Split:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ConfigError(f"got features {features.shape} and labels {labels.shape}; expected [N, d] and [N]")
    if len(values) != 2:
        raise ConfigError(f"got {len(values)} distinct labels; expected two. Make them binary first, as in labels % 2")
    if not np.isfinite(features).all():
        raise ConfigError("got features with NaN or infinity; expected finite numbers. Drop or impute what is missing")
    positive = (labels == values[1]).astype(np.int64)
    return Split(torch.from_numpy(features.astype(np.float64)), torch.from_numpy(positive))


def _curvatures(a: np.ndarray, client: np.ndarray) -> tuple[float, np.ndarray]:
    """Largest curvature of the loss in f and in each f_i ``[n]``: 1/4 of the largest eigenvalue of mean(a a^T)."""
    parts = [a[client == i] for i in range(client[-1] + 1)]
    whole = largest_eigenvalue(a * row_weights(client).sqrt().numpy()[:, None])
    return whole / 4, np.array([largest_eigenvalue(part) / (4 * len(part)) for part in parts])


def _newton(problem: Problem, lam: float) -> Tensor:
    """Minimiser ``[d]`` of the l2 problem, by Newton steps that are halved until the gradient's norm falls."""
    train = problem.dataset.train
    weights = row_weights(owners(train))
    x = torch.zeros(train.x.shape[1], dtype=torch.float64)
    gradient = problem.gradient(x)
    goal = 1e-13 * max(1.0, float(gradient.norm()))
    for _ in range(100):
        norm = gradient.norm()
        if norm <= goal:
            return x
        p = torch.sigmoid(train.x @ x)
        hessian = (train.x.T * (weights * p * (1 - p))) @ train.x + lam * torch.eye(len(x), dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient)
        start = x
        for halvings in range(30):
            x = start - step / 2**halvings
            gradient = problem.gradient(x)
            if gradient.norm() < norm:
                break
    raise ConfigError(f"the minimiser's gradient is {norm:.1e}; expected {goal:.1e}. Scale the features or raise lam")
