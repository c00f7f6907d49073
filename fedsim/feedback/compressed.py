"""Any algorithm with its messages compressed, which it does not notice.

``Compressed`` calls the algorithm's own ``round`` with clients whose verbs compress: every vector of the model's length
in a message goes through the mechanism of ``fedsim.feedback``; what is shorter travels as it is. Each client function
and each vector of its message has a memory of its own, at the client, beside what the algorithm keeps there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor

from fedsim.algorithm import Algorithm, has_server
from fedsim.clients import Clients
from fedsim.errors import ConfigError
from fedsim.feedback.linked import Draw, Linked, Links, each_vector
from fedsim.feedback.mechanisms import DOWNLINKS, UPLINKS, Downlink, Gossip, Memory, Uplink, short_name
from fedsim.tree import leaves
from fedsim.types import Kept, Local
from fedsim.values import Vector


class CompressedState(NamedTuple):
    inner: Any                         # the algorithm's own state
    nodes: Mapping[str, Kept[Memory]]  # what each client remembers for each client function
    server: Mapping[str, Memory]       # what the server remembers for what they send
    public: Mapping[str, Memory]       # public copies of what it has sent them, and the bytes that each client missed

    @property
    def x(self) -> Any:
        """The model, as the algorithm's state has it."""
        return self.inner.x


@dataclass(frozen=True)
class Compressed:
    """An algorithm whose messages are compressed; itself an algorithm.

    Args:
        algorithm: what is run.
        uplink: how clients compress what they send to the server, or nodes what they send to their neighbours.
        downlink: how the server compresses what it sends to clients.

    Raises:
        ConfigError: a mechanism that the algorithm cannot have.
    """

    algorithm: Algorithm[Any]
    uplink: Uplink | Gossip | None = None
    downlink: Downlink | None = None

    def __post_init__(self) -> None:
        name = type(self.algorithm).__name__
        if (self.uplink or self.downlink) is not None and hasattr(self.algorithm, "compressor"):
            raise ConfigError(f"{name} compresses its messages by itself; leave uplink and downlink out")
        if self.downlink is not None and not self.server:
            raise ConfigError(f"{name} has no server and so no downlink; leave it out: uplink is what nodes send")
        _check_link("uplink", self.uplink, "up" if self.server else "gossip", name)
        _check_link("downlink", self.downlink, "down", name)
        by = cast("Uplink | None", self.uplink) if self.server else None
        if by is not None and not by.individual and getattr(self.algorithm, "aggregate", None) is not None:
            raise ConfigError(
                f"uplink {short_name(by)} gives the server the mean of all messages and not each of them, which"
                f" {name}.aggregate needs; use EF14 or Plain"
            )

    @property
    def server(self) -> bool:
        """Whether the algorithm has a server; without one, nodes send to their neighbours."""
        return has_server(self.algorithm)

    def __str__(self) -> str:
        """Names, such as "FedAvg, uplink EF21"."""
        links = [f", {name} {short_name(link)}" for name in ("uplink", "downlink") if (link := getattr(self, name))]
        return type(self.algorithm).__name__ + "".join(links)

    def init(self, x: Vector, clients: Clients) -> CompressedState:
        """See ``Algorithm``."""
        links = Links(self, {}, {}, {})
        inner = self.algorithm.init(x, Linked(clients, links))
        return CompressedState(inner, links.nodes, links.server, links.public)

    def round(self, s: CompressedState, clients: Clients) -> CompressedState:
        """See ``Algorithm``."""
        links = Links(self, dict(s.nodes), dict(s.server), dict(s.public))
        inner = self.algorithm.round(s.inner, Linked(clients, links))
        return CompressedState(inner, links.nodes, links.server, links.public)

    def offer(self, local: Local, step: Tensor, y: Any, memory: Memory) -> tuple[Any, Memory]:
        """Client function of gossip: what is sent instead of a message in the round's ``step``-th exchange."""
        return each_vector(cast(Gossip, self.uplink).offer, y, memory, Draw(local, 0, step))

    def combine(self, local: Local, y: Any, memory: Memory, heard: Any) -> tuple[Any, Memory]:
        """Client function of gossip: what a node has after it heard its neighbours."""
        gossip = cast(Gossip, self.uplink)
        mixed = iter(leaves(heard))
        return each_vector(
            lambda v, own, _: gossip.combine(v, own, next(mixed)),
            y, memory, local, lambda v: v + gossip.gamma * (next(mixed) - v),
        )  # fmt: skip


def _check_link(link: str, by: Uplink | Gossip | Downlink | None, direction: str, algorithm: str) -> None:
    """Raise ConfigError unless ``by`` is a mechanism for the messages of ``algorithm`` in this direction, or None."""
    if by is None:
        return
    if isinstance(by, type) or not hasattr(by, "directions"):
        raise ConfigError(
            f"{link} is {by!r:.80}; expected a mechanism of fedsim.feedback with a compressor, such as"
            " EF14Uplink(TopK(0.01))"
        )
    if direction not in by.directions:
        known: dict[str, Any] = {**UPLINKS, **DOWNLINKS}
        *others, last = [name for name, cls in known.items() if direction in cls.directions]
        raise ConfigError(
            f"{link} {short_name(by)} is for messages {' and '.join(_MESSAGES[other] for other in by.directions)}, but"
            f" {algorithm} needs one for messages {_MESSAGES[direction]}: {', '.join(others)} or {last}"
        )


_MESSAGES = {"up": "to a server", "down": "from a server", "gossip": "among neighbours"}
