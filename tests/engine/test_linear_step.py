"""Linear local steps on dense networks: which are recognised, and that they do what the step as written does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg, FedGamma, FedProx, FedSAM, FedSMOO, FedSpeed, MoFedSAM, Scaffold
from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.engine import dense_fold, linear_stack, step
from fedsim.engine.blocks import Blocks
from fedsim.engine.dense_fold import DenseFold
from fedsim.engine.linear_stack import DenseStack
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.optimizers import SGD, Adagrad, Adam, AdamW, HeavyBall, Nesterov, RMSprop
from fedsim.engine.step_schedules import CosineSteps
from fedsim.models.losses import cross_entropy
from tests.engine.test_replay import assert_same, federation, run


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


@pytest.fixture(params=["factors", "whole"])
def gradients(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients as factors, or in memory, for whatever number of samples; optimisers step two clients at a time."""
    monkeypatch.setattr(dense_fold, "CACHED", 2 * 6 * 5)
    monkeypatch.setattr(linear_stack, "LOW_COST", {"factors": 0, "whole": 1e9}[request.param])


CLIPPED = LocalWork(4, clip_norm=0.3)
DECAYED = LocalWork(4, clip_norm=0.3, clip_mode="direction", weight_decay=0.1, weight_decay_mode="step")


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize(
    ("algorithm", "work", "linear"),
    [
        (FedAvg(), LocalWork(4), True),
        (FedAvg(), LocalWork(4, weight_decay=0.1), True),
        (FedAvg(), CLIPPED, True),
        (FedAvg(), LocalWork(4, epochs=2, step_schedule=CosineSteps(warmup=2)), True),
        (FedProx(mu=0.5), LocalWork(4), True),
        (Scaffold(), LocalWork(4, weight_decay=0.1, weight_decay_mode="step"), True),
        (FedSpeed(rho=0.0), LocalWork(4), True),
        (FedSpeed(), LocalWork(4), True),
        (FedSpeed(alpha=0.7), DECAYED, True),
        (FedSpeed(alpha=0.7, normalize=False), LocalWork(4), True),
        (FedSAM(rho=0.1), LocalWork(4), True),
        (FedSAM(rho=0.1), CLIPPED, True),
        (FedSAM(rho=0.1), DECAYED, True),
        (FedSAM(rho=0.1), LocalWork(4, step_schedule=CosineSteps()), True),
        (FedSMOO(), LocalWork(4), True),
        (FedSMOO(), CLIPPED, True),
        (MoFedSAM(), LocalWork(4), True),
        (FedGamma(rho=0.1), LocalWork(4), True),
        (FedAvg(), LocalWork(4, optimizer=HeavyBall()), True),
        (FedAvg(), LocalWork(4, optimizer=Adam(state="keep")), True),
        (FedAvg(), LocalWork(4, epochs=2, optimizer=AdamW(), step_schedule=CosineSteps()), True),
        (FedAvg(), replace(CLIPPED, optimizer=Nesterov()), True),
        (FedSAM(rho=0.1), replace(CLIPPED, optimizer=Adagrad(), epochs=2), True),
        (FedProx(mu=0.5), LocalWork(4, optimizer=Adagrad()), False),   # as y - x is 0, or sets the step's size
        (FedSAM(rho=0.1), LocalWork(4, optimizer=Adam()), True),
        (FedAvg(), LocalWork(4, optimizer=RMSprop()), False),
        (FedAvg(), LocalWork(4, steps=2), False),          # not worth splitting and joining the vectors
        (FedAvg(), LocalWork(4, micro_batch=2), False),
    ],
)
def test_linear_steps_are_recognised(algorithm: Any, work: LocalWork, linear: bool, folds: list[DenseFold]) -> None:
    """A rewrite of an algorithm must not lose them unnoticed."""
    states, models, charged = [], [], []
    for backend in (Loop(), Blocks(4)):
        fed = federation(backend, work)
        state = algorithm.init(fed.model.vector(), cohort(fed, 0))
        for round in (1, 2):
            state = algorithm.round(state, clients := cohort(fed, round))
        states.append(state)
        models.append(fed.model)
        charged.append(clients._meter.ledger.gradient_evaluations)
    torch.testing.assert_close(states[1].x, states[0].x, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(*charged)
    assert bool(folds) == linear
    assert any(form is not None for form in step.FORMS.get(models[1], {}).values()) == linear


@pytest.mark.parametrize(
    ("algorithm", "work", "streamed"),
    [
        (FedAvg(), LocalWork(4), True),
        (FedProx(mu=0.5), LocalWork(4), True),
        (Scaffold(), LocalWork(4, weight_decay=0.1), True),
        (FedSAM(rho=0.1), LocalWork(4), True),
        (FedSpeed(alpha=0.7), LocalWork(4), True),
        (FedAvg(), CLIPPED, False),                        # its norm comes first
        (FedAvg(momentum=0.9), LocalWork(4), False),       # two vectors read it
        (FedAvg(), LocalWork(4, optimizer=Adam()), False),
    ],
)
def test_a_gradient_that_only_the_new_point_reads_goes_there_layer_by_layer(
    algorithm: Any, work: LocalWork, streamed: bool, folds: list[DenseFold]
) -> None:
    fed = federation(Blocks(4), work)
    algorithm.round(algorithm.init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1))
    assert {fold.streamed is not None for fold in folds} == {streamed}


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


