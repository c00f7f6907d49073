"""Files and folders that survive a crash: written whole or not at all, and under names that nobody else has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from fedsim.errors import RunError


def create_folder(root: Path, name: str) -> Path:
    """Make an empty ``root/name`` for several runs, or ``name-2``, ``name-3``, ... when it exists.

    Raises:
        RunError: the disk refuses.
    """
    for target in _names(root, name):
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
    return next(target for target in _names(root, name) if not target.exists())


def _names(root: Path, name: str) -> Iterator[Path]:
    return (root / (name if number == 1 else f"{name}-{number}") for number in count(1))


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by ``text``: after a crash it holds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")        # of this process alone
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
