"""The settings that determine a run's result, which it keeps from its first round to its last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedsim.errors import RunError
from fedsim.experiment.short_forms import in_full
from fedsim.record.directory import RunDirectory

FREE = ("execution", "data", "init")
"""Settings that have no part in a result, or name files with a hash of their own, which may move."""


def settings_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the settings in ``config.yaml`` that determine a result, in whatever order they are written."""
    full = in_full(config)
    kept = {key: value for key, value in full.items() if key not in FREE}
    kept["from_file"] = full.get("init") is not None
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def check_model(directory: RunDirectory, d: int) -> None:
    """Raise RunError unless a module of ``d`` parameters fits the run's checkpoints."""
    if d != (trained := directory.manifest.get("parameters", d)):
        raise RunError(
            f"{directory.path} has trained a model of {trained:,} parameters, and the module found now has {d:,};"
            " restore its code and settings, or give the experiment of the run"
        )


def check_settings(directory: RunDirectory) -> None:
    """Refuse to continue a run with other settings than its first rounds had; earlier versions recorded no hash.

    Raises:
        RunError: ``config.yaml`` was edited since.
    """
    config, manifest, path = directory.config, directory.manifest, directory.path
    expected = manifest.get("settings_hash")
    begun = [
        {**config, "rounds": entry["to"]}                  # killed while it was extended
        for entry in manifest.get("extended", [])[-1:]
        if entry["from"] == config.get("rounds")
    ]
    if expected is not None and expected not in map(settings_hash, [config, *begun]):
        raise RunError(
            f"{path / 'config.yaml'} has other settings than the run began with (hash {settings_hash(config)[:12]},"
            f" expected {expected[:12]}), and one run would be of two experiments. Set them back, or begin a new run:"
            f" fedsim run {path / 'config.yaml'} --output NEW. All of execution may be edited; more rounds are given by"
            f" fedsim resume {path} --rounds N; to continue with other settings none the less: --accept-changes"
        )
