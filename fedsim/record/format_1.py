"""Checkpoints of earlier versions, in which every tensor of a client's memory had a name: ``h.ids``, ``h.17.0``, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, takewhile

from torch import Tensor

from fedsim.record.blocks import Block

IDS = ".ids"


class OldRows:
    """Memories of one name, as blocks of one client each."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def __iter__(self) -> Iterator[Block]:
        for node in self._tensors[self._name + IDS].tolist():
            names = (f"{self._name}.{node}.{k}" for k in count())
            columns = [self._tensors[name][None] for name in takewhile(self._tensors.__contains__, names)]
            yield Block([node], columns)


def split(tensors: Mapping[str, Tensor]) -> tuple[list[str], dict[str, OldRows]]:
    """Names of the tensors that belong to no memory, and the memories, by name."""
    names = [name.removesuffix(IDS) for name in tensors if name.endswith(IDS)]
    memories = {name: OldRows(tensors, name) for name in names}
    rows = {f"{name}.{node}" for name in names for node in tensors[name + IDS].tolist()}
    return [name for name in tensors if not name.endswith(IDS) and name.rpartition(".")[0] not in rows], memories
