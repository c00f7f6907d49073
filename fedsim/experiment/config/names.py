"""Lookup of components (algorithm, partition, model, ...) by name.

A name comes from the catalogue of its kind, a list of classes or a mapping from names to classes, or is the dotted name
``my.module.Class`` of a user's class. Catalogues are imported on demand: `fedsim` does not depend on `algorithms`, and
`topologies` is slow to import.
"""

from __future__ import annotations

import collections.abc
import contextlib
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
from torch import nn

from fedsim.errors import ConfigError, explained, suggest
from fedsim.partition.own import divides


class Catalogue(NamedTuple):
    """Location of the list of one kind's classes, and the method that all of them have."""

    module: str
    attribute: str
    method: str


CATALOGUES = {
    "algorithm": Catalogue("algorithms", "ALGORITHMS", "round"),
    "partition": Catalogue("fedsim.partition", "PARTITIONERS", "partition"),
    "skew": Catalogue("fedsim.partition", "SKEWS", "apply"),
    "model": Catalogue("fedsim.models", "MODELS", "build"),
    "sampling": Catalogue("fedsim.experiment.adaptive", "SAMPLINGS", "cohort"),
    "schedule": Catalogue("fedsim.experiment.schedule", "SCHEDULES", "__call__"),
    "compressor": Catalogue("fedsim.compress", "COMPRESSORS", "compress"),
    "values": Catalogue("fedsim.compress", "COMPRESSORS", "compress"),
    "server_compressor": Catalogue("fedsim.compress", "COMPRESSORS", "compress"),
    "optimizer": Catalogue("fedsim.engine.optimizers", "OPTIMIZERS", "step"),
    "step_schedule": Catalogue("fedsim.engine.step_schedules", "STEP_SCHEDULES", "__call__"),
    **dict.fromkeys(
        ("augment", "first", "then"), Catalogue("fedsim.engine.augmentation", "AUGMENTATIONS", "__call__")
    ),
    "uplink": Catalogue("fedsim.feedback", "UPLINKS", "directions"),
    "downlink": Catalogue("fedsim.feedback", "DOWNLINKS", "broadcast"),
    "aggregate": Catalogue("fedsim.robust", "RULES", "__call__"),
    "rule": Catalogue("fedsim.robust", "RULES", "__call__"),
    "attack": Catalogue("fedsim.robust", "ATTACKS", "craft"),
    "topology": Catalogue("topologies", "SCHEDULES", "matrix"),
    "clock": Catalogue("fedsim.clock", "CLOCKS", "devices"),
    **dict.fromkeys(
        ("seconds", "bandwidth_down", "bandwidth_up", "latency"),
        Catalogue("fedsim.clock", "DISTRIBUTIONS", "quantile"),
    ),
    "availability": Catalogue("fedsim.clock", "AVAILABILITIES", "windows"),
    "graph": Catalogue("topologies", "GRAPHS", "build"),
    "base": Catalogue("topologies", "SCHEDULES", "matrix"),
}


class Alias(NamedTuple):
    """A name from the literature, which stands for a component with certain settings.

    Attributes:
        name: the component.
        settings: of it, which make it that method.
        defaults: of its other settings.
        without: settings of the component that do not exist in the method, and what to do instead.
    """

    name: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any] = {}
    without: Mapping[str, str] = {}

    def __str__(self) -> str:
        settings = {**self.settings, **self.defaults}
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


ALIASES = {
    "ALGORITHMS": {
        "BVR-L-SGD": Alias("BVRLSGD", {}),
        "CHOCO-Gossip": Alias("ChocoSGD", {"lr": 0.0}),
        "DFedAvgM": Alias("DFedAvg", {}, {"momentum": 0.9}),
        "DFedSAM-MGS": Alias("DFedSAM", {}, {"gossip_steps": 4}),
        "FedAdagrad": Alias("FedOpt", {"optimizer": "adagrad", "beta1": 0.0}, without={"beta2": "leave it out"}),
        "FedAdam": Alias("FedOpt", {"optimizer": "adam"}),
        # lam is 1 / alpha of the paper, 0.01 in its authors' code; alpha of FedSpeed weighs its two gradients
        "FedDyn": Alias("FedSpeed", {"rho": 0.0}, {"lam": 100.0}, without={"alpha": "its alpha is 1 / lam: set lam"}),
        "FedYogi": Alias("FedOpt", {"optimizer": "yogi"}),
        "K-GT": Alias("KGT", {}),
        "QG-DSGDm": Alias("QGDSGDm", {}),
        "QG-DSGDm-N": Alias("QGDSGDm", {"nesterov": True}),
        "SCAFFOLD": Alias("Scaffold", {}),
    },
    "COMPRESSORS": {"TernGrad": Alias("QSGD", {"s": 1, "norm": "linf"})},
}
"""Aliases by catalogue; their case is ignored."""
SCALARS = (int, float, str, bool, Path, types.NoneType)
CONTAINERS = (Union, types.UnionType, list, tuple, dict, collections.abc.Sequence, collections.abc.Mapping)


