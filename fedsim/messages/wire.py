"""Wire format of messages: their serialisation, and their size for the ledger.

A message is a version (1 byte) and a tree. A tree is one of these, distinguished by the first byte:

    a tensor               dtype code (1), number of axes (1), the length of each axis (4, little-endian), the values
    TUPLE                  number of branches (1), the branches
    PACKED                 dtype code of the vector (1), index of the compressor (1), length of the vector (4),
                           number of bytes (4), the bytes of the compressor's own codec

Both ends know the compressors, which are settings of the algorithm; messages contain no names of code.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.values import Compressor, Packed

Form: TypeAlias = list[Any]
"""Structure of a message without values, as JSON: ``["float32", [650]]`` for a tensor, ``["tuple", form, ...]`` for a
tuple, ``["packed", 0, "float32", 650]`` for a vector compressed by compressor number 0.
"""
VERSION = 2
TUPLE, PACKED = 254, 255
DEEPEST = 16
"""Maximum nesting depth of tuples in a message."""
_DTYPES = {
    torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3,
    torch.int64: 4, torch.int32: 5, torch.int16: 6, torch.int8: 7, torch.uint8: 8, torch.bool: 9,
}  # fmt: skip
_CODES = {code: dtype for dtype, code in _DTYPES.items()}
_PACKED_HEADER = struct.Struct("<BBII")


def form_of(tree: Any, compressors: Sequence[Compressor] = ()) -> Form:
    """Form of a message, whose tensors may be ``Far``."""
    if isinstance(tree, Packed):
        return ["packed", compressors.index(tree.by), _name(tree.dtype), tree.d]
    if isinstance(tree, tuple):
        return ["tuple", *(form_of(branch, compressors) for branch in tree)]
    return [_name(tree.dtype), list(tree.shape)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def nbytes(tree: Any, stacked: bool = False) -> Any:
    """Size of ``encode(tree)`` in bytes, without encoding; with ``stacked``, of every row of a tree of ``[c, ...]``
    tensors: one number if all rows have the same size, else int64 ``[c]``.
    """
    return 1 + _nbytes(tree, stacked)


def _nbytes(tree: Any, stacked: bool) -> Any:
    if isinstance(tree, Packed):
        size = tree.by.nbytes(tree.parts, tree.d)
        return 1 + _PACKED_HEADER.size + (size.cpu().numpy() if stacked else int(size))
    if isinstance(tree, tuple):
        return 2 + sum(_nbytes(branch, stacked) for branch in tree)
    shape = tree.shape[1:] if stacked else tree.shape
    return 2 + 4 * len(shape) + int(np.prod(shape)) * tree.element_size()


def paper_bits(tree: Any, stacked: bool = False) -> Any:
    """Size in bits as papers count them, without headers and indices: 32 for a floating-point number. One number, or
    ``[c]`` as in ``nbytes``.
    """
    if isinstance(tree, Packed):
        bits = tree.by.paper_bits(tree.parts, tree.d)
        return bits.cpu().numpy() if stacked else int(bits)
    if isinstance(tree, tuple):
        return sum(paper_bits(branch, stacked) for branch in tree)
    width = 32 if tree.is_floating_point() else 1 if tree.dtype == torch.bool else 8 * tree.element_size()
    return width * int(np.prod(tree.shape[1:] if stacked else tree.shape))


def encode(tree: Any, compressors: Sequence[Compressor] = ()) -> bytes:
    """Serialise a message; ``compressors`` are those of its vectors, in an order that both ends agree on."""
    parts = [bytes([VERSION])]
    _write(tree, compressors, parts)
    return b"".join(parts)


def _write(tree: Any, compressors: Sequence[Compressor], parts: list[bytes]) -> None:
    if isinstance(tree, Packed):
        data = tree.by.encode(tree.parts, tree.d)
        header = _PACKED_HEADER.pack(_DTYPES[tree.dtype], compressors.index(tree.by), tree.d, len(data))
        parts += [bytes([PACKED]), header, data]
    elif isinstance(tree, tuple):
        if len(tree) > 255:
            raise ValueError(f"a message of {len(tree)} tensors; expected 255 at most: stack those of one shape")
        parts.append(bytes([TUPLE, len(tree)]))
        for branch in tree:
            _write(branch, compressors, parts)
    else:
        parts.append(struct.pack(f"<BB{tree.dim()}I", _DTYPES[tree.dtype], tree.dim(), *tree.shape))
        parts.append(tree.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def decode(
    data: bytes, compressors: Sequence[Compressor] = (), longest: int = 0, form: Form | None = None
) -> Any:
    """Parse a message, NamedTuples as tuples. Input is untrusted: any malformed message is a ValueError, and so is one
    that is not as ``encode`` writes what it holds, so that a message has one encoding.

    Args:
        data: the bytes.
        compressors: the compressors passed to ``encode``.
        longest: maximum length of a decompressed vector; bounds the memory that a short vector can allocate.
        form: the form of the message; another one is refused before anything of it is decompressed.
    """
    if not data or data[0] != VERSION:
        raise ValueError(f"expected a message of version {VERSION}, got {data[:2]!r} ({len(data)} bytes)")
    tree, at = _read(data, 1, compressors, longest, 0, form)
    if at != len(data):
        raise ValueError(f"over-long message: {len(data) - at} bytes after the last tensor")
    return tree


def _read(
    data: bytes, at: int, compressors: Sequence[Compressor], longest: int, depth: int, form: Form | None
) -> tuple[Any, int]:
    if data[at : at + 1] == bytes([PACKED]):
        return _read_packed(data, at + 1, compressors, longest, form)
    if data[at : at + 1] == bytes([TUPLE]):
        if at + 1 == len(data) or depth == DEEPEST:
            raise ValueError(f"at byte {at}: a tuple without its length, or more than {DEEPEST} within each other")
        branches, count = [], data[at + 1]
        if form is not None and (form[0] != "tuple" or len(form) != count + 1):
            raise ValueError(f"a tuple of {count} at byte {at}; expected the form {form!s:.200}")
        at += 2
        for k in range(count):
            branch, at = _read(data, at, compressors, longest, depth + 1, None if form is None else form[k + 1])
            branches.append(branch)
        return tuple(branches), at
    start = at
    dtype, shape, at = _header(data, at)
    _expect([_name(dtype), list(shape)], form, start)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if at + size > len(data):
        raise ValueError(f"truncated message: a tensor of shape {shape} needs {size} bytes, {len(data) - at} are left")
    return _tensor(memoryview(data)[at : at + size], dtype, shape), at + size


def _expect(found: Form, form: Form | None, at: int) -> None:
    if form is not None and found != form:
        raise ValueError(f"the form {found!s:.200} at byte {at}; expected {form!s:.200}")


def _read_packed(
    data: bytes, at: int, compressors: Sequence[Compressor], longest: int, form: Form | None
) -> tuple[Packed, int]:
    if at + _PACKED_HEADER.size > len(data):
        raise ValueError(f"truncated message: no whole header of a compressed vector at byte {at} of {len(data)}")
    code, which, d, size = _PACKED_HEADER.unpack_from(data, at)
    at += _PACKED_HEADER.size
    if code not in _CODES or not _CODES[code].is_floating_point or which >= len(compressors):
        raise ValueError(
            f"a compressed vector of dtype code {code} by compressor {which}; expected a floating-point type, and one"
            f" of {len(compressors)} compressors"
        )
    _expect(["packed", which, _name(_CODES[code]), d], form, at)
    if d > longest:
        raise ValueError(f"a compressed vector of length {d}; expected {longest} at most")
    if at + size > len(data):
        raise ValueError(f"truncated message: a compressed vector needs {size} bytes, {len(data) - at} are left")
    by, packed = compressors[which], data[at : at + size]
    parts = by.decode(packed, d, _CODES[code])
    if by.encode(parts, d) != packed:
        raise ValueError(f"the compressed vector at byte {at} is not as it is encoded; expected its one encoding")
    return Packed(by, parts, d), at + size


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
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
