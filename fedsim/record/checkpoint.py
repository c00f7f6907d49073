"""Checkpoints: named tensors, memories of clients and JSON; atomic, checksummed, without pickle.

    round-000120/shard-00000.safetensors     tensors, at most 256 MiB a file (a larger tensor has a file of its own)
    round-000120/block-00000.safetensors     memories of clients, see `fedsim.record.blocks`
    round-000120/manifest.json               {"content": {format, round, shards: [sha256, ...],
                                             memories: [[name, [sha256, ...]], ...], meta}, "sha256": ...}

Tensors may be given as functions, so that large ones are read, written and released shard by shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsim.errors import CheckpointError
from fedsim.record import format_1
from fedsim.record.blocks import Block, History, Memories, OpenBlocks, paths
from fedsim.record.files import file_digest, sync, write_atomic

FORMAT = 2
REPLACED = "-replaced.tmp"
"""Suffix of a checkpoint while a new one of the same round replaces it."""
SHARD_BYTES = 256 * 2**20

Source = Tensor | Callable[[], Tensor]


class CheckpointWarning(UserWarning):
    """A checkpoint was skipped because it is corrupt."""


class Loaded(NamedTuple):
    """A loaded checkpoint.

    Attributes:
        round: the last completed round.
        tensors: tensors by name, read from disk on each access.
        memories: blocks of clients' memories by name, read from disk on each access; see `fedsim.record.blocks.read`.
        meta: the ``meta`` of `save`.
    """

    round: int
    tensors: Mapping[str, Tensor]
    memories: Mapping[str, Iterable[Block]]
    meta: dict[str, Any]


def save(
    directory: Path,
    round: int,
    tensors: Mapping[str, Source],
    meta: Mapping[str, Any],
    *,
    memories: Memories | None = None,
    history: History | None = None,
    keep: int = 2,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write ``directory/round-000120``, then delete all but the newest ``keep`` checkpoints up to this round.

    Later rounds are deleted too: they were discarded when the run went back to an earlier one. Only the process that
    runs the seed may call this.

    Args:
        directory: created if missing.
        round: the last completed round.
        tensors: tensors of any type, shape and device, or functions that return them, by name.
        meta: JSON values, with lists instead of tuples and strings as keys.
        memories: memories of clients by name.
        history: what this process has written before; only memories that have changed since are written again.
        keep: checkpoints to keep, at least 1.
        shard_bytes: size of a file; peak memory is about twice that, or three times the largest tensor.

    Raises:
        CheckpointError: ``meta`` does not survive JSON, or writing fails; earlier checkpoints are untouched.
    """
    if keep < 1 or round < 0:
        raise CheckpointError(f"round is {round} and keep is {keep}; expected round >= 0 and keep >= 1")
    _check_meta(meta)
    temporary, history = directory / f"{_name(round)}.tmp", history or History()
    _remove_leftovers(directory)
    try:
        directory.mkdir(exist_ok=True)                     # not its parents: a run that was deleted stays so
        temporary.mkdir()
        shards = [
            _write_shard(temporary / _shard_name(index), shard)
            for index, shard in enumerate(_shards(tensors, shard_bytes))
        ]
        stored = history.write(temporary, memories or {})
        blocks = [[name, [file.digest for file in of.files]] for name, of in stored.items()]
        content = {"format": FORMAT, "round": round, "shards": shards, "memories": blocks, "meta": meta}
        write_atomic(temporary / "manifest.json", _json({"content": content, "sha256": _digest(content)}))
        path = _move_into_place(temporary, directory / _name(round))
        history.saved(stored, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            _remove_leftovers(directory)
        raise CheckpointError(
            f"cannot write the checkpoint of round {round} in {directory}: {error}; earlier ones are untouched. "
            "If the disk is full, free some space; then resume the run"
        ) from error
    for old in _except_newest(directory, round, keep):
        shutil.rmtree(old)
    _remove_leftovers(directory)
    return path


def load_latest(directory: Path, misfit: Callable[[Loaded], str | None] = lambda _: None) -> Loaded | None:
    """Read the newest valid checkpoint.

    Skipped with a `CheckpointWarning` are corrupt checkpoints, and those for which ``misfit`` returns a reason, as they
    do not fit the other files of the run.

    Only the process that runs the seed may call this: it removes what a killed `save` left behind.

    Returns:
        None if there is no checkpoint.

    Raises:
        CheckpointError: all checkpoints are corrupt or misfits.
    """
    _remove_leftovers(directory)
    tried = []
    for path, found in each(directory):
        if isinstance(found, Exception):
            kind, why = "corrupt checkpoint", str(found)
        elif (misfits := misfit(found)) is not None:
            kind, why = "checkpoint", misfits
        else:
            return found
        tried.append(f"{path.name}: {why}")
        warnings.warn(f"skipping the {kind} {path}: {why}", CheckpointWarning, stacklevel=2)
    if tried:
        raise CheckpointError(
            f"no valid checkpoint in {directory} ({'; '.join(tried)}); restore one, or remove the folder to start again"
        )
    return None


def each(directory: Path) -> Iterator[tuple[Path, Loaded | Exception]]:
    """Read all checkpoints, newest first: the path, and the content or the error."""
    for round, path in sorted(_checkpoints(directory).items(), reverse=True):
        try:
            found: Loaded | Exception = _load(path, round)
        except (CheckpointError, OSError, SafetensorError) as error:
            found = error
        yield path, found


class _LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, read from memory-mapped shards."""

    def __init__(self, shards: list[Path]) -> None:
        files = [safe_open(path, framework="pt") for path in shards]
        self._files = {name: file for file in files for name in _names(file)}

    def only(self, names: Iterable[str]) -> Self:
        """The tensors with the given names."""
        some = copy(self)
        some._files = {name: self._files[name] for name in names}
        return some

    def __getitem__(self, name: str) -> Tensor:
        # A copy: the map starts at any byte, and sums of unaligned memory may round differently.
        tensor: Tensor = self._files[name].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _names(file: safe_open) -> list[str]:
    names: list[str] = file.keys()  # type: ignore[no-untyped-call]
    return names


def _shards(tensors: Mapping[str, Source], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, source in tensors.items():
        tensor = source if isinstance(source, Tensor) else source()
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        # A copy: rows of one tensor share its storage, which safetensors refuses.
        shard[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    if shard:
        yield shard


def _write_shard(path: Path, shard: dict[str, Tensor]) -> str:
    save_file(shard, path)
    sync(path)
    return file_digest(path)


def _load(path: Path, round: int) -> Loaded:
    content = _content(path)
    if content["format"] not in (1, FORMAT) or content["round"] != round:
        raise CheckpointError(
            f"it is round {content['round']} in format {content['format']}; expected round {round} in format {FORMAT}"
        )
    shards = [path / _shard_name(index) for index in range(len(content["shards"]))]
    memories = content.get("memories", [])
    blocks = list(paths(path, [len(digests) for _, digests in memories]))
    digests = [digest for _, of in memories for digest in of]
    for file, digest in zip([*shards, *chain(*blocks)], [*content["shards"], *digests], strict=True):
        if file_digest(file) != digest:
            raise CheckpointError(f"{file.name} does not match its checksum")
    tensors = _LazyTensors(shards)
    if content["format"] == 1:
        names, old = format_1.split(tensors)
        return Loaded(round, tensors.only(names), old, content["meta"])
    by_name = {name: OpenBlocks(files) for (name, _), files in zip(memories, blocks, strict=True)}
    return Loaded(round, tensors, by_name, content["meta"])


def _content(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        content: dict[str, Any] = manifest["content"]
        intact = manifest["sha256"] == _digest(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("manifest.json is corrupt") from error
    if not intact:
        raise CheckpointError("manifest.json does not match its checksum")
    return content


def _check_meta(meta: Mapping[str, Any]) -> None:
    try:
        restored = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"meta cannot be written as JSON: {error}; give it finite plain values") from error
    if restored != meta:
        raise CheckpointError(f"meta {meta} would be read as {restored}; use lists for tuples, strings for keys")


def _move_into_place(temporary: Path, final: Path) -> Path:
    sync(temporary)
    if final.exists():                                     # the same round again
        final.rename(final.with_name(f"{final.name}{REPLACED}"))
    temporary.rename(final)
    sync(final.parent)
    return final


def _checkpoints(directory: Path) -> dict[int, Path]:
    paths = directory.glob("round-*") if directory.is_dir() else ()
    numbers = {path: path.name.removeprefix("round-") for path in paths}
    return {int(number): path for path, number in numbers.items() if number.isdecimal()}


def _except_newest(directory: Path, round: int, keep: int) -> list[Path]:
    checkpoints = _checkpoints(directory)
    kept = sorted((number for number in checkpoints if number <= round), reverse=True)[:keep]
    return [path for number, path in checkpoints.items() if number not in kept]


def _remove_leftovers(directory: Path) -> None:
    for path in directory.glob(f"round-*{REPLACED}"):      # its successor was not moved into place
        final = path.with_name(path.name.removesuffix(REPLACED))
        if not final.exists():
            path.rename(final)
    for path in directory.glob("round-*.tmp"):
        shutil.rmtree(path)


def _name(round: int) -> str:
    return f"round-{round:06d}"


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
