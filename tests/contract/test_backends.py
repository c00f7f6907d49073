"""Backends mean the same: the trajectory and the ledger of the loop, whatever runs the clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contract.cases import (
    ALGORITHMS,
    MODELS,
    WORKS,
    Play,
    gap,
    play,
    tensors,
)

FLOAT32 = 2e-5
"""Largest difference between backends in float32 after three rounds, for parameters of the order of 1."""

UNWEIGHTED = ["FedAvg median", "D-PSGD, ARC", "FedAMD all anchors"]
"""Rules without weights; a model that never moves."""

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
WHOLE = "blocks of 4"
"""What meets every kind of model and of local work: a cohort is more than one block, and the last one is padded."""
LARGE = "blocks of 25"

SLOW = pytest.mark.slow
combinations = [
    *(("dense", work, WHOLE) for work in WORKS),
    ("dense", "epochs", "ray"),
    pytest.param("dense", "epochs", "blocks of 1", marks=SLOW),
    *(pytest.param("dense", work, LARGE, marks=SLOW) for work in WORKS),
    *(pytest.param(model, "epochs", WHOLE, marks=SLOW) for model in MODELS if model != "dense"),
]
A_FEW = ["FedAvg momentum", "FedSpeed", "FedAMD half", "DFedSAM", "EF21", "SCAFFOLD, EF14"]


def agree(one: Play, other: Play, tolerance: float) -> None:
    for t, (a, b) in enumerate(zip(one.states, other.states, strict=True)):
        assert gap(a, b) <= tolerance, f"states differ by {gap(a, b):.1e} after round {t}"
    assert one.ledger.keys() == other.ledger.keys()
    for name, charged in one.ledger.items():
        np.testing.assert_array_equal(charged, other.ledger[name], err_msg=name)


@pytest.mark.parametrize(("model", "work", "backend"), combinations)
@every_algorithm
def test_trajectory_and_ledger_are_the_loops(algorithm: str, model: str, work: str, backend: str) -> None:
    agree(play(algorithm, model=model, work=work, backend=backend), play(algorithm, model=model, work=work), 1e-12)


@SLOW
@pytest.mark.parametrize("work", ["steps", "whole shard"])
@pytest.mark.parametrize("model", ["convolutional", "tied tokens"])
@pytest.mark.parametrize("algorithm", A_FEW)
def test_other_work_on_other_models(algorithm: str, model: str, work: str) -> None:
    agree(play(algorithm, model=model, work=work, backend=WHOLE), play(algorithm, model=model, work=work), 1e-12)


@pytest.mark.parametrize("backend", [WHOLE, pytest.param(LARGE, marks=SLOW), "ray"])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "SGP"])   # push-sum knows no weights
def test_clients_weighted_by_size(algorithm: str, backend: str) -> None:
    weighted = play(algorithm, weighted=True)
    agree(play(algorithm, weighted=True, backend=backend), weighted, 1e-12)
    moved = gap(weighted.states[-1].x, play(algorithm).states[-1].x)
    assert moved == 0 if algorithm in UNWEIGHTED else moved > 1e-6


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        *((algorithm, "dense") for algorithm in A_FEW),
        *(pytest.param(algorithm, "dense", marks=SLOW) for algorithm in ALGORITHMS if algorithm not in A_FEW),
        *(pytest.param(algorithm, model, marks=SLOW) for model in MODELS if model != "dense" for algorithm in A_FEW),
    ],
)
def test_single_precision(algorithm: str, model: str) -> None:
    loop = play(algorithm, model=model, dtype=torch.float32)
    agree(play(algorithm, model=model, dtype=torch.float32, backend=WHOLE), loop, FLOAT32)
    single, double = (numbers(state) for state in (loop.states[-1], play(algorithm, model=model).states[-1]))
    assert {t.dtype for t in single} == {torch.float32}
    assert gap(single, tuple(t.float() for t in double)) <= FLOAT32


def numbers(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a state but those that count bytes."""
    return tuple(t for t in tensors(state) if t.is_floating_point())


def test_the_ledger_counts_every_cost() -> None:
    """Equal zeros would agree as well."""
    server, gossip = play("SCAFFOLD II").ledger, play("DFedSAM").ledger
    nodes, links = {"down", "up", "paper_bits", "gradient_evaluations"}, {"links", "link_bytes"}
    assert set(server) == set(gossip) == nodes | links
    assert all((server[name] > 0).all() and not len(server[link]) for name in nodes for link in links)
    assert all((gossip[name] > 0).all() for name in nodes | {"link_bytes"})