class Imports(NamedTuple):
    """What settings from elsewhere may import.

    Attributes:
        modules: with all that is below them.
        names: classes and functions.
        refusal: what to tell of any other; ``{module}`` is where it is.
    """

    modules: Sequence[str]
    names: Sequence[str] = ()
    refusal: str = (
        "which this node does not import for others; its operator can allow it with --node-config '..."
        ' allow="{module}"\''
    )


_allowed: ContextVar[Imports | None] = ContextVar("allowed imports", default=None)


@contextlib.contextmanager
def only_from(imports: Imports | None) -> Iterator[None]:
    """Restrict imports by dotted name, for settings from an untrusted sender; None restricts nothing."""
    token = _allowed.set(imports)
    try:
        yield
    finally:
        _allowed.reset(token)


def restricted() -> Imports | None:
    """What may be imported now, to hand on to another process."""
    return _allowed.get()


@dataclass(frozen=True)
class ImportedModel:
    """An ``Architecture`` built by a user's class or function, so that its initial weights follow the seed.

    Attributes:
        name: dotted name of an ``nn.Module`` class, or of a function annotated to return one.
        options: keyword arguments; ``input_shape`` and ``classes`` are added if it accepts them.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """See ``Architecture.build``."""
        make = imported(self.name, "model")
        data = {"input_shape": input_shape, "classes": classes}
        module = make(**self.options, **{name: data[name] for name in data.keys() & parameters(make).keys()})
        if not isinstance(module, nn.Module):
            raise ConfigError(f"model {self.name} returned a {type(module).__name__}; expected a torch.nn.Module")
        return module


def catalogue(kind: str) -> dict[str, type]:
    """Classes of one kind by name; empty for a kind without a catalogue."""
    if kind not in CATALOGUES:
        return {}
    module, attribute, _ = CATALOGUES[kind]
    listed = getattr(importlib.import_module(module), attribute)
    return dict(listed) if isinstance(listed, Mapping) else {cls.__name__: cls for cls in listed}


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


def find(kind: str, name: str, place: str, also: Sequence[str] = ()) -> Callable[..., Any]:
    """Find the class or function with a ``name`` at a ``place`` in a config; the error also suggests ``also``.

    Raises:
        ConfigError: the name is unknown, or its class is of another kind.
    """
    known, short = catalogue(kind), alias(kind, name)
    if name in known or short:
        return known[short.name if short else name]
    if "." not in name:
        listed = [*known, *aliases(kind), *also, "my.module.Class (your own)"]
        raise ConfigError(f"{place} is {name!r}; {suggest(name, listed)}")
    target: Callable[..., Any] = imported(name, place)
    _check_kind(kind, name, place, target)
    return target


def _check_kind(kind: str, name: str, place: str, target: Callable[..., Any]) -> None:
    """Raise ConfigError unless a class or function can serve as a component; nothing of a file is called before.

    A class has the method of its kind itself: ``type`` has a ``__call__``, so that every class seems to.
    """
    method = CATALOGUES[kind].method if kind in CATALOGUES else ""
    if kind == "model" and not hasattr(target, "build"):
        made = target if isinstance(target, type) else _returned(target)
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ConfigError(
                f"{place} is {name!r}, which has no build(); expected that, a class of torch.nn.Module, or a function"
                " that says that it returns one: def make(...) -> nn.Module"
            )
    elif isinstance(target, type):
        if method and not any(method in vars(base) for base in target.__mro__):
            raise ConfigError(
                f"{place} is {name!r}, which has no {method}(); expected a class that can serve as {kind}"
            )
        if not method and not is_dataclass(target) and not (kind == "loss" and issubclass(target, nn.Module)):
            own = ", or a class of torch.nn.Module" if kind == "loss" else ""
            raise ConfigError(f"{place} is the class {name!r}; expected a function, or a dataclass of settings{own}")
    elif kind == "partition" and not hasattr(target, method):
        if not divides(target):
            raise ConfigError(
                f"{place} is {name!r}, which has no partition(); expected a class that has, or a function that begins"
                " with labels and returns the client of each sample: def divide(labels, ...)"
            )
    elif method and not hasattr(target, method):
        raise ConfigError(f"{place} is {name!r}, which has no {method}(); expected a class that can serve as {kind}")


def _returned(make: Callable[..., Any]) -> Any:
    """Type that a function says that it returns; None if it says nothing."""
    try:
        return get_type_hints(make).get("return")
    except (NameError, TypeError):
        return None


def imported(name: str, place: str) -> Any:
    """Import a class or function by its dotted name.

    Raises:
        ConfigError: it does not exist.
        CodeError: the module raised an exception while it was imported.
    """
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{place} is {name!r}; expected a dotted name such as my.module.Class")
    allowed = _allowed.get()
    if allowed is not None and name not in allowed.names and not _within(module_name, allowed.modules):
        raise ConfigError(f"{place} is {name!r}, {allowed.refusal.format(module=module_name)}")
    with explained(f"{place} is {name!r}, and importing {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{place} is {name!r}, but there is no module {error.name!r}; check the name and PYTHONPATH"
            ) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name}
        names = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{place} is {name!r}, but {module_name} has no such class or function; {suggest(attribute, names)}"
        )
    return found


def _within(module: str, allowed: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{root}.") for root in allowed)


def name_of(target: Any) -> str | None:
    """Name by which `find` finds a class or function; None if it cannot be imported, such as a lambda."""
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    package = module.partition(".")[0]
    for kind, listed in CATALOGUES.items():
        if listed.module.partition(".")[0] == package:
            for short, cls in catalogue(kind).items():
                if cls is target:
                    return short
    if module == "__main__" or not name.isidentifier():
        return None
    return f"{module}.{name}" if getattr(importlib.import_module(module), name, None) is target else None


@cache
def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Named parameters of a class or function, with defaults and resolved types (``Any`` if it has none)."""
    constructed = isinstance(make, type) and not is_dataclass(make)
    hinted = inspect.getattr_static(make, "__init__") if constructed else getattr(make, "func", make)
    try:
        hints = get_type_hints(hinted)
    except NameError:  # a type imported under TYPE_CHECKING
        hints = {}
    made = (
        {f.name: f.default_factory() for f in fields(make) if f.default_factory is not MISSING}
        if is_dataclass(make)
        else {}
    )
    return {
        name: parameter.replace(annotation=hints.get(name, Any), default=made.get(name, parameter.default))
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def is_plain(hint: Any) -> bool:
    """True if values of this type are numbers, strings and containers of these, and not components."""
    if get_origin(hint) in CONTAINERS:
        return all(is_plain(argument) for argument in get_args(hint) if argument is not ...)
    return hint is Any or hint in SCALARS or hint in CONTAINERS or get_origin(hint) is Literal


def only_class(hint: Any, kind: str = "") -> type | None:
    """The one class of settings that a type allows, besides null, unless its kind has a catalogue: it has no name."""
    if kind in CATALOGUES:
        return None
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not types.NoneType]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and is_dataclass(kinds[0]) else None


