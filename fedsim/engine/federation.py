"""A federation, constant over rounds; the meter of its costs; and the backend protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np
from torch import Tensor

from fedsim.clock.barrier import Barrier
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.machine import keep_freed_memory
from fedsim.engine.memory import Memory, OnDevice
from fedsim.engine.model import Model
from fedsim.engine.refusals import refuse_no_tensors
from fedsim.errors import ConfigError
from fedsim.gossip import EdgeList, Topology, alike
from fedsim.messages.ledger import Ledger
from fedsim.messages.rebuilt import Rebuilt
from fedsim.messages.trace import Phase
from fedsim.types import Kept, Local, Messages, Sent

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class ClientCall(NamedTuple):
    """One run of a client function on the nodes of a cohort.

    Attributes:
        fn: the client function.
        ids: ``[c]`` ids of the nodes.
        round: number of the round.
        down: message to every node; None for none.
        mine: memories that ``fn`` reads, as one tuple per node; None for none.
        sends: whether ``fn`` returns a message.
        keeps: whether the last memory in ``mine`` is not for ``fn`` but for the local steps, ``Descent.kept``: the
            optimiser's slots and the client's own layers; the new memories end with it as well.
        tasks: ``[c]`` number of each node's task, which its random numbers depend on; the round's by default.
        rebuilt: what real nodes are sent in place of ``down``; None for that itself.
        summed: whether messages may be added up as they come: nobody is expected to read more than their mean.
    """

    fn: Callable[..., Any]
    ids: np.ndarray
    round: int
    down: Any
    mine: Kept[tuple[Any, ...]] | None
    sends: bool = True
    keeps: bool = False
    tasks: np.ndarray | None = None
    rebuilt: Rebuilt | None = None
    summed: bool = False

    @property
    def turns(self) -> np.ndarray:
        """The number ``[c]`` that each node's random numbers depend on."""
        return np.full(len(self.ids), self.round) if self.tasks is None else self.tasks

    def at(self, local: Local, down: Any, mine: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Run the function on one node: its message, None if it sends none, and its new memories."""
        if self.keeps:
            descent: Any = local.descend
            *mine_of_fn, descent.kept = mine
            message, new = self._replace(keeps=False).at(local, down, tuple(mine_of_fn))
            return message, (*new, descent.kept)
        if not self.sends:
            new = self.fn(local, *mine) if down is None else self.fn(local, down, *mine)
            refuse_no_tensors(self.fn, new)
            return None, new if type(new) is tuple else (new,)
        result = self.fn(local, down, *mine)
        refuse_no_tensors(self.fn, result)
        message, *kept = message_and_memories(result, reads=bool(mine))
        return message, tuple(kept)


def message_and_memories(result: Any, *, reads: bool) -> tuple[Any, ...]:
    """Split the result of a sending client function into its message and its new memories.

    Only a function that ``reads`` memories returns new ones. A NamedTuple is one message of several vectors.
    """
    return result if reads and type(result) is tuple else (result,)


class Backend(Protocol):
    """Executor of client functions."""

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """Run a client function on the nodes of ``call``, and charge gradient evaluations, but not bytes, to ``meter``.

        Returns:
            The messages in the order of ``call.ids``, None if it sends none; and the new memories by node, if any,
            which may be in the federation's ``memory`` already.
        """


class Meter:
    """Cumulative cost of a federation's rounds, and the last contraction of the consensus distance by gossip.

    Attributes:
        ledger: bytes and gradient evaluations.
        measures: whether gossip measures the contraction.
        contraction: consensus distance after mixing as a fraction of that before; None if not measured.
        contraction_bound: upper bound on ``contraction``; None if unknown.
        follows_drift: whether uploads measure the drift.
        drift: root mean square distance of the messages of a round's first upload to their mean; None if not measured.
        delivered: messages already charged, as an upload is charged once.
        trace: what was sent and computed since it was last emptied, for a clock; None without one.
        barrier: who is waited for in this round; None for everybody.
        gone: mask ``[n]`` of the clients that are not waited for any more in this round; None for no client.
        read: names of the client functions whose messages were read one by one, and not as a mean alone.
        exchange: the last exchange among all nodes, and what was needed of its W.
    """

    def __init__(self, federation: Federation) -> None:
        self.ledger = Ledger(federation.shards.n)
        self.measures = alike(federation.p)                # else mixing does not contract to the plain mean
        self.contraction: float | None = None
        self.contraction_bound: float | None = None
        self.follows_drift = False
        self.drift: float | None = None
        self.delivered: WeakSet[Sent[Any]] = WeakSet()
        self.trace: list[Phase] | None = None
        self.barrier: Barrier | None = None
        self.gone: np.ndarray | None = None
        self.read: set[str] = set()
        self.exchange: tuple[EdgeList, dict[str, Any]] | None = None
        self._bound: tuple[csr_array, float | None] | None = None

    def snapshot(self) -> tuple[int, int]:
        """This moment of a round, for `restore`."""
        return self.ledger.mark(), len(self.trace or ())

    def restore(self, before: tuple[int, int]) -> None:
        """Forget all costs since ``before``."""
        mark, length = before
        self.ledger.undo(mark)
        self.gone = None                                   # what is repeated begins with a round
        if self.trace is not None:
            del self.trace[length:]

    def sums(self, name: str) -> bool:
        """Whether the mean of a client function's messages, of all of them, is what is expected to be read."""
        follows = self.follows_drift and self.drift is None
        return self.barrier is None and not follows and name not in self.read

    def arrived(self, messages: Messages[Any], ids: np.ndarray, round: int) -> np.ndarray | None:
        """Mask ``[c]`` of the clients whose messages count; None if all do. The others are gone for this round."""
        if self.barrier is None or self.trace is None:
            return None
        counts = self.barrier.close(self.ledger, self.trace, messages.sizes(), messages.paper_bits(), round)
        if counts.all():
            return None
        self.gone = np.zeros(len(self.ledger.up), bool) if self.gone is None else self.gone
        self.gone[ids[~counts]] = True
        return counts

    def mixed(self, contraction: float | None, w: csr_array | None, steps: int) -> None:
        """Record the contraction of ``steps`` exchanges by W; without W no bound is known."""
        bound = None if w is None else self._bound_of(w)
        self.contraction, self.contraction_bound = contraction, None if bound is None else bound**steps

    def _bound_of(self, w: csr_array) -> float | None:
        """Contraction bound of one exchange, cached while W does not change."""
        from topologies.spectrum import contraction_bound

        if self._bound is None or self._bound[0] is not w:
            self._bound = w, contraction_bound(w)
        return self._bound[1]


@dataclass(frozen=True, eq=False)
class Federation:
    """A model, its clients and their samples: everything that is constant over rounds.

    Args:
        model: the model and its objective.
        shards: every client's samples.
        work: the local work of a round.
        seed: root of all randomness.
        backend: executor of client code.
        weights: ``[n]`` weights p_i of the clients in the objective sum_i p_i f_i; uniform by default.
        cohort_size: expected number of clients in a round; all by default.
        decay: learning-rate factor as a function of the round number, from 1 on.
        topology: mixing matrices, for methods without a server.
        memory: storage of client memories between rounds.

    Raises:
        ConfigError: ``weights`` is not a finite number above 0 for each client.
    """

    model: Model
    shards: Shards
    work: LocalWork
    seed: int
    backend: Backend
    weights: np.ndarray | None = None
    cohort_size: float | None = None
    decay: Callable[[int], float] = lambda round: 1.0
    topology: Topology | None = None
    memory: Memory = field(default_factory=OnDevice)

    def __post_init__(self) -> None:
        n, weights = self.shards.n, self._weights
        if weights.shape != (n,) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ConfigError(f"weights are {self.weights!r:.80}; expected a finite number above 0 for each of {n}")
        if self.model.device.type == "cpu":
            keep_freed_memory()

    @property
    def _weights(self) -> np.ndarray:
        return np.ones(self.shards.n) if self.weights is None else np.asarray(self.weights, np.float64)

    @cached_property
    def p(self) -> np.ndarray:
        """Weights p_i of the clients, ``[n]``, normalised to sum to 1."""
        p: np.ndarray = self._weights / self._weights.sum()
        return p

    def shares(self, ids: np.ndarray) -> np.ndarray:
        """Weights ``[c]`` of some clients in a mean over them: their p_i, normalised to sum to 1."""
        p = self.p[ids]
        shares: np.ndarray = p / p.sum()
        return shares

    def factor(self, round: int) -> Tensor:
        """Learning-rate factor of a round, 0-dim; before round 1, as in it."""
        return self.model.number(self.decay(max(1, round)))
