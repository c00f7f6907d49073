"""Strings of bits, most significant bit first, the last byte filled with zeros; in numpy, a block at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 2**14
"""Codewords packed at a time, so that intermediate results stay in the processor's cache."""
PADDING = 16
"""Zero bytes behind a buffer that `words` reads."""


class Bits(NamedTuple):
    """``size`` bits in ``-(-size // 8)`` bytes (uint8)."""

    data: np.ndarray
    size: int


def pack(codes: np.ndarray, lengths: np.ndarray) -> Bits:
    """The codewords ``codes`` one after the other, each in the lowest ``lengths`` (1 to 64) bits of its number."""
    total = int(lengths.sum())
    out = np.zeros(total // 64 + 2, np.uint64)
    at = 0
    for start in range(0, len(codes), BLOCK):
        block, width = _joined(codes[start : start + BLOCK].astype(np.uint64), lengths[start : start + BLOCK])
        ends = np.cumsum(width) + at
        _place(out, block, ends - width, width)
        at = int(ends[-1])
    return Bits(out.astype(">u8").view(np.uint8)[: -(-total // 8)], total)


def pack_fixed(numbers: np.ndarray, width: int) -> Bits:
    """Numbers of ``width`` (0 to 64) bits each."""
    together = next((n for n in (1, 2, 4, 8) if n * width % 8 == 0 and n * width <= 64), 0)
    if not together:
        return pack(numbers, np.full(len(numbers), width))
    out = [np.zeros(0, np.uint8)]
    for start in range(0, len(numbers), BLOCK):            # so many together are whole bytes
        block = numbers[start : start + BLOCK].astype(np.uint64)
        block = np.append(block, np.zeros(-len(block) % together, np.uint64))
        joined = block[::together]
        for i in range(1, together):
            joined = (joined << np.uint64(width)) | block[i::together]
        size = width * together // 8
        out.append(joined.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - size :].ravel())
    return Bits(np.concatenate(out)[: -(-len(numbers) * width // 8)], len(numbers) * width)


def _joined(codes: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring codewords as one, as long as two are sure to fit in 64 bits."""
    longest = int(width.max())
    while 2 * longest <= 64 and len(codes) > 1:
        if len(codes) % 2:
            codes, width = np.append(codes, np.uint64(0)), np.append(width, 0)
        second = width[1::2]
        codes, width = (codes[::2] << second.astype(np.uint64)) | codes[1::2], width[::2] + second
        longest *= 2
    return codes, width


def _place(out: np.ndarray, codes: np.ndarray, starts: np.ndarray, width: np.ndarray) -> None:
    """Write codewords into 64-bit words that are still zero from the first start on."""
    word, room = starts >> 6, 64 - (starts & 63) - width   # room is negative where a codeword reaches the next word
    across = np.flatnonzero(room < 0)
    shifted = codes << np.maximum(room, 0).astype(np.uint64)
    if len(across):
        shifted[across] = codes[across] >> (-room[across]).astype(np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    out[word[first]] |= np.bitwise_or.reduceat(shifted, first)
    out[word[across] + 1] |= codes[across] << (64 + room[across]).astype(np.uint64)


def join(head: Bits, tail: bytes) -> bytes:
    """The bits of ``head``, then whole bytes, with no gap between them."""
    shift = head.size & 7
    if not shift or not tail:
        return head.data.tobytes() + tail
    follow = np.frombuffer(tail, np.uint8)
    joined = np.zeros(len(head.data) + len(follow), np.uint8)
    joined[: len(head.data)] = head.data
    joined[len(head.data) - 1 : -1] |= follow >> shift
    joined[len(head.data) :] |= follow << (8 - shift)
    return joined[: -(-(head.size + 8 * len(follow)) // 8)].tobytes()


def padded(data: bytes) -> np.ndarray:
    """The bytes with ``PADDING`` zeros behind, uint8."""
    buffer = np.zeros(len(data) + PADDING, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    return buffer


def words(buffer: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The 64 bits from each of the bit positions ``at`` on, as uint64; ``buffer`` is `padded`."""
    byte, shift = at >> 3, (at & 7).astype(np.uint64)
    whole = np.ndarray(len(buffer) - 8, ">u8", buffer, strides=(1,))[byte].astype(np.uint64)
    rest = buffer[byte + 8].astype(np.uint64)
    out: np.ndarray = (whole << shift) | (rest >> (np.uint64(8) - shift))
    return out


def fixed(buffer: np.ndarray, start: int, count: int, width: int) -> np.ndarray:
    """``count`` numbers of ``width`` (0 to 32) bits from bit ``start`` on, int64."""
    if not width:
        return np.zeros(count, np.int64)
    out = np.empty(count, np.int64)
    for first in range(0, count, BLOCK):
        at = start + width * np.arange(first, min(first + BLOCK, count))
        out[first : first + len(at)] = (words(buffer, at) >> np.uint64(64 - width)).astype(np.int64)
    return out


def cut(buffer: np.ndarray, start: int, size: int) -> bytes:
    """``size`` whole bytes from bit ``start`` on."""
    byte, shift = start >> 3, start & 7
    if not shift:
        return buffer[byte : byte + size].tobytes()
    out: np.ndarray = (buffer[byte : byte + size] << shift) | (buffer[byte + 1 : byte + size + 1] >> (8 - shift))
    return out.tobytes()
