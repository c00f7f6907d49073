"""Schedules whose step size is 0 from some round on, as that of ``Cosine`` over fewer rounds than the run has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from algorithms import ALGORITHMS, LORA, MARINA, SlowMo, StreamingDiLoCo
from fedsim.algorithm import has_server
from fedsim.engine.local_work import LocalWork
from fedsim.tree import leaves
from fedsim.types import Kept
from tests.algorithms.gossip_federations import gossiping
from tests.algorithms.quadratics import everybody, federation, heterogeneous, iterates, states
from topologies import Ring, Static

F = heterogeneous(4, 6)
X0 = np.random.default_rng(9).standard_normal(F.d)
WORK = LocalWork(4, steps=3)
SETTINGS: dict[Any, dict[str, Any]] = {StreamingDiLoCo: {"fragments": 1}, MARINA: {"p": 0.5}}


def decay(t: int) -> float:
    """1, 1/2, and 0 from round 3 on."""
    return max(0.0, 1.5 - 0.5 * t)


def tensors(state: Any) -> list[Tensor]:
    """All numbers of a state, with the memories of every client."""
    found = []
    for part in state:
        trees = [part[i] for i in range(F.n)] if isinstance(part, Kept) else [part]
        found += [leaf for tree in trees for leaf in leaves(tree)]
    return found


@pytest.mark.parametrize("cls", [cls for cls in ALGORITHMS if cls not in LORA], ids=lambda cls: cls.__name__)
def test_a_step_size_of_0_leaves_every_state_finite(cls: Any) -> None:
    algorithm = cls(**SETTINGS.get(cls, {}))
    fed = federation(F, WORK, decay=decay)
    if not has_server(algorithm):
        fed = gossiping(F, WORK, Static(Ring(), lazy=True), decay=decay)
    *_, last = states(algorithm, fed, X0, everybody(F.n, 5))
    found = tensors(last)
    assert found
    assert all(bool(part.isfinite().all()) for part in found)


def test_slowmo_stands_still_where_the_step_size_is_0() -> None:
    x = iterates(SlowMo(lr=0.1), federation(F, WORK, decay=decay), X0, everybody(F.n, 5))
    assert not np.allclose(x[0], x[1])
    np.testing.assert_array_equal(x[3], x[2])
    np.testing.assert_array_equal(x[4], x[2])
