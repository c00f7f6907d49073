"""Wrap any algorithm so that its clients keep layers of their own, or the state of their local optimiser, between
rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedsim.algorithm import Algorithm, has_server
from fedsim.clients import Clients
from fedsim.engine.federation import Backend, ClientCall, Federation, Meter
from fedsim.engine.model import Model
from fedsim.engine.optimizers import keeps
from fedsim.engine.sharing import Sharing
from fedsim.experiment.experiment import Experiment
from fedsim.types import Kept, Messages, Sent, Slots
from fedsim.values import Vector


class KeepingState(NamedTuple):
    inner: Any           # the algorithm's own state
    slots: Kept[Slots]   # of every client's optimiser, then its own layers [p], if it keeps them; never travel

    @property
    def x(self) -> Any:
        """The model in the algorithm's state."""
        return self.inner.x


@dataclass(frozen=True)
class Keeping:
    """An algorithm with a memory of its clients' local steps; itself an algorithm.

    Args:
        algorithm: the algorithm to run.
        first: what every client keeps at first: see ``fedsim.engine.descent.Descent.kept``.
    """

    algorithm: Algorithm[Any]
    first: Slots

    @property
    def server(self) -> bool:
        """True if the algorithm has a server."""
        return has_server(self.algorithm)

    def init(self, x: Vector, clients: Clients) -> KeepingState:
        """See ``Algorithm``."""
        keeper = Keeper(clients, clients.keep(self.first))
        return KeepingState(self.algorithm.init(x, keeper.clients), keeper.slots)

    def round(self, s: KeepingState, clients: Clients) -> KeepingState:
        """See ``Algorithm``."""
        keeper = Keeper(clients, s.slots)
        return KeepingState(self.algorithm.round(s.inner, keeper.clients), keeper.slots)

    @property
    def buffer(self) -> int:
        """Messages in a server step of an asynchronous method."""
        return self.algorithm.buffer  # type: ignore[attr-defined,no-any-return]

    def dispatch(self, s: KeepingState, clients: Clients) -> tuple[Sent[Any], KeepingState]:
        """Let clients of an asynchronous method begin."""
        keeper = Keeper(clients, s.slots)
        sent, inner = self.algorithm.dispatch(s.inner, keeper.clients)  # type: ignore[attr-defined]
        return sent, KeepingState(inner, keeper.slots)

    def arrive(self, s: KeepingState, sent: Sent[Any], clients: Clients) -> KeepingState:
        """A server step of an asynchronous method."""
        return s._replace(inner=self.algorithm.arrive(s.inner, sent, clients))  # type: ignore[attr-defined]

    def finish(self, s: KeepingState, clients: Clients) -> KeepingState:
        """See ``Algorithm``."""
        end = getattr(self.algorithm, "finish", None)
        keeper = Keeper(clients, s.slots)
        return s if end is None else KeepingState(end(s.inner, keeper.clients), keeper.slots)


class Keeper:
    """Backend of one round that hands each client the slots of its optimiser, and collects them afterwards.

    Attributes:
        clients: the clients on this backend.
        slots: the current slots of all clients.
    """

    def __init__(self, clients: Clients, slots: Kept[Slots]) -> None:
        federation = clients._federation
        self._backend: Backend = federation.backend
        self.clients = Clients(replace(federation, backend=self), clients._meter, clients.ids, clients.round)
        self.clients.tasks = clients.tasks
        self.slots = slots

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        slots, given = self.slots, call.mine or Kept(self.slots.n, ())
        nodes = [node for node in call.ids.tolist() if node in given.rows or node in slots.rows]
        rows = {
            node: (*given.rows.get(node, given.default), slots.rows.get(node, slots.default)) for node in nodes
        }
        mine = Kept(slots.n, (*given.default, slots.default), rows)
        messages, memory = self._backend.run(federation, meter, call._replace(mine=mine, keeps=True))
        new = {node: own for node, (*_, own) in memory.items()}
        self.slots = slots | Kept(slots.n, slots.default, new)
        return messages, {node: tuple(others) for node, (*others, _) in memory.items()}


def method_of(experiment: Experiment, model: Model) -> Algorithm[Any]:
    """The algorithm to run, with what its clients keep for their local steps."""
    optimizer, sharing = experiment.local.optimizer, model.sharing
    first = optimizer.slots(model.zeros()) if keeps(optimizer) else ()
    if sharing is not None:
        first = (*first, sharing.own)
    return Keeping(experiment.method, first) if first else experiment.method


def own_layers(state: Any, sharing: Sharing) -> Callable[[int], Vector]:
    """The whole vector ``[d]`` of a client's model, in the state of a method with layers that stay."""
    return lambda node: sharing.whole(state.x, state.slots[node][-1])
