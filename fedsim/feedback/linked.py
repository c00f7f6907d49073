"""The clients passed to an algorithm with compressed messages: the same verbs, with the mechanisms' memories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.clients import Clients
from fedsim.engine.federation import message_and_memories
from fedsim.errors import ConfigError, title
from fedsim.feedback.mechanisms import Downlink, Gossip, Memory, Uplink, short_name
from fedsim.messages.mixing import spread
from fedsim.messages.rebuilt import Rebuilt
from fedsim.messages.wire import nbytes
from fedsim.tree import StackedRows, build, leaves, rebuilt, unpacked
from fedsim.types import Kept, Local, Sent
from fedsim.values import Packed, Site, Vector


def each_vector(
    fn: Callable[[Vector, Memory, Site], tuple[Any, Memory]],
    tree: Any,
    memory: Memory,
    at: Site,
    other: Callable[[Tensor], Tensor] = lambda leaf: leaf,
) -> tuple[Any, Memory]:
    """Replace every vector of the model's length by ``fn(vector, its memory, at)`` and other leaves by ``other(leaf)``;
    also return the new memories, concatenated.
    """
    _refuse_packed(tree)
    d = sum(shape.numel() for shape in at.shapes)
    parts = leaves(tree)
    long = [is_vector(leaf, d) for leaf in parts]
    size = len(memory) // max(1, sum(long))
    out: list[Any] = []
    new: list[Tensor] = []
    for leaf, is_long in zip(parts, long, strict=True):
        if not is_long:
            out.append(other(leaf))
            continue
        start = len(new)
        result, own = fn(leaf, memory[start : start + size], Draw(at, len(out)))
        out.append(result)
        new += own
    return build(tree, iter(out)), tuple(new)


def is_vector(leaf: Tensor, d: int) -> bool:
    """Return whether links compress this tensor of a message: a vector of the model's length ``d``."""
    return leaf.is_floating_point() and leaf.shape == (d,)


def moved(copies: Sequence[Tensor], message: Any) -> Any:
    """Decode a message relative to public copies: each compressed difference is added to its copy.

    Raises:
        ConfigError: the message has more compressed vectors than there are copies.
    """
    left = iter(copies)

    def read(branch: Any) -> Any:
        if isinstance(branch, Packed):
            return next(left) + branch.unpack()
        return rebuilt(branch, [read(part) for part in branch]) if isinstance(branch, tuple) else branch

    try:
        return read(message)
    except StopIteration:
        raise ConfigError(f"a message updates more public copies than the {len(copies)} held here") from None


def _refuse_packed(tree: Any) -> None:
    if isinstance(tree, Packed):
        raise ConfigError(f"the algorithm compresses its messages by itself ({tree.by}); leave uplink and downlink out")
    for branch in tree if isinstance(tree, tuple) else ():
        _refuse_packed(branch)


class Draw:
    """A site with separate randomness for each tensor ``k`` of a message and each exchange ``step`` of a round."""

    def __init__(self, at: Site, k: int, step: Tensor | int = 0) -> None:
        self._at, self._k, self._step = at, k, step

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._at.shapes

    def key(self, tag: int = 0) -> Tensor:
        return self._at.key(tag + 1000 * self._k) + self._step


@dataclass(frozen=True)
class Upload:
    """A client function with its input unpacked and its message compressed.

    The last memory is the mechanism's, the others are those of ``fn``.

    Args:
        fn: client function of the algorithm.
        by: compression of the message; None for none.
    """

    fn: Callable[..., Any]
    by: Uplink | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "__qualname__", title(self.fn))   # for error messages

    def __call__(self, local: Local, down: Any, *mine: Any) -> tuple[Any, ...]:
        *own, memory = mine
        message, *new = message_and_memories(self.fn(local, unpacked(down), *own), reads=bool(own))
        if self.by is not None:
            message, memory = each_vector(self.by.send, message, memory, local)
        return message, *new, memory


@dataclass(frozen=True)
class Offer:
    """A client function of gossip with its message compressed; the node keeps the original message as a memory.

    Args:
        fn: client function of the algorithm.
        by: compression of the message.
    """

    fn: Callable[..., Any]
    by: Gossip

    def __post_init__(self) -> None:
        object.__setattr__(self, "__qualname__", title(self.fn))

    def __call__(self, local: Local, down: Any, *mine: Any) -> tuple[Any, ...]:
        *own, memory = mine
        message, *new = message_and_memories(self.fn(local, down, *own), reads=bool(own))
        compressed, memory = each_vector(self.by.offer, message, memory, Draw(local, 0))
        return compressed, *new, message, memory


