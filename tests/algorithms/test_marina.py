"""Messages and gradients of MARINA: x alone, and one gradient, except for clients that were away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorithms import MARINA
from algorithms.marina import MARINAState
from fedsim.clients import cohort
from fedsim.compress import RandK
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.messages.ledger import Ledger
from fedsim.messages.wire import nbytes
from fedsim.values import Packed
from tests.algorithms.quadratics import everybody, federation, heterogeneous

F = heterogeneous(n=6, d=8)
M = np.array([len(b) for b in F.b])
X = torch.linspace(-1, 2, F.d, dtype=torch.float64)
RAND = RandK(k=2)
WHOLE, COMPRESSED = nbytes(X), nbytes(RAND.compress(X, cohort(federation(F, LocalWork()), 0)))
EACH_BACKEND = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
NEVER, ALWAYS = 1e-12, 1.0


def charged(algorithm: Any, fed: Federation, cohorts: list[list[int]]) -> list[Ledger]:
    """Ledger of every round, from round 0 on."""
    meters = [Meter(fed) for _ in range(len(cohorts) + 1)]
    state = algorithm.init(X, cohort(fed, 0, meter=meters[0]))
    for t, S in enumerate(cohorts, 1):
        state = algorithm.round(state, cohort(fed, t, np.array(S), meters[t]))
    return [meter.ledger for meter in meters]


@EACH_BACKEND
@pytest.mark.parametrize(("p", "up"), [(NEVER, COMPRESSED), (ALWAYS, WHOLE)], ids=["tails", "heads"])
def test_everybody_is_sent_the_model_and_computes_one_gradient(p: float, up: int, backend: Any) -> None:
    first, *rounds = charged(MARINA(0.2, RAND, p), federation(F, LocalWork(3), backend), everybody(F.n, 3))
    for ledger, sent in ((first, WHOLE), *((ledger, up) for ledger in rounds)):
        assert ledger.down.tolist() == [WHOLE] * F.n and ledger.up.tolist() == [sent] * F.n
        assert ledger.gradient_evaluations.tolist() == M.tolist()


@EACH_BACKEND
def test_minibatches_cost_two_gradients_of_their_samples(backend: Any) -> None:
    fed = federation(F, LocalWork(3, steps=2), backend)
    for ledger in charged(MARINA(0.2, RAND, NEVER, "minibatch"), fed, everybody(F.n, 3))[1:]:
        assert ledger.down.tolist() == [WHOLE] * F.n and ledger.up.tolist() == [COMPRESSED] * F.n
        assert ledger.gradient_evaluations.tolist() == [2 * 6] * F.n


@EACH_BACKEND
@pytest.mark.parametrize("gradient", ["full", "minibatch"])
def test_who_was_away_is_sent_the_model_of_the_round_before_as_well(gradient: Any, backend: Any) -> None:
    """In round 1 nobody was, as round 0 had everybody; then node 1, which also was away before it, and node 3."""
    cohorts = [[0, 2, 4], [0, 1, 2], [1, 3]]
    new = [[], [1], [3]]
    fed = federation(F, LocalWork(3, steps=2), backend)
    ledgers = charged(MARINA(0.2, RAND, NEVER, gradient), fed, cohorts)[1:]
    for S, away, ledger in zip(cohorts, new, ledgers, strict=True):
        here, late = (np.isin(np.arange(F.n), ids) for ids in (S, away))
        assert ledger.down.tolist() == (WHOLE * here + WHOLE * late).tolist()
        assert ledger.up.tolist() == (COMPRESSED * here).tolist()
        cost = M * here + M * late if gradient == "full" else 12 * here
        assert ledger.gradient_evaluations.tolist() == cost.tolist()


def states(fed: Federation, algorithm: MARINA, cohorts: list[list[int]]) -> list[MARINAState]:
    found = [algorithm.init(X, cohort(fed, 0))]
    for t, S in enumerate(cohorts, 1):
        found.append(algorithm.round(found[-1], cohort(fed, t, np.array(S))))
    return found


@EACH_BACKEND
def test_differences_are_to_the_model_of_the_round_before(backend: Any) -> None:
    """Also those of clients that come and go, with heads in between."""
    cohorts = [[0, 2, 4], [0, 1, 2], [5], [1, 3], [1, 3, 5], [0, 5], [0, 1, 2, 3, 4]]
    fed = federation(F, LocalWork(3), backend)
    found, tossed = states(fed, MARINA(0.2, RAND, 0.3), cohorts), []
    for t, (S, before, now) in enumerate(zip(cohorts, found[:-1], found[1:], strict=True), 1):
        heads = cohort(fed, t).toss(0.3)
        tossed.append(heads)
        g = {i: torch.from_numpy(F.grad(i, now.x.numpy())) for i in range(F.n)}
        assert all((now.mine[i] - g[i]).abs().max() < 1e-13 for i in (g if heads else S))
        assert all(torch.equal(now.mine[i], before.mine[i]) for i in g if not heads and i not in S)
        if not heads:
            change = cohort(fed, t, np.array(S)).each(compressed_change, (now.x, before.x)).stacked.unpack().mean(0)
            assert (now.g - before.g - change).abs().max() < 1e-13
    assert {*tossed} == {True, False}


def compressed_change(local: Any, down: tuple[torch.Tensor, torch.Tensor]) -> Packed:
    return RAND.compress(local.grad(down[0]) - local.grad(down[1]), local)
