"""Any compressor, a block of coordinates at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import at_least_one
from fedsim.compress.checks import needs_no_layers
from fedsim.compress.quantise import QSGD
from fedsim.compress.reader import Reader, varint, varint_size
from fedsim.compress.sparse import Parts
from fedsim.seeds import uniform_of
from fedsim.values import Compressor, Packed, Site


def _message(reader: Reader) -> bytes:
    """The next message, after its length."""
    return reader.take(reader.varint("length of a block's message", reader.left))


@dataclass(frozen=True)
class _Block:
    """The site of blocks number ``first`` to ``stop`` (one, if without), each with randomness of its own."""

    at: Site
    first: int
    stop: int | None = None

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """A block holds no whole layers."""
        return ()

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``; ``[..., blocks]``, or ``[...]`` of one."""
        keys = (uniform_of(self.at.key(tag), self.stop or self.first + 1) * 2.0**53).long()
        return keys[..., self.first] if self.stop is None else keys[..., self.first :]


@dataclass(frozen=True)
class Blockwise:
    """A compressor applied to blocks of coordinates, each with a norm or scale of its own.

    alpha is the smallest, omega the largest over the blocks. The last block holds what is left over. A compressor with
    messages of one length can write and read all blocks at once, by ``encode_rows`` and ``decode_rows``, as Sign does.

    Wire format: for each block the length of its message (1 to 5 bytes, 7 bits each), and the message.

    Args:
        compressor: compressor of each block; it cannot need layers.
        size: coordinates of a block.
    """

    compressor: Compressor = field(default_factory=QSGD)
    size: int = 512

    def __post_init__(self) -> None:
        at_least_one(self, "size")
        needs_no_layers(self)

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: those of the whole blocks, each ``[blocks, ...]``, then those of the rest."""
        d = x.shape[-1]
        blocks, rest = divmod(d, self.size)
        parts: Parts = ()
        if blocks:
            whole = x[..., : d - rest].reshape(*x.shape[:-1], blocks, self.size)
            parts += self.compressor.compress(whole, _Block(at, 0, blocks)).parts
        if rest:
            parts += self.compressor.compress(x[..., d - rest :], _Block(at, blocks)).parts
        return Packed(self, parts, d)

    def _split(self, parts: Parts, d: int) -> tuple[Parts, Parts]:
        """The parts of the whole blocks, and of the rest; empty where there are none."""
        blocks, rest = divmod(d, self.size)
        count = len(parts) // ((blocks > 0) + (rest > 0))
        return parts[: count if blocks else 0], parts[count if blocks else 0 :]

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        whole, rest = self._split(parts, d)
        out = [self.compressor.unpack(whole, self.size).flatten(-2)] if whole else []
        return torch.cat([*out, self.compressor.unpack(rest, d % self.size)] if rest else out, -1)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        sizes = [s + varint_size(s) for s in self._of_each(self.compressor.nbytes, parts, d)]
        return torch.cat(sizes, -1).sum(-1)

    def _of_each(self, what: Callable[[Parts, int], Tensor], parts: Parts, d: int) -> list[Tensor]:
        """A number of each block: ``[..., blocks]`` of the whole ones, ``[..., 1]`` of the rest."""
        whole, rest = self._split(parts, d)
        out = [what(whole, self.size)] if whole else []
        return [*out, what(rest, d % self.size).unsqueeze(-1)] if rest else out

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        whole, rest = self._split(parts, d)
        messages = [self.compressor.encode(rest, d % self.size)] if rest else []
        if whole and (encode_rows := getattr(self.compressor, "encode_rows", None)):
            rows = encode_rows(whole, self.size)           # all at once
            head = np.frombuffer(varint(rows.shape[1]), np.uint8)
            start = np.concatenate([np.tile(head, (len(rows), 1)), rows], 1).tobytes()
        else:
            of_each = [self.compressor.encode(row, self.size) for row in (zip(*whole, strict=True) if whole else ())]
            start, messages = b"", of_each + messages
        return start + b"".join(varint(len(message)) + message for message in messages)

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        reader, (blocks, rest) = Reader(data), divmod(d, self.size)
        decode_rows = getattr(self.compressor, "decode_rows", None)
        if blocks and decode_rows:
            whole: Parts = decode_rows(self._rows(reader, blocks), self.size, dtype)
        else:
            rows = [self.compressor.decode(_message(reader), self.size, dtype) for _ in range(blocks)]
            if len({tuple(part.shape for part in row) for row in rows}) > 1:
                raise ValueError("the blocks of a message hold unequal numbers of values")
            whole = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        last = self.compressor.decode(_message(reader), rest, dtype) if rest else ()
        if reader.left:
            raise ValueError(f"over-long message: {reader.left} bytes after the last block")
        return whole + last

    def _rows(self, reader: Reader, blocks: int) -> np.ndarray:
        """Messages of one length, bytes ``[blocks, m]``, each after that length."""
        start = reader.at
        size = reader.varint("length of a block's message", reader.left)
        head = reader.at - start
        reader.at = start
        rows = np.frombuffer(reader.take(blocks * (head + size)), np.uint8).reshape(blocks, head + size)
        if (rows[:, :head] != rows[0, :head]).any():
            raise ValueError("the messages of the blocks have unequal lengths")
        return rows[:, head:]

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """Sum over the blocks."""
        return torch.cat(self._of_each(self.compressor.paper_bits, parts, d), -1).sum(-1)

    def alpha(self, d: int) -> float | None:
        """The smallest."""
        found = [self.compressor.alpha(size) for size in self._sizes(d)]
        known = [a for a in found if a is not None]
        return min(known) if len(known) == len(found) else None

    def omega(self, d: int) -> float | None:
        """The largest."""
        found = [self.compressor.omega(size) for size in self._sizes(d)]
        known = [w for w in found if w is not None]
        return max(known) if len(known) == len(found) else None

    def _sizes(self, d: int) -> set[int]:
        blocks, rest = divmod(d, self.size)
        return ({self.size} if blocks else set()) | ({rest} if rest else set())
