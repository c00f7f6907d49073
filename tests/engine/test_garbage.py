"""A round frees its tensors as it ends: none waits for the garbage collector, which seldom runs for few large ones."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from algorithms import FedAvg, FedSpeed, Scaffold
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.optimizers import Adam
from tests.engine.test_replay import federation


@pytest.mark.parametrize("backend", [Loop(), Loop(threads=2), Blocks(4), Blocks(2, threads=2)], ids=repr)
@pytest.mark.parametrize(
    ("algorithm", "work"),
    [
        (FedAvg(), LocalWork(8, epochs=2)),
        (FedAvg(), LocalWork(8, optimizer=Adam())),
        (Scaffold(), LocalWork(8, clip_norm=0.3)),
        (FedSpeed(), LocalWork(8, micro_batch=3)),
    ],
    ids=["FedAvg", "Adam", "Scaffold", "FedSpeed"],
)
def test_rounds_leave_no_tensors_in_circles(algorithm: Any, work: LocalWork, backend: Any) -> None:
    fed = federation(backend, work)
    state = algorithm.round(algorithm.init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1))   # the first records
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        algorithm.round(state, cohort(fed, 2))
        gc.collect()
        left = [tuple(t.shape) for t in gc.garbage if isinstance(t, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left
