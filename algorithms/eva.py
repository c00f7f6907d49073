"""EVA: Paischer, Hauzenberger, Schmied et al. 2024 (arXiv 2410.07170): LoRA starts from directions of its inputs.

    client i:  M_i = mean of h h^T over the inputs h [k] of a layer,   V_i = its r leading eigenvectors times the roots
               of their eigenvalues;   send V_i [r, k]
    server:    A <- the r leading eigenvectors of mean_i V_i^T V_i,   B <- 0

So A explains most of the variance of the layer's inputs (the second moment: inputs are not centred). The paper's
redistribution of ranks among layers is left out: all layers have rank r. Any method then trains the model. Up, once:
r k for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from algorithms.adapters import Adapters, initial
from algorithms.fedavg import FedAvg
from fedsim import Algorithm, Clients, Local, Vector
from fedsim.checks import component
from fedsim.errors import ConfigError


@dataclass(frozen=True)
class EVA:
    """A method for LoRA whose A starts as the principal directions of the layers' inputs at all clients.

    Args:
        algorithm: the method.
    """

    algorithm: Algorithm[Any] = field(default_factory=FedAvg)

    def __post_init__(self) -> None:
        component("EVA.algorithm", self.algorithm, ("init", "round"), "FedAvg(lr=0.1)")

    def init(self, x: Vector, clients: Clients) -> Any:
        layout = Adapters.of(clients, "EVA")
        for pair in layout.pairs:
            if pair.r > pair.k:
                raise ConfigError(f"EVA has {pair.k} directions for a layer of {pair.k} inputs; expected a lower rank")
        sent = clients.each(self.client, initial(x, clients, self.begin))
        a = clients.reduce(sent, partial(self.principal, layout=layout))
        return self.algorithm.init(x.index_copy(0, layout.places("A", layout.rank, x), a), clients)

    def round(self, s: Any, clients: Clients) -> Any:
        return self.algorithm.round(s, clients)

    def begin(self, local: Local, known: Vector, message: Vector) -> Vector:
        return known

    def client(self, local: Local, x: Vector) -> Vector:
        layout = Adapters.of(local, "EVA")
        sizes = [pair.k**2 for pair in layout.pairs]
        moments = torch.split(local.moments(x, layout.layers), sizes)
        return torch.cat([leading(m.reshape(p.k, p.k), p.r) for m, p in zip(moments, layout.pairs, strict=True)])

    def principal(self, rows: Tensor, weights: Tensor, layout: Adapters) -> Tensor:
        """A of all layers, from the clients' directions ``[c, sum r k]``."""
        found = []
        for v, p in zip(torch.split(rows, [p.r * p.k for p in layout.pairs], 1), layout.pairs, strict=True):
            v = v.reshape(-1, p.r, p.k)
            directions = torch.linalg.eigh(torch.einsum("c,crk,crl->kl", weights, v, v)).eigenvectors.T.flip(0)[: p.r]
            first = directions.gather(1, directions.abs().argmax(1, keepdim=True))   # eigenvectors have no sign
            found.append((directions * first.sign()).flatten())
        return torch.cat(found)


def leading(moment: Tensor, r: int) -> Tensor:
    """The ``r`` leading eigenvectors of a moment ``[k, k]`` times the roots of their eigenvalues, ``[r k]``."""
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = (vectors[:, -r:] * values[-r:].clamp(min=0).sqrt()).T.flip(0).flatten()
    return found
