"""Algorithms with a rule and under attack, against the rule applied to their messages by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import BEER, DIANA, DPSGD, EF21, FedAMD, FedAvg, FedCM, FedOpt, FedSpeed, GradientTracking, Scaffold
from algorithms import DFedAvg as Gossip
from algorithms.ef21_w import EF21W
from fedsim import Clients, HeavyBall, Kept, Local, LocalWork, Vector
from fedsim.clients import cohort
from fedsim.compress import TopK
from fedsim.controller.keeping import Keeping
from fedsim.engine.federation import Meter
from fedsim.errors import CodeError, ConfigError, DivergenceError
from fedsim.feedback import EF14Uplink, EF21Uplink, WorkerMomentum
from fedsim.feedback.compressed import Compressed
from fedsim.robust import (
    ALIE,
    IPM,
    CenteredClipping,
    CoordinateMedian,
    Drop,
    Jointly,
    Krum,
    Mean,
    MoNNA,
    NonFinite,
    SelfCenteredClipping,
    SignFlip,
    TrimmedMean,
)
from fedsim.robust.attack import Attack
from fedsim.robust.robust import Robust
from tests.contract.cases import federation, initial, rounds, same_bits
from tests.robust import transcriptions as paper

ALL = (tuple(range(6)),) * 3


def states(algorithm: Any, cohorts: Any = ALL, meter: Meter | None = None, **settings: Any) -> list[Any]:
    return list(rounds(algorithm, federation(**settings), cohorts, meter=meter))


def updates(x: Vector, round: int = 1) -> Tensor:
    """What the clients of FedAvg send, ``[6, d]``."""
    return cohort(federation(), round).each(FedAvg().client, x).stacked


def test_the_mean_changes_no_bit() -> None:
    for algorithm in (FedAvg(), Scaffold(), FedCM(), Gossip(gossip_steps=2)):
        rule = None if algorithm in (Gossip(gossip_steps=2),) else Mean()
        for plain, guarded in zip(states(algorithm), states(Robust(algorithm, rule)), strict=True):
            assert same_bits(plain, guarded.inner)


def test_a_rule_replaces_the_mean() -> None:
    start, first, *_ = states(Robust(FedAvg(server_lr=0.5), TrimmedMean(2)))
    expected = start.x + 0.5 * torch.from_numpy(paper.trimmed(updates(start.x).numpy(), 2))
    torch.testing.assert_close(first.x, expected)


def test_rules_look_at_each_vector_or_at_all_together() -> None:
    start = states(Scaffold(), ALL[:1])[0]
    sent, _ = cohort(federation(), 1).each(Scaffold().client, (start.x, start.c), start.c_i)
    dx, dc = (part.numpy() for part in sent.stacked)
    apart = states(Robust(Scaffold(), Krum(1)), ALL[:1])[1].inner
    np.testing.assert_allclose(apart.x - start.x, dx[paper.krum_order(dx, 1)[0]], atol=1e-15)
    np.testing.assert_allclose(apart.c, dc[paper.krum_order(dc, 1)[0]], atol=1e-15)
    together = Robust(FedCM(), Jointly(Krum(1)))           # its message is a vector and a number
    assert states(together, ALL[:1])[1].x.shape == start.x.shape


def test_numbers_of_messages_are_medians() -> None:
    start, first = states(Robust(FedCM(), CoordinateMedian()), ALL[:1])
    clients = cohort(federation(), 1)
    dx, steps = clients.each(FedCM().client, (start.x, start.inner.delta)).stacked
    dx, steps = np.median(dx.numpy(), 0), np.median(steps.numpy())
    np.testing.assert_allclose(first.x - start.x, dx, atol=1e-15)
    np.testing.assert_allclose(first.inner.delta, -dx / (0.1 * 0.9 * steps), atol=1e-12)


def test_sums_are_aggregated_and_not_differences() -> None:
    """EF21: the server's g is the rule's result on all g_i, also those of clients that are absent."""
    cohorts = ((0, 1, 2, 3, 4, 5), (0, 2, 3), (1, 4, 5, 3))
    for s in states(Robust(EF21(compressor=TopK(0.3)), TrimmedMean(2)), cohorts):
        rows = np.stack([s.inner.g_i[i].numpy() for i in range(6)])
        np.testing.assert_allclose(s.inner.g.numpy(), paper.trimmed(rows, 2), atol=1e-14)
    for s in states(Robust(Scaffold(), CoordinateMedian()), cohorts)[1:]:
        rows = np.stack([s.inner.c_i[i].numpy() for i in range(6)])
        np.testing.assert_allclose(s.inner.c.numpy(), np.median(rows, 0), atol=1e-14)


def test_attackers_are_charged_as_before() -> None:
    for algorithm in (FedAvg(), Scaffold(), Gossip()):
        ledgers = []
        for attack in (None, ALIE(0.4), Drop(0.4)):
            meter = Meter(federation())
            states(Robust(algorithm, None, attack), meter=meter)
            ledgers.append({key: array.tolist() for key, array in meter.ledger.by_node().items()})
        assert ledgers[0] == ledgers[1] == ledgers[2]


def test_what_attackers_send_depends_on_the_honest_messages() -> None:
    attack = ALIE(ids=(1, 4), z=2.0)
    start, first = states(Robust(FedAvg(), None, attack), ALL[:1])
    sent = updates(start.x)
    honest = sent[[0, 2, 3, 5]]
    sent[[1, 4]] = honest.mean(0) - 2 * honest.std(0)
    torch.testing.assert_close(first.x, start.x + sent.mean(0))


def test_compressed_attackers_send_compressed_messages() -> None:
    attack, top = IPM(ids=(2,), eps=3.0), TopK(0.3)
    start, first = states(Robust(Compressed(FedAvg(), EF14Uplink(top)), None, attack), ALL[:1])
    sent = torch.stack([top.compress(row, cohort(federation(), 1)).unpack() for row in updates(start.x)])
    honest = sent[[0, 1, 3, 4, 5]].mean(0)
    sent[2] = top.compress(-3.0 * honest, cohort(federation(), 1)).unpack()
    torch.testing.assert_close(first.x, start.x + sent.mean(0))


def test_messages_that_are_no_numbers_count_as_faulty() -> None:
    attack = NonFinite(ids=(0, 3))
    start, first = states(Robust(FedAvg(), TrimmedMean(2), attack), ALL[:1])
    rest = updates(start.x)[[1, 2, 4, 5]]
    torch.testing.assert_close(first.x, start.x + rest.mean(0))   # f = 2, and both are known
    for rule in (None, Mean(), TrimmedMean(1)):
        with pytest.raises(DivergenceError, match="client 0, 3 sent NaN or infinity"):
            states(Robust(FedAvg(), rule, attack), ALL[:1])


def test_messages_that_are_lost() -> None:
    start, first = states(Robust(FedAvg(), None, Drop(ids=(0, 3))), ALL[:1])
    torch.testing.assert_close(first.x, start.x + updates(start.x)[[1, 2, 4, 5]].mean(0))
    with pytest.raises(DivergenceError, match=r"no message is left, as all 2 of the cohort.* larger cohorts"):
        states(Robust(FedAvg(), None, Drop(ids=(0, 3))), ((0, 3),))


def test_centered_clipping_starts_from_its_last_result() -> None:
    start, first, second, _ = states(Robust(FedAvg(), CenteredClipping(0.05)))
    w = np.full(6, 1 / 6)
    v = paper.clip(updates(start.x).numpy(), np.zeros(len(start.x)), w, 0.05, 1)
    np.testing.assert_allclose(first.x - start.x, v, atol=1e-15)
    v = paper.clip(updates(first.x, 2).numpy(), v, w, 0.05, 1)
    np.testing.assert_allclose(second.x - first.x, v, atol=1e-15)


@pytest.mark.parametrize("rule", [TrimmedMean(1), MoNNA(1), SelfCenteredClipping(0.1), CoordinateMedian()])
def test_gossip_by_a_rule(rule: Any) -> None:
    """Every node applies the rule to what it and its neighbours hold: links are a ring and (1, 4)."""
    fed = federation()
    start, first = states(Robust(DPSGD(lr=1e-12), rule), ALL[:1])
    x = torch.stack([initial(fed) + 0.1 * k**2 for k in range(6)])  # other models, so that mixing shows
    clients = cohort(fed, 1)
    state = DPSGD().init(initial(fed), clients)._replace(x=Kept(6, x[0], dict(enumerate(x))))
    new = Robust(DPSGD(lr=1e-12), rule).round(start._replace(inner=state), clients)
    w = fed.topology.matrix(1, fed.seed, 6).toarray()      # type: ignore[union-attr]
    for i in range(6):
        near = [j for j in range(6) if w[i, j] or j == i]
        rows, own = x[near].numpy(), near.index(i)
        if isinstance(rule, TrimmedMean):
            expected = paper.trimmed(rows, 1)
        elif isinstance(rule, MoNNA):
            expected = paper.around(rows, rows[own], len(near) - 1)
        elif isinstance(rule, CoordinateMedian):
            expected = np.median(rows, 0)
        else:
            off = rows - rows[own]
            far = np.maximum(np.linalg.norm(off, axis=1), 1e-30)
            expected = rows[own] + (w[i, near] * np.minimum(1, 0.1 / far)) @ off
        np.testing.assert_allclose(new.x[i].numpy(), expected, atol=1e-9)
    assert first.x.n == 6


def test_gossip_with_messages_lost_or_broken() -> None:
    fed = federation()
    x = torch.stack([initial(fed) + 0.1 * k**2 for k in range(6)])
    state = Gossip().init(initial(fed), cohort(fed, 0))._replace(x=Kept(6, x[0], dict(enumerate(x))))
    w = fed.topology.matrix(1, fed.seed, 6).toarray()      # type: ignore[union-attr]
    for attack, rule in ((Drop(ids=(2,)), None), (NonFinite(ids=(2,)), TrimmedMean(1))):
        algorithm = Robust(Gossip(lr=1e-12, order="CTA"), rule, attack)
        start = algorithm.init(initial(fed), cohort(fed, 0))
        new = algorithm.round(start._replace(inner=state), cohort(fed, 1))
        for i in (0, 1, 3, 4, 5):
            there = [j for j in range(6) if (w[i, j] or j == i) and j != 2]
            if rule is None:
                expected = sum(w[i, j] * x[j] for j in there) + (1 - w[i, there].sum()) * x[i]
            else:
                rows, f = x[there].numpy(), int(w[i, 2] == 0)
                expected = torch.from_numpy(paper.trimmed(rows, f))
            torch.testing.assert_close(new.x[i], expected, atol=1e-9, rtol=0)
    with pytest.raises(DivergenceError, match="client 2 sent NaN"):
        states(Robust(Gossip(), None, NonFinite(ids=(2,))), ALL[:1])


def test_momentum_of_workers() -> None:
    algorithm = Compressed(FedAvg(), WorkerMomentum(0.75))
    start, first, second, _ = states(algorithm)
    m = 0.25 * updates(start.x)
    torch.testing.assert_close(first.x, start.x + m.mean(0))
    torch.testing.assert_close(second.x, first.x + (0.75 * m + 0.25 * updates(first.x, 2)).mean(0))
    guarded = states(Robust(algorithm, TrimmedMean(2)))
    torch.testing.assert_close(guarded[1].x, start.x + torch.from_numpy(paper.trimmed(m.numpy(), 2)))


def test_momentum_of_nodes_is_that_of_their_steps() -> None:
    """DFedAvg with one local step: what a node adds to its model is the step along its running sum of gradients."""
    by, algorithm = HeavyBall(0.75, state="keep"), Gossip(lr=0.1, order="CTA")
    fed = federation(work=LocalWork(0, steps=1, optimizer=by))
    s = [*rounds(Keeping(algorithm, by.slots(initial(fed))), fed, ALL)]
    m = torch.zeros(6, len(initial(fed)), dtype=torch.float64)
    for round in range(1, len(ALL) + 1):
        before = s[round - 1].inner.x
        half = cohort(fed, round).mix(cohort(fed, round).each(algorithm.share, None, before))
        g = cohort(fed, round).apply(lambda local, x: local.grad(x), half)
        m = 0.75 * m + torch.stack([g[i] for i in range(6)])
        for i in range(6):
            torch.testing.assert_close(s[round].inner.x[i], half[i] - 0.1 * fed.factor(round) * m[i])
    with pytest.raises(ConfigError, match="Choco or Plain; for momentum set local"):
        Compressed(Gossip(), WorkerMomentum())


@dataclass(frozen=True)
class Reads:
    """An algorithm that reads every message by itself."""

    def init(self, x: Vector, clients: Clients) -> Any:
        return FedAvg().init(x, clients)

    def round(self, s: Any, clients: Clients) -> Any:
        return s._replace(x=s.x + clients.reduce(clients.each(self.client, s.x), lambda rows, w: w @ rows))

    def client(self, local: Local, x: Vector) -> Vector:
        return -0.1 * local.grad(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Robust(DIANA(), TrimmedMean(1)), "TrimmedMean does not suit DIANA, as its server adds up differences"),
        (lambda: Robust(FedAMD(), TrimmedMean(1)), "does not suit FedAMD"),
        (lambda: Robust(EF21W(), TrimmedMean(1)), "as it weighs messages by factors of its own"),
        (lambda: Robust(GradientTracking(), MoNNA(1)), "as it needs a mixing that preserves sums"),
        (lambda: Robust(BEER(), MoNNA(1)), "as its nodes add up differences"),
        (lambda: Robust(Scaffold(), Jointly(Krum(1))), "Jointly does not suit Scaffold, which adds up"),
        (lambda: Robust(Compressed(FedAvg(), EF21Uplink()), Krum(1)), "EF21Uplink adds up differences of memories"),
        (lambda: Robust(FedAvg(), MoNNA(1)), "MoNNA needs a node's own message, and FedAvg has a server"),
        (lambda: Robust(FedOpt(), SelfCenteredClipping()), "needs a node's own message, and FedOpt has a server"),
        (lambda: Robust(FedAvg(), Krum), "expected a rule of fedsim.robust, such as TrimmedMean"),   # type: ignore[arg-type]
        (lambda: Robust(FedAvg(), None, Krum(1)), "expected one of fedsim.robust, such as ALIE"),   # type: ignore[arg-type]
        (lambda: states(Robust(Reads(), Krum(1))), "by itself, so aggregate Krum has nothing to replace"),
        (lambda: states(Robust(Reads(), None, Drop(0.4))), "the algorithm reads every message, and those of"),
        (lambda: states(Robust(FedAvg(), Krum(2))), "Krum with f = 2 needs 2f \\+ 3 = 7 rows or more, and there are 6"),
        (lambda: states(Robust(FedSpeed(), None, Attack(ids=(6,)))), r"Attack\.ids is \(6,\) of 6 clients"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_attacks_need_no_rule_and_reach_reads_too() -> None:
    start, first = states(Robust(Reads(), None, SignFlip(ids=(1,), scale=2.0)), ALL[:1])
    sent = cohort(federation(), 1).each(Reads().client, start.x).stacked
    sent[1] *= -2
    torch.testing.assert_close(first.x, start.x + sent.mean(0))


def my_rule(rows: Tensor, w: Tensor) -> Tensor:
    return w @ rows


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda v, rows: rows, CodeError, r"my_rule returned a tensor \[6, .*; expected a tensor \[\d+\], float64"),
        (lambda v, rows: v.numpy(), CodeError, "aggregate my_rule returned a ndarray"),
        (lambda v, rows: v.float(), CodeError, r"aggregate my_rule returned a tensor \[\d+\], float32 on cpu"),
        (lambda v, rows: rows.mul_(0)[0], ConfigError, "aggregate my_rule writes into an argument"),
        (lambda v, rows: v / 0, DivergenceError, "aggregate my_rule returned NaN or infinity of finite messages"),
        (lambda v, rows: rows @ rows, CodeError, "aggregate my_rule raised RuntimeError"),
    ],
)
def test_a_users_rule_is_named_with_what_it_should_return(wrong: Any, error: type[Exception], message: str) -> None:
    def rule(rows: Tensor, w: Tensor) -> Any:
        return wrong(my_rule(rows, w), rows)

    rule.__name__ = "my_rule"
    for algorithm in (FedAvg(), Gossip()):
        with pytest.raises(error, match=message if isinstance(algorithm, FedAvg) else "aggregate my_rule [rw]"):
            states(Robust(algorithm, rule))
