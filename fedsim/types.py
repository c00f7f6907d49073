"""The vocabulary of algorithms: values at the server, memories at the nodes and messages, distinguished by type.

A plain value (a ``Tensor``, or a ``NamedTuple`` of tensors) lives at the server. ``Kept[T]`` is a memory at every node
and is never sent. ``Sent[T]`` is one message from each node of a cohort, in transit. Both are passive: only ``Clients``
runs code on a node or transfers a byte. A tree is a tensor or compressed vector, or a tuple or NamedTuple of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.tree import Samples, StackedRows, described, fetched, form, mapped, stacking, tree_map
from fedsim.values import Packed as Packed
from fedsim.values import Site, Vector, Versions

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Aggregation rule: maps rows ``[c, d]`` and weights ``[c]`` that sum to 1 to one vector ``[d]``."""

Augmentation: TypeAlias = Callable[[Samples, Tensor], Samples]
"""Maps inputs ``[B, ...]`` and keys, int64 ``[B]``, to inputs of the same form, row by row."""

StepSchedule: TypeAlias = Callable[[np.ndarray, int], np.ndarray]
"""Maps the numbers of local steps ``[K]``, from 0 on, and their count K to factors ``[K]`` of the step size."""

T = TypeVar("T")
C = TypeVar("C")

RECEIVE = "receive the messages first: clients.mean(y), clients.reduce(y, rule) or clients.mix(y)"


class Batch(NamedTuple):
    """Samples of one client.

    Attributes:
        x: inputs ``[B, ...]``: a tensor, or tuples and dicts of tensors; see ``fedsim.tree.Samples``.
        y: targets ``[B, ...]``, in the same forms.
        weight: ``[B]``, 0 for padding rows and 1 for others; None without padding.
        key: int64 ``[B]``, one number for all rows, from which random operations on this minibatch follow, such as
            dropout; a function of (seed, round, node, step). None in a batch that the runtime did not draw.
    """

    x: Samples
    y: Samples
    weight: Tensor | None = None
    key: Tensor | None = None

    def part(self, rows: slice | int) -> Batch:
        """Some rows of all its tensors, or what is at one index of their first axis."""
        weight, key = (None if t is None else t[rows] for t in (self.weight, self.key))
        return Batch(mapped(itemgetter(rows), self.x), mapped(itemgetter(rows), self.y), weight, key)


class NamedTree(Protocol):
    """A NamedTuple of tensors: a single message or memory, whereas a plain tuple is several."""

    def _asdict(self) -> dict[str, Any]: ...


class Kept(Generic[T]):
    """One value of type T at each of ``n`` nodes; nodes never written share ``default`` and take no memory.

    ``old | new`` is ``old`` with the rows of ``new`` replaced; neither operand changes. A row may be stored elsewhere
    (``Far``): only ``kept[i]`` fetches it.
    """

    __slots__ = ("default", "n", "rows")

    def __init__(self, n: int, default: T, rows: Mapping[int, T] | None = None) -> None:
        self.n = n
        self.default = default
        self.rows: Mapping[int, T] = rows if rows is not None else {}

    def __getitem__(self, node: int) -> T:
        row: T = fetched(self.rows.get(node, self.default))
        return row

    def stacking(self, ids: Sequence[int]) -> Callable[[], Any]:
        """Begin to fetch the values of the nodes ``ids``; the function returned returns them as one tree of stacks
        ``[len(ids), ...]``, which may share their memory.
        """
        rows = self.rows
        if isinstance(rows, StackedRows) and len(rows) == self.n:
            return lambda: rows.of(np.asarray(ids))
        return stacking([rows.get(node, self.default) for node in ids])

    def __or__(self, new: Kept[T]) -> Kept[T]:
        if not isinstance(new, Kept):
            raise ConfigError(
                f"Kept | {type(new).__name__}: expected new memories of clients on the right, as clients.each and"
                " clients.apply return them: y, m = clients.each(fn, s.x, s.m), then s.m | m"
            )
        if new.rows and form(self.default) != form(new.default):
            raise ConfigError(
                f"a memory of {described(self.default)} at each client is replaced by {described(new.default)};"
                " expected the same shapes and types: let clients.keep begin with zeros of those"
            )
        if isinstance(new.rows, StackedRows):
            if len(new.rows) == self.n:
                return Kept(self.n, self.default, new.rows)
            # copies, as a view would keep the values of all alive
            new = Kept(self.n, new.default, {node: tree_map(Tensor.clone, row) for node, row in new.rows.items()})
        rows = self.rows if isinstance(self.rows, Versions) else Versions(dict(self.rows.items()))
        return Kept(self.n, self.default, rows.replaced(new.rows))

    def lacks(self, old: Kept[Any]) -> set[int]:
        """Nodes with a value of their own in ``old`` that have none here."""
        rows = self.rows
        if len(rows) == self.n:
            return set()
        return rows.lacks(old.rows) if isinstance(rows, Versions) else old.rows.keys() - rows.keys()

    def __repr__(self) -> str:
        return f"Kept(n={self.n}, written={len(self.rows)})"


def joined(mine: Sequence[Kept[Any]], ids: np.ndarray) -> Kept[tuple[Any, ...]] | None:
    """Join memories of the nodes ``ids`` into one memory of tuples; None if there are none."""
    if not mine:
        return None
    stacks = [kept.rows for kept in mine if isinstance(kept.rows, StackedRows) and len(kept.rows) == kept.n]
    if len(stacks) == len(mine):                           # nothing is done for each node
        tree = tuple(stack.tree for stack in stacks)
        return Kept(mine[0].n, tuple(kept.default for kept in mine), StackedRows(stacks[0].ids, tree))
    nodes = [node for node in ids.tolist() if any(node in kept.rows for kept in mine)]
    rows = {node: tuple(kept.rows.get(node, kept.default) for kept in mine) for node in nodes}
    return Kept(mine[0].n, tuple(kept.default for kept in mine), rows)


