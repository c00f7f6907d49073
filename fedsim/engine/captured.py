"""Local steps as CUDA graphs: captured once, replayed by one launch each.

A graph belongs to a step (by its fingerprint), the local work, the form of its arguments and that of a minibatch. Its
inputs have fixed addresses on the device: the carry and the constants, which all graphs of a step share, and what
changes from step to step (rows and keys of the minibatches and the like), of which a count of the steps on the device
finds the next. A replay launches the same kernels as the step, so that it has its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedsim.engine.branches import Branch, branches_of
from fedsim.engine.federation import Federation
from fedsim.engine.fingerprint import fingerprint
from fedsim.engine.model import Model
from fedsim.engine.tape import Unreplayable, address
from fedsim.errors import title

MOST_GRAPHS = 32
"""Graphs for each branch; whole shards of many sizes would need one for each."""
LEAST_ROWS = 16
"""Steps for which a graph has room at least."""

Tensors: TypeAlias = list[Tensor]
Once: TypeAlias = Callable[[Tensors, Tensors], tuple[Sequence[Tensor], Any]]
"""One step: of the carry and the constants, and of what belongs to this step, the new carry, perhaps over the old one;
and what a client, or a block of them, is charged for it."""


class CapturedStep:
    """One local step as a graph.

    Args:
        branch: where it is captured.
        once: the step; it stays alive, as the graph has addresses of what belongs to it.
        held: carry and constants, of which the step takes ``part``; others may use them between two runs.
        carried: number of tensors of the carry.
        part: what the step takes of ``held``: views.
        now: what changes from step to step, one tensor ``[n, ...]`` for each.
        room: steps for which there is room.

    Attributes:
        charged: what the step is charged for.
    """

    def __init__(
        self, branch: Branch, once: Once, held: Tensors, carried: int, part: Callable[[Tensors], Tensors],
        now: Tensors, room: int,
    ) -> None:  # fmt: skip
        self.room, self._once, self._held, self._carried = room, once, held, carried
        self._own, self._part = part(held), part
        self._at = torch.zeros(1, dtype=torch.int64, device=held[0].device)
        self._now = [t.new_zeros(room, *t.shape[1:]) for t in now]
        self._put(now)                                     # minibatches of zero weight would have no gradient
        self._graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(held[0].device)
        branch.stream.wait_stream(here)
        try:
            with torch.cuda.stream(branch.stream):         # cuBLAS has a workspace for each stream
                self._run(part([t.clone() for t in held[:carried]] + held[carried:]))   # makes handles and workspaces
                with torch.cuda.graph(self._graph, branch.pool, branch.stream, capture_error_mode="thread_local"):
                    self.charged = self._run(self._own)
        finally:
            here.wait_stream(branch.stream)

    def _put(self, now: Tensors) -> None:
        for to, t in zip(self._now, now, strict=True):
            to[: len(t)].copy_(t)
        self._at.zero_()

    def _run(self, own: Tensors) -> Any:
        carry, ours = own[: self._carried], {address(t) for t in own}
        new, charged = self._once(own, [t.index_select(0, self._at)[0] for t in self._now])
        moved = [t is not old for old, t in zip(carry, new, strict=True)]
        results = [t.clone() if there and address(t) in ours else t for there, t in zip(moved, new, strict=True)]
        for old, t, there in zip(carry, results, moved, strict=True):
            if there:
                old.copy_(t)
        self._at.add_(1)
        return charged

    def run(self, given: Tensors, now: Tensors) -> Tensors:
        """Carry and constants after ``n`` steps from ``given``, for ``now [n, ...]``; the next run overwrites them."""
        for to, t in zip(self._held, given, strict=True):
            if to is not t:
                to.copy_(t)
        self._put(now)
        for _ in range(len(now[0])):
            self._graph.replay()
        return self._held


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The graphs of a backend, and the steps that are none.

    Args:
        eager: steps that are launched operation by operation, with the reasons; added to.
        say: called with a message when one is added.
        branches: of each model, with the graphs captured so far.
    """

    eager: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    branches: dict[Model, list[Branch]] = field(default_factory=dict, repr=False)

    def branches_for(self, model: Model, count: int = 1) -> list[Branch]:
        """As many branches of a model, the same ones whenever they are asked for."""
        if model not in self.branches:
            self.branches[model] = branches_of(model, count)
        return self.branches[model]

    def captured(
        self, branch: Branch, federation: Federation, local: Any, step: Callable[..., Any], key: Hashable, once: Once,
        given: Tensors, carried: int, part: Callable[[Tensors], Tensors], now: Tensors,
    ) -> CapturedStep | None:  # fmt: skip
        """The graph of a step; None, once it has been said why, if there can be none.

        Args:
            branch: which one has it.
            federation: whose samples it reads.
            local: the client, or the block of clients; the ``local`` of the step.
            step: the function given to ``local.fold``.
            key: what the graph depends on besides.
            once: see ``CapturedStep``, as for the other arguments.
        """
        try:
            form = fingerprint((step, local.optimizer.step), local)
            data = id(federation.shards)                   # held by the graph as well, so that no other has this id
            whose = form, federation.work, data, key, *((t.shape, t.dtype) for t in given)
            of_step = whose, *((t.shape[1:], t.dtype) for t in now)
            if of_step in branch.graphs and branch.graphs[of_step] is None:
                return None
            found, steps = branch.graphs.get(of_step), len(now[0])
            if found is None or found.room < steps:
                if found is None and len(branch.graphs) >= MOST_GRAPHS:
                    raise Unreplayable(f"there are {MOST_GRAPHS} graphs, as for minibatches of many sizes")
                if whose not in branch.held:
                    branch.held[whose] = [t.clone(memory_format=torch.contiguous_format) for t in given]
                room = 1 << (max(steps, LEAST_ROWS) - 1).bit_length()
                branch.graphs[of_step] = None              # for good, if the capture fails
                found = CapturedStep(branch, once, branch.held[whose], carried, part, now, room)
                branch.graphs[of_step] = found
            return found
        except Exception as error:                         # the step raises it again, if it is one of the user's code
            while error.__context__ is not None and isinstance(error.__context__, Exception):
                error = error.__context__                  # the end of a capture that failed raises as well
            self.said(title(step), str(error).splitlines()[0] if str(error) else type(error).__name__)
            return None

    def said(self, step: str, reason: str) -> None:
        """Note, and say once, that a step is launched operation by operation."""
        if step not in self.eager:
            self.eager[step] = reason
            self.say(f"{step} is no CUDA graph, and its steps are launched one by one: {reason}")


def eager_in(backend: Any) -> dict[str, str]:
    """Steps of a backend that are no graphs, where others are, with the reasons."""
    graphs = backend if isinstance(backend, Graphs) else getattr(backend, "graphs", None)
    return {} if graphs is None else graphs.eager
