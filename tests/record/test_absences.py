"""Clients that rounds are done without: who is told, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import Evaluation, resume, run
from fedsim.controller.host import Host
from fedsim.experiment.sampling import FixedSize
from fedsim.record.absences import Absence, summary
from tests.controller.test_run import SMALL


def test_a_change_is_told_once() -> None:
    said: list[str] = []
    absence = Absence(said.append)
    absence.note(1, [0, 1, 2], [])
    assert said == []
    absence.note(2, [0, 1, 2], [1])
    absence.note(3, [0, 1, 2], [1])
    absence.note(4, [0, 2], [])                            # who was not asked is not back
    assert said == ["round 2: 1 client missing: 1"]
    absence.note(5, [0, 1, 2], [0, 1])
    absence.note(6, [0, 1, 2], [])
    assert said[1:] == ["round 5: 2 clients missing: 0, 1", "round 6: no clients missing any more"]
    absence.note(7, range(40), range(20))
    assert said[-1] == "round 7: 20 clients missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 10 more"


def test_they_are_counted() -> None:
    assert summary({r: [1] for r in range(1, 5)}, 4) == "1 client missing in 4 of 4 rounds: 1"
    assert summary({2: [1], 3: [1, 5]}, 9) == "2 clients missing in 2 of 9 rounds: 1, 5 (1)"


class Skipping(Host):
    """Without client 3 from round 2 on, and interrupted before round 4."""

    def __init__(self, said: list[str], until: int) -> None:
        super().__init__()
        self.say, self.until = said.append, until

    def round(self, algorithm: Any, state: Any, federation: Any, meter: Any, round: int, ids: np.ndarray) -> Any:
        if round == self.until:
            raise KeyboardInterrupt
        self.skipped = [3] if round > 1 else []
        return super().round(algorithm, state, federation, meter, round, np.setdiff1d(ids, self.skipped))


def test_a_run_tells_it_as_it_happens_and_at_its_end(tmp_path: Path) -> None:
    experiment = replace(SMALL, rounds=5, sampling=FixedSize(1.0), evaluation=Evaluation(every=5))
    first, second = list[str](), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run(experiment, output=tmp_path / "run", progress=False, host=Skipping(first, 4))
    assert first == ["round 2: 1 client missing: 3"]
    resume(tmp_path / "run", progress=False, host=Skipping(second, 0))
    assert second == ["round 4: 1 client missing: 3", "seed 0: 1 client missing in 4 of 5 rounds: 3"]
