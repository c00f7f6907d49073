"""Local steps of a stack of clients on a dense network that combine vectors linearly, parameter by parameter.

During a fold every parameter is one contiguous tensor ``[c, *shape]``. The gradient of a weight is held as its factors,
``delta [c, B, rows]`` and ``h [c, B, columns]`` with ``g = delta^T h``, and is

- added to weights in place, by one batched product, layer by layer in the backward pass if nothing else reads it;
- measured, by ``||delta^T h||^2 = sum (delta delta^T) * (h h^T)``;
- gone along to the point of another gradient, where ``x W^T + r (x h^T) delta`` are the outputs,

unless a minibatch has so many samples that the gradient itself costs less. A vector ``[c, d]`` is split once before the
first step and joined after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple, cast
from weakref import proxy

import torch
from torch import Tensor

from fedsim.engine.by_parameter import Layers, Parts, add_gradient, add_vectors, scale, whole
from fedsim.engine.linear_stack import DenseStack, Factors
from fedsim.engine.linear_step import Descended, Gradient, LinearStep, Made, Norm, Number, Terms
from fedsim.engine.step import LocalStep
from fedsim.engine.tape import Slot
from fedsim.types import Batch

LEAST_STEPS = 3
"""Fewer do not pay for splitting and joining."""

CACHED = 2**19
"""Numbers of a gradient in memory at a time where an optimiser steps along it."""


class _Vectors(NamedTuple):
    """Vectors while a step runs: by parameter, gradients as factors, or as those that a backward pass will yield."""

    parts: Parts
    factors: Factors | None = None
    layers: Layers | None = None


class _Sum(NamedTuple):
    """A combination in one fold: (vector, numbers that change, factor), and vectors that stay the same."""

    terms: list[tuple[Slot, tuple[Slot, ...], float]]
    fixed: int | None


class DenseFold:
    """The steps of one fold, on lists of tensors: those that steps change, and those that they read.

    Args:
        dense: the network.
        step: the step.
        state: carry of the fold.
        consts: its constants, but for those that change from step to step.

    Attributes:
        step: the step.
        state: what the steps change.
        consts: what they read.
        own: which of these have a row per client.
        numbers: by slot of the carry, slots of its new numbers.
        over: by slot of the carry, combinations that read of the carry only what they replace.
        anew: other combinations, which need memory of their own.
        streamed: the gradient whose layers go straight into the new carry, if there is one.
    """

    def __init__(self, dense: DenseStack, step: LinearStep, state: list[Tensor], consts: list[Tensor]) -> None:
        self._dense, self.step = dense, step
        self._rows: _Rows | None = None                    # that step at present
        results = dict(zip(step.carry, step.results, strict=True))
        self.numbers = {slot: result for slot, result in results.items() if isinstance(result, Slot)}
        vectors = {slot: result for slot, result in results.items() if not isinstance(result, Slot)}
        read = {slot: {vector for vector, _ in terms}.intersection(step.carry) for slot, terms in vectors.items()}
        self.over = {slot: terms for slot, terms in vectors.items() if read[slot] == {slot}}
        self.anew = {slot: terms for slot, terms in vectors.items() if read[slot] != {slot}}
        self.streamed = _streamed(step) if len(vectors) == 1 else None
        given = dict(zip(step.consts, consts, strict=False))
        self._same = {slot: t for slot, t in given.items() if slot in step.numbers and t.dim() == 0}
        self._ops = [op for op in step.ops if not (isinstance(op, Number) and self._is_same(op))]
        self._memory: dict[Any, Parts] = {}
        self._fixed: list[Tensor] = []                     # parts of combinations that stay the same
        self._sums = {id(terms): self._sum(terms, given) for terms in _combinations(step)}
        apart = {vector for each in self._sums.values() for vector, _, _ in each.terms}
        apart |= {op.of for op in step.ops if isinstance(op, Norm)}
        self._vectors = [slot for slot in given if slot in apart]
        self._numbers = [slot for slot in given if slot in step.numbers - self._same.keys()]
        numbers = [given[slot] for slot in self._numbers]
        self.state = [t for slot, x in zip(step.carry, state, strict=True) for t in self._split(slot, x)]
        whole = [*self._fixed, *(given[slot] for slot in self._vectors)]
        self.consts = [t for x in whole for t in self._parts(x)] + numbers
        self.own = [t.shape[0] == len(state[0]) for t in self.consts]

    def _is_same(self, op: Number) -> bool:
        """Compute ``op`` if it is of numbers that stay the same, and return whether it is."""
        if any(isinstance(a, Slot) and a not in self._same for a in op.args):
            return False
        self._same[op.out] = _computed(op, self._same)
        return True

    def _sum(self, terms: Terms, given: Mapping[Slot, Tensor]) -> _Sum:
        changing: dict[tuple[Slot, tuple[Slot, ...]], float] = {}
        fixed: Tensor | None = None
        for (vector, numbers), factor in terms.items():
            assert vector is not None
            factor *= prod(float(self._same[n]) for n in numbers if n in self._same)
            rest = tuple(n for n in numbers if n not in self._same)
            if vector in given and not rest:
                fixed = factor * given[vector] if fixed is None else fixed + factor * given[vector]
            else:
                changing[vector, rest] = changing.get((vector, rest), 0.0) + factor
        self._fixed += [] if fixed is None else [fixed]
        listed = [(vector, rest, factor) for (vector, rest), factor in changing.items()]
        return _Sum(listed, None if fixed is None else len(self._fixed) - 1)

    def _split(self, slot: Slot, x: Tensor) -> Parts:
        return [x] if slot in self.step.numbers else self._parts(x)

    def _parts(self, x: Tensor) -> Parts:
        """Copies of the parameters in vectors ``[c, d]`` or ``[d]``."""
        pairs = self._dense.parameters(x if x.dim() == 2 else x.unsqueeze(0))
        return [t.clone(memory_format=torch.contiguous_format) for pair in pairs for t in pair if t is not None]

    def join(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The carry, of the tensors that the steps change."""
        rest, offsets = iter(tensors), self._dense.offsets
        joined: list[Tensor] = []
        for slot in self.step.carry:
            if slot in self.step.numbers:
                joined.append(next(rest))
                continue
            placed = sorted(((at, next(rest)) for at in offsets), key=lambda pair: pair[0])
            joined.append(torch.cat([t.flatten(1) for _, t in placed], 1))
        return tuple(joined)

    def memory(self, name: Slot | int, c: int) -> Parts:
        """Memory for vectors of the first ``c`` clients in a step, the same in every step, and never for more later."""
        if name not in self._memory:
            self._memory[name] = self.new(c)
        return [t[:c] for t in self._memory[name]]

    def new(self, c: int) -> Parts:
        """Memory for vectors of ``c`` clients."""
        like = self.state[0]
        return [like.new_empty(c, *shape) for shape in self._dense.part_shapes]

    def __call__(self, batch: Batch, state: list[Tensor], consts: list[Tensor], last: list[Tensor]) -> list[Tensor]:
        """Step all clients, whose rows are those of ``state``, ``consts`` and ``last``, numbers of this step alone; in
        place where the carry is vectors.
        """
        if self._rows is None or self._rows.state is not state:
            self._rows = _Rows(self, state, consts)        # others have finished
        return self._rows.step(batch, last)


