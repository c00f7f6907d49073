"""Asynchronous rounds: clients begin and arrive one by one on a virtual clock, and K arrivals make a server step.

An algorithm takes part by two methods, the halves of a round:

    dispatch(s, clients) -> (messages, s)      clients begin now: one ``clients.each``
    arrive(s, messages, clients) -> s          a server step with ``buffer`` messages, a field or of the class

In ``arrive`` the clients have ``stale``, the number of server steps since each message's client began, and
``clients.mean`` takes one factor per message, since a fast client can be among them twice. The rules of the events:

    After a server step, and at the end of an instant, all idle places are filled as one group, with the newest model.
    Clients that begin with the same model are computed together, at the server step, if their times are known in
    advance (``fedsim.controller.foresight``); ``dispatch`` is then called once for all of them. A host with several
    machines need not wait for their messages until the first of them arrives (``Host.ahead``).
    The messages of a buffer are summed in the order of their clients, then of arrival, so that no sum depends on times.
    Downloads and gradients are charged when a client begins, uploads with the server step.
    A client's memories are written before the server step: nobody reads them while its message is under way.
    Its random numbers depend on how many tasks it has begun, the learning rate on the number of server steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.clients import Clients, cohort
from fedsim.clock.devices import Devices, TaskSeconds, check_time
from fedsim.clock.events import NANO, Arrival, Events
from fedsim.controller.foresight import Foresight, Unforeseen
from fedsim.controller.host import Host
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.messages.promised import Promised
from fedsim.messages.stacked import Stacked
from fedsim.messages.trace import Computed
from fedsim.record.blocks import Block, read
from fedsim.record.timeline import SERVER, Timeline
from fedsim.tree import build, leaves, tree_map
from fedsim.types import Sent

NEIGHBOURS, BLOCKS_AHEAD = 256, 4096
"""Clients whose next tasks are timed together, and how many such blocks are kept."""


class Halves(Protocol):
    """An algorithm whose round is split where the server would wait for messages."""

    @property
    def buffer(self) -> int: ...
    def dispatch(self, s: Any, clients: Clients) -> tuple[Any, Any]: ...
    def arrive(self, s: Any, sent: Any, clients: Clients) -> Any: ...


class Arrivals(Clients):
    """The clients whose messages have arrived; one can be among them twice."""

    def __init__(self, federation: Federation, meter: Meter, ids: np.ndarray, round: int, stale: np.ndarray) -> None:
        super().__init__(federation, meter, ids, round)
        self._stale = stale

    @property
    def stale(self) -> np.ndarray:
        return self._stale

    def _factors(self, factors: np.ndarray, sent: Sent[Any]) -> np.ndarray:
        return factors


class Group:
    """Messages of clients that are computed together, perhaps still being computed.

    Args:
        sent: the messages.
        tasks: the client and the number of its task, for each message.
    """

    def __init__(self, sent: Sent[Any], tasks: Sequence[tuple[int, int]]) -> None:
        self._sent, self._tasks = sent, tasks

    @cached_property
    def messages(self) -> dict[tuple[int, int], Any]:
        """Each client's message by its task; waits until all of them are there."""
        rows = self._sent.stacked
        copied = [tree_map(lambda t, k=k: t[k].clone(), rows) for k in range(len(self._tasks))]
        return dict(zip(self._tasks, copied, strict=True))   # a view would keep the whole group


