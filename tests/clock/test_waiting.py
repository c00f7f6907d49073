"""Rounds that do not wait for all: who counts, what the others cost, and what happens if too few arrive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import BVRLSGD, CO2, EF21BC, MARINA, DFedAvg, FedAMD, FedAvg, FedBuff, Scaffold
from fedsim import (
    Bernoulli,
    Clock,
    Daily,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    OnOff,
    Waiting,
    run,
)
from fedsim.clients import cohort
from fedsim.clock.barrier import Barrier
from fedsim.clock.devices import Devices
from fedsim.clock.virtual import VirtualClock
from fedsim.clock.windows import DAY, Windows
from fedsim.compress import Identity, RandK, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError, RoundSkipped, RunError
from fedsim.experiment.config import from_config, to_config
from fedsim.feedback import EF14Uplink
from fedsim.feedback.compressed import Compressed
from fedsim.problems import zeta_least_squares
from fedsim.record.metrics import read_metrics
from fedsim.robust import ALIE, CoordinateMedian
from fedsim.robust.robust import Robust
from tests.algorithms.quadratics import X0, F, federation, some
from tests.backends.ray.shared import assert_same_in_actors
from tests.clock.test_virtual import SPREAD, VECTOR, devices
from tests.controller.stopping import stopped_and_resumed
from topologies import Ring, Static

WORK = LocalWork(batch_size=4, epochs=1)
BIT_BY_BIT = {
    "FedAvg": FedAvg(lr=0.05),
    "Scaffold": Scaffold(lr=0.05),
    "FedAvg, EF14": Compressed(FedAvg(lr=0.05), EF14Uplink(TopK(0.3))),
    "FedAvg, attacked": Robust(FedAvg(lr=0.05), CoordinateMedian(), ALIE(0.2)),
}


class Rounds:
    """Rounds of a method with a barrier, one after the other."""

    def __init__(self, algorithm: Any, rule: Waiting, on: Devices, fed: Federation | None = None) -> None:
        self.algorithm, self.fed = algorithm, fed or federation(F, LocalWork(batch_size=0, steps=1))
        self.meter, self.clock, self.round = Meter(self.fed), VirtualClock(on), 0
        self.barrier, self.meter.trace = Barrier(rule, self.clock, 5), []
        self.state = algorithm.init(torch.from_numpy(X0), cohort(self.fed, 0, meter=self.meter))
        self._tick()

    def _tick(self) -> None:
        self.clock.advance(self.meter.trace or [], self.round)
        self.meter.trace = []

    def play(self, ids: list[int] | np.ndarray) -> np.ndarray:
        """Run a round; return who counted."""
        self.round += 1
        self.barrier.cohort, self.meter.barrier = np.array(ids), self.barrier
        clients = cohort(self.fed, self.round, np.array(ids), self.meter)
        try:
            self.state = self.algorithm.round(self.state, clients)
            return clients.ids
        finally:
            self.meter.barrier = self.meter.gone = None
            self._tick()


@pytest.mark.parametrize("backend", [Loop(), Blocks(3)], ids=["loop", "blocks"])
@pytest.mark.parametrize("name", BIT_BY_BIT)
def test_the_first_four_of_seven_are_a_round_of_these_four(name: str, backend: Any) -> None:
    algorithm, on = BIT_BY_BIT[name], replace(SPREAD, jitter=0.3)
    played, seen = Rounds(algorithm, Waiting(first=4), on, federation(F, WORK, backend)), set()
    fed = federation(F, WORK, backend)
    plain = algorithm.init(torch.from_numpy(X0), cohort(fed, 0))
    for t, ids in enumerate(some(F.n, 7, 5), 1):
        there = played.play(ids)
        plain = algorithm.round(plain, cohort(fed, t, there))
        assert len(there) == 4 and set(there) < set(ids)
        np.testing.assert_allclose(played.state.x.numpy(), plain.x.numpy(), rtol=1e-14, atol=1e-15)
        seen.add(tuple(there))
    assert len(seen) > 1 and played.clock.late == 15
    if name == "Scaffold":
        for i in range(F.n):
            np.testing.assert_allclose(played.state.c_i[i], plain.c_i[i], rtol=1e-13, atol=1e-15)


def test_who_is_late_is_charged_what_was_done_until_then() -> None:
    """Four clients whose download, work and upload take 2, 4 and 2 seconds, times 1, 1, 2 and 4."""
    slow, m = np.array([1.0, 1.0, 2.0, 4.0]), np.array([len(b) for b in F.b])[:4]
    seconds, down = np.ones(F.n), np.ones(F.n)
    seconds[:4], down[:4] = 4 * slow / m, VECTOR / (2 * slow)
    played = Rounds(FedAvg(lr=0.1), Waiting(first=2), devices(seconds, down, down))
    assert list(played.play([0, 1, 2, 3])) == [0, 1]
    ledger = played.meter.ledger
    assert played.clock.now == 8                           # client 2 has worked for 4 s of 8, client 3 received all
    np.testing.assert_array_equal(ledger.down[:4], VECTOR)
    np.testing.assert_array_equal(ledger.gradient_evaluations[:4], [m[0], m[1], m[2] // 2, 0])
    np.testing.assert_array_equal(ledger.up[:4], [VECTOR, VECTOR, 0, 0])
    assert list(played.play([2, 3])) == [2, 3]             # nobody is busy with what does not count
    assert played.clock.now == 8 + 32 and ledger.up[3] == VECTOR
    assert list(played.play([1, 3])) == [1, 3] and played.clock.late == 2


def test_equally_fast_clients_count_by_number() -> None:
    played = Rounds(FedAvg(lr=0.1), Waiting(first=2), devices(0.0, 100.0, 100.0))
    assert list(played.play([1, 4, 6])) == [1, 4]
    assert played.meter.ledger.up[6] == VECTOR             # was sent in vain


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Waiting(), (7.0, 4)),
        (Waiting(first=3), (4.0, 3)),
        (Waiting(first=3, deadline=3), (3.0, 3)),
        (Waiting(first=3, deadline=5), (4.0, 3)),
        (Waiting(deadline=3, minimum=3), (4.0, 4)),
        (Waiting(deadline=3, minimum=3, otherwise="skip"), (3.0, 4)),
        (Waiting(deadline=0.5), (1.0, 4)),
        (Waiting(deadline=0.5, otherwise="fail"), (0.5, 4)),
        (Waiting(first=9, minimum=9), (7.0, 4)),
    ],
)
def test_when_an_exchange_closes(rule: Waiting, expected: tuple[float, int]) -> None:
    assert rule.closes(np.array([1.0, 2.0, 4.0, 7.0])) == expected


def test_too_few_before_the_deadline() -> None:
    on = devices(1.0)
    assert len(Rounds(FedAvg(), Waiting(deadline=1e-3, minimum=2), on).play([0, 1, 2])) == 2
    played = Rounds(FedAvg(), Waiting(deadline=1e-3, otherwise="skip"), on)
    with pytest.raises(RoundSkipped, match=r"no messages of 3 clients arrived within 0\.001 simulated seconds"):
        played.play([0, 1, 2])
    assert played.clock.skipped == 1 and played.clock.late == 3 and played.clock.now == 1e-3
    assert played.meter.ledger.up.sum() == 0 == played.meter.ledger.gradient_evaluations.sum()
    with pytest.raises(RunError, match=r"round 1: .*raise waiting\.deadline"):
        Rounds(FedAvg(), Waiting(deadline=1e-3, otherwise="fail"), on).play([0, 1, 2])


def test_clients_that_go_away() -> None:
    n, m = F.n, np.array([len(b) for b in F.b])
    windows = Windows([np.array([[0.0, 100.0]])] * 2 + [np.array([[0.0, 2.0]])] * (n - 2), np.full(n, 100.0))
    played = Rounds(FedAvg(lr=0.1), Waiting(), devices(4 / m, windows=windows))
    assert list(played.play([0, 2])) == [0]                # client 2 goes away in the middle of its work
    assert played.meter.ledger.gradient_evaluations[2] == m[2] // 2 and played.clock.now == 4
    with pytest.raises(RoundSkipped, match="arrived before the others had gone away"):
        played.play([2, 3])                                # both are absent until second 100, and go away at 102
    assert played.clock.now == 102
    dropping = Rounds(FedAvg(lr=0.1), Waiting(dropout=0.3), devices(4 / m))
    rounds = 60
    gone = sum(5 - len(dropping.play(ids)) for ids in some(n, 5, rounds))
    assert abs(gone - 0.3 * 5 * rounds) < 5 * (0.21 * 5 * rounds) ** 0.5
    again = Rounds(FedAvg(lr=0.1), Waiting(dropout=0.3), devices(4 / m))
    assert gone == sum(5 - len(again.play(ids)) for ids in some(n, 5, rounds))
    share = dropping.meter.ledger.gradient_evaluations.sum() / sum(m[ids].sum() for ids in some(n, 5, rounds))
    assert 0.8 < share < 0.9                               # half of the work, in the mean, of those that go away


def test_ends_of_windows() -> None:
    spans = [[[0, 5], [5, 9]], [[0, 3], [8, 10]], [[0, 10]], [[2, 3], [6, 7]]]
    windows = Windows([np.array(own, np.float64) for own in spans], np.full(4, 10.0))
    assert windows.end(0, 1.0) == 9 and windows.end(0, 21.0) == 29
    assert windows.end(1, 8.5) == 13 and windows.end(1, 5.0) == 13 and windows.end(1, 12.0) == 13
    assert windows.end(2, 3.0) == np.inf
    assert windows.end(3, 2.5) == 3 and windows.end(3, 4.0) == 7 and windows.end(3, 7.5) == 13


def test_windows_of_a_day() -> None:
    windows = Daily(hour=22, hours=8, spread=1).windows(2000, 0)
    night = [i for i in range(2000) if windows.begin(i, 2 * 3600.0) == 2 * 3600.0]
    assert len(night) > 1990                               # at two o'clock
    starts = np.array([windows.begin(i, 12 * 3600.0) for i in range(2000)]) / 3600
    assert abs(starts.mean() - 22) < 0.1 and abs(starts.std() - 1) < 0.1
    i, first = 0, windows.begin(0, 12 * 3600.0)
    assert windows.end(i, first) == pytest.approx(first + 8 * 3600)
    assert windows.begin(i, first + 9 * 3600) == pytest.approx(first + DAY)


def test_an_exchange_with_everybody_waits_for_everybody() -> None:
    """MARINA's occasional rounds are of all clients, and are not made of the first few."""
    marina = MARINA(lr=0.01, compressor=RandK(0.5), p=1.0)
    played = Rounds(marina, Waiting(first=2), SPREAD)
    assert len(played.play([1, 3, 5])) == 3 and (played.meter.ledger.up > 0).all() and played.clock.late == 0


