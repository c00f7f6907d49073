"""Shared by the tests: a run that is interrupted, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim import Experiment, resume, run
from fedsim.controller.rounds import SeedRun
from fedsim.record.directory import RunDirectory


def stopped_and_resumed(
    experiment: Experiment, path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> RunDirectory:
    """The run in ``path``, interrupted when round ``at`` is evaluated, and resumed."""
    measure = SeedRun._measure

    def stopped(self: SeedRun, round: int, *rest: Any) -> Any:
        if round == at:
            raise KeyboardInterrupt
        return measure(self, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "_measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, output=path, progress=False)
    return resume(path, experiment, progress=False)
