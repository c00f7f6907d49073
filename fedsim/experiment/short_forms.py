"""Short forms of settings, the same in YAML files and on the command line: ``backend`` for ``execution.backend``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from fedsim.errors import ConfigError
from fedsim.experiment.execution import Execution

SHORT = {
    **{field.name: f"execution.{field.name}" for field in fields(Execution)},
    "data_dir": "data.data_dir",
    "ray_address": "execution.ray.address",
}
"""Short forms, and the settings that they stand for."""
ALONE = {"share": "share.layers"}
"""Settings with several fields for which a single word may be given, and the field that it stands for."""

ADDED: dict[str, Any] = {
    "init": None,
    "aggregate": None,
    "attack": None,
    "evaluation.fine_tune": 0,
    "evaluation.fine_tune_lr": None,
    "evaluation.fine_tune_layers": "all",
    "evaluation.unseen": 0.0,
    "share": {"layers": "all", "train": "together", "first": 0.5},
    "local.optimizer": {"name": "SGD"},
    "local.weight_decay_mode": "objective",
    "local.clip_mode": "gradient",
    "local.augment": None,
    "local.step_schedule": None,
    "local.micro_batch": None,
    "clock": None,
    "waiting": {
        "first": None, "deadline": None, "minimum": 1, "otherwise": "wait", "dropout": 0.0, "present": False,
    },
    "metrics": [],
    "evaluation.clients_at_most": 10_000,
    "concurrency": None,
    "execution.sink": [],
    "stop": None,
    "precision": "float32",
    "execution.deterministic": "warn",
}
"""Settings that version 0.1.0 lacked, with the values that stand for what it did."""


def short_forms(known: Collection[str]) -> list[str]:
    """Short forms of the settings in ``known`` and of those below them."""
    return [short for short, place in SHORT.items() if place.partition(".")[0] in known]


def full_place(key: str) -> str:
    """Expand the short form with which a dotted name may begin."""
    first, dot, rest = key.partition(".")
    return ALONE.get(key, f"{SHORT.get(first, first)}{dot}{rest}")


def in_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """Expand all short forms of settings. Version 0.1.0 had only these, and the rule was a setting of FedAvg.

    Raises:
        ConfigError: a setting is given in both forms.
    """
    full = {key: value for key, value in config.items() if key not in SHORT}
    for word, place in ALONE.items():
        if isinstance(full.get(word), str):
            full = put({**full, word: {}}, place, full[word])
    for short, place in SHORT.items():
        if short in config:
            if _given(full, place):
                raise ConfigError(f"{short} and {place} are one setting, given twice; leave out {short}")
            full = put(full, place, config[short])
    algorithm = full.get("algorithm")
    if isinstance(algorithm, Mapping) and algorithm.get("name") == "FedAvg" and "aggregate" in algorithm:
        rule = algorithm["aggregate"]
        if rule is not None and full.get("aggregate") is not None:
            raise ConfigError("algorithm.aggregate is now aggregate, and both are given; leave out algorithm.aggregate")
        full["algorithm"] = {key: value for key, value in algorithm.items() if key != "aggregate"}
        full |= {} if rule is None else {"aggregate": rule}
    return full


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a recorded run in their present form, whichever version wrote them."""
    full = in_full(config)
    for place, value in ADDED.items():
        full = full if _given(full, place) else put(full, place, value)
    return full


def put(settings: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return the settings with a value set at a dotted place. A component stays a mapping, whose name and fields may be
    set in any order.
    """
    key, _, rest = place.partition(".")
    old = settings.get(key)
    if rest:
        below = old if isinstance(old, Mapping) else {} if old is None else {"name": old}
        value = put(below, rest, value)
    elif isinstance(old, Mapping):
        value = {**old, "name": value}
    return {**settings, key: value}


def _given(settings: Any, place: str) -> bool:
    """True if there is a value at a dotted place."""
    key, _, rest = place.partition(".")
    return isinstance(settings, Mapping) and key in settings and (not rest or _given(settings[key], rest))
