"""Checks of the places where a user wants a file or folder to be written.

A place where nothing can be written is a mistake in the command, which is reported before anything is computed if
possible. A full disk is nobody's mistake.
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
"""Errors of the operating system that can be avoided by choosing another place."""


def check_file(path: Path | str, example: str) -> None:
    """Check that a file can be written at this path; ``example`` is the name of one, for the message.

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
    """The error to raise for an error of the operating system in writing a file or folder."""
    kind, why = (PlaceError, _obstacle(path)) if error.errno in WRONG else (RunError, "")
    return kind(f"cannot write {path}: {why or error.strerror}; {fix}")


def _obstacle(path: Path) -> str:
    """What prevents a new file or folder at this path; empty if nothing seems to."""
    there = next(above for above in path.absolute().parents if os.path.lexists(above))
    if not _is_folder(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"you may not write in {there}"


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 -- Path.is_dir raises where the user may not look