def test_who_does_not_arrive_in_an_exchange_with_everybody_was_away() -> None:
    """MARINA's server cannot count on a gradient that a late client has computed: it was not part of its estimate."""
    played, tails, late = Rounds(MARINA(lr=0.1, compressor=Identity(), p=0.5), Waiting(first=8), SPREAD), 0, 0
    for _ in range(12):
        before, heads = played.state, cohort(played.fed, played.round + 1).toss(0.5)
        there = played.play(np.arange(F.n))
        now = played.state
        if heads:
            late += F.n - len(there)
            assert set(np.flatnonzero(now.last == played.round)) == set(there)
            continue
        tails += 1
        change = sum(F.grad(i, now.x.numpy()) - F.grad(i, before.x.numpy()) for i in there) / len(there)
        np.testing.assert_allclose(now.g - before.g, change, rtol=1e-12, atol=1e-14)
    assert tails > 2 and late > 2


def test_roles_wait_each_for_its_own() -> None:
    played = Rounds(FedAMD(lr=0.01, p=0.5, large_batch=8), Waiting(first=3), SPREAD)
    assert 3 <= len(played.play(np.arange(10))) <= 6 and played.clock.late


@pytest.mark.parametrize("method", [EF21BC(compressor=TopK(0.5), server_compressor=TopK(0.5)), BVRLSGD(period=2)])
def test_methods_that_need_everybody_say_so(method: Any) -> None:
    with pytest.raises(ConfigError, match=r"4 of 10 (clients )?take part.*waiting"):
        Rounds(method, Waiting(first=4), SPREAD).play(np.arange(10))


