"""Elias' universal codes of the whole numbers n >= 1: gamma, delta and omega (IEEE Trans. Inf. Theory 21, 1975).

    gamma   floor(log2 n) zeros, then n in binary                                    2 floor(log2 n) + 1 bits
    delta   gamma of the number of binary digits of n, then these without the first
    omega   groups of binary digits, each the length of the next less 1; a zero ends

Numbers are below 2^32, so a codeword fits in 64 bits. Reading is vectorised: the length of the codeword that would
begin at each bit is looked up for all of them, then one walk over these lengths finds where codewords do begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fedsim.compress.bits import PADDING, words

Code: TypeAlias = Literal["gamma", "delta", "omega"]
STRIDE = 2**14
"""Bytes of a message in which codewords are sought at a time."""
_INVALID = 255
_ONE = np.uint64(1)
_KNOWN = 2**12                                             # codewords of numbers below this are looked up


def digits(n: Tensor) -> Tensor:
    """Binary digits of whole numbers n >= 1, int64: floor(log2 n) + 1."""
    return torch.frexp(n.double())[1].long()


def _length(size: int, code: Code) -> int:
    """Bits of the codeword of a number of ``size`` digits, which is all that they depend on."""
    if code == "gamma":
        return 2 * size - 1
    if code == "delta":
        return size + 2 * size.bit_length() - 2
    length = 1
    while size > 1:
        length, size = length + size, (size - 1).bit_length()
    return length


_LENGTHS = {code: torch.tensor([0] + [_length(size, code) for size in range(1, 33)]) for code in get_args(Code)}


def code_lengths(n: Tensor) -> dict[Code, Tensor]:
    """Bits of the codeword of each number, int64, by code."""
    size = digits(n)
    return {code: table[size] for code, table in _lengths_on(n.device).items()}


@lru_cache(maxsize=8)
def _lengths_on(device: torch.device) -> dict[Code, Tensor]:
    return {code: table.to(device) for code, table in _LENGTHS.items()}


def codewords(n: np.ndarray, code: Code) -> tuple[np.ndarray, np.ndarray]:
    """The codeword of each number and its length in bits, for ``bits.pack``."""
    known_words, known_lengths = _known(code)
    large = np.flatnonzero(n >= _KNOWN)
    if not len(large):
        return known_words[n], known_lengths[n]
    small = np.minimum(n, _KNOWN - 1)
    words, lengths = known_words[small], known_lengths[small]
    words[large], lengths[large] = _codewords(n[large], code)
    return words, lengths


@cache
def _known(code: Code) -> tuple[np.ndarray, np.ndarray]:
    """Codewords of the numbers below ``_KNOWN``, and their lengths; there is none for 0."""
    return tuple(np.insert(column, 0, 0) for column in _codewords(np.arange(1, _KNOWN), code))  # type: ignore[return-value]


def _codewords(n: np.ndarray, code: Code) -> tuple[np.ndarray, np.ndarray]:
    size = _digits(n)
    n = n.astype(np.uint64)
    if code == "gamma":
        return n, 2 * size - 1
    if code == "delta":
        rest = (size - 1).astype(np.uint64)
        return (size.astype(np.uint64) << rest) | (n ^ (_ONE << rest)), size + 2 * _digits(size) - 2
    words, length, m = np.zeros_like(n), np.ones(len(n), np.int64), n.copy()
    while (more := m > 1).any():
        size = _digits(m)
        words |= np.where(more, m << length.astype(np.uint64), 0).astype(np.uint64)
        length += np.where(more, size, 0)
        m = np.where(more, size - 1, 1).astype(np.uint64)
    return words, length


def _digits(n: np.ndarray) -> np.ndarray:
    return np.frexp(n.astype(np.float64))[1].astype(np.int64)


def _read_gamma(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    zeros = 32 - np.frexp((word >> np.uint64(32)).astype(np.float64))[1].astype(np.int64)
    bad = zeros > 31
    zeros = np.where(bad, 0, zeros)
    value = (word << zeros.astype(np.uint64)) >> (63 - zeros).astype(np.uint64)
    return value.astype(np.int64), np.where(bad, _INVALID, 2 * zeros + 1)


def _read_delta(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size, used = _read_gamma(word)
    bad = (used == _INVALID) | (size > 32)
    size, used = np.where(bad, 1, size), np.where(bad, 1, used)
    rest = (size - 1).astype(np.uint64)
    tail = ((word << used.astype(np.uint64)) >> _ONE) >> (np.uint64(63) - rest)
    return ((_ONE << rest) | tail).astype(np.int64), np.where(bad, _INVALID, used + size - 1)


def _read_omega(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, used, bad = np.ones(len(word), np.int64), np.zeros(len(word), np.int64), np.zeros(len(word), bool)
    for _ in range(6):
        left = word << used.astype(np.uint64)
        more = (left >> np.uint64(63)).astype(bool) & ~bad
        if not more.any():
            break
        bad |= more & (value > 31)
        more &= ~bad
        group = left >> (63 - np.where(more, value, 0)).astype(np.uint64)
        used, value = used + np.where(more, value + 1, 0), np.where(more, group.astype(np.int64), value)
    return value, np.where(bad, _INVALID, used + 1)


_READ: dict[Code, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "gamma": _read_gamma,
    "delta": _read_delta,
    "omega": _read_omega,
}


@cache
def _table(code: Code) -> np.ndarray:
    """Length of the codeword that begins with 16 given bits, uint8; 0 where it is longer than these."""
    _, length = _READ[code](np.arange(2**16, dtype=np.uint64) << np.uint64(48))
    return np.where(length <= 16, length, 0).astype(np.uint8)


def _lengths(buffer: np.ndarray, first: int, count: int, code: Code) -> bytes:
    """Length of the codeword that would begin at each bit of ``count`` bytes from byte ``first`` on."""
    window = np.zeros(count, np.uint32)
    for i in range(3):
        window = (window << np.uint32(8)) | buffer[first + i : first + i + count]
    beginning = (window[:, None] >> np.arange(8, 0, -1, dtype=np.uint32)).astype(np.uint16).ravel()
    length = _table(code)[beginning]
    long = np.flatnonzero(length == 0)
    if len(long):
        length[long] = _READ[code](words(buffer, 8 * first + long))[1]
    return length.tobytes()


def read(buffer: np.ndarray, start: int, stop: int, count: int, code: Code) -> tuple[np.ndarray, int]:
    """``count`` numbers, int64, from bit ``start`` of a `padded` buffer on, and the bit behind them.

    Raises:
        ValueError: they do not end by bit ``stop``, or a number is 2^32 or more.
    """
    found, end = [np.zeros(0, np.int64)], start
    for starts, behind in _walk(buffer, start, stop, count, code, signed=False):
        found.append(_READ[code](words(buffer, starts))[0])
        end = behind
    return np.concatenate(found), end


def read_signed(buffer: np.ndarray, start: int, stop: int, count: int, code: Code) -> tuple[np.ndarray, int]:
    """Like `read`, of triples (number, sign bit, number) ``[3, count]``."""
    found, end = [np.zeros((3, 0), np.int64)], start
    for starts, behind in _walk(buffer, start, stop, count, code, signed=True):
        first, length = _READ[code](words(buffer, starts))
        sign = (words(buffer, starts + length) >> np.uint64(63)).astype(np.int64)
        second, _ = _READ[code](words(buffer, starts + length + 1))
        found.append(np.stack([first, sign, second]))
        end = behind
    return np.concatenate(found, 1), end


def _walk(
    buffer: np.ndarray, start: int, stop: int, count: int, code: Code, signed: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """Bit positions of ``count`` codewords (or triples of two and a sign bit between them), and the bit behind them, a
    stretch of the buffer at a time.
    """
    stop, at, left = min(stop, 8 * (len(buffer) - PADDING)), start, count
    while left and at < stop:
        base = at & ~7
        size = min(STRIDE, len(buffer) - PADDING - (base >> 3))
        lengths = _lengths(buffer, base >> 3, size, code)
        end = 8 * size if base + 8 * size >= stop else 8 * size - 2 * _INVALID   # beyond, one might be cut off
        starts, at = _stretch(lengths, at - base, end, left, code, signed)
        left, at = left - len(starts), at + base
        yield np.array(starts, np.int64) + base, at
    if left or at > stop:
        raise ValueError(f"truncated message: {count - left} of {count} {code} codewords begin before bit {stop}")


def _stretch(lengths: bytes, at: int, end: int, most: int, code: Code, signed: bool) -> tuple[list[int], int]:
    """Bit positions at which codewords begin, from ``at`` to ``end``, and the bit behind the last."""
    starts: list[int] = []
    while at < end and len(starts) < most:
        starts.append(at)
        if (length := lengths[at]) == _INVALID:
            raise ValueError(f"a {code} codeword of a number of 2^32 or more")
        at += length
        if signed:
            at += 1
            if at >= len(lengths) or (length := lengths[at]) == _INVALID:
                raise ValueError(f"a {code} codeword is cut off, or of a number of 2^32 or more")
            at += length
    return starts, at
