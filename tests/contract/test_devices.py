"""A GPU means the same: the trajectory and the ledger of the CPU, to the last bits of double precision."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import FedAvg
from benchmarks.robust import label, rules
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.optimizers import OPTIMIZERS
from fedsim.models.losses import cross_entropy
from fedsim.robust.rule import RobustRule
from tests.contract.cases import ALGORITHMS, federation, gap, play, rounds
from tests.contract.test_backends import agree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SAMPLE = [
    "FedAvg momentum", "FedAdam", "SCAFFOLD II", "FedSpeed", "FedAMD half", "FedAvg median", "DFedSAM", "EF21",
    "MARINA", "DIANA", "FedBuff", "SCAFFOLD, EF14", "FedAvg, PowerSGD", "DFedSAM, CHOCO", "FedOpt, geometric median",
    "SCAFFOLD, clipped", "FedAvg, PowerSGD, lost", "DFedAvg, self-centred",
]  # fmt: skip
"""At least one of every kind: central, gossip, compressed, asynchronous, robust and attacked."""
CHOSEN = list(ALGORITHMS) if os.environ.get("FEDSIM_LONG") else SAMPLE


def mean(device: str, algorithm: str, **settings: Any) -> None:
    here = play(algorithm, device="cpu", **settings)
    agree(play(algorithm, device=device, **settings), here, 1e-12)


@pytest.mark.parametrize("backend", ["loop", "blocks of 4"])
@pytest.mark.parametrize("algorithm", CHOSEN)
def test_algorithms(algorithm: str, backend: str) -> None:
    mean("cuda", algorithm, backend=backend)


@pytest.mark.parametrize("backend", ["loop", "blocks of 4"])
@pytest.mark.parametrize("work", ["steps", "whole shard"])
@pytest.mark.parametrize("model", ["convolutional", "tied tokens", "mixing"])
def test_models(model: str, work: str, backend: str) -> None:
    mean("cuda", "FedSpeed", model=model, work=work, backend=backend)


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimisers_and_layers_with_chance_or_statistics(optimizer: Any, backend: Any) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layers = nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3)
        module = nn.Sequential(nn.Flatten(), *layers)
        model = Model(module, cross_entropy, device=device, dtype=torch.float64)
        work = LocalWork(batch_size=7, epochs=2, optimizer=optimizer())
        fed = replace(federation(device=device, work=work), model=model, backend=backend)
        examine(model, Split(fed.shards.x, fed.shards.y))
        state = FedAvg().init(model.vector(), cohort(fed, 0))
        for round in (1, 2):
            state = FedAvg().round(state, cohort(fed, round, np.array([1, 2, 4])))
        ends.append(state.x)
    assert gap(*ends) <= 1e-12


@pytest.mark.parametrize("rule", rules(3), ids=label)
def test_robust_rules(rule: RobustRule) -> None:
    x = torch.randn(15, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:3] *= 50                                            # what the rules are for
    there = rule(x.cuda())
    assert there.is_cuda and gap(there, rule(x)) <= 1e-12


def test_the_state_is_on_the_gpu() -> None:
    """Or the comparisons above would compare the CPU with itself."""
    *_, state = rounds(ALGORITHMS["SCAFFOLD II"], federation(device="cuda"))
    assert state.x.is_cuda and all(row.is_cuda for row in state.c_i.rows.values())
    assert gap(state.x, play("SCAFFOLD II", device="cpu").states[-1].x) <= 1e-12
