"""The vocabulary in which algorithms are written: three kinds of value, told apart by type.

A plain value (a ``Tensor``, or a ``NamedTuple`` of tensors) lives at the server. ``Kept[T]`` lives at every node and
never travels. ``Sent[T]`` is a message of every node of a cohort, under way. Both are inert: only ``Clients`` can run
code on a node or move a byte. Trees are tensors, and compressed vectors, nested in tuples and NamedTuples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from fedsim.tree import fetched
from fedsim.values import Packed as Packed
from fedsim.values import Site, Vector

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""An aggregation rule: rows ``[c, d]`` and weights ``[c]`` that sum to 1, to one vector ``[d]``."""

T = TypeVar("T")
C = TypeVar("C")


class Batch(NamedTuple):
    """Samples of one client: inputs ``[B, ...]``, targets ``[B, ...]``, and ``[B]`` ones and zeros where rows are
    padding.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None


class NamedTree(Protocol):
    """A NamedTuple of tensors: one message or memory, where a plain tuple is several."""

    def _asdict(self) -> dict[str, Any]: ...


class Kept(Generic[T]):
    """One value of type T at each of ``n`` nodes. Nodes that never wrote theirs share ``default`` and cost no memory.

    ``old | new`` is ``old`` with the nodes of ``new`` replaced; neither operand changes. A row may live elsewhere
    (``Far``): reading ``kept[i]`` brings it here, everything else leaves it where it is.
    """

    __slots__ = ("default", "n", "rows")

    def __init__(self, n: int, default: T, rows: Mapping[int, T] | None = None) -> None:
        self.n = n
        self.default = default
        self.rows: Mapping[int, T] = rows or {}

    def __getitem__(self, node: int) -> T:
        row: T = fetched(self.rows.get(node, self.default))
        return row

    def __or__(self, new: Kept[T]) -> Kept[T]:
        return Kept(self.n, self.default, {**self.rows, **new.rows})

    def __repr__(self) -> str:
        return f"Kept(n={self.n}, written={len(self.rows)})"


class Sent(Generic[T]):
    """One message of type T from each node of ``ids``, as the backend that carries them holds them."""

    __slots__ = ("__weakref__", "ids", "messages")

    def __init__(self, ids: np.ndarray, messages: Messages[T]) -> None:
        self.ids = ids
        self.messages = messages

    @property
    def stacked(self) -> T:
        """All of them here, stacked: every tensor is ``[len(ids), ...]``."""
        return self.messages.stacked()

    def __repr__(self) -> str:
        return f"Sent(from {len(self.ids)} nodes)"


class Local(Site, Protocol):
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

    def fold(self, step: Callable[..., C], carry: C, *consts: Any, skip: int = 0, shares: bool = False) -> C:
        """The local loop: ``carry = step(carry, batch, *consts)`` over the round's minibatches but the first ``skip``.

        Every tensor that ``step`` reads is an argument; a tensor captured from outside is refused. With ``shares``, its
        last argument is the share of the round's samples that are in ``batch``, 0-dim: the weight of this minibatch in
        a mean over samples, as the last one of an epoch may be smaller.
        """


M_co = TypeVar("M_co", covariant=True)


class Messages(Protocol[M_co]):
    """The messages of a cohort of ``c`` nodes, in the order of its ids, wherever they are."""

    def sizes(self) -> np.ndarray:
        """Bytes of each, int64 ``[c]``."""

    def paper_bits(self) -> np.ndarray:
        """Bits of each as papers count them, int64 ``[c]``; see ``fedsim.messages.wire.paper_bits``."""

    def finite(self) -> np.ndarray:
        """Which hold neither NaN nor infinity, bool ``[c]``."""

    def stacked(self) -> M_co:
        """All of them here, every tensor ``[c, ...]``."""

    def mean(self, w: Tensor) -> M_co:
        """Their sum with weights ``w [c]``, as a tree over the order of execution; compressed vectors come unpacked."""

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[list[Any], float | None]:
        """What each node holds after ``steps`` exchanges by W ``[c, c]``, and with ``measure`` the contraction of the
        consensus distance of the first tensor.
        """
