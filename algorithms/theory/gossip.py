"""CHOCO-SGD, whose theory is of the consensus step and of no lr."""

from __future__ import annotations

from algorithms.choco import ChocoSGD
from algorithms.theory.step_sizes import Task, Theory, theory_of
from fedsim.errors import ConfigError


@theory_of.register
def _choco(algorithm: ChocoSGD, task: Task) -> Theory:
    raise ConfigError("the theory of ChocoSGD is of no lr: call its theory(W, d) yourself")
