"""DIANA: Mishchenko, Gorbunov, Takac, Richtarik, 2019 (arXiv 1901.09269), Algorithm 1.

    h_i, h <- 0 at first
    client i:  m_i <- C(grad f_i(x) - h_i);   h_i <- h_i + alpha m_i;   send m_i
    server:    x <- x - gamma (h + mean_S m_i);   h <- h + alpha sum_S p_i m_i

C is unbiased. The differences vanish as the gradients converge, and C's variance with them, so the method is exact on
heterogeneous clients. alpha = 1 / (1 + omega) by default; with the identity and alpha = 1 this is gradient descent.
Down 1 vector, up 1 compressed vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import Gradient, gradient_of, omega_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive, share
from fedsim.compress import RandK
from fedsim.compress.checks import unbiased


class DIANAState(NamedTuple):
    x: Vector  # [d] server model
    h: Vector  # [d] sum_i p_i h_i
    h_i: Kept[Vector]  # [n, d] each client's estimate of its gradient


@dataclass(frozen=True)
class DIANA:
    """Gradient descent on unbiased compressed differences to estimates of the gradients.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the differences; unbiased.
        alpha: step size of the estimates h_i, above 0; 1 / (1 + omega) by default.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=RandK)
    alpha: float | None = None
    gradient: Gradient = "full"
    no_rule = "its server adds up differences of its clients' memories"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        unbiased(self)
        if self.alpha is not None:
            share(self, "alpha")

    def init(self, x: Vector, clients: Clients) -> DIANAState:
        return DIANAState(x, torch.zeros_like(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: DIANAState, clients: Clients) -> DIANAState:
        sent, h_i = clients.each(self.client, s.x, s.h_i)
        m = clients.mean(sent)
        x = s.x - self.lr * clients.decay * (s.h + m)
        return DIANAState(x, s.h + self.rate(len(x)) * clients.fraction * m, s.h_i | h_i)

    def client(self, local: Local, x: Vector, h_i: Vector) -> tuple[Packed, Vector]:
        m_i = self.compressor.compress(gradient_of(local, x, self.gradient) - h_i, local)
        return m_i, h_i + self.rate(len(x)) * m_i.unpack()

    def rate(self, d: int) -> float:
        """alpha, for vectors of ``d`` coordinates."""
        return 1 / (1 + omega_of(self.compressor, d)) if self.alpha is None else self.alpha
