"""The cohorts of one seed, which may depend on who is available and on what clients have told the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.arrays import distinct
from fedsim.clock.barrier import Barrier
from fedsim.clock.virtual import VirtualClock
from fedsim.controller.host import Host
from fedsim.controller.prepare import Prepared
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import draw, minibatches
from fedsim.experiment.adaptive import Adaptive, Memory, Poll, Told
from fedsim.experiment.sampling import FixedSize, Sampling
from fedsim.messages.trace import Computed, Uploaded
from fedsim.messages.wire import nbytes, paper_bits
from fedsim.values import Vector

FORWARD = 3
"""A gradient evaluation costs as much as so many evaluations of a loss (FedScale)."""
NUMBER = torch.zeros(())
"""Stands for the number that a client sends."""


class Selection:
    """Chooses the cohort of each round; for an adaptive sampling, it asks clients and notes what they tell.

    Attributes:
        memory: what an adaptive sampling remembers.
        begun: simulated seconds at which the server called the present cohort of an adaptive sampling.
    """

    def __init__(
        self, sampling: Sampling | Adaptive, prepared: Prepared, meter: Meter, clock: VirtualClock | None,
        barrier: Barrier | None, host: Host,
    ) -> None:  # fmt: skip
        self.sampling, self.prepared, self.meter, self.clock, self.barrier = sampling, prepared, meter, clock, barrier
        self.host, self.federation, self.begun = host, prepared.federation, 0.0
        self.adaptive = cast(Adaptive, sampling) if hasattr(sampling, "choose") else None
        self.memory: Memory = {} if self.adaptive is None else self.adaptive.begin(self.federation.shards.n)

    @property
    def looks_at_clock(self) -> bool:
        """Whether the cohort depends on the clock, which then has to follow every round at once."""
        return self.adaptive is not None or self.barrier is not None

    def cohort(self, round: int, state: Any) -> np.ndarray:
        """Ids of the clients that the server calls, sorted.

        With ``waiting.present`` these are among the available ones; if nobody is available, the clock advances to the
        moment at which somebody is.
        """
        n, seed = self.federation.shards.n, self.federation.seed
        there = self._present() if self.barrier is not None and self.barrier.rule.present else None
        if self.adaptive is not None:
            there = np.arange(n) if there is None else there
            speed = None if self.clock is None else self.clock.devices.seconds
            poll = Poll(seed, round, there, self.federation.p, speed, lambda ids, b: self._ask(round, state.x, ids, b))
            ids = np.sort(self.adaptive.choose(self.memory, poll))
        elif there is None:
            ids = self.sampling.cohort(seed, round, n)
        else:
            sampling = self.sampling
            if isinstance(sampling, FixedSize):            # as many as of all clients
                sampling = replace(sampling, size=min(int(sampling.expected(n)), len(there)))
            ids = there[sampling.cohort(seed, round, len(there))]
        if self.adaptive is not None and self.clock is not None:
            self.begun = self.clock.server
        return ids

    def _present(self) -> np.ndarray:
        clock = cast(VirtualClock, self.clock)
        n = clock.devices.n
        begin = clock.devices.begin(np.arange(n), np.full(n, clock.server))
        clock.server = max(clock.server, float(begin.min()))
        return np.flatnonzero(begin <= clock.server)

    def _ask(self, round: int, x: Vector, ids: np.ndarray, batch_size: int | None) -> np.ndarray:
        """Mean losses ``[c]`` of ``x`` at clients; charged, and the clock waits for them."""
        shards, seed = self.federation.shards, self.federation.seed
        size = int(shards.sizes[ids].max()) if batch_size is None else batch_size
        rows = draw(shards, seed, round, ids, size)
        samples = np.array([len(own) for own in rows])
        work = Computed(ids, np.full(len(ids), nbytes(x)), -(-samples // FORWARD))
        ledger = self.meter.ledger
        ledger.touch(ids)
        ledger.down[ids] += work.down
        ledger.gradient_evaluations[ids] += work.evaluations
        self._charge_number(ids)
        if self.clock is not None:
            self.clock.advance([work, Uploaded(ids, np.full(len(ids), nbytes(NUMBER)), 0.0)], round)
        return np.array([losses.mean() for losses in self._losses(x, rows)])

    def _charge_number(self, ids: np.ndarray) -> None:
        self.meter.ledger.touch(ids)
        self.meter.ledger.up[ids] += nbytes(NUMBER)
        self.meter.ledger.paper_bits[ids] += paper_bits(NUMBER)

    def _losses(self, x: Vector, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Loss of ``x`` on each sample, for each client's rows."""
        batch = self.federation.shards.take(torch.from_numpy(np.concatenate(rows)).to(x.device))
        loss = self.host.score(self.prepared, x, batch.x, batch.y).loss
        return np.split(loss, np.cumsum([len(own) for own in rows])[:-1])

    def follow(self, round: int, state: Any, ids: np.ndarray) -> None:
        """Note what the clients ``ids``, whose messages count, tell after a round that began with ``state``.

        Each sends a number beside its message: its loss on the samples that it has trained on, known from the first
        pass over them.
        """
        if self.adaptive is None or not len(ids):
            return
        fed = self.federation
        plans = minibatches(fed.work, fed.shards, fed.seed, round, ids)
        rows = [distinct(plan.index) for plan in plans]
        losses = self._losses(state.x, rows)
        self._charge_number(ids)
        told = Told(
            ids,
            np.array([own.mean() for own in losses]),
            np.array([np.square(own).mean() for own in losses]),
            np.array([len(own) for own in losses]),
            np.full(len(ids), np.nan) if self.clock is None else self.clock.at[ids] - self.begun,
        )
        self.memory = self.adaptive.follow(self.memory, round, told)

    def snapshot(self) -> dict[str, Tensor]:
        """The memory, for a checkpoint."""
        return {name: torch.from_numpy(array.copy()) for name, array in self.memory.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `snapshot`."""
        self.memory = {name: state[name].numpy().copy() for name in self.memory}
