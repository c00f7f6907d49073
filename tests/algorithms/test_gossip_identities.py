"""Identities of gossip: limits that are known methods, sums that mixing keeps, and nodes that are away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from algorithms import DPSGD, SGP, DFedAvg, DFedSAM, ExactDiffusion, Extra, FedAvg, FedSAM, GradientTracking
from algorithms.dfedavg import DFedAvgState
from algorithms.sgp import SGPState
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.gossip import Topology
from fedsim.messages.stacked import Stacked
from fedsim.types import Sent
from tests.algorithms import papers
from tests.algorithms.gossip_federations import (
    GRAPHS,
    PUSH,
    TOPOLOGIES,
    among,
    consensus,
    gossiping,
    kept,
    mixing,
    models,
    rows,
)
from tests.algorithms.quadratics import federation, heterogeneous, iterates, states
from topologies import Complete, OnePeerExponential, Ring, Static, spectral

F = heterogeneous(n=6, d=5)
X0 = np.random.default_rng(9).standard_normal(F.d)
ONE_STEP, WHOLE, EPOCHS = LocalWork(0, steps=1), LocalWork(0, steps=4), LocalWork(4, epochs=2)
COMPLETE = Static(Complete())
STILL = 1e-300
"""A step size that moves nothing: what remains is averaging."""


def run(algorithm: Any, topology: Topology, work: LocalWork = EPOCHS, f: Any = F, T: int = 4) -> np.ndarray:
    """All models ``[T, n, d]``."""
    return np.array(models(algorithm, gossiping(f, work, topology), X0, T))


def close(a: Any, b: Any, tolerance: float = 1e-14) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    assert np.abs(np.asarray(a)[-1] - X0).max() > 1e-3, "nothing moved"


def alike(models: list[np.ndarray]) -> np.ndarray:
    """The server's models, one at every node: ``[T, n, d]``."""
    return np.repeat(np.array(models)[:, None], F.n, 1)


def test_metropolis_weights_on_the_complete_graph_are_all_equal() -> None:
    for n in (2, 6, 16):
        np.testing.assert_allclose(mixing(COMPLETE, 1, n), 1 / n, rtol=0, atol=1e-16)


@pytest.mark.parametrize(
    "algorithm", [DFedAvg(lr=0.5), DFedAvg(lr=0.5, momentum=0.9), DFedSAM(lr=0.5, rho=0.0), SGP(lr=0.5)]
)
def test_one_step_on_the_complete_graph_is_gradient_descent(algorithm: Any) -> None:
    close(run(algorithm, COMPLETE, ONE_STEP), alike(papers.gradient_descent(F, X0, 4, 0.5)))


@pytest.mark.parametrize("algorithm", [DPSGD(lr=0.5), GradientTracking(lr=0.5)])
def test_the_average_of_the_first_round_is_a_gradient_step(algorithm: Any) -> None:
    """Everybody starts at the same point, so any W will do."""
    first = run(algorithm, TOPOLOGIES["irregular"], ONE_STEP, T=1)[0].mean(0)
    close([first], papers.gradient_descent(F, X0, 1, 0.5))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("algorithm", [DFedAvg, DFedSAM, SGP])
def test_on_the_complete_graph_it_is_fedavg_with_everybody(algorithm: Any, momentum: float) -> None:
    if momentum and algorithm is not DFedAvg:
        return
    settings = {DFedAvg: {"momentum": momentum}, DFedSAM: {"rho": 0.0}, SGP: {}}[algorithm]
    server = iterates(FedAvg(lr=0.2, momentum=momentum), federation(F, EPOCHS), X0, [list(range(F.n))] * 4)
    close(run(algorithm(lr=0.2, **settings), COMPLETE), alike(server))


def test_on_the_complete_graph_dfedsam_is_fedsam_with_everybody() -> None:
    server = iterates(FedSAM(lr=0.2, rho=0.03), federation(F, EPOCHS), X0, [list(range(F.n))] * 4)
    close(run(DFedSAM(lr=0.2, rho=0.03), COMPLETE), alike(server))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_ascent_is_dfedavg(topology: str) -> None:
    plain = run(DFedAvg(lr=0.2, gossip_steps=2), TOPOLOGIES[topology])
    np.testing.assert_array_equal(run(DFedSAM(lr=0.2, rho=0.0, gossip_steps=2), TOPOLOGIES[topology]), plain)
    assert np.abs(run(DFedSAM(lr=0.2, rho=0.03, gossip_steps=2), TOPOLOGIES[topology]) - plain).max() > 1e-3


class Power:
    """W^Q of another topology in one exchange."""

    def __init__(self, base: Topology, Q: int) -> None:
        self.base, self.Q = base, Q

    def matrix(self, round: int, seed: int, n: int) -> Any:
        w = out = self.base.matrix(round, seed, n)
        for _ in range(self.Q - 1):
            out = out @ w
        return out


