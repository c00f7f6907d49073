"""Hash of the settings that determine a run's result, which are the same from its first round to its last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedsim.experiment.short_forms import in_full

FREE = ("execution", "data", "init")
"""Settings that do not affect a result, or that name files, which may move and have hashes of their own."""


def settings_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the settings in ``config.yaml`` that determine a result; their order does not matter."""
    full = in_full(config)
    kept = {key: value for key, value in full.items() if key not in FREE}
    kept["from_file"] = full.get("init") is not None
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def hashes_of_checkpoints(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> set[str]:
    """Hashes of settings that a run's checkpoints may have: the present ones, those before it had more rounds or seeds,
    and accepted ones.
    """
    extended, seeds = (
        [{name: entry[end]} for entry in manifest.get(entries, []) for end in ("from", "to")]
        for name, entries in (("rounds", "extended"), ("seeds", "more_seeds"))
    )
    accepted = [found for entry in manifest.get("accepted", []) for found in entry.get("settings", [])]
    before = [{**config, **rounds, **more} for rounds in [{}, *extended] for more in [{}, *seeds]]
    return {*map(settings_hash, before), *accepted}


def edited(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """True if a run has other settings than it began with; earlier versions recorded no hash."""
    begun = [
        {**config, name: entry["to"]}                      # the process was killed while it extended the run
        for name, entries in (("rounds", "extended"), ("seeds", "more_seeds"))
        for entry in manifest.get(entries, [])[-1:]
        if entry["from"] == config.get(name) and (name == "rounds" or entry["from"] == len(manifest["status"]))
    ]
    expected = manifest.get("settings_hash")
    return expected is not None and expected not in map(settings_hash, [config, *begun])
