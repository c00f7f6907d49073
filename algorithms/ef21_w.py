"""EF21-W, weighted error feedback: Richtarik, Gasanov, Burlachenko, "Error Feedback Reloaded", ICLR 2024 (arXiv
2402.10774).

    w_i = L_i / sum_j L_j
    before round 1:  g_i <- grad f_i(x) / (n w_i);   g <- sum_i w_i g_i
    server:    x <- x - gamma g
    client i:  c_i <- C(grad f_i(x) / (n w_i) - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S w_i c_i

The functions f_i / (n w_i) are all equally smooth, which replaces the quadratic mean of the L_i in EF21's step sizes by
their arithmetic mean, except for rare features. Where C(t x) = t C(x) for t > 0 (Top-k, sign, QSGD with the same draw)
the iterates are those of EF21, g_i being 1 / (n w_i) times EF21's. For an objective sum_i p_i f_i the factors are the
same and the server's weights are p_i n w_i. Down 1 vector, up 1 compressed vector; in round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.parts import Gradient, gradient_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.errors import ConfigError
from fedsim.feedback import EF21Uplink

Memory = tuple[Vector, Tensor]
"""g_i, and 1 / (n w_i), which a client knows beforehand."""


class EF21WState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i w_i g_i
    mine: Kept[Memory]  # [n, d] and [n]


@dataclass(frozen=True)
class EF21W:
    """EF21 on functions that are scaled to be equally smooth.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their scaled gradients; contractive.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
        smoothness: L_i of each client; only their proportions count. All equal when empty, which is EF21.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    gradient: Gradient = "full"
    smoothness: tuple[float, ...] = ()
    no_rule = "it weighs messages by factors of its own"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        contractive(self)
        if not all(np.isfinite(L) and L > 0 for L in self.smoothness):
            raise ConfigError(f"EF21W.smoothness is {self.smoothness!r:.80}; expected finite numbers above 0")

    def init(self, x: Vector, clients: Clients) -> EF21WState:
        scales = [(torch.zeros_like(x), x.new_tensor(1 / nw)) for nw in self.proportions(clients)]
        sent, mine = clients.each(self.begin, x, Kept(clients.n, scales[0], dict(enumerate(scales))))
        return EF21WState(x, clients.mean(sent, self.proportions(clients)), mine)

    def round(self, s: EF21WState, clients: Clients) -> EF21WState:
        x = s.x - self.lr * clients.decay * s.g
        sent, mine = clients.each(self.client, x, s.mine)
        change = clients.mean(sent, self.proportions(clients))
        return EF21WState(x, s.g + clients.fraction * change, s.mine | mine)

    def proportions(self, clients: Clients) -> np.ndarray:
        """``n w_i`` of every client, ``[n]``."""
        L = np.array(self.smoothness or [1.0] * clients.n)
        if len(L) != clients.n:
            raise ConfigError(f"EF21W.smoothness has {len(L)} entries; expected one for each of {clients.n} clients")
        proportions: np.ndarray = L / L.mean()
        return proportions

    def begin(self, local: Local, x: Vector, mine: Memory) -> tuple[Vector, Memory]:
        g_i = gradient_of(local, x, self.gradient) * mine[1]
        return g_i, (g_i, mine[1])

    def client(self, local: Local, x: Vector, mine: Memory) -> tuple[Packed, Memory]:
        g_i, scale = mine
        v = gradient_of(local, x, self.gradient) * scale
        c_i, (g_i, *_) = EF21Uplink(self.compressor).send(v, (g_i,), local)
        return c_i, (g_i, scale)
