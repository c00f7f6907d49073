"""Graphs that come from elsewhere: any networkx graph, or a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx as nx

from topologies.errors import TopologyError
from topologies.setting_checks import check_n

if TYPE_CHECKING:
    Graph: TypeAlias = nx.Graph[Any]  # generic for type checkers only
else:
    Graph = nx.Graph


def in_order(graph: Graph) -> list[Any]:
    """The nodes of a graph, node i of the federation at position i.

    By integer value if all labels are integers (or texts of integers), else sorted, else as the graph lists them.
    """
    for key in (int, None):
        try:
            return sorted(graph, key=key)
        except (TypeError, ValueError, OverflowError):
            continue
    return list(graph)


def from_edges(n: int, edges: Iterable[tuple[int, int]], directed: bool = False) -> Graph:
    """The graph on nodes 0..n-1 with these edges."""
    graph: Graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges)
    return graph


def from_networkx(graph: Graph, n: int | None = None) -> Graph:
    """The same graph on nodes 0..n-1 in the order of `in_order`, without attributes and parallel edges.

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
    return from_edges(len(graph), ((index[a], index[b]) for a, b in graph.edges()), graph.is_directed())


@dataclass(frozen=True)
class FromFile:
    """The graph in a file, which must be connected.

    Its format is GraphML if its name says ``.graphml``, else an edge list: two labels a line, ``#`` comments.

    Args:
        path: the file.
        directed: whether the edges of an edge list point from the first label to the second; GraphML says so itself.
    """

    path: Path
    directed: bool = False

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; the number of nodes in the file must be n."""
        check_n(n)
        graph = self._read()
        try:
            return from_networkx(graph, n)
        except TopologyError as error:
            raise TopologyError(f"{self.path}: {error}") from None

    def names(self) -> list[str]:
        """Labels of the nodes in the file, that of node i at position i."""
        return list(map(str, in_order(self._read())))

    def _read(self) -> Graph:
        try:
            if ".graphml" in Path(self.path).name:
                graph: Graph = nx.read_graphml(self.path)
            else:
                graph = nx.read_edgelist(self.path, data=False, create_using=nx.DiGraph if self.directed else nx.Graph)
        except FileNotFoundError:
            raise TopologyError(f"there is no graph file {self.path}; expected GraphML or an edge list") from None
        except Exception as error:  # broken bytes raise whatever the XML and text decoders raise on them
            raise TopologyError(
                f"{self.path} is not a readable graph ({error}); expected GraphML in a file named .graphml, "
                "or an edge list with two labels a line, separated by a space"
            ) from error
        return graph
