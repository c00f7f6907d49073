"""A user's compressor that has ``compress`` alone, with a codec for the vectors that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.compress import indices
from fedsim.compress.reader import expect_size, float_bytes, floats
from fedsim.compress.sparse import Parts, place, read_sparse, sparse_bytes, sparse_size
from fedsim.compress.stacks import finite
from fedsim.errors import ConfigError
from fedsim.values import Packed, Site

DENSE = b"\xff"
"""First byte of a dense message; a sparse one begins with the selector of its index code."""


@dataclass(frozen=True)
class OwnCompressor:
    """An object whose ``compress(x, at)`` returns a vector of the length of ``x [d]``, as a compressor.

    A message is the shorter of two forms: all d values, or those other than zero with their indices as Top-k writes
    them. Fewer bits for a value need a codec, and so all methods of ``fedsim.values.Compressor``.

    Args:
        compressor: that object; its ``alpha(d)`` and ``omega(d)``, if it has them, are this one's.
    """

    compressor: Any

    def __repr__(self) -> str:
        return repr(self.compressor)

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the vector ``[d]``.

        Raises:
            ConfigError: the object did not return a tensor of the shape and type of ``x``.
            DivergenceError: it, or ``x``, is not finite.
        """
        by = self.compressor
        v = by.compress(finite(x, by), at)
        if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
            got = f"{v.dtype} {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise ConfigError(
                f"{type(by).__name__}.compress returned {got} for {x.dtype} {list(x.shape)}; expected a tensor like its"
                " argument, or a Packed by an object with all methods of fedsim.values.Compressor"
            )
        zero = x - x                                       # NaN where x is not finite; and -0.0 + 0 is 0
        return Packed(self, (finite(v, by, "returned") + zero,), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return torch.minimum(*self._sizes(parts[0]))

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        values = parts[0]
        dense, sparse = self._sizes(values)
        if dense <= sparse:
            return DENSE + float_bytes(values)
        index = values.nonzero()[:, 0]
        return sparse_bytes(index, d, "shortest", float_bytes(values[index]))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        if data[:1] == DENSE:
            expect_size(data, 1 + d * dtype.itemsize)
            values = floats(data[1:], dtype)
        else:
            index, tail = read_sparse(data, d)
            expect_size(tail, len(index) * dtype.itemsize)
            values = place(index, floats(tail, dtype), d)
        if self.encode((values,), d) != data:
            raise ValueError("a message is not written in its shorter form")
        return (values,)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each value of the form that is sent."""
        dense, sparse = self._sizes(parts[0])
        return 32 * torch.where(dense <= sparse, d, (parts[0] != 0).sum(-1))

    def alpha(self, d: int) -> float | None:
        """That of the object; None if it has none."""
        return self._constant("alpha", d)

    def omega(self, d: int) -> float | None:
        """That of the object; None if it has none."""
        return self._constant("omega", d)

    def _constant(self, name: str, d: int) -> float | None:
        known = getattr(self.compressor, name, None)
        return None if known is None else known(d)

    def _sizes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes of the dense and of the sparse form of ``values [..., d]``, int64 ``[...]``."""
        held = values != 0
        k = held.sum(-1)
        sparse = sparse_size(indices.sizes_of_held(held), k, "shortest") + k * values.element_size()
        return torch.full_like(sparse, 1 + values.shape[-1] * values.element_size()), sparse
