"""``experiments/gossip.py``, as far as theory decides its numbers: short runs on digits."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from experiments.gossip import GOSSIP, GRAPHS, HEADER, SERVER, main

Row = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["--quick", "--rounds", "2", "--seeds", "1", "--processes", "1", "--root", str(root)]) == 0
    return root / "gossip"


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[tuple[str, str], Row]:
    lines = [line.strip("| ").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert lines[0] == HEADER and set(lines[1]) == {"---"}
    return {(line[0], line[1]): dict(zip(HEADER, line, strict=True)) for line in lines[2:]}


def number(cell: str) -> float:
    """The mean of a cell: ``0.712 (1 seed)``, ``1,234``."""
    return float(cell.split()[0].replace(",", ""))


def test_every_method_on_every_graph(rows: dict[tuple[str, str], Row]) -> None:
    assert set(rows) == {(m, g) for m in GOSSIP for g in GRAPHS} | {(m, "server") for m in SERVER}


def test_no_exchange_leaves_more_than_lambda_to_the_q(rows: dict[tuple[str, str], Row]) -> None:
    """Of the 3 x 3 torus lambda = 2/5, of the ring of nine 1/3 + 2/3 cos(40 degrees)."""
    gossip = [row for (_, graph), row in rows.items() if graph != "server"]
    assert all(number(row["left"]) <= number(row["λ^Q"]) for row in gossip)
    assert number(rows["DFedSAM", "ring"]["λ^Q"]) == 0.844
    assert [number(rows[m, "torus"]["λ^Q"]) for m in list(GOSSIP)[-3:]] == [0.4, 0.16, 0.026]


def test_the_complete_graph_is_the_server(rows: dict[tuple[str, str], Row]) -> None:
    for gossip, server in (("DFedAvg", "FedAvg"), ("DFedSAM", "FedSAM")):
        alike = [rows[gossip, "complete"][column] for column in ("average", "nodes", "worst 10 %")]
        expected = number(rows[server, "server"]["average"])
        assert [number(cell) for cell in alike] == pytest.approx([expected] * 3, abs=3e-3)


def test_bytes_are_those_of_the_links(rows: dict[tuple[str, str], Row]) -> None:
    """Degrees 2, 4, 6, 8, paid by both ends; Q times for Q steps; with a server one model down and one up."""
    message = 1 + 6 + 4 * (64 * 64 + 64 + 64 * 10 + 10)    # float32, and how it is framed
    one_each = 2 * 9 * 2 * message / 1e6                     # megabytes in 2 rounds of 9 nodes, each sent and received
    for graph, degree in zip(GRAPHS, (2, 4, 6, 8), strict=True):
        assert number(rows["DFedAvg", graph]["MB"]) == pytest.approx(degree * one_each, abs=0.05)
        assert number(rows["DFedSAM-MGS, Q=4", graph]["MB"]) == pytest.approx(4 * degree * one_each, abs=0.05)
    assert number(rows["FedAvg", "server"]["MB"]) == pytest.approx(one_each, abs=0.05)


def test_the_picture(folder: Path) -> None:
    assert imread(folder / "accuracy-per-megabyte.png").shape[:2] == (840, 1080)


def test_what_cannot_be_run_ends_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = ["--quick", "--nodes", "7", "--rounds", "1", "--seeds", "1", "--processes", "2"]
    assert main([*settings, "--root", str(tmp_path)]) == 1
    assert len(list((tmp_path / "gossip").iterdir())) < 24
    assert "n=7 is prime" in capsys.readouterr().err
