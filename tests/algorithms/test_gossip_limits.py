"""Limits of gossip: closed-form fixed points, their order by topology, exact convergence, and floors."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

from algorithms import DPSGD, SGP, DFedAvg, ExactDiffusion, Extra, FedAvg, GradientTracking
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.gossip import Topology
from tests.algorithms.gossip_federations import GRAPHS, PUSH, consensus, gossiping, mixing, rows
from tests.algorithms.quadratics import Quadratics, everybody, federation, heterogeneous, iterates
from topologies import Exponential, Ring, Static

pytestmark = pytest.mark.slow

N, K, ETA = 16, 10, 0.9
F = heterogeneous(n=N, d=5)
SIX = heterogeneous(n=6, d=4)
EXCHANGES = (1, 2, 4)


def limit(
    algorithm: Any, f: Quadratics, topology: Topology, steps: int, most: int = 400, **settings: Any
) -> np.ndarray:
    """The nodes' models ``[n, d]`` when they no longer move."""
    fed = gossiping(f, LocalWork(0, steps=steps), topology, Blocks(f.n), **settings)
    state = algorithm.init(torch.zeros(f.d, dtype=torch.float64), cohort(fed, 0))
    x = rows(state.x)
    for t in range(1, most + 1):
        state = algorithm.round(state, cohort(fed, t))
        before, x = x, rows(state.x)
        if np.abs(x - before).max() < 1e-13:
            return x
    raise AssertionError(f"still moves by {np.abs(x - before).max():.1e} after {most} rounds")