def literals(hint: Any) -> list[str]:
    """Strings that a type allows by ``Literal``."""
    choices = [get_args(kind) for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    return [str(choice) for group in choices for choice in group]


def type_in_words(hint: Any) -> str:
    """Describe a type in words: ``float | None`` is "a number or null"."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        types.NoneType: "null",
        Any: "a value",
    }
    if hint in words:
        return words[hint]
    arguments = [argument for argument in get_args(hint) if argument is not ...]
    if get_origin(hint) is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(type_in_words, arguments))
    if get_origin(hint) in CONTAINERS:
        return f"a list in brackets, [a,b], each {type_in_words(arguments[0])}"
    return str(hint)


def summary(target: Any) -> str:
    """First sentence of a docstring, without markup; a full stop in parentheses or after "et al" does not end it."""
    text = " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())
    ends = (found.start() + 1 for found in re.finditer(r"(?<!et al)\. (?=[A-Z`])", text))
    return plain(text[: next((end for end in ends if text.count("(", 0, end) == text.count(")", 0, end)), len(text))])


@cache
def help_of(make: Any) -> dict[str, str]:
    """Docstring text of each parameter, without markup."""
    parsed = docstring_parser.parse(inspect.getdoc(make) or "")
    return {entry.arg_name: plain(" ".join((entry.description or "").split())) for entry in parsed.params}


def plain(text: str) -> str:
    """Docstring text without markup."""
    return text.replace("``", "")
