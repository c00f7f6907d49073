"""Sweeps that grow: further points in the folder of an existing sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.controller.notes import note
from fedsim.errors import ConfigError
from fedsim.report.labels import flat
from fedsim.sweeps.grid import Point, Sweep, grows, is_sweep, open_sweep, start
from fedsim.sweeps.stale import set_aside

PARTS = ("tuning", "final")
"""Names of the folders of the two sweeps of a choice."""


def check_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or that of a choice.

    Raises:
        ConfigError: it holds something else.
    """
    ours = any(is_sweep(folder / part) for part in PARTS)
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds something else; choose another --output, or remove it first")


def widened(points: Sequence[Point], folder: Path, chosen: Collection[str] = ()) -> Sweep:
    """Open the sweep in this folder and add these points to it, or create it.

    Args:
        points: points with distinct names.
        folder: one of `PARTS` in the user's folder.
        chosen: names of points whose settings are the result of a choice. If the choice has changed, the previous run
            of a point is moved to ``.stale/``.

    Raises:
        ConfigError: the folder holds something else, or another of these points with other settings.
    """
    if not is_sweep(folder):
        return start(points, output=folder, name=folder.name)
    sweep = open_sweep(folder)
    known = {point.name: point for point in sweep.points}
    new = [point for point in points if known.get(point.name) != point]
    other = [point for point in new if point.name in known and not grows(known[point.name], point)]
    for point in other:
        if point.name not in chosen:
            raise ConfigError(
                f"{folder.parent} holds {point.name} with other settings of"
                f" {', '.join(_differing(known[point.name].config, point.config))}; repeat the command with those, or"
                " choose another --output"
            )
    if not new:
        return sweep
    with sweep.lock():
        for point in other:
            if sweep.directory(point).is_dir():
                set_aside(sweep, point)
                note(f"{point.name} runs again: other settings have been chosen")
        names = {point.name for point in points}
        return sweep.with_points([*points, *(point for point in sweep.points if point.name not in names)])


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    before, after = dict(flat(first)), dict(flat(second))
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]
