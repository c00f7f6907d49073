"""What ``fedsim topology`` measures and draws, which needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components, shortest_path
from torch import nn

from fedsim.controller.loading import problem_and_dataset
from fedsim.controller.notes import note
from fedsim.data import Dataset
from fedsim.errors import ConfigError, RunError, in_bytes, many
from fedsim.experiment.config.write import written
from fedsim.experiment.division import DIRICHLET, division, is_problem
from fedsim.experiment.experiment import Data
from fedsim.gossip import Topology, ignored_weights, mixing_matrix, refusals, weigh
from fedsim.messages.wire import nbytes
from fedsim.models import MLP, Architecture
from fedsim.partition import Partition, Partitioner, card
from fedsim.problems import Problem
from fedsim.record.directory import RunDirectory
from fedsim.record.figures import kind_of
from fedsim.record.metrics import read_metrics
from fedsim.report.topology_picture import draw_graph
from topologies import FromFile, Static, spectral
from topologies.matrix_checks import TOLERANCE, is_symmetric

DIAMETER_NODES = 2000
"""Largest number of nodes whose diameter is computed."""


@dataclass(frozen=True)
class Network:
    """Topology of one round of an experiment.

    Args:
        topology: network of the nodes.
        nodes: number of nodes; by default the number of clients of the partition.
        round: number of the round, for topologies that change over time.
        seed: seed of the random draws.
        model: model whose parameters are exchanged.
        data: data set, which determines the size of the model and, with its labels, the colours of the picture.
        partition: division of the samples among nodes, for the picture.
        weights: weights of the nodes, either equal or by their numbers of samples, which changes W.
    """

    topology: Topology = field(default_factory=Static)
    nodes: int | None = None
    round: int = 1
    seed: int = 0
    model: Architecture | nn.Module = field(default_factory=MLP)
    data: Data | Dataset | Problem = field(default_factory=Data)
    partition: Partitioner = field(default_factory=lambda: DIRICHLET)
    weights: Literal["uniform", "samples"] = "uniform"

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("round", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected a whole number, {least} or more")


def show(network: Network, run: RunDirectory | None, picture: str | None) -> dict[str, Any]:
    """Measure a topology in one round, and draw it.

    Args:
        network: the topology, and what it connects.
        run: run whose bytes over links and accuracies of nodes are shown.
        picture: file of a picture to draw.

    Returns:
        Settings of the topology, its round and seed, and what `measure` returns.
    """
    if picture is not None:
        kind_of(picture)
    problem, dataset = problem_and_dataset(network.data)
    counts = network.weights == "samples"
    divided = network.nodes is None or picture is not None or is_problem(network.data) or counts
    parts = _partition(network, dataset) if divided else None
    n = network.nodes or (parts.n if parts else 0)
    w = mixing_matrix(network.topology, network.round, network.seed, n)
    if counts and parts:
        w = weigh(w, parts.sizes.astype(float), network.round)
    for remark in ignored_weights(network.topology):
        note(remark)
    measured = measure(w, _parameters(network, problem, dataset))
    if run is not None:
        measured["bytes_over_links"] = _over_links(run, network.seed)
    if picture is not None and parts:
        values, label = _skew(parts, dataset) if run is None else _accuracies(run, network.seed, n)
        graph = _graph(network.topology)
        names = graph.names() if isinstance(graph, FromFile) else None
        draw_graph(w, type(graph).__name__, values, label, _title(network, measured), Path(picture), names)
    return {"topology": written(network.topology), "round": network.round, "seed": network.seed, **measured}


def measure(w: csr_array, d: int) -> dict[str, Any]:
    """Properties of a round's mixing matrix ``w [n, n]``, for messages of ``d`` numbers of 4 bytes.

    Raises:
        ConfigError: neither rows nor columns of W sum to 1, or its eigenvalues cannot be computed.
    """
    links = csr_array(w - diags_array(w.diagonal()))
    links.eliminate_zeros()
    links.data[:] = 1
    n, edges = w.shape[0], links.nnz
    connected = int(connected_components(links, connection="strong", return_labels=False)) == 1
    sums = [abs(np.asarray(w.sum(axis)) - 1).max() <= TOLERANCE for axis in (0, 1)]
    with refusals():
        spectrum = spectral(w)
    message = nbytes(torch.empty(d, device="meta"))
    return {
        "nodes": n,
        "directed_edges": edges,
        "in_degree": _spread(links.sum(1)),
        "out_degree": _spread(links.sum(0)),
        "connected": connected,
        "diameter": int(shortest_path(links, unweighted=True).max()) if connected and n <= DIAMETER_NODES else None,
        "symmetric": is_symmetric(w),
        "doubly_stochastic": bool(all(sums)),
        "lambda": spectrum.lam,
        "spectral_gap": spectrum.gap,
        "parameters": d,
        "message_bytes": message,
        "bytes_per_round": edges * message,
    }


def _spread(degrees: np.ndarray) -> dict[str, float]:
    return {"min": int(degrees.min()), "mean": float(degrees.mean()), "max": int(degrees.max())}


def _partition(network: Network, dataset: Dataset) -> Partition:
    """Partition among the requested number of nodes."""
    partitioner: Any = division(network.data, network.partition)
    if network.nodes is not None:
        if not hasattr(partitioner, "num_partitions"):
            name = type(partitioner).__name__
            raise ConfigError(f"nodes is {network.nodes}, but {name} determines their number; leave out one of them")
        partitioner = replace(partitioner, num_partitions=network.nodes)
    partition: Partition = partitioner.partition(dataset.labels, dataset.train.client, network.seed)
    return partition


def _parameters(network: Network, problem: Problem | None, dataset: Dataset) -> int:
    """Length d of a message: the number of the model's parameters."""
    module: Any = network.model if problem is None else problem.module
    if not isinstance(module, nn.Module):
        module = module.build(dataset.input_shape, dataset.classes)
    return sum(p.numel() for p in module.parameters())


