"""Tensors in Ray's object store: numpy arrays, which every process of a machine reads in place (zero copy).

Stored values are immutable. They are nevertheless copied before PyTorch uses them: an in-place step on the store's
memory would change the value for every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import StateLostError
from fedsim.messages.sums import Subtree
from fedsim.tree import build, leaves, rebuilt
from fedsim.values import Far


def to_array(t: Tensor) -> np.ndarray:
    """Copy a tensor to a host array; bfloat16, which numpy lacks, becomes 16-bit integers."""
    t = t.detach().cpu().contiguous()
    array: np.ndarray = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()
    return array


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Copy an array of `to_array` to a new tensor; to a GPU by way of pinned memory, without waiting for it."""
    gpu = device is not None and device.type == "cuda"
    t = torch.empty(array.shape, dtype=torch.int16 if dtype == torch.bfloat16 else dtype, pin_memory=gpu)
    np.copyto(t.numpy(), array)
    return (t.view(dtype) if t.dtype != dtype else t).to(device or "cpu", non_blocking=gpu)


def shared(array: np.ndarray) -> Tensor:
    """Wrap an array of the store as a tensor without copying, for read-only values such as samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # PyTorch warns that it is not writable
        return torch.from_numpy(array)


class FarRow(Far):
    """A tensor of a client's memory in the object store."""

    def __init__(self, ray: ModuleType, ref: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.ref, self.shape, self.dtype, self.device = ref, shape, dtype, device
        self._ray = ray

    def __deepcopy__(self, memo: dict[int, Any]) -> FarRow:
        return self                                        # immutable

    def fetch(self) -> Tensor:
        """See ``Far``.

        Raises:
            StateLostError: the machine that held it is lost.
        """
        try:
            return to_tensor(self._ray.get(self.ref), self.dtype, self.device)
        except (self._ray.exceptions.ObjectLostError, self._ray.exceptions.RayActorError) as error:
            raise StateLostError(f"a client's memory is lost with the machine that held it: {error}") from error


class ObjectStore:
    """``Memory`` in a session's object store: shared memory that Ray spills to disk when full."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray

    def put(self, value: Tensor | Far) -> Far:
        """See ``fedsim.engine.memory.Memory``."""
        if isinstance(value, Far):
            return value
        return FarRow(self._ray, self._ray.put(to_array(value)), value.shape, value.dtype, value.device)

    def put_rows(self, stack: Tensor) -> list[Far]:
        """See ``fedsim.engine.memory.Memory``."""
        return list(map(self.put, stack))


def arrays(tree: Any) -> list[np.ndarray]:
    """Copy the tensors of a tree to arrays, in order."""
    return [to_array(leaf) for leaf in leaves(tree)]


class LentRow(Far):
    """An array of the store passed to a worker; copied to a tensor when its client runs."""

    def __init__(self, array: np.ndarray, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = torch.Size(array.shape), dtype, device
        self._array = array

    def fetch(self) -> Tensor:
        """See ``Far``."""
        return to_tensor(self._array, self.dtype, self.device)


def lent_tree(like: Any, values: Sequence[np.ndarray], device: torch.device) -> Any:
    """A client's memory of the form ``like``, from arrays passed to a worker."""
    pairs = zip(values, leaves(like), strict=True)
    return build(like, iter([LentRow(value, leaf.dtype, device) for value, leaf in pairs]))


def far_tree(ray: ModuleType, like: Any, refs: Sequence[Any], device: torch.device) -> Any:
    """A client's memory of the form ``like``, from references to its tensors."""
    pairs = zip(refs, leaves(like), strict=True)
    return build(like, iter([FarRow(ray, ref, leaf.shape, leaf.dtype, device) for ref, leaf in pairs]))


class Sums(NamedTuple):
    """Serialisable sums over subtrees (``fedsim.messages.sums``)."""

    dtype: torch.dtype
    values: dict[Subtree, np.ndarray]


def sums_on_host(parts: Any) -> Any:
    """Replace the dictionaries in a result of ``fedsim.messages.stacked.partial_means`` by `Sums`."""
    if isinstance(parts, dict):
        dtype = next(iter(parts.values())).dtype
        return Sums(dtype, {key: to_array(total) for key, total in parts.items()})
    return rebuilt(parts, [sums_on_host(branch) for branch in parts])


def sums_of(parts: Any, device: torch.device) -> Any:
    """Inverse of `sums_on_host`; on the CPU the sums are not copied, and read-only."""
    if isinstance(parts, Sums):
        here = to_tensor if device.type != "cpu" or parts.dtype == torch.bfloat16 else lambda value, *_: shared(value)
        return {key: here(value, parts.dtype, device) for key, value in parts.values.items()}
    return rebuilt(parts, [sums_of(branch, device) for branch in parts])
