"""``fedsim topology``: the numbers of known graphs, its errors, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.sparse import csr_array

from algorithms import DFedAvg
from fedsim import Experiment, run
from fedsim.cli import main
from fedsim.cli.network import measure
from fedsim.data import load
from fedsim.gossip import weigh
from fedsim.partition import DirichletPartitioner
from fedsim.report.topology_picture import _edges, draw_graph, positions
from topologies import Exponential, GraphBuilder, Ring, Star, Static, Torus, metropolis
from topologies import Path as Line

D = 100
"""Parameters; a message of 100 numbers has 8 bytes besides: version, count, type, axes, and a length of 4."""


def matrix(graph: GraphBuilder, n: int, **settings: Any) -> csr_array:
    return Static(graph, **settings).matrix(1, 0, n)


def numbers(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["topology", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_ring_in_closed_form() -> None:
    found = measure(matrix(Ring(), 16), D)
    assert found["lambda"] == pytest.approx(1 / 3 + 2 / 3 * np.cos(2 * np.pi / 16), abs=1e-12)
    assert found["spectral_gap"] == pytest.approx(1 - found["lambda"], abs=1e-15)
    assert (found["directed_edges"], found["diameter"], found["connected"]) == (32, 8, True)
    assert (found["symmetric"], found["doubly_stochastic"]) == (True, True)
    assert found["in_degree"] == found["out_degree"] == {"min": 2, "mean": 2.0, "max": 2}
    assert (found["message_bytes"], found["bytes_per_round"]) == (4 * D + 7, 32 * (4 * D + 7))


def test_other_graphs() -> None:
    line, star = measure(matrix(Line(), 9), D), measure(matrix(Star(), 9), D)
    assert (line["diameter"], line["in_degree"]) == (8, {"min": 1, "mean": 16 / 9, "max": 2})
    assert (star["diameter"], star["in_degree"]) == (2, {"min": 1, "mean": 16 / 9, "max": 8})
    one = measure(matrix(Ring(), 1), D)
    assert (one["directed_edges"], one["diameter"], one["lambda"], one["bytes_per_round"]) == (0, 0, 0, 0)


def test_directed_and_disconnected() -> None:
    directed = measure(matrix(Exponential(directed=True), 8, weighting="uniform_directed"), D)
    assert (directed["symmetric"], directed["doubly_stochastic"], directed["connected"]) == (False, True, True)
    assert directed["directed_edges"] == 3 * 8
    push = measure(matrix(Star(), 8, weighting="column_stochastic"), D)
    assert not push["doubly_stochastic"] and not push["symmetric"]
    pairs = measure(csr_array(np.kron(np.eye(3), np.full((2, 2), 0.5))), D)
    assert (pairs["connected"], pairs["diameter"]) == (False, None)
    assert pairs["lambda"] == pytest.approx(1)


def test_hears_and_speaks_are_not_mixed_up() -> None:
    w = np.eye(4)
    w[0] = 0.25                                              # node 0 hears all others, who hear nobody
    found = measure(csr_array(w), D)
    assert (found["in_degree"]["max"], found["out_degree"]["max"], found["directed_edges"]) == (3, 1, 3)


def test_command_line_like_an_experiments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("algorithm: DFedAvg\ntopology: {name: Static, graph: Grid}\nmodel: Logistic\nrounds: 3\n")
    found = numbers(capsys, str(file), "--nodes", "20")
    assert found["topology"]["graph"] == {"name": "Grid"}
    assert found["lambda"] == pytest.approx(0.9143, abs=5e-5)
    assert found["parameters"] == 65 * 10 and found["directed_edges"] == 2 * (4 * 4 + 5 * 3)
    assert numbers(capsys, str(file))["nodes"] == 50, "as many as the partition has clients"
    failing = ["--topology", "LinkFailures", "--topology.probability", "0.5", "--topology.base", "Static"]
    rounds = [numbers(capsys, *failing, "--nodes", "20", "--round", str(r))["directed_edges"] for r in (1, 2, 3)]
    assert len(set(rounds)) > 1 and max(rounds) < 40, "links of the ring fail, others in every round"


def test_nodes_that_count_by_their_samples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """W is that of a run with these weights: its second eigenvalue, by a dense solver."""
    few = ["--partition.num_partitions", "6", "--partition.alpha", "0.1"]
    found = numbers(capsys, *few, "--weights", "samples")
    sizes = DirichletPartitioner(6, alpha=0.1).partition(load("digits").train.y.numpy(), None, 0).sizes
    w = weigh(metropolis(Ring().build(6, 0)), sizes.astype(float), 1)
    assert found["lambda"] == pytest.approx(sorted(abs(np.linalg.eigvals(w.toarray())))[-2], abs=1e-9)
    assert not found["doubly_stochastic"] and numbers(capsys, *few)["lambda"] == pytest.approx(2 / 3)
    partition = DirichletPartitioner(6, alpha=0.1)
    experiment = Experiment(DFedAvg(), topology=Static(), partition=partition, weights="samples", rounds=1)
    run(experiment, output=tmp_path / "run", progress=False)
    assert numbers(capsys, "--run", str(tmp_path / "run"))["lambda"] == found["lambda"]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "--topology", "OnePeerExponential", "--nodes", "8"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["directed", "edges", "8"] in lines and ["diameter", "infinite"] in lines
    assert ["W", "doubly", "stochastic", "yes"] in lines
    assert main(["topology", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--topology.weighting" in text and "--run RUN" in text and "--nodes NODES" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology", "Statik"], "did you mean 'Static'?"),
        (["--topology", "Static", "--topology.graph", "Rin"], "did you mean 'Ring'?"),
        (["--topology", "Static", "--topology.weighting", "x"], "topology.weighting is 'x'; known: metropolis, "),
        (["--topology", "Static", "--topology.graph", "Grid", "--nodes", "13"], "n=13 is prime"),
        (["--topology", "Static", "--topology.graph", "Star", "--topology.weighting", "uniform"], "need a regular"),
        (["--topology", "RandomNeighbours"], "topology.degree is missing"),
        (["--nodes", "0"], "nodes is 0"),
        (["--nodes", "many"], "nodes is 'many'; expected a whole number or null"),
        (["--algorithm", "DFedAvg"], "fedsim topology has no option --algorithm"),
        (["--nodes", "8", "--output", "x.bmp"], "a picture is a .png, .svg or .pdf file"),
        (["--nodes", "8", "--partition", "NaturalIdPartitioner", "--output", "x.png"], "leave out one"),
        (["--nodes", "8", "--data", "least_squares"], "nodes is 8, but NaturalIdPartitioner determines their number"),
    ],
)
def test_errors_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("fedsim: ") and captured.out == ""


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    for name in ("graph.png", "again.png", "graph.svg"):
        assert main(["topology", "--nodes", "9", "--output", str(tmp_path / "out" / name)]) == 0
    png = imread(tmp_path / "out" / "graph.png")
    assert png.shape[:2] == (960, 1080) and len(np.unique(png.reshape(-1, png.shape[2]), axis=0)) > 100
    assert (tmp_path / "out" / "graph.png").read_bytes() == (tmp_path / "out" / "again.png").read_bytes()
    assert "<svg" in (tmp_path / "out" / "graph.svg").read_text()


def test_edges_around_the_border_pass_between_the_nodes() -> None:
    """Of an 8 x 8 torus: none comes as near to a node that is not its end as two nodes' radii."""
    figure = Figure()
    places = positions(matrix(Torus(), 64), "Torus")
    axes = figure.add_subplot()
    _edges(axes, matrix(Torus(), 64), places, bent=True)
    curves = np.array(axes.collections[0].get_segments())      # type: ignore[attr-defined]
    assert curves.shape == (128, 17, 2)
    gaps = np.linalg.norm(curves[:, :, None] - places, axis=3).min(1)
    ends = np.linalg.norm(curves[:, [0, -1], None] - places, axis=3).min(1) < 1e-9
    assert ends.sum() == 256 and gaps[~ends].min() > 0.15