def _skew(parts: Partition, dataset: Dataset) -> tuple[np.ndarray, str]:
    distances = card(parts, dataset.labels, dataset.classes).js_per_client
    if distances is None:
        return parts.sizes.astype(float), "samples of the node"
    return np.array(distances, float), "label skew: Jensen-Shannon distance to the whole data set (0 is IID)"


def _accuracies(run: RunDirectory, seed: int, n: int) -> tuple[np.ndarray, str]:
    """Last test accuracy of each node's own model, and its description."""
    rows = read_metrics(run.seed_path(seed) / "metrics.jsonl")
    of_nodes = (rows.scope == "nodes/test") & (rows.metric == "accuracy") & (rows.node >= 0)
    last = int(rows.round[of_nodes].max(initial=-1))
    at = of_nodes & (rows.round == last)
    if at.sum() != n:
        raise RunError(
            f"{run.path} recorded test accuracies of {at.sum()} nodes, expected {n}; take a finished run of a method"
            " without a server, such as DFedAvg, and leave out --nodes"
        )
    accuracies = np.empty(n)
    accuracies[rows.node[at]] = rows.value[at]
    return accuracies, f"test accuracy of the node's own model, round {last}, seed {seed}"


def _over_links(run: RunDirectory, seed: int) -> dict[str, float] | None:
    """Bytes sent over each directed link used in a finished run."""
    path = run.seed_path(seed) / "edges.csv"
    return _spread(np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2)[:, 2]) if path.is_file() else None


def _graph(topology: Any) -> Any:
    """The graph, or a schedule without one."""
    while hasattr(topology, "base"):
        topology = topology.base
    return getattr(topology, "graph", topology)


def in_words(settings: Any) -> str:
    """A component with its settings, as in Static(graph=FromFile(path=graph.txt, directed=False), lazy=False)."""
    if not isinstance(settings, dict):
        return str(settings)
    named = {key: Path(value).name if key == "path" else value for key, value in settings.items() if key != "name"}
    own = ", ".join(f"{key}={in_words(value)}" for key, value in named.items())
    return f"{str(settings.get('name', '')).rsplit('.', 1)[-1]}({own})"


def _title(network: Network, measured: dict[str, Any]) -> str:
    return (
        f"{in_words(written(network.topology))}, round {network.round}\n"
        f"{many(measured['nodes'], 'node')}, {many(measured['directed_edges'], 'directed edge')},"
        f" lambda {measured['lambda']:.4f}, {in_bytes(measured['bytes_per_round'])} a round"
    )
