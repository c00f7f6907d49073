"""Where the memories of clients live between rounds: on the model's device, in the host's memory, or in a file.

Rounds only ever read whole rows and write new ones, so a row is put away when it is made and fetched when its client
takes part again. Values do not change by it.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsim.errors import RunError
from fedsim.values import Far

Place = Literal["device", "host", "disk"]


class Memory(Protocol):
    """Puts tensors away."""

    def put(self, value: Tensor) -> Tensor | Far:
        """The value, or a handle that fetches it."""


class OnDevice:
    """Leaves rows where they were computed: the fastest, as long as all of them fit."""

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
    """Moves rows from a GPU to the host's memory."""

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
        if hasattr(self, "_at"):                           # not if writing it failed
            self._disk.release(self._at, self.shape.numel() * self.dtype.itemsize)


class OnDisk:
    """Moves rows to a temporary file that has no name, so that nothing is left of it however the process ends.

    The system keeps recently used parts of it in memory that is free anyway. Room of rows that nobody refers to any
    more is used again.

    Args:
        folder: where the file is made; that of the system's temporary files by default (TMPDIR).
    """

    def __init__(self, folder: str | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  as long as rows refer to it
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self.size = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def put(self, value: Tensor) -> Tensor | Far:
        """See ``Memory``."""
        return value if isinstance(value, Far) else _DiskRow(self, value)

    def write(self, value: Tensor) -> int:
        """Store a tensor; where it is."""
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
        """The tensor that was stored there."""
        value = torch.empty(shape, dtype=dtype)
        data = value.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(data):
            done += os.preadv(self._file.fileno(), [data[done:]], at + done)
        return value

    def release(self, at: int, size: int) -> None:
        """Forget what is stored there."""
        self._free[size].append(at)


MEMORIES: dict[str, Callable[[], Memory]] = {"device": OnDevice, "host": OnHost, "disk": OnDisk}
"""By the names under which an experiment asks for them."""
