"""Local steps that are affine, ``y <- beta y + alpha g(y) + shift``, read off the recording of a step.

``beta`` and ``alpha`` are numbers of the fold, such as ``1`` and ``-eta``, and ``shift`` a combination of its constant
vectors, such as ``-eta (c - c_i)``. FedAvg, FedProx, SCAFFOLD and FedDyn have this form, with weight decay or without:
``fedsim.engine.dense_fold`` runs such a step without ever holding the gradient of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedsim.engine.tape import Op, Recording, Slot

aten = torch.ops.aten

Terms: TypeAlias = dict[tuple[Slot | None, tuple[Slot, ...]], float]
"""A linear combination: factors of (vector, product of numbers among the slots); without a vector it is a number."""
Coefficient: TypeAlias = list[tuple[float, tuple[int, ...]]]
"""A sum of products: a factor, and the positions of the numbers among the constants."""


@dataclass(frozen=True)
class Affine:
    """An affine step; coefficients refer to the constants of a fold by position.

    Attributes:
        beta: coefficient of the point.
        alpha: that of the gradient.
        shift: those of constant vectors, by position.
    """

    beta: Coefficient
    alpha: Coefficient
    shift: dict[int, Coefficient]

    def at(self, consts: list[Tensor]) -> tuple[float, float, Tensor | None]:
        """Values of ``beta``, ``alpha`` and ``shift`` (``[c, d]`` or ``[d]``, None for 0) in one fold."""
        shift: Tensor | None = None
        for i, coefficient in self.shift.items():
            part = _value(coefficient, consts) * consts[i]
            shift = part if shift is None else shift + part
        return _value(self.beta, consts), _value(self.alpha, consts), shift


def _value(coefficient: Coefficient, consts: list[Tensor]) -> float:
    return sum(factor * prod(float(consts[i]) for i in numbers) for factor, numbers in coefficient)


def affine(r: Recording, samples: int, own: list[bool]) -> Affine | None:
    """The affine form of a recorded step (before ``rewrite``); None if it has another.

    Args:
        r: recording with ``samples`` tensors of the batch.
        samples: number of leading inputs that are samples.
        own: which of the constants have a row per client.
    """
    gradients = [op for op in r.ops if op.fn is None]
    if len(r.carry) != 1 or len(r.results) != 1 or len(gradients) != 1:
        return None
    y, (g,) = Slot(r.carry.start), gradients[0].out
    if gradients[0].args != [y, *range(samples)] or r.tensors[y].shape != r.tensors[g].shape:
        return None
    found: dict[Slot, list[tuple[float, tuple[int, ...]]]] = {}
    for (vector, numbers), factor in _combination(r).items():
        if vector is None or any(n not in range(r.carry.stop, r.inputs) for n in numbers):
            return None
        found.setdefault(vector, []).append((factor, tuple(n - r.carry.stop for n in numbers)))
    beta, alpha = found.pop(y, []), found.pop(g, [])
    shift = {slot - r.carry.stop: coefficient for slot, coefficient in found.items()}
    shape, type_ = r.tensors[y].shape, r.tensors[y].dtype
    for i in shift:                                        # vectors like y, with or without a row for each client
        if i not in range(len(own)):
            return None
        t = r.tensors[r.carry.stop + i]
        if t.shape != (shape if own[i] else shape[1:]) or t.dtype != type_:
            return None
    return Affine(beta, alpha, shift)


def _combination(r: Recording) -> Terms:
    """The result as a combination of slots; ``{(None, ()): 0.0}``, which is no vector, if it is none."""
    known: dict[Slot, Terms] = {}

    def of(arg: Any) -> Terms:
        if not isinstance(arg, Slot):
            return {(None, ()): float(arg)}
        return known.get(arg) or ({(None, (arg,)): 1.0} if _is_number(r, arg) else {(arg, ()): 1.0})

    for op in r.ops:
        terms = _terms(op, [of(a) for a in op.args] if op.fn in LINEAR else [])
        if terms is not None and (_is_number(r, op.out[0]) or all(vector is not None for vector, _ in terms)):
            known[op.out[0]] = terms
    return of(r.results[0])


LINEAR = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default}
"""Operations that keep a combination linear, unless they multiply vectors or divide by one."""


def _terms(op: Op, args: list[Terms]) -> Terms | None:
    if op.fn in (aten.add.Tensor, aten.sub.Tensor):
        sign = 1 if op.fn is aten.add.Tensor else -1
        return _sum(args[0], args[1], sign * float(op.kwargs.get("alpha", 1)))
    if op.fn is aten.neg.default:
        return _product(args[0], {(None, ()): -1.0})
    if op.fn is aten.mul.Tensor:
        return _product(*args)
    if op.fn is aten.div.Tensor and not isinstance(op.args[1], Slot) and op.args[1] and not op.kwargs:
        return _product(args[0], {(None, ()): 1 / op.args[1]})
    return None


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


def _is_number(r: Recording, slot: Slot) -> bool:
    return r.tensors[slot].dim() == 0 and r.tensors[slot].is_floating_point()
