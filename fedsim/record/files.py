"""Crash-safe files and folders: written completely or not at all, under names that no other process uses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml
from filelock import lock_descriptor

from fedsim.errors import BusyError, RunError
from fedsim.record.places import refusal

DEEPEST = 500
"""Most brackets and columns of indentation of an ordinary file of settings."""


def create_folder(root: Path, name: str) -> Path:
    """Create an empty ``root/name`` for several runs, or ``name-2``, ``name-3``, ... if it exists.

    Raises:
        RunError: it cannot be created.
    """
    for target in numbered(root, name):
        try:
            target.mkdir(parents=True)
            return target
        except FileExistsError:
            continue
        except OSError as error:
            raise refusal(target, error, "choose another folder") from error
    raise AssertionError


def free_name(root: Path, name: str) -> Path:
    """The first of ``root/name``, ``root/name-2``, ... that does not exist."""
    return next(target for target in numbered(root, name) if not target.exists())


def numbered(root: Path, name: str) -> Iterator[Path]:
    """``root/name``, ``root/name-2``, ``root/name-3``, and so on."""
    return (root / (name if number == 1 else f"{name}-{number}") for number in count(1))


@contextmanager
def lock(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a folder. It is an advisory lock of the operating system on the folder itself: there
    is no lock file, and it is released when the process ends.

    Args:
        folder: an existing folder.
        busy: message of the error; None to wait while another process holds the lock.

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


def private_folder(path: Path) -> Path:
    """Create a folder that no other user can open, unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def private(path: str, flags: int) -> int:
    """Opener of a file that no other user can read."""
    return os.open(path, flags, 0o600)


@contextmanager
def atomic(path: Path, opener: Callable[[str, int], int] | None = None) -> Iterator[BinaryIO]:
    """Open a file that becomes ``path`` on success; after a crash ``path`` holds either the old content or the new.

    ``opener`` is that of ``open``, such as `private`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")        # unique to this process
    try:
        with open(temporary, "wb", opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_atomic(path: Path, content: str | bytes, opener: Callable[[str, int], int] | None = None) -> None:
    """Replace the content of a file; see `atomic`."""
    with atomic(path, opener) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text, with libyaml if PyYAML was built with it, which is ten times as fast.

    Values that may be nested deeply are parsed in Python, which raises RecursionError where libyaml would crash.
    """
    inset = max((len(line) - len(line.lstrip(" -?")) for line in text.splitlines()), default=0)
    deep = text.count("[") + text.count("{") + inset > DEEPEST
    return yaml.load(text, yaml.SafeLoader if deep else getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_mapping(path: Path, parse: Callable[[str], Any], names: Collection[str] = ()) -> dict[str, Any]:
    """Read a mapping from a file with ``parse``; it has to contain ``names``.

    Raises:
        RunError: it cannot be read, or is damaged.
    """
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise damaged(path, " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds {content!r:.60}, no settings by name")
    if missing := [name for name in names if name not in content]:
        raise damaged(path, f"{', '.join(missing)} is missing")
    return content


def fits(value: Any, form: Any) -> bool:
    """Whether a value has a form.

    A form is a type; ``[form]`` for a list; ``{name: form}`` for a mapping, in which other names may occur and these
    may be missing; or ``{...: form}`` for a mapping with any names.
    """
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(entry, form[0]) for entry in value)
    if isinstance(form, dict):
        every = form.get(...)
        return isinstance(value, dict) and all(
            fits(entry, form.get(name, every)) for name, entry in value.items() if every or name in form
        )
    return isinstance(value, form) and not (isinstance(value, bool) and form is int)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, why: str) -> RunError:
    """Error of a file that cannot be read, because of ``why``."""
    return RunError(f"cannot read {path}: {why}; restore the file, or leave out {path.parent} or remove it")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that processes killed in `atomic` left in a folder."""
    for path in folder.glob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk; Windows cannot flush folders."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