def signed(y: Tensor, g: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return y - 0.1 * g.sign()


def number(batch: Batch) -> Tensor | int:
    return len(batch.y) if batch.weight is None else batch.weight.sum()


def smaller(batch: Batch) -> Tensor | float:
    return 1.0 if batch.weight is None else batch.weight.sum() / 4


@pytest.mark.parametrize(("factor", "sizes"), [(number, [10, 10, 10]), (number, [13, 10, 9]), (smaller, [12, 9, 9])])
def test_steps_that_read_the_number_of_samples_are_not(
    factor: Callable[[Batch], Tensor | float], sizes: list[int], folds: list[DenseFold],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Minibatches have 4 samples, and the last may have fewer."""
    monkeypatch.setattr("tests.engine.test_replay.SIZES", np.array(sizes))

    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: y - 0.01 * factor(batch) * local.grad(y, batch), x)

    got, _ = run(client, Blocks(3), LocalWork(4))
    monkeypatch.setattr(step.LocalStep, "_recording", lambda *given: None)   # as written
    want, _ = run(client, Blocks(3), LocalWork(4))
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not folds


@pytest.mark.parametrize("rule", [squares, signed])
def test_other_steps_are_not(rule: Callable[..., Tensor], folds: list[DenseFold]) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, x: Tensor, s: Tensor) -> Tensor:
            return rule(y, local.grad(y, batch), x, s)

        return local.fold(step, x, x, local.steps)

    assert_same(client, 4)
    assert not folds


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("size", [1, 4])
def test_several_vectors_and_numbers_of_clients(size: int, folds: list[DenseFold]) -> None:
    """Two carries that read each other, a number of each client that changes, and one that does not."""

    def client(local: Local, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(
            carry: tuple[Tensor, Tensor, Tensor], batch: Batch, x: Tensor, s: Tensor, share: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            y, z, k = carry
            g = local.grad(0.5 * y + 0.5 * z, batch) + local.grad(x, batch)
            length = torch.linalg.vector_norm(3 * g - z, dim=-1, keepdim=True)
            g = g / (1 + length) / k
            return z - 0.1 * g, y - share * g / s + 0.2 * (3 * g - z), k + 1

        return local.fold(step, (x, 2 * x, local.steps), x, local.steps, shares=True)

    assert_same(client, size, LocalWork(4, epochs=2))
    assert folds


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("optimizer", [SGD(), Adam()])
@pytest.mark.parametrize("own", [False, True])
def test_norms_of_constants_that_nothing_else_reads(optimizer: Any, own: bool, folds: list[DenseFold]) -> None:
    """Of one vector for all clients, or of each client's own."""

    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, h: Tensor) -> Tensor:
            return local.descend(y, local.grad(y, batch) / torch.linalg.vector_norm(h, dim=-1), 0.1)

        return local.fold(step, x, x + (local.steps if own else 1))

    assert_same(client, 4, LocalWork(4, epochs=2, optimizer=optimizer))
    assert folds


def test_clients_without_the_first_step_of_a_fold(folds: list[DenseFold], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read where they have no minibatches, and their plans hold whatever was in that memory."""
    empty = np.empty

    def full(shape: Any, dtype: Any = float) -> np.ndarray:
        out = empty(shape, dtype)
        out.fill(10**9)
        return out

    monkeypatch.setattr("fedsim.engine.local_work.np.empty", full)

    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: y - 0.1 * local.grad(y, batch), x, skip=1)

    assert_same(client, 6, LocalWork(4))
    assert folds


def test_gradients_that_cancel_have_a_norm() -> None:
    """Sums of products of both signs, in single precision: half of the digits would be lost."""
    stack = DenseStack.of(nn.Linear(40, 30), cross_entropy)
    torch.manual_seed(0)
    delta, h = torch.randn(2, 8, 30), torch.randn(2, 8, 40)
    delta, h = torch.cat([delta, -delta * (1 + 1e-4)], 1), torch.cat([h, h], 1)
    g = torch.bmm(delta.double().mT, torch.cat([h.double(), torch.ones(2, 16, 1)], 2))
    assert stack is not None
    torch.testing.assert_close(stack.squared_norms([(delta, h)]), g.square().sum((1, 2)), rtol=1e-6, atol=0)


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


def test_an_optimiser_meets_few_samples_first_and_then_many(
    folds: list[DenseFold], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold begins at a small last minibatch, whose gradients are factors; norms of later ones need them whole."""
    monkeypatch.setattr("tests.engine.test_replay.SIZES", np.full(4, 10))
    monkeypatch.setattr(linear_stack, "LOW_COST", 1)       # up to two samples
    monkeypatch.setattr(dense_fold, "CACHED", 1)           # clients step one at a time

    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: local.descend(y, local.grad(y, batch), 0.1), x, skip=2)

    assert_same(client, 4, LocalWork(4, epochs=2, clip_norm=0.01, optimizer=Adam()))
    assert folds
