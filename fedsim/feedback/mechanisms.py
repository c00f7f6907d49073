"""Compression mechanisms with error feedback: values for ``Experiment.uplink`` and ``Experiment.downlink``.

v is a vector of a client's message in one round, C the compressor, S the cohort, w_i the clients' weights. The memories
e and h of a client start at zero and are never sent; each vector that an algorithm sends has its own.

    up:    Plain      send c = C(v);                                                    server: mean_S c
           EF14       send c = C(v + e);    e <- v + e - c;                             server: mean_S c
           EF21       send c = C(v - h);    h <- h + c;                                 server: H <- H + sum_S w_i c
           Momentum   send m <- beta m + (1 - beta) v;                                  server: mean_S m
           EControl   send c = C(eta e + v - h);   e <- e + v - h - c,  h <- h + c;     server: as EF21
    down:  Plain      clients read C(x)
           EF21P      send c = C(x - w);    w <- w + c;                                 clients read w

EF14 (Seide et al. 2014; Stich et al. 2018) adds the compression error to later messages: sums over rounds are exact up
to the last e, as required by a server that accumulates messages. EF21 (Richtárik et al. 2021) and EControl (Gao,
Islamov, Stich 2024) estimate a message that changes little from round to round: exact in the limit, for any
heterogeneity of the data. Their server keeps H, the mean of h over ALL clients (EF21-PP, Fatkhullin et al. 2021), so
absent clients contribute their previous estimate. EF21-P is from Gruntkowska, Tyurin, Richtárik 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fedsim.checks import in_range, share
from fedsim.compress import PowerSGD, TopK
from fedsim.compress.checks import contractive, is_compressor, non_negative_or_alpha
from fedsim.values import Compressor, Packed, Site, Vector

Memory: TypeAlias = tuple[Tensor, ...]
"""Memory of a mechanism for one vector; initially empty."""


class Uplink(Protocol):
    """Mechanism for messages from clients to a server, applied to one vector.

    ``individual`` is true if the server decodes each message, false if only their mean.
    """

    individual: bool

    @property
    def directions(self) -> tuple[str, ...]:
        """Supported directions: "up", "down", "gossip"."""

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed | Vector, Memory]:
        """Compressed message for ``v [d]``, and the client's new memory."""

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        """Server's estimate of the mean of the vectors, and its new memory.

        Args:
            mean: mean of the cohort's messages.
            memory: memory of the server.
            fraction: the cohort's share of the objective.
        """


class Downlink(Protocol):
    """Mechanism for messages from a server to its clients, applied to one vector."""

    @property
    def directions(self) -> tuple[str, ...]:
        """Supported directions: "up", "down", "gossip"."""

    def broadcast(self, x: Vector, memory: Memory, at: Site) -> tuple[Packed | Vector, Memory]:
        """Message for ``x [d]``, and the new public copy at the clients; an empty memory if they keep none."""


