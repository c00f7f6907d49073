"""Files of data sets: where they are sought, their public sources, and the download.

The data directory is the caller's choice, else the environment variable ``FEDSIM_DATA``, else the user's cache.
Nothing is downloaded unless asked for, and only files whose checksum is known.
"""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedsim.errors import DataError, MissingError


class MissingDataError(DataError, MissingError):
    """Files of a data set are not where they are sought, and were not downloaded."""


def data_directory(given: str | Path | None = None) -> Path:
    """The argument, else the environment variable ``FEDSIM_DATA``, else the user's cache directory."""
    import platformdirs

    return Path(given or os.environ.get("FEDSIM_DATA") or platformdirs.user_cache_dir("fedsim", False)).expanduser()


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed if its name ends in ``.gz`` or ``.bz2``; raises `DataError` where that fails."""
    try:
        return UNPACK.get(path.suffix.lower(), bytes)(path.read_bytes())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; expected an intact file, so fetch it again") from error


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file without its byte order mark, decompressed as by `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}; expected UTF-8 text") from error


def user_path(path: str | Path, expected: str) -> Path:
    """The path of a user's file or folder; raises `MissingDataError` if there is none."""
    path = Path(path).expanduser()
    if not path.exists():
        raise MissingDataError(f"{path}: no such file or folder; expected {expected}")
    return path


def user_file(path: str | Path, expected: str) -> Path:
    """The path of a user's file; raises `MissingDataError` if it is a folder or missing."""
    path = user_path(path, expected)
    if not path.is_file():
        raise MissingDataError(f"{path}: a folder; expected {expected}")
    return path


def user_folder(path: str | Path, expected: str) -> Path:
    """The path of a user's folder; raises `MissingDataError` if it is a file or missing."""
    path = user_path(path, expected)
    if not path.is_dir():
        raise MissingDataError(f"{path}: a file; expected {expected}")
    return path


def existing(path: Path) -> Path | None:
    """The file at ``path``, or its gzipped form, or None."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def own_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Path of each file of a user's folder (plain or ``.gz``), by name; raises `MissingDataError` naming the absent."""
    found = {name: existing(folder / name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        others = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise MissingDataError(
            f"{folder}: no {', '.join(missing)} (plain or .gz), found {others}; expected {', '.join(found)}"
        )
    return {name: path for name, path in found.items() if path}


UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}


class Remote(NamedTuple):
    """A published file.

    Attributes:
        name: file name below the base address; a ``.tar.gz`` is unpacked, a ``.gz`` is kept as it is.
        checksum: SHA-256 in hex, or ``md5:`` and the MD5 where the publisher states only that.
    """

    name: str
    checksum: str


@dataclass(frozen=True)
class Source:
    """The files of one data set.

    Attributes:
        title: usual name.
        origin: its source, and the form expected here, for a user to fetch it.
        folder: folder of the files below the data directory.
        files: name of each file, and its download (None: no checksum is known).
        base_url: address below which the names of `Remote` are found.
        elsewhere: further folders to search, such as a Linux distribution's.
    """

    title: str
    origin: str
    folder: str
    files: Mapping[str, Remote | None]
    base_url: str = ""
    elsewhere: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Store:
    """A data directory and whether missing files may be downloaded into it.

    Attributes:
        root: the data directory.
        download: fetch missing files from the public source.
        base_url: a mirror to download from instead of the public source.
    """

    root: Path
    download: bool = False
    base_url: str | None = None

    def find(self, source: Source) -> dict[str, Path]:
        """Path of each file of ``source``, by name; raises `MissingDataError` if one is missing and not downloaded."""
        found = self.look(source)
        missing = [name for name in source.files if name not in found]
        if missing and self.download and all(source.files[name] for name in missing):
            fetch(source, missing, self.root / source.folder, self.base_url or source.base_url)
            return self.look(source)
        if missing:
            raise MissingDataError(explain(source, missing, self.root))
        return found

    def look(self, source: Source) -> dict[str, Path]:
        """Path of each file of ``source`` that exists, by name."""
        folders = (self.root / source.folder, *source.elsewhere)
        hits = {name: next(filter(None, (existing(f / name) for f in folders)), None) for name in source.files}
        return {name: path for name, path in hits.items() if path}


def explain(source: Source, missing: list[str], root: Path) -> str:
    """Message on missing files: the folders searched, the source, and the options."""
    folder = root / source.folder
    if all(source.files[name] for name in missing):
        automatic = "load with download=True (--data.download true)"
    else:
        automatic = "not offered, since no published checksum of it is known"
    return "\n".join(
        [
            f"{source.title} is missing: {', '.join(missing)} (plain or .gz) not found",
            f"  sought in:  {', '.join(map(str, (folder, *source.elsewhere)))}",
            f"  get it at:  {source.origin}",
            f"  put it in:  {folder} (FEDSIM_DATA or --data-dir chooses another data directory than {root})",
            f"  download:   {automatic}",
        ]
    )


def fetch(source: Source, names: list[str], folder: Path, base_url: str) -> None:
    """Download the files ``names`` into ``folder``; each appears there complete and verified, or not at all.

    Raises `DataError` if the server does not answer, the transfer breaks off, or the checksum differs.
    """
    import pooch

    url = base_url
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            for remote in filter(None, dict.fromkeys(source.files[name] for name in names)):
                url = f"{base_url.rstrip('/')}/{remote.name}"
                got = Path(pooch.retrieve(url, remote.checksum, fname="download", path=scratch))
                for name in (n for n in names if source.files[n] == remote):
                    install(got, remote, folder, name)
                got.unlink(missing_ok=True)
    except (OSError, ValueError, KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source.title}: download from {url} failed: {error}\n"
            f"  try again, choose a mirror with base_url, or get it at {source.origin} and put it in {folder}"
        ) from error


def install(got: Path, remote: Remote, folder: Path, name: str) -> None:
    """Move a downloaded file, or the member ``name`` of a downloaded archive, into ``folder`` in one step."""
    target = folder / name
    if remote.name.endswith(".tar.gz"):
        member = got.with_name(name)
        with tarfile.open(got) as archive, member.open("wb") as out:
            packed = archive.extractfile(f"{folder.name}/{name}")
            if packed is None:
                raise ValueError(f"{remote.name} holds no file {folder.name}/{name}")
            shutil.copyfileobj(packed, out)
        member.replace(target)
    else:
        got.replace(target.with_name(name + ".gz") if remote.name.endswith(".gz") else target)
