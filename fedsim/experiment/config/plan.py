"""Plan of the objects that a mapping of settings describes: names and keys are resolved, values not yet parsed."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, get_args

import yaml

from fedsim.errors import ConfigError, few, suggest
from fedsim.experiment.config.described import (
    REQUIRED,
    Component,
    Setting,
    alias,
    aliases,
    catalogue,
    component,
    describe,
    unaliased,
)
from fedsim.experiment.config.find import find, is_module, unknown
from fedsim.experiment.config.hints import type_in_words
from fedsim.experiment.config.meant import settings_named, usual_first
from fedsim.experiment.config.names import ImportedModel, list_of
from fedsim.experiment.short_forms import short_forms

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Data
    from fedsim.partition.own import OwnPartitioner

GIVEN = {
    "aggregate": 2, "rule": 2, "loss": 2, "schedule": 1, "step_schedule": 2, "augment": 2, "first": 2, "then": 2,
}  # fmt: skip
"""Number of arguments that a function of the user's own is called with, by its kind; its others are settings."""


@dataclass(frozen=True)
class Plan:
    """A component to build.

    Attributes:
        place: dotted name in the config, such as ``algorithm`` or ``algorithm.compressor``; empty for the root.
        name: name of its class in the config; empty if only one class is possible.
        about: its purpose.
        make: class or function that builds it from ``fields`` and ``parts``.
        sources: descriptions of the classes and functions that define its parameters.
        known: those parameters, by name.
        fields: given plain values, not yet parsed.
        parts: its own components; a value other than a plan is used unchanged.
    """

    place: str
    name: str
    about: str
    make: Callable[..., Any]
    sources: tuple[Component, ...]
    known: Mapping[str, Setting]
    fields: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)

    def at(self, key: str) -> str:
        """Dotted name of one of its parameters."""
        return f"{self.place}.{key}" if self.place else key

    def walk(self) -> Iterator[Plan]:
        """Yield this plan, then the plans below it."""
        yield self
        for part in self.parts.values():
            if isinstance(part, Plan):
                yield from part.walk()

    def expected(self, key: str) -> str:
        """Type and meaning of one of its parameters, in words."""
        setting = self.known[key]
        name = f"a name ({_names_in_words(key)})"
        kind = type_in_words(setting.type) if setting.plain else name
        return f"expected {kind}{setting.about and ': '}{setting.about}"


def plan(cls: Callable[..., Any], config: Mapping[str, Any]) -> Plan:
    """Plan ``cls``, a dataclass of settings and components, or its description.

    Raises:
        ConfigError: a name or key is unknown, or a required value is null.
    """
    source = describe(cls)
    return _filled(Plan("", "", "", cls, (source,), source.settings), config)


