"""Problems of theory as federations, and the classical examples of compressed methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.model import Model
from fedsim.problems import Problem, quadratic_from

BEZNOSIKOV = quadratic_from(
    np.array([2 * np.outer(v, v) + np.eye(3) / 2 for v in ([-3, 2, 2], [2, -3, 2], [2, 2, -3])]), np.zeros((3, 3))
)
"""f_i(x) = <v_i, x>^2 + ||x||^2 / 4: strongly convex, and yet Top-1 gradients point uphill on average."""

GRADIENTS = LocalWork(batch_size=0, steps=1)


def federation_of(problem: Problem, backend: Any = None, work: LocalWork = GRADIENTS, seed: int = 3) -> Federation:
    """The engine's view of a problem, in float64; everybody in one block by default."""
    train = problem.dataset.train
    assert train.client is not None
    offsets = np.r_[0, np.cumsum(np.bincount(train.client))]
    model = Model(problem.module, problem.loss, problem.penalty, dtype=torch.float64)
    return Federation(model, Shards(train.x, train.y, offsets), work, seed, backend or Blocks(problem.n))


def trajectory(algorithm: Any, problem: Problem, x0: Any, rounds: int, fed: Federation | None = None) -> list[Any]:
    """The states after initialisation and after each round, with everybody."""
    fed = fed or federation_of(problem)
    states = [algorithm.init(torch.as_tensor(x0, dtype=torch.float64), cohort(fed, 0))]
    for t in range(1, rounds + 1):
        states.append(algorithm.round(states[-1], cohort(fed, t)))
    return states


def last(algorithm: Any, problem: Problem, x0: Any, rounds: int) -> np.ndarray:
    """The model after so many rounds with everybody."""
    fed = federation_of(problem)
    state = algorithm.init(torch.as_tensor(x0, dtype=torch.float64), cohort(fed, 0))
    for t in range(1, rounds + 1):
        state = algorithm.round(state, cohort(fed, t))
    x: np.ndarray = state.x.numpy()
    return x