@dataclass(frozen=True)
class Hearing:
    """A client function that sends nothing, with its input unpacked.

    Args:
        fn: client function of the algorithm.
    """

    fn: Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__qualname__", title(self.fn))

    def __call__(self, local: Local, down: Any, *mine: Any) -> Any:
        return self.fn(local, unpacked(down), *mine)


class LinkSettings(Protocol):
    """The settings of links, and the client functions of compressed gossip: those of ``Compressed``."""

    @property
    def server(self) -> bool: ...
    @property
    def uplink(self) -> Uplink | Gossip | None: ...
    @property
    def downlink(self) -> Downlink | None: ...
    def offer(self, local: Local, step: Tensor, y: Any, memory: Memory) -> tuple[Any, Memory]: ...
    def combine(self, local: Local, y: Any, memory: Memory, heard: Any) -> tuple[Any, Memory]: ...


@dataclass
class Links:
    """Compression in one round: the settings, and the current memories."""

    settings: LinkSettings
    nodes: dict[str, Kept[Memory]]
    server: dict[str, Memory]
    public: dict[str, Memory]
    names: dict[Sent[Any], str] = field(default_factory=dict)
    means: dict[Sent[Any], Any] = field(default_factory=dict)
    offered: dict[Sent[Any], tuple[Kept[Any], Kept[Memory]]] = field(default_factory=dict)   # uncompressed, at nodes
    functions: dict[str, tuple[Any, Any]] = field(default_factory=dict)   # owner and code, by name

    def name(self, fn: Callable[..., Any]) -> str:
        """Name under which the memories of a client function are stored; raises ConfigError if it is ambiguous."""
        while isinstance(fn, partial):
            fn = fn.func
        name: str = getattr(fn, "__name__", type(fn).__name__)
        owner, code = getattr(fn, "__self__", None), getattr(fn, "__code__", fn)
        known_owner, known_code = self.functions.setdefault(name, (owner, code))
        if owner is not known_owner or code != known_code:
            raise ConfigError(
                f"two client functions of a round are called {name}, and would share the memories of their"
                " messages; give them different names, or leave uplink and downlink out"
            )
        return name

    def memory(self, name: str, n: int) -> Kept[Any]:
        """Memories of a client function at the nodes; initially empty."""
        return self.nodes.get(name, Kept(n, ()))

    def remember(self, name: str, memory: Kept[Memory]) -> None:
        """Update the memories of a client function at the nodes of ``memory``."""
        if leaves(memory.default):
            self.nodes[name] = self.nodes[name] | memory if name in self.nodes else memory