class Sent(Generic[T]):
    """One message of type T from each node of ``ids``, in the backend's representation."""

    __slots__ = ("__weakref__", "ids", "messages")

    def __init__(self, ids: np.ndarray, messages: Messages[T]) -> None:
        self.ids = ids
        self.messages = messages

    @property
    def stacked(self) -> T:
        """All messages, gathered in this process: every tensor is ``[len(ids), ...]``."""
        return self.messages.stacked()

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(
            "a Sent, one message from each client, cannot be unpacked; a client function that reads memories returns"
            " (message, new memory), and then clients.each returns both"
        )

    def __getitem__(self, key: object) -> Any:
        raise TypeError(f"a Sent, one message from each client, has no [{key!r:.40}]; {RECEIVE}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a Sent, one message from each client, has no attribute {name!r}; {RECEIVE}")

    def __repr__(self) -> str:
        return f"Sent(from {len(self.ids)} nodes)"


Slots: TypeAlias = tuple[Tensor, ...]
"""State of a local optimiser at one client: vectors ``[d]`` and numbers, 0-dim."""


class Optimizer(Protocol):
    """Maker of local steps: a frozen dataclass, such as those of ``fedsim.engine.optimizers``.

    It is written for one client and run for many at a time, as client functions are. A field ``state`` with the value
    "keep" leaves its slots with the client between rounds; else they begin anew in each.
    """

    def slots(self, x: Vector) -> Slots:
        """Initial slots for points like ``x [d]``."""

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        """Next point and slots, after a step from ``y [d]`` along minus ``g [d]`` with step size ``eta``."""


class Local(Site, Protocol):
    """Interface of a client function to its client in one round; randomness depends on (seed, round, node) alone."""

    @property
    def decay(self) -> Tensor:
        """Factor of the learning-rate schedule in this round, 0-dim; 1 for a constant rate."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's parameters, in the order of the flat vector."""

    @property
    def steps(self) -> Tensor:
        """Number of local steps K_i of this client in this round, 0-dim."""

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """Gradient ``[d]`` of the local objective at ``x`` on ``batch``; by default on the whole shard.

        The objective is the mean loss plus the penalty plus weight decay; gradient clipping, if enabled, precedes
        weight decay. Either may be set to act in ``descend`` instead. At running statistics of BatchNorm, which follow
        the parameters in ``x``, it is 0.
        """

    @property
    def optimizer(self) -> Optimizer:
        """Optimiser of the local steps; by default ``fedsim.SGD()``."""

    @property
    def step_schedule(self) -> StepSchedule | None:
        """Schedule by which ``descend`` multiplies the step size of each step of a round; None for one step size."""

    def descend(self, y: Vector, direction: Vector, eta: Tensor | float, *, prox: float = 0.0) -> Vector:
        """Make the local step from ``y [d]`` along ``direction [d]`` with step size ``eta``: ``y - eta * direction``.

        The direction is the gradient with the method's corrections. Every local step of a method is made by this word,
        once in a step of ``local.fold``, so that the local optimiser, and weight decay and clipping at the step, hold
        for all methods. Running statistics of BatchNorm become those after the step's first gradient.

        Args:
            y: where the step begins.
            direction: what the step descends along.
            eta: step size.
            prox: factor of ``y`` in a proximal term of the direction, which clipping of the direction leaves out.

        Raises:
            ConfigError: called twice in a step, or outside of ``local.fold``.
        """

    def sample(self, size: int) -> Batch:
        """Large batch of ``size`` samples without replacement; the whole shard if it is not larger."""

    def moments(self, x: Vector, layers: Sequence[str]) -> Tensor:
        """Second moments of the inputs ``h [k]`` of some layers of the model at ``x``: for each the mean of ``h h^T``
        over the client's samples, and their positions, flattened and joined, ``[sum k^2]``.
        """

    def fold(self, step: Callable[..., C], carry: C, *consts: Any, skip: int = 0, shares: bool = False) -> C:
        """Run the local loop ``carry = step(carry, batch, *consts)`` over the round's minibatches from ``skip`` on.

        Every tensor that ``step`` reads must be an argument; captured tensors are rejected. With ``shares``, its last
        argument is the fraction of the round's samples in ``batch``, 0-dim: the weight of this minibatch in a mean over
        samples, as the last one of an epoch may be smaller.
        """


M_co = TypeVar("M_co", covariant=True)


class Messages(Protocol[M_co]):
    """Messages of a cohort of ``c`` nodes, in the order of its ids, wherever they are stored."""

    def sizes(self) -> np.ndarray:
        """Size of each message in bytes, int64 ``[c]``."""

    def paper_bits(self) -> np.ndarray:
        """Size of each message in bits as papers count them, int64 ``[c]``; see ``fedsim.messages.wire.paper_bits``."""

    def finite(self) -> np.ndarray:
        """Mask of the messages without NaN or infinity, bool ``[c]``."""

    def stacked(self) -> M_co:
        """All messages, gathered in this process: every tensor is ``[c, ...]``."""

    def only(self, positions: np.ndarray) -> Messages[M_co]:
        """The messages at some positions, which increase."""

    def mean(self, w: Tensor) -> M_co:
        """Sum with weights ``w [c]``, pairwise in the order of execution; compressed vectors are unpacked. ``w`` is on
        the CPU.
        """

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[Mapping[int, Any], float | None]:
        """Values by position after ``steps`` exchanges by W ``[c, c]``, and, if ``measure``, the contraction of the
        consensus distance of the first tensor.
        """
