"""Failure is loud: errors of ``Clients`` that name the client, the round and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.errors import BlockError, ConfigError, DivergenceError
from fedsim.seeds import uniform_of
from fedsim.types import Batch, Local
from tests.test_clients import EACH_BACKEND, X, federation, gradient, known_gradient


@EACH_BACKEND
def test_an_empty_cohort_is_an_error_that_says_what_to_do(backend: Any) -> None:
    clients = cohort(federation(backend), 6, np.array([], np.int64))
    with pytest.raises(ConfigError, match="round 6: the cohort is empty; test `if clients:` first"):
        clients.each(gradient, X)


def spoiled(value: float) -> Any:
    def client(local: Local, x: Tensor) -> tuple[Tensor, Tensor]:
        bad = (local.grad(x)[1] - known_gradient(2)[1]).abs() < 1e-9           # client 2, by its data
        return x, torch.where(bad, torch.full_like(x, value), x)

    return client


@EACH_BACKEND
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_message_that_is_no_number_names_client_and_round(value: float, backend: Any) -> None:
    clients = cohort(federation(backend), 12, np.array([0, 2, 4]))
    expected = r"in round 12: client 2 sent NaN or infinity \(1 of 3 clients\).*learning rate"
    with pytest.raises(DivergenceError, match=expected):
        clients.each(spoiled(value), X)


def test_large_numbers_that_overflow_only_in_a_sum_are_fine() -> None:
    clients = cohort(federation(), 1)
    sent = clients.each(lambda local, x: torch.full((4,), 3e38) + 0 * local.steps.float(), X)
    assert torch.isfinite(sent.stacked).all() and not torch.isfinite(sent.stacked.sum())


def test_a_number_that_is_none_names_client_and_round() -> None:
    with pytest.raises(DivergenceError, match="round 1: client 0"):
        cohort(federation(), 1).each(lambda local, x: local.steps / 0, X)


@EACH_BACKEND
def test_a_captured_tensor_is_refused_by_name(backend: Any) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        shift = local.grad(x)

        def step(y: Tensor, batch: Batch) -> Tensor:
            return y - shift

        return local.fold(step, x)

    with pytest.raises(ConfigError, match=r"captures the tensor 'shift'.*local.fold\(step, carry, ..., shift\)"):
        cohort(federation(backend), 1).each(client, X)


def captured_in_a_tuple(local: Local, x: Tensor) -> Tensor:
    pair = (local.grad(x), x)

    def step(y: Tensor, batch: Batch) -> Tensor:
        return y - pair[0]

    return local.fold(step, x)


def captured_by_a_helper(local: Local, x: Tensor) -> Tensor:
    shift = local.grad(x)

    def helper() -> Tensor:
        return shift

    def step(y: Tensor, batch: Batch) -> Tensor:
        return y - helper()

    return local.fold(step, x)


def captured_as_a_default(local: Local, x: Tensor) -> Tensor:
    def step(y: Tensor, batch: Batch, shift: Tensor = local.grad(x)) -> Tensor:  # noqa: B008
        return y - shift

    return local.fold(step, x)


@pytest.mark.parametrize("client", [captured_in_a_tuple, captured_by_a_helper, captured_as_a_default])
@EACH_BACKEND
def test_tensors_captured_on_other_ways_are_refused(backend: Any, client: Any) -> None:
    with pytest.raises(ConfigError, match="captures"):
        cohort(federation(backend), 1).each(client, X)


def reads(what: str) -> Any:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            if what == "local.steps":
                return y * local.steps
            if what == "local.sample":
                return y + local.sample(2).y.sum()
            if what == "local.decay":
                return y - local.decay * local.grad(y, batch)
            if what == "local.fold":
                return local.fold(lambda z, b: z, y)
            return y - local.grad(y)

        return local.fold(step, x)

    return client


@pytest.mark.parametrize("what", ["local.steps", "local.decay", "local.sample", "local.fold", "whole shard"])
def test_in_blocks_a_step_reads_nothing_but_its_arguments(what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}.*inside a step of local.fold; read it before and pass it on"):
        cohort(federation(Blocks(3)), 1).each(reads(what), X)


def with_if(local: Local, x: Tensor) -> Tensor:
    return x / 2 if local.grad(x).norm() > 1 else x


def with_noise(local: Local, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def test_code_that_cannot_run_for_many_clients_is_explained() -> None:
    expected = r"(?s)with_if in round 4 cannot run for a block .*control flow.*line \d+, in with_if: return x"
    with pytest.raises(BlockError, match=expected + r".*torch\.where.*--backend loop"):
        cohort(federation(Blocks(3)), 4).each(with_if, X)


@EACH_BACKEND
def test_numbers_that_no_seed_controls_are_refused(backend: Any) -> None:
    with pytest.raises(ConfigError, match=r"with_noise draws from, or seeds, the global .*uniform_of\(local\.key\(\)"):
        cohort(federation(backend), 1).each(with_noise, X)
    cohort(federation(backend), 1).each(lambda local, x: x + uniform_of(local.key(), len(X)), X)


@EACH_BACKEND
def test_numpys_numbers_are_refused(backend: Any) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        return x + float(np.random.rand())                 # noqa: NPY002, what is to be refused

    with pytest.raises(ConfigError, match="client draws from, or seeds, the global generator"):
        cohort(federation(backend), 1).each(client, X)


@EACH_BACKEND
def test_writing_into_an_argument_is_refused(backend: Any) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        return x.mul_(0.5)

    with pytest.raises(ConfigError, match="client writes into an argument, which others read as well"):
        cohort(federation(backend), 1).each(client, X.clone())


@pytest.mark.parametrize("weights", [np.zeros(5), np.ones(4), np.array([1, -1, 1, 1, 1.0]), np.full(5, np.nan)])
def test_weights_that_are_no_shares_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="weights"):
        federation(weights=weights)
