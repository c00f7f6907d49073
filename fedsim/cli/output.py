"""Output of the commands: tables on stdout, and files."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from typing import Any, NoReturn

from rich.console import Console

from fedsim.errors import ConfigError, suggest

BAD_VALUES = {
    r"argument (?P<name>.+): invalid int value: (?P<given>.+)": "a whole number",
    r"argument (?P<name>.+): invalid float value: (?P<given>.+)": "a number",
    r"argument (?P<name>.+): invalid choice: (?P<given>.+) \(choose from (?P<known>.+)\)": "",
}
"""Messages of argparse about a value, and what is expected."""


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
        raise ConfigError(f"{command}: {_plain(message)}{hint}; {self.prog} --help explains the command")


def _plain(message: str) -> str:
    """A message of argparse about one value, as other errors say it."""
    for pattern, expected in BAD_VALUES.items():
        if found := re.fullmatch(pattern, message):
            known = found.groupdict().get("known", "").replace("'", "")
            fix = suggest(found["given"].strip("'"), known.split(", ")) if known else f"expected {expected}"
            return f"{found['name']} is {found['given']}; {fix}"
    return message


def add_json(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the switch ``--json``, which ``fedsim schema NAME`` describes."""
    parser.add_argument("--json", action="store_true", help=f"print the result as JSON, as in fedsim schema {name}")


def print_json(value: Any) -> None:
    """Print one line of strict JSON."""
    print(json.dumps(value, allow_nan=False, ensure_ascii=False), flush=True)
