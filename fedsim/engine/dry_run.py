"""Dry run of a client function on one sample, without gradients, to find the forms of its message and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.engine.descent import Descent
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.model import Model
from fedsim.messages.stacked import Stacked
from fedsim.tree import tree_map
from fedsim.types import Batch, Messages
from fedsim.values import Far, Vector


class DryLocal:
    """``Local`` with zero gradients and a single step."""

    def __init__(self, model: Model, work: LocalWork, sample: Batch) -> None:
        self._model, self._sample = model, sample
        self.descend, self.optimizer = Descent(work, model.learned, model.sharing), work.optimizer
        self.step_schedule = work.step_schedule
        self.decay = torch.ones((), dtype=model.dtype, device=model.device)
        self.steps = torch.ones_like(self.decay)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """See ``fedsim.values.Site``."""
        return self._model.shared_shapes

    @property
    def names(self) -> tuple[str, ...]:
        """See ``fedsim.types.Local``."""
        return self._model.shared_names

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        return torch.zeros((), dtype=torch.int64, device=self._model.device)

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """See ``fedsim.types.Local``."""
        if self._model.sharing is not None:
            self.descend.gradient(self._model.zeros(), self.descend.whole(x), of_minibatch=batch is not None)
        return torch.zeros_like(x)

    def sample(self, size: int) -> Batch:
        """See ``fedsim.types.Local``."""
        return self._sample

    def moments(self, x: Vector, layers: Sequence[str]) -> Tensor:
        """See ``fedsim.types.Local``."""
        return self._model.moments(self.descend.whole(x), self._sample.x, layers)

    def fold(
        self, step: Callable[..., Any], carry: Any, *consts: Any, skip: int = 0, shares: bool = False
    ) -> Any:
        """See ``fedsim.types.Local``."""
        self.descend.start(self._model.zeros(), self.steps)
        self.descend.begin()
        carry = step(carry, self._sample, *consts, *[self.steps] * shares)
        self.descend.end()
        return carry


@torch.no_grad()
def outcome(call: ClientCall, local: DryLocal, mine: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Dummy message and new memories, with the shapes that a client function returns for the memories ``mine``."""
    here = tree_map(lambda t: _like(t, local.decay.device), mine)
    return call.at(local, call.down, here)


class Dry:
    """``Backend`` that returns dummy values of the right shapes without calling a client.

    Attributes:
        descended: True once a client function has made a step by ``local.descend``.
    """

    def __init__(self, sample: Batch) -> None:
        self._sample = sample
        self.descended = False

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, dict[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        first = () if call.mine is None else call.mine[int(call.ids[0])]
        local = DryLocal(federation.model, federation.work, self._sample)
        message, new = outcome(call, local, first)
        self.descended |= local.descend.used
        memory = dict.fromkeys(call.ids.tolist(), new) if new else {}
        return Stacked(tree_map(lambda t: t.expand(len(call.ids), *t.shape), message)) if call.sends else None, memory


def _like(leaf: Tensor | Far, device: torch.device) -> Tensor:
    return torch.ones(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Far) else leaf
