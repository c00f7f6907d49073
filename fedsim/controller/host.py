"""Where the clients of a run are: in this process. ``fedsim.backends.ray`` and ``flower`` have hosts of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from fedsim.algorithm import Algorithm
from fedsim.clients import cohort
from fedsim.controller import evaluate
from fedsim.controller.prepare import Prepared, prepare
from fedsim.engine.federation import Federation, Meter
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory
from fedsim.tree import fetched
from fedsim.types import Kept
from fedsim.values import Far, Vector


def note(text: str) -> None:
    """Tell the user about an event."""
    print(f"fedsim: {text}", file=sys.stderr)


class Host:
    """What the controller leaves to the place where clients are. A context manager, left when the run ends."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = note
        self.skipped: list[int] = []                       # clients of the last cohort that its round was done without

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""

    def prepare(self, experiment: Experiment, seed: int) -> Prepared:
        """The federation of one seed."""
        return prepare(experiment, seed)

    def connect(
        self, experiment: Experiment, prepared: Prepared, directory: RunDirectory, before: dict[str, Any] | None
    ) -> tuple[Federation, dict[str, Any]] | None:
        """The federation with its backend, and a description of that: the one ``before`` where it goes on from a
        checkpoint. None has a backend of this process chosen.
        """
        return None

    def init(
        self, algorithm: Algorithm[Any], x: Vector, federation: Federation, meter: Meter, template: bool
    ) -> Any:
        """The state before round 1; as a ``template`` its values do not matter, since a checkpoint has those."""
        return algorithm.init(x, cohort(federation, 0, meter=meter))

    def round(
        self, algorithm: Algorithm[Any], state: Any, federation: Federation, meter: Meter, round: int, ids: np.ndarray
    ) -> Any:
        """The state after a round with the cohort ``ids``."""
        return algorithm.round(state, cohort(federation, round, ids, meter))

    def saved(self, state: Any) -> None:
        """Told that a checkpoint holds this state."""

    def present(self, x: Kept[Vector]) -> Sequence[int]:
        """The nodes whose models can be had now."""
        return range(x.n)

    def score(self, prepared: Prepared, x: Vector | Far, inputs: Tensor, targets: Tensor) -> evaluate.Scores:
        """The model ``x`` on each of some samples."""
        classes = bool(prepared.dataset.classes)
        return evaluate.score(prepared.federation.model, fetched(x), inputs, targets, classes)

    def own_scores(self, prepared: Prepared, x: Vector) -> evaluate.OwnScores:
        """The model ``x`` on the clients' own samples."""
        return evaluate.own_scores(prepared, self.score, x)
