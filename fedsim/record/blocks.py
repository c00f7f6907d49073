"""Memories of many clients in a checkpoint: blocks of rows, of which a later checkpoint writes only the changed rows.

    block-00000.safetensors      ids: clients [m]; 0, 1, ...: the tensors of their memories [m, ...]

If two blocks hold the same client, the later one counts. A checkpoint links to the blocks that it shares with the one
before it (by hard links, or copies where the file system has none), so that each checkpoint is complete. The blocks
that one checkpoint wrote form a run, which is merged into the next run if that is not smaller, as in a log-structured
merge tree (O'Neil et al. 1996). So a checkpoint writes what has changed, and a row is rewritten O(log n) times at most.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsim.record.files import file_digest, sync
from fedsim.tree import build, leaves
from fedsim.values import Far

BLOCK_BYTES = 2**26
NONE = -1
Memories = Mapping[str, Mapping[int, Any]]
"""Memories of clients, trees by their numbers, by the memory's name."""
PutRows = Callable[[Tensor], Sequence[Any]]
"""Places the rows of a stack ``[m, ...]``; see ``fedsim.engine.memory.Memory``."""


def copies(stack: Tensor) -> Sequence[Tensor]:
    """The rows of a stack, each with memory of its own; a view would keep the whole stack alive."""
    return [row.clone() for row in stack.unbind()]


class File(NamedTuple):
    """A block on disk: the run that wrote it, and its SHA-256."""

    path: Path
    run: int
    digest: str


class Stored(NamedTuple):
    """What a checkpoint holds of one memory.

    Attributes:
        files: its blocks, in order.
        nodes: its clients.
        owner: the run that holds the current row of each client, int64 ``[n]``.
        rows: weak references to the tensors of the rows, by column; a row with other tensors has changed.
    """

    files: list[File]
    nodes: list[int]
    owner: np.ndarray
    rows: list[list[ref[Any]]]


class History:
    """What the last checkpoint of this process holds. With a new history, the next checkpoint is written in full."""

    def __init__(self) -> None:
        self._stored: dict[str, Stored] = {}

    def write(self, folder: Path, memories: Memories) -> dict[str, Stored]:
        """Write the blocks of a checkpoint into ``folder``; give the result to `saved` when it is in place.

        Raises:
            OSError: writing failed.
        """
        new, count = dict[str, Stored](), 0
        for name, rows in memories.items():
            new[name] = _write(folder, count, self._stored.get(name), rows)
            count += len(new[name].files)
        return new

    def saved(self, stored: dict[str, Stored], folder: Path) -> None:
        """Note that a checkpoint, written elsewhere by `write`, is in ``folder``."""
        self._stored = {
            name: of._replace(files=[file._replace(path=folder / file.path.name) for file in of.files])
            for name, of in stored.items()
        }


def _write(folder: Path, first: int, before: Stored | None, rows: Mapping[int, Any]) -> Stored:
    nodes, columns = list(rows), _columns(rows)
    if before is None or not _continues(before, nodes, columns):
        before = Stored([], [], np.zeros(0, np.int64), [[] for _ in columns])
    owner = np.r_[before.owner, np.full(len(nodes) - len(before.owner), NONE)]
    for was, now in zip(before.rows, columns, strict=True):
        same = np.fromiter((old() is leaf for old, leaf in zip(was, now, strict=False)), bool, len(was))
        owner[: len(was)][~same] = NONE
    changed = np.flatnonzero(owner == NONE)
    runs = _shared(before.files, owner, len(changed))
    files = [_link(file, folder / _name(first + k)) for k, file in enumerate(before.files) if file.run < runs]
    todo = np.flatnonzero((owner == NONE) | (owner >= runs))
    todo = todo[np.argsort(np.array(nodes, np.int64)[todo])]
    for ids, stacks in _stacks(nodes, columns, todo):
        path = folder / _name(first + len(files))
        files.append(File(path, runs, _save(path, ids, stacks)))
    owner[todo] = runs
    return Stored(files, nodes, owner, [_noted(*pair, changed) for pair in zip(before.rows, columns, strict=True)])


def _columns(rows: Mapping[int, Any]) -> list[list[Any]]:
    """The first tensor of every row, the second one of every row, and so on."""
    if isinstance(next(iter(rows.values()), None), Tensor | Far):
        return [list(rows.values())]                       # a shortcut: no list for every row
    return [list(column) for column in zip(*map(leaves, rows.values()), strict=True)]


