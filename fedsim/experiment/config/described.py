"""Components as data: what command lines, help and plans need to know of a class, which only building imports.

Descriptions are read off the classes themselves, and remembered from one process to the next: a command that answers
from them starts without PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import NoneType
from typing import Any, get_args

from fedsim.errors import ConfigError
from fedsim.experiment.config.hints import help_of, is_plain, literals, parameters, summary
from fedsim.experiment.config.names import ALIASES, CATALOGUES, Alias, listed, only_class
from fedsim.experiment.config.remembered import remembered
from fedsim.experiment.config.write import written

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """A parameter of a component.

    Attributes:
        about: its meaning.
        default: its default; of components, as a config has them. REQUIRED without one.
        type: type of its values, if they are numbers, strings and containers of these; None if they are components.
        optional: it may be null.
        number: a number or a list of numbers may stand for the component.
        words: strings that may stand for it.
        only: the one class of settings that it may be, which needs no name.
    """

    about: str
    default: Any
    type: Any
    optional: bool
    number: bool = False
    words: tuple[str, ...] = ()
    only: Component | None = None

    @property
    def plain(self) -> bool:
        """True if its values are no components."""
        return self.type is not None


@dataclass(frozen=True, eq=False)
class Component:
    """A class or function that makes a component; called, it is imported.

    Attributes:
        module, name: where it is.
        about: the first sentence of its docstring.
        settings: its parameters.
    """

    module: str
    name: str
    about: str
    settings: Mapping[str, Setting]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import it, and make one."""
        return getattr(import_module(self.module), self.name)(*args, **kwargs)


@cache
def describe(make: Callable[..., Any]) -> Component:
    """Description of a class or function, or of the one that a ``partial`` calls."""
    if isinstance(make, Component):
        return make
    source = getattr(make, "func", make)
    texts = help_of(source)
    settings = {key: _setting(key, each, texts.get(key, "")) for key, each in parameters(make).items()}
    return Component(source.__module__, getattr(source, "__qualname__", ""), summary(source), settings)


def _setting(key: str, parameter: inspect.Parameter, about: str) -> Setting:
    hint, default = parameter.annotation, parameter.default
    optional = hint is Any or NoneType in get_args(hint)
    if is_plain(hint):
        return Setting(about, default, hint, optional)
    below = REQUIRED if default is REQUIRED else written(default, hint)
    only = only_class(hint, key)
    known = None if only is None else describe(only)
    return Setting(about, below, None, optional, float in get_args(hint), tuple(literals(hint)), known)


@cache
def component(module: str, name: str) -> Component:
    """Description of a class of this module."""
    return remembered(f"{module}.{name}", lambda: describe(getattr(import_module(module), name)))


def experiment_component() -> Component:
    """Description of ``Experiment``."""
    return component("fedsim.experiment.experiment", "Experiment")


@cache
def catalogue(kind: str) -> dict[str, Component]:
    """Components of one kind by name, "data" among the kinds; empty for a kind without a catalogue."""
    if kind == "data":
        return remembered("data", lambda: {name: describe(loader) for name, loader in loaders().items()})
    if kind not in CATALOGUES:
        return {}
    module, attribute, *_ = CATALOGUES[kind]
    return remembered(f"{module}.{attribute}", lambda: {name: describe(cls) for name, cls in listed(kind).items()})


def loaders() -> dict[str, Callable[..., Any]]:
    """Functions that load data sets and formats or make problems, by name."""
    from fedsim.data.catalogue import FORMATS, NAMED
    from fedsim.problems import PROBLEMS

    return {**{name: loader for name, (_, loader) in (NAMED | FORMATS).items()}, **PROBLEMS}


def aliases(kind: str) -> dict[str, Alias]:
    """Aliases of components of one kind."""
    return ALIASES.get(CATALOGUES[kind].attribute, {}) if kind in CATALOGUES else {}


def alias(kind: str, name: str) -> Alias | None:
    """The alias with a name, in any case, unless the catalogue has that name."""
    if name in catalogue(kind):
        return None
    return {short.lower(): found for short, found in aliases(kind).items()}.get(name.lower())


def unaliased(kind: str, value: Any) -> Any:
    """A component of a config, with an alias replaced by its component and settings; given fields override these."""
    name = value.get("name") if isinstance(value, Mapping) else value
    found = alias(kind, name) if isinstance(name, str) and kind in CATALOGUES else None
    if found is None:
        return value
    given = value if isinstance(value, Mapping) else {}
    for key in given.keys() & {*found.settings, *found.without}:
        if key in found.without or given[key] != found.settings[key]:
            fixed = f"is {found.name} with {key}={found.settings.get(key)!r}; leave it out"
            how = f"has no {key}; {found.without[key]}" if key in found.without else fixed
            raise ConfigError(f"{kind}.{key} is {given[key]!r}, but {name} {how}, or use {found.name}")
    return {**found.settings, **found.defaults, **given, "name": found.name}
