"""The loop on a GPU with its local steps as CUDA graphs, see ``fedsim.engine.captured``: one launch each.

Every branch (see ``fedsim.engine.branches``) has graphs of its own. A step that cannot be captured runs as in the loop,
and the run says why.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from fedsim.checks import whole
from fedsim.engine.branches import Branch, in_branches
from fedsim.engine.captured import Graphs
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.loop import DeviceMinibatches, Loop, LoopLocal, refuse_captured_tensors
from fedsim.engine.refusals import refuse_other_form
from fedsim.engine.tape import Unreplayable
from fedsim.tree import build, count, leaves
from fedsim.types import Batch
from fedsim.values import Vector

R = TypeVar("R")


class GraphedLocal(LoopLocal):
    """``Local`` of one client whose steps are replayed."""

    def __init__(self, backend: Graphed, branch: Branch, *arguments: Any) -> None:
        self._backend, self.branch = backend, branch
        self._evaluations: list[int] | None = None         # of the step under capture
        super().__init__(*arguments)

    def fold(self, step: Callable[..., Any], carry: Any, *consts: Any, skip: int = 0, shares: bool = False) -> Any:
        """See ``fedsim.types.Local``."""
        refuse_captured_tensors(step)
        self.descend.start(self._fed.model.zeros(), self.steps)
        like = (carry, self.descend.carry), *consts
        carried, given = len(leaves(like[0])), leaves(like)
        lengths, k = self._plan.lengths, skip
        while k < len(lengths):
            stop = next((j for j in range(k, len(lengths)) if lengths[j] != lengths[k]), len(lengths))
            now = self._now(slice(k, stop), lengths[k], shares)
            once = partial(self._once, step, like, shares)
            captured = self._backend.captured(
                self.branch, self._fed, self, step, shares, once, given, carried, lambda tensors: tensors, now
            )
            if captured is None:
                carry, self.descend.carry = build(like[0], iter([t.clone() for t in given[:carried]]))
                return super().fold(step, carry, *consts, skip=k, shares=shares)
            given = captured.run(given, now)
            self._meter.ledger.gradient_evaluations[self._node] += captured.charged * (stop - k)
            k = stop
        self.descend.used = True
        self.descend.end()
        carry, self.descend.carry = build(like[0], iter([t.clone() for t in given[:carried]]))
        return carry

    def _now(self, steps: slice, size: int, shares: bool) -> list[Tensor]:
        """What changes from step to step: rows and keys of the minibatches, and numbers, ``[n, ...]``."""
        plan = self._plan
        numbers = [plan.shares] * shares + [plan.factors] * (self.step_schedule is not None)
        return [plan.rows[steps, :size], plan.keys[steps], *(of[steps] for of in numbers)]

    def _once(
        self, step: Callable[..., Any], like: Any, shares: bool, own: list[Tensor], now: list[Tensor]
    ) -> tuple[list[Tensor], int]:
        """A step on fixed addresses, and the samples that it takes gradients of."""
        rows, key, *numbers = now
        self.descend.factor = None if self.step_schedule is None else numbers.pop()
        self._evaluations = []
        try:
            batch = self._take(rows, key.expand(len(rows)))
            (carry, self.descend.carry), *consts = build(like, iter(own))
            self.descend.begin()
            new = step(carry, batch, *consts, *numbers)
            refuse_other_form(step, carry, new)
            return leaves((new, self.descend.carry)), sum(self._evaluations)
        finally:
            self._evaluations = None

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """See ``fedsim.types.Local``."""
        if self._evaluations is None:
            return super().grad(x, batch)
        if batch is None:
            raise Unreplayable("it takes a gradient of the whole shard in a step")
        self._evaluations.append(count(batch.y))
        x = self.descend.whole(x)
        return self.descend.gradient(self._gradient(x, batch), x, of_minibatch=True)

    def _outside(self, word: str) -> None:
        if self._evaluations is not None:
            raise Unreplayable(f"it reads local.{word} in a step, which another round would not change")

    @property
    def decay(self) -> Tensor:
        """See ``fedsim.types.Local``."""
        self._outside("decay")
        return self._decay

    @decay.setter
    def decay(self, value: Tensor) -> None:
        self._decay = value

    @property
    def steps(self) -> Tensor:
        """See ``fedsim.types.Local``."""
        self._outside("steps")
        return super().steps

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        self._outside("key")
        return super().key(tag)

    def sample(self, size: int) -> Batch:
        """See ``fedsim.types.Local``."""
        self._outside("sample")
        return super().sample(size)


@dataclass(frozen=True)
class Graphed(Loop, Graphs):
    """Backend on a GPU: the loop with each local step one launch.

    Args:
        streams: clients at the same time; see ``fedsim.engine.branches``.
    """

    streams: int = 1

    def __post_init__(self) -> None:
        whole("streams", self.streams, 1)

    def results(
        self, federation: Federation, ids: np.ndarray, one: Callable[[Federation, int], R]
    ) -> Generator[R, None, None]:
        """See ``fedsim.engine.loop.Loop``."""
        sizes, branches = federation.shards.sizes[ids], self.branches_for(federation.model, self.streams)
        costs = federation.work.counts(sizes) * federation.work.batch(sizes) + 1.0
        with self.kernels.used_by([branch.model for branch in branches]):
            yield from in_branches(federation, branches, costs, one)

    def local(
        self, federation: Federation, meter: Meter, node: int, round: int, plan: DeviceMinibatches, decay: Tensor
    ) -> LoopLocal:
        """The client's ``Local``."""
        (branch,) = [b for of_one in self.branches.values() for b in of_one if b.model is federation.model]
        return GraphedLocal(self, branch, federation, meter, node, round, plan, decay)
