"""Local optimisers and settings of the step in every method that makes local steps, on every backend as in the loop."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms import CO2, FedAvg
from fedsim import Adagrad, AdamW, HeavyBall, LocalWork, Nesterov, RMSprop
from fedsim.clients import cohort
from fedsim.controller.keeping import Keeping
from tests.contract.cases import ALGORITHMS, cohorts_of, federation, gap, initial, play, rounds

WORKS = {
    "AdamW": LocalWork(4, epochs=2, optimizer=AdamW()),
    "Nesterov": LocalWork(4, steps=3, optimizer=Nesterov()),
    "RMSprop": LocalWork(4, epochs=2, optimizer=RMSprop(eps=1e-3)),
    "HeavyBall, at the step": LocalWork(
        4, steps=3, optimizer=HeavyBall(0.5), weight_decay=0.1, clip_norm=0.3, weight_decay_mode="step",
        clip_mode="direction",
    ),
    "Adagrad, at the step": LocalWork(
        4, epochs=2, optimizer=Adagrad(), weight_decay=0.1, clip_norm=0.3, weight_decay_mode="step",
        clip_mode="direction",
    ),
}  # fmt: skip
METHODS = (
    "FedAvg", "FedProx", "FedAdam", "FedSAM", "SCAFFOLD I", "FedSpeed", "FedSpeed plain", "DFedAvg", "DFedSAM", "SGP",
    "FedAvg, PowerSGD",
)  # fmt: skip


@pytest.mark.parametrize("backend", ["blocks of 4", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("work", WORKS)
def test_as_in_the_loop(method: str, work: str, backend: Any) -> None:
    loop, other = play(method, work=WORKS[work]), play(method, work=WORKS[work], backend=backend)
    for a, b in zip(loop.states, other.states, strict=True):
        assert gap(a, b) <= 2e-12, "RMSprop divides by roots of small numbers, which enlarges rounding"
    assert gap(loop.states[-1], play(method).states[-1]) > 1e-6


@pytest.mark.parametrize("backend", ["blocks of 4", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize("method", ["FedSpeed", "DFedAvg", "SGP", "DFedSAM, CHOCO", "FedAvg, PowerSGD"])
def test_kept_as_in_the_loop(method: str, backend: str) -> None:
    by = AdamW(state="keep")
    cohorts = cohorts_of(ALGORITHMS[method])

    def last(backend: str) -> Any:
        fed = federation(work=LocalWork(4, epochs=2, optimizer=by), backend=backend)
        return [*rounds(Keeping(ALGORITHMS[method], by.slots(initial(fed))), fed, cohorts)][-1]

    assert gap(last("loop"), last(backend)) <= 1e-12
    assert gap(last("loop").inner, play(method, work=LocalWork(4, epochs=2, optimizer=AdamW())).states[-1]) > 1e-3


def test_the_end_of_a_method_is_that_of_a_kept_one() -> None:
    by, algorithm = AdamW(state="keep"), CO2()
    fed = federation(work=LocalWork(4, epochs=2, optimizer=by))
    slots = by.slots(initial(fed))
    state = [*rounds(Keeping(algorithm, slots), fed, ((0, 1, 2, 3, 4, 5),) * 2)][-1]
    end = Keeping(algorithm, slots).finish(state, cohort(fed, 2))
    assert gap(end.inner, algorithm.finish(state.inner, cohort(fed, 2))) == 0
    assert gap(end.inner, state.inner) > 1e-6
    assert Keeping(FedAvg(), slots).finish(state, cohort(fed, 2)) is state
