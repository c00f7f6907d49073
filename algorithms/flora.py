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

from algorithms.adapters import Adapters, Stacks, check_ranks, gathered, groups, steps
from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import positive


class FLoRAState(NamedTuple):
    x: Vector  # [d] server model: A_0, B = 0, R
    missed: Tensor  # [n] int64, rank of the stacks that a client was not sent
    new: Tensor  # [n] int64, 1 for one that was never sent anything
    stacks: Stacks  # of the last rounds, for clients that lack them


@dataclass(frozen=True)
class FLoRA:
    """LoRA whose products are summed without error, for clients of different ranks.

    Args:
        lr: local step size eta.
        ranks: ranks r_i of the clients, which take them in turn; by default the model's for all.
    """

    lr: float = 0.1
    ranks: tuple[int, ...] = ()
    no_rule = "its server adds up products"

    def __post_init__(self) -> None:
        positive(self, "lr")
        check_ranks(self)

    def init(self, x: Vector, clients: Clients) -> FLoRAState:
        layout = Adapters.of(clients, "FLoRA", residual=True)
        layout.ranks(self.ranks, clients.n, "FLoRA")
        rank, n = layout.rank, clients.n
        products = layout.products(x[layout.places("AB", rank, x)], rank)      # 0, but for other initial values
        x = x.index_add(0, layout.residuals(x), products).index_fill(0, layout.places("B", rank, x), 0.0)
        return FLoRAState(x, torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64), {})

    def round(self, s: FLoRAState, clients: Clients) -> FLoRAState:
        layout = Adapters.of(clients, "FLoRA", residual=True)
        ranks, ids = layout.ranks(self.ranks, clients.n, "FLoRA"), clients.ids
        missed, new, parts = s.missed.clone(), s.new.clone(), []
        for rank, group in groups(clients, ranks):
            lacks = list(zip(s.missed[group.ids].tolist(), s.new[group.ids].tolist(), strict=True))
            news = {lack: self._news(layout, s, rank, *lack) for lack in set(lacks)}
            messages, by = zip(*(news[lack] for lack in lacks), strict=True)
            sent = group.each(partial(self.client, rank=rank), Rebuilt(s.x, messages, by))
            parts.append((rank, group.fraction, *group.reduce(sent, gathered)))
        total = sum(fraction for _, fraction, *_ in parts)
        weighed = [(rank, rows, w * (fraction / total)) for rank, fraction, rows, w in parts]
        stack = torch.cat([layout.stacked(rows, rank, w) for rank, rows, w in weighed])
        mean = torch.stack([w @ rows[:, layout.size(rank) :] for rank, rows, w in weighed]).sum(0)
        missed[ids], new[ids] = 0, 0
        x = layout.grown(s.x, layout.split(stack), [len(stack)]).index_copy(0, layout.places("+", 0, s.x), mean)
        return FLoRAState(x, missed + len(stack), new, layout.kept(s.stacks, stack, clients.round))

    def _news(self, layout: Adapters, s: FLoRAState, rank: int, missed: int, new: int) -> tuple[Any, Any]:
        """What a client is sent: other parameters, the stacks that it lacks, and A_0 if it is new; and what it does."""
        others, first = (s.x[layout.places(kinds, rank, s.x)] for kinds in ("+", "A"))
        increments, ranks = layout.news(s.x, s.stacks, missed)
        message = (others, *[increments] * bool(missed), *[first] * new)
        return message, partial(self.told, rank=rank, ranks=ranks)

    def told(self, local: Local, known: Vector, message: tuple[Any, ...], rank: int, ranks: str) -> Vector:
        layout = Adapters.of(local, "FLoRA", residual=True)
        others, *rest = message
        x = known.index_copy(0, layout.places("+", 0, known), others)
        for part in rest:
            if isinstance(part, Tensor):
                x = x.index_copy(0, layout.places("A", rank, x), part)
            else:
                x = layout.heard(x, part, ranks)
        return x

    def client(self, local: Local, x: Vector, rank: int) -> Vector:
        layout = Adapters.of(local, "FLoRA", residual=True)
        places = layout.places("AB+", rank, x)
        unused = torch.ones_like(x, dtype=torch.bool).index_fill(0, torch.cat([places, layout.residuals(x)]), False)
        return steps(local, x.masked_fill(unused, 0.0), places, self.lr)[places]
