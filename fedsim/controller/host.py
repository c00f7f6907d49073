"""Where the clients of a run live: here, this process. ``fedsim.backends.ray`` and ``flower`` define other hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from fedsim.algorithm import Algorithm
from fedsim.clients import cohort
from fedsim.controller import scoring
from fedsim.controller.foresight import Foresight
from fedsim.controller.notes import note
from fedsim.controller.personal import scores_of_models
from fedsim.controller.prepare import Prepared, check_partition, prepare
from fedsim.engine.federation import Federation, Meter
from fedsim.experiment.experiment import Experiment
from fedsim.partition import Partition
from fedsim.record.directory import RunDirectory
from fedsim.tree import Samples, fetched
from fedsim.types import Kept
from fedsim.values import Far, Vector

T = TypeVar("T")
KEPT_BYTES = 2**27
"""Memory for partitions that were made to check them."""


class Host:
    """Operations that depend on where the clients are hosted. A context manager, exited when the run ends."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = note
        self.skipped: list[int] = []                       # clients of the last cohort that took no part
        self.foresees = True                               # asynchronous tasks have had the costs that were foreseen
        self._made: dict[int, tuple[Experiment, Partition]] = {}     # of seeds that have not begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release all resources."""

    def prepare(self, experiment: Experiment, seed: int) -> Prepared:
        """Prepare the federation of one seed."""
        of, made = self._made.pop(seed, (None, None))
        return prepare(experiment, seed, made if of is experiment else None)

    def check_other_seeds(self, experiment: Experiment, first: Prepared, others: Sequence[int]) -> None:
        """Check that other seeds than that of ``first`` can be prepared, before any of them is run.

        Their partitions are kept for `prepare` as long as they are small, and are made again otherwise.
        """
        room = KEPT_BYTES
        for seed in others:
            made = check_partition(experiment, first, seed)
            if (room := room - made.indices.nbytes - made.offsets.nbytes) >= 0:
                self._made[seed] = experiment, made

    def connect(
        self, experiment: Experiment, prepared: Prepared, directory: RunDirectory, before: dict[str, Any] | None
    ) -> tuple[Federation, dict[str, Any]] | None:
        """Return the federation with its backend, and a record of that backend, which is ``before`` when the run
        resumes from a checkpoint. None lets the controller choose a backend in this process.
        """
        return None

    def init(
        self, algorithm: Algorithm[Any], x: Vector, federation: Federation, meter: Meter, template: bool
    ) -> Any:
        """Return the state before round 1. Only the layout of a ``template`` matters; a checkpoint has the values."""
        return algorithm.init(x, cohort(federation, 0, meter=meter))

    def round(
        self, algorithm: Algorithm[Any], state: Any, federation: Federation, meter: Meter, round: int, ids: np.ndarray
    ) -> Any:
        """Run a round with the cohort ``ids`` and return the new state."""
        return algorithm.round(state, cohort(federation, round, ids, meter))

    def attempt(self, what: str, federation: Federation, meter: Meter, do: Callable[[], T]) -> T:
        """Return ``do()``; a host whose machines can be lost repeats it, and calls it ``what`` in messages."""
        return do()

    def ahead(self, federation: Federation, foresight: Foresight) -> Federation:
        """Return the federation for asynchronous tasks whose costs ``foresight`` knows. Where machines can compute
        several of them at a time, its backend need not wait for their messages.
        """
        return federation

    def finish(
        self, algorithm: Algorithm[Any], state: Any, federation: Federation, meter: Meter, round: int
    ) -> Any:
        """Return the state after the last round, with what an algorithm still has under way."""
        end = getattr(algorithm, "finish", None)
        return state if end is None else end(state, cohort(federation, round, meter=meter))

    def saved(self, state: Any) -> None:
        """Called when a checkpoint with this state has been written."""

    def present(self, x: Kept[Vector]) -> Sequence[int]:
        """Ids of the nodes whose models are available now."""
        return range(x.n)

    def score(self, prepared: Prepared, x: Vector | Far, inputs: Samples, targets: Samples) -> scoring.Scores:
        """Score the model ``x`` on each sample."""
        classes = bool(prepared.dataset.classes)
        model, backend = prepared.federation.model, prepared.federation.backend
        how = {name: getattr(backend, name) for name in ("threads", "kernels") if hasattr(backend, name)}
        return scoring.score(model, fetched(x), inputs, targets, classes, prepared.keeps_outputs, **how)

    def own_scores(self, prepared: Prepared, x: Vector, nodes: np.ndarray) -> scoring.OwnScores:
        """Score the model ``x`` on the own samples of some clients."""
        return scoring.own_scores(prepared, self.score, x, nodes)

    def model_scores(self, experiment: Experiment, prepared: Prepared, state: Any, scope: str) -> scoring.OwnScores:
        """Score clients' models in a state on their own samples.

        Args:
            experiment: the experiment.
            prepared: the federation.
            state: of the algorithm.
            scope: "personal": each client's own model; "tuned": that, or the server's, after fine-tuning; "unseen" and
                "unseen_tuned": the server's at clients that never train.
        """
        return scores_of_models(experiment, prepared, state, scope)
