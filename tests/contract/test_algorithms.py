"""Promises of every algorithm: fixed settings, a state that says all, and rounds that are functions of the two."""

from __future__ import annotations

import copy
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import ALGORITHMS as CATALOGUE
from algorithms import LORA
from fedsim.feedback.compressed import Compressed
from fedsim.robust.robust import Robust
from fedsim.types import Kept
from tests.contract.cases import (
    ALGORITHMS,
    CERTAIN,
    GOSSIPING,
    OWN_CHANCE,
    cohorts_of,
    federation,
    gap,
    play,
    rounds,
    same_bits,
    tensors,
)

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
BACKENDS = ["loop", "blocks of 4", pytest.param("blocks of 25", marks=pytest.mark.slow)]
LOOP_AND_BLOCKS = pytest.mark.parametrize("backend", BACKENDS)

WEIGHTING = ["FedAvg median", "FedAdam", "SCAFFOLD II", "FedAMD half", "DFedAvg", "EF21-W", "MARINA", "FedCM, EF14"]
"""A few for each way in which weights are read: means, rules, roles, mixing, and the algorithm's own."""


def test_the_table_holds_the_whole_catalogue() -> None:
    """But for methods of LoRA, which need a model of its kind: see tests/algorithms/test_lora.py."""
    assert {type(a) for a in ALGORITHMS.values()} == {*CATALOGUE, Compressed, Robust} - {*LORA}


DECLARED = [("server", False), ("personal", True), ("fixed_workers", True), ("buffer", 1)]
"""Attributes of a class (``Algorithm``, ``fedsim.controller.asynchronous``), by their only value but the default."""


@pytest.mark.parametrize("cls", CATALOGUE)
def test_a_frozen_dataclass_without_base_class_or_other_attributes(cls: Any) -> None:
    """But for those declared, and what rules need to know (``Robust``)."""
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert cls.__bases__ == (object,)
    fields = {field.name for field in dataclasses.fields(cls)}
    for name, value in vars(cls).items():
        ours = name in fields or name.startswith("__") or isinstance(value, types.FunctionType)
        known = (name, value) in DECLARED or name in ("sums", "no_rule")
        assert ours or known, f"attribute {name}"
    settings = cls()
    assert vars(settings).keys() == fields
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, name, 1)
    assert hash(settings) == hash(cls()) and settings == cls()


@LOOP_AND_BLOCKS
@every_algorithm
def test_a_run_repeats_bit_for_bit_and_changes_no_setting_and_no_earlier_state(algorithm: str, backend: str) -> None:
    settings = copy.deepcopy(vars(ALGORITHMS[algorithm]))
    states, copies = [], []
    for state in rounds(ALGORITHMS[algorithm], federation(backend=backend)):
        states.append(state)
        copies.append(copy.deepcopy(state))
    assert vars(ALGORITHMS[algorithm]) == settings
    again = play(algorithm, backend=backend).states
    for t, (state, at_the_time, repeated) in enumerate(zip(states, copies, again, strict=True)):
        assert same_bits(state, at_the_time), f"the state after round {t} changed later"
        assert same_bits(state, repeated), f"the state after round {t} is another one with the same seed"


def only_tensors(value: Any) -> None:
    if isinstance(value, Kept):
        only_tensors(value.default)
        for row in value.rows.values():
            only_tensors(row)
    elif isinstance(value, tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            only_tensors(part)
    else:
        assert type(value) is torch.Tensor, type(value)
        assert not value.requires_grad and torch.isfinite(value).all()


@LOOP_AND_BLOCKS
@every_algorithm
def test_state_is_tensors_and_memories(algorithm: str, backend: str) -> None:
    for state in play(algorithm, backend=backend).states:
        models = [state.x[node] for node in range(6)] if algorithm in GOSSIPING else [state.x]
        assert all(x.shape == (federation().model.d,) for x in models)
        assert isinstance(state, tuple) and hasattr(state, "_fields")
        only_tensors(state)


@LOOP_AND_BLOCKS
@every_algorithm
def test_memory_is_kept_for_those_who_took_part_and_no_more(algorithm: str, backend: str) -> None:
    """A row that were a view of its block would keep the rows of others alive."""
    run = play(algorithm, backend=backend)
    for first, kept in zip(run.states[0], run.states[1], strict=True):
        if not isinstance(kept, Kept):
            continue
        assert set(kept.rows) <= set(cohorts_of(ALGORITHMS[algorithm])[0]) | set(first.rows)
        if len(kept.rows) == kept.n:                       # of a stack whose rows are all kept, views cost nothing
            continue
        for row in kept.rows.values():
            assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in tensors(row))


