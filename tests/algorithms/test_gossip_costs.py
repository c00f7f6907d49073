"""Costs of a round of gossip for every node, by the ledger; and the checks of settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms import (
    ADPSGD,
    BEER,
    D2,
    DPSGD,
    KGT,
    NIDS,
    SGP,
    ChocoSGD,
    DeepSqueeze,
    DFedAvg,
    DFedSAM,
    ExactDiffusion,
    Extra,
    GradientTracking,
    QGDSGDm,
)
from fedsim.clients import cohort
from fedsim.compress import QSGD, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.messages.ledger import Ledger
from tests.algorithms.gossip_federations import LOPSIDED, PUSH, TOPOLOGIES, gossiping
from tests.algorithms.quadratics import heterogeneous, states
from topologies import OnePeerExponential, Ring, Static

F = heterogeneous(n=6, d=5)
M = np.array([len(b) for b in F.b])
K = 3
VECTOR, NUMBER = 6 + 8 * F.d, 2 + 8                        # in a message, float64
TOP, PACKED = TopK(k=2, code="packed"), 11 + 2 + 17        # two of five values: header, code and count, 2 (3 + 64) bits
ALL = list(range(6))
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])


def costs(algorithm: Any, fed: Federation, S: list[int] = ALL) -> Ledger:
    """The ledger of round 1 alone."""
    (first,), meter = states(algorithm, fed, np.zeros(F.d), []), Meter(fed)
    algorithm.round(first, cohort(fed, 1, np.array(S), meter=meter))
    return meter.ledger


TABLE = [                          # messages over each link, bytes of one, gradients a step
    (DFedAvg(), 1, 1 + VECTOR, 1),
    (DFedAvg(momentum=0.9, gossip_steps=4), 4, 1 + VECTOR, 1),
    (DFedAvg(gossip_steps=2, order="CTA"), 2, 1 + VECTOR, 1),
    (DFedSAM(), 1, 1 + VECTOR, 2),
    (DFedSAM(gossip_steps=2, order="CTA"), 2, 1 + VECTOR, 2),
    (DFedSAM(rho=0.0, gossip_steps=3), 3, 1 + VECTOR, 1),
    (DPSGD(), 1, 1 + VECTOR, 1),
    (ADPSGD(), 1, 1 + VECTOR, 1),
    (GradientTracking(), 1, 3 + 2 * VECTOR, 1),
    (Extra(), 1, 1 + VECTOR, 1),
    (ExactDiffusion(), 1, 1 + VECTOR, 1),
    (KGT(), 1, 3 + 2 * VECTOR, 1),
    (QGDSGDm(), 1, 1 + VECTOR, 1),
    (SGP(), 1, 3 + VECTOR + NUMBER, 1),
    (ChocoSGD(compressor=TOP), 1, 1 + PACKED, 1),
    (ChocoSGD(lr=0, compressor=TOP), 1, 1 + PACKED, 0),
    (DeepSqueeze(compressor=TOP), 1, 1 + PACKED, 1),
    (BEER(compressor=TOP), 1, 3 + 2 * PACKED, 1),
]  # fmt: skip


@BACKENDS
@pytest.mark.parametrize("topology", ["ring", "irregular"])
@pytest.mark.parametrize(("algorithm", "messages", "size", "gradients"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_a_node_pays_for_every_link_and_exchange(
    algorithm: Any, messages: int, size: int, gradients: int, topology: str, backend: Any
) -> None:
    ledger = costs(algorithm, gossiping(F, LocalWork(0, steps=K), TOPOLOGIES[topology], backend))
    degree = {"ring": np.full(6, 2), "irregular": np.array([1, 4, 2, 2, 3, 2])}[topology]
    np.testing.assert_array_equal(ledger.up, messages * degree * size)
    np.testing.assert_array_equal(ledger.down, messages * degree * size)
    np.testing.assert_array_equal(ledger.gradient_evaluations, gradients * K * M)


@BACKENDS
def test_nids_sends_nothing_in_its_first_round_and_as_d2_a_vector_afterwards(backend: Any) -> None:
    fed = gossiping(F, LocalWork(0, steps=K), TOPOLOGIES["irregular"], backend)
    for algorithm, exchanges in ((NIDS(), 2), (D2(), 3)):
        meter = Meter(fed)
        states(algorithm, fed, np.zeros(F.d), [ALL] * 3, meter)
        np.testing.assert_array_equal(meter.ledger.up, exchanges * np.array([1, 4, 2, 2, 3, 2]) * (1 + VECTOR))
        np.testing.assert_array_equal(meter.ledger.down, meter.ledger.up)
        np.testing.assert_array_equal(meter.ledger.gradient_evaluations, 3 * K * M)


@pytest.mark.parametrize("Q", [1, 3])
@pytest.mark.parametrize("algorithm", [DFedAvg, DFedSAM])
def test_links_to_nodes_that_are_away_are_free(algorithm: Any, Q: int) -> None:
    """On the ring 0-1-2-3-4-5-0 without 3: its neighbours have one link left."""
    fed = gossiping(F, LocalWork(0, steps=K), Static(Ring()))
    ledger = costs(algorithm(gossip_steps=Q), fed, [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(ledger.up, Q * np.array([2, 2, 1, 0, 1, 2]) * (1 + VECTOR))
    np.testing.assert_array_equal(ledger.down, ledger.up)
    assert ledger.gradient_evaluations[3] == 0
    alone = costs(algorithm(gossip_steps=Q), fed, [3])
    assert alone.up.sum() == alone.down.sum() == 0


def test_directed_links_are_paid_by_those_who_speak_and_by_those_who_hear() -> None:
    ledger = costs(SGP(), gossiping(F, LocalWork(0, steps=K), PUSH))
    size = 3 + VECTOR + NUMBER
    assert ledger.up.tolist() == [LOPSIDED.out_degree(i) * size for i in range(6)]
    assert ledger.down.tolist() == [LOPSIDED.in_degree(i) * size for i in range(6)]
    assert len(set(ledger.up)) == 3 and ledger.up.tolist() != ledger.down.tolist()


def test_one_peer_is_one_message_each() -> None:
    ledger = costs(DFedAvg(), gossiping(F, LocalWork(0, steps=K), OnePeerExponential()))
    assert ledger.up.tolist() == ledger.down.tolist() == [1 + VECTOR] * 6


@pytest.mark.parametrize(
    "algorithm",
    [
        *(DFedAvg(), DFedSAM(), DPSGD(), Extra(), ExactDiffusion(), SGP(), GradientTracking()),
        *(ChocoSGD(), DeepSqueeze(), BEER(), NIDS(), D2(), KGT(), QGDSGDm()),
    ],
    ids=str,
)
def test_initialisation_sends_nothing_and_only_trackers_need_gradients(algorithm: Any) -> None:
    fed = gossiping(F, LocalWork(0, steps=K), Static(Ring()))
    meter = Meter(fed)
    states(algorithm, fed, np.zeros(F.d), [], meter)
    assert meter.ledger.up.sum() == meter.ledger.down.sum() == 0
    first = K * M if isinstance(algorithm, GradientTracking | BEER) else 0 * M
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, first)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (DFedAvg, {"lr": 0.0}, "DFedAvg.lr is 0.0"),
        (DFedAvg, {"momentum": 1.0}, r"DFedAvg.momentum is 1.0; expected a number in \[0, 1\)"),
        (DFedAvg, {"gossip_steps": 0}, "DFedAvg.gossip_steps is 0; expected a whole number, 1 or more"),
        (DFedAvg, {"gossip_steps": 1.5}, "DFedAvg.gossip_steps is 1.5"),
        (DFedAvg, {"order": "ACT"}, "DFedAvg.order is 'ACT'; expected one of 'ATC', 'CTA'"),
        (DFedSAM, {"lr": float("nan")}, "DFedSAM.lr is nan"),
        (DFedSAM, {"rho": -0.1}, "DFedSAM.rho is -0.1"),
        (DFedSAM, {"order": "TCA"}, "DFedSAM.order is 'TCA'; expected one of 'ATC', 'CTA'"),
        (DFedSAM, {"gossip_steps": True}, "DFedSAM.gossip_steps is True"),
        (DPSGD, {"lr": -1.0}, "DPSGD.lr is -1.0"),
        (GradientTracking, {"lr": "0.1"}, "GradientTracking.lr is '0.1'"),
        (Extra, {"lr": 0.0}, "Extra.lr is 0.0"),
        (ExactDiffusion, {"lr": float("inf")}, "ExactDiffusion.lr is inf"),
        (NIDS, {"theta": 0.0}, "NIDS.theta is 0.0"),
        (D2, {"lr": 0.0}, "D2.lr is 0.0"),
        (KGT, {"server_lr": 0.0}, "KGT.server_lr is 0.0"),
        (QGDSGDm, {"momentum": 1.0}, "QGDSGDm.momentum is 1.0"),
        (QGDSGDm, {"mu": 1.0}, "QGDSGDm.mu is 1.0"),
        (SGP, {"lr": 0}, "SGP.lr is 0"),
        (ChocoSGD, {"lr": -0.1}, "ChocoSGD.lr is -0.1; expected a finite number, 0 or more"),
        (ChocoSGD, {"gamma": 1.5}, "ChocoSGD.gamma is 1.5; expected a number above 0 and at most 1"),
        (DeepSqueeze, {"gamma": 0}, "DeepSqueeze.gamma is 0; expected a number above 0 and at most 1"),
        (BEER, {"lr": 0}, "BEER.lr is 0"),
        (BEER, {"compressor": QSGD()}, r"BEER.compressor is .* unbiased .* expected a contractive one: Scaled\(QSGD"),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings)
