"""Any algorithm with compressed messages: against transcriptions in numpy, without compression, and what is charged."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import (
    SGP,
    DFedAvg,
    DFedSAM,
    FedAMD,
    FedAvg,
    FedSpeed,
    GradientTracking,
    Scaffold,
)
from fedsim.algorithm import has_server
from fedsim.clients import cohort
from fedsim.compress import Identity, LowPrecision, LowRank, PowerSGD, RandK, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.feedback import EF21P, Choco, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.feedback.compressed import Compressed
from fedsim.feedback.linked import Linked, Links
from fedsim.messages import wire
from fedsim.types import Kept
from fedsim.values import Packed
from tests.algorithms.gossip_federations import TOPOLOGIES, gossiping, mixing, rows
from tests.algorithms.quadratics import Quadratics, everybody, federation, heterogeneous, iterates, some, states
from tests.contract.cases import federation as images
from tests.contract.cases import tensors

F = heterogeneous(n=6, d=8)
WHOLE = LocalWork(0, steps=1)
WORK = LocalWork(5, steps=3)
T = 6
TOP = TopK(k=2)
BOTH = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
COHORTS = pytest.mark.parametrize("cohorts", [everybody(6, T), some(6, 3, T)], ids=["everybody", "some"])
CENTRAL = [FedAvg(lr=0.3, momentum=0.5), Scaffold(lr=0.3), FedSpeed(lr=0.3, rho=0.05), FedAMD(lr=0.3, p=0.5)]
PACKED = 1 + 11 + 2 + 17
"""Bytes of a message of two values of eight: version, header, index code and count, 2 x (3 + 64) bits."""
X0 = np.linspace(-1, 1, F.d)


def top(v: np.ndarray, k: int = 2) -> np.ndarray:
    """The k entries of largest magnitude; of equal ones those of lowest index."""
    out = np.zeros_like(v)
    kept = np.lexsort((np.arange(len(v)), -abs(v)))[:k]
    out[kept] = v[kept]
    return out


def update(f: Quadratics, i: int, x: np.ndarray, eta: float = 0.5) -> np.ndarray:
    """Message of client i of FedAvg with one full-batch step."""
    return -eta * f.grad(i, x)


@BOTH
@COHORTS
def test_ef14_is_its_paper(backend: Any, cohorts: list[list[int]]) -> None:
    x, e, expected = X0, np.zeros((6, F.d)), []
    for S in cohorts:
        sent = {}
        for i in S:
            p = update(F, i, x) + e[i]
            sent[i] = top(p)
            e[i] = p - sent[i]
        x = x + sum(sent.values()) / len(S)
        expected.append(x)
    algorithm = Compressed(FedAvg(lr=0.5), EF14Uplink(TOP))
    np.testing.assert_allclose(iterates(algorithm, federation(F, WHOLE, backend), X0, cohorts), expected, atol=1e-14)


@BOTH
@COHORTS
@pytest.mark.parametrize("eta", [0.0, 0.2, None])
def test_ef21_and_econtrol_are_their_papers(backend: Any, cohorts: list[list[int]], eta: float | None) -> None:
    """The server's estimate counts clients that are away with what they have sent before; weights are not uniform."""
    weights = np.array([1.0, 2, 3, 1, 1, 2])
    p, strength = weights / weights.sum(), 2 / F.d if eta is None else eta
    x, e, h, H, expected = X0, np.zeros((6, F.d)), np.zeros((6, F.d)), np.zeros(F.d), []
    for S in cohorts:
        for i in S:
            v = update(F, i, x)
            c = top(strength * e[i] + v - h[i])
            e[i], h[i] = e[i] + v - h[i] - c, h[i] + c
            H = H + p[i] * c
        x = x + 0.7 * H
        expected.append(x)
        np.testing.assert_allclose(H, p @ h, atol=1e-15)
    fed = federation(F, WHOLE, backend, weights=weights)
    algorithm = Compressed(FedAvg(lr=0.5, server_lr=0.7), EControlUplink(TOP, eta))
    np.testing.assert_allclose(iterates(algorithm, fed, X0, cohorts), expected, atol=1e-14)
    if eta == 0:
        again = Compressed(FedAvg(lr=0.5, server_lr=0.7), EF21Uplink(TOP))
        np.testing.assert_allclose(iterates(again, fed, X0, cohorts), expected, atol=1e-14)