@pytest.mark.parametrize("algorithm", ["FedAvg", "SCAFFOLD II", "D-PSGD", "EF21-W", *CERTAIN, *OWN_CHANCE])
def test_two_seeds_differ(algorithm: str) -> None:
    """Some have nothing to draw; everybody else has minibatches, coins or a random compressor.

    Not whole epochs, over which the mean gradient of a model that stays is certain.
    """
    difference = gap(play(algorithm, work="steps").states[-1], play(algorithm, work="steps", seed=8).states[-1])
    assert difference == 0 if algorithm in CERTAIN else difference > 1e-6


@pytest.mark.parametrize("algorithm", GOSSIPING)
def test_minibatches_are_the_only_chance_in_gossip(algorithm: str) -> None:
    whole, other = (play(algorithm, work="whole shard", seed=seed) for seed in (7, 8))
    assert gap(whole.states[-1], other.states[-1]) == 0


@LOOP_AND_BLOCKS
@every_algorithm
def test_the_order_in_which_a_cohort_is_named_does_not_matter(algorithm: str, backend: str) -> None:
    backwards = tuple(ids[::-1] for ids in cohorts_of(ALGORITHMS[algorithm]))
    run = rounds(ALGORITHMS[algorithm], federation(backend=backend), backwards)
    assert all(same_bits(a, b) for a, b in zip(play(algorithm, backend=backend).states, run, strict=True))


@LOOP_AND_BLOCKS
@every_algorithm
def test_a_run_goes_on_from_its_state(algorithm: str, backend: str) -> None:
    """The state says all: a new federation and a new algorithm object continue it with the same bits."""
    run = play(algorithm, backend=backend)
    fresh = dataclasses.replace(ALGORITHMS[algorithm])
    rest = rounds(fresh, federation(backend=backend), state=copy.deepcopy(run.states[1]), first=2)
    assert all(same_bits(a, b) for a, b in zip(run.states[2:], rest, strict=True))


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in OWN_CHANCE])
def test_the_names_of_the_clients_do_not_matter(algorithm: str) -> None:
    """Without chance (whole shards, no coins) renumbered clients give the same models, up to the order of sums."""
    order = (4, 2, 5, 0, 1, 3)
    named = tuple(tuple(order.index(i) for i in ids) for ids in cohorts_of(ALGORITHMS[algorithm]))

    def by_old_name(x: Any) -> Any:
        return Kept(6, x.default, {i: x[order.index(i)] for i in range(6)}) if isinstance(x, Kept) else x

    renumbered = rounds(ALGORITHMS[algorithm], federation(work="whole shard", order=order), named)
    for a, b in zip(play(algorithm, work="whole shard").states, renumbered, strict=True):
        assert gap(a.x, by_old_name(b.x)) <= 1e-13


@pytest.mark.parametrize("algorithm", WEIGHTING)
def test_only_the_proportions_of_weights_count(algorithm: str) -> None:
    fed = federation()
    scaled = dataclasses.replace(fed, weights=np.full(fed.shards.n, 40.0))
    for a, b in zip(rounds(ALGORITHMS[algorithm], fed), rounds(ALGORITHMS[algorithm], scaled), strict=True):
        assert gap(a, b) <= 1e-15