@pytest.mark.parametrize("Q", [2, 5])
@pytest.mark.parametrize("algorithm", [DFedAvg, DFedSAM])
def test_several_exchanges_are_one_with_the_power_of_w(algorithm: Any, Q: int) -> None:
    ring = TOPOLOGIES["ring"]
    close(run(algorithm(lr=0.2, gossip_steps=Q), ring), run(algorithm(lr=0.2), Power(ring, Q)))


def test_combining_first_is_combining_last_a_round_later() -> None:
    """All start alike, so the first exchange of "CTA" does nothing, and its models are those of "ATC" before mixing."""
    fed = gossiping(F, EPOCHS, TOPOLOGIES["ring"])
    after = np.array(models(DFedAvg(lr=0.2), fed, X0, 4))
    before = np.array(models(DFedAvg(lr=0.2, order="CTA"), fed, X0, 4))
    close(mixing(TOPOLOGIES["ring"], 1, F.n) @ before, after)


@pytest.mark.parametrize("Q", [1, 2, 3])
@pytest.mark.parametrize("graph", GRAPHS)
def test_mixing_keeps_the_mean_and_contracts_by_the_spectral_gap(graph: str, Q: int) -> None:
    n = 16
    fed = gossiping(heterogeneous(n=n, d=3), ONE_STEP, Static(GRAPHS[graph]))
    meter = Meter(fed)
    z = np.random.default_rng(2).standard_normal((n, 4))
    mixed = rows(cohort(fed, 1, meter=meter).mix(Sent(np.arange(n), Stacked(torch.from_numpy(z))), Q))
    np.testing.assert_allclose(mixed.mean(0), z.mean(0), rtol=0, atol=1e-14)
    lam = spectral(fed.topology.matrix(1, 0, n)).lam  # type: ignore[union-attr]
    assert consensus(mixed) <= lam**Q * consensus(z) + 1e-14
    assert meter.contraction == pytest.approx(consensus(mixed) / consensus(z), abs=1e-12)


@pytest.mark.parametrize("algorithm", [DFedAvg(lr=0.2), DFedSAM(lr=0.2, rho=0.03), GradientTracking(lr=0.1)])
def test_identical_nodes_stay_in_consensus(algorithm: Any) -> None:
    f = heterogeneous(n=6, d=5, same=True)
    x = run(algorithm, TOPOLOGIES["ring"], WHOLE, f)
    assert max(consensus(models) for models in x) <= 1e-12
    close(x[-1], x[-1][:1].repeat(6, 0), 1e-12)


@pytest.mark.parametrize("S", [list(range(6)), [0, 1, 2, 4], [3]], ids=["everybody", "4 of 6", "1 of 6"])
@pytest.mark.parametrize("topology", ["ring", "irregular"])
def test_the_trackers_mean_is_the_gradients_mean_in_every_round(topology: str, S: list[int]) -> None:
    fed = gossiping(F, EPOCHS, TOPOLOGIES[topology])
    for s in states(GradientTracking(lr=0.2), fed, X0, [S] * 5):
        np.testing.assert_allclose(rows(s.y).mean(0), rows(s.g).mean(0), rtol=0, atol=1e-14)
    assert consensus(rows(s.y)) > 1e-2