class Gossip(Protocol):
    """Mechanism for messages between neighbours, without a server, applied to one vector.

    ``fixed`` is true if nodes remember their neighbours' messages, so that W must be the same in every round.
    """

    fixed: bool

    @property
    def directions(self) -> tuple[str, ...]:
        """Supported directions: "up", "down", "gossip"."""

    @property
    def gamma(self) -> float:
        """Step size towards the neighbours' mean for tensors that are not compressed."""

    def offer(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        """Compressed message for ``v [d]``, and the node's new memory."""

    def combine(self, v: Vector, memory: Memory, mixed: Vector) -> tuple[Vector, Memory]:
        """New value and memory of a node; ``mixed`` is the weighted sum of its neighbours' messages and its own."""


@dataclass(frozen=True)
class Plain:
    """Compression without memory, in any direction; meant for low-precision numbers.

    Args:
        compressor: compressor of the messages.
    """

    compressor: Compressor = field(default_factory=TopK)
    directions = ("up", "down", "gossip")
    individual = True
    fixed = False
    gamma = 1.0

    def __post_init__(self) -> None:
        is_compressor(self)

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        return compress(self.compressor, v, memory, at)

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        return mean, ()

    def broadcast(self, x: Vector, memory: Memory, at: Site) -> tuple[Packed | Vector, Memory]:
        return self.compressor.compress(x, at), ()

    def offer(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        return compress(self.compressor, v, memory, at)

    def combine(self, v: Vector, memory: Memory, mixed: Vector) -> tuple[Vector, Memory]:
        return mixed, memory


@dataclass(frozen=True)
class EF14Uplink:
    """Error feedback: the compression error is added to the next message. For messages that the server accumulates.

    Args:
        compressor: compressor of the messages.
    """

    compressor: Compressor = field(default_factory=TopK)
    directions = ("up",)
    individual = True

    def __post_init__(self) -> None:
        contractive(self)

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        e, *warm = memory or (torch.zeros_like(v),)
        p = v + e
        c, more = compress(self.compressor, p, warm, at)
        return c, (p - c.unpack(), *more)

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        return mean, ()


@dataclass(frozen=True)
class WorkerMomentum:
    """No compression: clients send a running mean of their messages, which is less noisy. For robust aggregation.

    Karimireddy, He, Jaggi, ICML 2021 (arXiv 2012.10333): attackers hide in the differences between honest messages.
    Nodes without a server send models and not steps: their momentum is that of local steps, and a setting of DPSGD.

    Args:
        beta: momentum coefficient.
    """

    beta: float = 0.9
    directions = ("up",)
    individual = True
    instead = "; for momentum set local.optimizer to HeavyBall with state keep, or DPSGD's momentum"

    def __post_init__(self) -> None:
        in_range(self, "beta", 0, 1)

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Vector, Memory]:
        (m,) = memory or (torch.zeros_like(v),)
        m = self.beta * m + (1 - self.beta) * v
        return m, (m,)

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        return mean, ()


@dataclass(frozen=True)
class EF21Uplink:
    """Compressed differences to a running estimate of the message. For messages that converge, such as gradients.

    Args:
        compressor: contractive compressor of the messages (``Scaled`` makes an unbiased one contractive).
    """

    compressor: Compressor = field(default_factory=TopK)
    directions = ("up",)
    individual = False

    def __post_init__(self) -> None:
        contractive(self)

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        h, *warm = memory or (torch.zeros_like(v),)
        return follow(self.compressor, v, h, warm, at)

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        return _learn(mean, memory, fraction)


@dataclass(frozen=True)
class EControlUplink:
    """EF21 with controlled error feedback. For messages that converge up to noise.

    Args:
        compressor: contractive compressor of the messages (``Scaled`` makes an unbiased one contractive).
        eta: strength of the feedback; by default the compressor's alpha; 0 is EF21. On quadratics with Top-k it
            converged up to 3 alpha and diverged at 4 alpha.
    """

    compressor: Compressor = field(default_factory=TopK)
    eta: float | None = None
    directions = ("up",)
    individual = False

    def __post_init__(self) -> None:
        contractive(self)
        non_negative_or_alpha(self, "eta")

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        e, h, *warm = memory or (torch.zeros_like(v), torch.zeros_like(v))
        eta = (self.compressor.alpha(len(v)) or 0.0) if self.eta is None else self.eta
        c, more = compress(self.compressor, eta * e + v - h, warm, at)
        read = c.unpack()
        return c, (e + v - h - read, h + read, *more)

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        return _learn(mean, memory, fraction)


@dataclass(frozen=True)
class EF21P:
    """Downlink of compressed differences to a public copy of the server's vector, which all clients hold.

    The first message is the uncompressed vector. Returning clients receive the messages they missed, or the whole
    public copy if that is shorter.

    Args:
        compressor: contractive compressor of the messages (``Scaled`` makes an unbiased one contractive).
    """

    compressor: Compressor = field(default_factory=TopK)
    directions = ("down",)

    def __post_init__(self) -> None:
        contractive(self)

    def broadcast(self, x: Vector, memory: Memory, at: Site) -> tuple[Packed | Vector, Memory]:
        if not memory:
            return x, (x,)
        c, (w, *_) = follow(self.compressor, x, memory[0], (), at)
        return c, (w,)


@dataclass(frozen=True)
class Choco:
    """Compressed gossip: nodes hold public copies of their neighbours, and mix them (Koloskova et al., ICML 2019).

        q_i = C(x_i - xhat_i) to the neighbours;   xhat_j <- xhat_j + q_j
        x_i <- x_i + gamma sum_j w_ij (xhat_j - xhat_i)

    Needs full participation and the same W in every round. Tensors that are not of the model's length are sent
    uncompressed and mixed with the same step size gamma.

    Args:
        compressor: contractive compressor of the messages (``Scaled`` makes an unbiased one contractive).
        gamma: consensus step size, in (0, 1]; decrease it with the compressor's alpha.
    """

    compressor: Compressor = field(default_factory=TopK)
    gamma: float = 0.1
    directions = ("gossip",)
    fixed = True

    def __post_init__(self) -> None:
        contractive(self)
        share(self, "gamma")

    def offer(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        xhat, s, *warm = memory or (torch.zeros_like(v), torch.zeros_like(v))
        q, (xhat, *more) = follow(self.compressor, v, xhat, warm, at)
        return q, (xhat, s, *more)

    def combine(self, v: Vector, memory: Memory, mixed: Vector) -> tuple[Vector, Memory]:
        xhat, s, *warm = memory
        s = s + mixed                                      # sum_j w_ij xhat_j, from the differences alone
        return v + self.gamma * (s - xhat), (xhat, s, *warm)


def compress(by: Compressor, v: Vector, warm: Sequence[Tensor], at: Site) -> tuple[Packed, Memory]:
    """Compress ``v [d]``; also return the compressor's own memory: PowerSGD starts from its last directions."""
    if not isinstance(by, PowerSGD):
        return by.compress(v, at), ()
    start = by.start(v, at)
    c = by.warm(v, at, torch.where((warm[0] == 0).all(), start, warm[0]) if warm else start)   # 0: the first message
    return c, (by.memory(c),)


def follow(by: Compressor, v: Vector, h: Vector, warm: Sequence[Tensor], at: Site) -> tuple[Packed, Memory]:
    """Message ``C(v - h)``, and as memory ``h + C(v - h)``, known to both ends, with the compressor's own."""
    c, more = compress(by, v - h, warm, at)
    return c, (h + c.unpack(), *more)


def _learn(mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
    (h,) = memory or (torch.zeros_like(mean),)
    h = h + fraction * mean
    return h, (h,)


UPLINKS: dict[str, type[Uplink | Gossip]] = {
    "Choco": Choco, "EControl": EControlUplink, "EF14": EF14Uplink, "EF21": EF21Uplink, "Plain": Plain,
    "WorkerMomentum": WorkerMomentum,
}  # fmt: skip
DOWNLINKS: dict[str, type[Downlink]] = {"EF21P": EF21P, "Plain": Plain}


def short_name(link: object) -> str:
    """Name of a mechanism in these catalogues, such as "EF21"; else the name of its class."""
    known: dict[str, Any] = {**UPLINKS, **DOWNLINKS}
    return next((name for name, cls in known.items() if cls is type(link)), type(link).__name__)
