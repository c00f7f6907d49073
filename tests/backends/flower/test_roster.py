"""What the server sees of its nodes, and how long it waits for them."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fedsim.backends.flower.node.discretion import in_words
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.roster import Roster
from fedsim.cli import main
from fedsim.errors import RunError
from fedsim.record.nodes import FILE, NodeStatus, nodes_of, read_nodes
from fedsim.report.compare import Comparison
from fedsim.report.live import LivePage
from fedsim.report.nodes import COLUMNS, TRAFFIC, nodes_as_html, prometheus, render_nodes
from tests.backends.flower.grids import federation
from tests.backends.flower.test_parity import CONFIG, deploy, metrics


def test_nodes_are_counted_by_what_they_answer(tmp_path: Path) -> None:
    roster = Roster()
    roster.joined(1, 40)
    for round, verb in ((1, "each"), (1, "mix"), (2, "each"), (2, "score")):
        roster.answered(1, round, verb, 2.0, 0.5, (100, 30))
    roster.failed(1, "did not answer within 60 s")
    roster.joined(0, 10)
    roster.left(0)
    roster.save()                                          # there is no run yet
    roster.folder = tmp_path
    roster.save()
    away, node = read_nodes(tmp_path)
    assert (node.samples, node.rounds, node.seconds, node.bytes_down, node.bytes_up) == (40, 2, 2.0, 400, 120)
    assert (node.errors, node.error, node.connected) == (1, "did not answer within 60 s", True)
    assert abs(node.last_seen - time.time()) < 60 and (away.client, away.connected) == (0, False)
    roster.folder = tmp_path / "none"
    roster.save()                                          # a folder that is gone does not end a run


def test_the_server_waits_by_the_slowest_so_far() -> None:
    roster, auto = Roster(), Policy()
    assert auto.timeout == "auto" and roster.limit(auto, "each") == 600
    roster.answered(0, 1, "each", 30.0, 1.0, (0, 0))
    roster.answered(1, 1, "each", 12.0, 1.0, (0, 0))
    roster.answered(1, 1, "score", 0.5, 0.1, (0, 0))
    assert [roster.limit(auto, verb) for verb in ("each", "score", "mix")] == [300, 60, 600]
    assert roster.limit(Policy(timeout=5.0), "each") == 5


def test_a_run_says_what_its_nodes_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, federation(tmp_path, 3))
    nodes = nodes_of(made.path)
    assert [node.client for node in nodes] == list(range(len(nodes))) and {node.errors for node in nodes} == {0}
    assert all(node.rounds == CONFIG["rounds"] and node.bytes_up and node.samples for node in nodes)
    rows = metrics(made.path)
    ledger = {(row["metric"], row["node"]): row["value"] for row in rows if row["scope"] == "total"}     # the last ones
    measured = len({row["round"] for row in rows if row["scope"] == "clients/train"})
    assert measured == CONFIG["rounds"] + 1
    for node in nodes:                                     # it gets a model in each round, and one to evaluate
        down = ledger["bytes_down", node.client]
        assert node.bytes_up == ledger["bytes_up", node.client]
        assert node.bytes_down == down + measured * down / CONFIG["rounds"]
    capsys.readouterr()
    assert main(["nodes", str(made.path)]) == 0
    shown = capsys.readouterr().out
    assert "seen" in shown and shown.count("online") == len(nodes) and TRAFFIC in shown
    assert "not under way" in shown


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    why = "did not answer within 60 s [/bold] " + "and so on " * 8
    large = NodeStatus(99_999, True, now - 59 * 60, 1_234_567, 10_000, 98_765.4, 999_999 * 10**6, 441_694, 1_234, why)
    small = NodeStatus(0, False, now - 13.4, 479, 1, 0.5, 441_694, 220_847)
    Console(file=sys.stdout, width=80).print(render_nodes([small, large]))
    head, _, first, second, note, *errors = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "…" not in head + first + second and max(map(len, (head, first, second, note))) <= 80
    assert head.split() == " ".join(COLUMNS[:-1]).split()
    assert first.split() == ["0", "away", "13", "s", "ago", "479", "1", "0.5", "0.442", "0.221", "0"]
    assert second.split() == (
        ["99999", "online", "59", "min", "ago", "1,234,567", "10,000", "98,765", "999,999", "0.442", "1,234"]
    )
    assert note == TRAFFIC and " ".join(errors).split() == f"client 99999, last error: {why}".split()


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no nodes: .*expected a run of `fedsim deploy`"):
        nodes_of(tmp_path)
    (tmp_path / FILE).write_text('{"nodes": [{"client": 0, "shoe": 43}]}')
    with pytest.raises(RunError, match=r"cannot read .*unexpected keyword argument .shoe."):
        read_nodes(tmp_path)


STATUS = NodeStatus(3, True, 1e9, 479, 2, 0.5, 10, 20, 1, "failed: <b>")


def test_prometheus_reads_the_nodes(tmp_path: Path) -> None:
    text = prometheus({'a"b': [STATUS]})
    sample = re.compile(r'fedsim_node_[a-z_]+\{run="a\\"b",client="3"\} [0-9.e+]+')
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 8 and all(sample.fullmatch(line) for line in lines)
    assert 'fedsim_node_rounds_total{run="a\\"b",client="3"} 2' in lines

    def none() -> Comparison:
        raise RunError("no run yet")

    page = LivePage(none, [tmp_path])
    roster = Roster()
    roster.folder = tmp_path
    roster.joined(3, 479)
    roster.save()
    status, kind, body = page.answer(f"/metrics?token={page.token}")
    assert (status, kind) == (200, "text/plain; version=0.0.4")
    assert f'fedsim_node_samples{{run="{tmp_path}",client="3"}} 479' in body
    assert page.answer("/metrics")[0] == 403


def test_a_page_has_the_nodes() -> None:
    page = nodes_as_html([STATUS])
    assert "<td>3</td><td>online</td>" in page and "failed: &lt;b&gt;" in page and not nodes_as_html([])


def test_a_nodes_log_is_in_words_of_the_experiment() -> None:
    seconds = {"load": 0.1, "compute": 0.7, "encode": 0.04, "memory": 0.0}
    call = Call("each", {"round": 3, "function": "client"})
    made = Call("each", {"evaluations": 479}, {"message": bytes(1000)})
    said = in_words(call, made, seconds, "FedSpeed")
    assert said == "round 3: FedSpeed.client, 479 gradients in 0.84 s; sends 1,000 bytes"
    hello = Call("hello", {"samples": 40})
    assert in_words(Call("hello"), hello, seconds, "FedSpeed") == "ready, with 40 samples"
    scored = Call("score", {"samples": 40, "loss": 0.51, "accuracy": 0.75})
    assert "40 samples: loss 0.51, accuracy 0.750" in in_words(Call("score"), scored, seconds, "FedSpeed")
