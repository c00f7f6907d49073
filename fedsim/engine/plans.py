"""The minibatches of a block of clients on the device, which are not drawn before somebody reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from fedsim.engine.local_work import Shards, StackedPlans
from fedsim.engine.model import Model
from fedsim.messages.upload import upload
from fedsim.tree import flat
from fedsim.types import Batch

T = TypeVar("T")


class Once(Generic[T]):
    """A value that is made when it is first asked for, by whichever thread."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made, self._lock = make, list[T](), threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
        return self._made[0]


class BlockPlan(NamedTuple):
    """The rounds of the ``c`` clients of a block; see ``fedsim.engine.local_work.StackedPlans``.

    Attributes:
        places: ``[c]`` of the clients in the cohort.
        counts: ``[c]`` numbers of their steps.
        lengths: ``[c, K]``, on the host.
        widths: ``[K]`` largest minibatch in each step, on the host.
        ragged: whether minibatches of a step differ in size.
        rows: ``[K, c, B]``; anything after a client's last step.
        weights: ``[K, c, B]``, 0 for padding; ``[K, c, 0]`` without.
        shares: fraction of the round's samples in each step, ``[K, c]``.
        factors: of the step sizes, ``[K, c]`` or ``[0, c]``.
        keys: ``[K, c, 1]``.
        whole_keys: ``[c, parts, 1]``.
        large_keys: ``[c, 1]``.
    """

    places: Tensor
    counts: Tensor
    lengths: np.ndarray
    widths: np.ndarray
    ragged: list[bool]
    rows: Tensor
    weights: Tensor
    shares: Tensor
    factors: Tensor
    keys: Tensor
    whole_keys: Tensor
    large_keys: Tensor


def block_plan(host: StackedPlans, places: np.ndarray, counts: np.ndarray, model: Model) -> BlockPlan:
    """Bring rounds of the clients at ``places [c]``, with ``counts [c]`` steps, to the model's device, in one copy."""
    lengths, widths = host.lengths, host.lengths.max(0)
    shares = np.ascontiguousarray((lengths / lengths.sum(1, keepdims=True)).T)
    ragged = ((lengths < widths) & (np.arange(len(widths)) < counts[:, None])).any(0).tolist()
    samples = np.arange(host.rows.shape[2]) if any(ragged) else np.arange(0)
    weights = (samples < lengths.T[:, :, None]).astype(model.numbers)
    numbers = [np.ascontiguousarray(t).astype(model.numbers) for t in (counts, shares, host.factors.T)]
    rows, keys = (np.ascontiguousarray(t.swapaxes(0, 1)) for t in (host.rows, host.keys))
    arrays = [places, rows, weights, *numbers, keys, host.whole, host.large]
    at, index, there, steps, *by_step, key, whole, large = upload(arrays, model.device)
    key, whole, large = (each.unsqueeze(-1) for each in (key, whole, large))
    return BlockPlan(at, steps, lengths, widths, ragged, index, there, by_step[0], by_step[1], key, whole, large)


AHEAD = 2**20
"""Bytes of samples that are read at once, for as many steps as they make."""


class StepBatches:
    """Minibatches of the clients of a block that still step, step by step.

    Args:
        plan: the clients' rounds.
        active: number of clients with more than ``k`` steps, for each ``k``.
        shards: their samples.
    """

    def __init__(self, plan: BlockPlan, active: list[int], shards: Shards) -> None:
        self._plan, self._shards = plan, shards
        self._forms = [*zip(active, plan.widths.tolist(), plan.ragged, strict=True)]
        self._read, self._ahead = dict[int, Batch](), 1    # by step, read already; for how many steps AHEAD suffices

    def __call__(self, k: int) -> Batch:
        """Those of step ``k``: ``[active[k], B, ...]``."""
        if k not in self._read:
            self._read_from(k)
        return self._read.pop(k)

    def firsts(self) -> Batch:
        """The first sample of every client of the block."""
        return self._shards.take(self._plan.rows[0, :, :1], None, self._plan.keys[0])

    def _read_from(self, k: int) -> None:
        plan, (active, width, ragged) = self._plan, self._forms[k]
        forms = self._forms[k : k + self._ahead]
        n = next((i for i, form in enumerate(forms) if form != forms[0]), len(forms))
        steps = slice(k, k + n)
        weight = plan.weights[steps, :active, :width] if ragged else None
        key = plan.keys[steps, :active].expand(-1, -1, width)
        batch = self._shards.take(plan.rows[steps, :active, :width], weight, key)
        self._read = {k + i: batch.part(i) for i in range(n)}
        self._ahead = max(1, AHEAD * n // sum(t.nbytes for t in flat((batch.x, batch.y))))


def padded(rows: list[np.ndarray], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Stack rows of unequal length to ``[c, B]``, padded with their first entry; with a mask if there is padding."""
    width = int(lengths.max())
    if lengths.min() == width:
        return np.stack(rows), None
    index = np.stack([np.r_[row, np.full(width - len(row), row[0])] for row in rows])
    return index, np.arange(width) < lengths[:, None]
