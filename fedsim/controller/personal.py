"""Models of single clients: personal ones, those after fine-tuning, and those of clients that never trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedsim.clients import cohort
from fedsim.controller import scoring
from fedsim.controller.evaluate import Row, of_scope
from fedsim.controller.keeping import own_layers
from fedsim.controller.prepare import Prepared
from fedsim.controller.scoring import OwnScores
from fedsim.engine.blocks import Blocks
from fedsim.engine.fallback import BlocksOrLoop
from fedsim.engine.federation import Federation
from fedsim.engine.loop import Loop
from fedsim.engine.memory import OnDevice
from fedsim.engine.sharing import selected
from fedsim.experiment.experiment import Experiment
from fedsim.types import Batch, Kept, Local
from fedsim.values import Vector

Models = Callable[[int], Vector]
"""Function from a client to the vector ``[d]`` of its model."""
Scoring = Callable[[Experiment, Prepared, Any, str], OwnScores]
"""Function that scores clients' models in a state: see ``fedsim.controller.host.Host.model_scores``."""


def rows_of_models(experiment: Experiment, prepared: Prepared, state: Any, scoring: Scoring) -> list[Row]:
    """Metrics of each client's own model, before and after fine-tuning, as far as the experiment has them.

    "personal/holdout" is a client's own model on its withheld samples, "tuned/holdout" that after fine-tuning on its
    training samples; "unseen/holdout" and "unseen_tuned/holdout" are the server's model, and after fine-tuning, at
    clients that never train.
    """
    settings = experiment.evaluation
    scopes = {
        "personal": kept_of_models(prepared, state) is not None,
        "tuned": settings.fine_tune > 0,
        "unseen": settings.unseen > 0,
        "unseen_tuned": settings.unseen > 0 and settings.fine_tune > 0,
    }
    found: list[Row] = []
    for scope in (scope for scope, measured in scopes.items() if measured):
        scores = scoring(experiment, prepared, state, scope)
        found += of_scope(scope, prepared.own_kind, prepared, scores, settings)
    return found


def kept_of_models(prepared: Prepared, state: Any) -> Kept[Vector] | None:
    """The part of its own model that each client keeps: some layers ``[p]``, or all ``[d]``; None if it has no own one.
    """
    if prepared.federation.model.sharing is not None:
        slots = state.slots
        return Kept(slots.n, slots.default[-1], {client: row[-1] for client, row in slots.rows.items()})
    while hasattr(state, "inner"):
        state = state.inner
    own: Kept[Vector] | None = getattr(state, "personal", None)
    return own


def personal_model(prepared: Prepared, state: Any) -> Models | None:
    """Function from a client to the vector ``[d]`` of its own model; None if all clients have the server's."""
    sharing = prepared.federation.model.sharing
    if sharing is not None:
        return own_layers(state, sharing)
    own = kept_of_models(prepared, state)
    return None if own is None else own.__getitem__


def scores_of_models(experiment: Experiment, prepared: Prepared, state: Any, scope: str) -> OwnScores:
    """Score clients' models in this process: see ``fedsim.controller.host.Host.model_scores``."""
    federation, own = prepared.federation, prepared.own
    server, models = federation.model.whole(state.x), personal_model(prepared, state)
    if scope.startswith("unseen"):
        assert prepared.unseen is not None
        train, own = prepared.unseen
        federation, models = replace(federation, shards=train, weights=None), None
    models = models or (lambda _: server)
    if scope.endswith("tuned"):
        models = fine_tuned(experiment, federation, models, range(own.n)).__getitem__
    model, classes = federation.model, bool(prepared.dataset.classes)

    def each(node: int) -> scoring.Scores:
        samples = own.rows(node)
        return scoring.score(model, models(node), samples.x, samples.y, classes, prepared.keeps_outputs)

    return scoring.by_client(prepared, scoring.together([each(node) for node in range(own.n)]), own)


@dataclass(frozen=True)
class FineTuning:
    """Local steps from a client's own model, of the layers with 1 in a mask."""

    lr: float

    def client(self, local: Local, mask: Vector, x: Vector) -> Vector:
        """The model ``[d]`` after fine-tuning."""

        def step(y: Vector, batch: Batch, mask: Vector) -> Vector:
            return torch.where(mask > 0, local.descend(y, local.grad(y, batch), self.lr), y)

        return local.fold(step, x, mask)


def fine_tuned(
    experiment: Experiment, federation: Federation, models: Models, nodes: Sequence[int]
) -> Kept[Vector]:
    """The models of some clients after fine-tuning on their training samples; nothing is charged."""
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
    rate, ids = settings.fine_tune_lr, np.array(nodes)
    before = Kept(here.shards.n, models(nodes[0]), {node: models(node) for node in nodes})
    tuning = FineTuning(getattr(experiment.algorithm, "lr") if rate is None else rate)  # noqa: B009
    return cohort(here, 0, ids).apply(tuning.client, before, down=mask.to(model.device, model.dtype))
