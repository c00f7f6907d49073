"""Gossip: checks of mixing matrices, bounds on what an exchange leaves, and the verbs ``mix`` and ``push``."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from fedsim.clients import cohort
from fedsim.engine.federation import Meter
from fedsim.errors import ConfigError
from fedsim.gossip import check, check_connected, mixing_matrix, restrict
from fedsim.messages.mixing import spread
from fedsim.messages.stacked import Stacked
from fedsim.messages.wire import nbytes
from fedsim.types import Sent
from tests.test_clients import federation
from topologies import (
    Exponential,
    OnePeerExponential,
    RandomMatching,
    Ring,
    Star,
    Static,
    metropolis,
)

DOUBLE = torch.float64


def matrix(*rows: list[float]) -> csr_array:
    return csr_array(np.array(rows))


@pytest.mark.parametrize(
    ("w", "needs", "message"),
    [
        (matrix([0.6, 0.5], [0.5, 0.5]), {}, "row 0 of .* round 7 sums to 1.1, 0.1 above 1; .* metropolis gives"),
        (matrix([0.5, 0.25], [0.5, 0.75]), {}, "row 0 of .* round 7 sums to 0.75, 0.25 below 1; .* metropolis gives"),
        (matrix([0.5, 0.4], [0.4, 0.6]), {"rows": False}, "column 0 .* sums to 0.9, 0.1 below 1; .* metropolis gives"),
        (matrix([0.5, 0.5], [0, 1]), {"rows": False}, "column 0 .* 0.5 below 1; .*directed.* column_stochastic"),
        (matrix([1.25, 0], [-0.25, 1]), {}, r"entry \[1, 0\] of .* round 7 is -0.25; expected finite weights, 0"),
        (matrix([float("nan"), 0.5], [0.5, 0.5]), {}, r"entry \[0, 0\] of .* is nan"),
        (matrix([float("inf"), 0.5], [0.5, 0.5]), {}, r"entry \[0, 0\] of .* is inf"),
        (csr_array((2, 2)), {}, "row 0 .* sums to 0"),
        (
            matrix([0, 1, 0], [0, 0, 1], [1, 0, 0]),
            {"symmetric": True},
            "round 7 is not symmetric.*undirected graph.*DFedAvg, DFedSAM or GradientTracking.*SGP",
        ),
    ],
)
def test_a_matrix_that_will_not_do(w: csr_array, needs: dict[str, bool], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(w, 7, **needs)


@pytest.mark.parametrize(
    ("w", "needs"),
    [
        (matrix([0, 1, 0], [0, 0, 1], [1, 0, 0]), {}),
        (matrix([0.5, 0.4], [0.5, 0.6]), {"rows": False}),
        (matrix([0.5, 0.5 + 1e-10], [0.5, 0.5]), {"symmetric": True}),
        (matrix([1.0]), {"symmetric": True}),
    ],
)
def test_a_matrix_that_will(w: csr_array, needs: dict[str, bool]) -> None:
    check(w, 7, **needs)


class Wrong:
    """A user's topology of so many nodes, however many there are."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        return metropolis(Ring().build(self.nodes, seed))


@pytest.mark.parametrize("nodes", [4, 9])
def test_a_topology_of_other_nodes(nodes: int) -> None:
    with pytest.raises(ConfigError, match=rf"topology: .* round 3 is \[{nodes}, {nodes}\]; expected \[6, 6\]"):
        mixing_matrix(Wrong(nodes), 3, 0, 6)
    with pytest.raises(ConfigError, match=rf"topology: the graph has {nodes} nodes, but there are n=6"):
        mixing_matrix(Static(nx.cycle_graph(nodes)), 3, 0, 6)


class Given:
    """A user's topology: these matrices in turn."""

    def __init__(self, *matrices: csr_array) -> None:
        self.matrices = matrices

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        return self.matrices[round % len(self.matrices)]


def test_weights_come_in_the_order_of_nodes() -> None:
    """Whatever the order in which the user's matrix stores them, so that the sums have the same bits."""
    w = csr_array((np.full(4, 0.5), np.array([1, 0, 1, 0]), np.array([0, 2, 4])))
    assert not w.has_sorted_indices
    assert mixing_matrix(Given(w), 1, 0, 2).indices.tolist() == [0, 1, 0, 1]


def test_nodes_that_never_hear_of_each_other() -> None:
    pair, halves = np.full((2, 2), 0.5), np.eye(2)
    apart = csr_array(np.kron(halves, pair))
    crossed = csr_array(np.kron(pair, halves))
    for same in (Given(apart), Given(apart, apart.copy())):
        with pytest.raises(ConfigError, match=r"the mixing matrix is disconnected: 2 comp.*node 0.* node 2.*; link"):
            check_connected(same, 0, 4)
    check_connected(Given(apart, crossed), 0, 4)
    check_connected(RandomMatching(), 0, 6)
    check_connected(Static(Ring()), 0, 6)


def test_directed_links_cannot_do_without_a_node() -> None:
    w = OnePeerExponential().matrix(0, 0, 6)
    with pytest.raises(ConfigError, match=r"2 of 6 nodes absent in round 4, row [15] .* off by 0.5 .* SGP"):
        restrict(w, np.array([0, 1, 3, 5]), 4)
    among = restrict(w, np.array([0, 1, 3, 5]), 4, rows=False)
    np.testing.assert_allclose(among.sum(0), 1, rtol=0, atol=1e-15)


