"""Links that an algorithm can have, and the errors for those that it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from algorithms import BEER, DCGD, EF21BC, MARINA, DFedAvg, FedAvg
from fedsim.compress import LowPrecision, RandK, TopK
from fedsim.errors import ConfigError, DivergenceError
from fedsim.feedback import EF21P, Choco, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.feedback.compressed import Compressed
from fedsim.robust.robust import Robust
from tests.algorithms.gossip_federations import TOPOLOGIES, gossiping
from tests.algorithms.quadratics import everybody, federation, iterates, states
from tests.feedback.test_compressed import BOTH, TOP, WHOLE, WORK, X0, F, top, update
from topologies import OnePeerExponential


def median(rows: Tensor, weights: Tensor) -> Tensor:
    return rows.median(0).values


def test_rules_see_each_message_where_the_server_learns_it() -> None:
    algorithm = Robust(Compressed(FedAvg(lr=0.5), EF14Uplink(TOP)), median)
    x = iterates(algorithm, federation(F, WHOLE), X0, everybody(6, 1))[0]
    each = np.array([top(update(F, i, X0)) for i in range(6)])
    np.testing.assert_allclose(x, X0 + np.sort(each, 0)[2], atol=1e-15)
    with pytest.raises(ConfigError, match=r"uplink EF21Uplink adds up differences of memories, so aggregate median"):
        Robust(Compressed(FedAvg(), EF21Uplink(TOP)), median)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((FedAvg(), Choco()), "Choco is for .* among neighbours, but FedAvg .* to a server: EControl, EF14, EF21, Pl"),
        ((DFedAvg(), EF21Uplink()), "EF21 is for messages to a server, but DFedAvg .* among neighbours: Choco or P"),
        ((DFedAvg(), None, EF21P()), "DFedAvg has no server and so no downlink"),
        ((FedAvg(), EF21P()), "uplink EF21P is for messages from a server, but FedAvg needs .* to a server"),
        ((FedAvg(), TopK()), r"uplink is TopK\(.*; expected a mechanism of fedsim.feedback with a compressor"),
        ((FedAvg(), None, EF21BC()), r"downlink is EF21BC\(.*; expected a mechanism .* as EF21P\(TopK"),
        ((FedAvg(), None, EF21Uplink()), "downlink EF21 is for messages to a server, but .* from a server: Plain or"),
        *(((cls(), Plain()), f"{cls.__name__} compresses its messages by itself") for cls in (DCGD, BEER, MARINA)),
        ((EF21BC(), None, EF21P()), "EF21BC compresses its messages by itself; leave uplink and downlink out"),
    ],
)
def test_links_that_cannot_be(settings: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compressed(*settings)


@pytest.mark.parametrize("cls", [EF14Uplink, EF21Uplink, EControlUplink, EF21P, Choco])
def test_feedback_needs_a_contractive_compressor(cls: Any) -> None:
    with pytest.raises(ConfigError, match=r"is unbiased and may lengthen .* Scaled\(RandK"):
        cls(RandK(k=2))


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"EControlUplink.eta is -1; expected a finite number, 0 or more"):
        EControlUplink(eta=-1)
    for gamma in (0, 1.5):
        with pytest.raises(ConfigError, match=f"Choco.gamma is {gamma}; expected a"):
            Choco(gamma=gamma)


def test_copies_of_neighbours_need_everybody_and_one_matrix() -> None:
    algorithm = Compressed(DFedAvg(), Choco(TOP))
    with pytest.raises(ConfigError, match=r"3 of 6 nodes take part in round 1, but .* sampling.fraction to 1"):
        states(algorithm, gossiping(F, WORK, TOPOLOGIES["irregular"]), X0, [[0, 1, 2]])
    with pytest.raises(ConfigError, match=r"the mixing matrix of round 2 is not that of round 1, .* Static"):
        states(algorithm, gossiping(F, WORK, OnePeerExponential()), X0, everybody(6, 2))
    states(Compressed(DFedAvg(), Plain(LowPrecision())), gossiping(F, WORK, OnePeerExponential()), X0, everybody(6, 2))


@BOTH
def test_a_diverging_client_is_named(backend: Any) -> None:
    """Client 3 alone has a weight in its data that overflows."""
    fed = federation(F, WHOLE, backend)
    fed.shards.x[fed.shards.offsets[3]] = 1e200
    with pytest.raises(DivergenceError, match="client 3"):
        iterates(Compressed(FedAvg(lr=1e200), EF14Uplink(TOP)), fed, X0, everybody(6, 2))


class Packs(FedAvg):
    """An algorithm that compresses by itself."""

    def client(self, local: Any, x: Tensor) -> Any:
        return TOP.compress(x, local)


def test_messages_that_are_compressed_already() -> None:
    with pytest.raises(ConfigError, match=r"compresses its messages by itself .* leave uplink and downlink out"):
        iterates(Compressed(Packs(), EF14Uplink(TOP)), federation(F, WHOLE), X0, everybody(6, 1))
