"""Stale points of a sweep: those whose code or data have changed since they were begun.

They run again from their first round. Their previous runs are moved to ``.stale/`` in the folder of the sweep, where no
comparison finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.controller.loading import data_hash, problem_and_dataset
from fedsim.errors import ConfigError, FedsimError
from fedsim.experiment.code import changed, outdated
from fedsim.record.directory import open_run
from fedsim.record.files import free_name
from fedsim.sweeps.grid import Point, Sweep, experiment_of

FOLDER = ".stale"


def stale(sweep: Sweep, points: Sequence[Point]) -> dict[str, tuple[str, ...]]:
    """Points that have been begun and whose results would differ now, by name, with the modules that have changed.

    If there are no modules, the data has changed. Runs of earlier versions did not record their code.
    """
    hashes: dict[str, str | None] = {}
    found: dict[str, tuple[str, ...]] = {}
    for point in points:
        manifest = open_run(sweep.directory(point)).manifest
        if modules := changed(manifest.get("code", {})):
            found[point.name] = tuple(modules)
            continue
        key = json.dumps(point.config["data"], sort_keys=True)
        if key not in hashes:
            hashes[key] = _hash_now(point.config)
        if hashes[key] not in (None, manifest.get("data_hash")):
            found[point.name] = ()
    return found


def reason(modules: Sequence[str]) -> str:
    """Why a stale point runs again, in words."""
    return f"{', '.join(modules) or 'the data'} {'has' if len(modules) == 1 else 'have'} changed since"


def check_imported(old: Mapping[str, Sequence[str]]) -> None:
    """Check that this process has the present code of stale points, which are to run again.

    Raises:
        ConfigError: one of their modules has changed since this process imported it.
    """
    if names := outdated(sorted({module for modules in old.values() for module in modules})):
        raise ConfigError(
            f"{', '.join(names)}: changed since this process imported it, so that points would run again with the"
            " former code; start Python anew, or call importlib.reload on it"
        )


def set_aside(sweep: Sweep, point: Point) -> None:
    """Move the run of a point to `FOLDER`."""
    folder = sweep.path / FOLDER
    folder.mkdir(exist_ok=True)
    sweep.directory(point).rename(free_name(folder, point.name))


def _hash_now(config: dict[str, Any]) -> str | None:
    """Hash of the data that a point would load now; None if it cannot be loaded, which does not make results stale."""
    try:
        _, dataset = problem_and_dataset(experiment_of(config).data)
    except FedsimError:
        return None
    return data_hash(dataset)
