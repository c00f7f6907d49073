"""Affine local steps on dense networks: which are recognised, and that they do what the step as written does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg, FedProx, FedSAM, FedSpeed, Scaffold
from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.engine import step
from fedsim.engine.blocks import Blocks
from fedsim.engine.dense_fold import DenseFold
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.optimizers import HeavyBall
from tests.engine.test_replay import assert_same, federation


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[DenseFold]:
    """The folds on parameters instead of vectors, as they happen."""
    made: list[DenseFold] = []
    init = DenseFold.__init__

    def noted(self: DenseFold, *args: Any) -> None:
        made.append(self)
        init(self, *args)

    monkeypatch.setattr(DenseFold, "__init__", noted)
    return made


@pytest.mark.parametrize(
    ("algorithm", "work", "fused"),
    [
        (FedAvg(), LocalWork(4), True),
        (FedAvg(), LocalWork(4, weight_decay=0.1), True),
        (FedProx(mu=0.5), LocalWork(4), True),
        (Scaffold(), LocalWork(4, weight_decay=0.1, weight_decay_mode="step"), True),
        (FedSpeed(rho=0.0), LocalWork(4), True),
        (FedSAM(), LocalWork(4), False),
        (FedAvg(), LocalWork(4, clip_norm=1.0), False),
        (FedAvg(), LocalWork(4, optimizer=HeavyBall()), False),
        (FedAvg(), LocalWork(4, steps=2), False),          # not worth splitting and joining the vectors
    ],
)
def test_affine_steps_are_recognised(algorithm: Any, work: LocalWork, fused: bool, folds: list[DenseFold]) -> None:
    """A rewrite of an algorithm must not lose them unnoticed."""
    states, models = [], []
    for backend in (Loop(), Blocks(4)):
        fed = federation(backend, work)
        state = algorithm.init(fed.model.vector(), cohort(fed, 0))
        for round in (1, 2):
            state = algorithm.round(state, cohort(fed, round))
        states.append(state)
        models.append(fed.model)
    torch.testing.assert_close(states[1].x, states[0].x, rtol=1e-12, atol=1e-12)
    assert bool(folds) == fused
    assert any(form is not None for form in step.FORMS.get(models[1], {}).values()) == fused


def random_step(seed: int) -> Callable[..., Tensor]:
    """A random expression of depth 5 in the point, its gradient, two constants and numbers."""

    def one(y: Tensor, batch: Batch, local: Local, x: Tensor, h: Tensor, eta: Tensor) -> Tensor:
        drawn = np.random.default_rng(seed)
        leaves = [y, local.grad(y, batch), x, h]

        def grown(depth: int) -> Tensor:
            kind = drawn.integers(6) if depth else 6
            if kind == 0:
                return grown(depth - 1) + grown(depth - 1)
            if kind == 1:
                return grown(depth - 1) - grown(depth - 1)
            if kind == 2:
                return 0.3 * grown(depth - 1)
            if kind == 3:
                return grown(depth - 1) * (eta - 0.5 * eta * eta)
            if kind == 4:
                return -grown(depth - 1) / 3
            if kind == 5:
                return torch.add(grown(depth - 1), grown(depth - 1), alpha=-0.2)
            return leaves[drawn.integers(4)]

        return 0.1 * grown(5)

    return one


@pytest.mark.parametrize("size", [1, 4])
def test_random_affine_steps_do_as_written(size: int, folds: list[DenseFold]) -> None:
    for seed in range(8):
        one = random_step(seed)

        def client(local: Local, x: Tensor, one: Callable[..., Tensor] = one) -> Tensor:
            def step(y: Tensor, batch: Batch, x: Tensor, h: Tensor, eta: Tensor) -> Tensor:
                return one(y, batch, local, x, h, eta)

            h = local.steps * x                            # of each client its own
            return local.fold(step, x, x, h, 0.3 * local.decay)

        assert_same(client, size, LocalWork(4, epochs=2))
    assert len(folds) >= 8


def squares(y: Tensor, g: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return y - 0.1 * g + 0.01 * y * x


def scaled(y: Tensor, g: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return y - g / (10 * s)                                # a number for each client


def sampled(y: Tensor, g: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return y - 0.1 * g.sign()


@pytest.mark.parametrize("rule", [squares, scaled, sampled])
def test_other_steps_are_not(rule: Callable[..., Tensor], folds: list[DenseFold]) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, x: Tensor, s: Tensor) -> Tensor:
            return rule(y, local.grad(y, batch), x, s)

        return local.fold(step, x, x, local.steps)

    assert_same(client, 4)
    assert not folds


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(5, 3))


def linear() -> nn.Module:
    return nn.Linear(6, 3, bias=False)


@pytest.mark.parametrize("network", [dropped, linear])
@pytest.mark.parametrize("size", [1, 4])
def test_networks_without_biases_and_with_dropout(
    network: Callable[[], nn.Module], size: int, folds: list[DenseFold]
) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch, x: y - 0.1 * (local.grad(y, batch) + 0.5 * (y - x)), x, x, skip=1)

    assert_same(client, size, LocalWork(4, steps=6), network)
    assert folds
