"""How messages are compressed on their way, and what is remembered of what was lost: values for ``Experiment.uplink``
and ``Experiment.downlink``.

v is a vector of a client's message in one round, C the compressor, S the cohort, w_i the clients' weights; what a
client remembers starts at zero and stays with it; there is one memory for each vector that an algorithm sends.

    up:    Plain      send c = C(v);                                                    server: mean_S c
           EF14       send c = C(v + e);    e <- v + e - c;                             server: mean_S c
           EF21       send c = C(v - h);    h <- h + c;                                 server: H <- H + sum_S w_i c
           EControl   send c = C(eta e + v - h);   e <- e + v - h - c,  h <- h + c;     server: as EF21
    down:  Plain      everybody reads C(x)
           EF21P      send c = C(x - w);    w <- w + c;                                 everybody reads w

EF14 (Seide et al. 2014; Stich et al. 2018) makes up later for what is lost: sums over rounds are right up to the last
e, which is what a server needs that adds the messages up. EF21 (Richtárik et al. 2021) and EControl (Gao, Islamov,
Stich 2024) estimate a message that changes little from round to round: exact in the limit, whatever the clients' data.
Their server remembers H, the mean over ALL clients of what they last sent (EF21-PP, Fatkhullin et al. 2021): absent
ones count with what they have sent before. EF21-P is from Gruntkowska, Tyurin, Richtárik 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fedsim.checks import contractive, is_compressor, non_negative_or_alpha, share
from fedsim.compress import PowerSGD, TopK
from fedsim.values import Compressor, Packed, Site, Vector

Memory: TypeAlias = tuple[Tensor, ...]
"""What is remembered of one vector; empty at first."""


class Uplink(Protocol):
    """From clients to a server, for one vector of their messages.

    ``individual`` says whether the server learns each message, and not their mean alone.
    """

    individual: bool

    @property
    def directions(self) -> tuple[str, ...]:
        """Of the messages that it is for: "up", "down", "gossip"."""

    def send(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        """What a client sends instead of ``v [d]``, and what it remembers then."""

    def receive(self, mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
        """What the server takes the mean of the vectors to be, and what it remembers then.

        Args:
            mean: of what the cohort has sent.
            memory: the server's.
            fraction: the cohort's share of the objective.
        """


class Downlink(Protocol):
    """From a server to its clients, for one vector of its messages."""

    @property
    def directions(self) -> tuple[str, ...]:
        """Of the messages that it is for: "up", "down", "gossip"."""

    def broadcast(self, x: Vector, memory: Memory, at: Site) -> tuple[Packed | Vector, Memory]:
        """What is sent instead of ``x [d]``, and then what all clients have of it, if they remember anything."""


class Gossip(Protocol):
    """Among nodes without a server, for one vector of their messages.

    ``fixed`` says whether nodes remember what their neighbours have sent, so that W has to stay as it is.
    """

    fixed: bool

    @property
    def directions(self) -> tuple[str, ...]:
        """Of the messages that it is for: "up", "down", "gossip"."""

    @property
    def gamma(self) -> float:
        """Share by which what is no vector moves to the mean of its neighbours."""

    def offer(self, v: Vector, memory: Memory, at: Site) -> tuple[Packed, Memory]:
        """What a node sends instead of ``v [d]``, and what it remembers then."""

    def combine(self, v: Vector, memory: Memory, mixed: Vector) -> tuple[Vector, Memory]:
        """What a node makes of its ``v`` and the weighted sum of what it and its neighbours have sent."""


@dataclass(frozen=True)
class Plain:
    """Compression without memory. Up, down, and among neighbours, who mix what they read; for low-precision numbers.

    Args:
        compressor: what compresses.
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
    """Error feedback: what is lost is added to the next message. For messages that the server adds up.

    Args:
        compressor: what compresses.
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
class EF21Uplink:
    """The difference to what was sent so far is compressed. For messages that settle, such as gradients.

    Args:
        compressor: what compresses; contractive (``Scaled`` makes an unbiased one so).
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
    """EF21 with a controlled feedback of the error: for messages that settle up to noise.

    Args:
        compressor: what compresses; contractive (``Scaled`` makes an unbiased one so).
        eta: strength of the feedback; the compressor's alpha by default, and EF21 at 0. On quadratics with Top-k it
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
    """Downlink: all clients hold a public copy of the server's vector, and the difference to it is compressed.

    The first message is the whole vector. Clients that were away receive what they have missed, or the whole public
    copy where that is shorter.

    Args:
        compressor: what compresses; contractive (``Scaled`` makes an unbiased one so).
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
    """Compressed gossip: neighbours hold public copies, and mix those (Koloskova, Stich, Jaggi, ICML 2019).

        q_i = C(x_i - xhat_i) to the neighbours;   xhat_j <- xhat_j + q_j
        x_i <- x_i + gamma sum_j w_ij (xhat_j - xhat_i)

    Needs the same topology and everybody in every round. What is no vector of the model's length is sent as it is, and
    moves by the same share gamma.

    Args:
        compressor: what compresses; contractive (``Scaled`` makes an unbiased one so).
        gamma: step size gamma of the consensus, in (0, 1]; the smaller the compressor's alpha, the smaller.
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
    """The message for ``v [d]``, and what the compressor itself remembers: PowerSGD starts from its last directions."""
    if not isinstance(by, PowerSGD):
        return by.compress(v, at), ()
    start = by.start(v, at)
    c = by.warm(v, at, torch.where((warm[0] == 0).all(), start, warm[0]) if warm else start)   # 0: a first message
    return c, (by.memory(c),)


def follow(by: Compressor, v: Vector, h: Vector, warm: Sequence[Tensor], at: Site) -> tuple[Packed, Memory]:
    """The message ``C(v - h)``, and ``h + C(v - h)``, which both ends hold then, with what the compressor remembers."""
    c, more = compress(by, v - h, warm, at)
    return c, (h + c.unpack(), *more)


def _learn(mean: Vector, memory: Memory, fraction: float) -> tuple[Vector, Memory]:
    (h,) = memory or (torch.zeros_like(mean),)
    h = h + fraction * mean
    return h, (h,)


UPLINKS: dict[str, type[Uplink | Gossip]] = {
    "Choco": Choco, "EControl": EControlUplink, "EF14": EF14Uplink, "EF21": EF21Uplink, "Plain": Plain,
}  # fmt: skip
DOWNLINKS: dict[str, type[Downlink]] = {"EF21P": EF21P, "Plain": Plain}


def short_name(link: object) -> str:
    """The name of a mechanism in these catalogues, such as "EF21", or that of its class."""
    known: dict[str, Any] = {**UPLINKS, **DOWNLINKS}
    return next((name for name, cls in known.items() if cls is type(link)), type(link).__name__)
