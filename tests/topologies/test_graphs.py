"""Every graph: its nodes and links, its closed form, and an error that says what would do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from topologies import (
    GRAPHS,
    BarabasiAlbert,
    Complete,
    ErdosRenyi,
    Exponential,
    FromFile,
    Grid,
    Hypercube,
    Path,
    RandomRegular,
    Ring,
    Star,
    TopologyError,
    Torus,
    TwoCliques,
    WattsStrogatz,
    from_networkx,
)
from topologies.graphs import GraphBuilder
from topologies.mixing import WEIGHTINGS
from topologies.order import natural

BUILDERS: list[GraphBuilder] = [
    Ring(),
    Path(),
    Grid(),
    Torus(),
    Hypercube(),
    Exponential(),
    Exponential(directed=True),
    Complete(),
    Star(),
    TwoCliques(),
    ErdosRenyi(0.6),
    RandomRegular(3),
    RandomRegular(6),
    WattsStrogatz(4, 0.2),
    BarabasiAlbert(2),
]
RANDOM: list[GraphBuilder] = [ErdosRenyi(0.3), RandomRegular(4), WattsStrogatz(4, 0.3), BarabasiAlbert(2)]


def build(builder: GraphBuilder, n: int, seed: int = 0) -> nx.Graph:
    try:
        return builder.build(n, seed)
    except TopologyError:
        assume(False)


def test_every_class_is_under_test() -> None:
    assert {type(builder) for builder in BUILDERS} | {FromFile} == set(GRAPHS)


@given(st.sampled_from(BUILDERS), st.integers(1, 24), st.integers(0, 2**40))
@settings(max_examples=150)
def test_nodes_are_0_to_n_and_linked_without_self_loops(builder: GraphBuilder, n: int, seed: int) -> None:
    graph = build(builder, n, seed)
    assert sorted(graph) == list(range(n))
    assert nx.number_of_selfloops(graph) == 0
    assert nx.is_strongly_connected(graph) if graph.is_directed() else nx.is_connected(graph)


@pytest.mark.parametrize("builder", BUILDERS)
def test_most_sizes_can_be_built(builder: GraphBuilder) -> None:
    built = 0
    for n in (8, 16, 20):
        try:
            built += len(builder.build(n, 0)) == n
        except TopologyError as error:
            assert isinstance(builder, Hypercube), error
    assert built >= 2


@pytest.mark.parametrize(
    "builder", [Ring(), Path(), Grid(), Torus(), Hypercube(), Exponential(), Complete(), Star(), TwoCliques()]
)
def test_one_node_has_no_link_and_two_have_one(builder: GraphBuilder) -> None:
    assert list(builder.build(1, 0).edges()) == []
    assert list(builder.build(2, 0).edges()) == [(0, 1)]


@pytest.mark.parametrize(
    ("builder", "n", "same"),
    [
        (Ring(), 7, nx.cycle_graph(7)),
        (Path(), 7, nx.path_graph(7)),
        (Grid(), 20, nx.grid_2d_graph(4, 5)),
        (Torus(), 20, nx.grid_2d_graph(4, 5, periodic=True)),
        (Torus(), 9, nx.grid_2d_graph(3, 3, periodic=True)),
        (Hypercube(), 16, nx.hypercube_graph(4)),
        (Complete(), 6, nx.complete_graph(6)),
        (Star(), 6, nx.star_graph(5)),
        (Exponential(), 10, nx.circulant_graph(10, [1, 2, 4, 8])),
    ],
)
def test_closed_forms(builder: GraphBuilder, n: int, same: nx.Graph) -> None:
    assert nx.is_isomorphic(builder.build(n, 0), same)


@pytest.mark.parametrize(("n", "degree"), [(10, 6), (16, 7), (20, 8), (64, 11), (100, 14)])
def test_degrees_of_the_exponential_graph(n: int, degree: int) -> None:
    assert {d for _, d in Exponential().build(n, 0).degree()} == {degree}
    directed = Exponential(directed=True).build(n, 0)
    assert {d for _, d in directed.out_degree()} == {d for _, d in directed.in_degree()} == {math.ceil(math.log2(n))}
    assert set(directed.successors(3)) == {(3 + 2**k) % n for k in range(math.ceil(math.log2(n)))}


def test_grids_are_as_square_as_can_be() -> None:
    assert nx.is_isomorphic(Grid().build(10, 0), nx.grid_2d_graph(2, 5))
    assert nx.is_isomorphic(Grid().build(36, 0), nx.grid_2d_graph(6, 6))
    with pytest.raises(TopologyError, match=r"n=7 is prime: .* n=6 \(2x3\) or n=8 \(2x4\), or Path\(\)"):
        Grid().build(7, 0)
    with pytest.raises(TopologyError, match=r"n=3 is prime: a torus of 1x3 is a line; use n=4 \(2x2\), or Ring\(\)"):
        Torus().build(3, 0)


def test_two_cliques_hang_on_one_link() -> None:
    graph = TwoCliques().build(11, 0)
    assert list(nx.bridges(graph)) == [(5, 6)]
    graph.remove_edge(5, 6)
    assert [len(part) for part in nx.connected_components(graph)] == [6, 5]
    assert graph.number_of_edges() == 15 + 10


@pytest.mark.parametrize("builder", RANDOM)
def test_seeds_repeat_and_differ(builder: GraphBuilder) -> None:
    edges = [sorted(builder.build(30, seed).edges()) for seed in (1, 1, 2)]
    assert edges[0] == edges[1] != edges[2]


@pytest.mark.process
def test_random_graphs_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from topologies import *\n"
        "for g in (ErdosRenyi(.3), RandomRegular(4), RandomRegular(20), WattsStrogatz(4, .3), BarabasiAlbert(2)):\n"
        "    print(sorted(g.build(30, 5).edges()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": s}, capture_output=True, check=True
        ).stdout
        for s in "12"
    ]
    assert runs[0] == runs[1] != b""


@pytest.mark.parametrize(("degree", "n"), [(1, 2), (3, 10), (7, 10), (9, 10), (90, 100), (99, 100)])
def test_regular_graphs_are_regular_however_dense(degree: int, n: int) -> None:
    assert {d for _, d in RandomRegular(degree).build(n, 3).degree()} == {degree}


def test_erdos_renyi_has_its_density() -> None:
    edges = sum(ErdosRenyi(0.2).build(100, seed).number_of_edges() for seed in range(20))
    mean, deviation = 20 * 4950 * 0.2, math.sqrt(20 * 4950 * 0.2 * 0.8)
    assert abs(edges - mean) < 5 * deviation


@pytest.mark.parametrize(
    ("builder", "n", "message"),
    [
        (ErdosRenyi(0.01), 50, r"none of 100 draws of ErdosRenyi\(p=0.01\) with n=50 .* take p of at least 0.158"),
        (RandomRegular(1), 10, "take a degree of at least 3"),
        (RandomRegular(3), 9, r"odd; degree may be 2 or 4, or n even"),
        (RandomRegular(10), 10, r"RandomRegular\(degree=10\) needs n of at least 11, got n=10"),
        (WattsStrogatz(4, 0.1), 4, "needs n of at least 5"),
        (BarabasiAlbert(5), 5, "needs n of at least 6"),
        (Hypercube(), 20, "use n=16 or n=32"),
        (Complete(), 10_000, r"49,995,000 edges; .* up to 5,000,000"),
        (Ring(), 0, "n is 0; expected a whole number of nodes, 1 or more"),
        (Exponential(), True, "n is True"),
    ],
)
def test_errors_say_what_would_do(builder: GraphBuilder, n: int, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        builder.build(n, 0)


def test_a_small_world_that_falls_apart_needs_more_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topologies.random_graphs.ATTEMPTS", 1)
    with pytest.raises(TopologyError, match=r"none of 1 draws of .* take k of at least 4, or a smaller p"):
        for seed in range(50):
            WattsStrogatz(2, 1.0).build(200, seed)


def test_the_proposed_p_does() -> None:
    assert nx.is_connected(ErdosRenyi(0.1583).build(50, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ErdosRenyi(1.5), r"ErdosRenyi.p is 1.5; expected a number in \[0, 1\]"),
        (lambda: ErdosRenyi(math.nan), "ErdosRenyi.p is nan"),
        (lambda: RandomRegular(0), "RandomRegular.degree is 0; expected a whole number, 1 or more"),
        (lambda: RandomRegular(2.5), "RandomRegular.degree is 2.5"),  # type: ignore[arg-type]
        (lambda: WattsStrogatz(3, 0.1), "WattsStrogatz.k is 3; expected an even number"),
        (lambda: BarabasiAlbert(0), "BarabasiAlbert.m is 0"),
    ],
)
def test_settings_are_checked_at_once(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(TopologyError, match=message):
        make()


def test_labels_are_taken_in_a_fixed_order() -> None:
    texts = nx.Graph([("10", "9"), ("9", "0")])
    assert sorted(from_networkx(texts).edges()) == [(0, 1), (1, 2)]  # 0 - 9 - 10
    words = nx.Graph([("c", "a"), ("b", "c")])
    assert sorted(from_networkx(words).edges()) == [(0, 2), (1, 2)]
    mixed = nx.Graph([("c", 5), (5, (1, 2))])
    assert sorted(from_networkx(mixed).edges()) == [(0, 1), (1, 2)]  # as listed
    assert sorted(from_networkx(nx.MultiGraph([(0, 1), (0, 1)])).edges()) == [(0, 1)]


@given(st.permutations(range(12)), st.randoms())
@settings(max_examples=25)
def test_the_order_of_insertion_does_not_matter(order: list[int], random: object) -> None:
    club = nx.petersen_graph()
    shuffled = nx.Graph()
    shuffled.add_nodes_from(i for i in order if i in club)
    edges = list(club.edges())
    random.shuffle(edges)  # type: ignore[attr-defined]
    shuffled.add_edges_from(edges)
    assert nx.utils.graphs_equal(from_networkx(shuffled), from_networkx(club))


def test_files(tmp_path: FilePath) -> None:
    club = nx.karate_club_graph()
    nx.write_graphml(club, tmp_path / "club.graphml")
    nx.write_edgelist(club, tmp_path / "club.txt")
    (tmp_path / "arrows.txt").write_text("# a comment\n0 1 0.5\n1 2 7\n2 0 1\n")
    for name in ("club.graphml", "club.txt"):
        graph = FromFile(tmp_path / name).build(34, 0)
        assert np.array_equal(nx.to_numpy_array(graph, range(34)), nx.to_numpy_array(club))
    assert sorted(FromFile(tmp_path / "arrows.txt", directed=True).build(3, 0).edges()) == [(0, 1), (1, 2), (2, 0)]
    nx.write_graphml(nx.DiGraph([(0, 1), (1, 0)]), tmp_path / "directed.graphml")
    assert FromFile(tmp_path / "directed.graphml").build(2, 0).is_directed()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0,1\n1,2\n", "line 1: '0,1' has labels separated by ','; expected a space"),
        ("0 1\n1,2\n2 3\n3 0\n", "line 2: '1,2' has labels separated by ','"),
        ("0;1\n", ".* separated by ';'"),
        ("0 1\n# end\n1\n", "line 3: '1' is a single label; expected one edge per line"),
        ("0 1 2 3\n1 2\n", "line 1: 4 entries.*adjacency list"),
        ("0 1\n1 2 0\n", "line 2: 3 entries, but line 1 has 2.*adjacency list"),
        ("0 1 2\n1 2 0\n2 0 1\n", "line 1: '2' is a weight or a second neighbour"),
        ("0 1 near\n", "line 1: 'near' is no weight"),
        ("source target\n0 1\n1 2\n", "line 1: 'source target' is a header"),
        ("0 1\n1 1\n", "line 2: an edge from '1' to itself"),
        ("<?xml version='1.0'?>\n", ".* is the beginning of GraphML; name the file .graphml"),
        ("graph [\n  node [\n", ".* is the beginning of GML; name the file .gml"),
        ("# nothing\n", "no edges; expected one edge per line"),
        ("0 1\xff", "not readable as an edge list .*expected UTF-8"),
    ],
)
def test_edge_lists_that_are_something_else(tmp_path: FilePath, text: str, match: str) -> None:
    file = tmp_path / "odd.txt"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(TopologyError, match=rf"odd\.txt: {match}"):
        FromFile(file).build(4, 0)


def test_files_that_will_not_do(tmp_path: FilePath) -> None:
    with pytest.raises(TopologyError, match=r"none.txt: no such graph file"):
        FromFile(tmp_path / "none.txt").build(3, 0)
    with pytest.raises(TopologyError, match="not readable as an edge list"):
        FromFile(tmp_path).build(3, 0)
    (tmp_path / "ring.txt").write_text("0 1\n1 2\n2 0\n")
    with pytest.raises(TopologyError, match=r"ring.txt: the graph has 3 nodes, but there are n=10: use n=3"):
        FromFile(tmp_path / "ring.txt").build(10, 0)
    with pytest.raises(TopologyError, match="expected a networkx graph, got list"):
        from_networkx([(0, 1)])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["g.graphml", "g.GraphML", "g.graphml.gz", "g.gml", "g.GML", "g.txt", "g.txt.bz2"])
def test_numbers_in_node_names_are_numbers(tmp_path: FilePath, name: str) -> None:
    """The hub n2 of a star is node 2, whatever the order and the format."""
    star = nx.Graph((f"n{i}", "n2") for i in (11, 3, 1, 0, 10, 4, 5, 6, 7, 8, 9))
    kind = name.lower().split(".")[1]
    writer = {"graphml": nx.write_graphml, "gml": nx.write_gml, "txt": nx.write_edgelist}[kind]
    writer(star, tmp_path / name)
    graph = FromFile(tmp_path / name).build(12, 0)
    assert dict(graph.degree)[2] == 11
    assert FromFile(tmp_path / name).names() == [f"n{i}" for i in range(12)]


def test_gml_without_labels(tmp_path: FilePath) -> None:
    nodes = "".join(f"node [ id {i} ] " for i in (10, 2, 1))
    (tmp_path / "g.gml").write_text(f"graph [ {nodes} edge [ source 10 target 2 ] edge [ source 2 target 1 ] ]")
    assert FromFile(tmp_path / "g.gml").names() == ["1", "2", "10"]


def test_nodes_of_graphml_have_the_names_of_their_labels(tmp_path: FilePath) -> None:
    """A star around Ulm, whose id is n1; nodes are numbered by name, as files and clients are."""
    star = nx.Graph([("n1", "n0"), ("n1", "n2")])
    for key in ("label", "name"):
        named = nx.Graph(star)
        nx.set_node_attributes(named, {"n0": "Wien", "n1": "Ulm", "n2": "Bern"}, key)
        nx.write_graphml(named, tmp_path / "g.graphml")
        graph = FromFile(tmp_path / "g.graphml")
        assert graph.names() == ["Bern", "Ulm", "Wien"] and sorted(graph.build(3, 0).edges()) == [(0, 1), (1, 2)]
    nx.set_node_attributes(star, {"n0": "Wien", "n1": "Ulm", "n2": "Ulm"}, "label")
    nx.write_graphml(star, tmp_path / "g.graphml")
    assert FromFile(tmp_path / "g.graphml").names() == ["n0", "n1", "n2"]


def test_a_byte_order_mark_is_no_label(tmp_path: FilePath) -> None:
    nx.write_gml(nx.path_graph(3), tmp_path / "b.gml")
    (tmp_path / "b.txt").write_text("0 1\n1 2\n")
    for name in ("b.txt", "b.gml"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
        assert sorted(FromFile(tmp_path / name).build(3, 0).edges()) == [(0, 1), (1, 2)]


def test_ignored_weights_are_reported(tmp_path: FilePath) -> None:
    weighted, plain = nx.Graph(), nx.Graph([(0, 1), (1, 2)])
    weighted.add_weighted_edges_from([(0, 1, 0.5), (1, 2, 0.25)])
    for name, write in (("a.graphml", nx.write_graphml), ("a.gml", nx.write_gml), ("a.txt", nx.write_edgelist)):
        for graph, expected in ((weighted, 1), (plain, 0)):
            write(graph, tmp_path / name)
            remarks = FromFile(tmp_path / name).remarks()
            assert len(remarks) == expected and all("edge weights are ignored" in remark for remark in remarks)
    nx.write_weighted_edgelist(weighted, tmp_path / "w.txt")
    assert FromFile(tmp_path / "w.txt").remarks()


def test_natural_order() -> None:
    names = ["hospital_12", "hospital_1", "hospital_2", "a", "2", "10", "hospital_02"]
    assert sorted(names, key=natural) == ["2", "10", "a", "hospital_1", "hospital_02", "hospital_2", "hospital_12"]
    points = ["lr=0.1", "lr=0.03,rho=10", "lr=0.03,rho=9", "lr=1e-3"]
    assert sorted(points, key=natural) == ["lr=1e-3", "lr=0.03,rho=9", "lr=0.03,rho=10", "lr=0.1"]


@given(st.binary(max_size=60), st.sampled_from(["a.graphml", "a.gml", "a.txt"]))
@settings(max_examples=60)
def test_any_bytes_give_a_graph_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(raw)
    try:
        FromFile(file).build(2, 0)
    except TopologyError as error:
        assert name in str(error)


def outcome(make: Callable[[], csr_array]) -> Any:
    """A matrix as numbers, or the words of the error."""
    try:
        return make().toarray().tolist()
    except TopologyError as error:
        return str(error)


@pytest.mark.parametrize("weighting", ["metropolis", "uniform_directed"])
@pytest.mark.parametrize("builder", [Ring(), Path(), Grid(), Torus(), Hypercube(), Exponential(), Exponential(True)])
def test_links_are_those_of_the_graph(builder: Any, weighting: str) -> None:
    """The matrix W and the errors are the same whether a networkx graph is built or not."""
    weigh = WEIGHTINGS[weighting]
    for n in (1, 2, 3, 4, 6, 7, 8, 12, 16, 23):
        built = outcome(lambda n=n: weigh(builder.build(n, 0)))  # type: ignore[misc]
        assert outcome(lambda n=n: weigh(builder.links(n))) == built, n  # type: ignore[misc]
