"""Lookup of components (algorithm, partition, model, ...) by name.

A name comes from the catalogue of its kind, a list of classes or a mapping from names to classes, or is the dotted name
``my.module.Class`` of a user's class. Catalogues are imported on demand: `fedsim` does not depend on `algorithms`, and
`topologies` is slow to import.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from fedsim.errors import ConfigError, explained, suggest
from fedsim.experiment.config.hints import parameters

if TYPE_CHECKING:
    from torch import nn


class Catalogue(NamedTuple):
    """Location of the list of one kind's classes, the method that all have, and their section in ``fedsim list``."""

    module: str
    attribute: str
    method: str
    section: str


CATALOGUES = {
    "algorithm": Catalogue("algorithms", "ALGORITHMS", "round", "algorithms"),
    "partition": Catalogue("fedsim.partition", "PARTITIONERS", "partition", "partitions"),
    "skew": Catalogue("fedsim.partition", "SKEWS", "apply", "skews"),
    "model": Catalogue("fedsim.models", "MODELS", "build", "models"),
    "sampling": Catalogue("fedsim.experiment.adaptive", "SAMPLINGS", "cohort", "samplings"),
    "schedule": Catalogue("fedsim.experiment.schedule", "SCHEDULES", "__call__", "schedules"),
    "compressor": Catalogue("fedsim.compress", "COMPRESSORS", "compress", "compressors"),
    "values": Catalogue("fedsim.compress", "COMPRESSORS", "compress", "compressors"),
    "server_compressor": Catalogue("fedsim.compress", "COMPRESSORS", "compress", "compressors"),
    "optimizer": Catalogue("fedsim.engine.optimizers", "OPTIMIZERS", "step", "optimizers"),
    "step_schedule": Catalogue("fedsim.engine.step_schedules", "STEP_SCHEDULES", "__call__", "step_schedules"),
    **dict.fromkeys(
        ("augment", "first", "then"),
        Catalogue("fedsim.engine.augmentation", "AUGMENTATIONS", "__call__", "augmentations"),
    ),
    "uplink": Catalogue("fedsim.feedback", "UPLINKS", "directions", "uplinks"),
    "downlink": Catalogue("fedsim.feedback", "DOWNLINKS", "broadcast", "downlinks"),
    "aggregate": Catalogue("fedsim.robust", "RULES", "__call__", "rules"),
    "rule": Catalogue("fedsim.robust", "RULES", "__call__", "rules"),
    "attack": Catalogue("fedsim.robust", "ATTACKS", "craft", "attacks"),
    "topology": Catalogue("topologies", "SCHEDULES", "matrix", "topologies"),
    "clock": Catalogue("fedsim.clock", "CLOCKS", "devices", "clocks"),
    **dict.fromkeys(
        ("seconds", "bandwidth_down", "bandwidth_up", "latency"),
        Catalogue("fedsim.clock", "DISTRIBUTIONS", "quantile", "distributions"),
    ),
    "availability": Catalogue("fedsim.clock", "AVAILABILITIES", "windows", "availabilities"),
    "graph": Catalogue("topologies", "GRAPHS", "build", "graphs"),
    "base": Catalogue("topologies", "SCHEDULES", "matrix", "topologies"),
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
        from torch import nn

        make = imported(self.name, "model")
        data = {"input_shape": input_shape, "classes": classes}
        module = make(**self.options, **{name: data[name] for name in data.keys() & parameters(make).keys()})
        if not isinstance(module, nn.Module):
            raise ConfigError(f"model {self.name} returned a {type(module).__name__}; expected a torch.nn.Module")
        return module


def imported(name: str, place: str, serves: Callable[[Any], bool] = callable) -> Any:
    """Import a class or function by its dotted name; if there is none, the error lists those of its module that serve.

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
        names = [key for key, value in own.items() if callable(value) and key[0] != "_" and serves(value)]
        raise ConfigError(
            f"{place} is {name!r}, but {module_name} has no such class or function; {suggest(attribute, names)}"
        )
    return found


def _within(module: str, allowed: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{root}.") for root in allowed)


def listed(kind: str) -> dict[str, type]:
    """Classes of the catalogue of one kind by name, imported."""
    module, attribute, *_ = CATALOGUES[kind]
    found = getattr(importlib.import_module(module), attribute)
    return dict(found) if isinstance(found, Mapping) else {cls.__name__: cls for cls in found}


def only_class(hint: Any, kind: str = "") -> type | None:
    """The one class of settings that a type allows, besides null, unless its kind has a catalogue: it has no name."""
    if kind in CATALOGUES:
        return None
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not types.NoneType]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and is_dataclass(kinds[0]) else None


def name_of(target: Any) -> str | None:
    """Name by which `find` finds a class or function; None if it cannot be imported, such as a lambda."""
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    package = module.partition(".")[0]
    for kind, at in CATALOGUES.items():
        if at.module.partition(".")[0] == package:
            for short, cls in listed(kind).items():
                if cls is target:
                    return short
    if module == "__main__" or not name.isidentifier():
        return None
    return f"{module}.{name}" if getattr(importlib.import_module(module), name, None) is target else None


def list_of(kind: str) -> str:
    """Command that lists the components of a kind."""
    return f"fedsim list {CATALOGUES[kind].section if kind in CATALOGUES else kind}"
