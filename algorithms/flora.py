"""FLoRA: Wang, Shen, He, Sun, Wang, Lyu, Li, NeurIPS 2024 (arXiv 2409.05976): the products of LoRA are stacked.

    client i:  A_i <- the first r_i rows of A_0, B_i <- 0, then K local steps on both;   send A_i, B_i
    server:    R <- R + sum_S p_i B_i A_i = R + [p_1 B_1 ... p_c B_c] [A_1; ...; A_c],   W = W_0 + (alpha / r) R

The sum of the products is exact, whatever the clients' ranks r_i, and there is no noise of averaged factors. The server
sends the stack; clients add it to their weights and begin again from A_0, which they know. A client that was away is
sent all stacks that it missed, or R itself where that is smaller. Parameters that train as a whole, such as a head, are
averaged. Down: the stacks, sum_S r_i in units of d + k for each layer; up r_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from algorithms.adapters import Adapters, form, groups, joint, steps
from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import positive


class FLoRAState(NamedTuple):
    x: Vector  # [d] server model: A_0, B = 0, R
    missed: Tensor  # [n] int64, rank of the stacks that a client was not sent
    new: Tensor  # [n] int64, 1 for one that was never sent anything


@dataclass(frozen=True)
class FLoRA:
    """LoRA whose products are summed without error, for clients of different ranks.

    Args:
        lr: local step size eta.
        ranks: ranks r_i of the clients, which take them in turn; by default the model's for all.
    """

    lr: float = 0.1
    ranks: tuple[int, ...] = ()
    deploys = False
    no_rule = "its server adds up products"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> FLoRAState:
        layout = Adapters.of(clients, "FLoRA", residual=True)
        layout.ranks(self.ranks, clients.n, "FLoRA")
        rank = layout.rank
        products = layout.products(x[layout.places("AB", rank, x)], rank)      # 0, but for other initial values
        x = x.index_add(0, layout.residuals(x), products).index_fill(0, layout.places("B", rank, x), 0.0)
        return FLoRAState(x, torch.zeros(clients.n, dtype=torch.int64), torch.ones(clients.n, dtype=torch.int64))

    def round(self, s: FLoRAState, clients: Clients) -> FLoRAState:
        layout = Adapters.of(clients, "FLoRA", residual=True)
        ranks, ids = layout.ranks(self.ranks, clients.n, "FLoRA"), clients.ids
        missed, new, sums, stacked = s.missed.clone(), s.new.clone(), [], 0
        for rank, group in groups(clients, ranks):
            lacks = list(zip(s.missed[group.ids].tolist(), s.new[group.ids].tolist(), strict=True))
            forms = {lack: self._told(layout, s.x, rank, *lack) for lack in set(lacks)}
            client = partial(self.client, layout=layout, rank=rank)
            sent = group.each(client, Rebuilt(s.x, [forms[lack] for lack in lacks]))
            sums.append((group.fraction, group.reduce(sent, partial(self.added, layout=layout, rank=rank))))
            stacked += rank * len(sent.ids)
        missed[ids], new[ids] = 0, 0
        residuals, others = layout.residuals(s.x), layout.places("+", 0, s.x)
        products, mean = torch.split(joint(sums), [len(residuals), len(others)])
        x = s.x.index_add(0, residuals, products).index_copy(0, others, mean)
        return FLoRAState(x, missed + stacked, new)

    def _told(self, layout: Adapters, x: Vector, rank: int, missed: int, new: int) -> tuple[Any, ...]:
        """Form of what a client is sent: other parameters, the stacks that it lacks, and A_0 if it is new."""
        others, first = (form(x, len(layout.places(kinds, rank, x))) for kinds in ("+", "A"))
        return (others, *[layout.increments(missed, x)] * bool(missed), *[first] * new)

    def added(self, rows: Tensor, weights: Tensor, layout: Adapters, rank: int) -> Tensor:
        """The weighted sum of the products, and the mean of other parameters, ``[sum d k + m]``."""
        total = torch.cat(
            [torch.einsum("c,cdr,crk->dk", weights, b, a).flatten() for a, b in layout.factors(rows, rank)]
        )
        return torch.cat([total, weights @ rows[:, layout.size(rank) :]])

    def client(self, local: Local, x: Vector, layout: Adapters, rank: int) -> Vector:
        places = layout.places("AB+", rank, x)
        unused = torch.ones_like(x, dtype=torch.bool).index_fill(0, torch.cat([places, layout.residuals(x)]), False)
        return steps(local, x.masked_fill(unused, 0.0), places, self.lr)[places]
