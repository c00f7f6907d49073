"""The minibatches of a block of clients on the device, which are not drawn before somebody reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from fedsim.engine.local_work import StackedPlans
from fedsim.engine.model import Model
from fedsim.messages.upload import upload

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
        rows: ``[c, K, B]``.
        weights: ``[K, c, B]``, 0 for padding; ``[K, c, 0]`` without.
        shares: fraction of the round's samples in each step, ``[K, c]``.
        factors: of the step sizes, ``[K, c]`` or ``[0, c]``.
        keys, whole_keys: ``[c, K, 1]`` and ``[c, parts, 1]``.
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
    arrays = [places, host.rows, weights, *numbers, host.keys, host.whole, host.large]
    at, rows, there, steps, *by_step, keys, whole, large = upload(arrays, model.device)
    keys, whole, large = (key.unsqueeze(-1) for key in (keys, whole, large))
    return BlockPlan(at, steps, lengths, widths, ragged, rows, there, by_step[0], by_step[1], keys, whole, large)


def padded(rows: list[np.ndarray], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Stack rows of unequal length to ``[c, B]``, padded with their first entry; with a mask if there is padding."""
    width = int(lengths.max())
    if lengths.min() == width:
        return np.stack(rows), None
    index = np.stack([np.r_[row, np.full(width - len(row), row[0])] for row in rows])
    return index, np.arange(width) < lengths[:, None]