def test_a_method_that_does_not_wait_has_no_barrier() -> None:
    with pytest.raises(ConfigError, match="waiting is of a server that waits"):
        Rounds(CO2(lr=0.1), Waiting(first=4), SPREAD).play(np.arange(10))


SMALL = Experiment(
    FedAvg(lr=0.02),
    data=zeta_least_squares(n=8, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    sampling=FixedSize(size=5),
    clock=Clock(availability=OnOff(10, 5)),
    waiting=Waiting(first=3, deadline=900, dropout=0.3, present=True),
    rounds=6,
    evaluation=Evaluation(every=1),
    dtype="float64",
    execution=Execution("loop", checkpoint_every=1),
)


def test_a_run_resumes_and_records_who_was_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    rows = read_metrics(whole.seed_path(0) / "metrics.jsonl")
    late = rows.series("simulated", "late")
    assert late[0] == 0 < late[6] and late[6] <= 6 * 2
    rest = stopped_and_resumed(SMALL, tmp_path / "stopped", 4, monkeypatch)
    a, b = ((made.seed_path(0) / "metrics.jsonl").read_bytes() for made in (whole, rest))
    assert a == b


def test_a_deadline_that_nobody_meets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = replace(SMALL, clock=Clock(), waiting=Waiting(deadline=1e-6, otherwise="skip"))
    made = run(never, output=tmp_path / "skip", progress=False)
    assert "6 rounds of 6 had too few messages" in capsys.readouterr().err
    rows = read_metrics(made.seed_path(0) / "metrics.jsonl")
    objective = rows.series("server/problem", "objective")
    assert objective[6] == objective[0] and rows.series("simulated", "skipped")[6] == 6
    fails = replace(never, waiting=Waiting(deadline=1e-6, otherwise="fail"))
    with pytest.raises(RunError, match=r"waiting\.minimum is 1"):
        run(fails, output=tmp_path / "fail", progress=False)


@pytest.mark.ray
def test_the_first_in_actors(tmp_path: Path) -> None:
    assert_same_in_actors(SMALL, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clock": None}, "waiting needs a clock"),
        ({"algorithm": DFedAvg(), "topology": Static(Ring())}, "DFedAvg has no server"),
        ({"algorithm": FedBuff(buffer=1), "concurrency": 2}, "waiting is for synchronous rounds"),
        ({"waiting": 10}, r"waiting is 10; expected Waiting\(first=10"),
    ],
)
def test_what_is_refused_at_construction(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"first": 0}, "waiting.first is 0"),
        ({"first": 2, "minimum": 3}, "waiting.minimum is 3, and the server waits for the first 2"),
        ({"deadline": 0}, "waiting.deadline is 0"),
        ({"deadline": float("nan")}, "waiting.deadline is nan"),
        ({"dropout": 1}, "waiting.dropout is 1"),
        ({"otherwise": "hope"}, "otherwise is 'hope'"),
        ({"present": 1}, "waiting.present is 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Waiting(**settings)


def test_more_than_are_called(tmp_path: Path) -> None:
    for settings, words in (({"first": 6}, "waiting.first is 6, and 5 clients"), ({"minimum": 6}, "waiting.minimum")):
        with pytest.raises(ConfigError, match=words):
            run(replace(SMALL, waiting=Waiting(**settings)), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    assert Waiting(first=2).expected(5) == 2 and Waiting().expected(Bernoulli(0.5).expected(4)) > 2


def test_settings_survive_a_file() -> None:
    config = {"algorithm": "FedAvg", "clock": "Clock", "waiting": to_config(SMALL)["waiting"]}
    assert from_config(config).waiting == SMALL.waiting
