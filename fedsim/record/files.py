"""Files and folders that survive a crash: written whole or not at all, and under names that nobody else has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

import psutil
from filelock import lock_descriptor

from fedsim.errors import BusyError, RunError


def create_folder(root: Path, name: str) -> Path:
    """Make an empty ``root/name`` for several runs, or ``name-2``, ``name-3``, ... when it exists.

    Raises:
        RunError: the disk refuses.
    """
    for target in numbered(root, name):
        try:
            target.mkdir(parents=True)
            return target
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"cannot create {target}: {error.strerror}; choose another folder") from error
    raise AssertionError


def free_name(root: Path, name: str) -> Path:
    """The first of ``root/name``, ``root/name-2``, ... that does not exist."""
    return next(target for target in numbered(root, name) if not target.exists())


def numbered(root: Path, name: str) -> Iterator[Path]:
    """``root/name``, ``root/name-2``, ``root/name-3``, and so on."""
    return (root / (name if number == 1 else f"{name}-{number}") for number in count(1))


@contextmanager
def lock(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Be alone among the processes that lock this folder. It is the system's lock of the folder itself: there is no
    file to leave behind, and it ends with the process that holds it.

    Args:
        folder: exists.
        busy: message of the error; None to wait for as long as another process holds the lock.

    Raises:
        BusyError: another process holds it, and ``busy`` is given.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        if not lock_descriptor(fd, blocking=busy is None):
            raise BusyError(busy)
        yield
    finally:
        os.close(fd)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``path`` when all went well: after a crash that has the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")        # of this process alone
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace what a file holds, see `atomic`."""
    with atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed in `atomic` left in a folder."""
    for path in folder.glob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk; Windows has no such thing for folders."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
