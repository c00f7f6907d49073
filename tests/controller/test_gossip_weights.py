"""Nodes that count by their samples: the mean that mixing keeps, the objective, the average that is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from algorithms import BEER, DPSGD, KGT, NIDS, SGP, DFedAvg, ExactDiffusion, Extra, GradientTracking
from fedsim import Evaluation, LocalWork, run
from fedsim.clients import cohort
from fedsim.compress import TopK
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.errors import ConfigError
from fedsim.gossip import weigh
from fedsim.record.metrics import read_metrics
from tests.algorithms.gossip_federations import gossiping, rows
from tests.algorithms.quadratics import heterogeneous
from tests.algorithms.test_gossip_limits import limit
from tests.controller.test_gossip_runs import SMALL
from topologies import Complete, Exponential, RandomMatching, Ring, Star, Static, check, metropolis

F = heterogeneous(n=6, d=4)
P = np.array([1.0, 2.0, 3.0, 6.0, 1.0, 4.0])
WEIGHTED = np.linalg.solve(
    sum(p * F.H(i) for i, p in enumerate(P)), sum(p * F.H(i) @ F.own_minimiser(i) for i, p in enumerate(P))
)


@given(st.integers(2, 30), st.data())
@settings(max_examples=60)
def test_mixing_keeps_the_weighted_mean_and_leads_to_it(n: int, data: st.DataObject) -> None:
    p = np.array(data.draw(st.lists(st.integers(1, 1000), min_size=n, max_size=n)), float)
    z = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n, max_size=n)))
    graph = nx.compose(nx.path_graph(n), nx.gnp_random_graph(n, 0.2, seed=data.draw(st.integers(0, 99))))
    w = weigh(metropolis(graph), p, 1)
    check(w, symmetric=False, sums="rows")
    assert w.has_sorted_indices
    flow = p[:, None] * w.toarray()
    np.testing.assert_allclose(flow, flow.T, rtol=0, atol=1e-9)
    mean = p @ z / p.sum()
    assert p @ (w @ z) / p.sum() == pytest.approx(mean, abs=1e-12)
    np.testing.assert_allclose(np.linalg.matrix_power(w.toarray(), 2**30) @ z, mean, atol=1e-6)


def test_equal_weights_change_nothing() -> None:
    w = metropolis(Ring().build(6, 0))
    assert weigh(w, np.full(6, 7.0), 1) is w


@pytest.mark.parametrize("active", [range(6), [0, 2, 3, 5]], ids=["everybody", "4 of 6"])
@pytest.mark.parametrize("topology", [Static(Ring()), Static(Star()), RandomMatching()], ids=str)
def test_the_weighted_mean_moves_by_the_weighted_mean_of_the_steps(topology: Any, active: Any) -> None:
    """The models of those who take part, over several rounds of a topology that changes."""
    fed = gossiping(F, LocalWork(0, steps=1), topology, Blocks(6), weights=P)
    meter = Meter(fed)
    ids, algorithm = np.array(active), DPSGD(lr=0.2)
    state = algorithm.init(torch.zeros(F.d, dtype=torch.float64), cohort(fed, 0, meter=meter))
    for round in range(1, 6):
        before = rows(state.x)
        state = algorithm.round(state, cohort(fed, round, ids, meter=meter))
        stepped = [before[i] - 0.2 * F.grad(i, before[i]) for i in ids]
        np.testing.assert_allclose(P[ids] @ rows(state.x)[ids], P[ids] @ stepped, rtol=0, atol=1e-12)
    assert meter.contraction is None and meter.contraction_bound is None


EXACT = [
    *(GradientTracking(lr=0.3), Extra(lr=0.5), ExactDiffusion(lr=0.5), NIDS(lr=0.5), KGT(lr=0.1)),
    BEER(lr=0.1, gamma=0.3, compressor=TopK(k=3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", EXACT, ids=lambda algorithm: type(algorithm).__name__)
def test_corrected_methods_reach_the_minimiser_of_the_weighted_objective(algorithm: Any) -> None:
    assert np.linalg.norm(limit(algorithm, F, Static(Ring()), 1, 3000, weights=P) - WEIGHTED, axis=1).max() < 1e-8
    assert np.linalg.norm(WEIGHTED - F.minimiser()) > 1e-2


NEAR = [DPSGD(lr=0.05), DFedAvg(lr=0.05)]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", NEAR, ids=lambda algorithm: type(algorithm).__name__)
def test_others_come_near_it(algorithm: Any) -> None:
    """Nearer than the minimiser of the plain mean is."""
    average = P @ limit(algorithm, F, Static(Complete()), 1, 3000, weights=P) / P.sum()
    assert np.linalg.norm(average - WEIGHTED) < 0.2 * np.linalg.norm(WEIGHTED - F.minimiser())


def test_what_is_measured_is_the_weighted_average(tmp_path: Path) -> None:
    experiment = replace(
        SMALL, algorithm=DFedAvg(), weights="samples", rounds=1, evaluation=Evaluation(clients_every=1), dtype="float64"
    )
    found = run(experiment, root=tmp_path, progress=False)
    fed = replace(prepare(experiment, 0).federation, backend=Blocks(4))
    state = experiment.algorithm.init(fed.model.vector(), cohort(fed, 0))
    x = rows(experiment.algorithm.round(state, cohort(fed, 1)).x)
    p = fed.shards.sizes / fed.shards.sizes.sum()
    assert len(set(p)) > 4
    distance = float(np.sqrt(p @ np.square(x - p @ x).sum(1)))
    metrics = read_metrics(found.seed_path(0) / "metrics.jsonl")
    assert metrics.series("nodes", "consensus_distance")[1] == pytest.approx(distance, rel=1e-10)
    assert not metrics.series("nodes", "contraction")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": SGP()}, "push-sum converges to the unweighted mean of the nodes: set weights to uniform"),
        ({"topology": Static(Exponential(directed=True), "uniform_directed")}, "unequal node weights need a symmetric"),
    ],
)
def test_what_takes_no_weights(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(replace(SMALL, algorithm=DFedAvg(), weights="samples"), **change), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_matrix_that_is_not_symmetric() -> None:
    with pytest.raises(ConfigError, match="that of round 3 is not: use an undirected graph, or weights uniform"):
        weigh(csr_array(np.roll(np.eye(3), 1, 0)), np.array([1.0, 2, 3]), 3)