class Linked(Clients):
    """Clients whose messages are compressed, in both directions."""

    def __init__(self, clients: Clients, links: Links) -> None:
        super().__init__(clients._federation, clients._meter, clients.ids, clients.round)
        self._links, self._bare, self.tasks = links, clients, clients.tasks

    @property
    def stale(self) -> np.ndarray:
        return self._bare.stale

    def _factors(self, factors: np.ndarray, sent: Sent[Any]) -> np.ndarray:
        return self._bare._factors(factors, sent)

    @property
    def population(self) -> Clients:
        return Linked(super().population, self._links)

    def only(self, chosen: np.ndarray) -> Clients:
        return Linked(super().only(chosen), self._links)

    def each(self, fn: Callable[..., Any], down: Any, *mine: Kept[Any]) -> Any:
        links, name = self._links, self._links.name(fn)
        if isinstance(down, Rebuilt):
            raise ConfigError(
                f"{title(fn)} is of a method that chooses by itself what it sends; leave uplink and downlink out"
            )
        if not links.settings.server:
            return self._offered(name, fn, down, mine)
        down, down_bytes = self._broadcast(name, down)
        upload = Upload(fn, cast("Uplink | None", links.settings.uplink))
        sent, *new, memory = self._each(upload, down, (*mine, links.memory(name, self.n)), down_bytes)
        links.names[sent] = name
        links.remember(name, memory)
        return (sent, *new) if new else sent

    def _offered(self, name: str, fn: Callable[..., Any], down: Any, mine: Sequence[Kept[Any]]) -> Any:
        """`each` without a server: the message is the first exchange of the gossip that follows."""
        links, by = self._links, cast("Gossip | None", self._links.settings.uplink)
        if by is None:
            result: Any = super().each(fn, down, *mine)
            links.names[result if isinstance(result, Sent) else result[0]] = name
            return result
        sent, *new, message, memory = self._each(Offer(fn, by), down, (*mine, links.memory(name, self.n)))
        links.names[sent], links.offered[sent] = name, (message, memory)
        return (sent, *new) if new else sent

    def apply(self, fn: Callable[..., Any], *mine: Kept[Any], down: Any = None) -> Any:
        if down is None or self._links.settings.downlink is None:
            return super().apply(fn, *mine, down=down)
        down, down_bytes = self._broadcast(self._links.name(fn), down)
        _, new = self._run("apply", Hearing(fn), down, mine, down_bytes)
        return new[0] if len(new) == 1 else new

    def _broadcast(self, name: str, down: Any) -> tuple[Any, np.ndarray | None]:
        """Compress ``down``: its value as clients decode it, and the bytes sent to each; None for its own size."""
        by, public = self._links.settings.downlink, self._links.public
        if by is None or down is None:
            return down, None
        *memory, behind = public.get(name, (torch.full((self.n,), nbytes(down)),))
        message, copies = each_vector(by.broadcast, down, tuple(memory), self)
        if not copies:
            return message, None
        publish = getattr(self._federation.backend, "publish", None)
        if publish is not None:                            # remote clients hold their own copies
            publish(name, message, nbytes(down))
        behind = (behind + nbytes(message)).clamp(max=nbytes(down))
        down_bytes = behind[self.ids].cpu().numpy()
        behind[self.ids] = 0
        public[name] = (*copies, behind)
        held = iter(copies)
        return each_vector(lambda x, _, at: (next(held), ()), down, (), self)[0], down_bytes

    def mean(self, sent: Sent[Any], factors: np.ndarray | None = None, *, behind: float = 0.0) -> Any:
        links = self._links
        by, name = cast("Uplink | None", links.settings.uplink), links.names[sent]
        if by is None or (by.individual and factors is not None):
            return super().mean(sent, factors, behind=behind)
        if factors is not None:
            raise ConfigError(
                f"uplink {short_name(by)} gives the server the mean of messages with the clients' own weights, but"
                " this algorithm multiplies them by factors; leave the uplink out"
            )
        if sent not in links.means:                        # else the server's memory would be updated twice
            fraction = float(self._federation.p[sent.ids].sum())
            mean = super().mean(sent, behind=behind)
            links.means[sent], memory = each_vector(
                lambda v, own, _: by.receive(v, own, fraction), mean, links.server.get(name, ()), self
            )
            if memory:
                links.server[name] = memory
        return links.means[sent]

    def reduce(self, sent: Sent[Any], rule: Callable[[Any, Tensor], Any], *, behind: float = 0.0) -> Any:
        by = cast("Uplink | None", self._links.settings.uplink)
        if by is not None and not by.individual:
            raise ConfigError(
                f"uplink {short_name(by)} gives the server the mean of all messages and not each of them, which this"
                " algorithm needs; use EF14 or Plain"
            )
        return super().reduce(sent, rule, behind=behind)

    def _gossip(self, sent: Sent[Any], steps: int, behind: float, fixed: bool = False, **needs: Any) -> Kept[Any]:
        links, meter = self._links, self._meter
        by, name = links.settings.uplink, links.names[sent]
        if by is None:
            return super()._gossip(sent, steps, behind, fixed, **needs)
        (x, memory), message = links.offered[sent], sent
        before = _spread(x, self.ids) if meter.measures else 0.0
        measures, meter.measures = meter.measures, False   # mixing differences is no measure of the models
        free = np.zeros(len(self), np.int64)               # every node knows the number of the exchange
        try:
            for step in range(steps):
                if step:
                    message, memory = self._each(links.settings.offer, torch.tensor(step), (x, memory), free)
                last = step == steps - 1
                received = super()._gossip(message, 1, behind * last, fixed or cast(Gossip, by).fixed, **needs)
                x, memory = super().apply(links.settings.combine, x, memory, received)
            links.remember(name, memory)
        finally:
            meter.measures = measures
        if measures:
            meter.mixed(_spread(x, x.rows) / before if before else None, None, steps)
        return x


def _spread(x: Kept[Any], order: Iterable[int]) -> float:
    nodes = list(order)
    if isinstance(x.rows, StackedRows) and len(x.rows) == x.n:
        return spread(leaves(x.rows.of(np.array(nodes)))[0])
    return spread(torch.stack([leaves(x[i])[0] for i in nodes]))
