"""FedAMD: Wu, Guo, Qu, He, Liu, Gao, ICML 2023 (arXiv 2206.05891): anchor sampling.

    before round 1:  every client:  v_i <- large-batch grad f_i(x);   v <- mean_all v_i
    round t, each client of the cohort S tosses its own coin with probability p_t:
        anchor:  v_i+ <- large-batch grad f_i(x);  send v_i+ - v_i
        miner:   y', y <- x;  g <- v;  K times:  g <- g - grad f_i(y'; B) + grad f_i(y; B),  (y', y) <- (y, y - eta g)
                 send x - y
    server:  x <- x - eta_s mean_miners (x - y_i)      (stays where there is no miner);   v <- mean_all v_i

The miners' v is the mean BEFORE this round's anchors refresh it. The paper's server stores every v_i; here each client
keeps its own and sends the difference, so the server stores only the mean: the same bytes and the same numbers.
Anchors: down 1 vector, up 1, one large batch; miners: down 2, up 1, two gradients a step, except in the first, where
they cancel.

The optimal p, as the authors' code computes it, minimises 1 / (1 - p^A) + 2 n / (A p sqrt(1 - p^A)) over (0, 1), with A
of n clients a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from algorithms.parts import sarah_steps
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive
from fedsim.errors import ConfigError


class FedAMDState(NamedTuple):
    x: Vector  # [d] server model
    v: Vector  # [d] mean of all v_i
    v_i: Kept[Vector]  # [n, d] each client's last large-batch gradient


@dataclass(frozen=True)
class FedAMD:
    """Anchors refresh large-batch gradients while miners move the model along them.

    Args:
        lr: local step size eta of the miners.
        server_lr: server step size eta_s.
        p: probability of being an anchor: a number in [0, 1], or "optimal" for the best constant.
        period: if 2 or more, all clients are anchors in every ``period``-th round and miners in the others, and p is
            not used.
        large_batch: samples in an anchor's gradient; 0 for the client's whole shard.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    p: float | Literal["optimal"] = "optimal"
    period: int = 0
    large_batch: int = 0
    no_rule = "its server adds up differences of its clients' memories"

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        if self.p != "optimal" and not (isinstance(self.p, (int, float)) and 0 <= self.p <= 1):
            raise ConfigError(f'FedAMD.p is {self.p!r}; expected a probability in [0, 1] or "optimal"')
        if self.period < 0 or self.period == 1:
            raise ConfigError(
                f"FedAMD.period is {self.period}; expected 2 or more (1 would freeze the model), or 0 to use p"
            )
        if self.large_batch < 0:
            raise ConfigError(f"FedAMD.large_batch is {self.large_batch}; expected 1 or more, or 0 for the whole shard")

    def init(self, x: Vector, clients: Clients) -> FedAMDState:
        sent, v_i = clients.each(self.anchor, x, clients.keep(torch.zeros_like(x)))
        return FedAMDState(x, clients.mean(sent), v_i)

    def round(self, s: FedAMDState, clients: Clients) -> FedAMDState:
        anchors, miners = clients.split(self.probability(clients))
        x, v, v_i = s
        if anchors:
            sent, fresh = anchors.each(self.anchor, s.x, s.v_i)
            v, v_i = s.v + anchors.fraction * anchors.mean(sent), s.v_i | fresh
        if miners:
            x = s.x - self.server_lr * miners.mean(miners.each(self.miner, (s.x, s.v)))
        return FedAMDState(x, v, v_i)

    def probability(self, clients: Clients) -> float:
        """The anchor probability p_t of this round."""
        if self.period:
            return float(clients.round % self.period == 0)
        return optimal_p(clients.n, clients.cohort_size) if self.p == "optimal" else float(self.p)

    def anchor(self, local: Local, x: Vector, v_i: Vector) -> tuple[Vector, Vector]:
        v = local.grad(x, local.sample(self.large_batch)) if self.large_batch else local.grad(x)
        return v - v_i, v

    def miner(self, local: Local, down: tuple[Vector, Vector]) -> Vector:
        x, v = down
        return x - sarah_steps(local, x, v, self.lr)


def optimal_p(n: int, cohort: float) -> float:
    """The best constant anchor probability for ``cohort`` of ``n`` clients a round."""
    from scipy.optimize import minimize_scalar  # slow to import, and seldom needed

    def cost(p: float) -> float:
        miner = 1 - math.pow(p, cohort)  # probability that somebody mines
        return 1 / miner + 2 * n / (cohort * p * math.sqrt(miner))

    best: float = minimize_scalar(cost, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-10}).x
    return best