def _filled(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """Fill a plan with given values and with its components."""
    for key, value in config.items():
        _check(plan, str(key), value)
    for key, setting in plan.known.items():
        given = unaliased(key, config.get(key, REQUIRED))
        if setting.plain:
            if given is not REQUIRED:
                plan.fields[key] = given
        elif (value := _over_default(setting.default, given)) is not REQUIRED:
            plan.parts[key] = _part(plan, key, setting, value)
    return plan


def _check(plan: Plan, key: str, value: Any) -> None:
    if key not in plan.known:
        short = [] if plan.place else short_forms(plan.known)
        kind = plan.place.rpartition(".")[2]
        named = names(kind) if plan.name else []
        others = [name for name in named if key in known_of(kind, target_of(kind, name, kind)[1:])]
        of = f" of {plan.name} (but one of {', '.join(others)}: --{plan.place} {others[0]})" if others else ""
        also = settings_named(key, plan.place) if not others else []
        known = suggest(key, [*plan.known, *short], also, "fedsim run --help")
        raise ConfigError(f"unknown setting {plan.at(key)}{of}: {known}")
    if isinstance(value, Mapping) and "python" in value:
        again = "run or resume it from Python: fedsim.run(experiment), fedsim.resume(path, experiment)"
        if plan.at(key) == "data":
            again += (
                "; or save it there, fedsim.save_dataset(data, 'FILE.npz'), and add --data npz --data.path FILE.npz"
            )
        raise ConfigError(
            f"{plan.at(key)} was made in Python ({value['python']}), which a config file cannot hold; {again}"
        )
    if value is None and not plan.known[key].optional:
        raise ConfigError(f"{plan.at(key)} is null; {plan.expected(key)}")


def _over_default(below: Any, given: Any) -> Any:
    """Complete a given value by the default ``below``, if both are the same component."""
    if not isinstance(below, Mapping):
        return below if given is REQUIRED else given
    if given is REQUIRED:
        return REQUIRED if "python" in below else below
    above = {"name": given} if isinstance(given, str) else given
    same = isinstance(above, Mapping) and above.get("name", below.get("name")) == below.get("name")
    return {**below, **above} if same else given


def _part(owner: Plan, key: str, setting: Setting, value: Any) -> Any:
    """Plan the component at ``key``, or return the value itself if there is nothing to build."""
    place, about, only = owner.at(key), setting.about, setting.only
    if value is None or (value == "null" and setting.optional):
        return None
    if only:
        if not isinstance(value, Mapping):
            numeric = [name for name, each in only.settings.items() if {int, float} & {each.type, *get_args(each.type)}]
            flag = f"--{place}.{(numeric if _numbers(value) is not None and numeric else list(only.settings))[0]}"
            raise ConfigError(f"{place} is {value!r}; expected settings: {', '.join(only.settings)}, as {flag}")
        return _filled(Plan(place, "", about, only, (only,), only.settings), value)
    if setting.number and (numbers := _numbers(value)) is not None:
        return numbers
    if setting.number and isinstance(value, str) and re.match(r"[-+.\d]", value):
        either = f"expected a number, a list of numbers in brackets, [a,b], or {_names_in_words(key)}"
        raise ConfigError(f"{place} is {value!r}; {either}")
    if _numbers(value) is not None:
        raise ConfigError(f"{place} is {value!r}; {_instead_of_number(key, place, setting)}")
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        keys = set(value) if isinstance(value, Mapping) else set()
        fitting = [each for each in names(key) if keys <= known_of(key, target_of(key, each, key)[1:]).keys()]
        example = next(iter(usual_first(fitting or names(key))), "my.module.Class")
        if isinstance(value, Mapping) and "name" not in value:
            raise ConfigError(
                f"{place} has {', '.join(map(str, value)) or 'no fields'} and no name; expected --{place} NAME,"
                f" such as {example}, or {{name: {example}, ...}} in a file"
            )
        raise ConfigError(f"{place} is {value!r}; expected a name, or name and fields, as {{name: {example}, ...}}")
    name, fields = value["name"], {k: v for k, v in value.items() if k != "name"}
    if name in setting.words and not fields:
        return name
    make, *sources = target_of(key, name, place, setting.words)
    if not sources and not fields:
        return make
    return _filled(Plan(place, name, about, make, tuple(sources), known_of(key, sources)), fields)


def _instead_of_number(kind: str, place: str, setting: Setting) -> str:
    """What to give in place of a number: a name, or a setting of the component that is the default."""
    default = setting.default.get("name") if isinstance(setting.default, Mapping) else None
    named = f"expected a name ({_names_in_words(kind)})"
    if default is None:
        return named
    flags = ", ".join(f"--{place}.{key}" for key in known_of(kind, target_of(kind, default, place)[1:]))
    return f"{named}, or a setting of {default}: {flags}" if flags else named


def _numbers(value: Any) -> float | tuple[float, ...] | None:
    """A number, or several, as a value or as text; None for anything else."""
    with contextlib.suppress(yaml.YAMLError):
        value = yaml.safe_load(value) if isinstance(value, str) else value
    try:                                                   # YAML takes 6e6 for text
        return tuple(float(part) for part in value) if isinstance(value, list | tuple) else float(value)
    except (TypeError, ValueError):
        return None


def names(kind: str) -> list[str]:
    """Names of the components of one kind, besides dotted ones."""
    return list({**catalogue(kind), **aliases(kind)})


def _names_in_words(kind: str) -> str:
    return few(names(kind) or ["my.module.Class"], list_of(kind))


def _may_name(kind: str, value: str) -> bool:
    """True unless no component of this kind has the name ``value``: FedOpt's optimizer is a word, not a component."""
    return value in names(kind) or alias(kind, value) is not None or ("." in value and bool(names(kind)))


def target_of(kind: str, name: str, place: str, also: Sequence[str] = ()) -> tuple[Any, ...]:
    """Builder of a component, then the descriptions of the sources of its parameters; a function without sources IS the
    component.
    """
    if kind == "data":
        if name not in catalogue(kind):
            format = name.rpartition(".")[2].lower()
            also = [f"--{place} {format} --{place}.path {name}"] if "." in name and format in catalogue(kind) else []
            raise unknown(name, place, kind, list(catalogue(kind)), also)
        return partial(_data, name), component("fedsim.experiment.experiment", "Data"), catalogue(kind)[name]
    target = find(kind, name, place, also)
    if isinstance(target, Component):
        return target, target
    if kind == "model" and not hasattr(target, "build"):
        return partial(_imported_model, name), describe(target)
    if kind == "partition" and not hasattr(target, "partition"):
        return partial(_own_partitioner, target), describe(target)
    if inspect.isfunction(target):
        own = _own_settings(kind, target)
        return (partial(_with_options, target), own) if own.settings else (target,)
    itself = not isinstance(target, type) or (kind == "loss" and is_module(target))   # made anew for each seed
    return (target,) if itself else (target, describe(target))


@cache
def _own_settings(kind: str, function: Callable[..., Any]) -> Component:
    """Description of a function that IS the component: its parameters after those that it is called with."""
    given = list(inspect.signature(function).parameters)[: GIVEN.get(kind, 0)]
    described = describe(function)
    return replace(described, settings={key: each for key, each in described.settings.items() if key not in given})


def known_of(kind: str, sources: Sequence[Component]) -> dict[str, Setting]:
    """Parameters that a config may set."""
    hidden = {"data": {"name", "options", "store"}, "model": {"input_shape", "classes"}}.get(kind, set())
    if kind == "partition" and any("labels" in source.settings for source in sources):
        hidden = {"labels", "seed"}                        # what a function of one's own is given
    known = {key: setting for source in sources for key, setting in source.settings.items() if key not in hidden}
    if kind == "data":                                     # a problem names its underlying data set
        named = {key: replace(each, type=str, default=None, about="name of a data set.") for key, each in known.items()}
        known = {key: setting if setting.plain else named[key] for key, setting in known.items()}
    return known


def _data(name: str, data_dir: str | None = None, download: bool = False, **options: Any) -> Data:
    from fedsim.experiment.experiment import Data

    return Data(name, data_dir, download, options)


def _own_partitioner(function: Callable[..., Any], **options: Any) -> OwnPartitioner:
    from fedsim.partition.own import OwnPartitioner

    return OwnPartitioner(function, options)


def _with_options(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return partial(function, **options) if options else function


def _imported_model(name: str, **options: Any) -> ImportedModel:
    return ImportedModel(name, options)


def override(below: Mapping[str, Any], above: Mapping[str, Any], notes: list[str], place: str = "") -> dict[str, Any]:
    """Merge the values of ``above`` over those of ``below``, such as flags over a file.

    Where they name different components, fields that both share are kept; ``notes`` collects messages about the others.
    """
    result = dict(below)
    for key, value in above.items():
        old, at = below.get(key), f"{place}.{key}" if place else key
        component = isinstance(value, Mapping) or (isinstance(value, str) and _may_name(key, value))
        if old is None or not component or _numbers(value) is not None:
            result[key] = value
            continue
        lower, upper = ({"name": part} if isinstance(part, str) else part for part in (old, value))
        if not isinstance(lower, Mapping):
            raise ConfigError(f"{at} is {old!r}; expected a name, or name and fields")
        chosen = "name" in upper and at != "execution"     # its name is the run's
        if chosen and "python" in lower:
            lower = {}
        elif chosen and upper["name"] != lower.get("name"):
            lower, upper = _common(key, at, lower, upper["name"], notes), unaliased(key, upper)
        result[key] = override(lower, upper, notes, at)
    return result


def _common(kind: str, place: str, fields: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """Fields that the component ``name`` shares with another one, by name and type."""
    new = known_of(kind, target_of(kind, name, place)[1:])
    old = known_of(kind, target_of(kind, fields["name"], place)[1:]) if "name" in fields else new   # the default's
    kept = {k: v for k, v in fields.items() if k in old and k in new and _alike(old[k], new[k])}
    dropped = [f"{key}={value}" for key, value in fields.items() if key != "name" and key not in kept]
    if dropped:
        other = f", not {fields['name']} as in the file; dropped its" if "name" in fields else "; dropped the file's"
        notes.append(f"{place} is {name}{other} {', '.join(dropped)}")
    return kept


def _alike(a: Setting, b: Setting) -> bool:
    """Whether two settings of one name take the same values."""
    return (a.type, a.optional, a.number, a.words) == (b.type, b.optional, b.number, b.words)
