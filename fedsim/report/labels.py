"""Labels of runs that are compared: what tells them apart, in few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_SETTINGS = 4
"""Settings in a label; runs that differ in more are named by their directories."""


def labels_of(
    configs: Sequence[Mapping[str, Any]], manifests: Sequence[Mapping[str, Any]], paths: Sequence[Path]
) -> list[str]:
    """The first of name, algorithm, algorithm with the settings that differ, directory, that tells all runs apart.

    Settings of the execution, which leave results as they are, count only where no others tell the runs apart.
    """
    settings = [_by_place(config, manifest) for config, manifest in zip(configs, manifests, strict=True)]
    every = _differing(settings)
    of_results = [key for key in every if key == "execution.name" or not key.startswith("execution.")]
    ways: list[Callable[[int], str]] = [
        lambda run: str(settings[run].get("execution.name") or _algorithm(settings[run])),
        lambda run: _algorithm(settings[run]),
        *(_with(settings, keys) for keys in (of_results, every) if len(keys) <= MOST_SETTINGS),
        lambda run: paths[run].name,
    ]
    for way in ways:
        labels = [way(run) for run in range(len(configs))]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _by_place(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted places, where that of a component has its name."""
    leaves = {key if key == "execution.name" else key.removesuffix(".name"): value for key, value in flat(config)}
    if any(chosen.get("backend") == "flower" for chosen in manifest.get("backend", {}).values()):
        leaves |= {"execution.backend": "flower"}          # whatever it says, and with every round a checkpoint
        leaves.pop("execution.checkpoint_every", None)
    return leaves


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Places of the settings that tell runs apart. Where components differ, those of one tell its own runs apart."""
    told: list[str] = []
    for key in sorted(set().union(*settings)):             # a component before its settings
        inside = key == "execution.checkpoint_every" or any(key.startswith(f"{owner}.") for owner in told)
        if len({str(run.get(key)) for run in settings if key in run or not inside}) > 1:
            told.append(key)
    return [key for key in told if key not in ("algorithm", "metrics")]


def _with(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Callable[[int], str]:
    """The way to label runs by their algorithm and these settings, each by the last word of its place if one has it."""
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}

    def label(run: int) -> str:
        shown = [f"{short[key]}={settings[run][key]}" for key in keys if key in settings[run]]
        return ", ".join([_algorithm(settings[run]), *shown])

    return label


def _algorithm(settings: Mapping[str, Any]) -> str:
    """Class of the algorithm."""
    return str(settings.get("algorithm", "run")).rpartition(".")[2]


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a config by their dotted names."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [leaf for key, child in value.items() for leaf in flat(child, f"{prefix}.{key}" if prefix else str(key))]
