"""Standard streams that are closed, full, or not in UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

PLAIN = {
    "±\N{NO-BREAK SPACE}": "+-", "±": "+-", "−": "-", "–": "-", "·": "*", "×": "x", "…": "...", "“": '"', "”": '"',
    "10⁶": "10^6", "⁶": "^6", "\N{NO-BREAK SPACE}": " ", "λ": "lambda", "█": "#", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
"""ASCII for the characters that commands print. Where lengths are equal, tables stay aligned."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """ASCII for characters that a console cannot show."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    for character, plain in PLAIN.items():
        text = text.replace(character, plain)
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


codecs.register_error("fedsim.plain", _plain)


class OutputError(Exception):
    """Stdout cannot be written; its cause is the error of the operating system."""


class _Stdout:
    """Stdout whose errors can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr(_Stdout):
    """Stderr that loses what cannot be written: a run does not fail for its progress bar."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Replace stdout and stderr by streams that encode every character, and that discard output if they are closed.

    Raises:
        OutputError: from a write to stdout that failed.
    """
    before = sys.stdout, sys.stderr
    if None in before:                                     # else the next file to be opened is written as stdout
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115
    out, err = (stream or nowhere for stream in before)
    for stream in (out, err):
        if hasattr(stream, "reconfigure") and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="fedsim.plain")
    sys.stdout, sys.stderr = cast(TextIO, _Stdout(out)), cast(TextIO, _Stderr(err))
    try:
        yield
    finally:
        _empty(out)
        _empty(err)
        sys.stdout, sys.stderr = before
        nowhere.close()


def _empty(stream: TextIO) -> None:
    """Flush, and discard what cannot be written, as the interpreter would fail at exit otherwise."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
