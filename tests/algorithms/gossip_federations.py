"""Federations without a server: quadratics, who talks to whom, and the nodes' models as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import torch

from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork
from fedsim.gossip import Topology
from fedsim.types import Kept
from tests.algorithms.quadratics import Quadratics, everybody, federation, states
from topologies import Complete, Exponential, GraphBuilder, Grid, OnePeerExponential, Ring, Static, Torus

GRAPHS: dict[str, GraphBuilder] = {
    "ring": Ring(),
    "grid": Grid(),
    "torus": Torus(),
    "exponential": Exponential(),
    "complete": Complete(),
}
"""From badly to well connected."""

LOPSIDED = nx.DiGraph([(i, (i + 1) % 6) for i in range(6)] + [(0, 3), (0, 2), (4, 1)])
PUSH = Static(LOPSIDED, weighting="column_stochastic")
"""A strongly connected directed graph in which nodes speak to one to three others, so rows of W do not sum to 1."""

TOPOLOGIES: dict[str, Topology] = {
    "ring": Static(Ring()),
    "irregular": Static(nx.Graph([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 4), (1, 5)])),
    "one peer": OnePeerExponential(),
    "directed": Static(Exponential(directed=True), weighting="uniform_directed"),
}
"""For six nodes, all of them doubly stochastic; the last two are not symmetric."""


def gossiping(f: Quadratics, work: LocalWork, topology: Topology, backend: Any = None, **settings: Any) -> Federation:
    """The engine's view of ``f`` where nodes talk to one another."""
    return replace(federation(f, work, backend, **settings), topology=topology)


def mixing(topology: Topology, t: int, n: int) -> np.ndarray:
    """W of round t, dense ``[n, n]``."""
    W: np.ndarray = topology.matrix(t, 0, n).toarray()
    return W


def among(W: np.ndarray, S: Sequence[int]) -> np.ndarray:
    """W of a round in which only ``S`` take part: what a node would have sent to those who are away it keeps."""
    out = np.eye(len(W))
    for j in S:
        out[S, j] = W[S, j]
        out[j, j] += sum(W[i, j] for i in range(len(W)) if i not in S)
    return out


def rows(kept: Kept[Any]) -> np.ndarray:
    """Every node's value: ``[n, ...]``."""
    return np.array([kept[i].numpy() for i in range(kept.n)])


def kept(values: np.ndarray) -> Kept[Any]:
    """``values [n, ...]`` as one value at every node."""
    own = torch.from_numpy(values)
    return Kept(len(values), torch.zeros_like(own[0]), dict(enumerate(own)))


def models(
    algorithm: Any, fed: Federation, x0: np.ndarray, T: int, cohorts: Sequence[Sequence[int]] = ()
) -> list[np.ndarray]:
    """The nodes' models ``[n, d]`` after rounds 1 to T."""
    return [rows(s.x) for s in states(algorithm, fed, x0, cohorts or everybody(fed.shards.n, T))[1:]]


def consensus(x: np.ndarray) -> float:
    """Root mean square distance of the rows of ``x [n, d]`` to their mean."""
    return float(np.sqrt(np.square(x - x.mean(0)).sum(1).mean()))
