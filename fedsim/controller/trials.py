"""Trials of candidates: short rounds whose time tells which way to run clients is the fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedsim.algorithm import Algorithm, has_server
from fedsim.clients import cohort
from fedsim.controller.candidates import Candidate, fastest_of
from fedsim.engine.captured import eager_in
from fedsim.engine.examine import snapshot
from fedsim.engine.federation import Federation
from fedsim.engine.kernels import fastest
from fedsim.engine.machine import free_memory, out_of_memory, torch_threads
from fedsim.errors import BlockError, FedsimError, explained, in_one_line
from fedsim.record.state import check
from fedsim.types import Batch

TRIAL_STEPS = 3
"""Local steps of a trial at least, if a client makes that many: enough to measure the cost of a step."""
LIKELY = 3
"""Candidates for a convolution that share the time of trials and are all tried; later ones are rarely the fastest."""
MANY = 1000
"""Nodes without a server above which some are enough for a trial, with the links that they have to each other."""
SECONDS, SHARE = 2.0, 0.02
"""The trials of all candidates take about so many seconds, or this share of the run if that is more."""
VECTORS = 14
"""Vectors of a model for each client in a block, at the peak of a trial. A block that needs more memory than is free is
not tried, as the system may end a process that asks for too much.
"""


class Trials:
    """Measures candidates by rounds of some clients with some of their steps.

    Left out are candidates whose trial would exceed the processor time for all trials or the memory that is free, or
    fails for want of memory.

    Args:
        federation: not modified; trials run on a copy.
        algorithm: the algorithm to run.
        ids: cohort of the first round.
        rounds: rounds of the run; long ones are worth longer trials.
        dropped: collects why local steps of a candidate cannot be graphs, by its name.

    Attributes:
        seconds: of a round, by the name of the candidate.
    """

    def __init__(
        self, federation: Federation, algorithm: Algorithm[Any], ids: np.ndarray, rounds: int, dropped: dict[str, str]
    ) -> None:
        self.federation, self.algorithm, self.ids, self.rounds = federation, algorithm, ids, rounds
        self.seconds, self.dropped = dict[str, float](), dropped
        self._steps = int(federation.work.counts(federation.shards.sizes[ids]).max())
        self._step, self._cost = math.inf, math.inf        # seconds of a client's step; of processors, in a trial
        self._left = SECONDS                               # of processors, for all trials to come
        self._last = 0, 0                                  # clients and steps of the last trial
        self._too_large = math.inf                         # bytes of vectors for which there was no memory

    def run(self, tried: Sequence[Candidate], varied: Sequence[dict[str, bool]]) -> dict[str, float]:
        """Seconds of a round by candidate.

        Args:
            tried: candidates; the first is the reference.
            varied: changes of kernels to try with the fastest.

        Raises:
            BlockError: the model or the algorithm runs in the loop alone.
        """
        model = self.federation.model
        before = snapshot(model)
        try:
            if model.convolutional:                        # whose trials are dear and short: by gradients alone
                with torch_threads(1 if any(candidate.threads for candidate in tried) else None):
                    kernels = fastest(model, _minibatch(self.federation, int(self.ids[0])), varied)
                tried, varied = [candidate._replace(kernels=kernels) for candidate in tried], []
            likely = tried[:LIKELY] if model.convolutional else []
            shares = len(likely) or len(tried) + len(varied)
            for candidate in self._in_turn(tried, varied):
                some, steps = self._extent(candidate, shares)
                if self._fits(candidate, some * steps, candidate in likely) and not self._known(candidate, some, steps):
                    self._try(candidate, some, steps)
        finally:
            before.restore()                               # what a module holds of a block means nothing outside it
        return self.seconds

    def _in_turn(self, tried: Sequence[Candidate], varied: Sequence[dict[str, bool]]) -> Iterator[Candidate]:
        """What to measure next: the first once for its order of magnitude; kernels vary for the fastest."""
        yield from (tried[0], *tried)
        best = fastest_of(self.seconds, tried)
        for change in varied:
            yield best._replace(kernels=replace(best.kernels, **change))
            best = fastest_of(self.seconds, tried)

    def _extent(self, candidate: Candidate, shares: int) -> tuple[int, int]:
        """Clients and steps of a trial that takes one of so many equal shares of the time that is left."""
        affordable = int(max(self._left, 0.0) / shares / self._cost)           # steps of clients
        some = min(len(self.ids), max(candidate.size or 1, affordable // self._steps) * max(candidate.threads, 1))
        return some, min(self._steps, max(TRIAL_STEPS, affordable // some))

    def _known(self, candidate: Candidate, some: int, steps: int) -> bool:
        """Whether the last trial of this extent has measured it."""
        return candidate.name in self.seconds and (some, steps) == self._last

    def _fits(self, candidate: Candidate, amount: int, likely: bool) -> bool:
        """Whether there is time and memory for a trial of so many steps; the first one is always made."""
        if candidate.graphs and self.dropped:
            return False
        if held(candidate, self.federation) >= self._too_large:
            return False
        if not self.seconds:
            return True
        affordable = amount * self._cost <= max(self._left, 0.0) or (likely and candidate.name not in self.seconds)
        needed = VECTORS * held(candidate, self.federation)
        return affordable and needed <= free_memory(self.federation.model.device)

    def _try(self, candidate: Candidate, some: int, steps: int) -> None:
        """Run a trial, and note its seconds or why there are none."""
        backend = candidate.backend
        trial = replace(self.federation, work=replace(self.federation.work, steps=steps), backend=backend)
        try:
            (took, spent), ran = _best_of(trial, self.algorithm, self.ids, some)
        except Exception as error:
            if not self.seconds or not (candidate.graphs or out_of_memory(error)):
                raise
            if out_of_memory(error):
                self._too_large = held(candidate, self.federation)
            else:
                self.dropped[candidate.name] = in_one_line(error)
            torch.cuda.empty_cache()
            return
        if reasons := eager_in(backend):
            self.dropped[candidate.name] = next(iter(reasons.values()))
            return
        amount, whole = ran * steps, len(self.ids) * self._steps
        self._last = some, steps
        self._step, self._cost = min(self._step, took / amount), min(self._cost, spent / amount)
        self.seconds[candidate.name] = float(f"{took / amount * whole:.6f}")
        self._left -= spent
        if len(self.seconds) == 1:
            self._left = max(SECONDS, SHARE * self.rounds * self._step * whole) - spent


def _minibatch(federation: Federation, node: int) -> Batch:
    """A minibatch of a client."""
    size = int(federation.work.batch(federation.shards.sizes[node]))
    return federation.shards.rows(node).part(slice(size))._replace(key=torch.zeros(size, dtype=torch.int64))


def held(candidate: Candidate, federation: Federation) -> int:
    """Bytes of one vector of a model for every client that a candidate runs at the same time."""
    model = federation.model
    return max(candidate.size, 1) * max(candidate.threads, 1) * model.d * model.dtype.itemsize


def _best_of(
    trial: Federation, algorithm: Algorithm[Any], ids: np.ndarray, some: int
) -> tuple[tuple[float, float], int]:
    """Seconds of a round of the first ``some`` clients, or of all where the method needs them; those of processors for
    the whole trial, but for what it does once; and the number of clients.
    """
    if some < len(ids) and (has_server(algorithm) or len(ids) > MANY):
        try:
            return _best(_times(trial, algorithm, ids[:some])), some
        except BlockError:
            raise
        except FedsimError as error:                       # a method of everybody, or a rule that needs more messages
            if out_of_memory(error):
                raise
    return _best(_times(trial, algorithm, ids)), len(ids)


def _best(times: list[tuple[float, float]]) -> tuple[float, float]:
    warm = times[1:]                                       # the first round imports, traces and records
    return min(took for took, _ in warm), min(spent for _, spent in warm) * len(times)


def _times(trial: Federation, algorithm: Algorithm[Any], ids: np.ndarray) -> list[tuple[float, float]]:
    """Seconds of each of three rounds, or of two if they are long, and those of processors."""
    x, times, name = trial.model.shared(), list[tuple[float, float]](), type(algorithm).__name__
    with explained(f"{name}.init"):
        state = algorithm.init(x, cohort(trial, 0, ids))
    check(f"{name}.init", state, server=has_server(algorithm))
    for round in (1, 2, 3):
        start, spent = time.perf_counter(), time.process_time()
        with explained(f"{name}.round in round {round}"):
            algorithm.round(state, cohort(trial, round, ids))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append((time.perf_counter() - start, time.process_time() - spent))
        if round == 2 and times[-1][1] > SECONDS / 10:
            break
    return times
