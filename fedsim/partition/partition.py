"""A partition: which samples each client owns, with a hash that identifies the split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from fedsim.errors import PartitionError
from fedsim.record.files import atomic


class Partitioner(Protocol):
    """A rule that divides a data set among clients; implementations are frozen dataclasses of its parameters."""

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """Divide N samples among clients, a function of the arguments and of nothing else.

        Args:
            labels: ``[N]`` class labels; ``[N, T]`` or real numbers where there are no classes.
            natural: ``[N]`` natural owner of each sample, or None.
            seed: non-negative; another seed gives another draw.

        Raises:
            PartitionError: the request cannot be met; the message gives the largest feasible value.
        """
        ...


@dataclass(frozen=True, eq=False)
class Partition:
    """The samples of every client, in compressed row form. Arrays are read-only; compare partitions by ``hash``.

    Attributes:
        indices: ``[total]`` int64, the samples of client 0, then of client 1, and so on.
        offsets: ``[n + 1]`` int64; client i owns ``indices[offsets[i]:offsets[i + 1]]``.
        scheme: the partitioner's name, its parameters, the seed and what it had to do, as JSON-able values.
    """

    indices: np.ndarray
    offsets: np.ndarray
    scheme: Mapping[str, object]

    def __post_init__(self) -> None:
        for name in ("indices", "offsets"):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise PartitionError(f"{name} must be a vector of integers, got {array.dtype} of shape {array.shape}")
            if array.flags.writeable or array.base is not None or array.dtype != np.int64:
                array = array.astype(np.int64)             # a copy: nobody else can write to it
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        ends = self.offsets
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != len(self.indices) or (np.diff(ends) < 0).any():
            raise PartitionError(f"offsets must rise from 0 to the number of indices, {len(self.indices)}, got {ends}")
        if len(self.indices) and self.indices.min() < 0:
            raise PartitionError(f"indices must be 0 or more, got {self.indices.min()}")

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    def first(self, k: int) -> Partition:
        """The partition among its first ``k`` clients."""
        return self if k == self.n else Partition(self.indices[: self.offsets[k]], self.offsets[: k + 1], self.scheme)

    @property
    def sizes(self) -> np.ndarray:
        """``[n]`` int64, number of samples of each client."""
        return np.diff(self.offsets)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of indices and offsets as little-endian int64, the same on every platform."""
        digest = hashlib.sha256()
        for array in (self.indices, self.offsets):
            digest.update(array.astype("<i8", copy=False).data)
        return digest.hexdigest()

    def shard(self, i: int) -> np.ndarray:
        """Samples of client i, ``[sizes[i]]`` int64, read-only."""
        if not 0 <= i < self.n:
            raise PartitionError(f"there is no client {i}: the partition has clients 0 to {self.n - 1}")
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file (no pickle) in one step: a reader sees the old file or the whole new one."""
        text = {"scheme": json.dumps(self.scheme), "hash": self.hash}
        with atomic(Path(path)) as file:
            np.savez_compressed(file, indices=self.indices, offsets=self.offsets, **text)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Partition:
        """Load a file written by ``save``.

        Raises:
            PartitionError: no such file, not a partition, or its content does not have the hash stored with it.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                loaded = cls(arrays["indices"], arrays["offsets"], json.loads(str(arrays["scheme"])))
                stored = str(arrays["hash"])
        except FileNotFoundError:
            raise PartitionError(f"there is no partition file {os.fspath(path)}: give one that save() wrote") from None
        except Exception as error:  # broken bytes raise whatever zipfile, zlib, numpy and json raise on them
            fix = "partition the data again, or restore the file"
            raise PartitionError(f"{os.fspath(path)} is not a readable partition file ({error}): {fix}") from error
        if loaded.hash != stored:
            fix = "partition the data again, or restore the file"
            raise PartitionError(f"{os.fspath(path)} is corrupt: content {loaded.hash}, stored hash {stored}; {fix}")
        return loaded


class OwnSamples(Partition):
    """Partition of samples that are not here, as each client has its own: their numbers ``sizes [n]``."""

    def __init__(self, sizes: np.ndarray, scheme: Mapping[str, object]) -> None:
        object.__setattr__(self, "indices", np.empty(0, np.int64))
        object.__setattr__(self, "offsets", np.r_[0, np.cumsum(sizes)])
        object.__setattr__(self, "scheme", scheme)

    def first(self, k: int) -> Partition:
        """See ``Partition``."""
        return self if k == self.n else OwnSamples(self.sizes[:k], self.scheme)
