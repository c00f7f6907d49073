"""Command lines that set fields of an experiment: ``FILE.yaml --algorithm FedSpeed --algorithm.lr 0.05``."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.cli.allow import HELP
from fedsim.controller.notes import remark
from fedsim.errors import ConfigError, suggest
from fedsim.experiment.config import load_config, override
from fedsim.experiment.config.described import Component, catalogue
from fedsim.experiment.config.meant import NEAR, flags_of, flags_with, kinds_of
from fedsim.experiment.config.plan import names, plan
from fedsim.experiment.config.read import help_text
from fedsim.experiment.short_forms import full_place, put, short_forms

SYNONYMS = {
    "clients": "num_partitions", "num_clients": "num_partitions", "dataset": "data", "learning_rate": "lr",
    "participation": "sampling.fraction",
}  # fmt: skip
"""Flags of other simulators, and the settings that they mean."""
FILES = ("config", "config_file", "file", "yaml")
"""Flags with which other programs take the file that has no flag here."""


@dataclass(frozen=True)
class Command:
    """A command whose flags are the fields of a class of settings, besides its own options.

    Attributes:
        name: name of the command.
        about: description of the command.
        settings: describes that class.
        options: name and help of its own options that take a value.
        switches: name and help of its own options that take none.
    """

    name: str
    about: str
    settings: Callable[[], Component]
    options: Mapping[str, str]
    switches: Mapping[str, str]


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        options: the command's own options by name.
        switches: the command's own switches.
        settings: settings of the file, overridden by flags.
    """

    options: dict[str, str] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, kind: type[int] | type[float], default: Any = None) -> Any:
        """The command's own option ``name`` as a number; ``default`` if it was not given.

        Raises:
            ConfigError: the value is not a number of that kind.
        """
        if name not in self.options:
            return default
        try:
            number = kind(self.options[name])
            if not math.isfinite(number):
                raise ValueError
            return number
        except ValueError:
            expected = "a whole number" if kind is int else "a finite number"
            raise ConfigError(f"--{name} is {self.options[name]!r}; expected {expected}") from None


@dataclass(frozen=True)
class Words:
    """A command line whose flags and file are not merged yet.

    Attributes:
        line: the command's own options and switches.
        file: settings of the file.
        flags: dotted names and values, in order.
    """

    line: CommandLine
    file: dict[str, Any]
    flags: list[tuple[str, str]]


def split(command: Command, argv: Sequence[str]) -> Words:
    """Split a command line into options, file and flags.

    Raises:
        ConfigError: an unknown option, an option without its value, a second file, or an unreadable file.
    """
    line = CommandLine()
    files: list[str] = []
    flags: list[tuple[str, str]] = []
    spelled: dict[str, str] = {}
    for key, value in _pairs(argv, {"help", *command.switches}):
        if key == "":
            files.append(value)
        elif key in {"help", *command.switches}:
            line.switches.add(key)
        elif key in command.options:
            if key in line.options:
                raise ConfigError(f"--{key} is given twice; leave out one of them")
            line.options[key] = value
        else:
            place = _known(command, key, argv)
            if before := spelled.get(place):
                both = f"--{key} is" if key == before else f"--{before} and --{key} are one setting,"
                raise ConfigError(f"{both} given twice; leave out one of them")
            spelled[place] = key
            flags.append((place, value))
    if len(files) > 1:
        raise ConfigError(f"got {len(files)} files: {' '.join(files)}; expected one, and settings such as --rounds 20")
    if files and not Path(files[0]).exists() and (meant := _component(command, files[0])):
        raise ConfigError(f"there is no file {files[0]}; did you mean {meant}?")
    return Words(line, load_config(Path(files[0])) if files else {}, flags)


def _component(command: Command, word: str) -> str:
    """Flag of the component that a word without a flag may mean; empty if there is none."""
    kinds, name = kinds_of(word)
    ways = flags_of("", kinds, name) if name.lower() == word.lower() else []
    return " or ".join(way for way in ways if re.split(r"[ .]", way)[0][2:] in command.settings().settings)


def settle(file: Mapping[str, Any], flags: Sequence[tuple[str, str]], notes: list[str]) -> dict[str, Any]:
    """Merge flags over the settings of a file; ``notes`` collects messages about settings that they override."""
    above: dict[str, Any] = {}
    for key, value in flags:
        above = put(above, key, value)
    return override(file, above, notes)


def read(command: Command, argv: Sequence[str]) -> CommandLine:
    """Parse a command line, and print notes about overridden settings of the file on stderr.

    Raises:
        ConfigError: see `split`.
    """
    words, notes = split(command, argv), list[str]()
    words.line.settings.update(settle(words.file, words.flags, notes))
    for note in notes:
        remark(note)
    return words.line


