"""Any algorithm with compressed messages, without a change to its code.

``Compressed`` calls the algorithm's own ``round`` with clients whose verbs compress: every vector of the model's length
in a message goes through a mechanism of ``fedsim.feedback``; other tensors are sent uncompressed. The mechanism has a
memory at the client for each client function and each vector of its message, separate from those of the algorithm.
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
from fedsim.types import Kept, Local, Sent
from fedsim.values import Vector


class CompressedState(NamedTuple):
    inner: Any                         # the algorithm's own state
    nodes: Mapping[str, Kept[Memory]]  # the mechanism's memories at the clients, by client function
    server: Mapping[str, Memory]       # its memories of their messages at the server
    public: Mapping[str, Memory]       # public copies of broadcast vectors, and the bytes that each client missed

    @property
    def x(self) -> Any:
        """The model in the algorithm's state."""
        return self.inner.x


@dataclass(frozen=True)
class Compressed:
    """An algorithm with compressed messages; itself an algorithm.

    Args:
        algorithm: the algorithm to run.
        uplink: compression of messages from clients to the server or, without one, between neighbours.
        downlink: compression of messages from the server to clients.

    Raises:
        ConfigError: a mechanism does not suit the algorithm.
    """

    algorithm: Algorithm[Any]
    uplink: Uplink | Gossip | None = None
    downlink: Downlink | None = None

    def __post_init__(self) -> None:
        name = type(self.algorithm).__name__
        if (self.uplink or self.downlink) is not None and hasattr(self.algorithm, "compressor"):
            raise ConfigError(f"{name} compresses its messages by itself; leave uplink and downlink out")
        if self.downlink is not None and not self.server:
            raise ConfigError(f"{name} has no server and so no downlink; leave it out: uplink is for all messages")
        _check_link("uplink", self.uplink, "up" if self.server else "gossip", name)
        _check_link("downlink", self.downlink, "down", name)

    @property
    def server(self) -> bool:
        """True if the algorithm has a server; otherwise nodes send to their neighbours."""
        return has_server(self.algorithm)

    def __str__(self) -> str:
        """Name with the mechanisms, such as "FedAvg, uplink EF21"."""
        links = [f", {name} {short_name(link)}" for name in ("uplink", "downlink") if (link := getattr(self, name))]
        return type(self.algorithm).__name__ + "".join(links)

    def init(self, x: Vector, clients: Clients) -> CompressedState:
        """See ``Algorithm``."""
        links = Links(self, {}, {}, {})
        return _state(self.algorithm.init(x, Linked(clients, links)), links)

    def round(self, s: CompressedState, clients: Clients) -> CompressedState:
        """See ``Algorithm``."""
        links = self._links(s)
        return _state(self.algorithm.round(s.inner, Linked(clients, links)), links)

    @property
    def buffer(self) -> int:
        """Messages in a server step of an asynchronous method."""
        return self.algorithm.buffer  # type: ignore[attr-defined,no-any-return]

    def dispatch(self, s: CompressedState, clients: Clients) -> tuple[Sent[Any], CompressedState]:
        """Of an asynchronous method, whose uplink decodes each message: compress those of clients that begin."""
        links = self._links(s)
        sent, inner = self.algorithm.dispatch(s.inner, Linked(clients, links))  # type: ignore[attr-defined]
        return sent, _state(inner, links)

    def arrive(self, s: CompressedState, sent: Sent[Any], clients: Clients) -> CompressedState:
        """A server step of an asynchronous method."""
        links = self._links(s)
        links.names[sent] = "dispatch"                     # the server remembers nothing of these messages
        inner = self.algorithm.arrive(s.inner, sent, Linked(clients, links))  # type: ignore[attr-defined]
        return _state(inner, links)

    def finish(self, s: CompressedState, clients: Clients) -> CompressedState:
        """See ``Algorithm``."""
        end = getattr(self.algorithm, "finish", None)
        if end is None:
            return s
        links = self._links(s)
        return _state(end(s.inner, Linked(clients, links)), links)

    def _links(self, s: CompressedState) -> Links:
        """The memories of a state, for verbs that renew them."""
        return Links(self, dict(s.nodes), dict(s.server), dict(s.public))

    def offer(self, local: Local, step: Tensor, y: Any, memory: Memory) -> tuple[Any, Memory]:
        """Client function of gossip: the compressed message of exchange ``step`` of the round."""
        return each_vector(cast(Gossip, self.uplink).offer, y, memory, Draw(local, 0, step))

    def combine(self, local: Local, y: Any, memory: Memory, received: Any) -> tuple[Any, Memory]:
        """Client function of gossip: the node's value after it has received its neighbours' messages."""
        gossip = cast(Gossip, self.uplink)
        mixed = iter(leaves(received))
        return each_vector(
            lambda v, own, _: gossip.combine(v, own, next(mixed)),
            y, memory, local, lambda v: v + gossip.gamma * (next(mixed) - v),
        )  # fmt: skip


def _state(inner: Any, links: Links) -> CompressedState:
    """The algorithm's own state with the memories as they are after a verb."""
    return CompressedState(inner, links.nodes, links.server, links.public)


EXAMPLES = {"up": "EF14Uplink", "down": "EF21P", "gossip": "Choco"}
"""A mechanism of each direction."""


def _check_link(link: str, by: Uplink | Gossip | Downlink | None, direction: str, algorithm: str) -> None:
    """Raise ConfigError unless ``by`` is None or a mechanism for messages of ``algorithm`` in this direction."""
    if by is None:
        return
    if isinstance(by, type) or not hasattr(by, "directions"):
        raise ConfigError(
            f"{link} is {by!r:.80}; expected a mechanism of fedsim.feedback with a compressor, such as"
            f" {EXAMPLES[direction]}(TopK(0.01))"
        )
    if direction not in by.directions:
        known: dict[str, Any] = {**UPLINKS, **DOWNLINKS}
        *others, last = [name for name, cls in known.items() if direction in cls.directions]
        raise ConfigError(
            f"{link} {short_name(by)} is for messages {' and '.join(_MESSAGES[other] for other in by.directions)}, but"
            f" {algorithm} needs one for messages {_MESSAGES[direction]}: {', '.join(others)} or {last}"
            f"{getattr(by, 'instead', '')}"
        )


_MESSAGES = {"up": "to a server", "down": "from a server", "gossip": "among neighbours"}
