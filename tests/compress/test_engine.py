"""Compressors in the engine: the same on every backend, and charged what their bytes weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsim.clients import cohort
from fedsim.compress import RandK, TopK
from fedsim.engine.federation import Meter
from fedsim.errors import DivergenceError
from fedsim.messages.wire import encode
from tests.compress.algorithm import CompressedGradient
from tests.compress.cases import COMPRESSORS
from tests.contract.cases import BACKENDS, federation, initial, rounds


@pytest.mark.parametrize(
    ("name", "both"), [*((name, False) for name in COMPRESSORS), ("top 10 %", True), ("rand 3", True), ("QSGD", True)]
)
def test_backends_agree(name: str, both: bool) -> None:
    """float64, three rounds: the trajectory within 1e-12, the ledger to the byte."""
    algorithm = CompressedGradient(compressor=COMPRESSORS[name], both=both)
    feds = [federation(), federation(backend="blocks of 4")]
    meters = [Meter(fed) for fed in feds]
    loop, blocks = (rounds(algorithm, fed, meter=meter) for fed, meter in zip(feds, meters, strict=True))
    for one, other in zip(loop, blocks, strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-12)
    for direction in ("up", "down"):
        charged, other = (getattr(meter.ledger, direction) for meter in meters)
        assert (charged == other).all() and (charged > 0).all()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_client_pays_for_the_bytes_of_its_own_message(name: str) -> None:
    fed = federation(backend="blocks of 4", dtype=torch.float32)
    meter = Meter(fed)
    algorithm, clients = CompressedGradient(compressor=COMPRESSORS[name]), cohort(fed, 1, meter=meter)
    x = initial(fed)
    sent = clients.each(algorithm.client, x)
    clients.mean(sent)
    for row in range(6):
        message: Any = sent.stacked
        message = type(message)(message.by, tuple(part[row] for part in message.parts), message.d)
        assert meter.ledger.up[row] == len(encode(message, [algorithm.compressor]))


@pytest.mark.parametrize("backend", ["loop", *BACKENDS])
def test_draws_differ_between_clients_and_rounds_and_repeat(backend: str) -> None:
    """With a gradient of ones, what is sent shows the subset that was drawn."""

    def drawn(round: int) -> list[tuple[int, ...]]:
        sent = cohort(federation(backend=backend), round).each(
            lambda local, x: RandK(k=5).compress(torch.ones_like(x), local), torch.ones(100).double()
        )
        return [tuple(row.nonzero().ravel().tolist()) for row in sent.stacked.unpack()]

    assert drawn(1) == drawn(1) and len(set(drawn(1)) | set(drawn(2))) == 12


def test_a_client_that_diverges_is_named() -> None:
    fed = federation(backend="blocks of 4")
    fed.shards.x[int(fed.shards.offsets[2])] = np.inf
    algorithm = CompressedGradient(compressor=TopK(k=1))
    with pytest.raises(DivergenceError, match=r"client 2 sent NaN or infinity \(1 of 6 clients\)"):
        algorithm.round(algorithm.init(initial(fed), cohort(fed, 0)), cohort(fed, 1))
