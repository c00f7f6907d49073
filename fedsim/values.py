"""Vectors, compressed vectors, handles of tensors stored elsewhere, and the compressor protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Vector: TypeAlias = Tensor
"""A model, gradient or correction as one flat tensor ``[d]``."""


class Site(Protocol):
    """Site of a compression: a client in a round, or the server."""

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the model's parameters, in the order of the flat vector."""

    def key(self, tag: int = 0) -> Tensor:
        """Random key of 64 bits, int64 0-dim, for ``fedsim.seeds.uniform_of``; depends on (seed, round, node, tag)."""


class Compressor(Protocol):
    """A frozen dataclass that compresses vectors; see ``fedsim.compress`` for the implementations.

    Methods other than ``encode`` and ``decode`` accept one vector or a stack of them, ``[..., d]``.
    """

    def compress(self, x: Vector, at: Site) -> Packed:
        """Compress ``x [d]``."""

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Vector:
        """Decompress ``parts`` to ``[..., d]``, bit for bit as a receiver of ``encode(parts)`` does."""

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Size of each encoded vector in bytes, int64 ``[...]``, without encoding it."""

    def encode(self, parts: tuple[Tensor, ...], d: int) -> bytes:
        """Serialise the message of one vector."""

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Parse the bytes of ``encode``; raises ValueError for any other input."""

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Size in bits as papers count them, int64 ``[...]``: 32 for each value sent, none for its index."""

    def alpha(self, d: int) -> float | None:
        """Largest a with E||C(x) - x||^2 <= (1 - a)||x||^2 for all x; None if C is not contractive."""

    def omega(self, d: int) -> float | None:
        """Smallest w with E||C(x) - x||^2 <= w||x||^2 for all x; None if C is biased."""


class Packed:
    """A compressed vector: the tensors of its message, and the compressor that unpacks them.

    Attributes:
        by: the compressor.
        parts: tensors of the message; with a leading axis ``[c]`` in a stack of clients.
        d: length of the vector.
    """

    __slots__ = ("by", "d", "parts")

    def __init__(self, by: Compressor, parts: tuple[Tensor, ...], d: int) -> None:
        self.by, self.parts, self.d = by, parts, d

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vector; float32 if the message has no floating-point tensor."""
        return next((part.dtype for part in self.parts if part.is_floating_point()), torch.float32)

    def unpack(self) -> Tensor:
        """Decompress to ``[d]``, or ``[c, d]`` for a stack."""
        return self.by.unpack(self.parts, self.d)

    def __repr__(self) -> str:
        return f"Packed({self.by}, d={self.d})"


class Far(ABC):
    """Handle of an immutable tensor in a node's memory, stored at a place of the backend's choice."""

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def fetch(self) -> Tensor:
        """Load the tensor into this process."""

    @classmethod
    def begin(cls, rows: Sequence[Any]) -> Callable[[], Tensor]:
        """Begin to load tensors of one form and place; the function returned waits for them, ``[c, ...]``."""
        return lambda: torch.stack([row.fetch() for row in rows])

    def saved(self) -> Tensor:
        """Tensor for a checkpoint: the value, or its identifier in the federation's ``Memory``."""
        return self.fetch()


MISSING: Any = ...
"""In place of a value that a node did not have; one and the same also in copies and in other processes."""


class Versions(Mapping[int, T]):
    """Values by node of which new versions are made in time that depends on what changes, and none is copied.

    The newest version has all values; an older one knows what was there before the next (Baker, "Shallow binding makes
    functional arrays fast", SIGPLAN Notices 1991). So reading an old version takes longer the older it is.
    """

    __slots__ = ("_before", "_newer", "_values")

    def __init__(self, values: dict[int, T]) -> None:
        self._values: dict[int, T] | None = values
        self._before: dict[int, Any] = {}
        self._newer: Versions[T] | None = None

    def replaced(self, new: Mapping[int, T]) -> Versions[T]:
        """A version with some values replaced or added."""
        if self._values is None:                           # an older one branches off
            return Versions({**self, **new})
        values, self._values = self._values, None
        self._before = {node: values.get(node, MISSING) for node in new}
        values.update(new)
        self._newer = Versions(values)
        return self._newer

    def lacks(self, old: Mapping[int, Any]) -> set[int]:
        """Nodes of ``old`` that are not here; at once if this version was made from it."""
        version = old
        while isinstance(version, Versions) and version is not self:
            version = version._newer or {}
        return set() if version is self else old.keys() - self.keys()

    def _find(self, node: int) -> Any:
        version = self
        while version._newer is not None:
            if node in version._before:
                return version._before[node]
            version = version._newer
        return (version._values or {}).get(node, MISSING)

    def __getitem__(self, node: int) -> T:
        if (found := self._find(node)) is MISSING:
            raise KeyError(node)
        value: T = found
        return value

    def get(self, node: int, default: Any = None) -> Any:
        """The value at a node, or ``default``."""
        return default if (found := self._find(node)) is MISSING else found

    def __contains__(self, node: object) -> bool:
        return self._find(node) is not MISSING  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        if self._values is not None:
            return iter(self._values)
        return (node for node in self._newest()._values or () if node in self)

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._values is None else len(self._values)

    def _newest(self) -> Versions[T]:
        version = self
        while version._newer is not None:
            version = version._newer
        return version