@pytest.mark.parametrize("kind", ["Ring", "Torus", "ErdosRenyi"])
def test_nodes_stand_apart(kind: str) -> None:
    places = positions(matrix(Torus(), 12), kind)
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(12)
    assert places.shape == (12, 2) and gaps.min() > 0.05
    if kind == "Torus":
        assert places[5].tolist() == [1, -1], "row by row, 3 x 4"


def test_a_picture_of_one_way_edges_and_missing_values(tmp_path: Path) -> None:
    w = matrix(Exponential(directed=True), 6, weighting="uniform_directed")
    draw_graph(w, "Exponential", np.array([np.nan, 0, 1, 2, 3, 4]), "value", "title", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_picture_has_the_names_in_the_file(tmp_path: Path) -> None:
    """Nothing of it is cut: every text lies within the picture."""
    file, picture = tmp_path / "wards.txt", tmp_path / "x.svg"
    file.write_text("Uster Zug\nZug Chur\nChur Bern\n")
    argv = ["topology", "--topology", "Static", "--topology.graph", "FromFile", "--topology.graph.path", str(file)]
    assert main([*argv, "--nodes", "4", "--output", str(picture)]) == 0
    text = picture.read_text()
    assert all(f"<!-- {name} -->" in text for name in ("Bern", "Chur", "Uster", "Zug")) and "PosixPath" not in text
    assert "FromFile(path=" in text.replace("\n", " ")


def test_colours_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--partition", "IidPartitioner", "--partition.num_partitions", "4", "--model", "Logistic", "--quiet"]
    tiny += ["--rounds", "1", "--backend", "loop", "--root", str(tmp_path)]
    gossip, central = tmp_path / "dfedavg-digits", tmp_path / "fedavg-digits"
    assert main(["run", "--algorithm", "DFedAvg", "--topology", "Static", "--topology.graph", "Star", *tiny]) == 0
    assert main(["run", "--algorithm", "FedAvg", *tiny]) == 0
    capsys.readouterr()
    picture = str(tmp_path / "graph.svg")
    found = numbers(capsys, "--run", str(gossip), "--output", picture)
    assert (found["nodes"], found["directed_edges"], found["parameters"]) == (4, 6, 650)
    assert found["bytes_over_links"] == {"min": 4 * 650 + 7, "mean": 4 * 650 + 7, "max": 4 * 650 + 7}
    assert Path(picture).read_bytes().startswith(b"<?xml")
    assert main(["topology", "--run", str(gossip)]) == 0
    assert "bytes over a link in the run, min / mean / max   2,607 / 2,607 / 2,607" in capsys.readouterr().out
    assert main(["topology", "--run", str(gossip), "--nodes", "5", "--output", picture]) == 1
    assert "test accuracies of 4 nodes, expected 5" in capsys.readouterr().err
    assert main(["topology", "--run", str(central)]) == 2
    assert "has a server and no topology" in capsys.readouterr().err
