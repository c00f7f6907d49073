"""Conversion of an experiment to plain YAML values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.compress.own import OwnCompressor
from fedsim.data import Dataset
from fedsim.experiment.config.names import ImportedModel, name_of, only_class, parameters
from fedsim.experiment.config.paths import absolute
from fedsim.experiment.experiment import Data, Experiment
from fedsim.partition import OwnPartitioner
from fedsim.problems import Problem


def to_config(experiment: Experiment) -> dict[str, Any]:
    """Convert an experiment, with all its fields, to plain YAML values; paths become absolute.

    An object that cannot be imported by name (made in Python, or a lambda) becomes ``{python: its description}``, which
    `from_config` refuses.
    """
    return absolute(written(experiment, Experiment))


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
    if isinstance(value, Data):
        return {"name": value.name, "data_dir": value.data_dir, "download": value.download, **written(value.options)}
    if isinstance(value, ImportedModel):
        return {"name": value.name, **written(value.options)}
    if isinstance(value, OwnPartitioner):
        return {**_named(value.function), **written(value.options)}
    if isinstance(value, OwnCompressor):
        return written(value.compressor, hint)
    if isinstance(value, Dataset | Problem):
        name = value.dataset.name if isinstance(value, Problem) else value.name
        return {"python": f"{type(value).__name__} {name!r}"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = {key: parameter.annotation for key, parameter in parameters(type(value)).items()}
        fields = {key: written(getattr(value, key), hint) for key, hint in hints.items()}
        return fields if type(value) is only_class(hint) else {**_named(type(value)), **fields}
    return _named(value).get("name") or _named(value)


def _named(target: Any) -> dict[str, str]:
    name = name_of(target)
    if name is not None:
        return {"name": name}
    target = target if hasattr(target, "__qualname__") else type(target)
    return {"python": f"{target.__module__}.{target.__qualname__}"}
