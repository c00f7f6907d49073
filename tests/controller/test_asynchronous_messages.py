"""Asynchronous rounds with compressed messages, rules, attacks and memories, against plain transcriptions; tasks that
are computed together, later than they begin.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import FedAsync, FedAvg, FedBuff
from fedsim import (
    EF21P,
    Clients,
    EControlUplink,
    EF14Uplink,
    EF21Uplink,
    Evaluation,
    HeavyBall,
    LocalWork,
    Plain,
    Sent,
    TopK,
    Vector,
    WorkerMomentum,
    run,
)
from fedsim.clients import cohort
from fedsim.compress import QSGD
from fedsim.controller.asynchronous import Driver
from fedsim.controller.keeping import Keeping
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.loop import Loop
from fedsim.feedback.compressed import Compressed
from fedsim.record.blocks import Block
from fedsim.record.metrics import read_metrics
from fedsim.record.timeline import Timeline
from fedsim.robust import CoordinateMedian, SignFlip, TrimmedMean
from fedsim.robust.robust import Robust
from fedsim.tree import leaves
from tests.algorithms.quadratics import everybody, federation, heterogeneous, states
from tests.controller.stopping import stopped_and_resumed
from tests.controller.test_asynchronous import SMALL, Counting, driver, named, play

F = heterogeneous(n=6, d=8)
X0 = np.linspace(-1, 1, F.d)
DURATIONS = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 23.0])
LR, BUFFER, STEPS = 0.5, 3, 12
TOP, BETA, ETA = TopK(k=2), 0.9, 0.25
BUFFERED = FedBuff(LR, buffer=BUFFER, staleness="constant")
Rows = list[tuple[int, np.ndarray]]


def top(v: np.ndarray) -> np.ndarray:
    """The two entries of largest magnitude."""
    kept = np.argsort(-abs(v), kind="stable")[:2]
    return np.where(np.isin(np.arange(len(v)), kept), v, 0)


def transcribed(
    send: Callable[[int, np.ndarray], np.ndarray],
    step: Callable[[np.ndarray, Rows], np.ndarray],
    told: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> list[tuple[float, np.ndarray]]:
    """Times and models of FedBuff with all clients under way: a client begins with ``told(x)`` and sends ``send(i, -lr
    grad_i)``, both when it begins; the server steps with the messages of each buffer.
    """
    x, now, history = X0.copy(), 0.0, []
    under_way: list[tuple[float, int, np.ndarray]] = []

    def begin(clients: Sequence[int]) -> None:
        w = told(x)
        for i in clients:
            heapq.heappush(under_way, (now + DURATIONS[i], i, send(i, -LR * F.grad(i, w))))

    begin(range(F.n))
    while len(history) < STEPS:
        buffer: Rows = []
        while len(buffer) < BUFFER:
            now, i, message = heapq.heappop(under_way)
            buffer.append((i, message))
            if len(buffer) < BUFFER:
                begin([i])
        x = step(x, sorted(buffer, key=lambda entry: entry[0]))
        history.append((now, x))
        begin([i])
    return history


def mean_of(x: np.ndarray, rows: Rows) -> np.ndarray:
    return x + np.mean([row for _, row in rows], 0)


def ef14() -> Any:
    e = np.zeros((F.n, F.d))

    def send(i: int, v: np.ndarray) -> np.ndarray:
        c = top(v + e[i])
        e[i] += v - c
        return c

    return send, mean_of


def momentum() -> Any:
    m = np.zeros((F.n, F.d))

    def send(i: int, v: np.ndarray) -> np.ndarray:
        m[i] = BETA * m[i] + (1 - BETA) * v
        return m[i].copy()

    return send, mean_of


def with_copies(eta: float) -> Any:
    """EControl; EF21 for eta 0. The server's copies know of a message once it has arrived."""
    e, h, H = np.zeros((F.n, F.d)), np.zeros((F.n, F.d)), np.zeros(F.d)

    def send(i: int, v: np.ndarray) -> np.ndarray:
        c = top(eta * e[i] + v - h[i])
        e[i] += v - h[i] - c
        h[i] += c
        return c

    def step(x: np.ndarray, rows: Rows) -> np.ndarray:
        H[:] += sum(row for _, row in rows) / F.n
        return x + H

    return send, step


def as_it_is(i: int, v: np.ndarray) -> np.ndarray:
    return v


