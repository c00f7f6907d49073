"""Trees: a tensor, a compressed vector, the handle of a tensor stored elsewhere, or tuples and NamedTuples of trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.values import Far, Packed


def leaves(tree: Any) -> list[Any]:
    """Tensors of a tree in order, including those of compressed vectors; ``Far`` handles are not fetched."""
    if isinstance(tree, Tensor | Far):
        return [tree]
    if isinstance(tree, Packed):
        return list(tree.parts)
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    raise TypeError(f"a message or memory is a tensor or a tuple of them, got {type(tree).__name__}: {tree!r:.80}")


def build(like: Any, tensors: Iterator[Any]) -> Any:
    """Tree with the structure of ``like`` and its leaves taken from ``tensors``."""
    if isinstance(like, Tensor | Far):
        return next(tensors)
    if isinstance(like, Packed):
        return Packed(like.by, tuple(next(tensors) for _ in like.parts), like.d)
    return rebuilt(like, [build(branch, tensors) for branch in like])


def rebuilt(like: Any, branches: Sequence[Any]) -> Any:
    """Tuple of ``branches``; a NamedTuple of the type of ``like`` if that is one."""
    return type(like)(*branches) if hasattr(like, "_fields") else tuple(branches)


def tree_map(fn: Callable[..., Any], *trees: Any) -> Any:
    """Apply ``fn`` to corresponding leaves of trees of the same structure."""
    columns = zip(*(leaves(tree) for tree in trees), strict=True)
    return build(trees[0], iter([fn(*column) for column in columns]))


def unpacked(tree: Any) -> Any:
    """Tree with its compressed vectors unpacked."""
    if isinstance(tree, Packed):
        return tree.unpack()
    if isinstance(tree, tuple):
        return rebuilt(tree, [unpacked(branch) for branch in tree])
    return tree


def fetched(tree: Any) -> Any:
    """Tree with its ``Far`` handles fetched."""
    if isinstance(tree, Far):
        return tree.fetch()
    return rebuilt(tree, [fetched(branch) for branch in tree]) if isinstance(tree, tuple) else tree


def form(tree: Any) -> list[tuple[torch.Size, torch.dtype]]:
    """Shape and type of every leaf of a tree."""
    return [(t.shape, t.dtype) for t in leaves(tree)]


def described(tree: Any) -> str:
    """Format the `form` of a tree: ``[10] float32, [] int64``."""
    shapes = [f"{list(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in form(tree)]
    return ", ".join(shapes) or "nothing"


def zeros_like(tree: Any) -> Any:
    """Zeros with the structure, shapes, types and devices of a tree; nothing is fetched."""
    return tree_map(lambda t: torch.zeros(t.shape, dtype=t.dtype, device=getattr(t, "device", None)), tree)
