"""Models scored by the workers, each on a run of the samples: the passes, and so the bits, of one process."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedsim.backends.ray.actors import split
from fedsim.backends.ray.store import FarRow, to_array
from fedsim.backends.ray.workers import Workers
from fedsim.evaluate import CHUNK, Scores
from fedsim.tree import Far, fetched
from fedsim.types import Vector


def score(workers: Workers, x: Vector | Far, inputs: Tensor, targets: Tensor, classification: bool) -> Scores:
    """Loss and accuracy of a model on each sample; the workers know the federation.

    Raises:
        RoundLostError: a worker died.
        StateLostError: ``x`` went with the machine that held it.
    """
    ray = workers.ray
    model = x.ref if isinstance(x, FarRow) else ray.put(to_array(fetched(x)))
    samples = workers.share(inputs, targets)
    runs = split(np.ones(len(inputs)), CHUNK, len(workers))
    calls = [workers.call(run.worker, "score", model, *samples, run.start, run.stop, classification) for run in runs]
    parts: list[Scores] = workers.get([first for first, *_ in calls])
    hits = [part.accuracy for part in parts if part.accuracy is not None]
    return Scores(np.concatenate([part.loss for part in parts]), np.concatenate(hits) if hits else None)
