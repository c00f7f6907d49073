"""Graphs from elsewhere: networkx graphs and files."""

from __future__ import annotations

import bz2
import gzip
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx as nx

from topologies.edge_lists import parse_edges
from topologies.errors import TopologyError
from topologies.order import natural
from topologies.setting_checks import check_n

if TYPE_CHECKING:
    Graph: TypeAlias = nx.Graph[Any]  # generic for type checkers only
else:
    Graph = nx.Graph

KINDS = {".graphml": "GraphML", ".gml": "GML"}
UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}


def in_order(graph: Graph) -> list[Any]:
    """The nodes of a graph, node i of the federation at position i.

    By value if all labels are integers (or texts of integers), in natural order (n2 before n10) if all are texts, else
    sorted, else as the graph lists them.
    """
    for key in (_integer, natural, None):
        try:
            return sorted(graph, key=key)
        except (TypeError, ValueError, OverflowError):
            continue
    return list(graph)


def _integer(label: Any) -> int:
    if isinstance(label, float):
        raise TypeError("not an integer")
    return int(label)


def from_edges(n: int, edges: Iterable[tuple[Any, ...]], directed: bool = False) -> Graph:
    """Graph on nodes 0..n-1 with these edges, perhaps with their attributes."""
    graph: Graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges)
    return graph


def from_networkx(graph: Graph, n: int | None = None) -> Graph:
    """The same graph on nodes 0..n-1 in the order of `in_order`, with the attributes of its edges; parallel
    ones become one.

    Args:
        graph: any networkx graph, directed or not.
        n: number of nodes that it must have; None accepts any.

    Raises:
        TopologyError: it is no graph, or has another number of nodes.
    """
    if not isinstance(graph, nx.Graph):
        raise TopologyError(f"expected a networkx graph, got {type(graph).__name__}")
    if n is not None and len(graph) != n:
        raise TopologyError(f"the graph has {len(graph)} nodes, but there are n={n}: use n={len(graph)}")
    index = {label: i for i, label in enumerate(in_order(graph))}
    edges = ((index[a], index[b], attributes) for a, b, attributes in graph.edges(data=True))
    return from_edges(len(graph), edges, graph.is_directed())


def digest(graph: Graph) -> str:
    """SHA-256 of the links among nodes 0..n-1, their directions, and those of their attributes that are numbers or
    texts; of equal graphs it is equal.
    """
    plain = from_networkx(graph)
    edges = sorted(
        ((a, b) if plain.is_directed() else (min(a, b), max(a, b)))
        + tuple(sorted((str(k), str(v)) for k, v in attributes.items() if isinstance(v, Real | str)))
        for a, b, attributes in plain.edges(data=True)
    )
    return hashlib.sha256(repr((len(plain), plain.is_directed(), edges)).encode()).hexdigest()


def _by_label(graph: Graph) -> Graph:
    """A graph by the attribute ``label`` or ``name`` of its nodes, if all have one and no two the same."""
    for key in ("label", "name"):
        labels = {
            node: str(value) for node, attributes in graph.nodes(data=True)
            for name, value in attributes.items() if str(name).lower() == key
        }  # fmt: skip
        if len(labels) == len(set(labels.values())) == len(graph):
            named: Graph = nx.relabel_nodes(graph, labels)
            return named
    return graph


def _gml(text: str) -> Graph:
    """A GML graph by its labels, or by its ids where nodes lack a label or share one."""
    try:
        graph: Graph = nx.parse_gml(text, label="label")
    except nx.NetworkXError:
        graph = nx.parse_gml(text, label="id")
    return graph


@dataclass(frozen=True)
class FromFile:
    """The graph in a file, which must be connected.

    GraphML if the file's name ends in ``.graphml``, GML if it ends in ``.gml``, else an edge list: one edge per line,
    two labels separated by a space, and perhaps a weight; ``#`` starts a comment. Weights are ignored, as W follows
    from the links alone, except by a weighting of your own. Nodes are numbered in natural order of their labels, so n2
    precedes n10; in GraphML and GML, where some lack one or share one, of their ids.

    Args:
        path: the file.
        directed: direct the edges of an edge list from the first label to the second; GraphML and GML state it
            themselves.
    """

    path: Path
    directed: bool = False

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; the number of nodes in the file must be n."""
        check_n(n)
        try:
            return from_networkx(self._read()[0], n)
        except TopologyError as error:
            raise TopologyError(f"{self.path}: {error}") from None

    def names(self) -> list[str]:
        """Labels of the nodes in the file, that of node i at position i."""
        return [str(label) for label in in_order(self._read()[0])]

    def digest(self) -> str:
        """Hash of the graph in the file, see `digest`."""
        return digest(self._read()[0])

    def remarks(self) -> list[str]:
        """Content of the file that is ignored, in words."""
        weighted = self._read()[1]
        return [f"{self.path}: edge weights are ignored, as W follows from the links alone"] if weighted else []

    def _read(self) -> tuple[Graph, bool]:
        """The graph as it is in the file, and whether its edges have weights."""
        name = Path(Path(self.path).name)
        kind = KINDS.get((Path(name.stem) if name.suffix.lower() in UNPACK else name).suffix.lower(), "an edge list")
        try:
            raw = UNPACK.get(name.suffix.lower(), bytes)(Path(self.path).read_bytes())
            if kind == "GraphML":
                graph = _by_label(nx.parse_graphml(raw))
            elif kind == "GML":
                graph = _gml(raw.decode("utf-8-sig"))
            else:
                edges, weighted = parse_edges(raw.decode("utf-8-sig"))
                return (nx.DiGraph(edges) if self.directed else nx.Graph(edges)), weighted
        except TopologyError:
            raise
        except FileNotFoundError:
            raise TopologyError("no such graph file; expected GraphML, GML or an edge list") from None
        except Exception as error:  # broken bytes raise whatever the XML and text decoders raise on them
            raise TopologyError(
                f"not readable as {kind} ({error}); expected UTF-8 text: GraphML in a file named .graphml, GML in one"
                " named .gml, and an edge list of two labels per line in any other"
            ) from error
        return graph, any("weight" in attributes for *_, attributes in graph.edges(data=True))
