"""Runs without a server: what is refused before anything is written, what is recorded, and that nothing is lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array

from algorithms import (
    ADPSGD,
    ALGORITHMS,
    DCO2,
    DPSGD,
    GOSSIP,
    SGP,
    DFedAvg,
    DFedSAM,
    Extra,
    FedAvg,
    GradientTracking,
    NoLoCo,
)
from fedsim import Evaluation, Execution, Experiment, FixedSize, LocalWork, resume, run
from fedsim.algorithm import has_server
from fedsim.cli import main
from fedsim.errors import ConfigError, FedsimError
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner, NaturalIdPartitioner
from fedsim.problems import least_squares
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import Metrics, read_metrics
from tests.checkpoints import content
from topologies import (
    Complete,
    Exponential,
    FromFile,
    OnePeerExponential,
    RandomMatching,
    Ring,
    Star,
    Static,
    metropolis,
)

N = 8
SMALL = Experiment(
    DFedSAM(lr=0.1, rho=0.01),
    topology=Static(Ring()),
    partition=DirichletPartitioner(N, alpha=0.5, min_partition_size=8),
    model=MLP(hidden=(16,)),
    local=LocalWork(batch_size=16, steps=3),
    rounds=8,
    evaluation=Evaluation(every=2, clients_every=4),
    execution=Execution("blocks", block_size=4, checkpoint_every=3, name="small"),
)


def metrics_bytes(directory: RunDirectory) -> bytes:
    return (directory.seed_path(0) / "metrics.jsonl").read_bytes()


def metrics(directory: RunDirectory) -> Metrics:
    return read_metrics(directory.seed_path(0) / "metrics.jsonl")


def one(experiment: Experiment, root: Path) -> RunDirectory:
    return run(experiment, root=root, progress=False)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_a_topology_is_needed_without_a_server_and_refused_with_one(cls: Any) -> None:
    serverless = cls in (*GOSSIP, DCO2, NoLoCo, ADPSGD)
    assert has_server(cls()) is not serverless
    topology = Static(Ring())
    if not serverless:
        Experiment(cls())
        with pytest.raises(ConfigError, match=f"{cls.__name__} has a server and takes no topology"):
            Experiment(cls(), topology=topology)
    else:
        Experiment(cls(), topology=topology)
        with pytest.raises(ConfigError, match=f"{cls.__name__} has no server: it needs a topology, such as"):
            Experiment(cls())


class Undeclared(DFedAvg):
    """A method of the user's without a server that does not say so."""

    server = True


class Contradictory(FedAvg):
    server = False


def test_whether_there_is_a_server_is_what_the_class_says(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes no topology; .* a method without a server sets `server = False` in"):
        Experiment(Undeclared(), topology=Static(Ring()))
    with pytest.raises(ConfigError, match=r"Undeclared\.init returned a state whose x is Kept, .* `server = False`"):
        one(replace(SMALL, algorithm=Undeclared(), topology=None), tmp_path)
    with pytest.raises(ConfigError, match=r"Contradictory\.init returned a state whose x is one vector, but its class"):
        one(replace(SMALL, algorithm=Contradictory()), tmp_path)


def test_a_run_records_the_average_and_the_nodes(tmp_path: Path) -> None:
    rows = metrics(one(replace(SMALL, rounds=12), tmp_path))
    accuracy = rows.series("average/test", "accuracy")
    assert list(accuracy) == [0, 2, 4, 6, 8, 10, 12] and accuracy[12] > accuracy[0] + 0.2
    distance = rows.series("nodes", "consensus_distance")
    assert list(distance) == list(accuracy) and distance[0] < 1e-5 and min(list(distance.values())[1:]) > 1e-2
    contraction = rows.series("nodes", "contraction")
    lam = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / N)
    assert list(contraction) == [2, 4, 6, 8, 10, 12] and all(0 < c <= lam + 1e-6 for c in contraction.values())
    bound = rows.series("nodes", "contraction_bound")
    assert bound == pytest.approx(dict.fromkeys(contraction, lam), abs=1e-12)
    assert not [scope for scope in set(rows.scope) if scope.startswith(("server", "clients"))]
    last = (rows.round == 12) & (rows.scope == "nodes/test")
    own = last & (rows.metric == "accuracy") & (rows.node >= 0)
    assert rows.node[own].tolist() == list(range(N)) and np.ptp(rows.value[own]) > 0
    summary = {name: rows.series("nodes/test", name) for name in ("accuracy_mean", "accuracy_worst10")}
    assert set(summary["accuracy_mean"]) == {0, 4, 8, 12}
    assert summary["accuracy_mean"][12] == pytest.approx(rows.value[own].mean(), abs=1e-12)
    assert summary["accuracy_worst10"][12] == pytest.approx(rows.value[own].min(), abs=1e-12)


