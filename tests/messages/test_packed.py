"""Messages that a compressor made: unpacked where they are read, charged at their own size, the same in every backend;
and memories that live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.messages import stacked
from fedsim.messages.stacked import Stacked
from fedsim.messages.wire import decode, encode, nbytes, paper_bits
from fedsim.types import Kept, Local, Sent, joined
from fedsim.values import Far, Packed, Site
from tests.test_clients import D, X, federation
from topologies import Ring, Static

EACH_BACKEND = pytest.mark.parametrize("backend", [Loop(), Blocks(2), Blocks(25)], ids=["loop", "blocks2", "blocks25"])


@dataclass(frozen=True)
class Chance:
    """Keeps a random half of the entries; the bytes of a message depend on how many are not zero."""

    def compress(self, x: Tensor, at: Site) -> Packed:
        return Packed(self, (x * (seeds.uniform_of(at.key(3), len(x)) < 0.5),), len(x))

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return parts[0]

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return 8 * (parts[0] != 0).sum(-1)

    def encode(self, parts: tuple[Tensor, ...], d: int) -> bytes:
        kept = parts[0].nonzero()[:, 0]
        return bytes(b for i in kept.tolist() for b in (i, *parts[0][i].float().numpy().tobytes(), 0, 0, 0))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x = torch.zeros(d, dtype=dtype)
        for at in range(0, len(data), 8):
            x[data[at]] = float(np.frombuffer(data[at + 1 : at + 5], np.float32)[0])
        return (x,)

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return 32 * (parts[0] != 0).sum(-1)

    def alpha(self, d: int) -> float | None:
        return 0.5

    def omega(self, d: int) -> float | None:
        return None


def client(local: Local, x: Tensor) -> tuple[Packed, Tensor]:
    return Chance().compress(torch.cat([local.grad(x)] * 8), local), x.sum()


def seen(i: int, backend: Any = None) -> Tensor:
    """The vector that the server reads from client ``i``."""
    (packed, _) = cohort(federation(backend or Loop()), 1, np.array([i])).each(client, X).stacked
    row: Tensor = packed.unpack()[0]
    return row


@EACH_BACKEND
@pytest.mark.parametrize("numbers", [1, 2**22])
def test_the_mean_is_that_of_the_vectors(backend: Any, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "UNPACKED_NUMBERS", numbers)
    clients = cohort(federation(backend), 1, np.array([0, 2, 3]))
    mean, total = clients.mean(clients.each(client, X))
    torch.testing.assert_close(mean, (seen(0) + seen(2) + seen(3)) / 3, rtol=0, atol=1e-14)
    torch.testing.assert_close(total, X.sum())
    assert (seen(0) == 0).any() and not torch.equal(seen(0) == 0, seen(2) == 0), "each client draws its own"


@EACH_BACKEND
def test_every_client_pays_for_its_own_message(backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    clients = cohort(fed, 1, meter=meter)
    clients.mean(clients.each(client, X))
    expected = [1 + 2 + 11 + 8 * int((seen(i) != 0).sum()) + 2 + 8 for i in range(5)]
    assert meter.ledger.up.tolist() == expected and len(set(expected)) > 1


@EACH_BACKEND
def test_bits_as_papers_count_them(backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    clients = cohort(fed, 1, meter=meter)
    clients.mean(clients.each(client, X))
    assert meter.ledger.paper_bits.tolist() == [32 * int((seen(i) != 0).sum()) + 32 for i in range(5)]
    flags = (torch.ones(3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.int8), torch.ones(5, dtype=torch.float64))
    assert paper_bits(flags) == 3 + 4 * 8 + 5 * 32


@EACH_BACKEND
def test_messages_one_by_one_and_weighted_by_factors(backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    clients = cohort(fed, 1, np.array([0, 2, 3]), meter=meter)
    sent = clients.each(client, X)
    vectors, totals, weights = clients.reduce(sent, lambda rows, weights: (*rows, weights))
    assert torch.equal(vectors, torch.stack([seen(i) for i in (0, 2, 3)])) and totals.shape == (3,)
    assert weights.tolist() == pytest.approx([1 / 3] * 3)
    once = meter.ledger.up.copy()
    mean, _ = clients.mean(sent, np.array([1.0, 9.0, 0.5, 2.0, 9.0]))
    torch.testing.assert_close(mean, (seen(0) + 0.5 * seen(2) + 2 * seen(3)) / 3, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(meter.ledger.up, once, err_msg="an upload is paid once")


def test_the_servers_step_follows_the_schedule() -> None:
    fed = replace(federation(), decay=lambda round: 0.5**round)
    assert float(cohort(fed, 3).decay) == 0.125 and cohort(fed, 3).decay.dtype == fed.model.dtype


def test_rules_see_vectors() -> None:
    clients = cohort(federation(), 1)
    sent = clients.each(lambda local, x: client(local, x)[0], X)
    assert torch.equal(clients.reduce(sent, lambda rows, weights: rows[4]), seen(4))


def test_the_wire_carries_the_compressors_own_bytes() -> None:
    packed = Packed(Chance(), (torch.tensor([0.0, 1.5, 0.0, -2.0]),), 4)
    data = encode((packed, torch.ones(2)), [Chance()])
    assert len(data) == nbytes((packed, torch.ones(2))) and Chance().encode(packed.parts, 4) in data
    received, ones = decode(data, [Chance()], 4)
    assert torch.equal(received.unpack(), packed.unpack()) and torch.equal(ones, torch.ones(2))
    with pytest.raises(ValueError, match=r"by compressor 0; expected .* one of 0 compressors"):
        decode(data)
    for cut in range(len(data)):
        with pytest.raises(ValueError):
            decode(data[:cut], [Chance()], 4)
    with pytest.raises(ValueError, match="of length 4; expected 3 at most"):
        decode(data, [Chance()], 3)


def test_compressed_gossip() -> None:
    fed = federation(topology=Static(Ring()))
    meter = Meter(fed)
    clients = cohort(fed, 1, meter=meter)
    sent = clients.each(lambda local, x: client(local, x)[0], X)
    mixed = clients.mix(sent)
    torch.testing.assert_close(mixed[2], (seen(1) + seen(2) + seen(3)) / 3, rtol=0, atol=1e-14)
    sizes = np.array([1 + 11 + 8 * int((seen(i) != 0).sum()) for i in range(5)])
    assert meter.ledger.up.tolist() == (2 * sizes).tolist(), "to two neighbours"
    assert meter.ledger.paper_bits.tolist() == [64 * int((seen(i) != 0).sum()) for i in range(5)]
    heard = [int(sizes[i - 1] + sizes[(i + 1) % 5]) for i in range(5)]
    assert (meter.ledger.down - nbytes(X)).tolist() == heard, "X came first"
    with pytest.raises(ConfigError, match="2 gossip steps of a compressed message"):
        clients.mix(sent, 2)


@EACH_BACKEND
def test_keys_are_a_function_of_seed_round_node_and_tag(backend: Any) -> None:
    def keys(round: int = 1, tag: int = 0, seed: int = 7) -> list[int]:
        fed = replace(federation(backend), seed=seed)
        return list(cohort(fed, round).each(lambda local, x: local.key(tag), X).stacked.tolist())

    assert keys() == keys() and len(set(keys() + keys(2) + keys(tag=1) + keys(seed=8))) == 4 * 5
    loop = cohort(federation(Loop()), 1).each(lambda local, x: local.key(), X).stacked
    assert loop.dtype == torch.int64 and loop.tolist() == keys()


def test_the_servers_coin_and_key() -> None:
    fed = federation()
    tosses = [cohort(fed, round).toss(0.3) for round in range(1000)]
    assert 250 < sum(tosses) < 350 and tosses == [cohort(fed, round, np.array([2])).toss(0.3) for round in range(1000)]
    assert cohort(fed, 1).key() != cohort(fed, 2).key() and cohort(fed, 1).key() != cohort(fed, 1).key(1)
    assert cohort(fed, 1).shapes == tuple(fed.model.shapes) and sum(s.numel() for s in fed.model.shapes) == D


class Elsewhere(Far):
    """A tensor that counts how often it is fetched."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.shape, self.dtype, self.fetches = value, value.shape, value.dtype, 0

    def fetch(self) -> Tensor:
        self.fetches += 1
        return self.value


