"""Stale points: finished ones whose code or data have changed since they were run.

They run again; what they had measured moves to ``.stale/`` in the folder of the sweep, where no comparison finds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedsim.controller.prepare import data_hash, resolve_data
from fedsim.errors import FedsimError
from fedsim.experiment.code import changed
from fedsim.problems import Problem
from fedsim.record.directory import open_run
from fedsim.record.files import free_name
from fedsim.sweeps.grid import Point, Sweep, experiment_of

FOLDER = ".stale"


def stale(sweep: Sweep, points: Sequence[Point]) -> dict[str, str]:
    """Why points that have finished would not give the same again, by name; runs of earlier versions do not say."""
    hashes: dict[str, str | None] = {}
    found = {}
    for point in points:
        manifest = open_run(sweep.directory(point)).manifest
        if modules := changed(manifest.get("code", {})):
            found[point.name] = f"{', '.join(modules)} {'has' if len(modules) == 1 else 'have'} changed since"
            continue
        key = json.dumps(point.config["data"], sort_keys=True)
        if key not in hashes:
            hashes[key] = _hash_now(point.config)
        if hashes[key] not in (None, manifest.get("data_hash")):
            found[point.name] = "the data have changed since"
    return found


def set_aside(sweep: Sweep, point: Point) -> None:
    """Move the run of a point to `FOLDER`."""
    folder = sweep.path / FOLDER
    folder.mkdir(exist_ok=True)
    sweep.directory(point).rename(free_name(folder, point.name))


def _hash_now(config: dict[str, Any]) -> str | None:
    """Hash of the data that a point would find; None where there are none, which says nothing of its result."""
    try:
        data = resolve_data(experiment_of(config).data)
    except FedsimError:
        return None
    return data_hash(data.dataset if isinstance(data, Problem) else data)
