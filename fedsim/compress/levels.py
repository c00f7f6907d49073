"""Messages of a norm and, for each of d coordinates, a level from -s to s.

Wire format: 0 (fixed) or 1 (elias) in 1 byte, then

    fixed   the norm, and for each coordinate a sign bit, 1 for negative, and the level in ceil(log2(s + 1)) bits
    elias   the number of levels that are not 0 (1 to 5 bytes, 7 bits each), the norm, and for each of these the omega
            code of the gap to the last one, the sign bit, and the omega code of the level

and zeros that fill the last byte.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.compress import bits, elias, indices
from fedsim.compress.reader import Reader, expect_padding, float_bytes, floats, varint, varint_size
from fedsim.compress.stacks import on_stacks

LevelCode: TypeAlias = Literal["fixed", "elias"]
CODES: tuple[LevelCode, ...] = ("fixed", "elias")


def width(s: int) -> int:
    """Bits of a coordinate in the fixed code: s + 1 magnitudes and a sign."""
    return 1 + s.bit_length()


def integer(s: int) -> torch.dtype:
    """The smallest integer type that holds -s to s."""
    return torch.int8 if s < 2**7 else torch.int16 if s < 2**15 else torch.int32


def constant(like: Tensor, size: int) -> Tensor:
    """The same size, int64, for each of ``like [...]``."""
    return torch.full(like.shape, size, device=like.device)


def size(parts: tuple[Tensor, ...], s: int, code: LevelCode | Literal["shortest"]) -> Tensor:
    """Bytes of `write` for norms ``[...]`` and levels ``[..., d]``, int64 ``[...]``."""
    norm, level = parts
    plain = -(-level.shape[-1] * width(s) // 8)
    if code == "fixed":
        return constant(norm, 1 + norm.element_size() + plain)
    (short,) = on_stacks(_elias_size, level)
    return 1 + norm.element_size() + (short.clamp(max=plain) if code == "shortest" else short)


def _elias_size(level: Tensor) -> tuple[Tensor]:
    """Bytes of the elias code without its selector and norm."""
    row, gaps, flat = indices.gaps_of(level != 0)
    magnitude = level.flatten()[flat].long().abs()
    each = elias.code_lengths(gaps)["omega"] + 1 + elias.code_lengths(magnitude)["omega"]
    count = indices.add_up(torch.ones_like(each), row, level)
    return (varint_size(count) + (indices.add_up(each, row, level) + 7) // 8,)


def write(parts: tuple[Tensor, ...], s: int, code: LevelCode | Literal["shortest"]) -> bytes:
    """The message of one norm and its levels ``[d]``."""
    norm, level = parts
    fixed = -(-level.shape[-1] * width(s) // 8)
    if code == "shortest":
        whole = 1 + norm.element_size() + fixed
        code = "fixed" if int(size(parts, s, "shortest")) == whole else "elias"
    number = level.cpu().numpy().astype(np.int64)
    if code == "fixed":
        packed = bits.pack_fixed(np.abs(number) | ((number < 0).astype(np.int64) << (width(s) - 1)), width(s))
        return bytes([0]) + float_bytes(norm) + packed.data.tobytes()
    index = np.flatnonzero(number)
    number = number[index]
    gap, magnitude = (elias.codewords(n, "omega") for n in (np.diff(index, prepend=-1), np.abs(number)))
    codes = np.stack([gap[0], (number < 0).astype(np.uint64), magnitude[0]], 1)
    packed = bits.pack(codes.ravel(), np.stack([gap[1], np.ones_like(index), magnitude[1]], 1).ravel())
    return bytes([1]) + varint(len(index)) + float_bytes(norm) + packed.data.tobytes()


def read(data: bytes, d: int, s: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Norm and levels; ValueError for anything that `write` does not write."""
    reader = Reader(data)
    elias_coded = reader.byte("selector of the level code", 2)
    count = reader.varint("number of levels", d) if elias_coded else d
    norm = floats(reader.take(dtype.itemsize), dtype)[0]
    rest = reader.rest()
    index, sign, magnitude = _read_elias(rest, count) if elias_coded else _read_fixed(rest, d, s)
    if norm < 0 or (len(index) and (index[-1] >= d or magnitude.max() > s)):
        raise ValueError(f"a message has a norm below 0, a level above {s}, or more than {d} coordinates")
    if ((magnitude == 0) & (sign == 1)).any():
        raise ValueError("a message has a level of minus 0")
    level = torch.zeros(d, dtype=integer(s))
    level[torch.from_numpy(index)] = torch.from_numpy(np.where(sign, -magnitude, magnitude)).to(level.dtype)
    return norm, level


def _read_fixed(data: bytes, d: int, s: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    expect_padding(data, d * width(s))
    number = bits.fixed(bits.padded(data), 0, d, width(s))
    return np.arange(d), number >> (width(s) - 1), number & (2 ** (width(s) - 1) - 1)


def _read_elias(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (gaps, sign, magnitude), end = elias.read_signed(bits.padded(data), 0, 8 * len(data), count, "omega")
    expect_padding(data, end)
    return np.cumsum(gaps) - 1, sign, magnitude
