"""Trees of messages and memories, and trees of samples.

A message or memory is a tensor, a compressed vector, the handle of a tensor stored elsewhere, or tuples and NamedTuples
of them. Inputs, targets and outputs are ``Samples``: tensors whose first axis is that of the samples, in dicts too.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import fields, is_dataclass
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.values import Far, Packed

T = TypeVar("T")


def leaves(tree: Any) -> list[Any]:
    """Tensors of a tree in order, including those of compressed vectors; ``Far`` handles are not fetched."""
    if isinstance(tree, Tensor | Far):
        return [tree]
    if isinstance(tree, Packed):
        return list(tree.parts)
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    given = f"got {type(tree).__name__}: {tree!r:.80}"
    number = "; of a number, torch.tensor(...)" if isinstance(tree, int | float) else ""
    raise TypeError(f"messages, memories and what local.fold is given are tensors, or tuples of them{number}; {given}")


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


def fetching(tree: Any) -> Callable[[], Any]:
    """Begin to fetch a tree's ``Far`` handles; the function returned waits for them, and returns the tree."""
    every = leaves(tree)
    waits = [leaf.begin([leaf]) if isinstance(leaf, Far) else None for leaf in every]
    return lambda: build(tree, iter([leaf if w is None else w()[0] for leaf, w in zip(every, waits, strict=True)]))


def stacking(trees: Sequence[Any]) -> Callable[[], Any]:
    """Begin to fetch the handles of trees of one form; the function returned makes one tree of stacks ``[c, ...]``."""
    columns = [_stacking(column) for column in zip(*map(leaves, trees), strict=True)]
    return lambda: build(trees[0], iter([column() for column in columns]))


def _stacking(rows: Sequence[Tensor | Far]) -> Callable[[], Tensor]:
    far = [row for row in rows if isinstance(row, Far)]
    if not far:
        return lambda: torch.stack(rows)  # type: ignore[arg-type]
    arrived = far[0].begin(far)
    if len(far) == len(rows):
        return arrived

    def both() -> Tensor:
        there = iter(arrived().unbind())
        return torch.stack([next(there) if isinstance(row, Far) else row for row in rows])

    return both


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


class StackedRows(Mapping[int, T], Generic[T]):
    """Trees of many nodes as one tree whose tensors ``[m, ...]`` have a row for each: a value is a view of its row.

    Attributes:
        ids: ``[m]`` the nodes, sorted.
        tree: their values.
    """

    __slots__ = ("ids", "tree")

    def __init__(self, ids: np.ndarray, tree: Any) -> None:
        self.ids, self.tree = ids, tree

    def __getitem__(self, node: int) -> T:
        at = int(np.searchsorted(self.ids, node))
        if at == len(self.ids) or self.ids[at] != node:
            raise KeyError(node)
        return cast(T, tree_map(itemgetter(at), self.tree))

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def values(self) -> ValuesView[T]:
        """The values, in the order of the nodes."""
        return cast("ValuesView[T]", self._rows())

    def items(self) -> ItemsView[int, T]:
        """Nodes with their values."""
        return cast("ItemsView[int, T]", list(zip(self.ids.tolist(), self._rows(), strict=True)))

    def _rows(self) -> list[T]:
        if isinstance(self.tree, Tensor):
            return list(self.tree.unbind())  # type: ignore[arg-type]
        rows = zip(*(leaf.unbind() for leaf in leaves(self.tree)), strict=True)
        return [build(self.tree, iter(row)) for row in rows]

    def of(self, ids: np.ndarray) -> Any:
        """The values of the nodes ``ids``, all of which are here, as one tree; a view if they are consecutive here."""
        at = np.searchsorted(self.ids, ids)
        if len(at) and at[-1] - at[0] == len(at) - 1 and (np.diff(at) == 1).all():
            return tree_map(itemgetter(slice(int(at[0]), int(at[-1]) + 1)), self.tree)
        rows = torch.from_numpy(at)
        return tree_map(lambda t: t.index_select(0, rows.to(t.device)), self.tree)


