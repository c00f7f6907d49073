"""Kernels: what computes a model changes rounding alone, and nothing outside of a round."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim.clients import cohort
from fedsim.engine import kernels
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.kernels import KERNELS, Kernels, variations
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy

MET: set[tuple[bool, str]] = set()


def precision() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)    # type: ignore[attr-defined]


class Watched(nn.Module):
    """A convolution that notes the layout of its inputs and the kernels of products."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))

    def forward(self, x: Tensor) -> Tensor:
        MET.add((x.is_contiguous(memory_format=torch.channels_last), precision()))
        out: Tensor = self.body(x)
        return out


def federation(backend: Backend) -> Federation:
    torch.manual_seed(0)
    data = Shards(torch.randn(60, 3, 8, 8), torch.randint(0, 10, (60,)), np.array([0, 10, 30, 60]))
    return Federation(Model(Watched(), cross_entropy), data, LocalWork(8, epochs=2), 0, backend)


def trained(backend: Backend) -> tuple[Tensor, Model]:
    fed, method = federation(backend), FedAvg(0.1)
    MET.clear()
    state = method.init(fed.model.vector(), cohort(fed, 0))
    for round in (1, 2):
        state = method.round(state, cohort(fed, round))
    return state.x, fed.model


@pytest.mark.parametrize("make", [Loop, partial(Blocks, 1)], ids=["loop", "blocks of 1"])
@pytest.mark.parametrize("threads", [0, 2])
def test_kernels_change_rounding_alone(make: Any, threads: int) -> None:
    expected, _ = trained(Loop())
    for chosen in KERNELS:
        x, model = trained(make(threads, chosen))
        assert (x - expected).abs().max() < 1e-6
        assert {(chosen.channels_last is not False, "bf16" if chosen.onednn else "none")} == MET
        assert model.channels_last and precision() == "none"


def test_an_error_leaves_no_kernels_behind() -> None:
    model = federation(Loop()).model
    with pytest.raises(RuntimeError), Kernels(False, True).used_by([model]):
        raise RuntimeError
    assert model.channels_last and precision() == "none"


def test_names_are_read_back() -> None:
    assert [Kernels.of(chosen.names) for chosen in KERNELS] == KERNELS


def test_products_that_round_their_operands_are_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN's do on a processor with instructions for bfloat16 products."""
    model = federation(Loop()).model
    try:
        kernels.onednn_is_exact.cache_clear()
        monkeypatch.setattr(kernels, "_by_onednn", lambda: torch.autocast("cpu", torch.bfloat16))
        assert variations(model) == [{"channels_last": False}]
        kernels.onednn_is_exact.cache_clear()
        monkeypatch.setattr(kernels, "_by_onednn", lambda: torch.autocast("cpu", enabled=False))
        assert variations(model) == [{"channels_last": False}, {"onednn": True}]
    finally:
        kernels.onednn_is_exact.cache_clear()
    double = Model(nn.Linear(2, 2), cross_entropy, dtype=torch.float64)
    assert variations(double) == []
