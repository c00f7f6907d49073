"""NIDS, D^2, K-GT and QG-DSGDm: the methods that they are at the ends of their settings, and where they stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from algorithms import D2, KGT, L1, NIDS, DFedAvg, ExactDiffusion, Extra, GradientTracking, QGDSGDm, Scaffold
from algorithms.exact_diffusion import ExactDiffusionState
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.errors import ConfigError
from fedsim.gossip import Topology
from tests.algorithms.gossip_federations import TOPOLOGIES, gossiping, models, rows
from tests.algorithms.quadratics import everybody, federation, heterogeneous, iterates, states
from topologies import Complete, RandomMatching, Ring, Static, Torus

F = heterogeneous(n=6, d=5)
X0 = np.random.default_rng(9).standard_normal(F.d)
ONE_STEP, WHOLE, EPOCHS = LocalWork(0, steps=1), LocalWork(0, steps=4), LocalWork(4, epochs=2)
IRREGULAR = TOPOLOGIES["irregular"]


def run(algorithm: Any, topology: Topology = IRREGULAR, work: LocalWork = EPOCHS, T: int = 5) -> np.ndarray:
    """All models ``[T, n, d]``, with steps that decay."""
    return np.array(models(algorithm, gossiping(F, work, topology, decay=lambda t: 0.9**t), X0, T))


def close(a: Any, b: Any, tolerance: float = 1e-14) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    assert np.abs(np.asarray(a)[-1] - X0).max() > 1e-2, "nothing moved"


@pytest.mark.parametrize("topology", ["ring", "irregular"])
def test_d2_on_the_lazy_matrix_is_exact_diffusion(topology: str) -> None:
    base: Any = TOPOLOGIES[topology]
    close(run(D2(lr=0.2), replace(base, lazy=True)), run(ExactDiffusion(lr=0.2), base))


def test_nids_is_exact_diffusion_that_begins_with_a_step_of_ones_own() -> None:
    fed = gossiping(F, EPOCHS, IRREGULAR)
    first, *rest = states(NIDS(lr=0.2), fed, X0, everybody(6, 5))[1:]
    diffusion = ExactDiffusionState(first.x, first.x)
    for t, state in enumerate(rest, 2):
        diffusion = ExactDiffusion(lr=0.2).round(diffusion, cohort(fed, t))
        np.testing.assert_allclose(rows(state.x), rows(diffusion.x), rtol=0, atol=1e-14)
    assert np.abs(run(NIDS(lr=0.2)) - run(ExactDiffusion(lr=0.2))).max() > 1e-3


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kgt_of_one_step_is_gradient_tracking(topology: str) -> None:
    """On whole shards: the tracker is the gradient plus the correction."""
    fed = gossiping(F, ONE_STEP, TOPOLOGIES[topology])
    tracking = np.array(models(GradientTracking(lr=0.2), fed, X0, 5))
    close(np.array(models(KGT(lr=0.2), fed, X0, 5)), tracking)
    assert np.abs(run(KGT(lr=0.2), TOPOLOGIES[topology]) - tracking).max() > 1e-3


def test_kgt_on_the_complete_graph_is_scaffold_with_everybody() -> None:
    server = iterates(Scaffold(lr=0.2), federation(F, WHOLE, decay=lambda t: 0.9**t), X0, everybody(6, 5))
    close(run(KGT(lr=0.2), Static(Complete()), WHOLE), np.repeat(np.array(server)[:, None], 6, 1), 1e-13)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_corrections_of_kgt_sum_to_zero_whoever_is_away(topology: str) -> None:
    S = [[0, 1, 2, 3, 4, 5], [0, 2, 3], [1, 2, 4, 5]] if topology != "directed" else everybody(6, 3)
    S = S if topology != "one peer" else everybody(6, 3)
    for state in states(KGT(lr=0.2), gossiping(F, EPOCHS, TOPOLOGIES[topology]), X0, S)[1:]:
        np.testing.assert_allclose(rows(state.c).sum(0), 0, rtol=0, atol=1e-14)
    assert np.abs(rows(state.c)).max() > 1e-2


@pytest.mark.parametrize("settings", [{}, {"mu": 0.5}, {"nesterov": True}])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_without_momentum_qg_dsgdm_is_one_step_and_an_exchange(topology: str, settings: dict[str, Any]) -> None:
    plain = run(DFedAvg(lr=0.2), TOPOLOGIES[topology], ONE_STEP)
    np.testing.assert_array_equal(run(QGDSGDm(lr=0.2, momentum=0.0, **settings), TOPOLOGIES[topology], ONE_STEP), plain)
    moved = run(QGDSGDm(lr=0.2, momentum=0.5, **settings), TOPOLOGIES[topology], ONE_STEP)
    np.testing.assert_array_equal(moved[0], plain[0] if "nesterov" not in settings else moved[0])
    assert np.abs(moved[-1] - plain[-1]).max() > 1e-2


def test_on_the_complete_graph_qg_dsgdm_moves_along_the_servers_momentum() -> None:
    """m^ <- mu m^ + (1 - mu) (beta m^ + mean g), as all nodes are where the mean is."""
    x, m = X0, np.zeros(F.d)
    for ours in models(QGDSGDm(lr=0.2, momentum=0.8, mu=0.6), gossiping(F, ONE_STEP, Static(Complete())), X0, 5):
        d = 0.8 * m + np.mean([F.grad(i, x) for i in range(6)], axis=0)
        x, m = x - 0.2 * d, 0.6 * m + 0.4 * d
        np.testing.assert_allclose(ours, np.tile(x, (6, 1)), rtol=0, atol=1e-13)


SIX = heterogeneous(n=6, d=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "work"),
    [
        (NIDS(lr=0.9), ONE_STEP),
        (NIDS(lr=0.9, theta=0.7), ONE_STEP),
        (D2(lr=0.5), ONE_STEP),
        (KGT(lr=0.05), WHOLE),
        (KGT(lr=0.1, server_lr=0.5), WHOLE),
    ],
    ids=str,
)
def test_reaches_the_minimiser_at_every_node(algorithm: Any, work: LocalWork) -> None:
    last = models(algorithm, gossiping(SIX, work, IRREGULAR, Blocks(6)), np.zeros(4), 300)[-1]
    np.testing.assert_allclose(last, np.tile(SIX.minimiser(), (6, 1)), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_nids_reaches_the_minimiser_of_a_regularised_objective() -> None:
    """Where a proximal gradient step on the mean of all f_i moves no more, with a coordinate at 0."""
    lam, eta = 0.1, 0.5
    fed = gossiping(SIX, ONE_STEP, Static(Ring()), Blocks(6))
    last = models(NIDS(lr=eta, prox=L1(lam)), fed, np.zeros(4), 400)[-1]
    x = last[0]
    np.testing.assert_allclose(last, np.tile(x, (6, 1)), rtol=0, atol=1e-10)
    z = x - eta * np.mean([SIX.grad(i, x) for i in range(6)], axis=0)
    np.testing.assert_allclose(x, np.sign(z) * np.maximum(np.abs(z) - eta * lam, 0), rtol=0, atol=1e-10)
    assert (x == 0).any() and np.abs(x).max() > 0.1


@pytest.mark.slow
def test_the_step_size_of_nids_need_not_know_the_network() -> None:
    """1.9 / L of the worst node, where EXTRA diverges; all Hessians have the largest eigenvalue 1."""
    fed = gossiping(SIX, ONE_STEP, IRREGULAR, Blocks(6))
    last = models(NIDS(lr=1.9), fed, np.zeros(4), 600)[-1]
    np.testing.assert_allclose(last, np.tile(SIX.minimiser(), (6, 1)), rtol=0, atol=1e-8)
    assert np.abs(models(Extra(lr=1.9), fed, np.zeros(4), 100)[-1]).max() > 1e3


@pytest.mark.parametrize(("graph", "n", "least"), [(Ring(), 6, "-0.3333"), (Torus(), 36, "-0.6")])
def test_d2_refuses_a_matrix_on_which_it_does_not_converge(graph: Any, n: int, least: str) -> None:
    f = heterogeneous(n=n, d=2)
    message = rf"smallest eigenvalue of the mixing matrix of round 1 is {least}.* set --topology\.lazy true"
    with pytest.raises(ConfigError, match=message):
        models(D2(), gossiping(f, ONE_STEP, Static(graph)), np.zeros(2), 1)
    models(D2(), gossiping(f, ONE_STEP, Static(graph, lazy=True)), np.zeros(2), 1)


def test_d2_refuses_a_matrix_that_changes() -> None:
    with pytest.raises(ConfigError, match=r"mixing matrix of round 2 is not that of round 1, .* use a Static topology"):
        models(D2(), gossiping(F, ONE_STEP, RandomMatching()), X0, 2)
