"""Vectors of clients parameter by parameter, and their arithmetic in place.

A vector is multiplied by a number ``[c]`` of each client, or by one for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from fedsim.engine.linear_stack import Factors, Parameters, per_client

Parts: TypeAlias = list[Tensor]
"""Vectors of clients: ``[c, *shape]`` for each parameter, or ``[1, *shape]`` where they are one for all."""
Layers: TypeAlias = Iterator[tuple[int, Tensor, Tensor]]
"""A gradient as ``DenseStack.backward`` yields it: the number of a layer, ``delta`` and its inputs."""


def whole(factors: Factors) -> Layers:
    """A gradient of which all layers are at hand."""
    return ((i, delta, given) for i, (delta, given) in enumerate(factors))


def scale(out: Parts, by: Tensor | float, plus: Parts | None = None) -> None:
    """``out <- by out + plus``; with 0, they may be anything before."""
    if isinstance(by, Tensor):
        for t in out:
            t.mul_(per_client(by, t.dim()))
    elif by == 0:
        torch._foreach_zero_(out)
    elif plus is not None:                                 # in one pass
        for t, added in zip(out, plus, strict=True):
            torch.add(added, t, alpha=by, out=t)
        return
    elif by != 1:
        torch._foreach_mul_(out, by)
    if plus is not None:
        torch._foreach_add_(out, plus)


def add_vectors(
    out: Parts, parts: Parts, r: Tensor | float, beta: Tensor | float, plus: Parts | None = None
) -> None:
    """``out <- beta out + plus + r parts``."""
    if not isinstance(beta, Tensor) and beta == 0:
        for t, part in zip(out, parts, strict=True):
            torch.mul(part.expand_as(t), per_client(r, t.dim()), out=t)
        return
    scale(out, beta, plus)
    if not isinstance(r, Tensor):
        torch._foreach_add_(out, parts, alpha=r)
        return
    for t, part in zip(out, parts, strict=True):
        t.addcmul_(part, per_client(r, t.dim()))


def add_gradient(
    out: Parameters, layers: Layers, r: Tensor | float, beta: Tensor | float, plus: Parameters | None = None
) -> None:
    """``out <- beta out + plus + r g``, layer by layer, without the gradient of a weight in memory.

    MKL's products that scale what they are added to take twice as long: it is scaled before.
    """
    new = not isinstance(beta, Tensor) and beta == 0
    for i, delta, given in layers:
        w, b = out[i]
        more, more_b = (None, None) if plus is None else plus[i]
        scaled, alpha = (delta * per_client(r, 3), 1.0) if isinstance(r, Tensor) else (delta, r)
        if not new:
            scale([w], beta, None if more is None else [more])
        w.baddbmm_(scaled.mT, given, beta=0.0 if new else 1.0, alpha=alpha)
        if b is not None:
            scale([b], beta, None if more_b is None else [more_b])
            b.add_(scaled.sum(1), alpha=alpha)
