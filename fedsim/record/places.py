"""Places that a user has named for a file or a folder to write. One where nothing can be written is a mistake of the
command, and is told before anything is computed where it can be seen by then; a full disk is no mistake of anybody's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import PlaceError, RunError

WRONG = {
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM,
    errno.EROFS,
}  # fmt: skip
"""Errors of the operating system that another place does not have."""


def check_file(path: Path | str, example: str) -> None:
    """Refuse to write a file where none can be; ``example`` is the name of one.

    Raises:
        PlaceError: a folder is there, or a file where it needs a folder, or the folder is not the user's to write in.
    """
    path = Path(path)
    if _is_folder(path):
        raise PlaceError(f"cannot write {path}: it is a folder; expected a file, such as {path / example}")
    if not os.path.lexists(path) and (why := _obstacle(path)):
        raise PlaceError(f"cannot write {path}: {why}; choose another file")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the parent folder of a file; turn errors of the operating system in the block into those of fedsim.

    Raises:
        PlaceError: it cannot be written there.
        RunError: it cannot be written, as the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError, fix: str = "choose another file") -> RunError:
    """What to tell of an error of the operating system in writing a file or folder."""
    kind, why = (PlaceError, _obstacle(path)) if error.errno in WRONG else (RunError, "")
    return kind(f"cannot write {path}: {why or error.strerror}; {fix}")


def _obstacle(path: Path) -> str:
    """What there is in the way of a new file or folder; empty if nothing is seen."""
    there = next(above for above in path.absolute().parents if os.path.lexists(above))
    if not _is_folder(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"you may not write in {there}"


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 -- Path.is_dir raises where the user may not look
