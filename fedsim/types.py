"""The vocabulary in which algorithms are written: three kinds of value, told apart by type.

A plain value (a ``Tensor``, or a ``NamedTuple`` of tensors) lives at the server. ``Kept[T]`` lives at every node and
never travels. ``Sent[T]`` is a message of every node of a cohort, under way. Both are inert: only ``Clients`` can run
code on a node or move a byte. Trees are tensors nested in tuples and NamedTuples.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from fedsim.clients import Clients

Vector: TypeAlias = Tensor
"""A model, a gradient or a correction as one flat tensor ``[d]``."""

Rule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""An aggregation rule: rows ``[c, d]`` and weights ``[c]`` that sum to 1, to one vector ``[d]``."""

T = TypeVar("T")
S = TypeVar("S")
C = TypeVar("C")


class Batch(NamedTuple):
    """Samples of one client: inputs ``[B, ...]``, targets ``[B, ...]``, and ``[B]`` ones and zeros where rows are
    padding.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None


class Kept(Generic[T]):
    """One value of type T at each of ``n`` nodes. Nodes that never wrote theirs share ``default`` and cost no memory.

    ``old | new`` is ``old`` with the nodes of ``new`` replaced; neither operand changes.
    """

    __slots__ = ("default", "n", "rows")

    def __init__(self, n: int, default: T, rows: Mapping[int, T] | None = None) -> None:
        self.n = n
        self.default = default
        self.rows: Mapping[int, T] = rows or {}

    def __getitem__(self, node: int) -> T:
        return self.rows.get(node, self.default)

    def __or__(self, new: Kept[T]) -> Kept[T]:
        return Kept(self.n, self.default, {**self.rows, **new.rows})

    def beside(self, other: Kept[S]) -> Kept[tuple[T, S]]:
        """Both values of each node as one pair."""
        nodes = self.rows.keys() | other.rows.keys()
        return Kept(self.n, (self.default, other.default), {i: (self[i], other[i]) for i in nodes})

    def part(self, k: int) -> Kept[Any]:
        """The ``k``-th of the values that each node keeps as a tuple."""
        take: Callable[[Any], Any] = operator.itemgetter(k)
        return Kept(self.n, take(self.default), {i: take(row) for i, row in self.rows.items()})

    def __repr__(self) -> str:
        return f"Kept(n={self.n}, written={len(self.rows)})"


class Sent(Generic[T]):
    """One message of type T from each node of ``ids``, stacked: every tensor of ``stacked`` is ``[len(ids), ...]``."""

    __slots__ = ("__weakref__", "ids", "stacked")

    def __init__(self, ids: np.ndarray, stacked: T) -> None:
        self.ids = ids
        self.stacked = stacked

    def __repr__(self) -> str:
        return f"Sent(from {len(self.ids)} nodes)"


class Local(Protocol):
    """What one client has at hand in one round. Its randomness is a function of (seed, round, node) alone."""

    @property
    def decay(self) -> Tensor:
        """The learning-rate schedule's factor in this round, 0-dim; 1 when constant."""

    @property
    def steps(self) -> Tensor:
        """How many local steps K_i this client makes in this round, 0-dim."""

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """Gradient ``[d]`` of the local objective at ``x`` on ``batch``; on the whole shard without one.

        The objective is the mean loss plus the penalty plus weight decay; clipping, when asked for, acts before
        weight decay is added.
        """

    def sample(self, size: int) -> Batch:
        """A large batch of ``size`` samples without replacement; the whole shard where the client has no more."""

    def fold(self, step: Callable[..., C], carry: C, *consts: Any) -> C:
        """The local loop: ``carry = step(carry, batch, *consts)`` over this round's minibatches.

        Every tensor that ``step`` reads is an argument; a tensor captured from outside is refused.
        """


StateT = TypeVar("StateT")


class Algorithm(Protocol[StateT]):
    """A frozen dataclass of hyper-parameters. Its state is a NamedTuple of tensors and ``Kept``, whose ``x`` is the
    model.
    """

    def init(self, x: Vector, clients: Clients) -> StateT:
        """State before round 1, from the initial model ``[d]``; ``clients`` is everybody."""

    def round(self, s: StateT, clients: Clients) -> StateT:
        """State after one round with the cohort ``clients``; must not change ``s``."""