def test_bytes_are_those_of_the_ring(tmp_path: Path) -> None:
    """Each of the 8 nodes sends its d float32 to 2 neighbours, Q times a round."""
    directory = one(replace(SMALL, algorithm=DFedSAM(gossip_steps=3)), tmp_path)
    message = 1 + 6 + 4 * directory.manifest["parameters"]
    for name in ("bytes_up", "bytes_down"):
        sent = metrics(directory).series("total", name)
        assert sent == {t: t * 3 * 2 * N * message for t in (0, 2, 4, 6, 8)}


def edges(directory: RunDirectory) -> np.ndarray:
    """From, to, bytes ``[E, 3]``."""
    path = directory.seed_path(0) / "edges.csv"
    assert path.read_text().startswith("from,to,bytes\n")
    return np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2)


def test_bytes_of_nodes_and_of_links_where_nodes_are_away(tmp_path: Path) -> None:
    experiment = replace(SMALL, sampling=FixedSize(0.6), topology=Static(Star()), rounds=6)
    directory = one(experiment, tmp_path)
    rows, sent = metrics(directory), edges(directory)
    message = 1 + 6 + 4 * directory.manifest["parameters"]
    cohorts = [experiment.participation.cohort(0, t, N).tolist() for t in range(1, 7)]
    spoke = [sum(0 in cohort and leaf in cohort for cohort in cohorts) for leaf in range(1, N)]
    expected = {(a, b): k * message for leaf, k in enumerate(spoke, 1) for a, b in ((0, leaf), (leaf, 0)) if k}
    assert {(a, b): size for a, b, size in sent.tolist()} == expected and len(set(spoke)) > 1
    for name, column in (("bytes_up", 0), ("bytes_down", 1)):
        at = (rows.scope == "total") & (rows.metric == name) & (rows.node >= 0) & (rows.round == 6)
        assert rows.value[at].tolist() == np.bincount(sent[:, column], sent[:, 2], N).tolist()
        assert rows.series("total", name)[6] == rows.value[at].sum()
    curves = (rows.scope == "total") & (rows.metric == "bytes_up") & (rows.node == 0)
    assert rows.round[curves].tolist() == [0, 4, 6] and np.all(np.diff(rows.value[curves]) >= 0)


def test_a_server_has_no_links(tmp_path: Path) -> None:
    directory = one(replace(SMALL, algorithm=FedAvg(), topology=None, rounds=1), tmp_path)
    assert not (directory.seed_path(0) / "edges.csv").exists()


def test_better_mixing_shows_in_the_consensus_distance(tmp_path: Path) -> None:
    graphs = Static(Ring()), Static(Exponential()), Static(Complete())
    runs = [metrics(one(replace(SMALL, topology=t), tmp_path)).series("nodes", "consensus_distance")[8] for t in graphs]
    assert runs[0] > 1.5 * runs[1] and runs[2] < 1e-6


def test_on_the_complete_graph_the_average_learns_as_fedavg_does(tmp_path: Path) -> None:
    """The same partition, initial model and minibatches: the losses are the same up to single precision."""
    gossip = metrics(one(replace(SMALL, algorithm=DFedAvg(), topology=Static(Complete())), tmp_path))
    server = metrics(one(replace(SMALL, algorithm=FedAvg(), topology=None, sampling=FixedSize(1.0)), tmp_path))
    for metric in ("loss", "accuracy"):
        a, b = gossip.series("average/test", metric), server.series("server/test", metric)
        assert a == pytest.approx(b, abs=2e-5 if metric == "loss" else 0.01) and len(a) == 5


REPEATED = [
    replace(SMALL, algorithm=DFedAvg(lr=0.05, momentum=0.9, order="CTA"), topology=RandomMatching()),
    replace(SMALL, sampling=FixedSize(0.5)),
    replace(SMALL, algorithm=GradientTracking(), sampling=FixedSize(0.5)),
    replace(SMALL, algorithm=Extra()),
    replace(SMALL, algorithm=SGP(), topology=Static(Exponential(directed=True), "column_stochastic")),
    replace(SMALL, algorithm=DPSGD(), topology=OnePeerExponential()).with_execution(backend="loop"),
]


@pytest.mark.parametrize("experiment", REPEATED, ids=[type(e.algorithm).__name__ for e in REPEATED])
@pytest.mark.slow
def test_repeated_or_resumed_it_gives_the_same_bytes(tmp_path: Path, experiment: Experiment) -> None:
    first, second = one(experiment, tmp_path), one(experiment, tmp_path)
    assert metrics_bytes(first) == metrics_bytes(second)
    checkpoints, links = (second.seed_path(0) / name for name in ("checkpoints", "edges.csv"))
    final = content(checkpoints)
    shutil.rmtree(checkpoints / "round-000008")
    links.unlink()
    second.mark(0, "interrupted")
    resume(second.path, progress=False)
    assert metrics_bytes(first) == metrics_bytes(second)
    assert content(checkpoints) == final
    assert links.read_bytes() == (first.seed_path(0) / "edges.csv").read_bytes()


