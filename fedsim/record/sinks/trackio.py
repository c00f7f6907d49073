"""Metrics of a run for trackio, whose folder has all runs of a project; needs the extra ``trackio``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError, how_to_install
from fedsim.record.directory import RunDirectory

PROJECT = "fedsim"


if find_spec("trackio") is None:
    raise ConfigError(f"this sink needs trackio; {how_to_install('trackio')}")


class TrackioRuns:
    """Runs in a project of trackio, one a seed; see ``fedsim.record.sinks.sink.Sink``.

    Args:
        run: the run.
        folder: trackio's; None is its own, which the environment sets by ``TRACKIO_DIR``.
        replace: replace runs of the same name, made by the part of this run before a resume.

    Raises:
        ConfigError: trackio works in another folder in this process, or has a run of this name.
    """

    def __init__(self, run: RunDirectory, folder: Path | None, *, replace: bool) -> None:
        if folder is not None and "trackio" not in sys.modules:
            os.environ["TRACKIO_DIR"] = str(folder.resolve())   # which it reads when it is imported
        import trackio

        if folder is not None and Path(trackio.TRACKIO_DIR) != folder.resolve():
            raise ConfigError(f"trackio works in {trackio.TRACKIO_DIR}, and cannot change to {folder} in this process")
        self._trackio, self.run, self._runs = trackio, run, dict[int, Any]()
        name = run.path.resolve().name
        self._names = {int(seed): f"{name} seed {seed}" for seed in run.manifest["status"]}
        for each in self._known():
            if not replace:
                raise ConfigError(f"{trackio.TRACKIO_DIR} has a run {each.name!r} already; choose another folder")
            each.delete()

    def _known(self) -> list[Any]:
        """Runs of trackio with the names of these."""
        if not any(Path(self._trackio.TRACKIO_DIR).glob(f"{PROJECT}.*")):
            return []
        return [each for each in self._trackio.Api().runs(PROJECT) if each.name in self._names.values()]

    def write(self, seed: int, values: Mapping[int, Mapping[str, float]], seconds: Mapping[int, float]) -> None:
        """See ``Sink``."""
        with contextlib.redirect_stdout(sys.stderr):       # trackio prints there
            if seed not in self._runs:
                self._runs[seed] = self._trackio.init(
                    project=PROJECT, name=self._names[seed], group=self.run.path.resolve().name,
                    config={**self.run.config, "seed": seed}, embed=False, auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
            for round, measured in values.items():
                when = {"host/seconds": seconds[round]} if round in seconds else {}
                self._runs[seed].log({**measured, **when}, step=round)

    def close(self) -> None:
        """See ``Sink``."""
        with contextlib.redirect_stdout(sys.stderr):
            for each in self._runs.values():
                each.finish()
            if self._runs:
                self._trackio.finish()                     # or it would finish the last one at exit, and say so

    def see(self) -> str:
        """See ``Sink``."""
        return f"TRACKIO_DIR={self._trackio.TRACKIO_DIR} trackio show --project {PROJECT}"


def open_sink(run: RunDirectory, folder: Path | None) -> TrackioRuns:
    """See ``fedsim.record.sinks.sink.maker``."""
    return TrackioRuns(run, folder, replace=folder is None)
