"""Checkpoints of one seed: the algorithm's state, and the ledger, clock and sampling that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fedsim.clock.lazy import LazyClock
from fedsim.controller.asynchronous import Driver
from fedsim.controller.selection import Selection
from fedsim.errors import CheckpointError
from fedsim.messages.ledger import Ledger
from fedsim.record import checkpoint
from fedsim.record.blocks import History, PutRows
from fedsim.record.directory import SeedRecord
from fedsim.record.state import flatten, restore

MESSAGES = "clock.messages"
"""Name of an asynchronous method's messages under way, which are stored like memories of clients."""


class Completed(NamedTuple):
    """A completed round, from which a checkpoint can be written while the next one is under way.

    Attributes:
        round: its number.
        state: the algorithm's state after it.
        position: ends of the files of the seed; see `SeedRecord.position`.
        sampling: tensors of the sampling, by name.
        clock: function that returns the clock's tensors, by name.
        messages: function that waits for the messages under way, and returns them by client.
    """

    round: int
    state: Any
    position: dict[str, Any]
    sampling: dict[str, Tensor]
    clock: Callable[[], dict[str, Tensor]]
    messages: Callable[[], dict[int, Any]]


class Checkpoints:
    """Writes the checkpoints of one seed, and restores them.

    Args:
        record: files of the seed.
        ledger: its costs.
        selection: its cohorts.
        clock: its simulated time, if it has a clock.
        meta: what every checkpoint says of the run.

    Attributes:
        completed: the last completed round.
    """

    completed: Completed

    def __init__(
        self, record: SeedRecord, ledger: Ledger, selection: Selection, clock: LazyClock | Driver | None,
        meta: dict[str, Any],
    ) -> None:  # fmt: skip
        self._record, self._ledger, self._selection, self._clock, self._meta = record, ledger, selection, clock, meta
        self._history = History()

    def note(self, round: int, state: Any) -> None:
        """Make this the last completed round; nothing is copied that is not about to change."""
        self.completed = Completed(
            round,
            state,
            self._record.position(),
            _prefixed("sampling", self._selection.snapshot()),
            dict if self._clock is None else self._clock.freeze(),
            self._clock.under_way() if isinstance(self._clock, Driver) else dict,
        )
        self._ledger.settle()

    def save(self) -> None:
        """Write a checkpoint of the last completed round, and forget the costs of what came after it.

        Raises:
            CheckpointError: see `fedsim.record.checkpoint.save`.
        """
        last = self.completed
        self._ledger.undo()
        self._record.sync()
        tensors, memories = flatten(last.state)
        costs, times = _prefixed("ledger", self._ledger.state()), _prefixed("clock", last.clock())
        under_way = {MESSAGES: messages} if (messages := last.messages()) else {}
        checkpoint.save(
            self._record.checkpoints,
            last.round,
            {**tensors, **costs, **last.sampling, **times},
            {**last.position, **self._meta},
            memories={**memories, **under_way},
            history=self._history,
        )

    def restore(self, loaded: checkpoint.Loaded, template: Any, put_rows: PutRows, run: Path) -> Any:
        """Restore ledger, clock and sampling, and return the algorithm's state.

        Args:
            loaded: the checkpoint.
            template: a state of the same algorithm, e.g. its initial state.
            put_rows: places tensors of clients' memories.
            run: directory of the run, for errors.

        Raises:
            CheckpointError: it belongs to another algorithm or version.
        """
        try:
            self._ledger.restore(_without_prefix("ledger", loaded))
            if self._clock is not None:
                self._clock.restore(_without_prefix("clock", loaded), template, loaded.memories.get(MESSAGES, ()))
            self._selection.restore(_without_prefix("sampling", loaded))
            state = restore(template, loaded, put_rows)
        except KeyError as error:
            raise _foreign(loaded, run, f"lacks {error}") from error
        if unread := self._unread(loaded, state):
            raise _foreign(loaded, run, f"holds {min(unread)}, which the algorithm's initial state lacks")
        return state

    def _unread(self, loaded: checkpoint.Loaded, state: Any) -> set[str]:
        """Names in a checkpoint that nothing was restored from."""
        tensors, memories = flatten(state)
        known = {*tensors, *_prefixed("sampling", self._selection.snapshot())}
        others = {name for name in loaded.tensors if name not in known and not name.startswith(("ledger.", "clock."))}
        under_way = {MESSAGES} if isinstance(self._clock, Driver) else set()
        return others | (loaded.memories.keys() - memories.keys() - under_way)


def _prefixed(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(part: str, loaded: checkpoint.Loaded) -> dict[str, Tensor]:
    start = f"{part}."
    return {name.removeprefix(start): loaded.tensors[name] for name in loaded.tensors if name.startswith(start)}


def _foreign(loaded: checkpoint.Loaded, run: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of round {loaded.round} in {run} {why}; it belongs to another algorithm or version"
    )
