"""Index codes: how a message says which k of d coordinates it holds. Indices ascend.

    packed   k numbers of I(d) = ceil(log2 d) bits
    bitmap   d bits, 1 where a coordinate is held
    gamma, delta, omega   Elias' codes of the gaps i_j - i_(j-1), with i_(-1) = -1
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fedsim.compress import bits, elias
from fedsim.compress.bits import Bits

IndexCode: TypeAlias = Literal["packed", "bitmap", "gamma", "delta", "omega"]
CODES: tuple[IndexCode, ...] = get_args(IndexCode)
"""In the order of their selectors; of equally short ones the first is chosen."""


def index_bits(d: int) -> int:
    """I(d), bits that tell ``d`` coordinates apart."""
    return (d - 1).bit_length()


def sizes(gaps: Tensor, held: Tensor | None, d: int) -> Tensor:
    """Bits of every code, int64 ``[..., len(CODES)]``.

    Args:
        gaps: ``[..., k]``, 1 or more.
        held: ``[..., k]`` which of the gaps there are; all by default.
        d: number of coordinates.
    """
    by = elias.code_lengths(gaps)
    count = gaps.new_full(gaps.shape[:-1], gaps.shape[-1]) if held is None else held.sum(-1)
    lengths = [by["gamma"], by["delta"], by["omega"]]
    sums = [(length if held is None else length * held).sum(-1) for length in lengths]
    return torch.stack([count * index_bits(d), torch.full_like(count, d), *sums], -1)


def gaps_of(index: Tensor) -> Tensor:
    """Gaps ``[..., k]`` of ascending indices."""
    return torch.diff(index, prepend=index.new_full((*index.shape[:-1], 1), -1))


def dense_gaps(held: Tensor) -> Tensor:
    """Gaps ``[..., d]`` at the coordinates that are held; meaningless, but 1 or more, at the others."""
    here = torch.arange(held.shape[-1], device=held.device)
    last = torch.cummax(torch.where(held, here, -1), -1).values
    before = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], -1)
    return here - before


def write(index: np.ndarray, d: int, code: IndexCode) -> Bits:
    """The indices in a code."""
    if code == "packed":
        return bits.pack(index, index_bits(d)) if d > 1 else Bits(np.zeros(0, np.uint8), 0)
    if code == "bitmap":
        held = np.zeros(d, bool)
        held[index] = True
        return Bits(np.packbits(held), d)
    return bits.pack(*elias.codewords(np.diff(index, prepend=-1), code))


def read(buffer: np.ndarray, stop: int, k: int, d: int, code: IndexCode) -> tuple[np.ndarray, int]:
    """``k`` ascending indices below ``d`` from the start of a ``bits.padded`` buffer, and the bit behind them.

    Raises:
        ValueError: they do not end by bit ``stop``, do not ascend, or reach ``d``.
    """
    size = k * index_bits(d) if code == "packed" else d
    if code in ("packed", "bitmap"):
        if size > stop:
            raise ValueError(f"truncated message: {size} bits of indices ({code}) expected, {stop} there")
        index = bits.fixed(buffer, 0, k, index_bits(d)) if code == "packed" else _read_bitmap(buffer, d)
    else:
        gaps, size = elias.read(buffer, 0, stop, k, code)  # type: ignore[arg-type]
        index = np.cumsum(gaps) - 1
    if len(index) != k:
        raise ValueError(f"a bitmap of {len(index)} coordinates in a message of {k}")
    if k and (index[-1] >= d or (np.diff(index) <= 0).any()):
        raise ValueError(f"indices of a message do not ascend, or reach {d}")
    return index, size


def _read_bitmap(buffer: np.ndarray, d: int) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(buffer[: -(-d // 8)], count=d))
