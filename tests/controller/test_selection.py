"""Choice of clients by what they have told: power-of-choice and Oort, their costs, and runs that go on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import DFedAvg, FedAvg, FedBuff
from fedsim import (
    Clock,
    Evaluation,
    Execution,
    Experiment,
    LocalWork,
    LogNormal,
    Oort,
    PowerOfChoice,
    Waiting,
    resume,
    run,
)
from fedsim.clock.virtual import VirtualClock
from fedsim.controller.host import Host
from fedsim.controller.prepare import prepare
from fedsim.controller.rounds import SeedRun
from fedsim.controller.selection import Selection
from fedsim.engine.federation import Meter
from fedsim.errors import ConfigError
from fedsim.experiment.adaptive import Poll, Told
from fedsim.experiment.config import from_config, to_config
from fedsim.problems import zeta_least_squares
from fedsim.record.metrics import read_metrics
from topologies import Ring, Static

LOSSES = np.array([3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0])


def poll(round: int = 1, there: Any = range(8), p: Any = None, speed: Any = None, asked: Any = None) -> Poll:
    def ask(ids: np.ndarray, size: int | None) -> np.ndarray:
        if asked is not None:
            asked.append((ids, size))
        return LOSSES[ids]

    return Poll(0, round, np.array(there), np.full(8, 1 / 8) if p is None else p, speed, ask)


def test_the_candidates_with_the_largest_losses() -> None:
    asked: list[Any] = []
    every = PowerOfChoice(size=3, d=8)
    assert set(every.choose({}, poll(asked=asked))) == {5, 7, 4} and asked[0][1] is None
    some = PowerOfChoice(size=2, d=4, variant="cpow-d", batch_size=16)
    for round in range(1, 20):
        chosen = some.choose({}, poll(round, asked=asked))
        ids, size = asked[-1]
        assert size == 16 and len({*ids}) == 4 and set(chosen) == set(ids[np.argsort(-LOSSES[ids])[:2]])
    assert len({tuple(ids) for ids, _ in asked}) > 10      # a function of the round
    assert list(PowerOfChoice(size=2, d=4).choose({}, poll(there=[1, 6]))) == [6, 1]


def test_candidates_in_proportion_to_their_weights() -> None:
    p = np.array([8, 4, 2, 1, 1, 0.5, 0.25, 0.25]) / 17
    first = [int(poll(t, p=p).draw("candidates", np.arange(8), p, 1)[0]) for t in range(4000)]
    shares = np.bincount(first, minlength=8) / 4000
    np.testing.assert_allclose(shares, p, atol=5 * (0.25 / 4000) ** 0.5)
    pairs = [poll(t, p=p).draw("candidates", np.arange(8), p, 2) for t in range(4000)]
    after = np.mean([b == 1 for a, b in pairs if a == 0])  # the second among those that are left
    assert abs(after - p[1] / (1 - p[0])) < 0.05


def test_the_last_losses_cost_nothing() -> None:
    last = PowerOfChoice(size=2, d=8, variant="rpow-d")
    memory, asked, seen = last.begin(8), list[Any](), set[int]()
    for round in range(1, 5):                              # whoever never took part is first
        chosen = last.choose(memory, poll(round, asked=asked))
        assert not seen & set(chosen)
        seen |= set(chosen)
        none = np.zeros(2)
        memory = last.follow(memory, round, Told(chosen, LOSSES[chosen], none, none, none))
    assert not asked and set(last.choose(memory, poll(5))) == {5, 7}


def told(ids: Any, square: Any, seconds: Any, samples: float = 10.0) -> Told:
    ids = np.array(ids)
    each = [np.broadcast_to(np.asarray(v, np.float64), ids.shape) for v in (square, samples, seconds)]
    return Told(ids, np.sqrt(each[0]), *each)


def test_utilities_by_hand() -> None:
    oort = Oort(size=4, percentile=50, clip=0.5, alpha=2)
    memory = oort.follow(oort.begin(8), 3, told([0, 1, 2, 3], [1, 4, 9, 16], [1, 2, 3, 40]))
    np.testing.assert_array_equal(memory["utility"][:5], [10, 20, 30, 40, 0])
    bonus = math.sqrt(0.1 * math.log(7) / 3)
    capped = np.array([10, 20, 25, 25]) + bonus            # at the median
    penalty = np.array([1, 1, (2.5 / 3) ** 2, (2.5 / 40) ** 2])
    np.testing.assert_allclose(oort._utility(memory, np.arange(4), 7), capped * penalty)
    timeless = oort.follow(oort.begin(8), 3, told([0, 1, 2, 3], [1, 4, 9, 16], math.nan))
    np.testing.assert_allclose(oort._utility(timeless, np.arange(4), 7), capped)


def test_new_clients_first_and_fast_ones_among_them() -> None:
    oort = Oort(size=4, epsilon=0.5, decay=0.9, least=0.25)
    memory = oort.begin(8)
    assert len({*oort.choose(memory, poll())}) == 4        # nobody has been tried
    memory = oort.follow(memory, 1, told([0, 1, 2, 3], [1, 100, 100, 100], 1.0))
    for t in range(2, 30):
        chosen = oort.choose(memory, poll(t))
        new = sum(i > 3 for i in chosen)
        assert len({*chosen}) == 4 and new == max(1, round(0.5 * 0.9 ** (t - 1) * 4))
        assert 0 not in chosen or new == 0                 # far below the cut
    speed = np.array([1.0] * 4 + [1.0, 10.0, 10.0, 10.0])
    one = Oort(size=1, epsilon=1, least=1)
    fast = np.mean([one.choose(memory, poll(t, speed=speed))[0] == 4 for t in range(1, 1000)])
    assert abs(fast - 1 / 1.3) < 0.07
    assert set(oort.choose(memory, poll(2, there=[1, 2]))) == {1, 2}


def test_the_pacer_waits_longer_when_utility_falls() -> None:
    oort, percentiles = Oort(size=1, window=2, percentile=30, step=5), []
    memory = oort.begin(8)
    for round, square in enumerate([100, 100, 1, 1, 1, 4, 4, 4], 1):
        memory = oort.follow(memory, round, told([0], square, 1.0))
        percentiles.append(float(memory["percentile"][0]))
    assert percentiles == [30, 30, 30, 35, 35, 35, 35, 35]


SMALL = Experiment(
    FedAvg(lr=0.02),
    data=zeta_least_squares(n=8, d=6, seed=0),
    local=LocalWork(batch_size=2, steps=2),
    sampling=PowerOfChoice(size=2, d=5),
    clock=Clock(seconds=LogNormal(0.01, 1.5)),
    rounds=6,
    evaluation=Evaluation(every=1),
    dtype="float64",
    execution=Execution("loop", checkpoint_every=1),
)


def test_a_question_is_charged_and_takes_time() -> None:
    prepared = prepare(SMALL, 0)
    fed, problem = prepared.federation, prepared.problem
    assert problem is not None and prepared.devices is not None
    meter, clock = Meter(fed), VirtualClock(prepared.devices)
    selection = Selection(SMALL.sampling, prepared, meter, clock, None, Host())
    x, ids = torch.linspace(0, 1, 6, dtype=torch.float64), np.array([4, 1])
    loss = selection._ask(1, x, ids, None)
    for i, value in zip(ids, loss, strict=True):
        rows = slice(*fed.shards.offsets[i : i + 2])
        outputs = fed.shards.x[rows] @ x
        expected = fed.model.loss(outputs.unsqueeze(-1), fed.shards.y[rows]).mean()
        assert value == pytest.approx(float(expected), rel=1e-12)
    sizes = fed.shards.sizes[ids]
    np.testing.assert_array_equal(meter.ledger.down[ids], 7 + 8 * 6)
    np.testing.assert_array_equal(meter.ledger.up[ids], 7)
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations[ids], np.ceil(sizes / 3))
    assert meter.ledger.up.sum() == 14
    on = prepared.devices
    work = on.work(ids, np.ceil(sizes / 3), 1)
    seconds = 2 * on.latency[ids] + 55 / on.down[ids] + 7 / on.up[ids] + work
    assert clock.server == pytest.approx(seconds.max(), rel=1e-12)


VARIANTS = {
    "pow-d": SMALL,
    "rpow-d": replace(SMALL, sampling=PowerOfChoice(size=2, d=5, variant="rpow-d")),
    "Oort": replace(SMALL, sampling=Oort(size=3, window=1), waiting=Waiting(first=2, dropout=0.1)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_and_its_resumption(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[int]] = []
    step, measure = SeedRun._step, SeedRun._measure

    def spied(self: SeedRun, method: Any, state: Any, round: int, ids: np.ndarray) -> Any:
        chosen.append(ids.tolist())
        return step(self, method, state, round, ids)

    def stopped(self: SeedRun, round: int, *rest: Any) -> Any:
        if round == 4:
            raise KeyboardInterrupt
        return measure(self, round, *rest)

    monkeypatch.setattr(SeedRun, "_step", spied)
    whole = run(VARIANTS[name], output=tmp_path / "whole", progress=False)
    cohorts = chosen.copy()
    assert len({tuple(ids) for ids in cohorts}) > 2
    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "_measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(VARIANTS[name], output=tmp_path / "stopped", progress=False)
    rest = resume(tmp_path / "stopped", VARIANTS[name], progress=False)
    a, b = ((made.seed_path(0) / "metrics.jsonl").read_bytes() for made in (whole, rest))
    assert a == b and chosen[-3:] == cohorts[-3:]
    sent = read_metrics(whole.seed_path(0) / "metrics.jsonl").series("total", "bytes_down")[6]
    vector = 7 + 8 * 6
    if name != "Oort":
        assert sent == 6 * vector * (2 + 5 * (name == "pow-d"))


def test_oort_calls_slow_clients_less_often(tmp_path: Path) -> None:
    """Half of the clients are a hundred times as slow; losses are alike."""
    clock = Clock(seconds=(0.01,) * 4 + (1.0,) * 4, jitter=0.0)
    experiment = replace(SMALL, data=zeta_least_squares(n=8, d=6, zeta=0.0, seed=0), clock=clock, rounds=40)
    even = replace(experiment, sampling=Oort(size=2, alpha=0, least=0))
    times = []
    for each, alpha in ((even, 0), (replace(even, sampling=Oort(size=2, least=0)), 2)):
        made = run(each, output=tmp_path / str(alpha), progress=False)
        times.append(read_metrics(made.seed_path(0) / "metrics.jsonl").series("simulated", "seconds")[40])
    assert times[1] < 0.4 * times[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PowerOfChoice(size=3, d=2), r"PowerOfChoice\.d is 2 and size 3"),
        (lambda: PowerOfChoice(variant="pow"), r"variant is 'pow'"),  # type: ignore[arg-type]
        (lambda: PowerOfChoice(size=0), r"PowerOfChoice\.size is 0"),
        (lambda: PowerOfChoice(2, d=9).expected(8), r"sampling\.d is 9, and the run has 8 clients"),
        (lambda: Oort(epsilon=1.5), r"Oort\.epsilon is 1\.5"),
        (lambda: Oort(alpha=-1), r"Oort\.alpha is -1"),
        (lambda: Oort(cutoff=math.nan), r"Oort\.cutoff is nan"),
        (lambda: Oort(size=9).expected(8), r"sampling\.size is 9"),
        (lambda: replace(SMALL, algorithm=DFedAvg(), topology=Static(Ring())), "DFedAvg has no server that could"),
        (lambda: replace(SMALL, algorithm=FedBuff(buffer=1), concurrency=2), "asynchronous clients are drawn"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_settings_survive_a_file() -> None:
    for sampling in (Oort(alpha=1.5), PowerOfChoice(5, 9, "cpow-d")):
        config = to_config(replace(SMALL, sampling=sampling))["sampling"]
        assert from_config({"algorithm": "FedAvg", "sampling": config}).sampling == sampling
