"""Asynchronous gossip: the events of `fedsim.controller.asynchronous`, with neighbours that meet instead of a server.

An algorithm takes part by the same methods. ``dispatch(s, clients) -> (None, s)`` works at idle nodes, and sends
nothing. ``arrive(s, None, clients) -> s`` is the meeting of one node, the ``clients``, with a neighbour;
``clients.met`` are both of them, and ``each`` and ``mix`` on these average their models. The neighbour is drawn when
the node begins, in proportion to its row of W, because the time of the exchange depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedsim import seeds
from fedsim.clients import Clients, cohort
from fedsim.clock.devices import TaskSeconds
from fedsim.clock.events import Arrival
from fedsim.controller.asynchronous import Arrivals, Driver
from fedsim.errors import ConfigError
from fedsim.gossip import mixing_matrix
from fedsim.messages.trace import Computed
from fedsim.messages.wire import nbytes
from fedsim.record.blocks import Block

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class Pair:
    """The topology of one meeting: i and j average their models, and nobody else sends."""

    i: int
    j: int

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``Topology``."""
        from topologies.schedules import average_with

        partner = np.arange(n)
        partner[[self.i, self.j]] = self.j, self.i
        return average_with(partner)


class Meeting(Arrivals):
    """A node whose work is done, and the neighbour that it meets."""

    def __init__(self, node: Arrivals, met: Clients) -> None:
        super().__init__(node._federation, node._meter, node.ids, node.round, node.stale)
        self._met = met

    @property
    def met(self) -> Clients:
        return self._met


class Meetings(Driver):
    """The events of one seed, of a method without a server."""

    sends = "exchange"

    def partner(self, node: int, task: int) -> int:
        """The neighbour that a node meets after a task; the node itself if it has none."""
        fed = self.federation
        assert fed.topology is not None
        w = mixing_matrix(fed.topology, task, fed.seed, fed.shards.n)
        span = slice(w.indptr[node], w.indptr[node + 1])
        others, weights = w.indices[span], w.data[span]
        others, weights = others[others != node], weights[others != node]
        if not len(others):
            return node
        ends = np.cumsum(weights)
        drawn = float(seeds.uniform(fed.seed, "meet", task, node)) * ends[-1]
        return int(others[np.searchsorted(ends, drawn, side="right")])

    def _begin(self, state: Any, ids: np.ndarray, tasks: np.ndarray) -> tuple[TaskSeconds, Any]:
        clients = cohort(self.federation, self.version + 1, ids, self.meter)
        clients.tasks = tasks

        def begin() -> tuple[Any, Any]:
            self.meter.trace = []
            return self.method.dispatch(state, clients)

        sent, new = self.host.attempt(f"meeting {self.version + 1}", self.federation, self.meter, begin)
        phases = self.meter.trace or []
        if sent is not None or not all(isinstance(phase, Computed) for phase in phases):
            raise ConfigError(
                f"{type(self.method).__name__}.dispatch sends messages, and there is no server; expected it to return"
                " None and the state: nodes exchange in arrive, with clients.met"
            )
        evaluations = np.sum([phase.evaluations for phase in phases if isinstance(phase, Computed)], 0)
        begun = self.devices.begin(ids, np.full(len(ids), self.now)) - self.now
        met = np.array([self.partner(*pair) for pair in zip(ids.tolist(), tasks.tolist(), strict=True)])
        link = np.where(met == ids, 0.0, self.devices.pair(ids, met, nbytes(state.x.default)))
        return TaskSeconds(np.zeros(len(ids)), begun, self.devices.work(ids, evaluations, tasks), link), new

    def _arrive(self, state: Any, buffer: list[tuple[Arrival, Any]]) -> Any:
        ((arrival, _),) = buffer
        i, fed = arrival.node, self.federation
        j = self.partner(i, int(self.events.tasks[i]))
        self.version += 1
        self.meter.measures = False                        # two of many nodes say nothing of consensus
        one = Arrivals(fed, self.meter, np.array([i]), self.version, np.array([self.version - 1 - arrival.version]))
        met = cohort(replace(fed, topology=Pair(i, j)), self.version, np.unique([i, j]), self.meter)
        return self.host.attempt(
            f"meeting {self.version}", fed, self.meter, partial(self.method.arrive, state, None, Meeting(one, met))
        )

    def restore(self, named: Mapping[str, Tensor], state: Any, messages: Iterable[Block] = ()) -> None:
        """Go back to a `snapshot`; no messages are under way."""
        self._restore_events(named)
