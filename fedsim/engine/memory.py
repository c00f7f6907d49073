"""Storage of client memories between rounds: on the model's device, in host memory, or in a file.

Rounds read whole rows and write new ones, so a row is stored when it is computed and fetched when its client
participates again. Values do not change.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fedsim.errors import RunError
from fedsim.tree import StackedRows, tree_map
from fedsim.values import Far

Place = Literal["device", "host", "disk"]


class Memory(Protocol):
    """Storage of tensors between rounds."""

    def put(self, value: Tensor) -> Tensor | Far:
        """Store a tensor; return it, or a handle that fetches it."""


class OnDevice:
    """Storage on the device that computed the rows: the fastest, if they fit."""

    def put(self, value: Tensor) -> Tensor | Far:
        """See ``Memory``."""
        return value


class _HostRow(Far):
    def __init__(self, value: Tensor) -> None:
        self.shape, self.dtype, self.device = value.shape, value.dtype, value.device
        self._value = value.cpu()

    def fetch(self) -> Tensor:
        return self._value.to(self.device)


class OnHost:
    """Storage of a GPU's rows in host memory."""

    def put(self, value: Tensor) -> Tensor | Far:
        """See ``Memory``."""
        return value if isinstance(value, Far) or value.device.type == "cpu" else _HostRow(value)


class _DiskRow(Far):
    def __init__(self, disk: OnDisk, value: Tensor) -> None:
        self.shape, self.dtype, self.device = value.shape, value.dtype, value.device
        self._disk, self._at = disk, disk.write(value)

    def fetch(self) -> Tensor:
        return self._disk.read(self._at, self.shape, self.dtype).to(self.device)

    def __del__(self) -> None:
        if hasattr(self, "_at"):                           # absent if the write failed
            self._disk.release(self._at, self.shape.numel() * self.dtype.itemsize)


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
        return value if isinstance(value, Far) else _DiskRow(self, value)

    def write(self, value: Tensor) -> int:
        """Store a tensor, and return its offset."""
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
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

    def read(self, at: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Read the tensor at offset ``at``."""
        value = torch.empty(shape, dtype=dtype)
        data = value.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(data):
            done += os.preadv(self._file.fileno(), [data[done:]], at + done)
        return value

    def release(self, at: int, size: int) -> None:
        """Free the ``size`` bytes at offset ``at``."""
        self._free[size].append(at)


def stored(memory: Memory, rows: Mapping[int, Any]) -> Mapping[int, Any]:
    """Trees of nodes, placed in a memory; on the device a stack of all stays as it is."""
    if isinstance(memory, OnDevice) and isinstance(rows, StackedRows):
        return rows
    return {node: tree_map(memory.put, row) for node, row in rows.items()}


MEMORIES: dict[str, Callable[[], Memory]] = {"device": OnDevice, "host": OnHost, "disk": OnDisk}
"""Storage by name, as in ``Execution.memory``."""
