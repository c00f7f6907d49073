"""The costs of an asynchronous task before it is computed.

A clock needs the bytes and gradient evaluations of a task when it begins; its message is needed at the server step. If
all tasks of a method have messages of the same size and as many gradients for each sample, their costs are known from
the first ones. Later tasks that begin with the same model are then computed together, which is faster in blocks of
clients and on several actors. Neither the times of events nor the clients' results depend on it.

Tasks are computed when they begin where costs cannot be foreseen: if the size of messages depends on their values, the
number of gradients on the round, or if ``dispatch`` changes what the server holds, as a downlink with public copies
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.messages.trace import Computed
from fedsim.tree import leaves
from fedsim.types import Kept


class Unforeseen(Exception):
    """A task had other costs than foreseen: the server step has to be repeated."""


class Foresight:
    """Costs of the tasks of one seed.

    Args:
        samples: ``[n]`` samples in the minibatches of each client's task.

    Attributes:
        costs: bytes down, gradient evaluations for each sample, and bytes up; None until they are known.
        fails: whether a task has had other costs than those before it.
    """

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples
        self.costs: tuple[int, int, int] | None = None
        self.fails = False

    @property
    def knows(self) -> bool:
        """Whether the costs of a task are known before it is computed."""
        return self.costs is not None and not self.fails

    def of(self, ids: np.ndarray) -> tuple[Computed, np.ndarray]:
        """The work and the bytes up ``[c]`` of clients that begin."""
        assert self.costs is not None
        down, each, up = self.costs
        return Computed(ids, np.full(len(ids), down), each * self.samples[ids]), np.full(len(ids), up)

    def note(self, work: Computed, up: np.ndarray, before: Any, after: Any) -> None:
        """Learn from tasks that were computed.

        Args:
            work: their bytes down and gradient evaluations.
            up: ``[c]`` bytes of their messages.
            before: the state with which ``dispatch`` was called.
            after: the state that it returned.
        """
        if self.costs is None:
            self.costs = int(work.down[0]), int(work.evaluations[0] // self.samples[work.ids[0]]), int(up[0])
        foreseen, same = self.of(work.ids)
        pairs = ((work.down, foreseen.down), (work.evaluations, foreseen.evaluations), (up, same))
        a, b = at_server(before), at_server(after)
        moved = len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=False))
        self.fails = self.fails or moved or not all(np.array_equal(x, y) for x, y in pairs)

    def snapshot(self) -> Tensor:
        """What is known, for a checkpoint."""
        return torch.tensor([*(self.costs or (-1, -1, -1)), self.fails])

    def restore(self, known: Tensor) -> None:
        """Go back to a `snapshot`."""
        down, each, up, fails = known.tolist()
        self.costs, self.fails = None if down < 0 else (down, each, up), bool(fails)


def at_server(state: Any) -> list[Tensor]:
    """The tensors of a state that are at the server."""
    if isinstance(state, Kept):
        return []
    if isinstance(state, Mapping):
        return [t for value in state.values() for t in at_server(value)]
    if isinstance(state, tuple):
        return [t for value in state for t in at_server(value)]
    found: list[Tensor] = leaves(state)
    return found
