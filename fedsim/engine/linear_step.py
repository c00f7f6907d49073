"""Local steps that combine vectors linearly, read off the recording of a step.

The vectors are the carry, constants of the fold, and gradients at such combinations. Coefficients are numbers of the
fold, such as ``eta``, or numbers of each client that follow from the norm of a combination, such as ``rho / ||g||``.
Steps of FedAvg, FedProx, SCAFFOLD and FedDyn have this form, and those of FedSAM, FedSpeed and FedSMOO with their two
gradients, with weight decay and clipping or without. A step of Adam or another optimiser along a gradient may end
them. ``fedsim.engine.dense_fold`` runs such a step parameter by parameter, and need not hold the gradients of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fedsim.engine.fused import FusedStep
from fedsim.engine.tape import Op, Recording, Slot

aten = torch.ops.aten

Terms: TypeAlias = dict[tuple[Slot | None, tuple[Slot, ...]], float]
"""A linear combination: factors of (vector, product of numbers among the slots); without a vector it is a number."""


class Number(NamedTuple):
    """``out = fn(*args, **kwargs)`` on numbers, those of clients as ``[c]``."""

    out: Slot
    fn: Callable[..., Tensor]
    args: list[Any]
    kwargs: dict[str, Any]


class Gradient(NamedTuple):
    """``out`` is the gradient at the combination ``at``."""

    out: Slot
    at: Terms


class Norm(NamedTuple):
    """``out [c]`` are the norms of the vectors ``of``."""

    out: Slot
    of: Slot


class Made(NamedTuple):
    """The vectors ``out`` are the combination ``terms``, in memory of their own."""

    out: Slot
    terms: Terms


class Descended(NamedTuple):
    """The step of an optimiser along a gradient, in place on vectors of the carry, after all else.

    Attributes:
        by: the optimiser's step.
        vectors: slots of the point and of the optimiser's vectors.
        direction: the gradient, and by what it is multiplied.
        numbers: slots of its numbers.
    """

    by: FusedStep
    vectors: list[Slot]
    direction: Terms
    numbers: list[Slot]


@dataclass
class LinearStep:
    """A step as instructions on vectors of clients and numbers.

    Attributes:
        carry: slots of the carry.
        consts: slots of the constants.
        numbers: those of both that are numbers, of clients or of all.
        ops: in order, before any of the carry changes.
        results: the new carry: combinations for vectors, slots for numbers.
        descended: the optimiser's step, if it is no combination.
    """

    carry: list[Slot]
    consts: list[Slot]
    numbers: set[Slot]
    ops: list[Number | Gradient | Norm | Made] = field(default_factory=list)
    results: list[Terms | Slot] = field(default_factory=list)
    descended: Descended | None = None

    @property
    def gradients(self) -> int:
        """Number of gradients of a step."""
        return sum(isinstance(op, Gradient) for op in self.ops)


def linear_step(r: Recording, samples: int, own: list[bool]) -> LinearStep | None:
    """The form of a recorded step (before ``rewrite``); None if it has another.

    Args:
        r: recording with ``samples`` tensors of the batch.
        samples: number of leading inputs that are samples.
        own: which of the constants have a row per client.
    """
    try:
        return _Reader(r, samples, own).step()
    except _OtherForm:
        return None


class _OtherForm(Exception):
    """The step is not one of these."""


LINEAR = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default}
"""Operations that keep a combination linear, unless they multiply vectors or divide by one."""

OF_NUMBERS = LINEAR | {
    *(aten.reciprocal.default, aten.sqrt.default, aten.rsqrt.default, aten.pow.Tensor_Scalar, aten.clamp.default),
    *(aten.clamp_max.default, aten.clamp_min.default, aten.maximum.default, aten.minimum.default, aten.abs.default),
}
"""Operations by number."""

SAME_NUMBERS = {aten.view.default, aten.unsqueeze.default, aten._unsafe_view.default, aten.alias.default}
"""Operations on the numbers ``[c]`` of clients that change at most their shape, to ``[c, 1]``."""


class _Reader:
    def __init__(self, r: Recording, samples: int, own: list[bool]) -> None:
        self._r, self._samples = r, samples
        self._shape, self._dtype = r.tensors[r.carry.start].shape, r.tensors[r.carry.start].dtype
        if len(self._shape) != 2 or self._shape[1] in (1, self._shape[0]):
            raise _OtherForm                               # shapes would not tell vectors from numbers
        self._numbers: set[Slot] = set()
        self._vectors: set[Slot] = set()
        self._gradients: set[Slot] = set()
        self._known: dict[Slot, Terms] = {}
        self._norms: dict[Slot, Slot] = {}                 # by vector
        self._moved: dict[Slot, Slot] = {}                 # vectors of the carry, by what an optimiser makes of them
        carry, consts = [*map(Slot, r.carry)], [Slot(i) for i in range(r.carry.stop, r.inputs)]
        for slot, rows in zip((*carry, *consts), [True] * len(carry) + own, strict=True):
            self._input(slot, rows)
        if not {*carry} <= self._vectors | self._numbers:
            raise _OtherForm
        self._step = LinearStep(carry, consts, {*self._numbers})

    def _input(self, slot: Slot, rows: bool) -> None:
        """Note whether an input of the step, with a row per client or not, is numbers or vectors; or neither."""
        t = self._r.tensors[slot]
        number, vector = (self._shape[:1], self._shape) if rows else (torch.Size(()), self._shape[1:])
        if t.dtype == self._dtype and t.shape in (number, vector):
            (self._numbers if t.shape == number else self._vectors).add(slot)

    def step(self) -> LinearStep:
        """See ``linear_step``."""
        for op in self._r.ops:
            self._read(op)
        for slot, old in zip(self._r.results, self._step.carry, strict=True):
            moved = self._moved.get(slot) == old           # stays as it is until the optimiser's step
            found = self._number(slot) if old in self._step.numbers else self._vector(old if moved else slot)
            self._step.results.append(found)
        return self._step

    def _read(self, op: Op) -> None:
        if op.fn is None:
            self._read_gradient(op)
        elif isinstance(op.fn, FusedStep):
            self._read_descent(op.fn, op)
        elif op.fn in (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim):
            self._read_norm(op)
        elif not op.reads():                               # a number that vmap made a tensor of
            if self._r.tensors[op.out[0]].dim() == 0:
                self._compute(Number(op.out[0], lambda t: t, [self._r.tensors[op.out[0]]], {}))
        elif op.fn in OF_NUMBERS and self._numbers.issuperset(op.reads()):
            self._compute(Number(op.out[0], op.fn, op.args, op.kwargs))
        elif op.fn in SAME_NUMBERS and op.args[0] in self._numbers:
            if self._r.tensors[op.out[0]].shape in (self._shape[:1], (*self._shape[:1], 1)):
                self._compute(Number(op.out[0], lambda t: t, op.args[:1], {}))
        elif op.fn is aten.expand.default and op.args[0] in self._vectors | self._known.keys():
            if self._r.tensors[op.out[0]].shape == self._shape:      # one vector for all, as those of clients
                self._known[op.out[0]] = self._of(op.args[0])
        elif op.fn in LINEAR and self._r.tensors[op.out[0]].shape in (self._shape, self._shape[1:]):
            terms = self._combined(op)
            if terms is not None and all(vector is not None for vector, _ in terms):
                self._known[op.out[0]] = terms

    def _compute(self, number: Number) -> None:
        self._step.ops.append(number)
        self._numbers.add(number.out)

    def _read_gradient(self, op: Op) -> None:
        if op.args[1:] != [*range(self._samples)] or self._r.tensors[op.args[0]].shape != self._shape:
            raise _OtherForm                               # at a part of the minibatch, or at no vector of each client
        self._step.ops.append(Gradient(op.out[0], self._vector(op.args[0])))
        self._vectors.add(op.out[0])
        self._gradients.add(op.out[0])

    def _read_descent(self, by: FusedStep, op: Op) -> None:
        (y, g, *slots), numbers = op.args[: 2 + by.vectors], op.args[2 + by.vectors :]
        moved, direction = [y, *slots], self._vector(g)
        if self._moved or not {*moved} <= {*self._step.carry} or not {*numbers} <= self._numbers:
            raise _OtherForm
        if {vector for vector, _ in direction}.isdisjoint(self._gradients) or len(direction) > 1:
            raise _OtherForm                               # y - x that is 0 must be 0, in whatever order it is summed
        self._moved = dict(zip(op.out, moved, strict=True))
        self._step.descended = Descended(by, moved, direction, numbers)

    def _read_norm(self, op: Op) -> None:
        if len(op.args) < 3 or op.args[1] != 2 or op.args[2] not in ([1], [-1]) or op.kwargs.keys() - {"keepdim"}:
            return
        terms = self._vector(op.args[0])
        if len(terms) > 1:                                 # the norm of a combination: in memory from here on
            vector = op.args[0]
            self._step.ops.append(Made(vector, terms))
            self._vectors.add(vector)
            self._known = {slot: _by_whole(t, terms, vector) for slot, t in self._known.items()}
            terms = {(vector, ()): 1.0}
        ((scaled, numbers), factor), *_ = terms.items()
        assert scaled is not None
        if scaled not in self._norms:
            self._norms[scaled] = self._another(op.out[0])
            self._step.ops.append(Norm(self._norms[scaled], scaled))
        self._compute(Number(op.out[0], _scaled_norm, [self._norms[scaled], factor, *numbers], {}))

    def _another(self, like: Slot) -> Slot:
        """A new slot for a number like that of a slot."""
        self._r.tensors.append(self._r.tensors[like])
        return Slot(len(self._r.tensors) - 1)

    def _vector(self, slot: Slot) -> Terms:
        """A combination of vectors, all at hand."""
        terms = self._of(slot)
        if not all(vector in self._vectors for vector, _ in terms):
            raise _OtherForm
        return terms

    def _number(self, slot: Slot) -> Slot:
        if slot not in self._numbers or self._r.tensors[slot].shape != self._shape[:1]:
            raise _OtherForm
        return slot

    def _of(self, arg: Any) -> Terms:
        if not isinstance(arg, Slot):
            return {(None, ()): float(arg)}
        if arg in self._numbers:
            return {(None, (arg,)): 1.0}
        return self._known.get(arg) or {(arg, ()): 1.0}

    def _combined(self, op: Op) -> Terms | None:
        """The combination that an operation computes, of tensors of the step's type in rows of clients."""
        tensors = [self._r.tensors[slot] for slot in op.reads()]
        c = self._shape[0]
        if any(t.dtype != self._dtype or t.shape not in ((), (c, 1), self._shape[1:], self._shape) for t in tensors):
            return None
        args = [self._of(a) for a in op.args]
        if op.fn in (aten.add.Tensor, aten.sub.Tensor):
            sign = 1 if op.fn is aten.add.Tensor else -1
            return _sum(args[0], args[1], sign * float(op.kwargs.get("alpha", 1)))
        if op.fn is aten.neg.default:
            return _product(args[0], {(None, ()): -1.0})
        if op.fn is aten.mul.Tensor:
            return _product(*args)
        by = op.args[1]
        if op.kwargs or not by:
            return None
        if not isinstance(by, Slot):
            return _product(args[0], {(None, ()): 1 / by})
        if by not in self._numbers:
            return None
        inverse = self._another(by)
        self._compute(Number(inverse, aten.reciprocal.default, [by], {}))
        return _product(args[0], {(None, (inverse,)): 1.0})


def _scaled_norm(norm: Tensor, *factors: Any) -> Tensor:
    """Norms ``[c]`` of vectors whose norms are ``norm``, times the factors."""
    scaled: Tensor = norm * abs(prod(factors))
    return scaled


def _sum(a: Terms, b: Terms, factor: float) -> Terms:
    total = dict(a)
    for key, value in b.items():
        total[key] = total.get(key, 0.0) + factor * value
    return total


def _product(a: Terms, b: Terms) -> Terms | None:
    total: Terms = {}
    for (v, m), p in a.items():
        for (w, n), q in b.items():
            if v is not None and w is not None:
                return None
            key = w if v is None else v, (*sorted((*m, *n)),)
            total[key] = total.get(key, 0.0) + p * q
    return total


def _by_whole(terms: Terms, whole: Terms, name: Slot) -> Terms:
    """``terms`` as a multiple of ``whole``, whose slot is ``name``, if it is one."""
    if terms.keys() != whole.keys() or 0.0 in whole.values():
        return terms
    ratios = [terms[key] / value for key, value in whole.items()]
    same = all(abs(ratio - ratios[0]) <= 1e-14 * abs(ratios[0]) for ratio in ratios)
    return {(name, ()): ratios[0]} if same else terms
