"""Floating-point numbers of fewer bits: the identity, 16 and 8 bits, and powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import one_of
from fedsim.compress import bits
from fedsim.compress.levels import constant
from fedsim.compress.reader import expect_padding, expect_size, float_bytes, floats
from fedsim.compress.stacks import finite, on_stacks
from fedsim.seeds import uniform_of
from fedsim.values import Packed, Site

Parts = tuple[Tensor, ...]
_DRAW = 103                                                # the tag of the randomness of rounding
_LAYOUT = {torch.float32: (torch.int32, 23, 8), torch.float64: (torch.int64, 52, 11)}
"""Integer of the same size, bits of the mantissa, bits of the exponent."""


@dataclass(frozen=True)
class Identity:
    """The vector itself: alpha = 1, omega = 0.

    Wire format: the values.
    """

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the vector."""
        return Packed(self, (finite(x, self),), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return constant(parts[0][..., 0], d * parts[0].element_size())

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return float_bytes(parts[0])

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
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


Format: TypeAlias = Literal["fp16", "bf16", "e4m3", "e5m2"]


class _Float(NamedTuple):
    """A format: its type, the larger type that holds its values here, digits p of the significand, the power of two
    that the largest magnitude is scaled to, and the distance of its smallest numbers."""

    dtype: torch.dtype
    held: torch.dtype
    p: int
    top: float
    step: float


_FORMATS: dict[str, _Float] = {
    "fp16": _Float(torch.float16, torch.float16, 11, 2.0**15, 2.0**-24),
    "bf16": _Float(torch.bfloat16, torch.bfloat16, 8, 2.0, 2.0**-133),
    "e4m3": _Float(torch.float8_e4m3fn, torch.float16, 4, 2.0**8, 2.0**-9),
    "e5m2": _Float(torch.float8_e5m2, torch.float16, 3, 2.0**15, 2.0**-16),
}


@dataclass(frozen=True)
class LowPrecision:
    """Rounding to floats of 16 or 8 bits.

    The vector is divided by a power of two that brings ||x||_inf into [top/2, top), so as to use their range.
    Numbers that would be rounded up beyond the vector's own format are rounded down instead.
    Contractive: the error is at most u |x_i| for numbers in the normal range, with u = 2^-p for p digits, and half the
    step eta of the smallest numbers below it, so alpha = 1 - u^2 - d (eta / top)^2. Homogeneous for powers of two only.

    Wire format: the power of two as one of the vector's floats, then a float of 2 or 1 bytes for each value.

    Args:
        format: fp16, bf16, or the 8-bit e4m3 or e5m2 (4 or 5 bits of exponent).
    """

    format: Format = "fp16"

    def __post_init__(self) -> None:
        one_of(self, "format", tuple(_FORMATS))

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the power of two ``[]``, and the scaled and rounded vector ``[d]`` in 16 bits."""
        x, kind = finite(x, self), _FORMATS[self.format]
        most = x.abs().amax(-1)
        mantissa, _ = torch.frexp(torch.where(most != 0, most, 1))
        power = torch.where(most != 0, most / (2 * mantissa), 1)   # the power of two below, exactly
        scale = power / (kind.top / 2)
        scale = torch.where(scale == 0, torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps, scale)
        most = torch.where(torch.isinf(scale * kind.top), kind.top * (1 - 2.0**-kind.p), kind.top)   # stays in range
        scaled = (x / scale.unsqueeze(-1)).clamp(-most.unsqueeze(-1), most.unsqueeze(-1))
        return Packed(self, (scale, scaled.to(kind.dtype).to(kind.held)), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        scale, values = parts
        return values.to(scale.dtype) * scale.unsqueeze(-1)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return constant(parts[0], parts[0].element_size() + d * _FORMATS[self.format].dtype.itemsize)

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        scale, values = parts
        if not torch.isfinite(values).all():
            raise ValueError("a compressed vector holds NaN or infinity, which is not sent")
        dtype = _FORMATS[self.format].dtype
        words = values.to(dtype).contiguous().view(torch.uint8 if dtype.itemsize == 1 else torch.int16)
        return float_bytes(scale) + words.cpu().numpy().astype(f">i{dtype.itemsize}").tobytes()

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        kind = _FORMATS[self.format]
        size = kind.dtype.itemsize
        expect_size(data, dtype.itemsize + d * size)
        scale = floats(data[: dtype.itemsize], dtype)[0]
        words = np.frombuffer(data[dtype.itemsize :], f">i{size}").astype(f"i{size}")
        values = torch.from_numpy(words).view(kind.dtype).to(kind.held)
        if not torch.isfinite(values).all() or not scale > 0:
            raise ValueError(f"a message holds NaN or infinity, or its scale {float(scale)} is not above 0")
        return scale, values

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """16 d or 8 d, and 32 for the power of two."""
        return constant(parts[0], 32 + 8 * d * _FORMATS[self.format].dtype.itemsize)

    def alpha(self, d: int) -> float:
        """See the class."""
        kind = _FORMATS[self.format]
        return 1 - 4.0**-kind.p - d * (kind.step / kind.top) ** 2

    def omega(self, d: int) -> float | None:
        """Biased."""
        return None


def _to_powers(x: Tensor, drawn: Tensor) -> Parts:         # below vmap, PyTorch 2.11 has no integers of floats
    """Numbers rounded to powers of two: up if what was ``drawn`` is less than the part above the lower one."""
    integer, mantissa, exponent = _LAYOUT[x.dtype]
    word = x.view(integer)
    low = word >> mantissa << mantissa                     # the power of two towards 0, or 0
    above = (word ^ low).to(x.dtype) * 2.0**-mantissa
    largest = (2**exponent - 2) << mantissa
    fits = (low & (2**exponent - 1) << mantissa) < largest
    return (torch.where(fits & (drawn.to(x.dtype) < above), low + (1 << mantissa), low).view(x.dtype),)


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
        drawn = uniform_of(at.key(_DRAW), x.shape[-1])
        return Packed(self, on_stacks(_to_powers, finite(x, self), drawn), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return constant(parts[0][..., 0], -(-d * (1 + _LAYOUT[parts[0].dtype][2]) // 8))

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        integer, mantissa, exponent = _LAYOUT[parts[0].dtype]
        float_bytes(parts[0])                              # refuses NaN and infinity
        word = parts[0].contiguous().view(integer).cpu().numpy()
        return bits.pack_fixed((word >> mantissa) & (2 ** (exponent + 1) - 1), exponent + 1).data.tobytes()

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
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
