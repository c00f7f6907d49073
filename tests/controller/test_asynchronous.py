"""Asynchronous rounds: published trajectories, the limit of FedAvg, resume with messages under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAsync, FedAvg, FedBuff
from algorithms.parts import staleness_weight
from fedsim import (
    Clients,
    Clock,
    EF14Uplink,
    EF21Uplink,
    Evaluation,
    Execution,
    Experiment,
    Kept,
    Local,
    LocalWork,
    LogNormal,
    Plain,
    Sent,
    TopK,
    run,
)  # fmt: skip
from fedsim.clients import cohort
from fedsim.clock.devices import Devices
from fedsim.clock.events import Arrival, Events
from fedsim.compress import BernoulliCompressor, Threshold
from fedsim.controller.asynchronous import Driver
from fedsim.controller.host import Host
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.feedback.compressed import Compressed
from fedsim.problems import zeta_least_squares
from fedsim.record.blocks import Block
from fedsim.record.checkpoint import load_latest
from fedsim.record.metrics import read_metrics
from fedsim.robust import CoordinateMedian
from fedsim.tree import leaves
from fedsim.values import Vector
from tests.algorithms.quadratics import X0, F, everybody, federation, half_squared_error, states
from tests.backends.ray.shared import assert_same_in_actors
from tests.controller.stopping import stopped_and_resumed

WORK = LocalWork(batch_size=8, epochs=2)                   # unequal numbers of steps
SPARSE = Compressed(FedBuff(0.1, buffer=3), EF14Uplink(TopK(0.3)))
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(3)], ids=["loop", "blocks"])


def named(method: Any) -> str:
    return type(method).__name__


def driver(method: Any, fed: Federation, seconds: Any, concurrency: int, **more: Any) -> Driver:
    """Clients whose gradients take ``seconds`` each, over lines without delay."""
    n = fed.shards.n
    free = np.full(n, np.inf)
    each = np.broadcast_to(np.asarray(seconds, np.float64), n)
    return Driver(method, fed, Meter(fed), Devices(each, free, free, np.zeros(n), **more), concurrency, Host())


def play(method: Any, of: Driver, versions: int, x0: Any = X0) -> Iterator[Any]:
    state = method.init(torch.as_tensor(x0, dtype=torch.float64), cohort(of.federation, 0))
    for _ in range(versions):
        state = of.step(state)
        yield state


def four() -> Federation:
    """Client i moves half way to a_i = (1, 2, 4, 8)."""
    model = Model(nn.Linear(1, 1, bias=False), half_squared_error, dtype=torch.float64)
    a = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    return Federation(model, Shards(torch.ones_like(a)[:, None], a, np.arange(5)), LocalWork(0, steps=1), 0, Loop())


AT = {2: 0.5, 3: 0.9785533906, 4: 1.5612653121, 5: 1.6374553350, 6: 1.5556495695}
X = [0.3, 0.51, 0.6797409791, 0.7116706775, 1.0573657106, 0.9718636151, 1.0822656774, 1.0413946778]
PUBLISHED = {"FedBuff": (FedBuff(lr=0.5, buffer=2), AT), "FedAsync": (FedAsync(lr=0.5, alpha=0.6), X)}


@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_durations_of_one_two_three_and_seven(name: str, backend: Any) -> None:
    method, expected = PUBLISHED[name]
    of = driver(method, replace(four(), backend=backend), [1.0, 2.0, 3.0, 7.0], 4)
    found = [(of.now, float(s.x[0])) for s in play(method, of, len(expected), [0.0])]
    values = list(expected.values()) if isinstance(expected, dict) else expected
    np.testing.assert_allclose([x for _, x in found], values, rtol=0, atol=1e-10)
    if isinstance(expected, dict):
        assert [time for time, _ in found] == list(expected)


def test_weights_of_staleness() -> None:
    tau = np.array([0, 1, 4, 10])
    polynomial = staleness_weight("polynomial", tau, 0.5, 0)
    np.testing.assert_allclose(polynomial, [1, 0.70710678, 0.4472136, 0.30151134], atol=1e-8)
    np.testing.assert_allclose(staleness_weight("hinge", tau, 10, 4), [1, 1, 1, 0.01639344], atol=1e-8)
    assert staleness_weight("constant", tau, 1, 1).tolist() == [1.0] * 4


@BACKENDS
def test_compressed_messages_of_equally_fast_clients_are_those_of_fedavg(backend: Any) -> None:
    """With error feedback: each client has one task at a time, and its memory waits for the next."""
    fed, link = federation(F, LocalWork(batch_size=4, epochs=1), backend), EF14Uplink(TopK(0.3))
    plain, meter = Compressed(FedAvg(lr=0.05), link), Meter(fed)
    buffered = Compressed(FedBuff(lr=0.05, buffer=F.n), link)
    of = driver(buffered, fed, 0.0, F.n)
    state = plain.init(torch.from_numpy(X0), cohort(fed, 0, meter=meter))
    for t, other in enumerate(play(buffered, of, 5), 1):
        state = plain.round(state, cohort(fed, t, meter=meter))
        assert torch.equal(state.x, other.x)
    assert of.meter.ledger.totals() == meter.ledger.totals()


@BACKENDS
@pytest.mark.parametrize("weights", ["equal", "unequal"])
def test_equally_fast_clients_with_a_buffer_of_all_are_fedavg_bit_for_bit(weights: str, backend: Any) -> None:
    """And with an equal ledger: a client that begins after the last step would be charged."""
    fed = federation(F, WORK, backend, lambda t: 0.9**t, np.arange(1.0, F.n + 1) if weights == "unequal" else None)
    meter = Meter(fed)
    synchronous = states(FedAvg(0.2, server_lr=0.7), fed, X0, everybody(F.n, 5), meter)[1:]
    method = FedBuff(0.2, server_lr=0.7, buffer=F.n)
    of = driver(method, fed, 0.0, F.n)
    of.devices = replace(of.devices, latency=np.full(F.n, 1 / 49))
    for a, b in zip(play(method, of, 5), synchronous, strict=True):
        assert torch.equal(a.x, b.x)
    for name, charged in meter.ledger.by_node().items():
        np.testing.assert_array_equal(charged, of.meter.ledger.by_node()[name], err_msg=name)
    assert of.now == pytest.approx(10 / 49)


def test_a_fast_client_can_arrive_twice_in_one_step_and_is_charged_twice() -> None:
    method = FedBuff(0.5, buffer=3, staleness="constant")
    of = driver(method, four(), [1.0, 10.0, 10.0, 10.0], 2)
    of.events.idle = [0, 1]                                # these two alone
    seen: list[list[int]] = []
    arrive = FedBuff.arrive

    def spy(self: FedBuff, s: Any, sent: Sent[Vector], clients: Clients) -> Any:
        seen.append(clients.ids.tolist())
        return arrive(self, s, sent, clients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedBuff, "arrive", spy)
        (state,) = play(method, of, 1, [0.0])
    assert seen == [[0, 0, 0]] and state.x[0] == 0.5       # of three messages of 1 - 0.5, begun at the same version
    assert of.meter.ledger.up.tolist() == [3 * of.meter.ledger.down[1], 0, 0, 0]


class DriftState(NamedTuple):
    x: Vector
    c: Kept[Vector]


@dataclass(frozen=True)
class Counting:
    """Every client keeps the number of its tasks, and sends it."""

    buffer: int = 2

    def init(self, x: Vector, clients: Clients) -> DriftState:
        return DriftState(x, clients.keep(torch.zeros_like(x)))

    def round(self, s: DriftState, clients: Clients) -> DriftState:
        sent, s = self.dispatch(s, clients)
        return self.arrive(s, sent, clients)

    def dispatch(self, s: DriftState, clients: Clients) -> tuple[Sent[Vector], DriftState]:
        sent, c = clients.each(self.client, s.x, s.c)
        return sent, s._replace(c=s.c | c)

    def arrive(self, s: DriftState, sent: Sent[Vector], clients: Clients) -> DriftState:
        return s._replace(x=s.x + clients.mean(sent))

    def client(self, local: Local, x: Vector, c: Vector) -> tuple[Vector, Vector]:
        def step(y: Vector, batch: Any) -> Vector:
            return local.descend(y, local.grad(y, batch), 0.0)

        return local.fold(step, c) + 1, c + 1


def test_memories_are_written_when_a_client_begins() -> None:
    of = driver(Counting(), federation(F, WORK), np.linspace(0.1, 2, F.n), 4)
    *_, state = play(Counting(), of, 12)
    begun = of.events.tasks
    assert begun.sum() == 24 + 3 and begun.max() > begun.min()   # three of four were under way at the last step
    np.testing.assert_array_equal([float(state.c[i][0]) for i in range(F.n)], begun)


@BACKENDS
@pytest.mark.parametrize("method", [FedBuff(0.1, buffer=3), FedAsync(0.1), Counting(), SPARSE], ids=named)
def test_a_run_goes_on_from_any_version(method: Any, backend: Any) -> None:
    fed = federation(F, WORK, backend)
    seconds = np.linspace(0.1, 1, F.n)
    whole = driver(method, fed, seconds, 6, jitter=0.3)
    states, snapshots, messages, ledgers = [], list[Mapping[str, Tensor]](), [], []
    for state in play(method, whole, 8):
        states.append(state)
        snapshots.append({name: t.clone() for name, t in whole.snapshot().items()})
        messages.append([Block([i], [x[None] for x in leaves(sent)]) for i, sent in whole.under_way()().items()])
        ledgers.append(whole.meter.ledger.snapshot())
    for start, old in ((1, False), (4, False), (4, True)):
        rest = driver(method, fed, seconds, 6, jitter=0.3)
        named, kept = snapshots[start], messages[start]
        if old:                                            # as earlier versions stored them
            parts = {f"message.{block.ids[0]}.{k}": x[0] for block in kept for k, x in enumerate(block.columns)}
            named, kept = {**named, **parts}, []
        rest.restore(named, method.init(torch.from_numpy(X0), cohort(fed, 0)), kept)
        rest.meter.ledger.restore(ledgers[start])
        state = states[start]
        for later in range(start + 1, 8):
            state = rest.step(state)
            assert torch.equal(state.x, states[later].x)
        assert rest.now == whole.now
        assert all(torch.equal(a, b) for a, b in zip(
            rest.meter.ledger.snapshot().values(), ledgers[-1].values(), strict=True
        ))  # fmt: skip


CLOCK = Clock(seconds=LogNormal(0.01, 1.0), latency=0.01)
SMALL = Experiment(
    FedBuff(lr=0.02, buffer=2),
    data=zeta_least_squares(n=8, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    rounds=10,
    evaluation=Evaluation(every=1),
    dtype="float64",
    clock=CLOCK,
    concurrency=4,
    execution=Execution("loop", checkpoint_every=3),
)


@pytest.mark.parametrize("compressor", [Threshold(1e-3), BernoulliCompressor(0.5)], ids=lambda c: type(c).__name__)
def test_messages_under_way_are_rows_of_a_block(
    compressor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of compressors that send fewer values at one time than at another."""
    settings = replace(SMALL, uplink=Plain(compressor))
    whole = run(settings, output=tmp_path / "whole", progress=False)
    rest = stopped_and_resumed(settings, tmp_path / "stopped", 7, monkeypatch)
    made = load_latest(rest.seed_path(0) / "checkpoints")
    assert made is not None and not [name for name in made.tensors if name.startswith("clock.message")]
    under_way = sorted(made.tensors["clock.events.under_way"][:, 1].tolist())
    assert [i for block in made.memories["clock.messages"] for i in block.ids] == under_way != []
    a, b = ((path.seed_path(0) / "metrics.jsonl").read_bytes() for path in (whole, rest))
    assert a == b


