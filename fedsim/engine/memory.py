"""Storage of client memories between rounds: on the model's device, in host memory, or in a file.

Rounds read whole rows and write new ones, so a row is stored when it is computed and fetched when its client
participates again. Values do not change.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from fedsim.engine.slabs import OnHost
from fedsim.errors import RunError
from fedsim.tree import StackedRows, build, leaves, tree_map
from fedsim.values import Far

T = TypeVar("T")
Place = Literal["device", "host", "disk"]


class Memory(Protocol):
    """Storage of tensors between rounds."""

    def put(self, value: Tensor) -> Tensor | Far:
        """Store a tensor; return it, or a handle that fetches it."""

    def put_rows(self, stack: Tensor) -> Sequence[Tensor | Far]:
        """Store the rows of a stack ``[c, ...]``, each for itself: none keeps the memory of the others."""


class OnDevice:
    """Storage on the device that computed the rows: the fastest, if they fit."""

    def put(self, value: Tensor) -> Tensor | Far:
        """See ``Memory``."""
        return value

    def put_rows(self, stack: Tensor) -> Sequence[Tensor | Far]:
        """See ``Memory``."""
        return [row.clone() for row in stack.unbind()]


class _DiskRow(Far):
    def __init__(self, disk: OnDisk, at: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._disk, self._at = disk, at

    def fetch(self) -> Tensor:
        return self.begin([self])()[0]

    @classmethod
    def begin(cls, rows: Sequence[Any]) -> Callable[[], Tensor]:
        first = rows[0]

        def arrived() -> Tensor:
            pinned = first.device.type == "cuda"
            stack = torch.empty(len(rows), *first.shape, dtype=first.dtype, pin_memory=pinned)
            for row, into in zip(rows, _bytes(stack), strict=True):
                row._disk.read(row._at, into)
            return stack.to(first.device, non_blocking=pinned)

        return arrived

    def __del__(self) -> None:
        self._disk.release(self._at, self.shape.numel() * self.dtype.itemsize)


def _bytes(stack: Tensor) -> list[memoryview]:
    """The bytes of each row of a contiguous stack on the host."""
    size, data = stack[0].nbytes, stack.reshape(-1).view(torch.uint8).numpy().data
    return [data[start : start + size] for start in range(0, size * len(stack), size)] if size else [data] * len(stack)


class OnDisk:
    """Storage in an unnamed temporary file, which disappears however the process ends.

    The operating system caches recently used parts of the file in free memory. The space of rows without references is
    reused.

    Args:
        folder: folder of the file; by default that of the system's temporary files (TMPDIR).
    """

    def __init__(self, folder: str | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  open while rows refer to it
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self.size = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def put(self, value: Tensor) -> Tensor | Far:
        """See ``Memory``."""
        return value if isinstance(value, Far) else self.put_rows(value.unsqueeze(0))[0]

    def put_rows(self, stack: Tensor) -> Sequence[Tensor | Far]:
        """See ``Memory``."""
        form = stack.shape[1:], stack.dtype, stack.device
        return [_DiskRow(self, self.write(row), *form) for row in _bytes(stack.detach().cpu().contiguous())]

    def write(self, data: memoryview) -> int:
        """Store bytes, and return their offset."""
        free = self._free[len(data)]
        at = free.pop() if free else self.size
        self.size = max(self.size, at + len(data))
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], at + written)
        except OSError as error:
            raise RunError(
                f"cannot write {len(data):,} bytes of client memory after {self.size:,}: {error.strerror}; set"
                " TMPDIR to a folder on a disk with more room"
            ) from error
        return at

    def read(self, at: int, into: memoryview) -> None:
        """Read what is stored at offset ``at``."""
        done = 0
        while done < len(into):
            done += os.preadv(self._file.fileno(), [into[done:]], at + done)

    def release(self, at: int, size: int) -> None:
        """Free the ``size`` bytes at offset ``at``."""
        self._free[size].append(at)


def placed(memory: Memory, nodes: Iterable[int], stacks: Any) -> dict[int, Any]:
    """Trees of nodes, given as one tree of stacks ``[c, ...]``, in a memory."""
    columns = [memory.put_rows(stack) for stack in leaves(stacks)]
    return {node: build(stacks, iter([column[k] for column in columns])) for k, node in enumerate(nodes)}


def stored(memory: Memory, rows: Mapping[int, Any], n: int) -> Mapping[int, Any]:
    """Trees of some of ``n`` nodes in a memory; on the device a stack of all stays as it is."""
    if not isinstance(rows, StackedRows):
        return {node: tree_map(memory.put, row) for node, row in rows.items()}
    return rows if stays(memory) and len(rows) == n else placed(memory, rows, rows.tree)


def stays(memory: Memory) -> bool:
    """Whether rows stay where they are computed."""
    return isinstance(memory, OnDevice)


class Prefetched(Generic[T]):
    """What clients, or groups of them, read: fetched one before it is needed, while the last one computes.

    Args:
        begin: begins to fetch what number k reads; returns a function that waits for it.
        count: how many there are.
    """

    def __init__(self, begin: Callable[[int], Callable[[], T]], count: int) -> None:
        self._begin, self._count = begin, count
        self._begun: dict[int, Callable[[], T]] = {}
        self._next, self._lock = 0, threading.Lock()       # of clients that run on threads

    def __call__(self, k: int) -> T:
        """What number ``k`` reads; to be asked for once."""
        with self._lock:
            for now in range(self._next, min(k + 2, self._count)):
                self._begun[now], self._next = self._begin(now), now + 1
            arrived = self._begun.pop(k)
        return arrived()


def on_host(device: torch.device) -> Memory:
    """The host's memory for a GPU's rows; on a CPU it is the device's."""
    return OnHost(device) if device.type == "cuda" else OnDevice()


MEMORIES: dict[str, Callable[[torch.device], Memory]] = {
    "device": lambda device: OnDevice(), "host": on_host, "disk": lambda device: OnDisk(),
}  # fmt: skip
"""Storage by name, as in ``Execution.memory``, for rows of a device."""