def public_copy() -> Any:
    w: list[np.ndarray] = []

    def told(x: np.ndarray) -> np.ndarray:
        w.append(x if not w else w[-1] + top(x - w[-1]))
        return w[-1]

    return as_it_is, mean_of, told


def median(x: np.ndarray, rows: Rows) -> np.ndarray:
    return x + np.median([row for _, row in rows], 0)


def flipped(x: np.ndarray, rows: Rows) -> np.ndarray:
    return x + np.mean([-3 * row if i == 0 else row for i, row in rows], 0)


MECHANISMS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "EF14": (Compressed(BUFFERED, EF14Uplink(TOP)), ef14),
    "Plain": (Compressed(BUFFERED, Plain(TOP)), lambda: (lambda i, v: top(v), mean_of)),
    "WorkerMomentum": (Compressed(BUFFERED, WorkerMomentum(BETA)), momentum),
    "EF21": (Compressed(BUFFERED, EF21Uplink(TOP)), lambda: with_copies(0.0)),
    "EControl": (Compressed(BUFFERED, EControlUplink(TOP, ETA)), lambda: with_copies(ETA)),
    "EF21P": (Compressed(BUFFERED, downlink=EF21P(TOP)), public_copy),
    "coordinate median": (Robust(BUFFERED, CoordinateMedian()), lambda: (as_it_is, median)),
    "attack": (Robust(BUFFERED, attack=SignFlip(scale=3.0, ids=(0,))), lambda: (as_it_is, flipped)),
}


@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_messages_by_hand(name: str, backend: Any) -> None:
    method, make = MECHANISMS[name]
    fed = federation(F, LocalWork(0, steps=1), backend)
    of = driver(method, fed, DURATIONS / fed.shards.sizes, F.n)
    found = [(of.now, state.x.numpy()) for state in play(method, of, STEPS, X0)]
    for (now, x), (then, y) in zip(found, transcribed(*make()), strict=True):
        assert now == pytest.approx(then)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)
    assert of.foresight.fails is (name == "EF21P")         # whose server changes whenever a client begins


