"""LoRA-GA: Wang, Yu, Li, NeurIPS 2024 (arXiv 2407.05000): LoRA starts from the directions of the gradient.

    client i:  send G_i, the gradient of f_i in a layer's weights W_0 [d, k], up to the factor of the products
    server:    U S V^T = mean_i G_i,   A <- c V[:, 1 ... r]^T,   B <- c U[:, r+1 ... 2r],   c = d^(1/4) / gamma^(1/2),
               R <- R - B A: W = W_0 + (alpha / r) (R + B A) is what it was

The first steps on A and B then move W as those on W itself would. The choice of the vectors and gamma = 16 are those of
the library PEFT. A method that adds to the frozen weights then trains the model. Up, once: d k for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algorithms.adapters import Adapters, initial
from algorithms.fedex_lora import FedExLoRA
from fedsim import Algorithm, Clients, Local, Vector
from fedsim.checks import component, positive
from fedsim.errors import ConfigError


@dataclass(frozen=True)
class LoRAGA:
    """A method for LoRA whose factors start as the singular vectors of the mean gradient of all clients.

    Args:
        algorithm: the method: FedExLoRA or FLoRA.
        gamma: makes the initial factors small.
    """

    algorithm: Algorithm[Any] = field(default_factory=FedExLoRA)
    gamma: float = 16.0

    def __post_init__(self) -> None:
        positive(self, "gamma")
        component("LoRAGA.algorithm", self.algorithm, ("init", "round"), "FedExLoRA(lr=0.1)")

    def init(self, x: Vector, clients: Clients) -> Any:
        layout = Adapters.of(clients, "LoRAGA", residual=True)
        for _, _, _, r, d, k in layout.pairs:
            if 2 * r > min(d, k):
                raise ConfigError(f"LoRAGA takes {2 * r} directions of a gradient [{d}, {k}]; expected a lower rank")
        g = clients.mean(clients.each(self.client, initial(x, clients, self.begin)))
        both = self.directions(g, layout)
        x = x.index_copy(0, layout.places("AB", layout.rank, x), both)
        return self.algorithm.init(x.index_add(0, layout.residuals(x), -layout.products(both, layout.rank)), clients)

    def round(self, s: Any, clients: Clients) -> Any:
        return self.algorithm.round(s, clients)

    def begin(self, local: Local, known: Vector, message: Vector) -> Vector:
        return known

    def client(self, local: Local, x: Vector) -> Vector:
        return local.grad(x)[Adapters.of(local, "LoRAGA", residual=True).residuals(x)]

    def directions(self, g: Vector, layout: Adapters) -> Tensor:
        """A and B of all layers, from the gradients ``[sum d k]``."""
        found = []
        for own, p in zip(torch.split(g, [p.d * p.k for p in layout.pairs]), layout.pairs, strict=True):
            u, _, v = torch.linalg.svd(own.reshape(p.d, p.k), full_matrices=False)
            sign = v.gather(1, v.abs().argmax(1, keepdim=True)).sign()   # singular vectors have none
            c = p.d**0.25 / self.gamma**0.5
            found += [c * (v * sign)[: p.r].flatten(), c * (u * sign.T)[:, p.r : 2 * p.r].flatten()]
        return torch.cat(found)
