"""What a message weighs: the byte format in which dense messages travel, and the ledger that charges them.

A message is a tree of tensors, sent as: version (1 byte), number of tensors (1), then for each tensor its dtype code
(1), its number of axes (1), each axis' length (4, little-endian), and its values (little-endian). Structure is not
sent: both ends run the same algorithm.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.tree import leaves

VERSION = 1
_DTYPES = {
    torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3,
    torch.int64: 4, torch.int32: 5, torch.int16: 6, torch.int8: 7, torch.uint8: 8, torch.bool: 9,
}  # fmt: skip
_CODES = {code: dtype for dtype, code in _DTYPES.items()}


def nbytes(tree: Any, stacked: bool = False) -> int:
    """Bytes of ``encode(tree)``, without building them; with ``stacked``, of one row of a tree of ``[c, ...]``
    tensors.
    """
    total = 2
    for leaf in leaves(tree):
        shape = leaf.shape[1:] if stacked else leaf.shape
        total += 2 + 4 * len(shape) + int(np.prod(shape)) * leaf.element_size()
    return total


def encode(tree: Any) -> bytes:
    """The bytes of a message."""
    tensors = leaves(tree)
    if len(tensors) > 255:
        raise ValueError(f"a message of {len(tensors)} tensors; expected 255 at most: stack those of one shape")
    parts = [struct.pack("<BB", VERSION, len(tensors))]
    for t in tensors:
        parts.append(struct.pack(f"<BB{t.dim()}I", _DTYPES[t.dtype], t.dim(), *t.shape))
        parts.append(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


def decode(data: bytes) -> list[Tensor]:
    """The tensors of a message, in order. Never trusts its input: anything malformed is a ValueError."""
    if len(data) < 2 or data[0] != VERSION:
        raise ValueError(f"expected a message of version {VERSION}, got {data[:2]!r} ({len(data)} bytes)")
    tensors, at = [], 2
    for _ in range(data[1]):
        dtype, shape, at = _header(data, at)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if at + size > len(data):
            raise ValueError(
                f"truncated message: a tensor of shape {shape} needs {size} bytes, {len(data) - at} are left"
            )
        tensors.append(_tensor(data[at : at + size], dtype, shape))
        at += size
    if at != len(data):
        raise ValueError(f"over-long message: {len(data) - at} bytes after the last tensor")
    return tensors


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if dtype == torch.bool and max(data, default=0) > 1:
        raise ValueError(f"a bool tensor holds the byte {max(data)}; expected 0 or 1")
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    try:
        return raw.view(dtype).reshape(shape)
    except RuntimeError as error:                          # an empty tensor with axes whose product overflows
        raise ValueError(f"no tensor can have the shape {shape}: {error}") from None


def _header(data: bytes, at: int) -> tuple[torch.dtype, tuple[int, ...], int]:
    try:
        code, axes = struct.unpack_from("<BB", data, at)
        shape = struct.unpack_from(f"<{axes}I", data, at + 2)
    except struct.error:
        raise ValueError(f"truncated message: no whole tensor header at byte {at} of {len(data)}") from None
    if code not in _CODES:
        raise ValueError(f"unknown dtype code {code} at byte {at}; known are 0 to {max(_CODES)}")
    return _CODES[code], shape, at + 2 + 4 * axes


class Ledger:
    """Cumulative cost of a run, per node: bytes received (down), bytes sent (up), per-sample gradient evaluations."""

    def __init__(self, n: int) -> None:
        self.down = np.zeros(n, np.int64)
        self.up = np.zeros(n, np.int64)
        self.gradient_evaluations = np.zeros(n, np.int64)

    def charge_edges(self, to: np.ndarray, by: np.ndarray, size: int) -> None:
        """Charge messages of ``size`` bytes over the directed edges from ``by[k]`` to ``to[k]``."""
        np.add.at(self.down, to, size)
        np.add.at(self.up, by, size)

    def totals(self) -> dict[str, int]:
        """Sums over nodes, by the names under which they are recorded."""
        return {
            "bytes_down": int(self.down.sum()),
            "bytes_up": int(self.up.sum()),
            "gradient_evaluations": int(self.gradient_evaluations.sum()),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything to restore the ledger from, as int64 tensors ``[n]``."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the ledger to what ``state()`` gave."""
        for name in vars(self):
            setattr(self, name, state[name].numpy().copy())
