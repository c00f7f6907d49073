"""The local step against ``torch.optim.SGD`` and ``clip_grad_norm_`` on a network, over the same minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithms import FedAvg
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy

OFFSETS = np.array([0, 13, 20, 41])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(41, 6, dtype=torch.float64), torch.randint(0, 3, (41,))


@pytest.mark.parametrize("backend", [Loop(), Blocks(3)], ids=["loop", "blocks"])
@pytest.mark.parametrize(
    ("momentum", "weight_decay", "clip_norm"),
    [(0.0, 0.0, None), (0.9, 0.0, None), (0.0, 0.1, None), (0.0, 0.0, 0.2), (0.9, 0.1, 0.2), (0.5, 0.1, 100.0)],
)
def test_fedavg_is_torch_sgd_at_every_client(
    momentum: float, weight_decay: float, clip_norm: float | None, backend: Any
) -> None:
    x, y = data()
    work = LocalWork(batch_size=5, epochs=3, weight_decay=weight_decay, clip_norm=clip_norm)
    fed = Federation(Model(network(), cross_entropy, dtype=torch.float64), Shards(x, y, OFFSETS), work, 7, backend)
    start = fed.model.vector()
    ours = start + cohort(fed, 1).each(FedAvg(lr=0.3, momentum=momentum).client, start).stacked
    clipped = 0
    for i, plan in enumerate(minibatches(work, fed.shards, 7, 1, np.arange(3))):
        net = network()
        sgd = torch.optim.SGD(net.parameters(), lr=0.3, momentum=momentum, weight_decay=weight_decay)
        for rows, length in zip(plan.index, plan.lengths, strict=True):
            sgd.zero_grad()
            F.cross_entropy(net(x[rows[:length]]), y[rows[:length]]).backward()
            if clip_norm is not None:
                clipped += int(nn.utils.clip_grad_norm_(net.parameters(), clip_norm) > clip_norm)
            sgd.step()
        theirs = nn.utils.parameters_to_vector(net.parameters()).detach()
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-14)
        assert (theirs - start).abs().max() > 1e-2
    assert (clipped > 0) == (clip_norm == 0.2)


@pytest.mark.parametrize("backend", [Loop(), Blocks(3)], ids=["loop", "blocks"])
def test_the_buffer_starts_at_zero_in_every_round(backend: Any) -> None:
    """One step a round: then momentum has nothing to remember."""
    x, y = data()
    models = []
    for momentum in (0.0, 0.9):
        model = Model(network(), cross_entropy, dtype=torch.float64)
        fed = Federation(model, Shards(x, y, OFFSETS), LocalWork(0), 7, backend)
        algorithm = FedAvg(lr=0.3, momentum=momentum)
        state = algorithm.init(fed.model.vector(), cohort(fed, 0))
        for t in (1, 2, 3):
            state = algorithm.round(state, cohort(fed, t))
        models.append(state.x)
    torch.testing.assert_close(models[0], models[1], rtol=0, atol=1e-15)
