"""FedEx-LoRA: Singhal, Ponkshe, Vepakomma, ACL 2025 (arXiv 2410.09432): the means of LoRA's factors, made exact.

    client i:  A_i <- A, B_i <- B, then K local steps on both;   send A_i, B_i
    server:    A <- mean_S A_i,   B <- mean_S B_i,
               R <- R + mean_S (B_i A_i) - B A,   W = W_0 + (alpha / r) (R + B A)

R holds the difference of the mean of the products to the product of the means, and is added to the frozen weights.
Without it the method is FedIT (Zhang et al., ICASSP 2024). The server sends A, B and the difference: the product of
[p_1 B_1 ... p_c B_c, -B] and [A_1; ...; A_c; A], of rank (c + 1) r, or R itself where that is smaller. A client that
was away is sent the differences that it missed. Parameters that train as a whole, such as a head, are averaged. Down:
1 pair and the differences; up 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from algorithms.adapters import Adapters, Stacks, gathered, steps
from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import positive


class FedExLoRAState(NamedTuple):
    x: Vector  # [d] server model: A, B, R
    missed: Tensor  # [n] int64, rank of the differences that a client was not sent
    stacks: Stacks  # of the last rounds, for clients that lack them


@dataclass(frozen=True)
class FedExLoRA:
    """LoRA whose factors are averaged, with the error of that added to the frozen weights.

    Args:
        lr: local step size eta.
        exact: add the error; without it the method is FedIT, for models with ``residual``.
    """

    lr: float = 0.1
    exact: bool = True
    no_rule = "its server averages products"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> FedExLoRAState:
        layout = Adapters.of(clients, "FedExLoRA", residual=True)
        begun = bool(x[layout.residuals(x)].any())         # by other initial values: R = -B A
        missed = torch.full((clients.n,), layout.rank * begun)
        factors = x[layout.places("AB", layout.rank, x)]
        stack = layout.stacked(factors[None], layout.rank, -torch.ones_like(x[:1]))
        return FedExLoRAState(x, missed, layout.kept({}, stack, 0) if begun else {})

    def round(self, s: FedExLoRAState, clients: Clients) -> FedExLoRAState:
        layout = Adapters.of(clients, "FedExLoRA", residual=True)
        ids, lacks = clients.ids, s.missed[clients.ids].tolist()
        news = {lack: self._news(layout, s, lack) for lack in set(lacks)}
        messages, by = zip(*(news[lack] for lack in lacks), strict=True)
        rows, w = clients.reduce(clients.each(self.client, Rebuilt(s.x, messages, by)), gathered)
        mean = w @ rows
        x, missed = s.x.index_copy(0, layout.places("AB+", layout.rank, s.x), mean), s.missed.clone()
        missed[ids] = 0
        if not self.exact:
            return FedExLoRAState(x, missed, s.stacks)
        stack = layout.stacked(torch.cat([rows, mean[None]]), layout.rank, torch.cat([w, -torch.ones_like(w[:1])]))
        x = layout.grown(x, layout.split(stack), [len(stack)])
        return FedExLoRAState(x, missed + len(stack), layout.kept(s.stacks, stack, clients.round))

    def _news(self, layout: Adapters, s: FedExLoRAState, missed: int) -> tuple[Any, Any]:
        """What a client is sent: A, B and other parameters, and the differences that it lacks; and what it does."""
        increments, ranks = layout.news(s.x, s.stacks, missed)
        factors = s.x[layout.places("AB+", layout.rank, s.x)]
        return (factors, *[increments] * bool(missed)), partial(self.told, ranks=ranks)

    def told(self, local: Local, known: Vector, message: tuple[Any, ...], ranks: str) -> Vector:
        layout = Adapters.of(local, "FedExLoRA", residual=True)
        factors, *rest = message
        x = known.index_copy(0, layout.places("AB+", layout.rank, known), factors)
        return layout.heard(x, rest[0], ranks) if rest else x

    def client(self, local: Local, x: Vector) -> Vector:
        layout = Adapters.of(local, "FedExLoRA", residual=True)
        places = layout.places("AB+", layout.rank, x)
        return steps(local, x, places, self.lr)[places]
