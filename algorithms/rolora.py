"""RoLoRA: Chen, Guo, Ju, Dalal, Khisti, NeurIPS 2025 (arXiv 2502.01755): A and B of LoRA take turns.

    round 1, 3, ...:  client i:  B_i <- B, then K local steps on B_i, A fixed;   server:  B <- mean_S B_i
    round 2, 4, ...:  client i:  A_i <- A, then K local steps on A_i, B fixed;   server:  A <- mean_S A_i

The other factor is the same for all, so that the mean of the products is the product of the means. Nodes remember what
they were told: each is sent the factors that have changed since then. Parameters that train as a whole, such as a head,
train in every round. Down: 1/2 of the pair for a client that took part in the round before, else as many halves as have
changed; up 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.adapters import Adapters, steps
from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import positive

HALVES = ("A", "B")


class RoLoRAState(NamedTuple):
    x: Vector  # [d] server model
    changed: Tensor  # [n, 2] int64, 1 where A and B have changed since a client was told


@dataclass(frozen=True)
class RoLoRA:
    """LoRA whose factors are trained and averaged in turn.

    Args:
        lr: local step size eta.
    """

    lr: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> RoLoRAState:
        layout = Adapters.of(clients, "RoLoRA", residual=False)
        halves = [x[layout.places(half, layout.rank, x)] for half in HALVES]
        news = torch.stack([half.any() for half in halves])          # zeros are known
        return RoLoRAState(x, news.long().expand(clients.n, 2).clone())

    def round(self, s: RoLoRAState, clients: Clients) -> RoLoRAState:
        layout, turn = Adapters.of(clients, "RoLoRA", residual=False), clients.round % 2
        ids, places = clients.ids, layout.places(HALVES[turn] + "+", layout.rank, s.x)
        news = ["A" * a + "B" * b + "+" for a, b in s.changed[ids].tolist()]
        parts = {kinds: s.x[layout.places(kinds, layout.rank, s.x)] for kinds in set(news)}
        down = Rebuilt(s.x, [parts[kinds] for kinds in news], [partial(self.told, kinds=kinds) for kinds in news])
        dx = clients.each(partial(self.client, half=HALVES[turn]), down)
        changed = s.changed.clone()
        changed[ids] = 0
        changed[:, turn] = 1
        return RoLoRAState(s.x.index_add(0, places, clients.mean(dx)), changed)

    def told(self, local: Local, known: Vector, message: Vector, kinds: str) -> Vector:
        layout = Adapters.of(local, "RoLoRA", residual=False)
        return known.index_copy(0, layout.places(kinds, layout.rank, known), message)

    def client(self, local: Local, x: Vector, half: str) -> Vector:
        layout = Adapters.of(local, "RoLoRA", residual=False)
        places = layout.places(half + "+", layout.rank, x)
        return (steps(local, x, places, self.lr) - x)[places]
