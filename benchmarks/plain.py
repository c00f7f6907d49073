"""The loop that people write by hand, as the baseline: one module, ``load_state_dict``, ``torch.optim.SGD``.

Batches are indexed from one tensor: no data loader, no copies of the module, no metrics. It is the fastest form that is
still the usual code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.engine.local_work import Shards


def fedavg_round(
    module: nn.Module, shards: Shards, ids: np.ndarray, batch_size: int, lr: float = 0.1, rho: float | None = None
) -> Callable[[], dict[str, Tensor]]:
    """A function that runs one round of FedAvg with one local epoch and returns the mean model.

    Args:
        module: the model; a copy is trained.
        shards: every client's samples.
        ids: the round's cohort.
        batch_size: samples in a minibatch.
        lr: step size.
        rho: with it, the gradient is taken at ``w + rho g / ||g||`` (sharpness-aware minimisation).
    """
    module = copy.deepcopy(module)
    server = {name: t.clone() for name, t in module.state_dict().items()}

    def round() -> dict[str, Tensor]:
        mean = {name: torch.zeros_like(t) for name, t in server.items()}
        for client in ids:
            module.load_state_dict(server)
            optimizer = torch.optim.SGD(module.parameters(), lr=lr)
            start, stop = shards.offsets[client : client + 2]
            for batch in torch.split(torch.randperm(int(stop - start)) + int(start), batch_size):
                x, y = shards.x[batch], shards.y[batch]
                optimizer.zero_grad()
                F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
                if rho is not None:
                    _gradient_at_ascent(module, optimizer, x, y, rho)
                optimizer.step()
            for name, t in module.state_dict().items():
                mean[name] += t / len(ids)
        return mean

    return round


def _gradient_at_ascent(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rho: float) -> None:
    parameters: list[Tensor] = list(module.parameters())
    grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        ascent = list(torch._foreach_mul(grads, rho / norm.item()))
        torch._foreach_add_(parameters, ascent)
    optimizer.zero_grad()
    F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        torch._foreach_sub_(parameters, ascent)
