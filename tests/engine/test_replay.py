"""Recorded local steps: they must do what the step as written does, for every form of step, and charge the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.engine import replay, step
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend, Federation, Meter
from fedsim.engine.fingerprint import fingerprint
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.tape import Unreplayable
from fedsim.errors import BlockError
from fedsim.models.losses import cross_entropy
from fedsim.tree import leaves

SIZES = np.array([3, 17, 8, 16, 5, 8])


class Sum(nn.Module):
    """Two parameters with one and the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3, 6)), nn.Parameter(torch.ones(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.a + self.b).T


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def federation(
    backend: Backend, work: LocalWork | None = None, network: Callable[[], nn.Module] = perceptron
) -> Federation:
    torch.manual_seed(0)
    offsets = np.r_[0, np.cumsum(SIZES)]
    x, y = torch.randn(offsets[-1], 6, dtype=torch.float64), torch.randint(0, 3, (int(offsets[-1]),))
    model = Model(network(), cross_entropy, dtype=torch.float64)
    return Federation(model, Shards(x, y, offsets), work or LocalWork(8, epochs=2), 7, backend)


def plain(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    return y - 0.1 * local.grad(y, batch)


def extragradient(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    return y - 0.1 * local.grad(y - 0.1 * local.grad(y, batch), batch)


def reads_the_start(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    g = local.grad(y, batch)
    return 1.0 * (y - 0.1 * g) + (x - y) / 10 + g * g * 0.01


def ends_with_a_norm(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    g = local.grad(y, batch)
    return y - 0.1 * g / (torch.linalg.vector_norm(g) + 1e-9)


def forgets(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    local.grad(y, batch)
    return x


def many_shapes(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    g = local.grad(y, batch)
    return torch.cat([(y - g)[:10], torch.stack([g.sum(), g.max()]), torch.where(g > 0, y, x)[12:]])


def uses_the_samples(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    ones = torch.ones(len(batch.x), 1, dtype=y.dtype)
    return y - 0.1 * local.grad(y, batch) * (batch.x * ones).abs().amax()


def writes_in_place(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    g = local.grad(y, batch)
    g[:9].mul_(0.1)
    return y - 0.1 * g


def reads_a_view(y: Tensor, batch: Batch, local: Local, x: Tensor) -> Tensor:
    g = local.grad(y, batch)
    row = g.unsqueeze(0)
    z = g * x
    return y - 0.1 * (z * z + row.squeeze(0))


STEPS = [plain, extragradient, reads_the_start, ends_with_a_norm, forgets, many_shapes, uses_the_samples]
STEPS += [writes_in_place, reads_a_view]


@pytest.fixture(params=[0, replay.LEAST_PART], ids=["in parts", "whole"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LEAST_PART", request.param)


def run(client: Callable[..., Any], *settings: Any) -> tuple[list[Tensor], np.ndarray]:
    fed = federation(*settings)
    meter = Meter(fed)
    x = fed.model.vector()
    before = x.clone()
    stacked: list[Tensor] = []
    for round in (1, 2):
        stacked += leaves(cohort(fed, round, meter=meter).each(client, x).stacked)
    assert torch.equal(x, before)
    return stacked, meter.ledger.gradient_evaluations


def assert_same(client: Callable[..., Any], size: int, *settings: Any) -> None:
    (want, charged), (got, charged_here) = run(client, Loop(), *settings), run(client, Blocks(size), *settings)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (charged == charged_here).all()


@pytest.mark.parametrize("size", [1, 4])
def test_a_vector_of_the_server_that_becomes_a_clients_is_a_copy(size: int) -> None:
    """Times one it is itself, and for one client so is its expansion, on which the next step may write."""

    def client(local: Local, x: Tensor) -> Tensor:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
            y, z = carry
            return 0.5 * y + z - 0.1 * local.grad(y, batch).sign(), 1.0 * x

        return local.fold(step, (x, x), x)[0]

    assert_same(client, size)


@pytest.mark.parametrize("one", STEPS)
@pytest.mark.parametrize("size", [1, 4])
def test_steps_do_as_written(one: Callable[..., Tensor], size: int, parts: None) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, x: Tensor) -> Tensor:
            return one(y, batch, local, x)

        return local.fold(step, x, x)

    assert_same(client, size)
    assert_same(client, size, LocalWork(0, steps=3, weight_decay=0.1, clip_norm=0.1))


def swaps(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return m - 0.1 * g, y


def doubles(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    y = y - 0.1 * (g + m)
    return y, y


def restarts(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return m - 0.1 * g, x


def keeps_the_gradient(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return y - 0.1 * (g + m), g


def has_momentum(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    m = 0.9 * m + g
    return y - 0.1 * m, m


def stays(y: Tensor, m: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return y, m + g * y


@pytest.mark.parametrize("rule", [swaps, doubles, restarts, keeps_the_gradient, has_momentum, stays])
def test_carries_of_two_vectors(rule: Callable[..., tuple[Tensor, Tensor]], parts: None) -> None:
    def client(local: Local, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
            return rule(*carry, local.grad(carry[0], batch), x)

        return local.fold(step, (x, torch.zeros_like(x)), x)

    assert_same(client, 4)


def test_the_same_tensor_twice_among_the_arguments() -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, a: Tensor, b: Tensor) -> Tensor:
            return y - 0.1 * local.grad(y, batch) + 0.1 * (a - 2 * b)

        once = local.fold(step, x, x, x)
        return local.fold(step, once, x, 1.5 * x)

    assert_same(client, 4)


def test_a_captured_number_is_part_of_the_step() -> None:
    fed = federation(Blocks(6))
    x = fed.model.vector()

    def message(lr: float) -> Tensor:
        def client(local: Local, x: Tensor) -> Tensor:
            return local.fold(lambda y, batch: y - lr * local.grad(y, batch), x)

        return cohort(fed, 1).each(client, x).stacked

    assert not torch.equal(message(0.1), message(0.2))
    assert torch.equal(message(0.1), message(0.1))


def test_a_step_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    record = step.LocalStep._record
    monkeypatch.setattr(step.LocalStep, "_record", lambda *a: recorded.append(record(*a)) or recorded[-1])

    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: y - 0.1 * local.grad(y, batch), x)

    fed = federation(Blocks(3), LocalWork(4, steps=5))
    for round in (1, 2, 3):
        cohort(fed, round).each(client, fed.model.vector())
    full = {len(p) for p in step.PROGRAMS[fed.model].values()}
    assert full == {len(recorded)}
    assert len(recorded) <= 2 and all(recorded)   # all weights one, and with padded rows


def test_what_may_change_unseen_is_not_recognised() -> None:
    numbers = [0.1]
    local = object()
    with pytest.raises(Unreplayable, match="list"):
        fingerprint(lambda y: y * numbers[0], local)
    assert fingerprint(1, local) != fingerprint(True, local) != fingerprint(1.0, local)
    assert fingerprint(0.0, local) != fingerprint(-0.0, local)
    assert fingerprint(lambda: local, local) != fingerprint(lambda: None, local)


def power(y: Tensor, k: int) -> Tensor:
    return y * power(y, k - 1) if k else y / STRENGTHS


STRENGTHS: Any = 2.0


def test_functions_that_a_step_calls_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that calls itself; what they read may be set anew, but not be changed inside."""

    def step(y: Tensor) -> Tensor:
        return power(y, 3).SIZES                           # an attribute, and not the array of that name

    first = fingerprint(step, None)
    assert first == fingerprint(step, None)
    monkeypatch.setattr(sys.modules[__name__], "STRENGTHS", 3.0)
    assert fingerprint(step, None) != first
    monkeypatch.setattr(sys.modules[__name__], "STRENGTHS", {"a": 3.0})
    with pytest.raises(Unreplayable, match="dict"):
        fingerprint(step, None)


@pytest.mark.parametrize("size", [1, 4])
def test_a_part_of_a_minibatch_is_charged_as_such(size: int) -> None:
    """As in the support half of MAML; the loop counts rows, blocks those that are no padding."""

    def half(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            some = Batch(*(None if part is None else part[: max(1, len(batch.y) // 2)] for part in batch))
            return y - 0.1 * local.grad(y, some)

        return local.fold(step, x)

    charged = []
    for backend in (Loop(), Blocks(size)):
        fed = federation(backend, LocalWork(4, steps=3))
        meter = Meter(fed)
        cohort(fed, 1, np.flatnonzero(SIZES >= 4), meter=meter).each(half, fed.model.vector())
        charged.append(meter.ledger.gradient_evaluations)
    assert (charged[0] == charged[1]).all() and charged[0].max() == 6


@pytest.mark.parametrize("size", [1, 4])
def test_parameters_whose_gradients_share_memory(size: int, parts: None) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: y - 0.1 * (local.grad(y, batch) + y), x)

    assert_same(client, size, None, Sum)


def test_minibatches_made_in_a_step_keep_their_weights() -> None:
    """Or rows of padding would be samples."""

    def client(made: Callable[[Batch], Batch]) -> Callable[[Local, Tensor], Tensor]:
        return lambda local, x: local.fold(lambda y, batch: y - 0.1 * local.grad(y, made(batch)), x)

    assert_same(client(lambda batch: batch._replace(x=2 * batch.x)), 4)
    with pytest.raises(BlockError, match="lacks weights"):
        run(client(lambda batch: Batch(2 * batch.x, batch.y)), Blocks(4))
