"""Networks known layer by layer: which are recognised, and that blocks of them do what the loop does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg, FedSAM
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy

SIZES = np.array([3, 17, 8, 16, 5, 8])
OFFSETS = np.r_[0, np.cumsum(SIZES)]
WORDS = 11


class Layers(nn.Module):
    tokens = False

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)                        # registered before its use
        self.first, self.middle = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.norm, self.groups = nn.LayerNorm(6), nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(0.4)

    def head(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x)
        return out


class Residual(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.first(x.flatten(1))))
        x = x + torch.tanh(self.groups(self.middle(x)))
        return self.head(x)


class InPlace(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x.view(x.size(0), -1))), inplace=True)
        return self.head(self.groups(torch.add(self.middle(x), x)))


class Twice(Layers):
    """A layer of two uses, and dropout in a branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.flatten(1)))
        x = x + self.drop(self.middle(x))
        return self.head(self.groups(F.silu(self.middle(x)) + x))


class Unused(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.flatten(1)))


class Nested(nn.Module):
    tokens = False

    def __init__(self) -> None:
        super().__init__()
        norms = nn.LayerNorm(6, elementwise_affine=False), nn.GroupNorm(2, 6, 0.1)
        dense = nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Flatten(), norms[0], *dense, norms[1], nn.Identity())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x) + x)
        return out


class Words(nn.Module):
    tokens = True

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.table, self.norm, self.mix = nn.Embedding(WORDS, 4, padding_idx=padding), nn.LayerNorm(4), nn.Linear(4, 4)
        self.groups, self.head = nn.GroupNorm(3, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = h + torch.relu(self.groups(self.mix(self.norm(h))))
        out: Tensor = self.head(h.mean(dim=1))
        return out


class Padded(Words):
    def __init__(self) -> None:
        super().__init__(padding=2)


class PaddedAsWritten(Padded):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * 2
        return out


class Spread(Layers):
    """A sum that PyTorch broadcasts over samples."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.head(self.norm(self.middle(x)) + x.mean(0))


class Columns(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)) + x.mean(-1))


class Overwritten(Layers):
    """Another branch sees what ReLU writes."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(F.relu(x, inplace=True) + self.middle(x))


class Doubled(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)) * 2)


class Clipped(nn.Module):
    tokens = True

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).mean(1))
        return out


def federation(network: Any, backend: Backend, **work: Any) -> Federation:
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (int(OFFSETS[-1]), 6)) if network.tokens else torch.randn(int(OFFSETS[-1]), 6).double()
    y = torch.randint(0, 3, (int(OFFSETS[-1]),))
    model = Model(network(), cross_entropy, dtype=torch.float64)
    for p in model.parameters:
        p.data += 0.1 * torch.randn_like(p)                # norms of layers do not begin with ones
    return Federation(model, Shards(x, y, OFFSETS), LocalWork(**work), 7, backend)


def after_rounds(fed: Federation, method: Any) -> tuple[Tensor, int]:
    state = method.init(fed.model.vector(), cohort(fed, 0))
    for round in (1, 2):
        state = method.round(state, cohort(fed, round))
    x: Tensor = state.x
    return x, len(fed.model.layered._fits) if fed.model.layered else -1


KNOWN = [Residual, InPlace, Twice, Unused, Nested, Words, Padded]


@pytest.mark.parametrize("network", KNOWN)
@pytest.mark.parametrize("method", [FedAvg(lr=0.3), FedSAM(lr=0.3)], ids=["FedAvg", "FedSAM"])
def test_blocks_do_as_the_loop(network: Any, method: Any) -> None:
    for work in ({"batch_size": 4, "epochs": 2}, {"batch_size": 4, "steps": 3, "clip_norm": 0.1}):
        want, _ = after_rounds(federation(network, Loop(), **work), method)
        got, used = after_rounds(federation(network, Blocks(4), **work), method)
        assert used > 0
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", [network for network in KNOWN if network is not Padded])
def test_their_gradients_are_those_under_vmap(network: Any) -> None:
    fed = federation(network, Loop(), batch_size=4)
    model, layered = fed.model, fed.model.layered
    assert layered is not None
    xs = model.vector() + 0.1 * torch.randn(3, model.d, dtype=torch.float64)
    batch = fed.shards.rows(1)._replace(key=None)
    stacked = batch._replace(x=torch.stack([batch.x] * 3), y=torch.stack([batch.y] * 3), key=torch.arange(3)[:, None])
    got = model.gradients(xs, stacked)
    model.layered = None
    torch.testing.assert_close(got, model.gradients(xs, stacked), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", [Padded, PaddedAsWritten])
def test_the_row_for_padding_is_not_trained_in_blocks(network: Any) -> None:
    """``torch.vmap`` alone would train it."""
    fed = federation(network, Blocks(4), batch_size=4, epochs=1)
    before = fed.model.vector()
    x, _ = after_rounds(fed, FedAvg(lr=0.3))
    table = (x - before)[: 4 * WORDS].view(WORDS, 4)
    assert (table[2] == 0).all() and (table[[0, 1, 3]] != 0).all()
    assert (fed.model.layered is None) == (network is PaddedAsWritten)


@pytest.mark.parametrize("network", [Spread, Overwritten, Doubled, Clipped])
def test_other_modules_run_as_written(network: Any) -> None:
    assert Model(network(), cross_entropy).layered is None


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_a_first_batch_contradicts_runs_as_written() -> None:
    """Only shapes tell that a sum is not one of the samples' own."""
    fed = federation(Columns, Loop(), batch_size=6)
    layered = fed.model.layered
    assert layered is not None and not layered.takes(torch.randn(2, 6, 6, dtype=torch.float64))
    assert not layered.takes({"x": torch.ones(1)})


def test_dense_chains_keep_their_stack() -> None:
    model = Model(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), cross_entropy)
    assert model.dense is not None and model.layered is None


def test_probing_leaves_the_module_as_it_was() -> None:
    model = federation(Twice, Loop(), batch_size=4).model
    before, x = model.vector(), torch.randn(1, 2, 6, dtype=torch.float64)
    assert model.layered is not None and model.layered.takes(x)
    assert torch.equal(model.vector(), before) and all(layer.training for layer in model.module.modules())