@BOTH
@COHORTS
def test_ef21p_is_its_paper_and_charges_what_was_missed(backend: Any, cohorts: list[list[int]]) -> None:
    """Clients compute from the public copy; who was away pays for the messages that it missed, or for the copy."""
    x, w, expected = X0, X0, []
    size, whole = PACKED, 1 + 6 + 8 * F.d                  # of a message with two values, and of the copy
    missed, down = np.full(6, whole), np.zeros(6, int)
    for t, S in enumerate(cohorts):
        if t:
            w = w + top(x - w)
            missed = np.minimum(missed + size, whole)
        down[S] += missed[S]
        missed[S] = 0
        x = x + sum(update(F, i, w) for i in S) / len(S)
        expected.append(x)
    fed = federation(F, WHOLE, backend)
    meter = Meter(fed)
    algorithm = Compressed(FedAvg(lr=0.5), downlink=EF21P(TopK(k=2, code="packed")))
    found = [s.x for s in states(algorithm, fed, X0, cohorts, meter)[1:]]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert meter.ledger.down.tolist() == down.tolist()
    assert meter.ledger.up.tolist() == [sum(i in S for S in cohorts) * whole for i in range(6)]


def test_a_low_precision_downlink() -> None:
    fed = federation(F, WHOLE)
    meter = Meter(fed)
    algorithm = Compressed(FedAvg(lr=0.5), downlink=Plain(LowPrecision("fp16")))
    first = states(algorithm, fed, X0, everybody(6, 1), meter)[1].x
    read = X0.astype(np.float16).astype(float)
    np.testing.assert_allclose(first, X0 + sum(update(F, i, read) for i in range(6)) / 6, atol=1e-14)
    assert (meter.ledger.down == 1 + 11 + 8 + 2 * F.d).all(), "a scale, and two bytes a number"


def inner(state: Any) -> list[Tensor]:
    return tensors(state.inner if hasattr(state, "inner") else state)


COHORTS = (everybody(6, 3), some(6, 3, 3))
UNCHANGED = [(uplink, a, S) for uplink in (Plain, EF14Uplink) for a in CENTRAL for S in COHORTS]
UNCHANGED += [(EF21Uplink, a, everybody(6, 3)) for a in CENTRAL if not isinstance(a, FedAMD)]
"""EF21's estimate counts those who are away, as FedAMD's anchors and miners are from each other."""


@BOTH
@pytest.mark.parametrize(("uplink", "algorithm", "cohorts"), UNCHANGED)
def test_nothing_compressed_is_nothing_changed(
    uplink: Any, algorithm: Any, cohorts: list[list[int]], backend: Any
) -> None:
    """Bit for bit where no difference to a memory is formed."""
    exact = uplink is not EF21Uplink
    bare, fed = (federation(F, WORK, backend) for _ in range(2))
    expected = states(algorithm, bare, X0, cohorts)
    downlink = Plain(Identity()) if exact else EF21P(Identity())
    found = states(Compressed(algorithm, uplink(Identity()), downlink), fed, X0, cohorts)
    for a, b in zip(expected, found, strict=True):
        for s, t in zip(inner(a), inner(b), strict=True):
            torch.testing.assert_close(t, s, rtol=0, atol=0 if exact else 1e-13)