@pytest.mark.parametrize("S", [list(range(6)), [1, 2, 3, 4]], ids=["everybody", "4 of 6"])
@pytest.mark.slow
def test_push_sum_keeps_mass_and_averages_on_a_directed_graph(S: list[int]) -> None:
    """Without gradients: sum_i w_i x_i and sum_i w_i stay, and the weights come apart."""
    z = np.random.default_rng(2).standard_normal((6, F.d))
    fed = gossiping(F, ONE_STEP, PUSH)
    s = SGPState(kept(z), kept(np.ones(6)))
    for t in range(1, 120):
        s = SGP(lr=STILL).round(s, cohort(fed, t, np.array(S)))
        np.testing.assert_allclose(rows(s.w).sum(), 6, rtol=0, atol=1e-13)
        np.testing.assert_allclose(rows(s.w) @ rows(s.x), z.sum(0), rtol=0, atol=1e-13)
    assert np.ptp(rows(s.w)) > 0.1
    np.testing.assert_allclose(rows(s.x)[S], np.tile(z[S].mean(0), (len(S), 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_one_peer_at_a_time_averages_exactly_in_log2_n_rounds(first: int) -> None:
    """Whichever of the four rounds comes first; one round less does not."""
    z = np.random.default_rng(2).standard_normal((16, 3))
    fed = gossiping(heterogeneous(n=16, d=3), ONE_STEP, OnePeerExponential())
    s, distances = DFedAvgState(kept(z)), []
    for t in range(first, first + 4):
        s = DFedAvg(lr=STILL).round(s, cohort(fed, t))
        distances.append(consensus(rows(s.x)))
    assert distances[2] > 1e-2 and distances[3] < 1e-15
    np.testing.assert_allclose(rows(s.x), np.tile(z.mean(0), (16, 1)), rtol=0, atol=1e-15)


AWAY = [DFedAvg(lr=0.2), DFedAvg(lr=0.2, order="CTA"), DFedAvg(lr=0.2, gossip_steps=2), DFedSAM(lr=0.2), DPSGD(lr=0.2)]
HAS_MORE = [DPSGD(lr=0.2, momentum=0.9), GradientTracking(lr=0.2), SGP(lr=0.2)]


def held(state: Any) -> list[Any]:
    """What nodes keep, without the fields that this algorithm's settings leave empty."""
    return [field for field in state if field != ()]


class Fixed:
    """This W in every round, however many nodes it is asked for."""

    def __init__(self, W: np.ndarray) -> None:
        self.W = W

    def matrix(self, round: int, seed: int, n: int) -> Any:
        return csr_array(self.W)


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("algorithm", [*AWAY, *HAS_MORE], ids=str)
def test_nodes_that_are_away_keep_all_they_have_and_the_others_go_on_among_themselves(
    algorithm: Any, backend: Any
) -> None:
    """An absent node's state stays bit for bit; those present do what they would in a federation of their own."""
    topology = PUSH if isinstance(algorithm, SGP) else TOPOLOGIES["irregular"]
    S = [0, 1, 3, 4]
    fed = gossiping(F, WHOLE, topology, backend)
    *_, before = states(algorithm, fed, X0, [list(range(6))] * 2)
    after = algorithm.round(before, cohort(fed, 3, np.array(S)))
    for old, new in zip(held(before), held(after), strict=True):
        assert all(torch.equal(old[i], new[i]) for i in (2, 5))
        assert not any(torch.equal(old[i], new[i]) for i in S)
    alone = gossiping(F, WHOLE, Fixed(among(mixing(topology, 3, 6), S)), backend)
    expected = algorithm.round(before, cohort(alone, 3))
    for new, same in zip(held(after), held(expected), strict=True):
        np.testing.assert_allclose(rows(new)[S], rows(same)[S], rtol=0, atol=1e-14)


@pytest.mark.parametrize("S", [[0, 1, 2, 4], [0, 3], [5]])
@pytest.mark.parametrize("topology", ["ring", "irregular"])
def test_the_mean_is_kept_whoever_is_away(topology: str, S: list[int]) -> None:
    z = np.random.default_rng(2).standard_normal((6, F.d))
    fed = gossiping(F, ONE_STEP, TOPOLOGIES[topology])
    after = rows(DFedAvg(lr=STILL, gossip_steps=2).round(DFedAvgState(kept(z)), cohort(fed, 1, np.array(S))).x)
    np.testing.assert_allclose(after.mean(0), z.mean(0), rtol=0, atol=1e-15)
    W = np.linalg.matrix_power(among(mixing(TOPOLOGIES[topology], 1, 6), S), 2)
    np.testing.assert_allclose(after, W @ z, rtol=0, atol=1e-14)


def test_directed_links_need_everybody() -> None:
    fed = gossiping(F, ONE_STEP, TOPOLOGIES["one peer"])
    with pytest.raises(ConfigError, match=r"links are directed: use full participation .*, or push-sum"):
        models(DFedAvg(), fed, X0, 1, [[0, 1, 3]])


@pytest.mark.parametrize("algorithm", [Extra(), ExactDiffusion()], ids=str)
def test_corrected_methods_need_everybody_and_a_symmetric_w(algorithm: Any) -> None:
    name = type(algorithm).__name__
    with pytest.raises(ConfigError, match=f"{name} needs every node in every round, 3 of 6 take part.*DFedAvg"):
        models(algorithm, gossiping(F, ONE_STEP, Static(Ring())), X0, 1, [[0, 1, 3]])
    with pytest.raises(ConfigError, match=r"round 1 is not symmetric.*undirected graph.*DFedAvg.*SGP"):
        models(algorithm, gossiping(F, ONE_STEP, TOPOLOGIES["one peer"]), X0, 1)


def test_push_sum_needs_columns_that_sum_to_one() -> None:
    rows_only = Fixed(mixing(PUSH, 1, 6).T)
    with pytest.raises(ConfigError, match=r"column \d of the mixing matrix of round 1 .*weighting column_stochastic"):
        models(SGP(), gossiping(F, ONE_STEP, rows_only), X0, 1)
    with pytest.raises(ConfigError, match=r"row \d of the mixing matrix of round 1 sums to .*use push-sum .SGP"):
        models(DFedAvg(), gossiping(F, ONE_STEP, PUSH), X0, 1)