class _Rows:
    """The clients that step together, until some of them have finished.

    Attributes:
        state: what steps change.
    """

    def __init__(self, fold: DenseFold, state: list[Tensor], consts: list[Tensor]) -> None:
        self._fold = cast(DenseFold, proxy(fold))          # which has these: a circle would keep its tensors
        self._dense, self._c, self.state = fold._dense, len(state[0]), state
        step, (tensors, read) = fold.step, (iter(state), iter(consts))
        self._numbers: dict[Slot, Tensor] = dict(fold._same)
        self._vectors: dict[Slot, _Vectors] = {}
        for slot in step.carry:
            self._take(slot, tensors)
        self._fixed = [self._parts(read) for _ in fold._fixed]
        for slot in (*fold._vectors, *fold._numbers):
            self._take(slot, read)

    def _parts(self, tensors: Iterator[Tensor]) -> Parts:
        return [next(tensors) for _ in self._dense.offsets]

    def _take(self, slot: Slot, tensors: Iterator[Tensor]) -> None:
        if slot in self._fold.step.numbers:
            self._numbers[slot] = next(tensors)
        else:
            self._vectors[slot] = _Vectors(self._parts(tensors))

    def step(self, batch: Batch, last: list[Tensor]) -> list[Tensor]:
        """The new carry, by parameter."""
        self._batch, consts = batch, self._fold.step.consts
        self._numbers.update(zip(consts[len(consts) - len(last) :], last, strict=True))
        for op in self._fold._ops:
            if isinstance(op, Number):
                self._numbers[op.out] = _computed(op, self._numbers)
            elif isinstance(op, Norm):
                self._numbers[op.out] = self._norm(op.of)
            elif isinstance(op, Made):
                self._vectors[op.out] = _Vectors(self._combined(op.terms, self._fold.memory(op.out, self._c)))
            elif op.out == self._fold.streamed:
                self._vectors[op.out] = _Vectors([], None, self._gradient(op.at))
            else:
                factors = [(delta, given) for _, delta, given in self._gradient(op.at)]
                self._vectors[op.out] = _Vectors([], factors[::-1])
        self._finish(self._fold.step)
        return self.state

    def _finish(self, step: LinearStep) -> None:
        numbers = {slot: self._numbers[result] for slot, result in self._fold.numbers.items()}
        new = {slot: self._combined(terms, self._fold.new(self._c)) for slot, terms in self._fold.anew.items()}
        for slot, terms in self._fold.over.items():
            self._combined(terms, over=slot)
        if step.descended is not None:
            self._descend(step.descended)
        if not numbers and not new:                        # all are where they were
            return
        self._numbers |= numbers
        self._vectors |= {slot: _Vectors(parts) for slot, parts in new.items()}
        self.state = [
            t for slot in step.carry
            for t in ([self._numbers[slot]] if slot in step.numbers else self._vectors[slot].parts)
        ]  # fmt: skip

    def _descend(self, step: Descended) -> None:
        """An optimiser's step in place; along a gradient held as factors, of so many clients at a time that it stays in
        the processor's cache.
        """
        terms, _ = self._terms(step.direction)
        vectors = [self._vectors[slot].parts for slot in step.vectors]
        numbers = [self._numbers[slot] for slot in step.numbers]
        ((slot, r),) = terms.items()
        factors = self._vectors[slot].factors
        if factors is None:
            g = self._combined(step.direction, self._fold.memory(id(step.direction), self._c))
            step.by.step([vectors[0], g, *vectors[1:]], numbers)
            return
        some = max(1, CACHED // self._dense.size)
        for start in range(0, self._c, some):
            rows = slice(start, min(start + some, self._c))
            y, *slots = [[t[rows] for t in parts] for parts in vectors]
            g = self._fold.memory(id(step), rows.stop - rows.start)
            layers = ((i, delta[rows], h[rows]) for i, (delta, h) in enumerate(factors))
            add_gradient(self._dense.paired(g), layers, r[rows] if isinstance(r, Tensor) else r, 0.0)
            step.by.step([y, g, *slots], [t[rows] if t.dim() else t for t in numbers])

    def _low(self) -> bool:
        return self._dense.is_low(self._batch.x.shape[1])

    def _norm(self, slot: Slot) -> Tensor:
        """Norms ``[c]`` of vectors."""
        factors = self._vectors[slot].factors
        if factors is not None and self._low():
            return self._dense.squared_norms(factors).sqrt().to(factors[0][0].dtype)
        each = torch.stack([torch.linalg.vector_norm(t.flatten(1), dim=1) for t in self._whole(slot)])
        norms: Tensor = torch.linalg.vector_norm(each, dim=0)
        return norms.expand(self._c)                       # of a vector that is one for all

    def _whole(self, slot: Slot) -> Parts:
        """Vectors by parameter, from here on if they are a gradient."""
        parts, factors, _ = self._vectors[slot]
        if factors is not None:
            parts = self._fold.memory(slot, self._c)
            add_gradient(self._dense.paired(parts), whole(factors), 1.0, 0.0)
            self._vectors[slot] = _Vectors(parts)
        return parts

    def _gradient(self, at: Terms) -> Layers:
        """Gradients at a combination, from the last layer to the first."""
        terms, fixed = self._terms(at)
        if not self._low():
            for slot in terms:
                self._whole(slot)
        whole = [(self._vectors[slot].parts, r) for slot, r in terms.items() if self._vectors[slot].factors is None]
        along = [(r, f) for slot, r in terms.items() if (f := self._vectors[slot].factors) is not None]
        whole += [] if fixed is None else [(fixed, 1.0)]
        if len(whole) == 1 and isinstance(whole[0][1], float) and whole[0][1] == 1.0:
            parts = [t if len(t) == self._c else t.expand(self._c, *t.shape[1:]) for t in whole[0][0]]
        else:
            parts, along = self._combined(at, self._fold.memory(id(at), self._c)), []
        return self._dense.backward(self._dense.paired(parts), self._batch, along)

    def _terms(self, terms: Terms) -> tuple[dict[Slot, Tensor | float], Parts | None]:
        """Number of each vector in a combination, and what of it stays the same."""
        sum_ = self._fold._sums[id(terms)]
        found: dict[Slot, Tensor | float] = {}
        for vector, numbers, factor in sum_.terms:
            number: Tensor | float = factor
            for n in numbers:
                number = self._numbers[n] * number
            found[vector] = number + found[vector] if vector in found else number
        return found, None if sum_.fixed is None else self._fixed[sum_.fixed]

    def _combined(self, of: Terms, out: Parts | None = None, over: Slot | None = None) -> Parts:
        """A combination, in the memory ``out`` or over one of its vectors."""
        terms, fixed = self._terms(of)
        beta: Tensor | float = 1.0
        if out is None:
            assert over is not None
            out, beta = self._vectors[over].parts, terms.pop(over)
        elif fixed is not None:
            for t, part in zip(out, fixed, strict=True):
                t.copy_(part)
            fixed = None
        else:
            beta = 0.0
        found = [(self._vectors[slot], r) for slot, r in terms.items()]
        found.sort(key=lambda term: (term[0].layers is None, bool(term[0].parts)))   # what may yet read `out` is first
        for (parts, factors, layers), r in found:
            if layers is not None or factors is not None:
                plus = None if fixed is None else self._dense.paired(fixed)
                add_gradient(self._dense.paired(out), layers or whole(factors or []), r, beta, plus)
            else:
                add_vectors(out, parts, r, beta, fixed)
            beta, fixed = 1.0, None
        if not found:
            scale(out, beta, fixed)
        return out


def _computed(op: Number, numbers: Mapping[Slot, Tensor]) -> Tensor:
    """Result of ``op`` where numbers of clients are ``[c]``."""
    result: Tensor = op.fn(*[numbers[a] if isinstance(a, Slot) else a for a in op.args], **op.kwargs)
    return result


def _streamed(step: LinearStep) -> Slot | None:
    """The last gradient of a step with one vector, if nothing but the new vector reads it."""
    *_, last = [None, *(op for op in step.ops if isinstance(op, Gradient))]
    if last is None or step.descended is not None:
        return None
    read: set[Slot | None] = {op.of for op in step.ops if isinstance(op, Norm)}
    read |= {vector for op in step.ops if isinstance(op, Made) for vector, _ in op.terms}
    return None if last.out in read else last.out


def _combinations(step: LinearStep) -> list[Terms]:
    made = [op.at if isinstance(op, Gradient) else op.terms for op in step.ops if isinstance(op, Gradient | Made)]
    descended = [] if step.descended is None else [step.descended.direction]
    return made + descended + [result for result in step.results if not isinstance(result, Slot)]


def dense_fold(
    step: LocalStep, steps: int, some: Callable[[], Batch], state: list[Tensor], consts: list[Tensor], own: list[bool],
    last: list[Tensor],
) -> DenseFold | None:  # fmt: skip
    """The steps of a fold on a dense network, if they combine vectors linearly and there are enough of them.

    Args:
        step: the step as written.
        steps: the largest number of steps of a client.
        some: makes a batch of one sample of each client.
        state: carry of the fold.
        consts: its constants.
        own: which of them have a row per client.
        last: numbers ``[c]`` that follow, another in each step.
    """
    model = step.model
    if model.dense is None or model.mixes or model.penalty is not None or model.device.type != "cpu":
        return None
    if steps < LEAST_STEPS or not model.dense.takes((batch := some()).x):
        return None
    form = step.linear(batch, state, consts + last, own + [True] * len(last))
    return None if form is None else DenseFold(model.dense, form, state, consts)
