"""Components by name: those of the catalogues, and classes and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any, get_type_hints

from fedsim.errors import ConfigError, suggest
from fedsim.experiment.config.described import alias, aliases, catalogue
from fedsim.experiment.config.meant import flags_of, kinds_of, kinds_with
from fedsim.experiment.config.names import CATALOGUES, imported, list_of


def find(kind: str, name: str, place: str, also: Sequence[str] = ()) -> Callable[..., Any]:
    """Find the component with a ``name`` at a ``place`` in a config, or import a user's class or function of that name;
    the error also suggests ``also``.

    Raises:
        ConfigError: the name is unknown, or its class is of another kind.
    """
    known, short = catalogue(kind), alias(kind, name)
    if name in known or short:
        return known[short.name if short else name]
    if "." not in name:
        raise unknown(name, place, kind, [*known, *aliases(kind), *also], own="my.module.Class (your own)")
    target: Callable[..., Any] = imported(name, place, partial(_serves, kind))
    if lack := _lack(kind, target):
        kinds = kinds_with(target) if isinstance(target, type) else []
        hint = f"; did you mean {found[0]}?" if (found := flags_of(place, kinds, name)) else ""
        raise ConfigError(f"{place} is {name!r}, {lack}{hint}")
    return target


def unknown(
    name: str, place: str, kind: str, listed: Sequence[str], also: Sequence[str] = (), own: str = ""
) -> ConfigError:
    """Error about a name that is none of those ``listed`` of a kind; it may be that of another kind of component."""
    kinds, spelled = kinds_of(name)
    elsewhere = [] if spelled in listed or place.startswith("-") else flags_of(place, kinds, spelled)
    return ConfigError(f"{place} is {name!r}; {suggest(name, listed, [*also, *elsewhere], list_of(kind), own)}")


def _serves(kind: str, target: Callable[..., Any]) -> bool:
    return _lack(kind, target) is None


def _lack(kind: str, target: Callable[..., Any]) -> str | None:
    """What a class or function lacks to serve as a component, in words; nothing of a file is called before.

    A class has the method of its kind itself: ``type`` has a ``__call__``, so that every class seems to.
    """
    method = CATALOGUES[kind].method if kind in CATALOGUES else ""
    lacks = f"which has no {method}(); expected a class that can serve as {kind}"
    if kind == "model" and not hasattr(target, "build"):
        if not is_module(target if isinstance(target, type) else _returned(target)):
            return (
                "which has no build(); expected that, a class of torch.nn.Module, or a function that says that it"
                " returns one: def make(...) -> nn.Module"
            )
    elif isinstance(target, type):
        if method and not any(method in vars(base) for base in target.__mro__):
            return lacks
        if not method and not is_dataclass(target) and not (kind == "loss" and is_module(target)):
            own = ", or a class of torch.nn.Module" if kind == "loss" else ""
            return f"a class; expected a function, or a dataclass of settings{own}"
    elif kind == "partition" and not hasattr(target, method):
        if not _divides(target):
            return (
                "which has no partition(); expected a class that has, or a function that begins with labels and returns"
                " the client of each sample: def divide(labels, ...)"
            )
    elif method and not hasattr(target, method):
        return lacks
    return None


def is_module(target: Any) -> bool:
    """True for a class of torch.nn.Module."""
    from torch import nn

    return isinstance(target, type) and issubclass(target, nn.Module)


def _divides(target: Any) -> bool:
    from fedsim.partition.own import divides

    return divides(target)


def _returned(make: Callable[..., Any]) -> Any:
    """Type that a function says that it returns; None if it says nothing."""
    try:
        return get_type_hints(make).get("return")
    except (NameError, TypeError):
        return None