def by_column(rows: Mapping[int, tuple[Any, ...]]) -> list[Mapping[int, Any]]:
    """Tuples of several values at nodes as one mapping for each value."""
    if isinstance(rows, StackedRows):
        return [StackedRows(rows.ids, branch) for branch in rows.tree]
    return [{node: row[k] for node, row in rows.items()} for k in range(len(next(iter(rows.values()), ())))]


Samples: TypeAlias = Any
"""A tensor ``[N, ...]``, or tuples, NamedTuples and dicts of them, nested."""


def flat(tree: Samples) -> list[Any]:
    """Tensors of samples in order; None, for an optional part, has none."""
    if isinstance(tree, tuple | dict):
        return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in flat(branch)]
    return [] if tree is None else [tree]


def shaped(like: Samples, parts: Iterator[Any]) -> Samples:
    """Samples with the structure of ``like`` and their tensors taken from ``parts``."""
    if isinstance(like, tuple):
        return rebuilt(like, [shaped(branch, parts) for branch in like])
    if isinstance(like, dict):
        return {name: shaped(branch, parts) for name, branch in like.items()}
    return None if like is None else next(parts)


def mapped(fn: Callable[[Any], Any], tree: Samples) -> Samples:
    """Apply ``fn`` to every tensor."""
    return fn(tree) if isinstance(tree, Tensor) else shaped(tree, map(fn, flat(tree)))


def structure(tree: Samples) -> Samples:
    """Structure of samples, without their tensors, to give to ``shaped``."""
    return mapped(lambda _: ..., tree)


def count(tree: Samples, axis: int = 0) -> int:
    """Number of samples: the length of the first tensor's axis."""
    first: Tensor = tree if isinstance(tree, Tensor) else flat(tree)[0]
    return first.shape[axis]


def pieces(tree: Samples, size: int) -> Iterator[Samples]:
    """Consecutive parts of ``size`` samples; the last may be smaller."""
    for start in range(0, max(count(tree), 1), size):
        yield mapped(itemgetter(slice(start, start + size)), tree)


def shapes(tree: Samples) -> Any:
    """Tree of the shapes of one sample, as tuples of numbers."""
    return mapped(lambda t: tuple(t.shape[1:]), tree)


def written(tree: Samples) -> str:
    """Shapes of one sample for a message."""
    return str(mapped(lambda t: list(t.shape[1:]), tree))


def tensors_of(outputs: Any) -> list[Tensor]:
    """Tensors of a module's outputs: in tuples, lists, dicts and dataclasses."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if is_dataclass(outputs):                              # Hugging Face's are dicts as well
        outputs = [getattr(outputs, f.name) for f in fields(outputs)]
    elif isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [t for part in outputs for t in tensors_of(part)] if isinstance(outputs, tuple | list) else []


def converted(fn: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Outputs of a module with ``fn`` applied to their tensors: in tuples, lists, dicts and dataclasses."""
    if isinstance(outputs, Tensor):
        return fn(outputs)
    if is_dataclass(outputs) and not isinstance(outputs, type):
        given = {f.name: converted(fn, getattr(outputs, f.name)) for f in fields(outputs) if f.init}
        return type(outputs)(**given)
    if isinstance(outputs, dict):
        return {name: converted(fn, value) for name, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        parts = [converted(fn, part) for part in outputs]
        return rebuilt(outputs, parts) if isinstance(outputs, tuple) else parts
    return outputs


def joined(outputs: Sequence[Any], counts: Sequence[int]) -> Any:
    """Outputs of consecutive samples as those of all: tensors, tuples, lists, dicts and dataclasses.

    Anything else, such as a mean loss or a cache, and a tensor without a row for each sample, becomes None.

    Args:
        outputs: of a module, for each part of the samples.
        counts: number of samples in each part.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        by_row = all(t.dim() and len(t) == n for t, n in zip(outputs, counts, strict=True))
        return torch.cat(tuple(outputs)) if by_row else None

    def of(read: Callable[[Any], Any]) -> Any:
        return joined([read(output) for output in outputs], counts)

    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(**{f.name: of(attrgetter(f.name)) for f in fields(first) if f.init})
    if isinstance(first, dict):
        return {name: of(itemgetter(name)) for name in first}
    if isinstance(first, tuple | list):
        branches = [of(itemgetter(i)) for i in range(len(first))]
        return rebuilt(first, branches) if isinstance(first, tuple) else branches
    return None
