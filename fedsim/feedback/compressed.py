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
from fedsim.feedback.mechanisms import Downlink, Gossip, Memory, Uplink, short_name
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
        name, server = type(self.algorithm).__name__, has_server(self.algorithm)
        up, down = short_name(self.uplink), short_name(self.downlink)
        if (self.uplink or self.downlink) is not None and hasattr(self.algorithm, "compressor"):
            raise ConfigError(f"{name} compresses its messages by itself; leave uplink and downlink out")
        for link, by in (("uplink", self.uplink), ("downlink", self.downlink)):
            if hasattr(by, "compress") or hasattr(by, "round"):
                raise ConfigError(
                    f"{link} is {by!r:.80}, a{' compressor' if hasattr(by, 'compress') else 'n algorithm'}; expected a"
                    " mechanism of fedsim.feedback with a compressor, such as EF14Uplink(TopK(0.01))"
                )
        if self.downlink is not None and not hasattr(self.downlink, "broadcast"):
            raise ConfigError(f"downlink is {down}, which goes up; use EF21P or Plain")
        if server is False and self.downlink is not None:
            raise ConfigError(f"{name} has no server and so no downlink; leave it out: uplink is what nodes send")
        if self.uplink is not None and not (hasattr(self.uplink, "send") or hasattr(self.uplink, "offer")):
            raise ConfigError(f"uplink is {up}, which goes down; use EF14, EF21, EControl, Plain or, in gossip, Choco")
        if self.uplink is None or server is None:
            return
        if server and not hasattr(self.uplink, "send"):
            raise ConfigError(f"uplink {up} is for gossip, and {name} has a server; use EF14, EF21, EControl or Plain")
        if not server and not hasattr(self.uplink, "offer"):
            raise ConfigError(f"uplink {up} needs a server, and {name} has none; use Choco or Plain")
        if getattr(self.algorithm, "aggregate", None) is not None and not cast(Uplink, self.uplink).individual:
            raise ConfigError(
                f"uplink {up} gives the server the mean of all messages and not each of them, which"
                f" {name}.aggregate needs; use EF14 or Plain"
            )

    @property
    def gossips(self) -> bool:
        """Whether nodes send to their neighbours and not to a server."""
        server = has_server(self.algorithm)
        return not (hasattr(self.uplink, "send") if server is None else server)

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

    def offer(self, local: Local, step: Tensor, mine: tuple[Any, Memory]) -> tuple[Any, tuple[Any, Memory]]:
        """Client function of gossip: what is sent instead of a message in the round's ``step``-th exchange."""
        y, memory = mine
        message, memory = each_vector(cast(Gossip, self.uplink).offer, y, memory, Draw(local, 0, step))
        return message, (y, memory)

    def combine(self, local: Local, _: None, mine: Any) -> tuple[Vector, tuple[Any, Memory]]:
        """Client function of gossip: what a node has after it heard its neighbours."""
        gossip = cast(Gossip, self.uplink)
        (y, memory), heard = mine
        mixed = iter(leaves(heard))
        share = getattr(gossip, "gamma", 1.0)
        x, memory = each_vector(
            lambda v, own, _: gossip.combine(v, own, next(mixed)),
            y, memory, local, lambda v: v + share * (next(mixed) - v),
        )  # fmt: skip
        return leaves(x)[0].sum(), (x, memory)             # the message is not sent
