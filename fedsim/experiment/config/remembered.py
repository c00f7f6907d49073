"""What is read off the sources of an installation, from one process to the next, in the user's cache.

A file holds one value and the digest of the sources that it was read off: after an edit or an update it is read anew.
As it is a pickle, it is opened only where nobody else can have written it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, cast

import platformdirs

from fedsim.record.files import private, private_folder, write_atomic

T = TypeVar("T")

PACKAGES = ("fedsim", "algorithms", "topologies")
"""Packages whose sources values are read off."""


def remembered(name: str, read: Callable[[], T]) -> T:
    """The value of a name: that in the cache, if it is of the present sources, or else what ``read`` returns.

    Args:
        name: of the value.
        read: reads it off the sources; its result can be pickled without importing PyTorch.
    """
    place = folder() / f"{name}.pickle"
    with contextlib.suppress(Exception):                   # not there, or damaged
        if all(map(_own, (place, place.parent))):
            digest, value = pickle.loads(place.read_bytes())
            if digest == digest_of_sources():
                return cast(T, value)
    value = read()
    with contextlib.suppress(OSError):                     # a read-only home: each process reads it
        private_folder(place.parent)
        write_atomic(place, pickle.dumps((digest_of_sources(), value)), private)
    return value


def folder() -> Path:
    """Folder of this installation in the user's cache."""
    where = hashlib.sha256(repr((sys.version, [str(root) for root in _roots()])).encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("fedsim")) / "components" / where


def _own(path: Path) -> bool:
    """True if it belongs to this user, who alone can write it."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


@cache
def digest_of_sources() -> str:
    """Digest of names, sizes and times of the sources; of scikit-learn, which names metrics, of its first file."""
    files = [file for root in _roots() for file in sorted(root.rglob("*.py"))]
    metrics = find_spec("sklearn")
    files += [Path(metrics.origin)] if metrics and metrics.origin else []
    stats = [(str(file), (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


@cache
def _roots() -> list[Path]:
    found = [find_spec(package) for package in PACKAGES]   # which does not import them
    return [Path(spec.origin).parent for spec in found if spec and spec.origin]
