"""HetLoRA: Cho, Liu, Xu, Fahrezi, Joshi, EMNLP 2024 (arXiv 2401.06432): LoRA of different ranks, padded with zeros.

    client i:  A_i <- the first r_i rows of A, B_i <- the first r_i columns of B, then K local steps on both
    server:    A <- sum_S w_i A_i,  B <- sum_S w_i B_i, padded with zeros;   w_i ~ p_i ||B_i A_i||_F

The weights favour clients whose products are large; without them, w_i ~ p_i. The paper's pruning of ranks during
training is not here. The product of means is not the mean of products. Parameters that train as a whole, such as a
head, are averaged. Down r_i in units of d + k for each layer, up r_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.adapters import Adapters, check_ranks, groups, joint, steps
from algorithms.parts import EPS
from fedsim import Clients, Local, Vector
from fedsim.checks import positive


class HetLoRAState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class HetLoRA:
    """LoRA of different ranks, whose factors are cut for each client and averaged with zeros in place of the rest.

    Args:
        lr: local step size eta.
        ranks: ranks r_i of the clients, which take them in turn; by default the model's for all.
        by_norm: weigh the clients by the norms of their products.
    """

    lr: float = 0.1
    ranks: tuple[int, ...] = ()
    by_norm: bool = True
    no_rule = "its server weighs messages by their norms"

    def __post_init__(self) -> None:
        positive(self, "lr")
        check_ranks(self)

    def init(self, x: Vector, clients: Clients) -> HetLoRAState:
        Adapters.of(clients, "HetLoRA", residual=False).ranks(self.ranks, clients.n, "HetLoRA")
        return HetLoRAState(x)

    def round(self, s: HetLoRAState, clients: Clients) -> HetLoRAState:
        layout = Adapters.of(clients, "HetLoRA", residual=False)
        padded, means = [], []
        for rank, group in groups(clients, layout.ranks(self.ranks, clients.n, "HetLoRA")):
            places = layout.places("AB+", rank, s.x)
            sent = group.each(partial(self.client, rank=rank), s.x[places])
            total, size = group.reduce(sent, partial(self.weighed, layout=layout, rank=rank)), layout.size(rank)
            factors, others, norm = torch.split(total, [size, len(places) - size, 1])
            zeros = torch.zeros_like(s.x)
            padded.append((group.fraction * float(norm), zeros.index_copy(0, places[:size], factors)))
            means.append((group.fraction, zeros.index_copy(0, places[size:], others)))
        return HetLoRAState(joint(padded) + joint(means))

    def weighed(self, rows: Tensor, weights: Tensor, layout: Adapters, rank: int) -> Tensor:
        """Means of the factors, with weights by norm; means of other parameters; and the mean norm, ``[m + 1]``."""
        size, own = layout.size(rank), weights
        if self.by_norm:                                   # EPS: equal weights where nothing has been learned
            own = weights * (torch.linalg.vector_norm(layout.products(rows, rank), dim=1) + EPS)
        return torch.cat([own @ rows[:, :size] / own.sum(), weights @ rows[:, size:], own.sum().view(1)])

    def client(self, local: Local, x: Vector, rank: int) -> Vector:
        layout = Adapters.of(local, "HetLoRA", residual=False)
        places = layout.places("AB+", rank, x)
        start = x.new_zeros(layout.length).index_copy(0, places, x)
        return steps(local, start, places, self.lr)[places]
