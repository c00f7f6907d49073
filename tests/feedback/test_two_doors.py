"""Two doors to one method: the algorithm of its paper, and another algorithm with the mechanism as its link."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from algorithms import DCGD, EF14, EF21, ChocoSGD, DFedAvg, EControl, FedAvg
from fedsim.compress import RandK, Scaled, TopK
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import LocalWork
from fedsim.feedback import Choco, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.feedback.compressed import Compressed
from tests.algorithms.gossip_federations import TOPOLOGIES, gossiping, rows
from tests.algorithms.quadratics import everybody, federation, heterogeneous, some, states

F = heterogeneous(n=6, d=8)
X0 = np.linspace(-1, 1, F.d)
WHOLE = LocalWork(0, steps=1)
"""With which a message of FedAvg is a step of gradient descent, but for how it is rounded: (x - eta g) - x."""


class Doors(NamedTuple):
    """An algorithm, what it equals, and by how many rounds it is ahead."""

    algorithm: Any
    linked: Any
    ahead: int = 0


def doors(by: Any) -> dict[str, Doors]:
    """The table, with a compressor."""
    return {
        "DCGD": Doors(DCGD(0.4, by), Compressed(FedAvg(0.4), Plain(by))),
        "EF14": Doors(EF14(0.4, by), Compressed(FedAvg(0.4), EF14Uplink(by))),
        "EF21": Doors(EF21(0.4, by, start="zero"), Compressed(FedAvg(1.0, 0.4), EF21Uplink(by)), -1),
        "EControl": Doors(EControl(0.4, by, 0.1, "zero"), Compressed(FedAvg(1.0, 0.4), EControlUplink(by, 0.1))),
    }


@pytest.mark.parametrize("by", [TopK(k=2), RandK(k=3, scaled=False), Scaled(RandK(k=3))], ids=str)
@pytest.mark.parametrize("cohorts", [everybody(6, 12), some(6, 3, 12)], ids=["everybody", "some"])
@pytest.mark.parametrize("name", doors(TopK()))
@pytest.mark.slow
def test_both_doors_lead_to_the_same_models(name: str, cohorts: list[list[int]], by: Any) -> None:
    """With the same draws, and bytes up. EF21's server moves before it hears, so it is a round behind from zero."""
    pair = doors(by)[name]
    fed = federation(F, WHOLE, weights=np.array([1.0, 2, 3, 1, 1, 2]))
    one, other = Meter(fed), Meter(fed)
    found = [s.x.numpy() for s in states(pair.algorithm, fed, X0, cohorts, one)[1:]]
    expected = [s.x.numpy() for s in states(pair.linked, fed, X0, cohorts, other)[1:]]
    np.testing.assert_allclose(found[-pair.ahead :], expected[: len(expected) + pair.ahead], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(one.ledger.up, other.ledger.up)


@pytest.mark.parametrize("by", [TopK(k=2), Scaled(RandK(k=3))], ids=str)
def test_choco_sgd_is_dfedavg_with_choco_bit_for_bit(by: Any) -> None:
    found, expected = (
        states(algorithm, gossiping(F, WHOLE, TOPOLOGIES["irregular"]), X0, everybody(6, 12))
        for algorithm in (ChocoSGD(0.2, 0.3, by), Compressed(DFedAvg(0.2), Choco(by, 0.3)))
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows(one.x), rows(other.x))