def test_memories_stay_where_they_are_until_they_are_read() -> None:
    far = [Elsewhere(torch.full((2,), float(i))) for i in range(3)]
    kept = Kept(3, torch.zeros(2), {0: far[0], 2: far[2]}) | Kept(3, torch.zeros(2), {1: far[1]})
    pairs = joined([kept, Kept(3, torch.zeros(()), {1: torch.ones(())})], np.arange(3))
    assert [f.fetches for f in far] == [0, 0, 0]
    assert kept[1].tolist() == [1, 1] and pairs is not None and [t.tolist() for t in pairs[2]] == [[2, 2], 0]
    assert [f.fetches for f in far] == [0, 1, 1]


@EACH_BACKEND
def test_clients_read_memories_from_elsewhere(backend: Any) -> None:
    clients = cohort(federation(backend), 1)
    memory = Kept(5, torch.zeros(D), {i: Elsewhere(torch.full((D,), float(i))) for i in range(5)})
    sent, after = clients.each(lambda local, x, m: (x + m, m + 1), X, memory)
    assert sent.stacked[:, 0].tolist() == (X[0] + torch.arange(5)).tolist()
    assert [float(after[i][0]) for i in range(5)] == [1, 2, 3, 4, 5]


def test_a_sent_value_can_be_made_by_hand() -> None:
    sent = Sent(np.array([1, 3]), Stacked(torch.ones(2, 4)))
    assert sent.messages.sizes().tolist() == [nbytes(torch.ones(4))] * 2
