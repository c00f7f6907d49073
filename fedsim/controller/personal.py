"""Models of single clients: personal ones, those after fine-tuning, and those of clients that never trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsim.clients import cohort
from fedsim.controller import evaluate
from fedsim.controller.evaluate import OwnScores, Row
from fedsim.controller.keeping import own_layers
from fedsim.controller.prepare import Prepared
from fedsim.engine.blocks import Blocks
from fedsim.engine.fallback import BlocksOrLoop
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.memory import OnDevice
from fedsim.engine.sharing import selected
from fedsim.experiment.experiment import Experiment
from fedsim.tree import Samples
from fedsim.types import Batch, Kept, Local
from fedsim.values import Vector

Models = Callable[[int], Vector]
"""Function from a client to the vector ``[d]`` of its model."""
Scoring = Callable[[Prepared, Any, Models], OwnScores]
"""Function that scores clients' models in a state: see ``fedsim.controller.host.Host.personal_scores``."""


def rows_of_models(experiment: Experiment, prepared: Prepared, state: Any, scoring: Scoring) -> list[Row]:
    """Metrics of each client's own model and of those after fine-tuning, as far as the experiment has them.

    "personal/holdout" is a client's own model on its withheld samples, "tuned/holdout" that after fine-tuning on its
    training samples; "unseen/holdout" and "unseen_tuned/holdout" are the server's model, and after fine-tuning, at
    clients that never train.
    """
    model, settings = prepared.federation.model, experiment.evaluation
    personal = personal_model(prepared, state)
    server = model.whole(state.x)

    def rows(scope: str, models: Callable[[int], Vector], own: Shards) -> list[Row]:
        scores = scores_of(prepared, models, own)
        return evaluate.of_scope(scope, prepared.own_kind, prepared, scores, settings)

    found: list[Row] = []
    if personal is not None:
        scores = scoring(prepared, state, personal)
        found += evaluate.of_scope("personal", prepared.own_kind, prepared, scores, settings)
    if settings.fine_tune:
        tuned = fine_tuned(experiment, prepared.federation, personal or (lambda _: server))
        found += rows("tuned", tuned.__getitem__, prepared.own)
    if prepared.unseen is not None:
        train, own = prepared.unseen
        found += rows("unseen", lambda _: server, own)
        if settings.fine_tune:
            elsewhere = replace(prepared.federation, shards=train, weights=None)
            tuned = fine_tuned(experiment, elsewhere, lambda _: server)
            found += rows("unseen_tuned", tuned.__getitem__, own)
    return found


def personal_model(prepared: Prepared, state: Any) -> Callable[[int], Vector] | None:
    """Function from a client to the vector ``[d]`` of its own model; None if all have the server's."""
    sharing = prepared.federation.model.sharing
    if sharing is not None:
        return own_layers(state, sharing)
    while hasattr(state, "inner"):
        state = state.inner
    own: Kept[Vector] | None = getattr(state, "personal", None)
    return None if own is None else own.__getitem__


def scores_of(prepared: Prepared, models: Callable[[int], Vector], own: Shards) -> OwnScores:
    """Score each client's model on its own samples, in this process."""
    model, classes = prepared.federation.model, bool(prepared.dataset.classes)

    def score(x: Vector, inputs: Samples, targets: Samples) -> evaluate.Scores:
        return evaluate.score(model, x, inputs, targets, classes, prepared.keeps_outputs)

    def each() -> Iterator[evaluate.Scores]:
        for node in range(own.n):
            samples = own.rows(node)
            yield score(models(node), samples.x, samples.y)

    return evaluate.by_client(prepared, evaluate.together(list(each())), own)


@dataclass(frozen=True)
class FineTuning:
    """Local steps from a client's own model, of the layers with 1 in a mask."""

    lr: float

    def client(self, local: Local, mask: Vector, x: Vector) -> Vector:
        """The model ``[d]`` after them."""

        def step(y: Vector, batch: Batch, mask: Vector) -> Vector:
            return torch.where(mask > 0, local.descend(y, local.grad(y, batch), self.lr), y)

        return local.fold(step, x, mask)


def fine_tuned(experiment: Experiment, federation: Federation, models: Callable[[int], Vector]) -> Kept[Vector]:
    """Every client's model after fine-tuning on its training samples; nothing is charged."""
    settings, backend = experiment.evaluation, federation.backend
    model = copy.copy(federation.model)
    model.sharing = None                                  # all layers are the client's now
    chosen = selected(model.module, model.names, settings.fine_tune_layers, "evaluation.fine_tune_layers")
    mask = torch.cat([torch.full((size,), float(hit)) for hit, size in zip(chosen, model.sizes, strict=True)])
    here = replace(
        federation,
        model=model,
        work=replace(federation.work, steps=settings.fine_tune),
        backend=backend if isinstance(backend, Loop | Blocks | BlocksOrLoop) else Loop(),
        cohort_size=None,
        memory=OnDevice(),
    )
    n, rate = here.shards.n, settings.fine_tune_lr
    before = Kept(n, models(0), {node: models(node) for node in range(n)})
    tuning = FineTuning(getattr(experiment.algorithm, "lr") if rate is None else rate)  # noqa: B009
    return cohort(here, 0).apply(tuning.client, before, down=mask.to(model.device, model.dtype))
