"""A virtual clock: a fold of the traces of rounds into the time of every node and that of the server, in seconds.

A trace holds sizes and counts and no tensor, so a clock cannot change a model. A round without ``behind``:

    told by the server     begins at max(the node's own time, the server's), downloads, computes
    upload                 the server's time is that of the last arrival; nodes wait for it when they are told again
    gossip, each step      a node's time is the maximum of its own and, over its neighbours, theirs plus the link

An exchange with ``behind = b`` is under way while the nodes go on: their next work of c seconds, begun at s, ends at
``max(s + b c, arrival) + (1 - b) c``, where the arrival includes the download of the result.

A server that does not wait for all (``fedsim.clock.waiting``) goes on when the exchange closes; the others stop then.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.arrays import distinct
from fedsim.clock.devices import Devices, check_time
from fedsim.messages.trace import Closed, Computed, Exchanged, Phase, Uploaded
from fedsim.record.timeline import SERVER, Timeline


class Tasks(NamedTuple):
    """Times ``[c]`` of the work of some nodes, in seconds.

    Attributes:
        start: at which each is free and is called.
        arrival: at which it has received what it works with.
        begin: at which it begins to compute.
        end: at which it has computed.
    """

    start: np.ndarray
    arrival: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class VirtualClock:
    """The time on given devices.

    Attributes:
        server: seconds at which the server has everything it has waited for.
        at: ``[n]`` seconds at which each node is free.
        ready: ``[n]`` seconds at which the exchange arrives that runs behind a node's next work; -inf for none.
        behind: ``[n]`` share of the next work that does not wait for it.
        late: clients so far that were called and whose messages did not count.
        skipped: rounds so far without a step.
        timeline: records what each node does; None for nothing.
    """

    def __init__(self, devices: Devices, timeline: Timeline | None = None) -> None:
        self.devices, self.timeline = devices, timeline
        self.server, self.late, self.skipped = 0.0, 0, 0
        self.at, self.behind = np.zeros(devices.n), np.zeros(devices.n)
        self.ready = np.full(devices.n, -np.inf)

    @property
    def now(self) -> float:
        """Seconds at which everything that was sent has arrived."""
        return float(max(self.server, self.at.max(), self.ready.max()))

    def advance(self, trace: Sequence[Phase], round: int) -> None:
        """Fold the trace of a round.

        Raises:
            ConfigError: it ends at no time that can be counted.
        """
        self.follow(trace, round)
        check_time(self.now, round)

    def follow(self, trace: Sequence[Phase], round: int) -> None:
        """Fold the trace of a round, whenever it ends."""
        if self.timeline is not None and self.timeline.full:
            self.timeline = None
        begun, _ = self._fold(trace, round)
        if self.timeline is not None:
            self.timeline.add(round, np.array([SERVER]), "round", begun, self.server)

    def planned(self, trace: Sequence[Phase], round: int) -> tuple[Tasks, float]:
        """The tasks of the last phase of a trace, and when the server calls for them; the clock stays as it is."""
        after = copy.copy(self)
        after.timeline = None
        for name in ("at", "ready", "behind"):
            setattr(after, name, getattr(self, name).copy())
        *before, last = trace
        assert isinstance(last, Computed)
        begun, seen = after._fold(before, round)
        called = np.where(seen[last.ids], after.server, begun)
        return after._plan(last, round, called), float(called.max())

    def _fold(self, trace: Sequence[Phase], round: int) -> tuple[float, np.ndarray]:
        """Fold phases; return the server's time before them, and a mask ``[n]`` of the nodes that worked."""
        begun, seen = self.server, np.zeros(self.devices.n, bool)
        for phase in trace:
            if isinstance(phase, Computed):
                self._compute(phase, round, np.where(seen[phase.ids], self.server, begun))
                seen[phase.ids] = True                     # two roles begin together, two exchanges follow each other
            elif isinstance(phase, Uploaded):
                self._upload(phase, round)
            elif isinstance(phase, Closed):
                self._close(phase, round)
            else:
                self._exchange(phase, round)
        return begun, seen

    def _compute(self, phase: Computed, round: int, called: np.ndarray) -> None:
        if not (phase.down > 0).any() and not phase.evaluations.any():
            return                                         # takes no time; only what is sent next waits
        ready = self.ready[phase.ids]
        self.server = max(self.server, float(ready.max()))
        tasks = self._plan(phase, round, called)
        self.at[phase.ids] = tasks.end
        self.ready[phase.ids] = -np.inf
        if self.timeline is None:
            return
        behind = ready > -np.inf
        for own, kind, begin, end in (
            (~behind, "download", tasks.start, tasks.arrival),
            (~behind, "absent", tasks.arrival, tasks.begin),
            (behind, "behind", ready, tasks.arrival),
            (phase.evaluations > 0, "compute", tasks.begin, tasks.end),
        ):
            self.timeline.add(round, phase.ids[own], kind, begin[own], end[own])

    def _plan(self, phase: Computed, round: int, called: np.ndarray) -> Tasks:
        """When the nodes of a phase work; nodes that the server tells nothing begin when they are free."""
        devices, i, told = self.devices, phase.ids, phase.down > 0
        work, at, ready = devices.work(i, phase.evaluations, round), self.at[i], self.ready[i]
        start = np.where(told, np.maximum(at, called), at)
        download, pending = devices.download(i, phase.down), ready > -np.inf
        if not pending.any():                              # as in most methods
            arrival = start + download
            begin = devices.begin(i, arrival)
            return Tasks(start, arrival, begin, begin + work)
        arrival = np.where(pending, np.maximum(ready, np.where(told, called, 0.0)), start) + download
        begin = devices.begin(i, np.where(pending, start, arrival))
        share = np.where(pending, self.behind[i], 0.0)
        return Tasks(start, arrival, begin, np.maximum(begin + share * work, arrival) + (1 - share) * work)

    def _upload(self, phase: Uploaded, round: int) -> None:
        i = phase.ids
        start = np.maximum(self.at[i], self.ready[i])
        arrival = start + self.devices.upload(i, phase.size)
        last = float(arrival.max())
        if self.timeline is not None:
            self.timeline.add(round, i, "behind" if phase.behind else "upload", start, arrival)
            if not phase.behind:
                self.timeline.add(round, i, "wait", arrival, max(self.server, last))
        if phase.behind:
            self.ready[i], self.behind[i] = last, phase.behind
        else:
            self.server = max(self.server, last)
            self.at[i], self.ready[i] = arrival, -np.inf

    def _exchange(self, phase: Exchanged, round: int) -> None:
        touched = distinct(np.concatenate([phase.to, phase.by]))
        times, seconds = np.maximum(self.at, self.ready), self.devices.link(phase.to, phase.by, phase.size)
        for _ in range(phase.steps):
            later = times.copy()
            np.maximum.at(later, phase.to, times[phase.by] + seconds)
            if self.timeline is not None:
                self._show(phase, round, times, later, seconds)
            times = later
        if phase.behind:
            self.ready[touched], self.behind[touched] = times[touched], phase.behind
        else:
            self.at[touched], self.ready[touched] = times[touched], -np.inf

    def _show(self, phase: Exchanged, round: int, times: np.ndarray, later: np.ndarray, seconds: np.ndarray) -> None:
        """Record an exchange: a node waits until the last of its neighbours sends, and then receives that message."""
        assert self.timeline is not None
        sent = times.copy()
        last = times[phase.by] + seconds >= later[phase.to]
        np.maximum.at(sent, phase.to[last], times[phase.by[last]])
        i = distinct(phase.to)
        if not phase.behind:
            self.timeline.add(round, i, "wait", times[i], sent[i])
        self.timeline.add(round, i, "behind" if phase.behind else "exchange", sent[i], later[i])

    def _close(self, phase: Closed, round: int) -> None:
        if self.timeline is not None:
            self.timeline.add(round, phase.ids, "upload", self.at[phase.ids], phase.stop)
            self.timeline.lose(round, phase.ids, phase.stop)
        self.at[phase.ids], self.ready[phase.ids] = phase.stop, -np.inf
        self.server = max(self.server, phase.until)
        self.late, self.skipped = self.late + len(phase.ids), self.skipped + phase.skipped

    def snapshot(self) -> dict[str, Tensor]:
        """The times, for a checkpoint."""
        arrays = {"server": np.array([self.server]), "at": self.at, "ready": self.ready, "behind": self.behind}
        arrays["counts"] = np.array([self.late, self.skipped])
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def restore(self, state: Mapping[str, Tensor], *_: object) -> None:
        """Go back to a `snapshot`."""
        self.server = float(state["server"][0])
        self.late, self.skipped = state["counts"].tolist()
        self.at, self.ready, self.behind = (state[name].numpy().copy() for name in ("at", "ready", "behind"))
