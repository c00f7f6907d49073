"""Damaged run directories: every file of a run with bytes changed, cut off, moved, lost or from elsewhere."""

from __future__ import annotations

import random
import shutil
from pathlib import Path


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file of a run; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    by_name: dict[str, list[Path]] = {}
    for file in files:                                     # small files as often as the shards of checkpoints
        by_name.setdefault(file.name.split("-")[0], []).append(file)
    file = draw.choice(by_name[draw.choice(sorted(by_name))])
    how = draw.choice(sorted(KINDS))
    before = file.read_bytes()
    file.unlink()                                          # the blocks of two checkpoints may be one file
    KINDS[how](file, before, draw)
    return f"{how}: {file.relative_to(folder)}"


def _flip(file: Path, data: bytes, draw: random.Random) -> None:
    changed = bytearray(data or b" ")
    for _ in range(draw.choice([1, 1, 3])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    file.write_bytes(changed)


def _cut(file: Path, data: bytes, draw: random.Random) -> None:
    file.write_bytes(data[: draw.randrange(len(data) + 1)])


def _digit(file: Path, data: bytes, draw: random.Random) -> None:
    """Another digit or sign in place of one, which often leaves a file that can be read."""
    places = [k for k, byte in enumerate(data) if chr(byte) in "0123456789"] or [0]
    at = draw.choice(places)
    other = draw.choice([b"7", b"-", b"9" * 30, b"1e999", b"null", b"[]", b'"x"'])
    file.write_bytes(data[:at] + other + data[at + 1 :])


def _twice(file: Path, data: bytes, draw: random.Random) -> None:
    lines = data.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    file.write_bytes(b"".join([*lines[:at], lines[at], *lines[at:]]))


def _drop(file: Path, data: bytes, draw: random.Random) -> None:
    lines = data.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    file.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))


def _swap(file: Path, data: bytes, draw: random.Random) -> None:
    """A value of another type in the place of any value of JSON or YAML."""
    lines = data.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    head, colon, _ = lines[at].partition(b":")
    end = b"," if lines[at].rstrip().endswith(b",") else b""
    lines[at] = head + colon + b" " + draw.choice([b"null", b"[1]", b"{}", b"7", b'"x"', b"true"]) + end + b"\n"
    file.write_bytes(b"".join(lines))


def _noise(file: Path, data: bytes, draw: random.Random) -> None:
    file.write_bytes(draw.choice([b"", b"{", b"[" * 100_000, b"\x00\xff" * 40, draw.randbytes(200), b"null\n", b"5\n"]))


def _lose(file: Path, data: bytes, draw: random.Random) -> None:
    if draw.random() < 0.3:
        shutil.rmtree(file.parent)


KINDS = {f.__name__[1:]: f for f in (_flip, _cut, _digit, _twice, _drop, _swap, _noise, _lose)}
