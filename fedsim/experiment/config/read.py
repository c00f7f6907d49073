"""Build objects from a mapping of settings; jsonargparse parses the values by the type hints of the classes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from fedsim.errors import ConfigError
from fedsim.experiment.config.described import REQUIRED, Component, Setting, experiment_component
from fedsim.experiment.config.hints import plain
from fedsim.experiment.config.paths import absolute
from fedsim.experiment.config.plan import Plan, names, plan
from fedsim.experiment.short_forms import in_full

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment

T = TypeVar("T")
MOST_PARSERS = 16
_PARSERS: dict[Hashable, ArgumentParser] = {}


class _OnceLoader(yaml.SafeLoader):
    """Loader that refuses duplicate keys, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1 and key.value != "<<":   # merges other mappings
                line = key.start_mark.line + 1
                raise ConfigError(f"{key.value!r} is given twice, first in line {line}; expected once")
        return node


def load_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, expand their short forms, and make relative paths absolute, from the file's folder.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or holds a setting in two forms.
    """
    try:
        config = yaml.load(Path(path).read_text(), _OnceLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; expected a YAML file of settings") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {_in_words(error)}") from None
    if not isinstance(config, dict):
        held = "is empty" if config is None else f"holds {config!r:.60}"
        raise ConfigError(f"{path} {held}; expected settings, such as 'algorithm: FedAvg'")
    return absolute(in_full(config), Path(path).parent)


def _in_words(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong, and where: PyYAML calls a text that it was given "<unicode string>"."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).replace(' in "<unicode string>",', "").split())
    context = f"{error.context}, " if getattr(error, "context", None) else ""  # type: ignore[union-attr]
    return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"  # type: ignore[union-attr]


def from_config(config: Mapping[str, Any]) -> Experiment:
    """Build the experiment that a mapping describes.

    Raises:
        ConfigError: a name or key is unknown, or a value is of the wrong type or out of range; names the setting.
    """
    made: Experiment = build(experiment_component(), in_full(config))
    return made


def build(cls: type[T] | Component, config: Mapping[str, Any]) -> T:
    """Build ``cls``, a dataclass of settings and components, or what its description names, from a mapping.

    Raises:
        ConfigError: see `from_config`.
    """
    whole = plan(cls, config)
    for part in whole.walk():
        for key, setting in part.known.items():
            if setting.default is REQUIRED and key not in part.fields | part.parts:
                raise ConfigError(f"{part.at(key)} is missing; {part.expected(key)}")
    given = {part.at(key): value for part in whole.walk() for key, value in part.fields.items()}
    try:
        values = _value_parser(whole).parse_object(given)
    except argparse.ArgumentError as error:
        raise ConfigError(_wrong_type(whole, str(error))) from None
    made: T = _make(whole, values)
    return made


def _wrong_type(whole: Plan, message: str) -> str:
    """Rephrase a message of jsonargparse, which begins with the key."""
    found = re.match(r'Parser key "([^"]+)"', message)
    for part in whole.walk():
        for key, value in part.fields.items():
            if found and part.at(key) == found[1]:
                return f"{found[1]} is {value!r}; {part.expected(key)}"
    return " ".join(message.split())


def _make(plan: Plan, values: Namespace) -> Any:
    fields = {key: values[plan.at(key)] for key in plan.fields}
    parts = {key: _make(part, values) if isinstance(part, Plan) else part for key, part in plan.parts.items()}
    try:
        return plan.make(**fields, **parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{plan.place or plan.sources[0].name}: {error}") from error


def _value_parser(whole: Plan) -> ArgumentParser:
    """The parser of a plan's values: that of an earlier plan of the same components, since making one takes longest."""
    form = tuple((part.place, part.sources, tuple(part.known), _named_parts(part)) for part in whole.walk())
    if form not in _PARSERS:
        if len(_PARSERS) >= MOST_PARSERS:
            _PARSERS.pop(next(iter(_PARSERS)))
        _PARSERS[form] = _parser(whole, helpful=False)
    return _PARSERS[form]


def _named_parts(part: Plan) -> tuple[str, ...]:
    """Settings of a plan that are components, but here have a value without settings of its own."""
    return tuple(key for key, value in part.parts.items() if not isinstance(value, Plan))


def _parser(whole: Plan, helpful: bool) -> ArgumentParser:
    """Build a parser with a group for each component and an argument for each field; ``helpful`` adds the names of
    alternatives.
    """
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    for part in [*whole.walk(), *(_absent(whole) if helpful else ())]:
        group = parser.add_argument_group(part.place or "experiment", _heading(part) if helpful else None)
        for key, setting in part.known.items():
            if setting.plain:
                _add(group, part.at(key), setting)
        for key, value in part.parts.items():
            if not isinstance(value, Plan) and not (helpful and part.known[key].only):
                about = _choices(part, key) if helpful else None
                group.add_argument(f"--{part.at(key)}", metavar="NAME", help=about, default=value)
    return parser


def _add(group: Any, place: str, setting: Setting) -> None:
    given = {"required": True} if setting.default is REQUIRED else {"default": setting.default}
    group.add_argument(f"--{place}", type=setting.type, help=setting.about, **given)


def _absent(whole: Plan) -> Iterator[Plan]:
    """Plans of settings that are null, of which only one class is possible, to show their fields."""
    for part in whole.walk():
        for key, value in part.parts.items():
            if value is None and (only := part.known[key].only):
                yield Plan(part.at(key), "", part.known[key].about, only, (only,), only.settings)


def help_text(whole: Plan) -> str:
    """Help on every setting of the plan, with the plan's values as defaults."""
    parser = _parser(whole, helpful=True)
    parser.set_defaults({p.at(key): value for p in whole.walk() for key, value in p.fields.items()})
    text = parser.format_help().partition("\n\n")[2]
    text = re.sub(r", --\S+\+ \S+", "", text)  # the "--list+ ITEM" of jsonargparse, which fedsim does not support
    return plain(re.sub(r"\(required,\s+(type:\s[^()]*default:\s)", r"(\1", text))  # not required: a value is there


def _heading(part: Plan) -> str:
    if not part.name:
        return part.about or part.sources[0].about
    others = ", ".join(name for name in _all_names(part.place.rpartition(".")[2]) if name != part.name)
    return f"--{part.place} NAME: {part.about} Shown: {part.name}. {part.sources[-1].about} Others: {others}."


def _choices(part: Plan, key: str) -> str:
    setting = part.known[key]
    return f"{setting.about} One of: {', '.join([*setting.words, *_all_names(key)])}."


def _all_names(kind: str) -> list[str]:
    return names(kind) + ([] if kind == "data" else ["my.module.Class (your own)"])
