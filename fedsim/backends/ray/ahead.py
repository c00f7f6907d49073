"""Calls of an asynchronous run in Ray actors, several of them at a time.

A call is sent to the actors that have the least to do when its clients begin, and waited for when the first of their
messages is needed: when it arrives, or for a checkpoint. It depends on nothing that comes later, so its result does not
depend on when and where it is computed. Its messages are returned through the object store: an actor that held them
could hand them over only after the calls that it is computing by then.

Calls that read or write memories of clients, and the first one of a client function, are waited for at once: a state
must not refer to a memory that may get lost before it exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from fedsim.backends.ray.protocol import Report
from fedsim.backends.ray.ray_backend import Begun, RayActors
from fedsim.controller.foresight import Foresight
from fedsim.controller.host import Host
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.refusals import check_finite
from fedsim.errors import StateLostError
from fedsim.messages.promised import Promised
from fedsim.messages.stacked import Stacked
from fedsim.types import Messages


class Ahead:
    """Backend of calls whose costs are foreseen.

    Args:
        federation: the clients, with ``backend``.
        backend: the actors.
        foresight: the costs.
        host: repeats what is lost, and hears of costs that were not foreseen.
    """

    def __init__(self, federation: Federation, backend: RayActors, foresight: Foresight, host: Host) -> None:
        self._federation, self._backend, self._foresight, self._host = federation, backend, foresight, host
        self._meter = Meter(federation)                    # of what is charged already
        self._running: dict[Any, int] = {}                 # worker of each run that may not have ended

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        if not call.sends or call.mine is not None or not self._backend.knows(call.fn):
            return self._backend.run(federation, meter, call)
        work, up = self._foresight.of(call.ids)
        meter.ledger.gradient_evaluations[call.ids] += work.evaluations
        return Promised(up, partial(self._receive, call, [self._begin(call)], work.evaluations, up)), {}

    def _begin(self, call: ClientCall) -> Begun:
        workers = self._backend.workers
        if refs := list(self._running):
            for ref in workers.ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0]:
                del self._running[ref]
        busy = Counter(self._running.values())
        begun = self._backend.begin(self._federation, call, sorted(range(len(workers)), key=lambda k: busy[k]))
        self._running |= {first: run.worker for run, (first, *_) in zip(begun.runs, begun.calls, strict=True)}
        return begun

    def _receive(self, call: ClientCall, sent: list[Begun], evaluations: np.ndarray, up: np.ndarray) -> Stacked:
        """Wait for the messages of a call that is ``sent``, or send it again.

        Raises:
            ClientError, DivergenceError: see ``clients.each``.
            StateLostError: costs are not those foreseen, on which events have depended since.
        """
        fed = self._federation

        def wait() -> tuple[list[Report], Stacked]:
            begun = sent.pop() if sent else self._begin(call)
            reports = self._backend.reports(begun, call.round)
            return reports, self._backend.handed(begun, reports, fed.model.device)

        reports, messages = self._host.attempt(f"server step {call.round}", fed, self._meter, wait)
        check_finite(call.ids, messages, call.fn, call.round)
        spent = np.concatenate([report.gradients for report in reports])
        if not (np.array_equal(spent, evaluations[messages.order]) and np.array_equal(messages.sizes(), up)):
            self._host.foresees = False
            raise StateLostError("tasks do not all cost the same; from here on each is computed when it begins")
        return messages
