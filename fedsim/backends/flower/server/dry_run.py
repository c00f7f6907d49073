"""What a client function sends and keeps, found without a client: it is run once on one sample, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.federation import Federation
from fedsim.engine.model import Model
from fedsim.messages.stacked import Stacked
from fedsim.tree import tree_map
from fedsim.types import Batch, Kept, Messages
from fedsim.values import Far, Vector


class DryLocal:
    """``Local`` whose gradients are zero and whose loop is one step."""

    def __init__(self, model: Model, sample: Batch) -> None:
        self._model, self._sample = model, sample
        self.decay = torch.ones((), dtype=model.dtype, device=model.device)
        self.steps = torch.ones_like(self.decay)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """See ``fedsim.values.Site``."""
        return tuple(self._model.shapes)

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        return torch.zeros((), dtype=torch.int64, device=self._model.device)

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """See ``fedsim.types.Local``."""
        return torch.zeros_like(x)

    def sample(self, size: int) -> Batch:
        """See ``fedsim.types.Local``."""
        return self._sample

    def fold(
        self, step: Callable[..., Any], carry: Any, *consts: Any, skip: int = 0, shares: bool = False
    ) -> Any:
        """See ``fedsim.types.Local``."""
        return step(carry, self._sample, *consts, *[self.steps] * shares)


@torch.no_grad()
def outcome(fn: Callable[..., Any], model: Model, sample: Batch, down: Any, memory: Any) -> tuple[Any, Any]:
    """A message and a memory of the shapes that ``fn`` gives; no memory where it is given none."""
    local = DryLocal(model, sample)
    if memory is None:
        return fn(local, down), None
    here = tree_map(lambda t: _like(t, model.device), memory)
    message, kept = fn(local, down, here)
    return message, kept


class Dry:
    """A ``Backend`` that gives what has the right shapes, and asks nobody."""

    def __init__(self, sample: Batch) -> None:
        self._sample = sample

    def each(
        self,
        federation: Federation,
        fn: Callable[..., Any],
        ids: np.ndarray,
        round: int,
        down: Any,
        mine: Kept[Any] | None,
    ) -> tuple[Messages[Any], dict[int, Any]]:
        """See ``fedsim.engine.federation.Backend``."""
        first = None if mine is None else mine[int(ids[0])]
        message, memory = outcome(fn, federation.model, self._sample, down, first)
        rows = tree_map(lambda t: t.expand(len(ids), *t.shape), message)
        return Stacked(rows), {} if mine is None else dict.fromkeys(ids.tolist(), memory)


def _like(leaf: Tensor | Far, device: torch.device) -> Tensor:
    return torch.ones(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Far) else leaf