def _continues(before: Stored, nodes: list[int], columns: list[list[Any]]) -> bool:
    known = len(before.nodes)
    there = all(file.path.exists() for file in before.files)
    return there and nodes[:known] == before.nodes and len(columns) == len(before.rows)


def _noted(was: list[ref[Any]], now: list[Any], changed: np.ndarray) -> list[ref[Any]]:
    noted = was + list(map(ref, now[len(was) :]))
    for k in changed[changed < len(was)].tolist():
        noted[k] = ref(now[k])
    return noted


def _shared(files: list[File], owner: np.ndarray, size: int) -> int:
    """Number of runs that are kept if ``size`` rows have changed. The last run is merged if it has no more current rows
    than are written anyway.
    """
    runs = files[-1].run + 1 if files else 0
    count = np.bincount(owner[owner != NONE], minlength=runs)
    while size and runs and count[runs - 1] <= size:
        runs -= 1
        size += int(count[runs])
    return runs


def _link(file: File, path: Path) -> File:
    try:
        path.hardlink_to(file.path)
    except OSError:                                        # a file system without them
        shutil.copyfile(file.path, path)
        sync(path)
    return file._replace(path=path)


def _stacks(
    nodes: list[int], columns: list[list[Any]], todo: np.ndarray
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Split clients and their tensors into blocks. Tensors that are stored elsewhere may be saved in several layouts,
    each of which has blocks of its own.
    """
    row = sum(column[0].shape.numel() * column[0].dtype.itemsize for column in columns)
    step = max(1, BLOCK_BYTES // max(1, row))
    for some in (todo[start : start + step].tolist() for start in range(0, len(todo), step)):
        parts = [[column[k] for k in some] for column in columns]
        groups: dict[Any, list[int]] = {(): list(range(len(some)))}
        if isinstance(parts[0][0], Far):
            parts, groups = [[leaf.saved() for leaf in part] for part in parts], {}
            for at, leaves_of in enumerate(zip(*parts, strict=True)):
                groups.setdefault(tuple((leaf.shape, leaf.dtype) for leaf in leaves_of), []).append(at)
        for group in groups.values():
            stacks = [torch.stack([part[at] for at in group]).detach().cpu() for part in parts]
            yield [nodes[some[at]] for at in group], stacks


def _save(path: Path, ids: list[int], columns: list[Tensor]) -> str:
    save_file({"ids": torch.tensor(ids), **{str(k): column for k, column in enumerate(columns)}}, path)
    sync(path)
    return file_digest(path)


def _name(number: int) -> str:
    return f"block-{number:05d}.safetensors"


class Block(NamedTuple):
    """A block that has been read: the clients, and their stacked tensors ``[m, ...]``."""

    ids: list[int]
    columns: list[Tensor]


def paths(folder: Path, counts: Sequence[int]) -> Iterator[list[Path]]:
    """The files of consecutive memories, which have ``counts`` blocks."""
    numbers = iter(range(sum(counts)))
    return ([folder / _name(next(numbers)) for _ in range(count)] for count in counts)


class OpenBlocks:
    """The open files of one memory, which are read when they are needed; later blocks count."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(path, framework="pt") for path in files]

    def __iter__(self) -> Iterator[Block]:
        for file in self._files:
            count = len(file.keys()) - 1  # type: ignore[no-untyped-call]
            ids: Tensor = file.get_tensor("ids")  # type: ignore[no-untyped-call]
            yield Block(ids.tolist(), [file.get_tensor(str(k)) for k in range(count)])  # type: ignore[no-untyped-call]


def read(blocks: Iterable[Block], like: Any, device: torch.device, put_rows: PutRows = copies) -> dict[int, Any]:
    """Rows of all clients, in their order: trees like ``like``, with their tensors placed by ``put_rows``.

    Args:
        blocks: they are read twice.
        like: a row; None for rows that are tuples of tensors.
        device: where tensors are made.
        put_rows: places them.
    """
    last = {node: number for number, block in enumerate(blocks) for node in block.ids}
    rows = dict[int, Any]()
    for number, block in enumerate(blocks):
        current = [k for k, node in enumerate(block.ids) if last[node] == number]
        some: Any = slice(None) if len(current) == len(block.ids) else current
        columns = [put_rows(column[some].to(device)) for column in block.columns]
        made: Iterable[Any] = zip(*columns, strict=True)
        if like is not None:
            made = map(partial(build, like), map(iter, made))
        rows.update(zip((block.ids[k] for k in current), made, strict=True))
    return {node: rows[node] for node in sorted(rows)}
