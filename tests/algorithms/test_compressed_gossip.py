"""CHOCO, DeepSqueeze and BEER: the papers' trajectories, what they keep, and what theory says of their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorithms import BEER, DPSGD, ChocoSGD, DeepSqueeze, DFedAvg
from algorithms.choco import ChocoState
from algorithms.theory.gossip import choco_gossip
from fedsim.clients import cohort
from fedsim.compress import Identity, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from tests.algorithms import compressed_gossip_papers as papers
from tests.algorithms.gossip_federations import TOPOLOGIES, consensus, gossiping, kept, mixing, models, rows
from tests.algorithms.quadratics import heterogeneous, some, states
from topologies import OnePeerExponential, Ring, Static

F = heterogeneous(n=6, d=8)
X0 = np.linspace(-1, 1, F.d)
ONE_STEP = LocalWork(0, steps=1)
TOP = TopK(k=2)
BOTH = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
EVERYTHING: tuple[tuple[Any, Any], ...] = (
    (ChocoSGD, papers.choco),
    (DeepSqueeze, papers.deep_squeeze),
    (BEER, papers.beer),
)


@BOTH
@pytest.mark.parametrize("topology", ["ring", "irregular"])
@pytest.mark.parametrize(("cls", "paper"), EVERYTHING)
def test_trajectories_are_the_papers(cls: Any, paper: Any, topology: str, backend: Any) -> None:
    W = mixing(TOPOLOGIES[topology], 1, 6)
    expected = paper(F, W, np.tile(X0, (6, 1)), papers.top(2), 0.3, 0.4, 8)
    found = models(cls(lr=0.3, gamma=0.4, compressor=TOP), gossiping(F, ONE_STEP, TOPOLOGIES[topology], backend), X0, 8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_without_compression_choco_is_dfedavg() -> None:
    fed, bare = (gossiping(F, ONE_STEP, TOPOLOGIES["irregular"]) for _ in range(2))
    expected = models(DFedAvg(lr=0.3), bare, X0, 5)
    np.testing.assert_allclose(models(ChocoSGD(0.3, 1.0, Identity()), fed, X0, 5), expected, rtol=0, atol=1e-14)


RING = Static(Ring())
SPREAD = np.random.default_rng(0).standard_normal((10, 40))


def gossip(gamma: float, rounds: int) -> list[np.ndarray]:
    """CHOCO-Gossip of ten nodes on the ring, Top-4 of 40."""
    f = heterogeneous(n=10, d=40)
    algorithm, fed = ChocoSGD(lr=0, gamma=gamma, compressor=TopK(k=4)), gossiping(f, ONE_STEP, RING, Blocks(10))
    zero = kept(np.zeros_like(SPREAD))
    state, path = ChocoState(kept(SPREAD), zero, zero), [SPREAD]
    for t in range(1, rounds + 1):
        state = algorithm.round(state, cohort(fed, t))
        path.append(rows(state.x))
    return path


@pytest.mark.parametrize(("gamma", "rate"), [(0.05, 0.987), (0.3, 0.919)])
def test_choco_gossip_reaches_consensus_linearly_and_keeps_the_mean(gamma: float, rate: float) -> None:
    path = gossip(gamma, 120)
    squared = [consensus(x) ** 2 for x in path]
    assert squared[120] / squared[60] == pytest.approx(rate**60, rel=0.5)
    np.testing.assert_allclose([x.mean(0) for x in path], [SPREAD.mean(0)] * 121, rtol=0, atol=1e-14)


def test_choco_gossip_diverges_with_too_large_a_step_and_naive_gossip_stalls() -> None:
    assert consensus(gossip(1.0, 60)[-1]) > 3 * consensus(SPREAD)
    W, C, x, distances = mixing(RING, 1, 10), papers.top(4), SPREAD, []
    for _ in range(1000):
        x = x + 0.1 * (W @ C(x) - C(x))                    # no memory: what is compressed never becomes small
        distances.append(consensus(x))
    assert min(distances[500:]) > 0.1 * consensus(SPREAD) and distances[-1] == pytest.approx(distances[500], rel=0.2)


def test_the_step_size_of_choco_in_theory() -> None:
    """On the ring of ten with Top-4 of 40, by hand: rho = (2 - 2 cos(2 pi / 10)) / 3, beta = 4/3."""
    W = RING.matrix(1, 0, 10)
    theory = choco_gossip(TopK(k=4), W, 40)
    rho = (2 - 2 * np.cos(np.pi / 5)) / 3
    assert theory.rho == pytest.approx(rho, rel=1e-12) and theory.beta == pytest.approx(4 / 3, rel=1e-12)
    assert theory.gamma == pytest.approx(1.70e-4, rel=3e-3) and theory.rate == pytest.approx(1 - rho**2 * 0.1 / 82)
    x, squared = SPREAD, []
    x = papers.choco(heterogeneous(n=10, d=40), W.toarray(), x, papers.top(4), 0.0, theory.gamma, 300)
    squared = [consensus(row) ** 2 for row in x]
    assert squared[-1] / squared[0] <= theory.rate ** (len(x) - 1)
    with pytest.raises(ConfigError, match=r"needs a symmetric matrix .* got \[2, 2\]"):
        choco_gossip(TopK(), np.array([[0.5, 0.5], [0.4, 0.6]]), 40)


SMALL = heterogeneous(n=4, d=4)
BEST = SMALL.minimiser()


@pytest.mark.slow
def test_beer_is_exact_where_others_stall() -> None:
    fed = gossiping(SMALL, ONE_STEP, RING, Blocks(4))
    algorithm = BEER(lr=0.5, gamma=0.7, compressor=TOP)
    state = algorithm.init(torch.zeros(4, dtype=torch.float64), cohort(fed, 0))
    for t in range(1, 201):
        state = algorithm.round(state, cohort(fed, t))
        if t % 40 == 0:
            x, v = rows(state.x), np.array([state.own[i].v.numpy() for i in range(4)])
            np.testing.assert_allclose(v.mean(0), papers.gradients(SMALL, x).mean(0), rtol=0, atol=5e-15)
    np.testing.assert_allclose(rows(state.x), [BEST] * 4, rtol=0, atol=3e-13)
    stalled = (ChocoSGD(0.5, 0.5, TOP), DeepSqueeze(0.5, 0.1, TOP), DPSGD(0.5))
    for other in stalled:
        path = models(other, gossiping(SMALL, ONE_STEP, RING, Blocks(4)), np.zeros(4), 120)
        distances = [float(np.linalg.norm(x - BEST)) for x in (path[60], path[-1])]
        assert distances[1] > 0.1 and distances[1] == pytest.approx(distances[0], rel=0.3), type(other).__name__


def test_deep_squeeze_allows_absent_nodes_and_changing_links() -> None:
    """Without gradients the mean stays, whoever takes part."""
    algorithm = DeepSqueeze(lr=0, gamma=0.2, compressor=TOP)
    for topology, cohorts in ((RING, some(6, 4, 10)), (OnePeerExponential(), [list(range(6))] * 10)):
        fed = gossiping(F, ONE_STEP, topology)
        (first,) = states(algorithm, fed, X0, [])
        values = np.random.default_rng(1).standard_normal((6, F.d))
        state = first._replace(x=kept(values))
        for t, ids in enumerate(cohorts, 1):
            state = algorithm.round(state, cohort(fed, t, np.array(ids)))
        np.testing.assert_allclose(rows(state.x).mean(0), values.mean(0), rtol=0, atol=1e-14)
        assert not np.allclose(rows(state.x), values)


@pytest.mark.parametrize("algorithm", [ChocoSGD(), BEER()])
def test_copies_of_neighbours_need_everybody_and_one_matrix(algorithm: Any) -> None:
    with pytest.raises(ConfigError, match=r"3 of 6 nodes take part in round 1, but nodes remember"):
        models(algorithm, gossiping(F, ONE_STEP, RING), X0, 1, [[0, 1, 2]])
    with pytest.raises(ConfigError, match=r"the mixing matrix of round 2 is not that of round 1"):
        models(algorithm, gossiping(F, ONE_STEP, OnePeerExponential()), X0, 2)
