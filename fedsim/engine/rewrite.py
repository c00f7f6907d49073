"""Rewrites of a recorded step that save passes over memory, which dominate the cost of a small model's algebra.

``a - s * t`` becomes one operation and a product with 1 none; a result overwrites an operand that is not read again. A
rewritten step agrees with the original up to rounding: ``t / 10`` may become ``t * (1 / 10)``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from fedsim.engine.tape import Op, Recording, Slot, address

aten = torch.ops.aten

OVER: dict[Any, Any] = {
    aten.add.Tensor: aten.add.out,
    aten.sub.Tensor: aten.sub.out,
    aten.mul.Tensor: aten.mul.out,
    aten.div.Tensor: aten.div.out,
    aten.addcmul.default: aten.addcmul.out,
    aten.lerp.Scalar: aten.lerp.Scalar_out,
    aten.sqrt.default: aten.sqrt.out,
}
"""Operations that can overwrite one of their operands, with the variant that takes ``out``."""


def rewrite(r: Recording) -> None:
    """Apply all rewrites. Afterwards the results own their memory, and the step may overwrite its old carry."""
    _drop_unused(r)
    _drop_ones(r)
    _merge_products(r)
    _drop_unused(r)
    _hoist_numbers(r)
    _own_results(r)
    _own_overwritten(r)
    for n, op in enumerate(r.ops):
        if variant := OVER.get(op.fn):
            op.over = next((slot for slot in op.reads() if _replaceable(r, slot, n)), None)
            op.fn = op.fn if op.over is None else variant


def _drop_unused(r: Recording) -> None:
    wanted, kept = set(r.results), []
    for op in reversed(r.ops):
        if op.fn is None or wanted.intersection(op.out):  # gradients stay: they are charged whether used or not
            kept.append(op)
            wanted.update(op.reads())
    r.ops = kept[::-1]


def _drop_ones(r: Recording) -> None:
    """Replace ``1.0 * t`` by ``t``, unless there are views of it, which would become those of ``t``."""
    same: dict[Slot, Slot] = {}
    sharing = Counter(map(address, r.tensors))
    for op in r.ops:
        op.args = [same.get(a, a) if isinstance(a, Slot) else a for a in op.args]
        times_one = op.fn is aten.mul.Tensor and type(op.args[1]) is float and op.args[1] == 1
        if times_one and r.alike(op.args[0], op.out[0]) and sharing[r.storage(op.out[0])] == 1:
            same[op.out[0]] = op.args[0]
    r.results = [same.get(slot, slot) for slot in r.results]


def _merge_products(r: Recording) -> None:
    """Fuse ``a + s * t``, ``a - s * t``, ``a + t / number`` and ``a - t / number`` into one operation."""
    maker = {op.out[0]: op for op in r.ops}
    for op in r.ops:
        if op.fn not in (aten.add.Tensor, aten.sub.Tensor) or op.kwargs or len(op.reads()) < 2:
            continue
        a, b = op.args
        if op.fn is aten.add.Tensor and not _is_product(r, maker.get(b), op):
            a, b = b, a
        product = maker.get(b)
        if product is None or not _is_product(r, product, op) or r.tensors[a].shape != r.tensors[op.out[0]].shape:
            continue
        sign = -1 if op.fn is aten.sub.Tensor else 1
        s, t = product.args
        if isinstance(t, Slot):
            op.fn, op.args, op.kwargs = aten.addcmul.default, [a, s, t], {"value": sign}
        else:
            factor = t if product.fn is aten.mul.Tensor else 1 / t
            op.fn, op.args, op.kwargs = aten.add.Tensor, [a, s], {"alpha": sign * factor}


def _is_product(r: Recording, op: Op | None, user: Op) -> bool:
    """Return whether ``op`` is a product or quotient by a number, read by ``user`` alone, all in one floating type."""
    if op is None or op.fn not in (aten.mul.Tensor, aten.div.Tensor):
        return False
    by_number = not isinstance(op.args[1], Slot)
    uses = sum(o.reads().count(op.out[0]) for o in r.ops) + r.results.count(op.out[0])
    types = {r.tensors[slot].dtype for slot in (*op.reads(), *user.reads(), *user.out)}
    return (
        uses == 1
        and (op.fn is aten.mul.Tensor or (by_number and op.args[1] != 0))
        and len(types) == 1
        and types.pop().is_floating_point
    )


def _hoist_numbers(r: Recording) -> None:
    """Move what needs neither the last gradient nor whole vectors, such as Adam's bias corrections, before it."""
    at = max((n for n, op in enumerate(r.ops) if op.fn is None), default=len(r.ops))
    gradient, after = r.ops[at : at + 1], r.ops[at + 1 :]
    late = {slot for op in gradient for slot in op.out}
    first: list[Op] = []
    rest: list[Op] = []
    for op in after:
        stays = late.intersection(op.reads()) or r.alike(op.out[0], gradient[0].out[0])
        (rest if stays else first).append(op)
        late.update(op.out if stays else ())
    r.ops = [*r.ops[:at], *first, *gradient, *rest]


def _own_results(r: Recording) -> None:
    """Copy results that share memory with each other, with inputs other than the carry, or with constants."""
    ours = {*r.made(), *r.carry}
    read = {slot for op in r.ops for slot in op.reads()}   # what no operation reads may be a view of a result
    taken = {r.storage(i) for i in {*map(Slot, range(r.inputs)), *read, *r.results} - ours}
    for i, slot in enumerate(r.results):
        if r.storage(slot) in taken or not r.tensors[slot].is_contiguous():
            copy = Slot(len(r.tensors))
            r.tensors.append(r.tensors[slot].clone(memory_format=torch.contiguous_format))
            r.ops.append(Op(aten.clone.default, [slot], {"memory_format": torch.contiguous_format}, [copy]))
            r.results[i] = copy
        taken.add(r.storage(slot))


def _own_overwritten(r: Recording) -> None:
    """Copy arguments that an operation overwrites but the step needs afterwards, or does not own."""
    for op in [op for op in r.ops if op.inplace]:
        for k in op.inplace:
            n = next(n for n, other in enumerate(r.ops) if other is op)
            if not _replaceable(r, op.args[k], n):
                copy = Slot(len(r.tensors))
                r.tensors.append(r.tensors[op.args[k]].clone(memory_format=torch.contiguous_format))
                kwargs = {"memory_format": torch.contiguous_format}
                r.ops.insert(n, Op(aten.clone.default, [op.args[k]], kwargs, [copy]))
                op.args[k] = copy


def _replaceable(r: Recording, slot: Slot, n: int) -> bool:
    """Return whether operation ``n`` may overwrite ``slot``: alike, owned by the step, and not read afterwards."""
    op, old = r.ops[n], r.tensors[slot]
    whole = old.is_contiguous() and old.numel() * old.itemsize == old.untyped_storage().nbytes()
    later = [s for o in r.ops[n + 1 :] for s in o.reads()] + r.results
    shared = [s for s in (*op.reads(), *later) if s not in (slot, *op.out)]
    return (
        r.alike(slot, op.out[0])
        and (slot in r.carry or (whole and slot in r.made()))
        and op.reads().count(slot) == 1
        and slot not in later
        and all(r.storage(s) != r.storage(slot) for s in shared)
    )
