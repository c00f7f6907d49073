"""Small heterogeneous quadratics in plain numpy, and the same data as a federation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.clients import cohort
from fedsim.engine.federation import Backend, Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model

SEED = 3


@dataclass(frozen=True)
class Quadratics:
    """``f_i(x) = ||A_i x - b_i||^2 / (2 m_i)`` with ``A_i [m_i, d]``, and ``f`` the mean of the f_i."""

    A: list[np.ndarray]
    b: list[np.ndarray]

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.A)

    @property
    def d(self) -> int:
        """Dimension."""
        return self.A[0].shape[1]

    def grad(self, i: int, x: np.ndarray, B: Any = slice(None)) -> np.ndarray:
        """Gradient of client i's mean loss over the rows ``B`` at ``x [d]``."""
        A, b = self.A[i][B], self.b[i][B]
        return A.T @ (A @ x - b) / len(b)

    def H(self, i: int) -> np.ndarray:
        """Hessian of ``f_i``."""
        return self.A[i].T @ self.A[i] / len(self.b[i])

    def own_minimiser(self, i: int) -> np.ndarray:
        """Minimiser of ``f_i``."""
        return np.linalg.solve(self.H(i), self.A[i].T @ self.b[i] / len(self.b[i]))

    def minimiser(self) -> np.ndarray:
        """Minimiser of ``f``."""
        right = sum(self.A[i].T @ self.b[i] / len(self.b[i]) for i in range(self.n))
        return np.linalg.solve(sum(self.H(i) for i in range(self.n)), right)


def heterogeneous(n: int = 10, d: int = 20, seed: int = 0, same: bool = False) -> Quadratics:
    """Hessians with eigenvalues from 0.1 to 1 in random directions, own minimisers, noisy rows, unequal sizes.

    With ``same`` all clients hold the data of the first.
    """
    rng = np.random.default_rng(seed)
    A, b = [], []
    for m in rng.integers(d, 2 * d, n):
        left, right = (np.linalg.qr(rng.standard_normal((k, d)))[0] for k in (m, d))
        A.append(m**0.5 * (left * np.geomspace(1, 0.1, d) ** 0.5) @ right.T)
        b.append(A[-1] @ rng.standard_normal(d) + 0.3 * rng.standard_normal(m))
    return Quadratics([A[0]] * n, [b[0]] * n) if same else Quadratics(A, b)


F = heterogeneous()
X0 = np.random.default_rng(9).standard_normal(F.d)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``(o - t)^2 / 2`` for each sample."""
    return 0.5 * (outputs.squeeze(-1) - targets) ** 2


def federation(
    f: Quadratics,
    work: LocalWork,
    backend: Backend | None = None,
    decay: Callable[[int], float] = lambda t: 1.0,
    weights: np.ndarray | None = None,
) -> Federation:
    """The engine's view of ``f``."""
    x, y = torch.from_numpy(np.concatenate(f.A)), torch.from_numpy(np.concatenate(f.b))
    offsets = np.r_[0, np.cumsum([len(b) for b in f.b])]
    model = Model(nn.Linear(f.d, 1, bias=False), half_squared_error, dtype=torch.float64)
    return Federation(model, Shards(x, y, offsets), work, SEED, backend or Loop(), decay=decay, weights=weights)


def batches_of(fed: Federation) -> Callable[[int, int], list[np.ndarray]]:
    """The rows of client i's own data that it visits in each step of round t."""

    def batches(t: int, i: int) -> list[np.ndarray]:
        (plan,) = minibatches(fed.work, fed.shards, fed.seed, t, np.array([i]))
        own = plan.index - fed.shards.offsets[i]
        return [rows[:length] for rows, length in zip(own, plan.lengths, strict=True)]

    return batches


def states(
    algorithm: Any, fed: Federation, x0: np.ndarray, cohorts: Sequence[Sequence[int]], meter: Meter | None = None
) -> list[Any]:
    """The state after initialisation and after each round."""
    all_states = [algorithm.init(torch.from_numpy(x0), cohort(fed, 0, meter=meter))]
    for t, S in enumerate(cohorts, 1):
        all_states.append(algorithm.round(all_states[-1], cohort(fed, t, np.array(S), meter)))
    return all_states


def iterates(algorithm: Any, fed: Federation, x0: np.ndarray, cohorts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The server's model after each round."""
    return [state.x.numpy() for state in states(algorithm, fed, x0, cohorts)[1:]]


def everybody(n: int, rounds: int) -> list[list[int]]:
    """Cohorts of full participation."""
    return [list(range(n))] * rounds


def some(n: int, size: int, rounds: int) -> list[list[int]]:
    """Cohorts of ``size`` clients, drawn without replacement."""
    rng = np.random.default_rng(5)
    return [sorted(rng.choice(n, size, replace=False).tolist()) for _ in range(rounds)]