def test_two_seeds_of_a_random_topology_differ(tmp_path: Path) -> None:
    directory = one(replace(SMALL, topology=RandomMatching(), seeds=2, rounds=2), tmp_path)
    files = [read_metrics(directory.seed_path(seed) / "metrics.jsonl") for seed in (0, 1)]
    first, second = (rows.series("nodes", "consensus_distance") for rows in files)
    assert first != second


@pytest.mark.parametrize("algorithm", [GradientTracking(lr=1.0), Extra(lr=1.0)])
@pytest.mark.slow
def test_a_problem_of_theory_is_solved_at_the_average(tmp_path: Path, algorithm: Any) -> None:
    experiment = replace(
        SMALL, algorithm=algorithm, data=least_squares(n=N, d=4, condition=1.0), partition=NaturalIdPartitioner(),
        topology=Static(Exponential()), local=LocalWork(0, steps=1), rounds=120, dtype="float64",
        evaluation=Evaluation(every=120), execution=Execution("blocks", block_size=8, checkpoint_every=120),
    )  # fmt: skip
    rows = metrics(one(experiment, tmp_path))
    assert rows.series("average/problem", "distance")[120] < 1e-8
    assert rows.series("nodes", "consensus_distance")[120] < 1e-8


def test_everybody_takes_part_unless_told_otherwise() -> None:
    assert SMALL.participation.expected(50) == 50
    assert Experiment(FedAvg()).participation.expected(50) == 5
    for share in (0.1, 0.5):
        assert replace(SMALL, sampling=FixedSize(share)).participation.expected(50) == 50 * share


NEGATIVE = csr_array(np.eye(N) + np.kron(np.diag([0.5, 0, 0, 0]), [[-1, 1], [1, -1]]) * 3)
HALVES = csr_array(np.kron(np.eye(2), np.full((4, 4), 0.25)))
ARROWS = Static(Exponential(directed=True), "uniform_directed")


def weighing(w: csr_array) -> Static:
    """A user's own weights."""
    return Static(Ring(), lambda graph: w)


