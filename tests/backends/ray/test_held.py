"""Workers hold only what may still be requested, however long a run is and whoever has work in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from algorithms import FedAvg
from fedsim import Experiment, FixedSize, Local
from fedsim.backends.ray.actor import MOST_FUNCTIONS
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.controller.prepare import prepare
from fedsim.engine.federation import Federation
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from fedsim.values import Vector
from tests.backends.ray.dying import Dying
from tests.backends.ray.shared import workers

pytestmark = pytest.mark.ray


def federation() -> Federation:
    """20 clients in blocks of 5 on two workers."""
    experiment = Experiment(FedAvg(), partition=IidPartitioner(20), model=Logistic(), sampling=FixedSize(1.0))
    fed = prepare(experiment, 0).federation
    return replace(fed, backend=RayActors(workers(), 5), memory=ObjectStore(workers().ray))


def held(what: str = "_held") -> list[int]:
    """Number of these in each worker."""
    look = [actor.__ray_call__.remote(lambda self, what=what: len(getattr(self, what))) for actor in workers()._actors]
    return list(workers().ray.get(look))


def gradient(local: Local, x: Vector) -> Vector:
    return local.grad(x)


def test_a_worker_without_work_is_told_what_to_drop_when_it_has_some() -> None:
    """A few clients in most rounds are one block, which the first worker has."""
    fed = federation()
    x = fed.model.vector()
    for round in range(1, 25):
        everybody = round % 4 == 0
        clients = cohort(fed, round, None if everybody else np.arange(3))
        clients.mean(clients.each(gradient, x))
        assert max(held()) <= 1, round


def test_messages_of_a_round_in_which_a_client_raised_are_dropped() -> None:
    fed, algorithm = federation(), Dying(at_round=2, nodes=(0,), driver=-1)
    state = algorithm.init(fed.model.vector(), cohort(fed, 0))
    for _ in range(3):
        for round in (2, 1):
            try:
                state = algorithm.round(state, cohort(fed, round))
            except Exception as error:
                assert "client 0 raised ValueError" in str(error)
    assert max(held()) <= 1


@dataclass(frozen=True)
class Numbered:
    """A client function, one of many."""

    number: int

    def client(self, local: Local, x: Vector) -> Vector:
        """The gradient times the number."""
        return self.number * local.grad(x)


def test_functions_that_are_made_anew_are_forgotten() -> None:
    fed = federation()
    clients, x = cohort(fed, 1, np.arange(2)), fed.model.vector()
    first = clients.mean(clients.each(Numbered(1).client, x))
    for number in range(2, MOST_FUNCTIONS + 10):
        fed.backend.workers.teach(Numbered(number).client)  # type: ignore[attr-defined]
    assert len(workers()._taught) == MOST_FUNCTIONS and held("_functions") == [MOST_FUNCTIONS] * 2
    assert clients.mean(clients.each(Numbered(1).client, x)).equal(first), "it is taught again"