def test_a_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    rows = read_metrics(whole.seed_path(0) / "metrics.jsonl")
    times = list(rows.series("simulated", "seconds").values())
    assert len(times) == 11 and times == sorted(times) and times[-1] > 0
    gaps = rows.series("server/problem", "objective")
    assert gaps[10] < gaps[0]
    rest = stopped_and_resumed(SMALL, tmp_path / "stopped", 7, monkeypatch)
    a, b = ((made.seed_path(0) / "metrics.jsonl").read_bytes() for made in (whole, rest))
    assert a == b


@pytest.mark.ray
@pytest.mark.parametrize("method", [FedBuff(lr=0.02, buffer=3), FedAsync(lr=0.02), SPARSE], ids=named)
def test_clients_in_actors(method: Any, tmp_path: Path) -> None:
    """Two actors compute the tasks of a server step, and measure what this process does."""
    link = {"algorithm": SPARSE.algorithm, "uplink": SPARSE.uplink} if method is SPARSE else {"algorithm": method}
    assert_same_in_actors(replace(SMALL, **link), tmp_path)
    here, there = (load_latest(tmp_path / name / "seed-0" / "checkpoints") for name in ("here", "there"))
    assert here is not None and there is not None and here.tensors.keys() == there.tensors.keys()
    for name, tensor in here.tensors.items():              # the model and the messages under way, bit for bit
        assert torch.equal(tensor, there.tensors[name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clock": None}, "asynchronous clients need a clock"),
        ({"algorithm": FedAvg()}, "FedAvg has no asynchronous form"),
        ({"uplink": EF21Uplink(TopK(0.5))}, "uplink EF21 gives the server one vector .*staleness to constant"),
        ({"aggregate": CoordinateMedian()}, "aggregate CoordinateMedian gives the server one vector"),
        ({"concurrency": 0}, "concurrency is 0; expected a whole number, 1 or more"),
        ({"concurrency": 1}, "buffer is 2, and concurrency 1, "),
    ],
)
def test_what_is_refused_at_construction(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(SMALL, **change)


def test_more_at_a_time_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="concurrency is 9, and the run has 8 clients"):
        run(replace(SMALL, concurrency=9), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_dispatch_without_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FedBuff, "dispatch", lambda self, s, clients: (None, s))
    with pytest.raises(ConfigError, match=r"FedBuff.dispatch returned None; expected"):
        next(play(FedBuff(buffer=1), driver(FedBuff(buffer=1), four(), 1.0, 2), 1, [0.0]))