LIMITS: dict[str, tuple[Any, Any]] = {
    "EF21": (Compressed(FedAvg(LR), EF21Uplink(TOP)), Compressed(FedBuff(LR, buffer=F.n), EF21Uplink(TOP))),
    "EControl": (Compressed(FedAvg(LR), EControlUplink(TOP)), Compressed(FedBuff(LR, buffer=F.n), EControlUplink(TOP))),
    "momentum": (Compressed(FedAvg(LR), WorkerMomentum()), Compressed(FedBuff(LR, buffer=F.n), WorkerMomentum())),
    "EF21P": (Compressed(FedAvg(LR), downlink=EF21P(TOP)), Compressed(FedBuff(LR, buffer=F.n), downlink=EF21P(TOP))),
    "trimmed mean": (Robust(FedAvg(LR), TrimmedMean(f=1)), Robust(FedBuff(LR, buffer=F.n), TrimmedMean(f=1))),
    "optimizer": (
        Keeping(FedAvg(LR), HeavyBall(state="keep").slots(torch.zeros(F.d, dtype=torch.float64))),
        Keeping(FedBuff(LR, buffer=F.n), HeavyBall(state="keep").slots(torch.zeros(F.d, dtype=torch.float64))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_equally_fast_clients_are_synchronous_rounds_bit_for_bit(name: str) -> None:
    synchronous, method = LIMITS[name]
    optimizer = {"optimizer": HeavyBall(state="keep")} if name == "optimizer" else {}
    fed = federation(F, LocalWork(batch_size=8, epochs=1, **optimizer))
    meter = Meter(fed)
    rounds = states(synchronous, fed, X0, everybody(F.n, 5), meter)[1:]
    of = driver(method, fed, 0.0, F.n)
    for a, b in zip(play(method, of, 5, X0), rounds, strict=True):
        assert torch.equal(a.x, b.x)
    assert of.meter.ledger.totals() == meter.ledger.totals()


def groups_of(of: Driver) -> list[list[int]]:
    """Who is computed together, noted as it happens."""
    groups, compute = list[list[int]](), of._compute

    def noted(state: Any, ids: np.ndarray, tasks: np.ndarray) -> Any:
        groups.append(ids.tolist())
        return compute(state, ids, tasks)

    of._compute = noted  # type: ignore[method-assign]
    return groups


@pytest.mark.parametrize("method", [FedBuff(0.1, buffer=3), Counting(buffer=3), FedAsync(0.1)], ids=named)
@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
def test_tasks_are_computed_together_and_nothing_changes(method: Any, backend: Any, tmp_path: Path) -> None:
    fed = federation(F, LocalWork(batch_size=8, epochs=2), backend)
    found = []
    for at_once in (True, False):
        of = driver(method, fed, DURATIONS / 100, 5, jitter=0.3)
        of.foresight.fails, of.timeline = at_once, Timeline(tmp_path / "timeline.csv", 0)
        groups = groups_of(of)
        found.append(([s.x for s in play(method, of, 10, X0)], of.now, of.timeline.spans, of.meter.ledger.totals()))
        sizes = [len(ids) for ids in groups[1:]]           # the first five begin together in any case
        assert sizes == [1] * len(sizes) if at_once else sum(sizes) == 9 * method.buffer + method.buffer - 1
        assert at_once or method.buffer == 1 or max(sizes) == 3
    (a, *events), (b, *same) = found
    assert events == same
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0 if backend == Loop() else 1e-12)


def test_a_client_that_begins_twice_between_two_steps_is_computed_in_turn() -> None:
    of = driver(Counting(buffer=4), federation(F, LocalWork(0, steps=1)), [0.001, 1, 1, 1, 1, 1], 2)
    of.events.idle = [0, 1]
    groups = groups_of(of)
    *_, state = play(of.method, of, 3, X0)
    assert groups == [[0, 1]] + 3 * [[0]] + 2 * 4 * [[0]]
    assert float(state.c[0][0]) == 12


@dataclass(frozen=True)
class Moody(FedBuff):
    """Every fifth server step asks for gradients of whole shards as well."""

    def dispatch(self, s: Any, clients: Clients) -> tuple[Sent[Vector], Any]:
        return clients.each(self.client if clients.round % 5 else self.twice, s.x), s

    def twice(self, local: Any, x: Vector) -> Vector:
        return self.client(local, x) - 0.01 * local.grad(x)


ELIAS = Compressed(FedBuff(0.1, buffer=3), Plain(QSGD(code="elias")))


@pytest.mark.parametrize("method", [Moody(0.1, buffer=3), ELIAS], ids=named)
def test_costs_that_cannot_be_foreseen(method: Any) -> None:
    """The server step is made again, and tasks are computed as they begin from then on; a resumed run knows."""
    fed = federation(F, LocalWork(batch_size=8, epochs=1))
    a, b = (driver(method, fed, DURATIONS / 100, 5, jitter=0.3) for _ in range(2))
    b.foresight.fails = True
    groups = groups_of(a)
    last = None
    for x, y in zip(play(method, a, 12, X0), play(method, b, 12, X0), strict=True):
        assert torch.equal(x.x, y.x) and a.now == b.now
        assert a.meter.ledger.totals() == b.meter.ledger.totals()
        last = x
    assert a.foresight.fails and {len(ids) for ids in groups[-9:]} == {1}
    rest = driver(method, fed, DURATIONS / 100, 5, jitter=0.3)
    under_way = [Block([i], [x[None] for x in leaves(sent)]) for i, sent in a.under_way()().items()]
    rest.restore(a.snapshot(), method.init(torch.from_numpy(X0), cohort(fed, 0)), under_way)
    assert rest.foresight.fails and torch.equal(rest.step(last).x, a.step(last).x)


CONSTANT = replace(SMALL, algorithm=FedBuff(0.02, buffer=2, staleness="constant"))


@pytest.mark.parametrize(
    "settings",
    [
        {"uplink": EF21Uplink(TopK(0.5)), "downlink": EF21P(TopK(0.5))},
        {"uplink": WorkerMomentum(0.5), "aggregate": CoordinateMedian(), "attack": SignFlip(ids=(1,))},
        {"local": LocalWork(batch_size=0, steps=2, optimizer=HeavyBall(state="keep"))},
    ],
    ids=["links", "rules", "optimizer"],
)
def test_a_run_and_its_resumption(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(CONSTANT, **settings, rounds=12, evaluation=Evaluation(every=1, clients_every=None))
    whole = run(experiment, output=tmp_path / "whole", progress=False)
    rows = read_metrics(whole.seed_path(0) / "metrics.jsonl").series("server/problem", "objective")
    assert min(rows.values()) < rows[0]
    rest = stopped_and_resumed(experiment, tmp_path / "stopped", 7, monkeypatch)
    a, b = ((made.seed_path(0) / "metrics.jsonl").read_bytes() for made in (whole, rest))
    assert a == b
