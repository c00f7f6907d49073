"""Metrics of a run for Weights & Biases, a run of it for each seed; needs the extra ``wandb``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError, how_to_install
from fedsim.record.directory import RunDirectory

try:
    import wandb
except ImportError as error:
    raise ConfigError(f"this sink needs Weights & Biases ({error}); {how_to_install('wandb')}") from error


class WandbRuns:
    """Runs of Weights & Biases in a folder, one a seed; see ``fedsim.record.sinks.sink.Sink``.

    They are not sent anywhere unless the environment says ``WANDB_MODE=online``. A seed has the same id whenever it is
    written, so that a later copy replaces an earlier one.
    """

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        self.run, self.folder = run, folder
        self._runs: dict[int, Any] = {}

    def write(self, seed: int, values: Mapping[int, Mapping[str, float]], seconds: Mapping[int, float]) -> None:
        """See ``Sink``."""
        if seed not in self._runs:
            self._runs[seed] = self._begin(seed)
        for round, measured in values.items():
            when = {"host/seconds": seconds[round]} if round in seconds else {}
            self._runs[seed].log({**measured, **when}, step=round)

    def _begin(self, seed: int) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        name, made = self.run.path.resolve().name, self.run.manifest["created"]
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedsim"),
            name=f"{name} seed {seed}",
            group=name,
            id=hashlib.sha256(f"{name} {made} {seed}".encode()).hexdigest()[:12],
            config={**self.run.config, "seed": seed},
            dir=str(self.folder),
            mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    def close(self) -> None:
        """See ``Sink``."""
        for each in self._runs.values():
            each.finish()

    def see(self) -> str:
        """See ``Sink``."""
        return f"wandb sync {self.folder}/wandb/offline-run-*"


def open_sink(run: RunDirectory, folder: Path | None) -> WandbRuns:
    """See ``fedsim.record.sinks.sink.maker``."""
    assert folder is not None
    return WandbRuns(run, folder)
