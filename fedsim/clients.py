"""``Clients``: the nodes of one round, and the only interface that runs code on a node or transfers a byte.

Every verb charges the ledger for the bytes it transfers, so no communication goes uncounted. The backend decides how
client code runs; ``fedsim.engine.loop``, one client after the other, defines the semantics of all backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.arrays import distinct
from fedsim.engine.exchanges import along, exchange_among
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.memory import stored
from fedsim.engine.refusals import check_arguments, check_finite, check_sent, no_such_word
from fedsim.errors import ConfigError, title
from fedsim.messages.rebuilt import Rebuilt
from fedsim.messages.trace import Computed, Exchanged, Uploaded
from fedsim.messages.upload import upload
from fedsim.messages.wire import nbytes
from fedsim.tree import StackedRows, by_column, leaves, unpacked, zeros_like
from fedsim.types import Kept, Messages, NamedTree, Sent, joined
from fedsim.values import Packed, Vector

M = TypeVar("M")
K = TypeVar("K")
L = TypeVar("L")
N = TypeVar("N", bound=NamedTree)
V = TypeVar("V")
C = TypeVar("C")


def cohort(
    federation: Federation, round: int, ids: np.ndarray | None = None, meter: Meter | None = None
) -> Clients:
    """Clients ``ids`` (all by default) in round ``round``; round 0 is the initialisation.

    Costs are charged to ``meter``; by default to one that is discarded.

    Raises:
        ConfigError: ``ids`` contains a client twice, or one that does not exist.
    """
    n = federation.shards.n
    chosen = np.arange(n) if ids is None else ids if _increasing(ids) else distinct(ids)
    if ids is not None and (len(chosen) != len(ids) or chosen.dtype.kind not in "iu" or (chosen >= n).any()):
        raise ConfigError(f"cohort of round {round} is {ids!r:.80}; expected distinct client ids below {n}")
    return Clients(federation, meter or Meter(federation), chosen, round)


class Clients:
    """The nodes ``ids`` that participate in one round; an empty cohort is false."""

    def __init__(self, federation: Federation, meter: Meter, ids: np.ndarray, round: int) -> None:
        self._federation, self._meter, self._ids = federation, meter, ids
        self.round = round
        self.tasks: np.ndarray | None = None               # numbers of the nodes' own tasks, if rounds are not common

    @property
    def ids(self) -> np.ndarray:
        """Their numbers ``[c]``; those for whom the server no longer waits in this round are not among them."""
        gone = self._meter.gone
        return self._ids if gone is None else self._ids[~gone[self._ids]]

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
        """The cohort's share of the objective: the sum of its p_i; |S| / n with uniform weights."""
        return float(self._federation.p[self.ids].sum())

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the model's parameters, in the order of the flat vector."""
        return self._federation.model.shared_shapes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those parameters."""
        return self._federation.model.shared_names

    def key(self, tag: int = 0) -> Tensor:
        """Random key of the server in this round, for its compression; see ``fedsim.values.Site``."""
        keys = seeds.key(self._federation.seed, f"server {tag}", self.round, np.zeros(1, np.int64))
        return keys[0].to(self._federation.model.device)

    def toss(self, p: float) -> bool:
        """Shared coin flip, True with probability ``p``; all nodes derive it from the seed and the round."""
        return bool(seeds.uniform(self._federation.seed, "coin", self.round, 0) < p)

    @property
    def stale(self) -> np.ndarray:
        """Server steps since the client of each message began, int64 ``[c]``; 0 in synchronous rounds."""
        return np.zeros(len(self), np.int64)

    @property
    def met(self) -> Clients:
        """The two nodes of a meeting, in ``arrive`` of an asynchronous method without a server."""
        raise ConfigError("clients.met is of meetings, in arrive of a method without a server that runs asynchronously")

    @property
    def decay(self) -> Tensor:
        """Factor of the learning-rate schedule in this round, 0-dim, for steps of the server."""
        return self._federation.factor(self.round)

    @property
    def population(self) -> Clients:
        """All clients, in the same round."""
        return cohort(self._federation, self.round, meter=self._meter)

    def keep(self, value: V) -> Kept[V]:
        """Initial memory ``value`` at every node; known to all in advance, so it is free of charge."""
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
        """Send ``down`` to every node of the cohort, run ``fn(local, down, *memories)`` there, and collect messages.

        ``down`` is charged once per node; None sends nothing.

        Args:
            fn: client function. Without memories it returns a message. With memories it returns a tuple of a message
                and any number of new memories, or a message alone if it only reads them. (A message of several vectors
                is a nested tuple or a NamedTuple.)
            down: message of the server: a tensor, a compressed vector, or a tuple of them; or `Rebuilt`.
            mine: memories that ``fn`` reads.

        Returns:
            The messages or, if ``fn`` returns new memories, a tuple of the messages and the cohort's new memories.

        Raises:
            DivergenceError: a message holds NaN or infinity; the error lists the clients.
        """
        return self._each(fn, down, mine)

    def _each(
        self, fn: Callable[..., Any], down: Any, mine: Sequence[Kept[Any]], down_bytes: np.ndarray | None = None
    ) -> Any:
        messages, new = self._run("each", fn, down, mine, down_bytes)
        assert messages is not None
        check_finite(self.ids, messages, fn, self.round)
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
        """Run ``fn(local, *memories)`` on every node of the cohort and keep the results there; nothing is sent back.

        Args:
            fn: client function; returns a new memory, or a tuple of several (a memory of several tensors is a
                NamedTuple).
            mine: memories that ``fn`` reads.
            down: optional message of the server, passed after ``local`` and charged as in `each`.

        Returns:
            The cohort's new memory, or a tuple of several.
        """
        _, new = self._run("apply", fn, down, mine)
        return new[0] if len(new) == 1 else new

    def _run(
        self, verb: str, fn: Callable[..., Any], down: Any, mine: Sequence[Kept[Any]], down_bytes: Any = None
    ) -> tuple[Messages[Any] | None, tuple[Kept[Any], ...]]:
        """Run a client function; ``down_bytes [c]`` replaces the size of ``down`` if nodes reconstruct it."""
        if not len(self):
            raise ConfigError(f"clients.{verb} in round {self.round}: the cohort is empty; test `if clients:` first")
        ids, meter, here = self.ids, self._meter, f"clients.{verb}({title(fn)}, ...) in round {self.round}"
        rebuilt = down if isinstance(down, Rebuilt) else None
        if rebuilt is not None:
            down, down_bytes = rebuilt.value, rebuilt.sizes(len(ids), here)
        check_arguments(here, fn, down, mine)
        size = 0 if down is None else nbytes(down) if down_bytes is None else down_bytes
        meter.ledger.touch(ids)
        meter.ledger.down[ids] += size
        evaluated = meter.ledger.gradient_evaluations[ids]
        summed = verb == "each" and self.tasks is None and self._federation.topology is None and meter.sums(title(fn))
        call = ClientCall(
            fn, ids, self.round, down, joined(mine, ids), verb == "each", False, self.tasks, rebuilt, summed
        )
        messages, rows = self._federation.backend.run(self._federation, meter, call)
        if meter.trace is not None:
            evaluations = meter.ledger.gradient_evaluations[ids] - evaluated
            meter.trace.append(Computed(ids, np.broadcast_to(size, ids.shape), evaluations))
        if messages is not None and (counts := meter.arrived(messages, ids, self.round)) is not None:
            messages, there = messages.only(np.flatnonzero(counts)), set(ids[counts].tolist())
            rows = {node: row for node, row in rows.items() if node in there}
        return messages, tuple(map(self._kept, by_column(rows)))

    @overload
    def mean(
        self, sent: Sent[Packed] | Sent[Vector | Packed], factors: np.ndarray | None = None, *, behind: float = 0.0
    ) -> Vector: ...
    @overload
    def mean(self, sent: Sent[M], factors: np.ndarray | None = None, *, behind: float = 0.0) -> M: ...
    def mean(self, sent: Sent[Any], factors: np.ndarray | None = None, *, behind: float = 0.0) -> Any:
        """Receive the messages; return their mean, weighted by p_i over the cohort, with compressed vectors unpacked.

        Args:
            sent: the messages.
            factors: ``[n]`` factors of the weights of the nodes; in ``arrive`` of an asynchronous algorithm ``[c]``, of
                the messages.
            behind: share of the nodes' next local work that runs while the messages are under way, from 0 (the nodes
                wait) to 1; the algorithm must not read the result in that share. It changes the seconds of a clock, no
                value and no byte.
        """
        self._charge_up(sent, "mean", behind)
        w = self._federation.shares(sent.ids)
        return sent.messages.mean(torch.from_numpy(w if factors is None else w * self._factors(factors, sent)))

    def _factors(self, factors: np.ndarray, sent: Sent[Any]) -> np.ndarray:
        """The factors of the messages ``[c]``."""
        own: np.ndarray = factors[sent.ids]
        return own

    def reduce(self, sent: Sent[Any], rule: Callable[[Any, Tensor], V], *, behind: float = 0.0) -> V:
        """Receive the messages and aggregate them by ``rule(rows, weights [c])``, such as a ``fedsim.types.Rule``.

        ``rows`` holds tensors ``[c, ...]`` in the order of ``ids``; compressed vectors are unpacked. See `mean` for
        ``behind``.
        """
        if not callable(rule):
            raise ConfigError(f"clients.reduce got the rule {rule!r:.80}; expected a function of (rows, weights)")
        self._charge_up(sent, "reduce", behind)
        model = self._federation.model
        (w,) = upload([self._federation.shares(sent.ids).astype(model.numbers)], model.device)
        return rule(unpacked(sent.stacked), w)

    def mix(
        self,
        sent: Sent[M],
        steps: int = 1,
        *,
        symmetric: bool = False,
        above: float = -1.0,
        fixed: bool = False,
        behind: float = 0.0,
    ) -> Kept[M]:
        """Gossip: each node sends its message to its neighbours and keeps ``sum_j w_ij m_j``; ``steps`` times.

        W is the mixing matrix of the round, restricted to the cohort: absent nodes neither send nor receive. Every
        directed edge is charged once per step. For unequal p_i, W is reweighted (`fedsim.gossip.weigh`).

        Args:
            sent: one message of every node of the cohort.
            steps: number of exchanges, each of the previous one's results; 1 for compressed messages.
            symmetric: require a symmetric W.
            above: require, of a symmetric W in round 1, that all eigenvalues exceed this; those of any W exceed -1.
            fixed: require full participation and the same W in every round, for methods whose nodes remember their
                neighbours' messages, or that converge for one W only.
            behind: see `mean`.

        Raises:
            ConfigError: there is no topology, W is not doubly stochastic, or W does not meet these requirements.
        """
        least = above if self.round == 1 else -1.0
        return self._gossip(sent, steps, behind, fixed=fixed, symmetric=symmetric, above=least)

    def push(self, sent: Sent[M], *, behind: float = 0.0) -> Kept[M]:
        """Like ``mix``, over any directed graph: only the columns of W need to sum to 1, which preserves mass."""
        return self._gossip(sent, 1, behind, rows=False)

    def _gossip(self, sent: Sent[M], steps: int, behind: float, fixed: bool = False, **needs: Any) -> Kept[M]:
        fed = self._federation
        check_sent(sent, "mix" if needs.get("rows", True) else "push")
        _check_behind("mix", behind)
        if fed.topology is None:
            raise ConfigError("a method without a server needs a topology: --topology Static --topology.graph Ring")
        there = exchange_among(fed, self._meter, fed.topology, self.round, sent.ids, fixed, needs)
        meter, size, bits = self._meter, sent.messages.sizes(), sent.messages.paper_bits()
        meter.ledger.charge_edges(
            there.receivers, there.senders, steps * along(size, there.by), steps * along(bits, there.by)
        )
        if meter.trace is not None:
            meter.trace.append(Exchanged(there.receivers, there.senders, size[there.by], steps, behind))
        rows, contraction = sent.messages.mix(there.w, steps, meter.measures)
        if meter.measures:
            meter.mixed(contraction, there.w if needs.get("rows", True) else None, steps)
        if not isinstance(rows, StackedRows):
            return self._kept({node: rows[at] for at, node in enumerate(sent.ids.tolist())})
        return self._kept(StackedRows[Any](sent.ids, rows.tree))

    def _kept(self, rows: Mapping[int, Any]) -> Kept[Any]:
        first = rows[next(iter(rows))]                     # template of the default
        return Kept(self.n, zeros_like(first), stored(self._federation.memory, rows, self.n))

    def split(self, p: float) -> tuple[Clients, Clients]:
        """Split by independent coin flips: the clients with heads (probability ``p``), and the others."""
        if not 0 <= p <= 1:
            raise ConfigError(f"clients.split({p}): expected a probability in [0, 1]")
        heads = seeds.uniform(self._federation.seed, "role", self.round, self.ids) < p
        return self.only(heads), self.only(~heads)

    def pick(self) -> Clients:
        """One client of the cohort, drawn in proportion to its p_i; all nodes derive it from the seed and the round."""
        ends = np.cumsum(self._federation.p[self.ids])
        drawn = seeds.uniform(self._federation.seed, "pick", self.round, 0) * ends[-1]
        return self.only(np.arange(len(self)) == np.searchsorted(ends, drawn, side="right"))

    def only(self, chosen: np.ndarray) -> Clients:
        """Clients selected by the mask ``chosen [c]``, in the order of ``ids``."""
        return Clients(self._federation, self._meter, self.ids[chosen], self.round)

    def __getattr__(self, name: str) -> Any:
        raise no_such_word("clients", name, Clients)

    def _charge_up(self, sent: Sent[Any], verb: str, behind: float) -> None:
        check_sent(sent, verb)
        _check_behind(verb, behind)
        meter = self._meter
        if behind and meter.barrier is not None:
            raise ConfigError(
                "waiting is of a server that waits, and this algorithm sends behind the next local work; leave out"
                " waiting, or use a method such as DiLoCo"
            )
        if sent not in meter.delivered:                    # a message is uploaded once, however often it is read
            meter.delivered.add(sent)
            size = sent.messages.sizes()
            meter.ledger.touch(sent.ids)
            np.add.at(meter.ledger.up, sent.ids, size)     # a client can stand in it twice
            np.add.at(meter.ledger.paper_bits, sent.ids, sent.messages.paper_bits())
            if meter.trace is not None:
                meter.trace.append(Uploaded(sent.ids, size, behind))
            if meter.follows_drift and meter.drift is None:
                rows = leaves(unpacked(sent.stacked))[0].flatten(1)
                meter.drift = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


def _increasing(ids: np.ndarray) -> bool:
    return bool((ids[:1] >= 0).all() and (ids[1:] > ids[:-1]).all())


def _check_behind(verb: str, behind: float) -> None:
    if not 0 <= behind <= 1:
        raise ConfigError(f"clients.{verb}(behind={behind!r}): expected a share of the next local work, from 0 to 1")
