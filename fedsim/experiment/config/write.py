"""Conversion of an experiment to plain YAML values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.experiment.config.hints import parameters
from fedsim.experiment.config.names import ImportedModel, name_of, only_class
from fedsim.experiment.config.paths import absolute

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment


def to_config(experiment: Experiment) -> dict[str, Any]:
    """Convert an experiment, with all its fields, to plain YAML values; paths become absolute.

    An object that cannot be imported by name (made in Python, or a lambda) becomes ``{python: its description}``, which
    `from_config` refuses.
    """
    return absolute(written(experiment, type(experiment)))


def only_in_python(config: Any, place: str = "") -> list[str]:
    """Places of a config whose objects were made in Python, which no file can hold."""
    if isinstance(config, list):
        return [place] if any(map(only_in_python, config)) else []
    if not isinstance(config, Mapping):
        return []
    if "python" in config:
        return [place]
    return [found for key, each in config.items() for found in only_in_python(each, f"{place}.{key}".lstrip("."))]


def written(value: Any, hint: Any = None) -> Any:
    """Convert a value to plain YAML; a component of exactly the type ``hint`` needs no name."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): written(item) for key, item in value.items()}
    for kind, form in _forms().items():
        if isinstance(value, kind):
            return form(value, hint)
    if "networkx" in sys.modules and isinstance(value, sys.modules["networkx"].Graph):   # slow to import
        return _graph(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = {key: parameter.annotation for key, parameter in parameters(type(value)).items()}
        fields = {key: written(getattr(value, key), hint) for key, hint in hints.items()}
        return fields if type(value) is only_class(hint) else {**_named(type(value)), **fields}
    return _named(value).get("name") or _named(value)


@cache
def _forms() -> dict[type, Callable[[Any, Any], Any]]:
    """How objects are written whose fields are not their settings. Their modules import PyTorch."""
    from fedsim.compress.own import OwnCompressor
    from fedsim.data import Dataset
    from fedsim.experiment.experiment import Data
    from fedsim.partition import OwnPartitioner
    from fedsim.problems import Problem

    def of_python(value: Any, name: str) -> dict[str, str]:
        return {"python": f"{type(value).__name__} {name!r}"}

    return {
        Data: lambda v, _: {"name": v.name, "data_dir": v.data_dir, "download": v.download, **written(v.options)},
        ImportedModel: lambda v, _: {"name": v.name, **written(v.options)},
        OwnPartitioner: lambda v, _: {**_named(v.function), **written(v.options)},
        partial: lambda v, _: {**_named(v if v.args else v.func), **written(v.keywords)},
        OwnCompressor: lambda v, hint: written(v.compressor, hint),
        Dataset: lambda v, _: of_python(v, v.name),
        Problem: lambda v, _: of_python(v, v.dataset.name),
    }


def _graph(graph: Any) -> dict[str, str]:
    from topologies.files import digest

    size = f"{graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges"
    return {"python": f"networkx graph of {size}, SHA-256 {digest(graph)[:16]}"}


def _named(target: Any) -> dict[str, str]:
    name = name_of(target)
    if name is not None:
        return {"name": name}
    target = target if hasattr(target, "__qualname__") else type(target)
    return {"python": f"{target.__module__}.{target.__qualname__}"}
