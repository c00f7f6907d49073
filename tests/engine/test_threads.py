"""Clients on threads: neither their number nor who is first can be seen, in results or in errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import Local
from fedsim.clients import cohort
from fedsim.engine import threads
from fedsim.engine.loop import Loop
from fedsim.errors import ClientError, ConfigError
from tests.contract.cases import MODELS, play, tensors
from tests.engine.test_replay import federation


@pytest.fixture(autouse=True)
def two_pytorch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == 2, "a run leaves PyTorch's number of threads as it was"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("algorithm", ["SCAFFOLD II", "FedSpeed"])
@pytest.mark.parametrize("backend", ["loop", "blocks of 2"])
def test_bits_and_ledger_are_those_of_one_thread(backend: str, algorithm: str, model: str) -> None:
    settings: dict[str, Any] = {"model": model, "dtype": torch.float32}
    plays = [play(algorithm, backend=f"{backend} on {n} threads", **settings) for n in (1, 2, 3)]
    for other in plays[1:]:
        for a, b in zip(plays[0].states, other.states, strict=True):
            assert all(torch.equal(p, q) for p, q in zip(tensors(a), tensors(b), strict=True))
        assert all((charged == other.ledger[name]).all() for name, charged in plays[0].ledger.items())


def late_first(local: Local, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    time.sleep(0.02 * float(local.steps < 5))
    return x * local.steps, m + local.steps


def test_messages_and_memories_are_in_the_order_of_clients() -> None:
    found = []
    for count in (1, 3):
        fed = federation(Loop(count))
        clients = cohort(fed, 1)
        sent, memories = clients.each(late_first, fed.model.vector(), clients.keep(torch.zeros(())))
        found.append((sent.stacked, list(memories.rows)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == sorted(found[0][1])


def failing(local: Local, x: Tensor) -> Tensor:
    time.sleep(0.05 * float(local.steps > 5))              # client 1 is the last to fail
    if local.steps > 2:                                    # clients 1 and 3
        raise RuntimeError("out of paper")
    return x


def test_the_first_client_that_fails_is_named() -> None:
    fed = federation(Loop(3))
    with pytest.raises(ClientError, match=r"client 1\b.*out of paper"):
        cohort(fed, 1).each(failing, fed.model.vector())


def test_an_error_ends_all_threads_between_two_steps() -> None:
    """As an interrupt does, which reaches the main thread alone."""
    fed, made = federation(Loop(2)), []

    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Any) -> Tensor:
            made.append(threading.get_ident())
            time.sleep(0.01)
            return y

        x = local.fold(step, x)
        if local.steps == 2:                               # client 0, while client 1 is under way
            raise RuntimeError("out of paper")
        for _ in range(1000):
            x = local.fold(step, x)
        return x

    with pytest.raises(ClientError, match=r"client 0\b.*out of paper"):
        cohort(fed, 1).each(client, fed.model.vector())
    assert len(set(made)) == 2 and len(made) < 500


def test_writes_into_arguments_are_seen() -> None:
    fed = federation(Loop(2))
    with pytest.raises(ConfigError, match="writes into an argument"):
        cohort(fed, 1).each(lambda local, x: x.mul_(0.5) * 1.0, fed.model.vector())


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lock = nn.Linear(6, 3), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            out: Tensor = self.linear(x)
        return out


def test_a_module_that_cannot_be_copied() -> None:
    fed = federation(Loop(2), None, Locked)
    with pytest.raises(ConfigError, match=r"the model\.lock cannot be copied, one for each of client_threads"):
        cohort(fed, 1).each(lambda local, x: x * 1.0, fed.model.vector())


def test_copies_are_made_once() -> None:
    fed = federation(Loop(2))
    for round in (1, 2, 3):
        cohort(fed, round).each(lambda local, x: x * 1.0, fed.model.vector())
    assert len(threads.COPIES[fed.model]) == 1             # the model itself is on the other thread


def test_numbers_of_threads_are_checked() -> None:
    for bad in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="client_threads"):
            Loop(bad)  # type: ignore[arg-type]