def test_round_and_seed_reach_the_topology() -> None:
    class Asked:
        def matrix(self, round: int, seed: int, n: int) -> csr_array:
            assert (round, seed, n) == (4, 7, 5)
            return metropolis(Ring().build(n, 0))

    fed = federation(topology=Asked())
    cohort(fed, 4).mix(Sent(np.arange(5), Stacked(torch.zeros(5, 2, dtype=DOUBLE))))


Z = torch.randn(5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))


def test_mix_goes_into_trees_and_reads_the_consensus_of_the_first() -> None:
    fed = federation(topology=Static(Ring()))
    meter = Meter(fed)
    tree, before = (Z, (Z[:, :1].float(), Z.reshape(5, 3, 1))), Z.clone()
    mixed = cohort(fed, 1, meter=meter).mix(Sent(np.arange(5), Stacked(tree)), 2)
    assert torch.equal(Z, before), "a message may be read again"
    W = np.linalg.matrix_power(Static(Ring()).matrix(1, 0, 5).toarray(), 2)
    for i in range(5):
        a, (b, c) = mixed[i]
        np.testing.assert_allclose(a, (W @ Z.numpy())[i], rtol=0, atol=1e-14)
        assert b.dtype == torch.float32 and c.shape == (3, 1)
        np.testing.assert_allclose(c[:, 0], a, rtol=0, atol=1e-15)
    assert meter.contraction == pytest.approx(spread(torch.from_numpy(W) @ Z) / spread(Z), rel=1e-12)
    assert meter.ledger.up.tolist() == meter.ledger.down.tolist() == [2 * 2 * nbytes(tree, stacked=True)] * 5


ARROWS = Static(Exponential(directed=True), "uniform_directed")
EVERYBODY, FOUR = np.arange(5), np.array([0, 1, 2, 4])


@pytest.mark.parametrize(
    ("topology", "active"), [(Static(Ring()), EVERYBODY), (Static(Ring()), FOUR), (ARROWS, EVERYBODY)]
)
def test_no_exchange_leaves_more_than_the_bound(topology: Static, active: np.ndarray) -> None:
    fed = federation(topology=topology)
    meter = Meter(fed)
    for steps in (1, 3):
        cohort(fed, 1, active, meter=meter).mix(Sent(active, Stacked(Z[active])), steps)
        assert meter.contraction is not None and meter.contraction_bound is not None
        assert 0 < meter.contraction <= meter.contraction_bound * (1 + 1e-12) < 1
    w = restrict(topology.matrix(1, 0, 5), active, 1)
    assert meter.contraction_bound == pytest.approx(np.linalg.norm(w.toarray() - 1 / len(active), 2) ** 3, rel=1e-12)


def test_push_sum_has_no_bound() -> None:
    """Push-sum spreads sums, which need not come closer."""
    fed = federation(topology=Static(Star(), "column_stochastic"))
    meter = Meter(fed)
    cohort(fed, 1, meter=meter).push(Sent(np.arange(5), Stacked(Z)))
    assert meter.contraction_bound is None and meter.contraction is not None


def test_the_consensus_distance() -> None:
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])) == 2.5
    fed = federation(topology=Static(Ring()))
    meter = Meter(fed)
    cohort(fed, 1, meter=meter).mix(Sent(np.arange(5), Stacked(torch.ones(5, 3))))
    assert meter.contraction is None, "nothing to contract"


@pytest.mark.parametrize("verb", ["mix", "push"])
def test_without_a_topology(verb: str) -> None:
    clients = cohort(federation(), 1)
    with pytest.raises(ConfigError, match=r"server.* a topology.* --topology Static --topology.graph Ring"):
        getattr(clients, verb)(Sent(np.arange(5), Stacked(Z)))


def test_those_who_are_away_hear_and_hold_nothing() -> None:
    fed = federation(topology=Static(Ring()))
    meter = Meter(fed)
    mixed = cohort(fed, 1, meter=meter).mix(Sent(np.array([0, 1, 3]), Stacked(Z[[0, 1, 3]])))
    assert set(mixed.rows) == {0, 1, 3}
    assert torch.equal(mixed[3], Z[3]) and not torch.equal(mixed[0], Z[0])
    assert meter.ledger.up.tolist() == meter.ledger.down.tolist() == [nbytes(Z[0]), nbytes(Z[0]), 0, 0, 0]


def test_numbers_can_be_mixed() -> None:
    mixed = cohort(federation(topology=Static(Ring())), 1).mix(Sent(np.arange(5), Stacked(Z[:, 0])))
    expected = [float(Z[[i - 1, i, (i + 1) % 5], 0].mean()) for i in range(5)]
    assert [float(mixed[i]) for i in range(5)] == pytest.approx(expected, abs=1e-15)


def test_a_row_does_not_keep_the_stack_of_its_round_alive() -> None:
    """Or n nodes that take part now and then keep up to n stacks."""
    mixed = cohort(federation(topology=Static(Ring())), 1).mix(Sent(np.array([0, 1, 3]), Stacked(Z[[0, 1, 3]])))
    assert mixed[0].untyped_storage().nbytes() == mixed[0].numel() * mixed[0].element_size()
