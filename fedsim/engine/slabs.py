"""Clients' memories in the host's pinned memory, beside a GPU that has no room for those of all clients.

Rows of one form lie in slabs ``[rows, ...]``, which are allocated as clients are first met. All copies are queued on a
stream of their own, which runs them one after the other: a row is read after it was written, and room that has become
free is written to after everybody has read it. The host waits for none of them, except to write a checkpoint.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.engine.machine import free_memory
from fedsim.errors import RunError
from fedsim.values import Far

SLAB_BYTES = 2**30
"""Bytes of a large slab, a power of two: PyTorch gives pinned memory in those."""
FIRST_ROWS = 16
"""Rows of the first slab, or some more; the next ones double what there is."""


class Position(NamedTuple):
    """Where a row lies; places are ordered as they lie in memory."""

    slab: int
    row: int


class Pool:
    """Rows of one form: their slabs, and the places that are free.

    Args:
        shape: of a row.
        dtype: of its numbers.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.size = max(1, shape.numel() * dtype.itemsize)
        self.slabs: list[Tensor] = []
        self.held = 0
        self._free: list[Position] = []                    # a heap
        self.returned: deque[Position] = deque()           # by handles that nobody holds any more, in any thread

    def take(self, count: int) -> list[Position]:
        """Some free places, the first ones, in order.

        Raises:
            RunError: the host has no room for more.
        """
        while self.returned:
            heapq.heappush(self._free, self.returned.popleft())
        while len(self._free) < count:
            self._grow(count - len(self._free))
        return [heapq.heappop(self._free) for _ in range(count)]

    def _grow(self, count: int) -> None:
        wanted = min(SLAB_BYTES, max(FIRST_ROWS * self.size, count * self.size, self.held))
        rows = max(1, (1 << (wanted - 1).bit_length()) // self.size)
        size, free = rows * self.size, free_memory(torch.device("cpu"))
        if size > free:
            raise self._full(size, f"{free:,} are free")
        try:
            slab = torch.empty(rows, *self.shape, dtype=self.dtype, pin_memory=True)
        except RuntimeError as error:
            raise self._full(size, str(error).splitlines()[0]) from error
        self._free += (Position(len(self.slabs), row) for row in range(rows))   # the last ones: it stays a heap
        self.slabs.append(slab)
        self.held += size

    def _full(self, size: int, why: str) -> RunError:
        return RunError(
            f"clients' memories of {self.size:,} bytes each need {size:,} more bytes of the host's memory, besides"
            f" {self.held:,} that they have: {why}; use --memory disk"
        )

    def parts(self, places: Sequence[Position]) -> Iterator[tuple[slice, Tensor]]:
        """Positions in ``places``, and the part of a slab with their rows; rows that lie side by side are one part."""
        start = 0
        for stop in range(1, len(places) + 1):
            slab, row = places[start]
            if stop == len(places) or places[stop] != (slab, row + stop - start):
                yield slice(start, stop), self.slabs[slab][row : row + stop - start]
                start = stop


class HostRow(Far):
    """A row of a slab."""

    __slots__ = ("_at", "_by", "_pool", "_written", "device", "dtype", "shape")

    def __init__(self, by: OnHost, pool: Pool, place: Position, written: Any) -> None:
        self.shape, self.dtype, self.device = pool.shape, pool.dtype, by.device
        self._by, self._pool, self._at, self._written = by, pool, place, written

    def __del__(self) -> None:
        self._pool.returned.append(self._at)

    def fetch(self) -> Tensor:
        """See ``Far``."""
        return self.begin([self])()[0]

    @classmethod
    def begin(cls, rows: Sequence[Any]) -> Callable[[], Tensor]:
        """See ``Far``."""
        by: OnHost = rows[0]._by
        return by.load(rows[0]._pool, [row._at for row in rows])

    def saved(self) -> Tensor:
        """See ``Far``: the value where it is."""
        self._written.synchronize()
        return self._pool.slabs[self._at.slab][self._at.row]


class OnHost:
    """``Memory`` of a GPU's rows in slabs of the host; see ``fedsim.engine.memory``.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pools: dict[tuple[torch.Size, torch.dtype], Pool] = {}
        self._copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()                      # of clients that run on threads

    def put(self, value: Tensor | Far) -> Tensor | Far:
        """See ``Memory``."""
        there = isinstance(value, Far) or value.device.type == "cpu"
        return value if there else self.put_rows(value.unsqueeze(0))[0]  # type: ignore[union-attr]

    def put_rows(self, stack: Tensor) -> Sequence[Tensor | Far]:
        """See ``Memory``."""
        if stack.device.type == "cpu":                     # as a method may make them
            return [row.clone() for row in stack.unbind()]
        stack = stack.contiguous()
        with self._lock:
            pool = self._pools.setdefault((stack.shape[1:], stack.dtype), Pool(stack.shape[1:], stack.dtype))
            places = pool.take(len(stack))
            self._copies.wait_stream(torch.cuda.current_stream(self.device))   # which computes the rows
            with torch.cuda.stream(self._copies):
                for at, part in pool.parts(places):
                    part.copy_(stack[at], non_blocking=True)
                written = self._copies.record_event()
            stack.record_stream(self._copies)              # its memory is used again after the copies
        return [HostRow(self, pool, place, written) for place in places]

    def load(self, pool: Pool, places: Sequence[Position]) -> Callable[[], Tensor]:
        """Begin to copy rows to the device; see ``Far.begin``."""
        with self._lock, torch.cuda.stream(self._copies):
            there = torch.empty(len(places), *pool.shape, dtype=pool.dtype, device=self.device)
            for at, part in pool.parts(places):
                there[at].copy_(part, non_blocking=True)
            loaded = self._copies.record_event()

        def arrived() -> Tensor:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(loaded)
            there.record_stream(here)
            return there

        return arrived
