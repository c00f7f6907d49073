"""What a round and a local step cost on a GPU, counted on the pretended one: these numbers may fall, and must not rise.

``tests/test_pretended_gpu.py`` runs this file. Uploads are from pinned memory where they are not named below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.contract.cases import COHORTS
from tests.pretended.counts import MANY, WAITS, counted

SORTING = {"index_put", "scatter", "scatter_add", "index_add", "put_", "cumsum", "histc", "bincount", "kthvalue"}
"""Operations that sort to be deterministic on a GPU, or are not deterministic at all: none in a local step."""


class Budget(NamedTuple):
    """Uploads and waits of a round besides its steps, and launches of a step of its cohort of three."""

    uploads: int
    waits: int
    step: int


BUDGETS: dict[tuple[str, str, str], Budget] = {
    ("FedAvg momentum", "dense", "loop"): Budget(2, 1, 93),
    ("FedAvg momentum", "dense", "blocks of 4"): Budget(2, 1, 32),
    ("FedAvg momentum", "convolutional", "loop"): Budget(2, 1, 96),
    ("FedAvg momentum", "convolutional", "blocks of 4"): Budget(2, 1, 62),
    ("SCAFFOLD II", "dense", "loop"): Budget(2, 1, 90),
    ("SCAFFOLD II", "dense", "blocks of 4"): Budget(2, 1, 32),
    ("FedSpeed", "dense", "loop"): Budget(2, 1, 201),
    ("FedSpeed", "dense", "blocks of 4"): Budget(2, 1, 67),
    ("DFedSAM", "dense", "loop"): Budget(2, 1, 177),
    ("DFedSAM", "dense", "blocks of 4"): Budget(2, 1, 63),
    ("FedAMD half", "dense", "blocks of 4"): Budget(5, 2, 60),     # two kinds of clients, and large batches
    ("EF21", "dense", "blocks of 4"): Budget(4, 3, 0),             # sizes of the messages, and their finiteness
    ("SCAFFOLD, EF14", "dense", "blocks of 4"): Budget(9, 10, 32),
    ("FedOpt, geometric median", "dense", "blocks of 4"): Budget(7, 3, 31),
    ("MARINA", "dense", "blocks of 4"): Budget(8, 4, 0),
    ("FedAvg, PowerSGD", "dense", "blocks of 4"): Budget(5, 6, 31),
}  # fmt: skip


@pytest.mark.parametrize(("case", "budget"), BUDGETS.items(), ids=[", ".join(case) for case in BUDGETS])
def test_a_round_keeps_to_its_budget(case: tuple[str, str, str], budget: Budget) -> None:
    algorithm, model, backend = case
    round, step, trace = counted(algorithm, model=model, backend=backend)
    assert step["uploads"] == step["waits"] == 0, trace.places_of("upload", *WAITS)
    found = Budget(round_up(round["uploads"]), round_up(round["waits"]), round_up(step["launches"]))
    assert all(a <= b for a, b in zip(found, budget, strict=True)), f"{found}\n{trace.places_of('upload', *WAITS)}"


GRAPHED = {"FedAvg momentum": 8.25, "SCAFFOLD II": 8.25, "FedSpeed": 8.25, "DFedSAM": 8.25}
"""Launches of a step of the cohort as graphs: one a client, and copies where the size of the minibatch changes."""


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize(("algorithm", "most"), GRAPHED.items())
def test_a_graph_is_one_launch_of_a_client_on_any_number_of_streams(algorithm: str, most: float, streams: int) -> None:
    round, step, trace = counted(algorithm, streams=streams)
    assert trace.ops["launch", "graph replay"] == len(COHORTS[2]) * MANY
    assert step["launches"] <= most and step["uploads"] == step["waits"] == 0
    captures = trace.ops["wait", "synchronize"]            # a stream may meet a size of minibatches late
    assert (round["uploads"], round["waits"] - captures) == (2, 1)


@pytest.mark.parametrize("algorithm", GRAPHED)
def test_a_graph_is_one_launch_of_a_block(algorithm: str) -> None:
    """And there are copies where the number of clients or of their samples changes: one more a step in this cohort."""
    round, step, trace = counted(algorithm, size=4)
    assert trace.ops["launch", "graph replay"] == MANY, "of one block"
    assert step["launches"] <= 2 and step["uploads"] == step["waits"] == 0
    assert (round["uploads"], round["waits"]) == (2, 1)


def round_up(value: float) -> int:
    return int(-(-value // 1))


@pytest.mark.parametrize("backend", ["loop", "blocks of 4"])
def test_a_dense_step_sorts_nothing(backend: str) -> None:
    """A scatter with a deterministic result takes some 20 launches on a GPU, one of them a sort."""
    _, _, many = counted("FedAvg momentum", backend=backend)
    few: Any = counted("FedAvg momentum", backend=backend, seed=8).trace
    for trace in (many, few):
        names = {name.split("::")[-1].split(".")[0].rstrip("_") for kind, name in trace.ops if kind == "launch"}
        assert not names & SORTING, names & SORTING
