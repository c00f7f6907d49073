"""Floating-point numbers of fewer bits: the identity, and powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.compress import bits
from fedsim.compress.levels import constant
from fedsim.compress.message import expect_padding, expect_size, float_bytes, floats
from fedsim.compress.rows import finite
from fedsim.seeds import uniform_of
from fedsim.types import Packed, Site

Parts = tuple[Tensor, ...]
_DRAW = 103                                                # the tag of the randomness of rounding
_LAYOUT = {torch.float32: (torch.int32, 23, 8), torch.float64: (torch.int64, 52, 11)}
"""Integer of the same size, bits of the mantissa, bits of the exponent."""


@dataclass(frozen=True)
class Identity:
    """The vector itself: alpha = 1, omega = 0. Wire format: the values."""

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the vector."""
        return Packed(self, (finite(x, self),), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        return constant(parts[0][..., 0], d * parts[0].element_size())

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.types.Compressor``."""
        return float_bytes(parts[0])

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.types.Compressor``."""
        expect_size(data, d * dtype.itemsize)
        return (floats(data, dtype),)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 d."""
        return constant(parts[0][..., 0], 32 * d)

    def alpha(self, d: int) -> float:
        """1: nothing is lost."""
        return 1.0

    def omega(self, d: int) -> float:
        """0: nothing is lost."""
        return 0.0


@dataclass(frozen=True)
class Natural:
    """Natural compression: stochastic rounding to a power of two (Horvath et al., 2019).

    Unbiased with omega = 1/8, attained at |x_i| = 4/3 2^e. C(tx) = t C(x) only for powers of two t. Numbers below the
    smallest normal one are rounded to it or to 0, and those above the largest power of two to that.

    Wire format: sign and exponent of each value, as IEEE has them: 9 bits of a float32, 12 of a float64; zeros fill the
    last byte.
    """

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the rounded vector."""
        x = finite(x, self)
        integer, mantissa, exponent = _LAYOUT[x.dtype]
        word = x.view(integer)
        low = word >> mantissa << mantissa                 # the power of two towards 0, or 0
        above = (word ^ low).to(x.dtype) * 2.0**-mantissa
        largest = (2**exponent - 2) << mantissa
        fits = (low & (2**exponent - 1) << mantissa) < largest
        up = fits & (uniform_of(at.key(_DRAW), x.shape[-1]).to(x.dtype) < above)
        return Packed(self, (torch.where(up, low + (1 << mantissa), low).view(x.dtype),), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        return constant(parts[0][..., 0], -(-d * (1 + _LAYOUT[parts[0].dtype][2]) // 8))

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.types.Compressor``."""
        integer, mantissa, exponent = _LAYOUT[parts[0].dtype]
        float_bytes(parts[0])                              # refuses NaN and infinity
        word = parts[0].contiguous().view(integer).cpu().numpy()
        return bits.pack((word >> mantissa) & (2 ** (exponent + 1) - 1), exponent + 1).data.tobytes()

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.types.Compressor``."""
        if dtype not in _LAYOUT:
            raise ValueError(f"a compressed vector of {dtype}; expected float32 or float64")
        _, mantissa, exponent = _LAYOUT[dtype]
        expect_padding(data, d * (exponent + 1))
        word = bits.fixed(bits.padded(data), 0, d, exponent + 1) << mantissa
        kind = np.uint32 if dtype == torch.float32 else np.uint64
        values = torch.from_numpy(word.astype(kind).view(np.float32 if dtype == torch.float32 else np.float64))
        if not torch.isfinite(values).all():
            raise ValueError("a message holds infinity")
        return (values,)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """9 d."""
        return constant(parts[0][..., 0], 9 * d)

    def alpha(self, d: int) -> None:
        """Unbiased, so contractive only after division by 1 + omega: ``Scaled``."""
        return

    def omega(self, d: int) -> float:
        """1/8."""
        return 1 / 8