@pytest.mark.parametrize("algorithm", [DFedSAM(), DFedAvg(order="CTA", gossip_steps=2), GradientTracking(), SGP()])
def test_nothing_compressed_in_gossip(algorithm: Any) -> None:
    """With gamma = 1 and the identity, neighbours' copies are their models."""
    for uplink, tolerance in ((Plain(Identity()), 0.0), (Choco(Identity(), gamma=1), 1e-13)):
        fed = gossiping(F, WORK, TOPOLOGIES["irregular"])
        bare, meter = Meter(fed), Meter(fed)
        for a, b in zip(
            states(algorithm, fed, X0, everybody(6, 3), bare),
            states(Compressed(algorithm, uplink), fed, X0, everybody(6, 3), meter),
            strict=True,
        ):
            for s, t in zip(inner(a), inner(b), strict=True):
                torch.testing.assert_close(t, s, rtol=0, atol=tolerance)
        assert meter.contraction == pytest.approx(bare.contraction, rel=1e-9)


@BOTH
@pytest.mark.parametrize("steps", [1, 2])
def test_compressed_gossip_is_choco(backend: Any, steps: int) -> None:
    W, gamma = mixing(TOPOLOGIES["irregular"], 1, 6), 0.4
    x, xhat, expected = np.tile(X0, (6, 1)), np.zeros((6, F.d)), []
    for _ in range(T):
        x = np.array([x[i] + update(F, i, x[i], 0.3) for i in range(6)])
        for _ in range(steps):
            xhat = xhat + np.array([top(row) for row in x - xhat])
            x = x + gamma * (W @ xhat - xhat)
        expected.append(x)
    fed = gossiping(F, WHOLE, TOPOLOGIES["irregular"], backend)
    meter = Meter(fed)
    algorithm = Compressed(DFedAvg(lr=0.3, gossip_steps=steps), Choco(TopK(k=2, code="packed"), gamma))
    found = [rows(s.x) for s in states(algorithm, fed, X0, everybody(6, T), meter)[1:]]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    degree = np.array([1, 4, 2, 2, 3, 2])
    assert (meter.ledger.up == T * steps * degree * PACKED).all(), "and nothing for the steps of a node"


def test_mass_is_kept_when_push_sum_is_compressed() -> None:
    fed = gossiping(F, WHOLE, TOPOLOGIES["directed"])
    last = states(Compressed(SGP(lr=1e-9), Choco(TOP, 0.3)), fed, X0, everybody(6, 20))[-1]
    x, w = rows(last.x), rows(last.inner.w)
    assert w.sum() == pytest.approx(6, abs=1e-13)
    np.testing.assert_allclose((x * w[:, None]).sum(0) / 6, X0, atol=1e-7)


def linked(algorithm: Any, uplink: Any, backend: Any = None) -> tuple[Linked, Links]:
    links = Links(Compressed(algorithm, uplink), {}, {}, {})
    fed = federation(F, WORK, backend)
    return Linked(cohort(fed, 1, np.array([0, 2, 3, 5])), links), links


@BOTH
@pytest.mark.parametrize("by", [TopK(fraction=0.3), RandK(k=3, scaled=False), PowerSGD(), LowPrecision("bf16")])
def test_the_ledger_is_what_the_wire_carries(by: Any, backend: Any) -> None:
    """Two vectors in SCAFFOLD's message; each client pays for its own bytes."""
    clients, _ = linked(Scaffold(lr=0.3), EF14Uplink(by), backend)
    x = torch.from_numpy(X0)
    sent, _ = clients.each(Scaffold(lr=0.3).client, (x, x), clients.keep(torch.zeros_like(x)))
    dx, dc = sent.stacked
    assert isinstance(dx, Packed) and isinstance(dc, Packed)
    clients.mean(sent)
    for row, i in enumerate(clients.ids):
        message = tuple(Packed(p.by, tuple(part[row] for part in p.parts), p.d) for p in (dx, dc))
        data = wire.encode(message, [by])
        assert clients._meter.ledger.up[i] == len(data)
        for packed, read in zip(message, wire.decode(data, [by], 10**6), strict=True):
            assert torch.equal(packed.unpack(), read.unpack())


