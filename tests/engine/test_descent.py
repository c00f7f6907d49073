"""``local.descend``: the one local step of every method, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from tests.engine.test_replay import federation

BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])


@BACKENDS
def test_by_default_it_is_the_step_of_sgd_bit_for_bit(backend: Backend) -> None:
    def said(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, eta: Tensor, x: Tensor) -> Tensor:
            return local.descend(y, local.grad(y, batch) + 0.3 * (y - x), eta)

        return local.fold(step, x, 0.1 * local.decay, x)

    def written(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, eta: Tensor, x: Tensor) -> Tensor:
            return y - eta * (local.grad(y, batch) + 0.3 * (y - x))

        return local.fold(step, x, 0.1 * local.decay, x)

    fed = federation(backend)
    x = fed.model.vector()
    assert torch.equal(cohort(fed, 1).each(said, x).stacked, cohort(fed, 1).each(written, x).stacked)


@BACKENDS
def test_it_is_called_once_in_a_step_of_a_fold(backend: Backend) -> None:
    def twice(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            half = local.descend(y, local.grad(y, batch), 0.1)
            return local.descend(half, local.grad(half, batch), 0.1)

        return local.fold(step, x)

    def outside(local: Local, x: Tensor) -> Tensor:
        moved = local.fold(lambda y, batch: local.descend(y, local.grad(y, batch), 0.1), x)
        return local.descend(moved, local.grad(moved), 0.1)

    fed = federation(backend)
    x = fed.model.vector()
    with pytest.raises(ConfigError, match="called twice in one step"):
        cohort(fed, 1).each(twice, x)
    with pytest.raises(ConfigError, match="called outside"):
        cohort(fed, 1).each(outside, x)
