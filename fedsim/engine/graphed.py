"""The loop on a GPU with its local steps as CUDA graphs: captured once, replayed by one launch each.

A graph belongs to a branch (see ``fedsim.engine.branches``), a step (by its fingerprint), the local work, the form of
its arguments and the size of the minibatch. Its inputs have fixed addresses on the device: the carry, the constants,
rows and keys of the minibatches, a count of the steps. A replay launches the same kernels as the loop, so that it has
the loop's bits. A step that cannot be captured runs as in the loop, and the run says why.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import whole
from fedsim.engine.branches import Branch, branches_of, in_branches
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.loop import DeviceMinibatches, Loop, LoopLocal, refuse_captured_tensors
from fedsim.engine.model import Model
from fedsim.engine.refusals import refuse_other_form
from fedsim.engine.tape import Unreplayable, address, fingerprint
from fedsim.errors import title
from fedsim.tree import build, count, leaves
from fedsim.types import Batch
from fedsim.values import Vector

R = TypeVar("R")

MOST_GRAPHS = 32
"""Graphs for each branch; whole shards of many sizes would need one for each."""
LEAST_ROWS = 16
"""Steps for which a graph has room at least."""


class CapturedStep:
    """One local step as a graph, on tensors of its own.

    Args:
        local: a client; its state changes.
        step: the function given to ``local.fold``.
        like: tree with the structure of ((carry, what rides behind it), *consts).
        carried: number of tensors of the carry and what rides behind it.
        size: samples of the minibatch.
        rows: steps for which there is room.
        shares: whether the step takes its share of the samples.
    """

    def __init__(
        self, local: GraphedLocal, step: Callable[..., Any], like: Any, carried: int, size: int, rows: int, shares: bool
    ) -> None:
        model = local.federation.model
        self._kept = local, step                           # the graph holds addresses of what belongs to them
        self._given = [t.clone(memory_format=torch.contiguous_format) for t in leaves(like)]
        self._carried = carried
        self.rows = torch.zeros(rows, size, dtype=torch.int64, device=model.device)
        self._keys = torch.zeros(rows, dtype=torch.int64, device=model.device)
        scheduled = local.step_schedule is not None
        self._shares, self._factors = (
            torch.zeros(rows, dtype=model.dtype, device=model.device) if has else None for has in (shares, scheduled)
        )
        self._at = torch.zeros(1, dtype=torch.int64, device=model.device)
        tree = build(like, iter(self._given))
        local.recorded(lambda: self._once(local, step, tree))   # cuBLAS and cuDNN make their handles and workspaces
        self._graph, branch = torch.cuda.CUDAGraph(), local.branch
        with torch.cuda.graph(self._graph, branch.pool, branch.stream, capture_error_mode="thread_local"):
            self.evaluations = local.recorded(lambda: self._once(local, step, tree))

    def _once(self, local: GraphedLocal, step: Callable[..., Any], tree: Any) -> None:
        key = self._keys.index_select(0, self._at).expand(self.rows.shape[1])
        batch = local.taken(self.rows.index_select(0, self._at)[0], key)
        share, local.descend.factor = (
            None if each is None else each.index_select(0, self._at)[0] for each in (self._shares, self._factors)
        )
        (carry, local.descend.carry), *consts = tree
        local.descend.begin()
        new = step(carry, batch, *consts, *([] if share is None else [share]))
        refuse_other_form(step, carry, new)
        ours = {address(t) for t in self._given}
        results = [t.clone() if address(t) in ours else t for t in leaves((new, local.descend.carry))]
        for old, t in zip(self._given[: self._carried], results, strict=True):
            old.copy_(t)
        self._at.add_(1)

    def run(self, given: list[Tensor], plan: DeviceMinibatches, steps: slice) -> list[Tensor]:
        """The carry, and what rides behind it, after some steps from ``given``; the next run overwrites them."""
        n = steps.stop - steps.start
        for to, t in zip(self._given, given, strict=True):
            to.copy_(t)
        self.rows[:n].copy_(plan.rows[steps, : self.rows.shape[1]])
        self._keys[:n].copy_(plan.keys[steps])
        for each, of in ((self._shares, plan.shares), (self._factors, plan.factors)):
            if each is not None:
                each[:n].copy_(of[steps])
        self._at.zero_()
        for _ in range(n):
            self._graph.replay()
        return self._given[: self._carried]


class GraphedLocal(LoopLocal):
    """``Local`` of one client whose steps are replayed."""

    def __init__(self, backend: Graphed, branch: Branch, *arguments: Any) -> None:
        self._backend, self.branch = backend, branch
        self._evaluations: list[int] | None = None         # of the step under capture
        super().__init__(*arguments)

    @property
    def federation(self) -> Federation:
        """The client's federation."""
        return self._fed

    def taken(self, index: Tensor, key: Tensor) -> Batch:
        """Samples of the client by rows of the data."""
        return self._take(index, key)

    def recorded(self, once: Callable[[], None]) -> int:
        """Run a step on fixed addresses; return the samples that it takes gradients of."""
        self._evaluations = []
        try:
            once()
            return sum(self._evaluations)
        finally:
            self._evaluations = None

    def fold(self, step: Callable[..., Any], carry: Any, *consts: Any, skip: int = 0, shares: bool = False) -> Any:
        """See ``fedsim.types.Local``."""
        refuse_captured_tensors(step)
        self.descend.start(self._fed.model.zeros(), self.steps)
        like = ((carry, self.descend.carry), *consts)
        held, fixed = leaves(like[0]), leaves(tuple(consts))
        lengths, k = self._plan.lengths, skip
        while k < len(lengths):
            stop = next((j for j in range(k, len(lengths)) if lengths[j] != lengths[k]), len(lengths))
            captured = self._captured(step, like, [*held, *fixed], len(held), lengths[k], stop - k, shares)
            if captured is None:
                carry, self.descend.carry = build(like[0], iter([t.clone() for t in held]))
                return super().fold(step, carry, *consts, skip=k, shares=shares)
            held = captured.run([*held, *fixed], self._plan, slice(k, stop))
            self._meter.ledger.gradient_evaluations[self._node] += captured.evaluations * (stop - k)
            k = stop
        self.descend.used = True
        self.descend.end()
        carry, self.descend.carry = build(like[0], iter([t.clone() for t in held]))
        return carry

    def _captured(
        self, step: Callable[..., Any], like: Any, given: list[Tensor], carried: int, size: int, rows: int, shares: bool
    ) -> CapturedStep | None:
        graphs: dict[Hashable, CapturedStep] = self.branch.graphs
        try:
            form = fingerprint((step, self.optimizer.step), self)
            data = id(self._fed.shards)                    # held by the graph as well, so that no other has this id
            key = form, self._fed.work, data, size, shares, *((t.shape, t.dtype) for t in given)
            found = graphs.get(key)
            if found is None or len(found.rows) < rows:
                if len(graphs) >= MOST_GRAPHS:
                    raise Unreplayable(f"there are {MOST_GRAPHS} graphs, as for minibatches of many sizes")
                room = 1 << (max(rows, LEAST_ROWS) - 1).bit_length()
                tree = build(like, iter(given))
                found = graphs[key] = CapturedStep(self, step, tree, carried, size, room, shares)
            return found
        except Exception as error:                         # the loop raises it again, if it is one of the user's code
            while error.__context__ is not None and isinstance(error.__context__, Exception):
                error = error.__context__                  # the end of a capture that failed raises as well
            self._backend.said(title(step), str(error).splitlines()[0] if str(error) else type(error).__name__)
            return None

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
class Graphed(Loop):
    """Backend on a GPU: the loop with each local step one launch.

    Args:
        streams: clients at the same time; see ``fedsim.engine.branches``.
        eager: steps that run as in the loop, with the reasons; added to.
        say: called with a message when one is added.
        branches: of each model, with the graphs captured so far.
    """

    streams: int = 1
    eager: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    branches: dict[Model, list[Branch]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        whole("streams", self.streams, 1)

    def results(
        self, federation: Federation, ids: np.ndarray, one: Callable[[Federation, int], R]
    ) -> Generator[R, None, None]:
        """See ``fedsim.engine.loop.Loop``."""
        model, sizes = federation.model, federation.shards.sizes[ids]
        if model not in self.branches:
            self.branches[model] = branches_of(model, self.streams)
        costs = federation.work.counts(sizes) * federation.work.batch(sizes) + 1.0
        with self.kernels.used_by([branch.model for branch in self.branches[model]]):
            yield from in_branches(federation, self.branches[model], costs, one)

    def local(
        self, federation: Federation, meter: Meter, node: int, round: int, plan: DeviceMinibatches, decay: Tensor
    ) -> LoopLocal:
        """The client's ``Local``."""
        (branch,) = [b for of_one in self.branches.values() for b in of_one if b.model is federation.model]
        return GraphedLocal(self, branch, federation, meter, node, round, plan, decay)

    def said(self, step: str, reason: str) -> None:
        """Note, and say once, that a step is launched as in the loop."""
        if step not in self.eager:
            self.eager[step] = reason
            self.say(f"{step} is no CUDA graph, and its steps are launched one by one: {reason}")
