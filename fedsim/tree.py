"""Trees of tensors: a tensor, or tuples and NamedTuples of trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    raise TypeError(f"a message or memory is a tensor or a tuple of them, got {type(tree).__name__}: {tree!r:.80}")


def build(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree of the shape of ``like`` with its tensors taken from ``tensors``."""
    if isinstance(like, Tensor):
        return next(tensors)
    branches = [build(branch, tensors) for branch in like]
    return type(like)(*branches) if hasattr(like, "_fields") else tuple(branches)


def tree_map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    """``fn`` applied to the corresponding tensors of equally shaped trees."""
    columns = zip(*(leaves(tree) for tree in trees), strict=True)
    return build(trees[0], iter([fn(*column) for column in columns]))
