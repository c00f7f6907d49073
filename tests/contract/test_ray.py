"""In Ray's actors everything is computed as in one process, bit for bit."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from fedsim.backends.ray.object_store import FarRow, ObjectStore
from fedsim.tree import leaves
from fedsim.types import Kept
from tests.backends.ray.shared import workers
from tests.contract.cases import ALGORITHMS, MODELS, federation, play, rounds, same_bits

pytestmark = pytest.mark.ray

HERE = "blocks of 2"
"""What the workers run their clients by, two blocks or more a round."""

A_FEW = ["FedAvg momentum", "FedSpeed", "DFedAvg momentum"]


def equal(algorithm: str, **settings: object) -> None:
    there, here = play(algorithm, backend="ray", **settings), play(algorithm, backend=HERE, **settings)
    assert all(same_bits(a, b) for a, b in zip(there.states, here.states, strict=True))
    for name, charged in here.ledger.items():
        np.testing.assert_array_equal(charged, there.ledger[name], err_msg=name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bits_and_ledger(algorithm: str) -> None:
    equal(algorithm, dtype=torch.float32)


@pytest.mark.parametrize("algorithm", A_FEW)
@pytest.mark.parametrize("model", [model for model in MODELS if model != "dense"])
def test_other_models(algorithm: str, model: str) -> None:
    equal(algorithm, model=model, dtype=torch.float32)


@pytest.mark.parametrize("algorithm", A_FEW)
def test_a_run_goes_on_from_its_state(algorithm: str) -> None:
    """Memories that come from a checkpoint are put into the store, or sent from here."""
    run = play(algorithm, backend="ray")
    for memory in (None, ObjectStore(workers().ray)):
        fed = federation(backend="ray")
        state = copy.deepcopy(run.states[1])
        fields = [f if not isinstance(f, Kept) else Kept(f.n, f.default, {i: f[i] for i in f.rows}) for f in state]
        if memory is not None:
            fields = [
                f if not isinstance(f, Kept) else Kept(f.n, f.default, {i: memory.put(r) for i, r in f.rows.items()})
                for f in fields
            ]
        fresh = dataclasses.replace(ALGORITHMS[algorithm])
        rest = rounds(fresh, fed, state=type(state)(*fields), first=2)
        assert all(same_bits(a, b) for a, b in zip(run.states[2:], rest, strict=True))


def test_memories_stay_in_the_store() -> None:
    for name in ("SCAFFOLD II", "DFedAvg"):
        state = play(name, backend="ray").states[-1]
        kept = [field for field in state if isinstance(field, Kept)]
        rows = [leaf for field in kept for row in field.rows.values() for leaf in leaves(row)]
        assert rows and all(isinstance(leaf, FarRow) for leaf in rows)