def test_the_choice_is_uniform_and_a_function_of_the_seed() -> None:
    def starts(seed: int) -> list[int]:
        events, out = Events(20, 5, seed), []
        for _ in range(5000):
            chosen = events.choose()
            out += chosen
            events.start(chosen, [1.0] * len(chosen), 0)
            while True:
                events.next()
                if not events.at_once:
                    break
        return out

    assert starts(1) == starts(1) != starts(2)
    counts = np.bincount(starts(3), minlength=20)
    assert abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5


def test_events_in_order_of_time_then_number() -> None:
    events = Events(4, 4, 0)
    events.start(events.choose(), [2.0, 1.0, 1.0, 0.5], 0)
    assert [events.next() for _ in range(4)] == [
        Arrival(500_000_000, 3, 0), Arrival(10**9, 1, 0), Arrival(10**9, 2, 0), Arrival(2 * 10**9, 0, 0)
    ]  # fmt: skip


def test_events_that_are_undone() -> None:
    """Also where clients have begun, arrived and begun again since."""
    rng = np.random.default_rng(0)
    seconds = rng.random((20, 200))

    def play_on(events: Events, version: int, arrivals: int) -> list[Arrival]:
        out = []
        for _ in range(arrivals):
            chosen = events.choose()
            events.start(chosen, [float(seconds[node, events.tasks[node]]) for node in chosen], version)
            out.append(events.next())
        return out

    events = Events(20, 6, 1)
    for version, arrivals in enumerate((3, 1, 40, 7)):
        before = {name: t.clone() for name, t in events.snapshot().items()}
        mark = events.mark()
        once = play_on(events, version, arrivals)
        events.undo(mark, version)
        assert all(torch.equal(t, before[name]) for name, t in events.snapshot().items())
        assert play_on(events, version, arrivals) == once
