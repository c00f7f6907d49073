"""EF21-BC, bidirectional compression: Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, 2021 (arXiv 2110.03294).

    before round 1:  g~_i <- grad f_i(x), sent up;   g~, g <- sum_i p_i g~_i, sent down
    server:    b <- C_M(g~ - g), sent down
    everybody: g <- g + b;   x <- x - gamma g
    client i:  c_i <- C(grad f_i(x) - g~_i);   g~_i <- g~_i + c_i;   send c_i
    server:    g~ <- g~ + sum_i p_i c_i

Every client holds x and g and must receive every b, so all take part in every round. (The paper sends b at the end of a
round; here it opens the next one, which is the same.) Down and up 1 compressed vector; in round 0, down 2 vectors and
up 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.errors import ConfigError
from fedsim.feedback import EF21P, EF21Uplink


class Own(NamedTuple):
    x: Vector    # [d] the model, as the server has it
    g: Vector    # [d] the common estimate of the gradient
    g_i: Vector  # [d] estimate g~_i of its own gradient


class EF21BCState(NamedTuple):
    x: Vector  # [d] model, the same everywhere
    g: Vector  # [d] the common estimate of the gradient
    g_tilde: Vector  # [d] sum_i p_i g~_i, at the server alone
    mine: Kept[Own]  # [n, d] each


@dataclass(frozen=True)
class EF21BC:
    """EF21 in both directions.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their gradients; contractive.
        server_compressor: what the server applies to the change of their mean; contractive.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    server_compressor: Compressor = field(default_factory=TopK)
    sums = (0,)  # the server adds up c_i

    def __post_init__(self) -> None:
        positive(self, "lr")
        contractive(self, "compressor")
        contractive(self, "server_compressor")

    def init(self, x: Vector, clients: Clients) -> EF21BCState:
        zero = torch.zeros_like(x)
        sent, mine = clients.each(self.begin, x, clients.keep(Own(x, zero, zero)))
        g = clients.mean(sent)
        return EF21BCState(x, g, g, clients.apply(self.hear, mine, down=g))

    def round(self, s: EF21BCState, clients: Clients) -> EF21BCState:
        b, (g,) = EF21P(self.server_compressor).broadcast(s.g_tilde, (s.g,), clients)
        sent, mine = clients.each(self.client, b, s.mine)
        if len(clients) < clients.n:
            raise ConfigError(
                f"EF21BC needs every client in every round, {len(clients)} of {clients.n} take part: one that misses a"
                " message of the server loses its model. Set sampling.fraction to 1 and leave waiting out, or use EF21"
            )
        return EF21BCState(s.x - self.lr * clients.decay * g, g, s.g_tilde + clients.mean(sent), mine)

    def begin(self, local: Local, x: Vector, own: Own) -> tuple[Vector, Own]:
        g_i = local.grad(x)
        return g_i, own._replace(g_i=g_i)

    def hear(self, local: Local, g: Vector, own: Own) -> Own:
        return own._replace(g=g)

    def client(self, local: Local, b: Packed, own: Own) -> tuple[Packed, Own]:
        g = own.g + b.unpack()
        x = own.x - self.lr * local.decay * g
        c_i, (g_i, *_) = EF21Uplink(self.compressor).send(local.grad(x), (own.g_i,), local)
        return c_i, Own(x, g, g_i)