class Driver:
    """Runs the events of one seed, and keeps the messages under way.

    Attributes:
        events: the clients under way.
        version: number of server steps so far.
        foresight: the costs of tasks that have not been computed yet.
        timeline: records what each client does; None to record nothing.
        sends: the kind of span with which a task ends in the timeline.
    """

    sends = "upload"

    def __init__(self, method: Any, federation: Federation, meter: Meter, devices: Devices, concurrency: int,
                 host: Host) -> None:  # fmt: skip
        n = federation.shards.n
        self.method: Halves = method
        self.federation, self.meter, self.host = federation, meter, host
        self.devices, self.concurrency = devices, concurrency                  # who all share the server's bandwidth
        self.events, self.version = Events(n, concurrency, federation.seed), 0
        self.timeline: Timeline | None = None
        self.foresight = Foresight(federation.work.samples(federation.shards.sizes))
        self._stepped = 0.0                                # the time of the last server step
        self._ahead_of_time = host.ahead(federation, self.foresight)
        self._messages: dict[tuple[int, int], Any] = {}    # by client and number of its task; or their `Group`
        self._later: list[tuple[int, int]] = []            # tasks that have begun, and are computed at the server step
        self._ahead: dict[tuple[int, int], list[float]] = {}   # seconds of tasks, by their number and block of clients

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self.events.now / NANO

    def step(self, state: Any) -> Any:
        """The state after the next server step."""
        if not self.foresight.knows:
            return self._step(state)
        before = self.events.mark(), self.meter.snapshot(), self._messages.copy(), len(self._spans)
        try:
            return self._step(state)
        except Unforeseen:                                 # from here on, tasks are computed when they begin
            events, costs, self._messages, shown = before
            self.events.undo(events, self.version)
            self.meter.restore(costs)
            self._later.clear()
            del self._spans[shown:]
            return self._step(state)

    @property
    def _spans(self) -> list[Any]:
        return [] if self.timeline is None else self.timeline.spans

    def _step(self, state: Any) -> Any:
        state = self._fill(state)
        buffer: list[tuple[Arrival, int]] = []             # with the number of each client's task
        while len(buffer) < self.method.buffer:
            arrival = self.events.next()
            buffer.append((arrival, int(self.events.tasks[arrival.node])))
            if len(buffer) < self.method.buffer and not self.events.at_once:
                state = self._fill(state)
        state = self._compute_later(state)
        return self._arrive(state, [(arrival, self._receive((arrival.node, k))) for arrival, k in buffer])

    def _fill(self, state: Any) -> Any:
        """Let clients begin in all free places."""
        nodes = self.events.choose()
        if not nodes:
            return state
        if self.foresight.knows and self.devices.windows is None and (self.timeline is None or self.timeline.full):
            self._begin_later(nodes)
            return state
        ids = np.array(nodes)
        tasks = self.events.tasks[ids]
        task, state = self._begin(state, ids, tasks)
        seconds = task.total
        check_time(self.now + float(seconds.max()), self.version + 1)
        self._show(ids, task)
        self.events.start(nodes, seconds.tolist(), self.version)
        return state

    def _begin(self, state: Any, ids: np.ndarray, tasks: np.ndarray) -> tuple[TaskSeconds, Any]:
        """Let clients work: compute their tasks now, or note them for the server step."""
        if self.foresight.knows:
            self._later += zip(ids.tolist(), tasks.tolist(), strict=True)
            work, up = self.foresight.of(ids)
        else:
            work, up, state = self._compute(state, ids, tasks)
        return self.devices.task(work, up, tasks, self.now, self.concurrency), state

    def _begin_later(self, nodes: list[int]) -> None:
        """Let clients begin whose seconds depend on nothing but their tasks; faster than `_begin`."""
        begun = [(node, int(self.events.tasks[node])) for node in nodes]
        seconds = [self._seconds(*each) for each in begun]
        check_time(self.now + max(seconds), self.version + 1)
        self._later += begun
        self.events.start(nodes, seconds, self.version)

    def _seconds(self, node: int, task: int) -> float:
        """Seconds of a client's task, computed together with those of its neighbours, which will soon be needed too."""
        block, place = divmod(node, NEIGHBOURS)
        row = self._ahead.get((task, block))
        if row is None:
            if len(self._ahead) == BLOCKS_AHEAD:
                self._ahead.clear()
            ids = np.arange(block * NEIGHBOURS, min((block + 1) * NEIGHBOURS, self.devices.n))
            work, up = self.foresight.of(ids)
            row = self.devices.task(work, up, np.full(len(ids), task), 0.0, self.concurrency).total.tolist()
            self._ahead[task, block] = row
        return row[place]

    def _compute_later(self, state: Any) -> Any:
        """Compute the tasks that have begun since the last server step: together, except for a client's second one."""
        while self._later:
            now = dict(reversed(self._later))              # the first task of each client
            self._later = [(node, task) for node, task in self._later if now[node] != task]
            ids = np.array(sorted(now))
            _, _, state = self._compute(state, ids, np.array([now[node] for node in ids.tolist()]))
            if self.foresight.fails:
                raise Unforeseen
        return state

    def _compute(self, state: Any, ids: np.ndarray, tasks: np.ndarray) -> tuple[Computed, np.ndarray, Any]:
        """Compute tasks and keep their messages until they arrive; return work, bytes up ``[c]`` and the new state."""
        sent, new = self._dispatch(state, ids, tasks, self.meter)
        (work,) = (phase for phase in self.meter.trace or () if isinstance(phase, Computed))
        begun = list(zip(ids.tolist(), tasks.tolist(), strict=True))
        group, up = Group(sent, begun), sent.messages.sizes()
        self._messages |= dict.fromkeys(begun, group) if isinstance(sent.messages, Promised) else group.messages
        self.foresight.note(work, up, state, new)
        return work, up, new

    def _receive(self, task: tuple[int, int]) -> Any:
        """The message of a task, None if it sends none; the others of its group are there as well from then on."""
        message = self._messages.pop(task, None)
        if isinstance(message, Group):
            self._messages |= message.messages
            message = self._messages.pop(task)
        return message

    def _show(self, ids: np.ndarray, task: TaskSeconds) -> None:
        """Record the tasks of clients that begin now."""
        if self.timeline is None or self.timeline.full:
            return
        now, sends = self.now, task.begin + task.work
        for kind, start, end in (
            ("download", np.zeros(len(ids)), task.download),
            ("absent", task.download, task.begin),
            ("compute", task.begin, sends),
            (self.sends, sends, task.total),
        ):
            self.timeline.add(self.version + 1, ids, kind, now + start, now + end)

    def _dispatch(self, state: Any, ids: np.ndarray, tasks: np.ndarray, meter: Meter) -> tuple[Sent[Any], Any]:
        federation = self._ahead_of_time if self.foresight.knows else self.federation
        clients = cohort(federation, self.version + 1, ids, meter)
        clients.tasks = tasks

        def begin() -> tuple[Sent[Any], Any]:
            meter.trace = []
            return self.method.dispatch(state, clients)

        sent, new = self.host.attempt(f"server step {self.version + 1}", self.federation, meter, begin)
        name = f"{type(self.method).__name__}.dispatch"
        if not isinstance(sent, Sent) or len(sent.ids) != len(ids):
            raise ConfigError(f"{name} returned {sent!r:.80}; expected the messages of clients.each, and the state")
        calls = [phase for phase in meter.trace or () if isinstance(phase, Computed)]
        if len(calls) != 1 or len(meter.trace or ()) != 1:
            raise ConfigError(f"{name} must call clients.each once and nothing else that sends; the rest is of arrive")
        return sent, new

    def _arrive(self, state: Any, buffer: list[tuple[Arrival, Any]]) -> Any:
        buffer.sort(key=lambda entry: entry[0].node)       # stable: then by arrival
        ids = np.array([arrival.node for arrival, _ in buffer])
        stale = self.version - np.array([arrival.version for arrival, _ in buffer])
        tree = tree_map(lambda *rows: torch.stack(rows), *(message for _, message in buffer))
        self.version += 1
        self._note_step()
        clients = Arrivals(self.federation, self.meter, ids, self.version, stale)
        return self.method.arrive(state, Sent(ids, Stacked(tree, self._order(ids))), clients)

    def _note_step(self) -> None:
        if self.timeline is not None and not self.timeline.full:
            self.timeline.add(self.version, np.array([SERVER]), "round", self._stepped, self.now)
        self._stepped = self.now

    def _order(self, ids: np.ndarray) -> np.ndarray | None:
        """Positions in the backend's order of execution, in which a synchronous round adds up."""
        backend: Any = self.federation.backend
        if isinstance(backend, Loop) or getattr(backend, "block_size", 1) == 0:
            return None
        order = self.federation.work.order(self.federation.shards.sizes[ids])
        return None if (np.diff(order) == 1).all() else order

    def freeze(self) -> Callable[[], dict[str, Tensor]]:
        """Return a function that makes the tensors of a checkpoint from the events as they are now."""
        events, version, foresight = self.events.freeze(), self.version, self.foresight.snapshot()

        def named() -> dict[str, Tensor]:
            tensors = {f"events.{name}": tensor for name, tensor in events().items()}
            tensors["version"] = torch.tensor([version])
            tensors["foresight"] = foresight
            return tensors

        return named

    def under_way(self) -> Callable[[], dict[int, Any]]:
        """Return a function that waits for the messages that are under way now, and returns them by client.

        A checkpoint stores them as memories.
        """
        messages = self._messages.copy()

        def here() -> dict[int, Any]:                      # each client sends one at a time
            both = messages.items()
            return {task[0]: it.messages[task] if isinstance(it, Group) else it for task, it in both}

        return here

    def snapshot(self) -> dict[str, Tensor]:
        """Events by name."""
        return self.freeze()()

    def _restore_events(self, named: Mapping[str, Tensor]) -> None:
        self.events.restore({name[7:]: named[name] for name in named if name.startswith("events.")})
        self.version, self._stepped = int(named["version"]), self.now
        if "foresight" in named:                           # else of an earlier version, which computed none later
            self.foresight.restore(named["foresight"])

    def restore(self, named: Mapping[str, Tensor], state: Any, messages: Iterable[Block] = ()) -> None:
        """Go back to a `snapshot` with ``messages`` under way.

        Args:
            named: the snapshot.
            state: any state of the algorithm; one client's message is computed from it, for the layout of the others.
            messages: as a checkpoint has stored them; earlier versions named a tensor for each part of each.
        """
        self._restore_events(named)
        sent, _ = self._dispatch(state, np.zeros(1, np.int64), np.ones(1, np.int64), Meter(self.federation))
        like = tree_map(lambda t: t[0], sent.stacked)
        device = self.federation.model.device
        self._messages = {}
        for node, message in read(messages, like, device).items():
            self._messages[node, int(self.events.tasks[node])] = message
        for node in {arrival.node for arrival in self.events.under_way} - {node for node, _ in self._messages}:
            parts = [named[f"message.{node}.{k}"].to(device) for k in range(len(leaves(like)))]
            self._messages[node, int(self.events.tasks[node])] = build(like, iter(parts))