def test_what_is_lost_is_sent_later() -> None:
    """The sum of all that the server read is the sum of all messages, less what is remembered; at each client."""
    algorithm = FedAvg(lr=0.3)
    clients, links = linked(algorithm, EF14Uplink(TopK(k=1)))
    plain = cohort(federation(F, WORK), 1, clients.ids)
    x = torch.from_numpy(X0)
    total = torch.zeros(4, F.d, dtype=torch.float64)
    for _ in range(5):
        total += clients.each(algorithm.client, x).stacked.unpack()
    e = torch.stack([links.nodes["client"][int(i)][0] for i in clients.ids])
    message = plain.each(algorithm.client, x).stacked
    torch.testing.assert_close(total + e, 5 * message, rtol=0, atol=1e-13)
    assert e.abs().max() > 0.01 and set(links.nodes["client"].rows) == {0, 2, 3, 5}, "those who took part"


def test_two_functions_of_one_name_would_share_a_memory() -> None:
    clients, _ = linked(FedAvg(), EF14Uplink(TopK(k=1)))
    x = torch.from_numpy(X0)
    clients.each(FedAvg(lr=0.3).client, x)
    with pytest.raises(ConfigError, match="two client functions of a round are called client"):
        clients.each(FedAvg(lr=0.1).client, x)
    clients, _ = linked(FedAvg(), EF14Uplink(TopK(k=1)))
    for scale in (1.0, 2.0):                               # the same function, made twice
        clients.each(partial(lambda local, x, scale: scale * x, scale=scale), x)


def test_every_vector_and_every_exchange_has_its_own_randomness() -> None:
    clients, _ = linked(Scaffold(), EF14Uplink(RandK(k=2, scaled=False, shared_seed=False)))
    x = torch.from_numpy(X0)
    (dx, dc), _ = clients.each(Scaffold().client, (x, x), clients.keep(torch.zeros_like(x)))[0].stacked, None
    assert not torch.equal(dx.parts[0], dc.parts[0])
    assert len({tuple(row) for row in dx.parts[0].tolist()}) > 1, "each client draws its own"
    compressed = Compressed(DFedAvg(), Choco(RandK(k=2, scaled=False, shared_seed=False)))
    one, other = (
        cohort(gossiping(F, WORK, TOPOLOGIES["ring"]), 1).each(
            compressed.offer, torch.tensor(step), Kept(6, x), Kept(6, ())
        )[0].stacked.parts[0]
        for step in (0, 1)
    )  # fmt: skip
    assert not torch.equal(one, other)


def test_powersgd_starts_from_its_last_directions() -> None:
    """On a message that stays, the error approaches that of the singular vectors; a late client starts afresh."""
    fed = images()
    at = cohort(fed, 1)
    v = torch.randn(fed.model.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = (LowRank(1).compress(v, at).unpack() - v).norm()
    warm, memory = Plain(PowerSGD(1)), ()
    errors = []
    for _ in range(40):
        packed, memory = warm.send(v, memory, at)
        errors.append(float((packed.unpack() - v).norm() / best))
    assert errors[0] > 1.01 and errors[-1] == pytest.approx(1, abs=1e-3)
    again, _ = warm.send(v, tuple(torch.zeros_like(m) for m in memory), at)
    assert torch.equal(again.unpack(), warm.send(v, (), at)[0].unpack())


def test_a_round_changes_no_state_before_it() -> None:
    algorithm = Compressed(FedAMD(lr=0.3, p=0.5), EF21Uplink(TOP), EF21P(TOP))
    fed = federation(F, WORK)
    found = [algorithm.init(torch.from_numpy(X0), cohort(fed, 0))]
    copies = [copy.deepcopy(found[0])]
    for t, S in enumerate(some(6, 3, T), 1):
        found.append(algorithm.round(found[-1], cohort(fed, t, np.array(S))))
        copies.append(copy.deepcopy(found[-1]))
    for state, at_the_time in zip(found, copies, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(tensors(state), tensors(at_the_time), strict=True))
    assert set(found[-1].nodes) == {"anchor", "miner"} and set(found[-1].public) == {"anchor", "miner"}


def test_whether_there_is_a_server_is_seen_through() -> None:
    assert has_server(Compressed(FedAvg())) is True and has_server(Compressed(DFedSAM())) is False
    assert has_server(object()) is True
