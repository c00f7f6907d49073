"""EF14, classic error feedback: Seide, Fu, Droppo, Li, Yu, Interspeech 2014; Stich, Cordonnier, Jaggi, NeurIPS 2018
(arXiv 1809.07599).

    client i:  e_i = 0 at first
               p <- e_i + gamma grad f_i(x);   v_i <- C(p);   e_i <- p - v_i;   send v_i
    server:    x <- x - mean_S v_i

gamma is inside the compressor, so under a schedule the error keeps the step size of its own round. Exact if the
minimiser is a stationary point of every f_i; otherwise there is a floor that grows with gamma and with the clients'
heterogeneity.
Down 1 vector, up 1 compressed vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import Gradient, gradient_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.feedback import EF14Uplink


class EF14State(NamedTuple):
    x: Vector  # [d] server model
    e_i: Kept[Vector]  # [n, d] what each client has not yet sent


@dataclass(frozen=True)
class EF14:
    """Compressed gradient descent whose clients add what they left out to their next message.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to step and error; contractive.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    gradient: Gradient = "full"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF14State:
        return EF14State(x, clients.keep(torch.zeros_like(x)))

    def round(self, s: EF14State, clients: Clients) -> EF14State:
        sent, e_i = clients.each(self.client, s.x, s.e_i)
        return EF14State(s.x - clients.mean(sent), s.e_i | e_i)

    def client(self, local: Local, x: Vector, e_i: Vector) -> tuple[Packed, Vector]:
        step = self.lr * local.decay * gradient_of(local, x, self.gradient)
        v_i, (e_i, *_) = EF14Uplink(self.compressor).send(step, (e_i,), local)
        return v_i, e_i
