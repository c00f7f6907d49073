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

from algorithms.adapters import Adapters, form, steps
from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import positive


class FedExLoRAState(NamedTuple):
    x: Vector  # [d] server model: A, B, R
    missed: Tensor  # [n] int64, rank of the differences that a client was not sent


@dataclass(frozen=True)
class FedExLoRA:
    """LoRA whose factors are averaged, with the error of that added to the frozen weights.

    Args:
        lr: local step size eta.
        exact: add the error; without it the method is FedIT, for models with ``residual``.
    """

    lr: float = 0.1
    exact: bool = True
    deploys = False
    no_rule = "its server averages products"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> FedExLoRAState:
        layout = Adapters.of(clients, "FedExLoRA", residual=True)
        begun = layout.rank if bool(x[layout.residuals(x)].any()) else 0     # by other initial values, of that rank
        return FedExLoRAState(x, torch.full((clients.n,), begun))

    def round(self, s: FedExLoRAState, clients: Clients) -> FedExLoRAState:
        layout = Adapters.of(clients, "FedExLoRA", residual=True)
        ids, lacks = clients.ids, s.missed[clients.ids].tolist()
        forms = {lack: self._told(layout, s.x, lack) for lack in set(lacks)}
        sent = clients.each(partial(self.client, layout=layout), Rebuilt(s.x, [forms[lack] for lack in lacks]))
        places = layout.places("AB+", layout.rank, s.x)
        total = clients.reduce(sent, partial(self.averaged, layout=layout))
        mean, difference = torch.split(total, [len(places), len(s.x) - len(places)])
        x, missed = s.x.index_copy(0, places, mean), s.missed.clone()
        missed[ids] = 0
        if self.exact:
            x = x.index_add(0, layout.residuals(x), difference)
            missed = missed + layout.rank * (len(sent.ids) + 1)
        return FedExLoRAState(x, missed)

    def _told(self, layout: Adapters, x: Vector, missed: int) -> tuple[Any, ...]:
        """Form of what a client is sent: A, B and other parameters, and the differences that it lacks."""
        factors = form(x, len(layout.places("AB+", layout.rank, x)))
        return (factors, *[layout.increments(missed, x)] * bool(missed))

    def averaged(self, rows: Tensor, weights: Tensor, layout: Adapters) -> Tensor:
        """Means of A, B and other parameters, then the means of the products minus the products of these means."""
        mean, differences = weights @ rows, []
        pairs = zip(layout.factors(rows, layout.rank), layout.factors(mean, layout.rank), strict=True)
        for (a, b), (mean_a, mean_b) in pairs:
            differences.append((torch.einsum("c,cdr,crk->dk", weights, b, a) - mean_b @ mean_a).flatten())
        return torch.cat([mean, *differences])

    def client(self, local: Local, x: Vector, layout: Adapters) -> Vector:
        places = layout.places("AB+", layout.rank, x)
        return steps(local, x, places, self.lr)[places]
