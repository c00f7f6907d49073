"""Modules of one's own that amount to a chain of dense layers: which are recognised, and that their gradients agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy
from fedsim.types import Local
from tests.engine.test_replay import federation, run


class Layers(nn.Module):
    """Layers whose order of registration is not that of use."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)
        self.first = nn.Linear(6, 5)
        self.middle = nn.Linear(5, 5, bias=False)
        self.drop = nn.Dropout(0.4)


class Functions(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        x = torch.tanh(self.first(x))
        out: Tensor = self.last(self.middle(x).relu())
        return out


class Shapes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.reshape(x.shape[0], -1)), inplace=True)
        out: Tensor = self.last(self.drop(torch.sigmoid(self.middle(x))))
        return out


class Known(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x.view(-1, 6))), 0.3, self.training)
        out: Tensor = self.last(self.middle(x))
        return out


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Identity())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Residual(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        out: Tensor = self.last(self.middle(x) + x)
        return out


class Branching(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        out: Tensor = self.last(self.middle(x if self.training else x * 2))
        return out * 1.0 if x.sum() > 0 else out


class Twice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.middle(self.first(x.flatten(1)))))
        return out


class Unused(Layers):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x.flatten(1)))
        return out


class Normalised(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.last(self.middle(self.first(x.flatten(1)))), 1)


class Remembers(Layers):
    seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        out: Tensor = self.last(self.middle(self.first(x.flatten(1))))
        return out


class Hooked(Functions):
    def __init__(self) -> None:
        super().__init__()
        self.middle.register_forward_hook(lambda module, given, out: 2 * out)


class Wide(Layers):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first(x.mT.flatten(1))))   # another order of the inputs
        return out


class Half(Layers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.first(x.flatten(1))
        out: Tensor = self.last(self.middle(h))
        return out


def patched() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    module.forward = lambda x: module[3](torch.tanh(module[1](x.flatten(1))))  # type: ignore[method-assign]
    return module


def hooked_by_gradients() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    module[3].register_full_backward_hook(lambda layer, given, out: (given[0] * 2,))
    return module


class HookedInside(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        if h.requires_grad:                                # in evaluation it does not
            h.register_hook(lambda g: -0.5 * g)
        out: Tensor = self.last(self.middle(h))
        return out


def client(local: Local, x: Tensor) -> Tensor:
    return local.fold(lambda y, batch: y - 0.3 * local.grad(y, batch), x)


@pytest.mark.parametrize("network", [Functions, Shapes, Known, Nested])
@pytest.mark.parametrize("size", [1, 4])
def test_chains_run_as_stacks(network: Any, size: int) -> None:
    for work in (LocalWork(4, epochs=2), LocalWork(4, steps=3, clip_norm=0.1)):   # on weights; by gradients
        settings = work, network
        assert federation(Loop(), *settings).model.dense is not None
        (want, charged), (got, also) = run(client, Loop(), *settings), run(client, Blocks(size), *settings)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        assert (charged == also).all()


@pytest.mark.parametrize("network", [Residual, Branching, Twice, Unused, Normalised, Hooked, Wide, Half])
def test_other_modules_run_as_written(network: Any) -> None:
    assert Model(network(), cross_entropy).dense is None


@pytest.mark.parametrize("network", [Half, patched, hooked_by_gradients, HookedInside])
def test_gradients_are_those_of_forward_as_written(network: Any) -> None:
    fed = federation(Loop(), LocalWork(4, epochs=2), network)
    examine(fed.model, Split(fed.shards.x, fed.shards.y))
    x = fed.model.vector()
    want, got = (
        clients.mean(clients.each(client, x))
        for clients in (cohort(replace(fed, backend=backend), 1) for backend in (Loop(), Blocks(3)))
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_tracing_leaves_module_and_generator_alone() -> None:
    module = Remembers()
    before = torch.get_rng_state()
    assert Model(module, cross_entropy).dense is not None
    assert module.seen is None and module.training
    assert torch.equal(torch.get_rng_state(), before)
