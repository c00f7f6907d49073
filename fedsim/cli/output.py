"""Output of the commands: tables on stdout, and files."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from fedsim.errors import ConfigError, RunError, suggest


def width() -> int | None:
    """Columns of the terminal, or of the environment variable COLUMNS; None in a file or pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def console() -> Console:
    """Console for tables on stdout: as wide as the terminal, or 160 columns in a file or pipe."""
    return Console(file=sys.stdout, width=width() or 160)


class Arguments(argparse.ArgumentParser):
    """Parser whose errors are ``ConfigError``, one line instead of the usage of the command."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        options = [option for action in self._actions for option in action.option_strings]
        unknown = message.rpartition("unrecognized arguments: ")[2].split()
        hint = f"; {suggest(unknown[0], options)}" if unknown and "unrecognized" in message else ""
        command = self.prog.removeprefix("fedsim ")        # errors of the command line begin with fedsim anyway
        raise ConfigError(f"{command}: {message}{hint}; {self.prog} --help explains the command")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the parent folder of a file; turn errors of the operating system in the block into `RunError`.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another file") from error
