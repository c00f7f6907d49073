"""No answer of a node ends a run, moves it, or takes more memory than an honest one."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

import fedsim
from fedsim.backends.flower.protocol.calls import Call, RefusedError
from fedsim.backends.flower.protocol.forms import received
from fedsim.backends.flower.server.transport import Link
from fedsim.compress import BernoulliCompressor, LowPrecision, LowRank
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config
from fedsim.messages import wire
from fedsim.values import Packed
from tests.backends.flower.grids import FakeGrid, federation
from tests.backends.flower.hostile import Hostile, damaged
from tests.backends.flower.test_parity import CATALOGUE, CONFIG, EF21P, RING, TOP, agree, deploy, metrics
from tests.compress.cases import COMPRESSORS, At, D

ANSWERS = 20
"""Tampered answers for each honest one."""
METHODS: dict[str, dict[str, Any]] = {
    **CATALOGUE,
    "SCAFFOLD, a holdout": {"algorithm": "Scaffold", "evaluation": {"every": 1, "clients_every": 1, "holdout": 0.2}},
    "gossip": {"algorithm": "DFedSAM", "topology": RING, "rounds": 1},
    "compressed gossip": {"algorithm": "DFedSAM", "topology": RING, "uplink": {**TOP, "name": "Choco"}, "rounds": 1},
    "public copies": {"algorithm": "Scaffold", "downlink": EF21P, "uplink": TOP},
    "EF21": {"algorithm": {"name": "EF21", "compressor": {"name": "TopK", "fraction": 0.1}}},
    "low rank": {"algorithm": "FedAvg", "uplink": {"name": "Plain", "compressor": "LowRank"}},
    "a threshold": {"algorithm": "FedAvg", "uplink": {"name": "Plain", "compressor": "Threshold"}},
    "QSGD": {"algorithm": "FedSpeed", "uplink": {"name": "Plain", "compressor": {"name": "QSGD", "s": 4}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_thousands_of_tampered_answers_leave_no_trace(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused, or read as the answer that it is; after all of them the honest one has its honest effect."""
    hostile, read, tried, refused = Hostile(len(method)), Link._result, [0], [0]

    def besieged(
        self: Link, message: Message, call: Call, largest: int, convert: Callable[[Call], Any]
    ) -> Any:
        honest = message.content
        for _ in range(0 if message.has_error() else ANSWERS):
            message.content = hostile.tampered(honest)
            tried[0] += 1
            try:
                read(self, message, call, largest, convert)
            except RefusedError:
                refused[0] += 1
        message.content = honest
        return read(self, message, call, largest, convert)

    monkeypatch.setattr(Link, "_result", besieged)
    config = {**CONFIG, **METHODS[method]}
    deploy(tmp_path, config)
    monkeypatch.undo()
    assert tried[0] >= 9 * ANSWERS and refused[0] > 0.5 * tried[0], (tried, refused)
    fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False)
    agree(metrics(tmp_path / "deployed"), metrics(tmp_path / "simulated"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["Scaffold", "DFedAvg"])
def test_a_node_that_always_tampers_is_left_out_by_the_policy(algorithm: str, tmp_path: Path) -> None:
    grid, said, hostile = federation(tmp_path / "nodes", 3), list[str](), Hostile(0)

    def tamper(answer: Message) -> Message:
        hostile.text(answer.content, answer.content, [])
        return answer

    grid.nodes[101].after = lambda answer: tamper(answer) if answer.metadata.message_type == "train" else answer
    config = {**CONFIG, "algorithm": algorithm, "rounds": 3, **({"topology": RING} if algorithm == "DFedAvg" else {})}
    deploy(tmp_path, config, grid, say=said.append)
    assert any(line.startswith("round 1: client 1 sent an invalid response") for line in said), said
    with pytest.raises(DeployError, match=r"client 1 sent an invalid response: .* the policy needs 3"):
        deploy(tmp_path / "strict", config, federation_with(grid, tmp_path / "strict"), missing="stop", patience=0.1)


def federation_with(grid: FakeGrid, folder: Path) -> FakeGrid:
    """A new federation whose client 1 tampers as that of a grid."""
    other = federation(folder / "nodes", 3)
    other.nodes[101].after = grid.nodes[101].after
    return other


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (LowPrecision("bf16"), b"\x02\xff\0\0\x02\0\0\0\x08\0\0\0\x7f\0\0\0\x7f\x7f\x40\0"),
        (LowRank(1), None),
    ],
    ids=["LowPrecision", "LowRank"],
)
def test_finite_is_what_a_message_unpacks_to(compressor: Any, message: bytes | None) -> None:
    """The numbers of these messages are finite; their products are not."""
    if message is None:
        layout = torch.tensor([[3, 3]])
        message = wire.encode(Packed(compressor, (layout, torch.full((6,), 1e30)), 9), [compressor])
    (d,) = struct.unpack_from("<I", message, 4)
    tree = wire.decode(message, [compressor], d)
    assert tree.parts[1].isfinite().all() and not tree.unpack().isfinite().all()
    with pytest.raises(RefusedError, match="its message holds NaN or infinity"):
        received(message, ["packed", 0, "float32", d], "its message", [compressor], d)


def test_a_short_message_does_not_become_gigabytes() -> None:
    """A tuple of a hundred empty vectors of ten million entries is refused at its second byte."""
    one = b"\xff" + struct.pack("<BBII", 0, 0, 10**7, 1) + b"\0"
    bomb, before = b"\x02\xfe\x64" + one * 100, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for form in (["packed", 0, "float32", 10**7], ["tuple", *[["packed", 0, "float32", 1000]] * 100]):
        with pytest.raises(RefusedError, match="malformed"):
            received(bomb, form, "its message", [BernoulliCompressor(0.5)], 10**7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_decoder_refuses_or_returns_what_fits(name: str) -> None:
    """300 damaged messages of every compressor: a refusal, or the expected form in the memory of an honest one."""
    made, draw = COMPRESSORS[name], random.Random(name)
    packed = made.compress(torch.randn(D, generator=torch.Generator().manual_seed(0)), At())
    honest, form = wire.encode(packed, [made]), wire.form_of(packed, [made])
    assert torch.equal(received(honest, form, "m", [made], D).unpack(), packed.unpack())
    most = max(sum(part.nbytes for part in packed.parts), 4 * D)
    for _ in range(300):
        try:
            tree = received(message := damaged(honest, draw), form, "m", [made], D)
        except RefusedError:
            continue
        assert tree.unpack().isfinite().all() and sum(part.nbytes for part in tree.parts) <= 4 * most
        assert wire.encode(tree, [made]) == bytes(message), "there is one encoding of a message"


@pytest.mark.parametrize("seed", range(5))
def test_any_bytes_against_any_form(seed: int) -> None:
    draw, refusals = random.Random(seed), 0
    tree = (torch.ones(3), (torch.zeros(2, 2, dtype=torch.float64), torch.arange(4)), torch.ones(()))
    honest, form = wire.encode(tree), wire.form_of(tree)
    for _ in range(1000):
        try:
            found = received(damaged(honest, draw), form, "m")
            assert wire.form_of(found) == form
        except RefusedError:
            refusals += 1
    assert refusals > 500
    for wrong in (None, 3, [], ["packed"], ["float32", None], ["nonsense", [1]], {}):
        with pytest.raises(RefusedError):
            received(honest, wrong, "m")  # type: ignore[arg-type]
