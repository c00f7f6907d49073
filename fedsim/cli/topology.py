"""``fedsim topology``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components, shortest_path
from torch import nn

from fedsim.cli import flags
from fedsim.cli.output import console, writing
from fedsim.controller.host import note
from fedsim.controller.prepare import resolve_data
from fedsim.data import Dataset
from fedsim.errors import ConfigError, RunError, suggest
from fedsim.experiment.config import build, override
from fedsim.experiment.config.described import describe, experiment_component
from fedsim.experiment.config.write import written
from fedsim.experiment.division import DIRICHLET, division, is_problem
from fedsim.experiment.experiment import Data
from fedsim.experiment.short_forms import in_full
from fedsim.gossip import Topology, graph_file, mixing_matrix, refusals, weigh
from fedsim.messages.wire import nbytes
from fedsim.models import MLP, Architecture
from fedsim.partition import Partition, Partitioner, card
from fedsim.problems import Problem
from fedsim.record.directory import RunDirectory, open_run
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
        data: data set, which determines the size of the model and, by its labels, the colours of the picture.
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


TOPOLOGY = flags.Command(
    "topology",
    "Show the topology of an experiment without a server: its mixing rate, and the communication cost of a round.",
    partial(describe, Network),
    {
        "output": "picture of the graph: .png, .svg or .pdf; nodes are coloured by the label skew of their data",
        "run": "run to take topology and partition from; nodes are coloured by their last test accuracy",
    },
    {"json": "print the numbers as JSON"},
)


def topology(argv: Sequence[str]) -> int:
    """Print the properties of a command line's topology, and draw it."""
    line = flags.read(TOPOLOGY, argv)
    run = open_run(Path(line.options["run"])) if "run" in line.options else None
    if run is not None and not run.config.get("topology") and "topology" not in line.settings:
        raise ConfigError(f"{run.path} has a server and no topology; give one with --topology, or leave out --run")
    settings = line.settings if run is None else override(in_full(run.config), line.settings, [])
    own = TOPOLOGY.settings().settings
    known = experiment_component().settings.keys() | own.keys()
    for key in settings.keys() - known:
        raise ConfigError(f"unknown setting {key}: {suggest(key, sorted(known))}")
    settings = {key: value for key, value in settings.items() if key in own}
    if "help" in line.switches:
        flags.print_help(TOPOLOGY, settings)
        return 0
    network = build(Network, settings)
    source = resolve_data(network.data)
    dataset = source.dataset if isinstance(source, Problem) else source
    counts = network.weights == "samples"
    divided = network.nodes is None or "output" in line.options or is_problem(network.data) or counts
    parts = _partition(network, dataset) if divided else None
    n = network.nodes or (parts.n if parts else 0)
    w = mixing_matrix(network.topology, network.round, network.seed, n)
    if counts and parts:
        w = weigh(w, parts.sizes.astype(float), network.round)
    if file := graph_file(network.topology):
        for remark in file.remarks():
            note(remark)
    measured = measure(w, _parameters(network, source, dataset))
    if run is not None:
        measured["bytes_over_links"] = _over_links(run, network.seed)
    if "output" in line.options and parts:
        path = Path(line.options["output"])
        values, label = _skew(parts, dataset) if run is None else _accuracies(run, network.seed, n)
        with writing(path):
            graph = _graph(network.topology)
            names = graph.names() if isinstance(graph, FromFile) else None
            draw_graph(w, type(graph).__name__, values, label, _title(network, measured), path, names)
    if "json" in line.switches:
        about = {"topology": written(network.topology), "round": network.round, "seed": network.seed}
        print(json.dumps({**about, **measured}))
    else:
        console().print(f"{_in_words(written(network.topology))}, round {network.round}", markup=False, highlight=False)
        console().print(_render(measured))
    return 0


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


def _parameters(network: Network, source: Dataset | Problem, dataset: Dataset) -> int:
    """Length d of a message: the number of the model's parameters."""
    module: Any = source.module if isinstance(source, Problem) else network.model
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


def _in_words(settings: Any) -> str:
    """A component by its settings, as in Static(graph=FromFile(path=graph.txt, directed=False), lazy=False)."""
    if not isinstance(settings, dict):
        return str(settings)
    named = {key: Path(value).name if key == "path" else value for key, value in settings.items() if key != "name"}
    own = ", ".join(f"{key}={_in_words(value)}" for key, value in named.items())
    return f"{str(settings.get('name', '')).rsplit('.', 1)[-1]}({own})"


def _title(network: Network, measured: dict[str, Any]) -> str:
    return (
        f"{_in_words(written(network.topology))}, round {network.round}\n"
        f"{measured['nodes']:,} nodes, {measured['directed_edges']:,} directed edges,"
        f" lambda {measured['lambda']:.4f}, {measured['bytes_per_round'] / 1e6:,.2f} MB a round"
    )


def _render(measured: dict[str, Any]) -> Table:
    table = Table("", "", box=SIMPLE)
    table.show_header = False
    table.columns[1].justify = "right"

    def three(key: str) -> str:
        return " / ".join(f"{round(measured[key][name], 2):,.12g}" for name in ("min", "mean", "max"))

    yes = {True: "yes", False: "no"}
    far = "" if measured["connected"] else "infinite"
    rows = {
        "nodes": f"{measured['nodes']:,}",
        "directed edges": f"{measured['directed_edges']:,}",
        "in-degree, min / mean / max": three("in_degree"),
        "out-degree, min / mean / max": three("out_degree"),
        "connected in this round": yes[measured["connected"]],
        "diameter": far or str(measured["diameter"] or f"not computed above {DIAMETER_NODES:,} nodes"),
        "W symmetric": yes[measured["symmetric"]],
        "W doubly stochastic": yes[measured["doubly_stochastic"]],
        "lambda, contraction of disagreement in a round": f"{measured['lambda']:.4f}",
        "spectral gap, 1 - lambda": f"{measured['spectral_gap']:.4f}",
        f"message: {measured['parameters']:,} parameters": f"{measured['message_bytes']:,} bytes",
        "all messages of a round, 1 gossip step": f"{measured['bytes_per_round']:,} bytes",
    }
    if measured.get("bytes_over_links"):
        rows["bytes over a link in the run, min / mean / max"] = three("bytes_over_links")
    for row in rows.items():
        table.add_row(*row)
    return table
