"""Streaming DiLoCo: Douillard, Donchev, Rush et al. 2025 (arXiv 2501.18512): one fragment of the model at a time.

    round t, fragment p = t mod F (tensors p, p + F, ...), fragment q = p - 1 of the round before:
    worker i:  K inner steps on y_i, from the last round;   after a share tau of them
                   y_i[q] <- alpha y_i[q] + (1 - alpha) x[q];   at the end send y_i[p]
    server:    D <- x[p] - mean_i y_i[p];   m[p] <- mu m[p] + D;   x[p] <- x[p] - eta_o (D + mu m[p]),
               which arrives after a share tau of the next round's local steps

A fragment is sent every F rounds, and the peak of traffic is that of one fragment. F = 1, tau = 0 and alpha = 0 is
DiLoCo; with alpha = 1 workers never take the outer model. The paper's fragments are strided layers; ours are strided
tensors of the model. Down 1 fragment, up 1 fragment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import at_least_one, in_range, positive
from fedsim.errors import ConfigError


class StreamingDiLoCoState(NamedTuple):
    x: Vector  # [d] outer model
    m: Vector  # [d] outer momentum
    y: Kept[Vector]  # [n, d] every worker's own model


@dataclass(frozen=True)
class StreamingDiLoCo:
    """DiLoCo whose fragments of the model are averaged in turn, behind a share of the next local steps.

    Args:
        lr: inner step size eta.
        outer_lr: outer step size eta_o.
        outer_momentum: mu.
        fragments: number of fragments F; at most the number of the model's tensors.
        overlap: share tau of a round's local steps behind which a fragment is under way, from 0 to below 1.
        alpha: weight of a worker's own values when a fragment arrives.
    """

    lr: float = 0.1
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    fragments: int = 2
    overlap: float = 0.2
    alpha: float = 0.5
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr", "outer_lr")
        in_range(self, "outer_momentum", 0, 1)
        in_range(self, "overlap", 0, 1)
        in_range(self, "alpha", 0, 1, closed=True)
        at_least_one(self, "fragments")

    def init(self, x: Vector, clients: Clients) -> StreamingDiLoCoState:
        if self.fragments > len(clients.shapes):
            raise ConfigError(
                f"StreamingDiLoCo.fragments is {self.fragments}, but the model has {len(clients.shapes)} tensors;"
                " expected at most that many"
            )
        return StreamingDiLoCoState(x, torch.zeros_like(x), clients.keep(x))

    def round(self, s: StreamingDiLoCoState, clients: Clients) -> StreamingDiLoCoState:
        p, q = clients.round % self.fragments, (clients.round - 1) % self.fragments
        new, old = (fragment(clients.shapes, k, self.fragments, s.x) for k in (p, q))
        sent, y = clients.each(partial(self.client, p=p, q=q), s.x[old], s.y)
        D = s.x[new] - clients.mean(sent, behind=self.overlap)
        m = self.outer_momentum * s.m[new] + D
        x = s.x[new] - self.outer_lr * (D + self.outer_momentum * m)
        return StreamingDiLoCoState(s.x.index_copy(0, new, x), s.m.index_copy(0, new, m), s.y | y)

    def client(self, local: Local, arrived: Vector, y: Vector, p: int, q: int) -> tuple[Vector, Vector]:
        def step(
            carry: tuple[Vector, Vector], batch: Batch, eta: Vector, at: Vector, outer: Vector, theirs: Vector
        ) -> tuple[Vector, Vector]:
            y, k = carry
            mixed = self.alpha * y + (1 - self.alpha) * outer
            y = torch.where((k == at) & theirs, mixed, y)
            return local.descend(y, local.grad(y, batch), eta), k + 1

        old, new = (fragment(local.shapes, k, self.fragments, y) for k in (q, p))
        outer = y.index_copy(0, old, arrived)
        theirs = torch.zeros(len(y), dtype=torch.bool, device=y.device).index_fill(0, old, True)
        at = (self.overlap * local.steps).floor()
        y, _ = local.fold(step, (y, torch.zeros_like(at)), self.lr * local.decay, at, outer, theirs)
        return y[new], y


def fragment(shapes: tuple[torch.Size, ...], p: int, of: int, like: Tensor) -> Tensor:
    """Places in the model's vector of its tensors p, p + of, p + 2 of, ..."""
    sizes = [shape.numel() for shape in shapes]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    places = [torch.arange(starts[k], starts[k] + sizes[k], device=like.device) for k in range(p, len(sizes), of)]
    return torch.cat(places)
