"""Asynchronous gossip: AD-PSGD against a plain transcription, its limit, checkpoints with nodes at work, and runs."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from algorithms import ADPSGD, DPSGD, DFedAvg
from fedsim import (
    Choco,
    Clock,
    Evaluation,
    Execution,
    Experiment,
    HeavyBall,
    LocalWork,
    LogNormal,
    Plain,
    TopK,
    run,
)
from fedsim.clients import cohort
from fedsim.clock.devices import Devices
from fedsim.controller.host import Host
from fedsim.controller.meetings import Meetings
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.problems import zeta_least_squares
from fedsim.record.metrics import read_metrics
from fedsim.record.state import flatten
from fedsim.robust import CoordinateMedian, SignFlip
from tests.algorithms.quadratics import half_squared_error
from tests.backends.ray.shared import assert_same_in_actors
from tests.controller.stopping import stopped_and_resumed
from topologies import OnePeerExponential, Ring, Static

A, LR = np.array([1.0, 2.0, 4.0, 8.0]), 0.1
SIZE = 1 + 6 + 8
"""Bytes of a model of one number."""


RING = Static(Ring())


def four(topology: Any = RING, backend: Any = None) -> Federation:
    model = Model(nn.Linear(1, 1, bias=False), half_squared_error, dtype=torch.float64)
    shards = Shards(torch.ones(4, 1, dtype=torch.float64), torch.from_numpy(A), np.arange(5))
    return Federation(model, shards, LocalWork(batch_size=0, steps=1), 0, backend or Loop(), topology=topology)


def meetings(fed: Federation, seconds: Any, latency: float = 0.0, rate: float = np.inf, **more: Any) -> Meetings:
    each = (np.broadcast_to(np.asarray(v, np.float64), 4).copy() for v in (seconds, rate, rate, latency))
    return Meetings(ADPSGD(lr=LR), fed, Meter(fed), Devices(*each, **more), 4, Host())


def begin(of: Meetings) -> Any:
    return of.method.init(torch.zeros(1, dtype=torch.float64), cohort(of.federation, 0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", [Loop(), Blocks(3)], ids=["loop", "blocks"])
def test_two_hundred_meetings_by_hand(backend: Any) -> None:
    duration, latency, rate = [1, 2, 3, 7], 0.25, 30.0
    of = meetings(four(backend=backend), duration, latency, rate)
    state, x, g = begin(of), np.zeros(4), np.zeros(4)
    under_way: list[tuple[float, int]] = []
    tasks, link = np.zeros(4, int), np.zeros((4, 4), int)

    def start(i: int, now: float) -> None:
        tasks[i] += 1
        g[i] = x[i] - A[i]
        heapq.heappush(under_way, (now + duration[i] + 2 * latency + SIZE / rate, i))

    for i in range(4):
        start(i, 0.0)
    seen = set()
    for _ in range(200):
        state = of.step(state)
        now, i = heapq.heappop(under_way)
        j = of.partner(i, tasks[i])
        assert (i - j) % 4 in (1, 3)
        seen.add((i, j))
        link[i, j] += SIZE
        link[j, i] += SIZE
        x[i] = x[j] = (x[i] + x[j]) / 2
        x[i] -= LR * g[i]
        assert of.now == pytest.approx(now)
        np.testing.assert_allclose([state.x[k].item() for k in range(4)], x, rtol=1e-12)
        start(i, now)
    assert len(seen) == 8                                  # every directed edge of the ring
    edges = of.meter.ledger.edges()
    assert {(a, b): size for a, b, size in edges.tolist()} == {(a, b): link[a, b] for a, b in np.argwhere(link)}
    assert 1.5 < x.mean() < 3 < A.mean()                   # fast nodes draw the others to their minimisers


def test_a_pair_is_drawn_in_proportion_to_its_weight() -> None:
    @dataclass(frozen=True)
    class Uneven:
        def matrix(self, round: int, seed: int, n: int) -> Any:
            from scipy.sparse import csr_array

            return csr_array([[0.25, 0.5, 0.25, 0], [0.5, 0.5, 0, 0], [0.25, 0, 0.75, 0], [0, 0, 0, 1.0]])

    of = meetings(four(Uneven()), 1.0)
    drawn = [of.partner(0, task) for task in range(1, 3000)]
    assert abs(np.mean([j == 1 for j in drawn]) - 2 / 3) < 0.05 and set(drawn) == {1, 2}
    assert of.partner(3, 1) == 3                           # alone: it meets itself
    state = begin(of)
    for _ in range(8):
        state = of.step(state)
    assert state.x[3].item() == pytest.approx(8 * (1 - 0.9**2)) and of.now == 2


def test_synchronous_rounds_are_d_psgd() -> None:
    fed = four()
    a, b = ADPSGD(lr=LR), DPSGD(lr=LR)
    x = torch.zeros(1, dtype=torch.float64)
    s, t = a.init(x, cohort(fed, 0)), b.init(x, cohort(fed, 0))
    for round in range(1, 6):
        s, t = a.round(s, cohort(fed, round)), b.round(t, cohort(fed, round))
        assert all(torch.equal(s.x[i], t.x[i]) for i in range(4))


@pytest.mark.parametrize("topology", [Static(Ring()), OnePeerExponential()], ids=["ring", "one peer"])
def test_it_goes_on_from_any_meeting(topology: Any) -> None:
    whole = meetings(four(topology), [1, 2, 3, 7], jitter=0.3)
    state, states, snapshots = begin(whole), [], []
    for _ in range(30):
        snapshots.append(({name: t.clone() for name, t in whole.snapshot().items()}, state))
        state = whole.step(state)
        states.append((flatten(state), whole.now))
    for k in (0, 7, 19):
        rest = meetings(four(topology), [1, 2, 3, 7], jitter=0.3)
        rest.restore(snapshots[k][0], begin(rest))
        state = snapshots[k][1]
        for expected, now in states[k:]:
            state = rest.step(state)
            assert rest.now == now
            torch.testing.assert_close(flatten(state), expected, rtol=0, atol=0)


SMALL = Experiment(
    ADPSGD(lr=0.02),
    data=zeta_least_squares(n=8, d=6, seed=0),
    topology=Static(Ring()),
    local=LocalWork(batch_size=2, steps=1),
    clock=Clock(seconds=LogNormal(0.01, 1.0)),
    concurrency=8,
    rounds=40,
    evaluation=Evaluation(every=5),
    dtype="float64",
    execution=Execution("loop", checkpoint_every=4),
)


def test_a_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    rows = read_metrics(whole.seed_path(0) / "metrics.jsonl")
    gaps, times = rows.series("average/problem", "objective"), rows.series("simulated", "seconds")
    assert gaps[40] < gaps[0] and list(times.values()) == sorted(times.values())
    rest = stopped_and_resumed(SMALL, tmp_path / "stopped", 30, monkeypatch)
    for name in ("metrics.jsonl", "timeline.csv", "edges.csv"):
        a, b = ((made.seed_path(0) / name).read_bytes() for made in (whole, rest))
        assert a == b, name


@pytest.mark.ray
def test_nodes_in_actors(tmp_path: Path) -> None:
    assert_same_in_actors(SMALL, tmp_path)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="asynchronous clients need a clock"):
        replace(SMALL, clock=None)
    with pytest.raises(ConfigError, match="DFedAvg has no asynchronous form"):
        replace(SMALL, algorithm=DFedAvg())
    with pytest.raises(ConfigError, match="ADPSGD has no server: it needs a topology"):
        replace(SMALL, topology=None)
    for change, words in (
        ({"uplink": Choco(TopK(0.5))}, "uplink Choco needs"),
        ({"uplink": Plain(TopK(0.5))}, "uplink Plain needs"),
        ({"aggregate": CoordinateMedian()}, "aggregate needs"),
        ({"attack": SignFlip()}, "attack needs"),
        ({"local": LocalWork(optimizer=HeavyBall(state="keep"))}, r"local\.optimizer\.state keep needs"),
    ):
        with pytest.raises(ConfigError, match=f"{words} synchronous rounds without a server: nodes of ADPSGD meet in"):
            replace(SMALL, **change)
    with pytest.raises(ConfigError, match="concurrency is 9, and the run has 8 clients"):
        run(replace(SMALL, concurrency=9), root=tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"not connected|disconnected|no edges"):
        run(replace(SMALL, topology=Static(nx.empty_graph(8))), root=tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"clients\.met is of meetings"):
        _ = cohort(four(), 1).met
    monkeypatch.setattr(ADPSGD, "dispatch", lambda self, s, clients: (clients.each(self.share, None, s.x), s))
    of = meetings(four(), 1.0)
    with pytest.raises(ConfigError, match=r"ADPSGD\.dispatch sends messages, and there is no server"):
        of.step(begin(of))
