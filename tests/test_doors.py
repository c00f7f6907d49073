"""Slips in an algorithm's code: one error that says what was given and expected, on every backend, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import DCGD, EF21
from fedsim.clients import Clients, cohort
from fedsim.compress import Blockwise
from fedsim.data import Dataset
from fedsim.engine.blocks import Blocks
from fedsim.engine.model import Model
from fedsim.errors import BlockError, ClientError, CodeError, ConfigError, DataError, ModelError, explained
from fedsim.feedback import EF14Uplink
from fedsim.models.losses import squared
from fedsim.record.state import check
from fedsim.types import Kept, Local
from tests.test_clients import EACH_BACKEND, X, federation, gradient


class State(NamedTuple):
    x: Tensor
    m: Kept[Tensor]


def begun(clients: Clients) -> State:
    return State(X, clients.keep(torch.zeros_like(X)))


def remember(local: Local, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    return local.grad(x), m + 1


def folded(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda local, x: local.fold(step, x)


CLIENTS = {
    "nothing": (lambda local, x: None, r"lambda.* returned None; expected a tensor.*: is a `return`"),
    "a list": (lambda local, x: [x, x], r"returned a list; expected a tensor.*: return a tuple"),
    "a number": (lambda local, x: 1.5, r"returned a float; expected a tensor.*torch\.tensor\(1\.5\)"),
    "a number among tensors": (lambda local, x: (x, (x, 2)), r"returned a int, among others; expected a tensor"),
    "a shorter carry": (folded(lambda y, batch: y[:1]), r"got the carry \[2\] float64 and returned \[1\] float64"),
    "a carry of another type": (folded(lambda y, batch: y.float()), r"got the carry \[2\] float64 and returned \[2\]"),
    "no carry": (folded(lambda y, batch: None), r"lambda.* returned None; expected a tensor"),
    "a gradient of a part": (lambda local, x: local.grad(x[:1]), r"local\.grad got \[1\] float64 as the model; exp"),
    "a gradient of nothing": (lambda local, x: local.grad(None), r"local\.grad got a NoneType as the model"),
}  # fmt: skip


@EACH_BACKEND
@pytest.mark.parametrize(("client", "said"), CLIENTS.values(), ids=CLIENTS)
def test_what_a_client_returns(client: Any, said: str, backend: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        cohort(federation(backend), 3).each(client, X)


RAISING = {
    "a word that local lacks": (lambda local, x: local.batches(), r"local\.batches does not exist; .*fold"),
    "too few arguments": (lambda local: X, r"takes 1 positional argument but 2 were given"),
    "a bug": (lambda local, x: x + {}["key"], r"KeyError: 'key'\n  .*test_doors\.py, line \d+, in <lambda>: "),
}  # fmt: skip


@EACH_BACKEND
@pytest.mark.parametrize(("client", "said"), RAISING.values(), ids=RAISING)
def test_exceptions_of_a_client_name_it_and_the_line(client: Any, said: str, backend: Any) -> None:
    ids = np.array([1, 3])
    with pytest.raises(ClientError, match=r"(?s)lambda> in round 3: client [13] raised .*" + said) as caught:
        cohort(federation(backend), 3, ids).each(client, X)
    assert caught.value.__cause__ is not None, "the whole traceback, for scripts"
    assert "torch.where" not in str(caught.value)


@EACH_BACKEND
def test_a_memory_is_not_written(backend: Any) -> None:
    def client(local: Local, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return x, m.add_(1)

    clients = cohort(federation(backend), 1)
    with pytest.raises(ConfigError, match="client writes into an argument"):
        clients.each(client, X, begun(clients).m)


def test_an_if_on_a_memory_is_explained_in_blocks() -> None:
    def client(local: Local, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return (x, m + 1) if m.sum().item() == 0 else (x, m)

    clients = cohort(federation(Blocks(2)), 1)
    with pytest.raises(BlockError, match=r"(?s)client in round 1 cannot run for a block .*torch\.where.*\.item"):
        clients.each(client, X, begun(clients).m)


ROUNDS = {
    "a mean by the server": (lambda s, c: c.each(gradient, s.x).mean(0), "Sent.* no attribute 'mean'; .*clients.mean"),
    "one message": (lambda s, c: c.each(gradient, s.x)[0], r"Sent.* has no \[0\]; receive .*clients\.reduce"),
    "unpacked": (lambda s, c: [*c.each(gradient, s.x)], r"Sent.* cannot be unpacked; .*\(message, new memory\)"),
    "not unpacked": (lambda s, c: c.mean(c.each(remember, s.x, s.m)), r"clients\.mean got a tuple; .* y, m = clients"),
    "memory down": (lambda s, c: c.each(gradient, s.m), r"each\(gradient, .* got a Kept as the message .*memories"),
    "messages down": (lambda s, c: c.each(gradient, c.each(gradient, s.x)), r"got a Sent as the message"),
    "a number down": (lambda s, c: c.each(gradient, 0.5), r"cannot send this: .*float: 0\.5; a number is torch"),
    "no memory": (lambda s, c: c.each(remember, s.x, s.x), r"got a Tensor as a memory; expected a Kept"),
    "no function": (lambda s, c: c.each(s.x, gradient), r"expected a client function first, got a Tensor"),
    "a tensor over memories": (lambda s, c: s.m | s.x, r"Kept \| Tensor: expected new memories"),
    "other memories": (lambda s, c: s.m | c.apply(lambda local, m: m[:1], s.m), r"of \[2\] .* by \[1\] float64"),
    "no rule": (lambda s, c: c.reduce(c.each(gradient, s.x), "median"), r"reduce got the rule 'median'; exp"),
    "a wrong word": (lambda s, c: c.average(s.x), r"clients\.average does not exist; .*mean"),
    "mixing nothing": (lambda s, c: c.mix(s.x), r"clients\.mix got a Tensor; expected the messages of clients\.each"),
}  # fmt: skip


@EACH_BACKEND
@pytest.mark.parametrize(("slip", "said"), ROUNDS.values(), ids=ROUNDS)
def test_slips_in_a_round(slip: Callable[[State, Clients], Any], said: str, backend: Any) -> None:
    clients = cohort(federation(backend), 2)
    with pytest.raises((CodeError, ConfigError), match=said), explained("Mine.round in round 2"):
        slip(begun(clients), clients)


@EACH_BACKEND
def test_memories_of_another_shape_are_found_without_a_union(backend: Any) -> None:
    clients = cohort(federation(backend), 1)
    s = begun(clients)
    m = clients.apply(lambda local, m: m[:1], s.m)
    with pytest.raises(ConfigError, match=r"m holds \[1\] float64 at each client, and held \[2\] float64 at each"):
        check("Mine.round", State(s.x, m), s)


def test_clients_agree_on_shapes() -> None:
    with pytest.raises(ConfigError, match=r"returned \[3\] float64 at client 0 and \[4\] float64 at client 1"):
        cohort(federation(), 1, np.array([0, 1])).each(lambda local, x: local.sample(4).y, X)


def descend(local: Local, x: Tensor) -> Tensor:
    return local.fold(lambda y, batch: y - local.grad(y, batch), x)


class Caching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("cache")


@EACH_BACKEND
@pytest.mark.parametrize("client", [gradient, descend, lambda local, x: local.grad(x, local.sample(2))])
def test_errors_of_a_model_name_the_model(client: Any, backend: Any) -> None:
    fed = replace(federation(backend), model=Model(Caching(2, 1, bias=False), squared, dtype=torch.float64))
    expected = r"(?s)the model Caching, .* raised KeyError: 'cache', given inputs \[\d, 2\] float64 .*in forward"
    with pytest.raises(ModelError, match=expected):
        cohort(fed, 1, np.array([0, 1])).each(client, X)


class Half:
    """Some of a compressor's methods."""

    def compress(self, x: Tensor, at: Any) -> Any:
        return x

    def unpack(self, parts: Any, d: int) -> Tensor:
        return parts[0]


@pytest.mark.parametrize("settings", [DCGD, EF21, EF14Uplink, Blockwise])
def test_a_compressor_has_all_methods(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"ompressor: Half lacks nbytes, paper_bits, alpha, omega; ex"):
        settings(compressor=Half())


def test_a_data_set_of_pytorch() -> None:
    pairs = torch.utils.data.TensorDataset(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"'mine', train is a TensorDataset; expected .*Split\(\*dataset\.tensors\)"):
        Dataset("mine", pairs, pairs, 2)                   # type: ignore[arg-type]