def own_pull(f: Quadratics, i: int, eta: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Node i's local work as an affine map: y = M x + c, M = (I - eta H_i)^K, c = (I - M) x_i*."""
    M = np.linalg.matrix_power(np.eye(f.d) - eta * f.H(i), steps)
    return M, (np.eye(f.d) - M) @ f.own_minimiser(i)


def dfedavg_fixed_point(f: Quadratics, graph: str, Q: int, eta: float) -> np.ndarray:
    """Solves ``Z = (W^Q kron I)(blockdiag(M_i) Z + c)``."""
    maps = [own_pull(f, i, eta, K) for i in range(f.n)]
    M, c = block_diag(*[M_i for M_i, _ in maps]), np.concatenate([c_i for _, c_i in maps])
    W: np.ndarray = np.linalg.matrix_power(mixing(Static(GRAPHS[graph]), 1, f.n), Q)
    WQ = np.kron(W, np.eye(f.d))
    return np.linalg.solve(np.eye(f.n * f.d) - WQ @ M, WQ @ c).reshape(f.n, f.d)


@cache
def dfedavg_limit(graph: str, Q: int) -> np.ndarray:
    return limit(DFedAvg(lr=ETA, gossip_steps=Q), F, Static(GRAPHS[graph]), K)


@pytest.mark.parametrize("Q", EXCHANGES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_dfedavg_ends_at_its_closed_form_fixed_point(graph: str, Q: int) -> None:
    np.testing.assert_allclose(dfedavg_limit(graph, Q), dfedavg_fixed_point(F, graph, Q, ETA), rtol=0, atol=1e-10)


def bias(f: Quadratics, x: np.ndarray) -> float:
    """Distance of the average model to the minimiser."""
    return float(np.linalg.norm(x.mean(0) - f.minimiser()))


@pytest.mark.parametrize("eta", [0.1, 0.3])
@pytest.mark.parametrize("error", [bias, lambda f, x: consensus(x)], ids=["bias", "consensus"])
def test_better_connected_nodes_end_nearer_to_the_minimiser_and_to_one_another(error: Any, eta: float) -> None:
    """In the closed form, which is proved above."""
    f = heterogeneous(n=N, d=12)
    table = np.array([[error(f, dfedavg_fixed_point(f, graph, Q, eta)) for Q in EXCHANGES] for graph in GRAPHS])
    incomplete = table[:-1]
    assert (incomplete[:-1] > 1.02 * incomplete[1:]).all(), "ring > grid > torus > exponential"
    assert (incomplete[:, :-1] > 1.02 * incomplete[:, 1:]).all(), "fewer exchanges, more error"
    assert (incomplete > 1.001 * table[-1]).all(), "the complete graph is best"
    np.testing.assert_allclose(table[-1], table[-1][0], rtol=0, atol=1e-10)


def test_on_the_complete_graph_the_bias_is_that_of_fedavg() -> None:
    """The limit of ever better mixing, and never zero; nobody is anywhere else."""
    fed = federation(F, LocalWork(0, steps=K), Blocks(N))
    server = iterates(FedAvg(lr=ETA), fed, np.zeros(F.d), everybody(N, 40))[-1]
    np.testing.assert_allclose(dfedavg_limit("complete", 1), np.tile(server, (N, 1)), rtol=0, atol=1e-12)
    assert bias(F, dfedavg_limit("complete", 1)) > 1e-2


def stacked(f: Quadratics) -> tuple[np.ndarray, np.ndarray]:
    """All nodes' gradients at once: H X - b."""
    return block_diag(*[f.H(i) for i in range(f.n)]), np.concatenate([f.H(i) @ f.own_minimiser(i) for i in range(f.n)])


def step_fixed_point(f: Quadratics, W: np.ndarray, eta: float) -> np.ndarray:
    """Of D-PSGD with whole gradients: ``(I - W) X + eta (H_i x_i - b_i) = 0``."""
    H, b = stacked(f)
    return np.linalg.solve(np.kron(np.eye(f.n) - W, np.eye(f.d)) + eta * H, eta * b).reshape(f.n, f.d)


def furthest(f: Quadratics, x: np.ndarray) -> float:
    """Largest distance of a node to the minimiser, relative to the minimiser's norm."""
    return float(np.linalg.norm(x - f.minimiser(), axis=1).max() / np.linalg.norm(f.minimiser()))


@pytest.mark.parametrize("eta", [0.6, 0.4])
def test_dpsgd_ends_at_its_closed_form_fixed_point(eta: float) -> None:
    x = limit(DPSGD(lr=eta), SIX, Static(Ring()), 1)
    np.testing.assert_allclose(x, step_fixed_point(SIX, mixing(Static(Ring()), 1, 6), eta), rtol=0, atol=1e-10)
    assert furthest(SIX, x) > 1e-2


@pytest.mark.parametrize("topology", [Static(Ring()), Static(Exponential())], ids=["ring", "exponential"])
@pytest.mark.parametrize("algorithm", [GradientTracking(lr=0.3), Extra(lr=0.5), ExactDiffusion(lr=0.5)], ids=str)
def test_corrected_methods_reach_the_minimiser_at_every_node(algorithm: Any, topology: Topology) -> None:
    """D-PSGD, above, has a floor there."""
    assert furthest(SIX, limit(algorithm, SIX, topology, 1)) < 1e-9


def test_gradient_tracking_reaches_it_over_directed_links_as_well() -> None:
    directed = Static(Exponential(directed=True), weighting="uniform_directed")
    assert furthest(SIX, limit(GradientTracking(lr=0.3), SIX, directed, 1)) < 1e-9


def sgp_fixed_point(f: Quadratics, P: np.ndarray, eta: float) -> np.ndarray:
    """``diag(w) X = P (diag(w) X - eta (H_i x_i - b_i))`` with ``P w = w``, ``sum w = n``: the de-biased models."""
    values, vectors = np.linalg.eig(P)
    w = vectors[:, np.argmax(values.real)].real
    w *= f.n / w.sum()
    P, D, (H, b) = np.kron(P, np.eye(f.d)), np.kron(np.diag(w), np.eye(f.d)), stacked(f)
    return np.linalg.solve(D - P @ (D - eta * H), eta * P @ b).reshape(f.n, f.d)


@pytest.mark.parametrize("eta", [0.6, 0.4])
def test_sgp_ends_at_its_closed_form_fixed_point_on_a_directed_graph(eta: float) -> None:
    x = limit(SGP(lr=eta), SIX, PUSH, 1)
    np.testing.assert_allclose(x, sgp_fixed_point(SIX, mixing(PUSH, 1, 6), eta), rtol=0, atol=1e-10)
    assert furthest(SIX, x) > 1e-2


def test_sgp_and_dpsgd_come_as_near_to_the_minimiser_as_one_likes() -> None:
    """In the closed forms, which are proved above: in proportion to the step, though SGP's graph favours some nodes."""
    for fixed_point, topology in ((sgp_fixed_point, PUSH), (step_fixed_point, Static(Ring()))):
        errors = [furthest(SIX, fixed_point(SIX, mixing(topology, 1, 6), eta)) for eta in (0.5, 0.1, 2e-3, 1e-3)]
        assert all(a > 1.5 * b for a, b in pairwise(errors))
        assert errors[-2] / errors[-1] == pytest.approx(2, rel=0.02)
        assert errors[-1] < 1e-2
