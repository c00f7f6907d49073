"""Schedules: doubly stochastic in every round, functions of (round, seed), and fair."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array, csr_matrix

from topologies import (
    SCHEDULES,
    Complete,
    ErdosRenyi,
    Exponential,
    FromFile,
    Grid,
    LinkFailures,
    MixingSchedule,
    OnePeerExponential,
    Path,
    RandomMatching,
    RandomNeighbours,
    RandomRegular,
    Ring,
    Star,
    Static,
    TopologyError,
    check,
    lazy,
    max_degree,
    metropolis,
)
from topologies.files import digest

ASYMMETRIC: list[MixingSchedule] = [
    Static(Exponential(directed=True), "uniform_directed"),
    OnePeerExponential(),
]
SYMMETRIC: list[MixingSchedule] = [
    Static(),
    Static(Star(), "max_degree", lazy=True),
    Static(ErdosRenyi(0.7)),
    Static(Ring(), "fastest"),
    RandomMatching(),
    RandomNeighbours(2),
    RandomNeighbours(5),
    LinkFailures(Static(Exponential()), 0.3),
    LinkFailures(RandomMatching(), 0.5),
    LinkFailures(RandomNeighbours(4), 1.0),
]
ROUNDS, SEEDS = st.integers(0, 10**9), st.integers(0, 2**63)


def test_every_class_is_under_test() -> None:
    assert {type(schedule) for schedule in SYMMETRIC + ASYMMETRIC} == set(SCHEDULES)


@given(st.sampled_from(SYMMETRIC + ASYMMETRIC), ROUNDS, SEEDS, st.integers(1, 17))
@settings(max_examples=150)
def test_doubly_stochastic_in_every_round(schedule: MixingSchedule, round: int, seed: int, n: int) -> None:
    try:
        W = schedule.matrix(round, seed, n)
    except TopologyError as error:
        assume("RandomNeighbours" not in str(error))
        raise
    assert W.shape == (n, n)
    assert W.dtype == np.float64
    assert W.format == "csr"
    check(W, symmetric=schedule in SYMMETRIC, connected=False, tolerance=1e-14)
    z = np.random.default_rng(0).standard_normal((n, 2))
    assert np.allclose((W @ z).mean(axis=0), z.mean(axis=0), atol=1e-14)
    assert np.linalg.norm(W @ z - z.mean(axis=0)) <= np.linalg.norm(z - z.mean(axis=0)) + 1e-12
    assert abs(W - schedule.matrix(round, seed, n)).max() == 0


@given(ROUNDS, SEEDS, st.integers(2, 30), st.floats(0, 1))
@settings(max_examples=60)
def test_links_that_fail_leave_their_weight_at_both_ends(round: int, seed: int, n: int, probability: float) -> None:
    base = Static(Exponential())
    whole, W = (s.matrix(round, seed, n).toarray() for s in (base, LinkFailures(base, probability)))
    off = ~np.eye(n, dtype=bool)
    failed = off & (whole > 0) & (W == 0)
    assert np.array_equal(failed, failed.T) and np.array_equal(W[off & ~failed], whole[off & ~failed])
    np.testing.assert_allclose(np.diag(W), np.diag(whole) + (whole * failed).sum(1), rtol=0, atol=1e-15)
    alone = (W * off).sum(1) == 0
    assert np.array_equal(W[alone], np.eye(n)[alone]), "who is alone keeps every bit"


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 1024])
@pytest.mark.parametrize("first", [0, 3])
def test_one_peer_averages_exactly_in_log2_n_rounds(n: int, first: int) -> None:
    z = np.random.default_rng(1).standard_normal((n, 2))
    mean = z.mean(axis=0)
    for t in range(first, first + n.bit_length() - 1):
        W = OnePeerExponential().matrix(t, 0, n)
        assert np.diff(W.indptr).max() <= 2
        z = W @ z
    assert abs(z - mean).max() < 1e-12


def test_one_peer_hears_along_the_arrows_of_the_exponential_graph() -> None:
    arrows = Exponential(directed=True).build(12, 0)
    heard = sum(OnePeerExponential().matrix(t, 0, 12) for t in range(4)).toarray() > 0
    assert np.array_equal(heard & ~np.eye(12, dtype=bool), nx.to_numpy_array(arrows, range(12)).T > 0)


@pytest.mark.parametrize(
    "schedule", [RandomMatching(), RandomNeighbours(4), LinkFailures(Static(), 0.4), Static(RandomRegular(4))]
)
def test_rounds_and_seeds_differ(schedule: MixingSchedule) -> None:
    W = schedule.matrix(3, 7, 20)
    assert abs(W - schedule.matrix(3, 8, 20)).max() > 0 or schedule == Static()
    if isinstance(schedule, Static):
        assert schedule.matrix(4, 7, 20) is W
    else:
        assert abs(W - schedule.matrix(4, 7, 20)).max() > 0


def test_matchings_are_fair() -> None:
    partners = [int(RandomMatching().matrix(t, 0, 4).toarray()[0].argsort()[-2:].max()) for t in range(3000)]
    counts = np.bincount(partners, minlength=4)[1:]
    assert counts.sum() == 3000
    assert abs(counts - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)
    assert [np.count_nonzero(RandomMatching().matrix(0, 0, n).diagonal() == 1) for n in (1, 2, 7, 8)] == [1, 0, 1, 0]


def test_random_neighbours_have_their_degree() -> None:
    for degree in (1, 4, 19):
        W = RandomNeighbours(degree).matrix(2, 0, 20)
        assert set(np.diff(W.indptr)) == {degree + 1}
        assert np.allclose(W.data, 1 / (degree + 1))


def test_links_fail_as_often_as_said_both_ways_and_independently() -> None:
    n, p, rounds = 500, 0.3, 40
    base = Static(Ring())
    up = np.array([LinkFailures(base, p).matrix(t, 0, n).diagonal(1) > 0 for t in range(rounds)])
    deviation = np.sqrt(p * (1 - p) / up.size)
    assert abs(up.mean() - (1 - p)) < 5 * deviation
    assert abs((up[:, 1:] & up[:, :-1]).mean() - (1 - p) ** 2) < 8 * deviation
    assert abs((up[1:] & up[:-1]).mean() - (1 - p) ** 2) < 8 * deviation
    W, whole = LinkFailures(base, p).matrix(0, 0, n), base.matrix(0, 0, n)
    assert abs(LinkFailures(base, 0.0).matrix(0, 0, n) - whole).max() == 0
    assert abs(LinkFailures(base, 1.0).matrix(0, 0, n) - csr_array(np.eye(n))).max() < 1e-15
    lost = whole.toarray() - W.toarray()
    assert np.allclose(-lost.diagonal(), lost.sum(axis=1) - lost.diagonal())
    more = LinkFailures(base, 0.6).matrix(0, 0, n).toarray() > 0
    assert not (more & ~(W.toarray() > 0)).any()  # the same draws: what fails at 0.3 fails at 0.6


def test_static_takes_names_functions_and_networkx_graphs() -> None:
    club = nx.karate_club_graph()
    assert abs(Static(club).matrix(0, 0, 34) - metropolis(club)).max() == 0
    assert abs(Static(club, max_degree).matrix(0, 0, 34) - max_degree(club)).max() == 0
    assert abs(Static(Grid(), lazy=True).matrix(9, 0, 12) - lazy(metropolis(Grid().build(12, 0)))).max() == 0
    with pytest.raises(TopologyError, match="the graph has 34 nodes, but there are n=10: use n=34"):
        Static(club).matrix(0, 0, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(Ring(), "metropolys"), "expected one of metropolis, .*: did you mean 'metropolis'"),  # type: ignore[arg-type]
        (lambda: LinkFailures(Static(), 1.1), r"LinkFailures.probability is 1.1; expected a number in \[0, 1\]"),
        (lambda: RandomNeighbours(0), "RandomNeighbours.degree is 0"),
        (lambda: RandomNeighbours(3).matrix(0, 0, 7), "odd; degree may be 2 or 4, or n even"),
        (lambda: RandomNeighbours(3).matrix(0, 0, 3), "needs n of at least 4"),
        (lambda: RandomMatching().matrix(0, 0, 0), "n is 0"),
        (lambda: OnePeerExponential().matrix(0, 0, -1), "n is -1"),
        (lambda: LinkFailures(OnePeerExponential(), 0.1).matrix(0, 0, 8), r"need a symmetric W, .* OnePeerExponential"),
        (lambda: Static(Complete(), "uniform_directed").matrix(0, 0, 10**5), "edges"),
    ],
)
def test_errors(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(TopologyError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        Static(Ring()),
        Static(Path(), "max_degree"),
        Static(Grid()),
        Static(Exponential(directed=True), "uniform_directed"),
        OnePeerExponential(),
        RandomMatching(),
        RandomNeighbours(4),
        LinkFailures(Static(Ring()), 0.1),
    ],
)
@pytest.mark.slow
def test_ten_thousand_nodes_without_a_dense_matrix(schedule: MixingSchedule) -> None:
    n = 10_000
    tracemalloc.start()
    try:
        W = schedule.matrix(0, 0, n)
        check(W, symmetric=False, connected=False)
        assert tracemalloc.get_traced_memory()[1] < 150e6  # n x n float64 would be 800e6 bytes
    finally:
        tracemalloc.stop()


def by_edges(graph: Any) -> Any:
    w = nx.to_numpy_array(graph, nodelist=range(len(graph)))
    return w + np.diag(1 - w.sum(axis=1))


def test_a_weighting_of_ones_own_reads_weights_of_edges(tmp_path: FilePath) -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([("a", "b", 0.5), ("b", "c", 0.25), ("c", "a", 0.125)])
    expected = np.array([[0.375, 0.5, 0.125], [0.5, 0.25, 0.25], [0.125, 0.25, 0.625]])
    nx.write_graphml(graph, tmp_path / "g.graphml")
    nx.write_edgelist(graph, tmp_path / "g.txt")
    nx.write_weighted_edgelist(graph, tmp_path / "w.txt")
    files = [FromFile(tmp_path / name) for name in ("g.graphml", "g.txt", "w.txt")]
    for known in (graph, nx.MultiGraph(graph), *files):
        assert np.array_equal(Static(known, by_edges).matrix(1, 0, 3).toarray(), expected)
        assert np.allclose(Static(known).matrix(1, 0, 3).toarray(), 1 / 3)


def test_a_graph_that_changes_later_is_another_one() -> None:
    graph = nx.cycle_graph(6)
    before = Static(graph)
    first = before.matrix(1, 0, 6)
    graph.add_edge(0, 3)
    assert Static(graph).matrix(1, 0, 6)[0, 3] > 0 == before.matrix(1, 0, 6)[0, 3]
    assert before.matrix(2, 0, 6) is first


@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist, torch.from_numpy, csr_matrix, coo_array])
def test_a_matrix_of_ones_own_in_any_form(form: Callable[[Any], Any]) -> None:
    dense = by_edges(nx.cycle_graph(5)) * 0.25 + np.eye(5) * 0.75
    found = Static(Ring(), weighting=lambda _: form(dense)).matrix(1, 0, 5)
    assert isinstance(found, csr_array) and np.array_equal(found.toarray(), dense)
    failing = LinkFailures(Static(Ring(), weighting=lambda _: form(dense)), 1.0)
    assert np.array_equal(failing.matrix(1, 0, 5).toarray(), np.eye(5))


@pytest.mark.parametrize("made", [None, "W", np.ones(3), [[1.0], [0.5, 0.5]]])
def test_what_is_no_matrix(made: Any) -> None:
    with pytest.raises(TopologyError, match=r"what weighting gave is .*; expected a matrix \[n, n\]"):
        Static(Ring(), weighting=lambda _: made).matrix(1, 0, 3)


def test_a_digest_tells_graphs_apart() -> None:
    cycle, path = nx.cycle_graph(4), nx.path_graph(4)
    weighted = nx.Graph([(0, 1, {"weight": 1.0}), (1, 2), (2, 3), (3, 0)])
    same = nx.Graph([(3, 2), (0, 3), (1, 0), (2, 1)])
    assert digest(cycle) == digest(same) == digest(nx.relabel_nodes(cycle, str))
    assert len({digest(g) for g in (cycle, path, weighted, nx.DiGraph(cycle), nx.cycle_graph(5))}) == 5
