"""The barrier of a synchronous round: who arrives before it closes, and what the others are charged."""

from __future__ import annotations

import numpy as np

from fedsim import seeds
from fedsim.clock.virtual import Tasks, VirtualClock
from fedsim.clock.waiting import Waiting
from fedsim.errors import RoundSkipped, RunError, many
from fedsim.messages.ledger import Ledger
from fedsim.messages.trace import Closed, Computed, Phase


class Barrier:
    """Who is waited for in the rounds of one seed.

    Attributes:
        cohort: the clients of the round. An exchange with others, as in the occasional rounds of MARINA or FedPAGE with
            all clients, waits for everybody.
    """

    def __init__(self, rule: Waiting, clock: VirtualClock, seed: int) -> None:
        self.rule, self.clock, self.seed = rule, clock, seed
        self.cohort = np.zeros(0, np.int64)

    def close(
        self, ledger: Ledger, trace: list[Phase], size: np.ndarray, bits: np.ndarray, round: int
    ) -> np.ndarray:
        """Mask ``[c]`` of the clients whose messages count in the exchange that the trace ends with.

        The others are charged, besides the part of their downloads and gradients that they have done, the part of their
        upload that they have sent.

        Args:
            ledger: charged with all downloads and gradient evaluations, and no upload.
            trace: of the round so far; the end of the exchange is added to it.
            size: bytes ``[c]`` of the messages.
            bits: their size as papers count it.
            round: number of the round.

        Raises:
            RoundSkipped: fewer than the minimum arrive.
            RunError: so does that, and is an error.
        """
        work = trace[-1]
        assert isinstance(work, Computed)
        ids = work.ids
        if not np.isin(ids, self.cohort).all():
            return np.ones(len(ids), bool)
        tasks, called = self.clock.planned(trace, round)
        arrival = tasks.end + self.clock.devices.upload(ids, size)
        gone = self._departures(tasks, arrival, ids, round)
        arrives = np.where(gone < arrival, np.inf, arrival)
        order = np.lexsort((ids, arrives))
        end, most = self.rule.closes(arrives[order] - called)
        until = called + end if end < np.inf else float(np.minimum(arrival, gone).max())
        counts = np.isfinite(arrives) & (arrives - called <= end)
        counts[order[most:]] = False                       # as late as the last that counts
        enough = counts.sum() >= self.rule.least(len(ids))
        late = ~counts if enough else np.ones(len(ids), bool)
        if late.any():
            stop = np.minimum(gone, until)[late]
            _charge(ledger, work, late, tasks, arrival, stop, size, bits)
            trace.append(Closed(ids[late], stop, until, skipped=not enough))
        if not enough:
            self._refuse(int(counts.sum()), len(ids), end, round)
        return counts

    def _departures(self, tasks: Tasks, arrival: np.ndarray, ids: np.ndarray, round: int) -> np.ndarray:
        """Times ``[c]`` at which clients go away, if they have not arrived before."""
        gone = self.clock.devices.leave(ids, tasks.begin)
        if self.rule.dropout:
            drops = seeds.uniform(self.seed, "dropout", round, ids, 0) < self.rule.dropout
            point = seeds.uniform(self.seed, "dropout", round, ids, 1)
            gone = np.minimum(gone, np.where(drops, tasks.start + point * (arrival - tasks.start), np.inf))
        return gone

    def _refuse(self, arrived: int, called: int, end: float, round: int) -> None:
        when = f"within {end:g} simulated seconds" if end < np.inf else "before the others had gone away"
        words = f"{many(arrived, 'message')} of {many(called, 'client')} arrived {when}"
        if self.rule.otherwise == "fail":
            raise RunError(
                f"round {round}: {words}, and waiting.minimum is {self.rule.minimum}; raise waiting.deadline, lower"
                " waiting.minimum or waiting.dropout, or set waiting.otherwise to wait or skip"
            )
        raise RoundSkipped(f"round {round} is skipped: {words}")


def _charge(
    ledger: Ledger, work: Computed, late: np.ndarray, tasks: Tasks, arrival: np.ndarray, stop: np.ndarray,
    size: np.ndarray, bits: np.ndarray,
) -> None:  # fmt: skip
    """Take back what the ``late [c]`` have not done when they ``stop``, and charge what they have sent."""
    ids, down, evaluations = work.ids[late], work.down[late], work.evaluations[late]
    start, received, begin, end = (times[late] for times in tasks)
    ledger.touch(ids)
    ledger.down[ids] -= down - _part(down, start, received, stop)
    ledger.gradient_evaluations[ids] -= evaluations - _part(evaluations, begin, end, stop)
    ledger.up[ids] += _part(size[late], end, arrival[late], stop)
    ledger.paper_bits[ids] += _part(bits[late], end, arrival[late], stop)


def _part(amount: np.ndarray, start: np.ndarray, end: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The part ``[c]`` of whole amounts that is done at ``stop``, of work from ``start`` to ``end``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(stop >= end, 1.0, np.clip((stop - start) / (end - start), 0, 1))
    done: np.ndarray = np.floor(share * amount).astype(np.int64)
    return done
