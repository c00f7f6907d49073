"""Parts common to all messages: values as IEEE floats, most significant byte first, and a validating reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_FLOATS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(">f4"), torch.float64: np.dtype(">f8")}


def float_bytes(values: Tensor) -> bytes:
    """Values as IEEE floats.

    Raises:
        ValueError: one is NaN or infinite.
    """
    kind = _float(values.dtype)
    if not torch.isfinite(values).all():
        raise ValueError("a compressed vector holds NaN or infinity, which is not sent: compress finite numbers only")
    return values.detach().cpu().numpy().astype(kind).tobytes()


def floats(data: bytes, dtype: torch.dtype) -> Tensor:
    """Parse the output of `float_bytes`; ValueError for NaN and infinity."""
    kind = _float(dtype)
    if len(data) % kind.itemsize:
        raise ValueError(f"{len(data)} bytes of values; expected a multiple of {kind.itemsize}")
    values = torch.from_numpy(np.frombuffer(data, kind).astype(kind.newbyteorder("=")))
    if not torch.isfinite(values).all():
        raise ValueError("a message holds NaN or infinity")
    return values


def _float(dtype: torch.dtype) -> np.dtype[Any]:
    if dtype not in _FLOATS:
        raise ValueError(f"a compressed vector of {dtype}; expected float32 or float64")
    return _FLOATS[dtype]


def varint(n: int) -> bytes:
    """A whole number in groups of 7 bits, the lowest first, the highest bit of a byte saying that more follow."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def varint_size(n: Tensor) -> Tensor:
    """Bytes of ``varint`` of each number below 2^32, int64."""
    return 1 + sum(((n >= 2 ** (7 * i)).long() for i in range(1, 5)), torch.zeros_like(n))


class Reader:
    """Sequential parser of a message; ValueError if it ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.left:
            raise ValueError(f"truncated message: {size} bytes expected at byte {self.at}, {self.left} there")
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> bytes:
        """All that are left."""
        return self.take(self.left)

    def byte(self, what: str, below: int) -> int:
        """The next byte, a number less than ``below``."""
        n = self.take(1)[0]
        if n >= below:
            raise ValueError(f"{what} is {n}; expected less than {below}")
        return n

    def varint(self, what: str, most: int) -> int:
        """A number, ``most`` at most, in its shortest form."""
        n = shift = 0
        while shift < 35:
            byte = self.take(1)[0]
            n |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        if n > most or byte > 127 or (shift and not byte):
            raise ValueError(f"{what} is {n} or misspelt; expected a number up to {most} in its shortest form")
        return n


def expect_size(data: bytes, size: int) -> None:
    """ValueError unless there are ``size`` bytes."""
    if len(data) != size:
        raise ValueError(f"{'truncated' if len(data) < size else 'over-long'} message: {len(data)} bytes, not {size}")


def expect_padding(data: bytes, count: int) -> None:
    """ValueError unless ``data`` is ``count`` bits and as few zeros as make whole bytes."""
    expect_size(data, -(-count // 8))
    if count % 8 and data[-1] & (0xFF >> count % 8):
        raise ValueError("the bits that fill a message's last byte are not zero")
