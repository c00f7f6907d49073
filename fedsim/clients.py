"""``Clients``: the nodes of one round, and the only thing that can run code on a node or move a byte.

Every verb charges the ledger for what it moves, so an algorithm cannot communicate without paying. How code reaches the
nodes is a backend's matter; ``fedsim.engine.loop`` runs one client after the other and is the meaning of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.errors import ConfigError, DivergenceError, explained, title
from fedsim.gossip import check, check_fixed, mixing_matrix, restrict, weigh
from fedsim.messages.wire import nbytes
from fedsim.tree import tree_map, unpacked, zeros_like
from fedsim.types import Kept, Messages, NamedTree, Sent
from fedsim.values import Far, Packed, Vector

if TYPE_CHECKING:
    pass

M = TypeVar("M")
K = TypeVar("K")
L = TypeVar("L")
N = TypeVar("N", bound=NamedTree)
V = TypeVar("V")
C = TypeVar("C")


def cohort(
    federation: Federation, round: int, ids: np.ndarray | None = None, meter: Meter | None = None
) -> Clients:
    """The clients ``ids`` (everybody by default) in round ``round``; round 0 is initialisation.

    What they cost is charged to ``meter``; to one that is thrown away by default.

    Raises:
        ConfigError: ``ids`` repeats a client, or names one that does not exist.
    """
    n = federation.shards.n
    chosen = np.arange(n) if ids is None else np.unique(ids)
    if ids is not None and (len(chosen) != len(ids) or chosen.dtype.kind not in "iu" or (chosen >= n).any()):
        raise ConfigError(f"cohort of round {round} is {ids!r:.80}; expected different client numbers below {n}")
    return Clients(federation, meter or Meter(federation), chosen, round)


class Clients:
    """The nodes ``ids`` taking part in one round; an empty cohort is false."""

    def __init__(self, federation: Federation, meter: Meter, ids: np.ndarray, round: int) -> None:
        self._federation, self._meter = federation, meter
        self.ids = ids
        self.round = round

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n(self) -> int:
        """Number of clients in the population."""
        return self._federation.shards.n

    @property
    def cohort_size(self) -> float:
        """Expected number of clients in a round."""
        return self._federation.cohort_size or float(self.n)

    @property
    def fraction(self) -> float:
        """Share of the objective that this cohort holds: sum of its p_i; |S| / n with uniform weights."""
        return float(self._federation.p[self.ids].sum())

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the model's parameters, in the order in which the vector holds them."""
        return tuple(self._federation.model.shapes)

    def key(self, tag: int = 0) -> Tensor:
        """The server's randomness in this round, for what it compresses; see ``fedsim.values.Site``."""
        keys = seeds.key(self._federation.seed, f"server {tag}", self.round, np.zeros(1, np.int64))
        return keys[0].to(self._federation.model.device)

    def toss(self, p: float) -> bool:
        """One coin for all nodes, True with probability ``p``; everybody derives it from the seed and the round."""
        return bool(seeds.uniform(self._federation.seed, "coin", self.round, 0) < p)

    @property
    def decay(self) -> Tensor:
        """The learning-rate schedule's factor in this round, 0-dim, for steps that the server makes."""
        return self._federation.factor(self.round)

    @property
    def population(self) -> Clients:
        """Everybody, in the same round."""
        return cohort(self._federation, self.round, meter=self._meter)

    def keep(self, value: V) -> Kept[V]:
        """``value`` as the first memory of every node; agreed upon beforehand, so it costs nothing."""
        return Kept(self.n, value)

    @overload
    def each(self, fn: Callable[..., M], down: Any) -> Sent[M]: ...
    @overload
    def each(self, fn: Callable[..., N], down: Any, *mine: Kept[Any]) -> Sent[N]: ...
    @overload
    def each(self, fn: Callable[..., tuple[M, K]], down: Any, *mine: Kept[Any]) -> tuple[Sent[M], Kept[K]]: ...
    @overload
    def each(
        self, fn: Callable[..., tuple[M, K, L]], down: Any, *mine: Kept[Any]
    ) -> tuple[Sent[M], Kept[K], Kept[L]]: ...
    @overload
    def each(
        self, fn: Callable[..., tuple[M, K, L, V]], down: Any, *mine: Kept[Any]
    ) -> tuple[Sent[M], Kept[K], Kept[L], Kept[V]]: ...
    @overload
    def each(self, fn: Callable[..., M], down: Any, *mine: Kept[Any]) -> Sent[M]: ...
    def each(self, fn: Callable[..., Any], down: Any, *mine: Kept[Any]) -> Any:
        """Send ``down`` to every node of the cohort, run ``fn(local, down, *memories)`` there, and have it send back.

        ``down`` is charged once for every node; None is no message.

        Args:
            fn: client function. Without memories it returns a message. With memories it returns a tuple of a message
                and the new memories, as many as there are; or a message alone, if it only reads them. (A message of
                several vectors is a tuple within that tuple, or a NamedTuple.)
            down: message of the server: a tensor, a compressed vector, or a tuple of them.
            mine: memories that ``fn`` reads.

        Returns:
            The messages; in a tuple with the new memories of the cohort, where there are any.

        Raises:
            DivergenceError: a message holds NaN or infinity; names the clients.
        """
        return self._each(fn, down, mine)

    def _each(
        self, fn: Callable[..., Any], down: Any, mine: Sequence[Kept[Any]], weighs: np.ndarray | None = None
    ) -> Any:
        messages, new = self._run("each", fn, down, mine, weighs)
        assert messages is not None
        self._check_finite(messages, title(fn))
        sent = Sent(self.ids, messages)
        return (sent, *new) if new else sent

    @overload
    def apply(self, fn: Callable[..., N], *mine: Kept[Any], down: Any = None) -> Kept[N]: ...
    @overload
    def apply(  # type: ignore[overload-overlap]   # a plain tuple is several memories
        self, fn: Callable[..., tuple[K, L]], *mine: Kept[Any], down: Any = None
    ) -> tuple[Kept[K], Kept[L]]: ...
    @overload
    def apply(  # type: ignore[overload-overlap]
        self, fn: Callable[..., tuple[K, L, V]], *mine: Kept[Any], down: Any = None
    ) -> tuple[Kept[K], Kept[L], Kept[V]]: ...
    @overload
    def apply(self, fn: Callable[..., K], *mine: Kept[Any], down: Any = None) -> Kept[K]: ...
    def apply(self, fn: Callable[..., Any], *mine: Kept[Any], down: Any = None) -> Any:
        """Work that sends nothing: run ``fn(local, *memories)`` at every node of the cohort, and keep what it returns.

        Args:
            fn: client function; returns a new memory, or a tuple of several (one of several tensors is a NamedTuple).
            mine: memories that ``fn`` reads.
            down: what the server sends first, if anything; charged as in `each`, and the argument after ``local``.

        Returns:
            The new memory of the cohort, or a tuple of them.
        """
        _, new = self._run("apply", fn, down, mine)
        return new[0] if len(new) == 1 else new

    def _run(
        self, verb: str, fn: Callable[..., Any], down: Any, mine: Sequence[Kept[Any]], weighs: np.ndarray | None = None
    ) -> tuple[Messages[Any] | None, tuple[Kept[Any], ...]]:
        """Run a client function. Where nodes make ``down`` from what they hold, ``weighs [c]`` are the bytes that
        travel instead.
        """
        if not len(self):
            raise ConfigError(f"clients.{verb} in round {self.round}: the cohort is empty; test `if clients:` first")
        if down is not None:
            self._meter.ledger.down[self.ids] += nbytes(down) if weighs is None else weighs
        call = ClientCall(fn, self.ids, self.round, down, joined(mine, self.ids), verb == "each")
        with explained(title(fn), self.round):
            messages, rows = self._federation.backend.run(self._federation, self._meter, call)
        count = len(next(iter(rows.values()), ()))
        return messages, tuple(self._kept({node: row[k] for node, row in rows.items()}) for k in range(count))

    @overload
    def mean(self, sent: Sent[Packed] | Sent[Vector | Packed], factors: np.ndarray | None = None) -> Vector: ...
    @overload
    def mean(self, sent: Sent[M], factors: np.ndarray | None = None) -> M: ...
    def mean(self, sent: Sent[Any], factors: np.ndarray | None = None) -> Any:
        """Receive the messages: their mean weighted by p_i over the cohort; of compressed ones, that of the vectors.

        ``factors [n]`` multiply the nodes' weights.
        """
        self._charge_up(sent, "mean")
        w = self._cohort_weights(sent)
        return sent.messages.mean(w if factors is None else w * torch.from_numpy(factors[sent.ids]).to(w))

    def reduce(self, sent: Sent[Any], rule: Callable[[Any, Tensor], V]) -> V:
        """Receive the messages and aggregate them by ``rule(rows, weights [c])``, such as a ``fedsim.types.Rule``.

        The tensors of ``rows`` are ``[c, ...]`` in the order of ``ids``; compressed vectors come unpacked.
        """
        self._charge_up(sent, "reduce")
        return rule(unpacked(sent.stacked), self._cohort_weights(sent).to(self._federation.model.dtype))

    def mix(self, sent: Sent[M], steps: int = 1, *, symmetric: bool = False, fixed: bool = False) -> Kept[M]:
        """Gossip: each node sends its message to its neighbours and holds ``sum_j w_ij m_j``; ``steps`` times.

        W is the round's mixing matrix among the cohort; nodes that are away neither speak nor hear. Every directed
        edge is charged once a step. Where the p_i differ, W is made one that they weigh (`fedsim.gossip.weigh`).

        Args:
            sent: a message of every node of the cohort.
            steps: how often to exchange, each time what the last exchange gave; compressed messages travel once.
            symmetric: whether the method needs a symmetric W.
            fixed: whether it needs everybody and the same W in every round, as nodes remember what neighbours sent.

        Raises:
            ConfigError: there is no topology, or W is not doubly stochastic.
        """
        return self._gossip(sent, steps, fixed=fixed, symmetric=symmetric)

    def push(self, sent: Sent[M]) -> Kept[M]:
        """Like ``mix``, over any directed graph: only the columns of W must sum to 1, so that mass is kept."""
        return self._gossip(sent, 1, rows=False)

    def _gossip(self, sent: Sent[M], steps: int, fixed: bool = False, **needs: bool) -> Kept[M]:
        fed = self._federation
        if fed.topology is None:
            raise ConfigError("without a server a topology is needed, such as --topology Static --topology.graph Ring")
        whole, sums = mixing_matrix(fed.topology, self.round, fed.seed, self.n), needs.get("rows", True)
        check(whole, self.round, **needs)
        w = restrict(whole, sent.ids, self.round, sums)
        if fixed:
            check_fixed(w, fed.topology, self.round, fed.seed, self.n)
        w = weigh(w, fed.p[sent.ids], self.round, sums)
        edges = w.tocoo()
        links = edges.row != edges.col
        to, by = edges.row[links], edges.col[links]
        meter = self._meter
        meter.ledger.charge_edges(sent.ids[to], sent.ids[by], steps * sent.messages.sizes()[by])
        np.add.at(meter.ledger.paper_bits, sent.ids[by], steps * sent.messages.paper_bits()[by])
        rows, contraction = sent.messages.mix(w, steps, meter.measures)
        if meter.measures:
            meter.mixed(contraction, w if sums else None, steps)
        if len(rows) < self.n:                             # else a row would keep the stack of its round alive
            rows = [tree_map(lambda x: x if isinstance(x, Far) else x.clone(), row) for row in rows]
        return self._kept(dict(zip(sent.ids.tolist(), rows, strict=True)))

    def _kept(self, rows: dict[int, Any]) -> Kept[Any]:
        put = self._federation.memory.put
        first = next(iter(rows.values()))                  # gives the shape of a memory that a client makes anew
        return Kept(self.n, zeros_like(first), {node: tree_map(put, row) for node, row in rows.items()})

    def split(self, p: float) -> tuple[Clients, Clients]:
        """Each client tosses its own coin: those with heads (probability ``p``), and the others."""
        if not 0 <= p <= 1:
            raise ConfigError(f"clients.split({p}): expected a probability in [0, 1]")
        heads = seeds.uniform(self._federation.seed, "role", self.round, self.ids) < p
        return self.only(heads), self.only(~heads)

    def only(self, chosen: np.ndarray) -> Clients:
        """Those of the cohort for whom ``chosen [c]``, in the order of ``ids``, is true."""
        return Clients(self._federation, self._meter, self.ids[chosen], self.round)

    def _charge_up(self, sent: Sent[Any], verb: str) -> None:
        if not isinstance(sent, Sent):
            raise ConfigError(f"clients.{verb} takes what clients.each sent, and not a {type(sent).__name__}")
        meter = self._meter
        if sent not in meter.delivered:                    # a message is uploaded once, however often it is read
            meter.delivered.add(sent)
            meter.ledger.up[sent.ids] += sent.messages.sizes()
            meter.ledger.paper_bits[sent.ids] += sent.messages.paper_bits()

    def _cohort_weights(self, sent: Sent[Any]) -> Tensor:
        p = self._federation.p[sent.ids]
        return torch.from_numpy(p / p.sum()).to(self._federation.model.device)

    def _check_finite(self, messages: Messages[Any], name: str) -> None:
        bad = self.ids[~messages.finite()]
        if len(bad):
            raise DivergenceError(
                f"{name} in round {self.round}: client {', '.join(map(str, bad[:5]))}{' ...' if len(bad) > 5 else ''}"
                f" sent NaN or infinity ({len(bad)} of {len(self)} clients). Lower the learning rate, set"
                " local.clip_norm, or look at these clients' data."
            )


def joined(mine: Sequence[Kept[Any]], ids: np.ndarray) -> Kept[tuple[Any, ...]] | None:
    """Several memories of the nodes ``ids`` as one tuple a node; None of none."""
    if not mine:
        return None
    nodes = [node for node in ids.tolist() if any(node in kept.rows for kept in mine)]
    rows = {node: tuple(kept.rows.get(node, kept.default) for kept in mine) for node in nodes}
    return Kept(mine[0].n, tuple(kept.default for kept in mine), rows)
