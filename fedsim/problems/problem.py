"""A federated problem with known smoothness constants.

``f(x) = (1/n) sum_i f_i(x)``, where ``f_i(x)`` is the mean loss over client i's rows ``a``, at outputs ``a . x``, plus
the penalty. All clients have the same weight, regardless of their number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError
from fedsim.models import Logistic
from fedsim.problems.constants import Constants


@dataclass(frozen=True, eq=False)
class Problem:
    """A task (data, module, loss, penalty) with its theoretical constants.

    Attributes:
        dataset: float64 rows ``[N, d]`` with targets ``[N]``; ``train.client`` holds their owners.
        module: linear model without intercept, whose only parameter is ``x [d]``, at zero.
        loss: per-sample loss, outputs ``[B, 1]`` and targets ``[B]`` to ``[B]``.
        penalty: function of ``x [d]`` added to every client's objective, or None.
        minimizer: ``x* [d]`` of f, or None if unknown.
        f_min: ``f(x*)``, or None if unknown.
        smoothness: L, a Lipschitz constant of the gradient of f.
        local_smoothness: L_i of the gradients of the f_i, ``[n]``.
        mu: strong convexity constant of f, 0 without one.
        curvature: largest second derivative of the loss with respect to the output.
        pooled_smoothness: smoothness of the mean over all rows, if known; papers use it as L.
    """

    dataset: Dataset
    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor] | None
    minimizer: Tensor | None
    f_min: float | None
    smoothness: float
    local_smoothness: np.ndarray
    mu: float
    curvature: float
    pooled_smoothness: float | None = None

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.local_smoothness)

    @cached_property
    def constants(self) -> Constants:
        """Constants from which theoretical step sizes are computed."""
        L_i, d = tuple(map(float, self.local_smoothness)), self.dataset.train.x.shape[1]
        sharing = self.n if self.penalty else self._sharing()
        return Constants(self.smoothness, L_i, d, self.mu, sharing, self._sample_smoothness())

    def _sample_smoothness(self) -> float:
        """``Constants.L_samples``: the clients' ``curvature^2`` times the largest eigenvalue of mean(|a|^2 a a^T)."""
        rows, client = self.dataset.train.x.numpy(), owners(self.dataset.train)
        rows = rows * np.linalg.norm(rows, axis=1, keepdims=True)
        parts = [rows[client == i] for i in range(self.n)]
        mean = np.mean([largest_eigenvalue(part) / len(part) for part in parts])
        return self.curvature * float(np.sqrt(mean))

    def _sharing(self) -> int:
        """Largest number of clients in whose rows the same coordinate is not always 0."""
        train = self.dataset.train
        used = [(train.x[torch.from_numpy(owners(train) == i)] != 0).any(0) for i in range(self.n)]
        return int(torch.stack(used).sum(0).max())

    def value(self, x: Tensor) -> Tensor:
        """``f(x)`` of a vector ``[d]``, 0-dim."""
        train = self.dataset.train
        return self._objective(x, train, row_weights(owners(train)))

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of f at ``x``, both ``[d]``."""
        gradient: Tensor = torch.func.grad(self.value)(x)
        return gradient

    def client_value(self, i: int, x: Tensor) -> Tensor:
        """``f_i(x)`` of client ``i`` in 0 to n - 1, 0-dim.

        Raises:
            ConfigError: there is no such client.
        """
        if not 0 <= i < self.n:
            raise ConfigError(f"got client {i}; expected 0 to {self.n - 1}")
        train = self.dataset.train
        mine = torch.from_numpy(owners(train) == i)
        rows = Split(train.x[mine], train.y[mine])
        return self._objective(x, rows, torch.full((len(rows.y),), 1 / len(rows.y), dtype=torch.float64))

    def client_gradient(self, i: int, x: Tensor) -> Tensor:
        """Gradient of ``f_i`` at ``x``, both ``[d]``."""
        gradient: Tensor = torch.func.grad(partial(self.client_value, i))(x)
        return gradient

    def _objective(self, x: Tensor, rows: Split, weights: Tensor) -> Tensor:
        loss = weights @ self.loss(rows.x @ x, rows.y)
        return loss if self.penalty is None else loss + self.penalty(x)


TRAINING_ROWS = "the test split is the training split, as theory is about f alone"
"""Note for a problem without separate test rows."""


def owners(split: Split) -> np.ndarray:
    """Owner of each row ``[N]``; required of every problem."""
    assert split.client is not None
    return split.client


def row_weights(client: np.ndarray) -> Tensor:
    """Weight ``1 / (n N_i)`` of each row ``[N]`` in f, for its owner's ``N_i`` rows."""
    sizes = np.bincount(client)
    return torch.from_numpy(1 / (len(sizes) * sizes[client]))


def largest_eigenvalue(a: np.ndarray) -> float:
    """Largest eigenvalue of ``a^T a``, from the smaller of the two Gram matrices."""
    gram = a.T @ a if len(a) > a.shape[1] else a @ a.T
    return float(np.linalg.eigvalsh(gram)[-1])


def linear_module(d: int) -> nn.Module:
    """Model ``a . x`` in float64 at ``x = 0``; does not change torch's random state."""
    with torch.random.fork_rng(devices=[]):
        return Logistic(bias=False, zero=True).build((d,), classes=1).double()
