"""BatchNorm is replaced by GroupNorm wherever it stands, with its weights; the result trains on every backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim import Experiment, FixedSize, LocalWork
from fedsim.clients import cohort
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import snapshot
from fedsim.engine.federation import Federation
from fedsim.engine.loop import Loop
from fedsim.errors import ModelError
from fedsim.models import group_norm
from fedsim.partition import DirichletPartitioner


class Block(nn.Module):
    """A residual block as published networks have them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after, eps=1e-3))
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        Block(1, 32), Block(32, 6), nn.Flatten(), nn.Linear(384, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10)
    )  # fmt: skip
    for p in net.parameters():                             # other weights than the initial 1 and 0
        nn.init.normal_(p, std=0.2)
    return net


def test_every_batch_norm_becomes_a_group_norm_of_the_same_weights() -> None:
    net = network()
    made = group_norm(net)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in made.modules())
    norms = {name: layer for name, layer in made.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert {name: (layer.num_groups, layer.num_channels, layer.eps, layer.affine) for name, layer in norms.items()} == {
        "0.body.1": (2, 32, 1e-3, True), "0.shortcut.1": (2, 32, 1e-5, False), "1.body.1": (1, 6, 1e-3, True),
        "1.shortcut.1": (1, 6, 1e-5, False), "4": (3, 48, 1e-5, True),
    }  # fmt: skip
    before, after = dict(net.named_parameters()), dict(made.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not {id(p) for p in before.values()} & {id(p) for p in after.values()}, "a copy: the old one stays"
    assert isinstance(net[4], nn.BatchNorm1d)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (7, 1), (16, 1), (100, 5), (512, 32), (2048, 32)])
def test_no_group_is_so_small_that_it_loses_its_values(channels: int, groups: int) -> None:
    made = group_norm(nn.BatchNorm1d(channels))
    assert isinstance(made, nn.GroupNorm) and made.num_groups == groups
    x = torch.randn(4, channels)
    assert channels == 1 or float(made(x).detach().abs().max()) > 0.5


def test_a_layer_that_is_used_twice_stays_one() -> None:
    norm = nn.BatchNorm1d(4)
    made = group_norm(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm))
    assert isinstance(made[1], nn.GroupNorm) and made[1] is made[3]  # type: ignore[index]


def test_what_cannot_be_replaced() -> None:
    with pytest.raises(ModelError, match=r"layer '1' is LazyBatchNorm1d without a shape"):
        group_norm(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()))
    with pytest.raises(ModelError, match="groups is 0"):
        group_norm(nn.BatchNorm1d(4), 0)


SMALL = Experiment(
    FedAvg(lr=0.1), partition=DirichletPartitioner(5, alpha=0.3, min_partition_size=3), sampling=FixedSize(1.0),
    local=LocalWork(8, steps=3), dtype="float64",
)  # fmt: skip


def trained(module: nn.Module, backend: Any) -> tuple[Federation, Tensor]:
    fed = replace(prepare(replace(SMALL, model=module), 0).federation, backend=backend)
    return fed, FedAvg(lr=0.1).round(FedAvg().init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1)).x


@pytest.mark.parametrize("way", ["group norm", "frozen"])
def test_both_ways_out_train_alike_on_loop_and_blocks(way: str) -> None:
    if way == "frozen":
        net = network()
        net.train()(torch.randn(64, 1, 8, 8))                 # statistics from somewhere else
        net.eval()
    else:
        net = group_norm(network())  # type: ignore[assignment]
    fed, loop = trained(net, Loop())
    assert (loop - fed.model.vector()).isfinite().all() and not fed.model.mixes
    before = snapshot(fed.model)
    _, blocks = trained(net, Blocks(3))
    torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-12)
    assert not before.differences(snapshot(fed.model))