class Given:
    """A user's topology that is directed from round 2 on."""

    def __init__(self, first: csr_array) -> None:
        self.first = first

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        return self.first if round < 2 else OnePeerExponential().matrix(0, seed, n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topology": Static(nx.cycle_graph(5))}, "topology: the graph has 5 nodes, but there are n=8: use n=5"),
        ({"topology": Static(nx.Graph([(0, 1), (2, 3), (4, 5), (6, 7)]))}, "topology: .*disconnected"),
        ({"topology": Static(nx.Graph([*nx.cycle_graph(8).edges, (3, 3)]))}, "topology: node 3 is linked to itself"),
        ({"topology": weighing(HALVES)}, "topology: .* disconnected: 2 components, .* node 0.* node 4"),
        ({"topology": weighing(NEGATIVE)}, r"entry \[0, 0\] .* is -0.5; expected finite weights, 0 or more, .*"),
        ({"topology": Static(Star(), "column_stochastic")}, "row 0 .* sums to 3.625, 2.62 above 1; .* metropolis"),
        ({"topology": weighing(csr_array(np.eye(N) * 0.9))}, "column 0 .* sums to 0.9, 0.1 below 1; .* metropolis"),
        ({"topology": Static(Exponential(directed=True))}, "topology: the graph has the edge 0 -> 1 but not 1 -> 0"),
        ({"algorithm": Extra(), "sampling": FixedSize(0.5)}, "Extra needs every node in every round, 4 of 8 take part"),
        ({"algorithm": Extra(), "topology": ARROWS}, "round 1 is not symmetric.*: DFedAvg, .* SGP"),
        ({"algorithm": Extra(), "topology": Given(metropolis(Ring().build(N, 0)))}, "round 2 is not symmetric"),
        ({"algorithm": SGP(), "topology": weighing(csr_array(np.eye(N) * 0.9))}, "column 0 .* sums to 0.9"),
        ({"topology": ARROWS, "sampling": FixedSize(0.5)}, "4 of 8 nodes absent in round 1, row .*: use full part"),
    ],
)
def test_a_topology_that_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        one(replace(SMALL, **change), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--algorithm", "DFedAvg"], "DFedAvg has no server: it needs a topology, such as --topology Static"),
        (["--algorithm", "FedAvg", "--topology", "Static"], "FedAvg has a server and takes no topology"),
        (["--algorithm", "DFedSAM", "--topology", "Static", "--topology.graph", "Hypercube"], "n=6: use n=4 or n=8"),
        (["--algorithm", "Extra", "--topology", "OnePeerExponential"], "is not symmetric, which this method needs"),
        (["--algorithm", "DFedAvg", "--topology", "Static", "--topology.graph", "Star", "--topology.weighting",
          "column_stochastic"], "row 0 of the mixing matrix of round 1 sums to 2.666666667, 1.67 above 1; the"),
    ],
)  # fmt: skip
def test_bad_topologies_on_the_command_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny = ["--partition", "IidPartitioner", "--partition.num_partitions", "6", "--model", "Logistic", "--quiet"]
    assert main(["run", *argv, *tiny, "--backend", "loop", "--root", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.*"))


def test_what_was_made_before_a_setting_is_refused_stays(tmp_path: Path) -> None:
    """A topology of the user's that goes wrong in round 5."""

    class Late:
        def matrix(self, round: int, seed: int, n: int) -> csr_array:
            return Static(Ring()).matrix(round, seed, n) * (1.0 if round < 5 else 0.9)

    with pytest.raises(ConfigError, match=r"row \d of the mixing matrix of round 5 sums to 0\.9"):
        one(replace(SMALL, topology=Late()), tmp_path)
    (path,) = tmp_path.iterdir()
    assert max(metrics(RunDirectory(path)).round) == 4


class Dense:
    """A user's topology, whose matrix is an array, with zeros in it."""

    def matrix(self, round: int, seed: int, n: int) -> np.ndarray:
        return np.asarray(metropolis(Ring().build(n, seed)).toarray())


class Stored(Dense):
    """The same with zeros that are stored."""

    def matrix(self, round: int, seed: int, n: int) -> Any:
        w = super().matrix(round, seed, n)
        i, j = np.indices((n, n)).reshape(2, -1)
        return csr_array((w[i, j], (i, j)), (n, n))


@pytest.mark.parametrize("topology", [Dense(), Stored(), Static(Ring(), lambda g: metropolis(g).toarray())])
def test_a_topology_of_ones_own_is_the_same_run(topology: Any, tmp_path: Path) -> None:
    small = replace(SMALL, rounds=2)
    expected, made = (
        run(replace(small, topology=each), output=tmp_path / name, progress=False)
        for name, each in (("expected", small.topology), ("made", topology))
    )
    assert metrics_bytes(made) == metrics_bytes(expected)
    assert (made.seed_path(0) / "edges.csv").read_bytes() == (expected.seed_path(0) / "edges.csv").read_bytes()


def test_a_run_goes_on_with_its_graph(tmp_path: Path) -> None:
    ring, path = nx.cycle_graph(N), nx.path_graph(N)
    short = replace(SMALL, topology=Static(ring), rounds=2)
    made = run(short, output=tmp_path / "run", progress=False)
    with pytest.raises(FedsimError, match="other settings of topology"):
        resume(made.path, replace(short, topology=Static(path), rounds=3), rounds=3, progress=False)
    resume(made.path, replace(short, topology=Static(nx.cycle_graph(N)), rounds=3), rounds=3, progress=False)
    assert metrics(made).series("average/test", "accuracy").keys() == {0, 2, 3}


def test_a_run_goes_on_with_the_graph_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "g.txt"
    nx.write_edgelist(nx.cycle_graph(N), file)
    short = replace(SMALL, topology=Static(FromFile(file)), rounds=2)
    made = run(short, output=tmp_path / "run", progress=False)
    nx.write_edgelist(nx.path_graph(N), file)
    with pytest.raises(FedsimError, match=r"was run on a graph with hash .*g\.txt now has .*; restore the file"):
        resume(made.path, rounds=3, progress=False)
    again = run(replace(short, topology=Static(FromFile(file))), output=tmp_path / "again", progress=False)
    links = [len((each.seed_path(0) / "edges.csv").read_text().splitlines()) - 1 for each in (made, again)]
    assert links == [2 * N, 2 * N - 2], "in one process"
    nx.write_edgelist(nx.cycle_graph(N), file)
    resume(made.path, rounds=3, progress=False)


def test_ignored_weights_of_a_graph_are_said() -> None:
    graph = nx.cycle_graph(N)
    assert not replace(SMALL, topology=Static(graph)).remarks
    nx.set_edge_attributes(graph, 2.0, "weight")
    (remark,) = replace(SMALL, topology=Static(graph)).remarks
    assert remark.startswith("edge weights of the graph are ignored")
    assert not replace(SMALL, topology=Static(graph, weighting=metropolis)).remarks