def _pairs(argv: Sequence[str], switches: set[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values; positional words have the name ""."""
    words = iter(argv)
    for word in words:
        if word == "-h":
            yield "help", ""
        elif not word.startswith("-"):
            yield "", word
        else:
            name, given, value = word.lstrip("-").partition("=")
            key = name.replace("-", "_")
            if key in switches:
                if given:
                    raise ConfigError(f"--{name} takes no value, got {value!r}")
            elif not given:
                value = next(words, "--")
                if value.startswith("--"):
                    raise ConfigError(f"--{name} needs a value")
            yield key, value


def _known(command: Command, key: str, argv: Sequence[str]) -> str:
    """Dotted name of the setting that a flag sets, perhaps by a short form."""
    if key.split(".")[0] not in (known := _names(command)):
        if key in FILES:
            alone = f"the file stands by itself: fedsim {command.name} FILE.yaml"
            raise ConfigError(f"fedsim {command.name} has no option --{key}; {alone}")
        places = _meant(command, key, argv)
        see = f"fedsim {command.name} --help"
        hint = f"did you mean {' or '.join(places)}?" if places else suggest(key, known, see=see)
        raise ConfigError(f"fedsim {command.name} has no option --{key}; {hint}")
    return full_place(key)


def _names(command: Command) -> list[str]:
    """Options of a command, and the first words of its settings."""
    settings = command.settings().settings
    return ["help", *command.switches, *command.options, *settings, *short_forms(settings)]


def _meant(command: Command, key: str, argv: Sequence[str]) -> list[str]:
    """Flags that an unknown one may mean: settings of the chosen components, or else of others."""
    settings, key = command.settings().settings, SYNONYMS.get(key, key)
    given, required = {}, {"algorithm": names("algorithm")[0]} if "algorithm" in settings else {}
    parts = list(plan(command.settings(), required).walk())
    with contextlib.suppress(ConfigError):                 # other mistakes are told when this one is mended
        given = _given(command, argv)
        parts = list(plan(command.settings(), {**required, **given}).walk())
    places = [part.at(name) for part in parts for name in part.known]
    if required and "algorithm" not in given:
        places += [f"algorithm.{name}" for known in catalogue("algorithm").values() for name in known.settings]
    if found := _ending(places, key) or flags_with(settings, key, "algorithm" if "algorithm" in given else None):
        return found
    known, words = _names(command), [place.rpartition(".")[2] for place in places]
    near = difflib.get_close_matches(key, [*known, *words], n=1, cutoff=NEAR)
    return [] if not near or near[0] in known else _ending(places, near[0])


def _ending(places: Sequence[str], key: str) -> list[str]:
    return [f"--{place}" for place in dict.fromkeys(places) if f".{place}".endswith(f".{key}")]


def _given(command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Settings of a command line but for unknown flags."""
    pairs, own = list(_pairs(argv, {"help", *command.switches})), {"help", *command.switches, *command.options}
    flags = {full_place(key): value for key, value in pairs if key and key.split(".")[0] in {*_names(command)} - own}
    files = [load_config(Path(value)) for key, value in pairs if not key]
    return settle(files[0] if files else {}, list(flags.items()), [])


def _filled(text: str, columns: int) -> str:
    """Wrap paragraphs; indented lines, such as those of a file, stay as they are."""
    parts = itertools.groupby(text.splitlines(), lambda line: line.startswith(" "))
    found = ("\n".join(lines) if kept else textwrap.fill(" ".join(lines), columns) for kept, lines in parts)
    return "\n".join(found)


def print_help(command: Command, settings: Mapping[str, Any]) -> None:
    """Print every option of the command, with the fields of the components that the settings name."""
    own = {f"--{key.replace('_', '-')} {key.upper()}": about for key, about in command.options.items()}
    switches = {"help": "show this help and exit", **command.switches}
    own = {"FILE.yaml": "file of settings, which flags override", **own}
    own |= {f"--{key}".replace("_", "-"): about for key, about in switches.items()}
    own["--allow MODULE"] = HELP
    own["--data-dir DATA_DIR"] = "short for --data.data_dir"
    columns = shutil.get_terminal_size().columns - 2       # as wide as argparse writes the rest
    print(f"usage: fedsim {command.name} [FILE.yaml] [--SETTING VALUE ...]\n\n{_filled(command.about, columns)}")
    print("\noptions:")
    for option, about in own.items():
        print(textwrap.fill(about, columns, initial_indent=f"  {option:<21} ", subsequent_indent=" " * 24))
    print(f"\n{help_text(plan(command.settings(), settings))}", end="")
