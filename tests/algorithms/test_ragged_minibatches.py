"""Minibatches of unequal size: every sample counts the same, so that an epoch gives the gradient of the whole shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import DCGD, EF21PAGE, GradientTracking
from algorithms.parts import mean_difference, mean_gradient
from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.compress import Identity
from fedsim.engine import step
from fedsim.engine.blocks import Blocks
from fedsim.engine.dry_run import DryLocal, outcome
from fedsim.engine.federation import Backend, ClientCall, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from tests.algorithms.gossip_federations import gossiping, rows
from tests.algorithms.quadratics import Quadratics, batches_of, everybody, federation, heterogeneous, iterates, states
from topologies import Ring, Static

F = heterogeneous(n=6, d=4)
SIZES = [len(b) for b in F.b]
X = torch.linspace(-1, 2, F.d, dtype=torch.float64)
Y = torch.linspace(3, 1, F.d, dtype=torch.float64)
EACH_BACKEND = pytest.mark.parametrize("backend", [Loop(), Blocks(1), Blocks(4), Blocks(6)], ids=repr)
WORKS = [LocalWork(3), LocalWork(3, epochs=3), LocalWork(3, steps=2), LocalWork(3, steps=7), LocalWork(0, steps=2)]


def test_the_sizes_are_ragged() -> None:
    assert len(set(SIZES)) > 2 and any(m % 3 for m in SIZES) and max(SIZES) > 3


@EACH_BACKEND
@pytest.mark.parametrize("work", WORKS, ids=repr)
def test_means_are_over_samples(work: LocalWork, backend: Backend) -> None:
    fed = federation(F, work, backend)
    meter = Meter(fed)
    visited = [np.concatenate(batches_of(fed)(1, i)) for i in range(F.n)]
    at_x, at_y = (np.array([F.grad(i, at.numpy(), visited[i]) for i in range(F.n)]) for at in (X, Y))
    got = cohort(fed, 1, meter=meter).each(mean_gradient, X).stacked
    np.testing.assert_allclose(got, at_x, rtol=0, atol=1e-14)
    change = cohort(fed, 1, meter=meter).each(lambda local, x: mean_difference(local, x, x * 0 + Y), X).stacked
    np.testing.assert_allclose(change, at_x - at_y, rtol=0, atol=1e-14)
    assert meter.ledger.gradient_evaluations.tolist() == [3 * len(B) for B in visited]


@EACH_BACKEND
def test_one_epoch_is_the_whole_shard(backend: Backend) -> None:
    everyone, x0 = everybody(F.n, 20), X.numpy()
    full = iterates(DCGD(0.3, Identity()), federation(F, LocalWork(0), backend), x0, everyone)
    epoch = iterates(DCGD(0.3, Identity(), "minibatch"), federation(F, LocalWork(3), backend), x0, everyone)
    np.testing.assert_allclose(epoch, full, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_gradient_tracking_is_exact_with_an_epoch_of_ragged_minibatches() -> None:
    f = heterogeneous(n=6, d=8)
    fed = gossiping(f, LocalWork(7), Static(Ring()), Blocks(6))
    assert any(len(b) % 7 for b in f.b)
    last = states(GradientTracking(lr=0.4), fed, np.zeros(f.d), everybody(6, 400))[-1]
    np.testing.assert_allclose(rows(last.x), np.tile(f.minimiser(), (6, 1)), rtol=0, atol=1e-9)


def one_client(samples: int, d: int = 4) -> Quadratics:
    rng = np.random.default_rng(1)
    return Quadratics([rng.standard_normal((samples, d))], [rng.standard_normal(samples)])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_variance_of_pages_differences_is_what_its_theory_claims(steps: int) -> None:
    """At most l_i^2 ||x - y||^2 / tau; with 33 samples in batches of 32 and 1, none at all after both."""
    f, tau = one_client(33), min(33, 32 * steps)
    squares = np.array([(np.linalg.norm(a) * (a @ (X - Y).numpy())) ** 2 for a in f.A[0]])   # of samples' changes
    exact, errors = f.grad(0, X.numpy()) - f.grad(0, Y.numpy()), []
    fed = federation(f, LocalWork(32, steps=steps))
    for t in range(1, 101):
        change = cohort(fed, t).each(lambda local, x: mean_difference(local, x, x * 0 + Y), X).stacked[0]
        errors.append(np.square(change.numpy() - exact).sum())
    assert np.mean(errors) <= squares.mean() / tau
    assert steps == 1 or max(errors) < 1e-28


def test_page_is_gradient_descent_with_tails_of_an_epoch() -> None:
    epoch = federation(F, LocalWork(3), Blocks(4))
    page = iterates(EF21PAGE(0.3, Identity(), p=0.01), epoch, X.numpy(), everybody(F.n, 20))
    plain = iterates(DCGD(0.3, Identity()), epoch, X.numpy(), everybody(F.n, 20))
    np.testing.assert_allclose(page, plain, rtol=0, atol=1e-13)


@EACH_BACKEND
@pytest.mark.parametrize("skip", [0, 1])
def test_shares_sum_to_one_over_a_round(skip: int, backend: Backend) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, one: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
            total, last = carry
            return total + one * share, share + 0 * last

        zero = torch.zeros((), dtype=x.dtype)
        return torch.stack(local.fold(step, (zero, zero), zero + 1, skip=skip, shares=True))

    got = cohort(federation(F, LocalWork(3), backend), 1).each(client, X).stacked
    for (total, last), m in zip(got.tolist(), SIZES, strict=True):
        assert total == pytest.approx(1 - 3 * skip / m) and last == pytest.approx((m % 3 or 3) / m)


def test_the_weights_do_not_keep_a_step_from_being_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step as written costs several times as much."""
    vmapped: list[Callable[..., Any]] = []
    as_written = step.LocalStep._vmapped
    monkeypatch.setattr(step.LocalStep, "_vmapped", lambda self, *a: vmapped.append(self) or as_written(self, *a))
    fed = federation(F, LocalWork(3, epochs=4), Blocks(6))
    for t in (1, 2, 3):
        cohort(fed, t).each(mean_gradient, X)
    steps = step.PROGRAMS[fed.model].values()
    recorded: list[Any] = [program for met in steps for program in (met or {}).values()]
    recorded += step.FORMS[fed.model].values()             # steps that combine vectors linearly
    assert recorded and all(recorded)
    compared = 2 * len(steps)                              # with one sample and with two
    assert len(vmapped) == compared + len(recorded), "once for each form of arguments"


def test_the_shape_of_a_mean_is_found_without_a_client() -> None:
    """As the Flower backend finds it."""
    fed = federation(F, LocalWork(3))
    call = ClientCall(mean_gradient, np.arange(1), 1, X, None)
    message, kept = outcome(call, DryLocal(fed.model, fed.work, fed.shards.take(torch.tensor([0]))), ())
    assert message.shape == X.shape and kept == ()
