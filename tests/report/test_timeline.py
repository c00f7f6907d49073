"""Timelines: spans by hand, in every kind of run, kept by a resumed one, and drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import CO2, DFedAvg, FedAvg, FedBuff
from fedsim import Clock, Evaluation, Execution, Experiment, LocalWork, OnOff, Waiting, run, timeline
from fedsim.cli import main
from fedsim.clients import cohort
from fedsim.clock.virtual import VirtualClock
from fedsim.engine.federation import Meter
from fedsim.errors import ConfigError, RunError
from fedsim.problems import zeta_least_squares
from fedsim.record.timeline import HEADER, MOST, SERVER, Span, Timeline, read_timeline
from fedsim.report import timeline_picture
from fedsim.report.html import write_report
from tests.algorithms.quadratics import X0, F, federation
from tests.clock.test_virtual import VECTOR, M, devices
from tests.controller.stopping import stopped_and_resumed
from topologies import Ring, Static

SMALL = Experiment(
    FedAvg(lr=0.02),
    data=zeta_least_squares(n=6, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    clock=Clock(),
    rounds=6,
    evaluation=Evaluation(every=1),
    dtype="float64",
    execution=Execution("loop", checkpoint_every=1),
)
KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "FedAvg": ({}, {"download", "compute", "upload", "wait"}),
    "first": ({"waiting": Waiting(first=4)}, {"download", "compute", "upload", "wait", "lost"}),
    "absent": ({"clock": Clock(availability=OnOff(5, 5))}, {"download", "compute", "upload", "wait", "absent"}),
    "behind": ({"algorithm": CO2(lr=0.02)}, {"download", "compute", "behind"}),
    "gossip": ({"algorithm": DFedAvg(lr=0.02), "topology": Static(Ring())}, {"compute", "wait", "exchange"}),
    "FedBuff": ({"algorithm": FedBuff(buffer=2), "concurrency": 4}, {"download", "compute", "upload"}),
}


def test_two_clients_by_hand(tmp_path: Path) -> None:
    fed, line = federation(F, LocalWork(batch_size=0, steps=1)), Timeline(tmp_path / "timeline.csv", -1)
    meter = Meter(fed)
    clock = VirtualClock(devices(np.arange(1, 11) / M, VECTOR / 2, VECTOR / 4), line)
    meter.trace = []
    method = FedAvg(lr=0.1)
    method.round(method.init(torch.from_numpy(X0), cohort(fed, 0)), cohort(fed, 1, np.array([2, 5]), meter))
    clock.advance(meter.trace, 1)
    assert sorted((s.client, s.kind, s.start, s.end) for s in line.spans) == [
        (SERVER, "round", 0, 12),
        (2, "compute", 2, 5), (2, "download", 0, 2), (2, "upload", 5, 9), (2, "wait", 9, 12),
        (5, "compute", 2, 8), (5, "download", 0, 2), (5, "upload", 8, 12),
    ]  # fmt: skip
    line.write()
    assert read_timeline(line.path) == line.spans
    line.lose(1, np.array([5]), np.array([7.0]))
    assert [span[2:] for span in line.spans if span.client == 5] == [("lost", 0, 2), ("lost", 2, 7)]


@pytest.mark.parametrize("name", KINDS)
def test_what_clients_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, kinds = KINDS[name]
    experiment = replace(SMALL, **change)
    whole = run(experiment, output=tmp_path / "whole", progress=False)
    spans = read_timeline(whole.seed_path(0) / "timeline.csv")
    assert {span.kind for span in spans if span.client != SERVER} == kinds
    for client in range(6):                                # nothing overlaps but what runs behind
        own = sorted(s[3:] for s in spans if s.client == client and s.kind != "behind")
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(own))
    shares = timeline(whole, tmp_path / "a.svg")
    assert sum(share for kind, share in shares.items() if kind != "behind") == pytest.approx(1, abs=1e-6)
    rest = stopped_and_resumed(experiment, tmp_path / "stopped", 4, monkeypatch)
    a, b = ((made.seed_path(0) / "timeline.csv").read_bytes() for made in (whole, rest))
    assert a == b
    timeline(rest, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_timeline_is_of_bounded_length(tmp_path: Path) -> None:
    line = Timeline(tmp_path / "timeline.csv", -1)
    line.add(1, np.arange(MOST + 1), "compute", 0.0, 1.0)
    assert not line.spans                                  # too many to see
    line.add(1, np.arange(MOST), "compute", 0.0, 1.0)
    clock = VirtualClock(devices(1.0), line)
    assert line.full
    clock.advance([], 2)
    assert clock.timeline is None and len(line.spans) == MOST


def test_the_command_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(SMALL, output=tmp_path / "run", progress=False)
    picture = tmp_path / "new" / "a.png"
    assert main(["timeline", str(made.path), "--output", str(picture), "--since", "0.1", "--until", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "computes" in out and "%" in out and picture.read_bytes().startswith(b"\x89PNG")
    html = write_report([made.path], tmp_path / "a.html", "server/problem", "objective").read_text()
    assert "what each client does" in html
    for words, text in (
        ([str(made.path), "--output", "a.gif"], "a picture is a .png"),
        ([str(made.path), "--seed", "3"], "seed is 3"),
        ([str(made.path), "--until", "-1"], "expected seconds from 0 on"),
        ([str(made.path), "--until", "nan"], "until is nan; expected seconds from 0 on"),
        ([str(made.path), "--since", "-5"], "since is -5.0; expected seconds from 0 on"),
        ([str(made.path), "--since", "50", "--until", "10"], "until is 10 s, not after since, 50 s"),
        ([str(made.path), "--since", "1e6", "--until", "2e6"], "expected a time before"),
        ([str(made.path), "--since", "1e6"], "a timeline from 1e+06 s; expected a time before"),
    ):
        assert main(["timeline", *words]) == 2
        error = capsys.readouterr().err
        assert text in error and "Traceback" not in error
    assert main(["timeline", str(tmp_path / "nowhere")]) == 2
    plain = run(replace(SMALL, clock=None), output=tmp_path / "plain", progress=False)
    assert main(["timeline", str(plain.path), "--output", str(tmp_path / "b.png")]) == 2
    assert "plain has no clock, so no timeline; expected a run with one" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "round,client\n", f"{','.join(HEADER)}\n1,2,compute,a,3\n", "1\n"])
def test_a_damaged_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "timeline.csv"
    path.write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        read_timeline(path)


def test_many_clients_are_spread_over_the_lines(tmp_path: Path) -> None:
    made = run(SMALL, output=tmp_path / "run", progress=False)
    line = Timeline(made.seed_path(0) / "timeline.csv", -1)
    line.spans = [Span(1, i, "compute", 0.0, 1.0 + i) for i in range(250)]
    line.write()
    timeline(made, tmp_path / "a.svg")
    from fedsim.report.timeline_picture import _lines

    assert _lines(line.spans) == list(range(0, 250, 3))
    with pytest.raises(ConfigError):
        timeline(made, tmp_path / "a.svg", since=5.0, until=5.0)


def test_a_picture_of_a_part_says_of_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(replace(SMALL, rounds=3), output=tmp_path / "run", progress=False)
    whole, labels = max(span.end for span in read_timeline(made.seed_path(0) / "timeline.csv")), list[str]()
    keep = timeline_picture.figures.save
    monkeypatch.setattr(
        timeline_picture.figures, "save",
        lambda figure, *rest: (labels.append(figure.axes[0].get_xlabel()), keep(figure, *rest)),
    )  # fmt: skip
    timeline(made, tmp_path / "all.svg", until=whole)
    timeline(made, tmp_path / "part.svg", until=whole / 2)
    assert labels == ["simulated seconds", f"simulated seconds, of {float(f'{whole:.4g}'):,g} recorded"]
