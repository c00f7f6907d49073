"""Messages that are added up as clients finish: the bits of a stack, and the messages themselves for who asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Local
from fedsim.algorithm import has_server
from fedsim.clients import cohort
from fedsim.compress import TopK
from fedsim.engine import collected
from fedsim.engine.federation import Federation, Meter
from fedsim.errors import DivergenceError
from fedsim.messages.stacked import Stacked
from fedsim.messages.summed import Summed
from fedsim.values import Packed
from tests.contract.cases import ALGORITHMS, federation, rounds, same_bits

BACKENDS = ["loop", "loop on 2 threads", "blocks of 2", "blocks of 4", "blocks of 2 on 2 threads"]


def server(backend: str) -> Federation:
    return replace(federation(backend=backend, dtype=torch.float32), topology=None)


def played(algorithm: str, backend: str) -> tuple[list[Any], Meter]:
    fed = server(backend)
    meter = Meter(fed)
    return list(rounds(ALGORITHMS[algorithm], fed, meter=meter)), meter


def agree(algorithm: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> Meter:
    stacked, costs = played(algorithm, backend)
    monkeypatch.setattr(collected, "SUMMED_FROM", 0)
    summed, meter = played(algorithm, backend)
    assert all(same_bits(a, b) for a, b in zip(stacked, summed, strict=True))
    for name, charged in costs.ledger.snapshot().items():
        assert torch.equal(charged, meter.ledger.snapshot()[name]), name
    return meter


@pytest.mark.parametrize("algorithm", [name for name, method in ALGORITHMS.items() if has_server(method)])
def test_every_method_has_the_bits_and_the_ledger_of_a_stack(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(algorithm, "blocks of 2", monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("algorithm", ["SCAFFOLD II", "EF21", "FedNova"])
def test_sums_do_not_depend_on_blocks_and_threads(
    algorithm: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not agree(algorithm, backend, monkeypatch).read, "no client runs twice for a mean"


def squares(local: Local, x: Tensor) -> tuple[Tensor, ...]:
    return (x * local.steps,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_reads_the_messages_gets_them_and_is_remembered(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collected, "SUMMED_FROM", 0)
    fed = server(backend)
    meter, x = Meter(fed), fed.model.zeros() + 1
    clients = cohort(fed, 1, meter=meter)
    sent = clients.each(squares, x)
    assert isinstance(sent.messages, Summed)
    charged = meter.ledger.gradient_evaluations.copy()
    rows = clients.reduce(sent, lambda rows, w: rows[0])
    assert torch.equal(rows[:, 0], torch.from_numpy(fed.work.counts(fed.shards.sizes)).float())
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, charged)
    assert meter.read == {"squares"}
    assert isinstance(cohort(fed, 2, meter=meter).each(squares, x).messages, Stacked), "they will be read again"


def test_factors_are_of_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = server("blocks of 2")
    factors, x = np.arange(fed.shards.n, dtype=float), fed.model.zeros() + 1
    clients = cohort(fed, 1)
    expected = clients.mean(clients.each(squares, x), factors)
    monkeypatch.setattr(collected, "SUMMED_FROM", 0)
    (mean,), (of_stack,) = clients.mean(clients.each(squares, x), factors), expected
    assert torch.equal(mean, of_stack)


def spoiled(local: Local, x: Tensor) -> Tensor:
    return x / (local.steps - local.steps.clamp(max=3))


def test_an_error_names_the_clients_whose_message_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = server("blocks of 2")
    messages = []
    for least in (2**40, 0):
        monkeypatch.setattr(collected, "SUMMED_FROM", least)
        with pytest.raises(DivergenceError, match="client") as caught:
            cohort(fed, 1).each(spoiled, fed.model.zeros() + 1)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_sizes_of_compressed_messages_are_of_each_client() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    by = TopK(k=4)
    packed = Packed(by, torch.vmap(lambda row: tuple(by.compress(row, None).parts))(rows), 40)  # type: ignore[arg-type]
    w, order = torch.tensor([0.1, 0.3, 0.2, 0.3, 0.1], dtype=torch.float64), [3, 0, 4, 1, 2]
    whole = Stacked(packed, np.array(order))
    sums = Summed(w, order, rows.device, lambda: whole)
    for start in (0, 2, 4):
        some = order[start : start + 2]
        sums.put(sums.part(Packed(by, tuple(part[some] for part in packed.parts), 40), start), some)
    assert torch.equal(sums.mean(w), whole.mean(w))
    np.testing.assert_array_equal(sums.sizes(), whole.sizes())
    np.testing.assert_array_equal(sums.paper_bits(), whole.paper_bits())
