"""Where the commands write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fedsim.errors import RunError


def console() -> Console:
    """Stdout for tables: as wide as the terminal, and wide enough for a whole line in a file or pipe."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is to be written, and say so when that or the writing fails.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another file") from error
