"""The verbs of ``Clients``: who runs, what is charged, how messages are averaged."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.messages.wire import nbytes
from fedsim.models.losses import squared
from fedsim.types import Batch, Kept, Local, Sent

SIZES = np.array([3, 9, 5, 1, 7])
D = 2
X = torch.tensor([0.5, -1.0], dtype=torch.float64)
BACKENDS = {"loop": Loop(), "blocks of 1": Blocks(1), "blocks of 2": Blocks(2), "blocks of 9": Blocks(9)}
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def federation(backend: Any = None, work: LocalWork | None = None, **settings: Any) -> Federation:
    """Five clients; client i's inputs are all ``[i, 1]`` and its targets 0, so gradients are known by heart."""
    owner = torch.from_numpy(np.repeat(np.arange(5), SIZES)).double()
    inputs = torch.stack([owner, torch.ones_like(owner)], 1)
    shards = Shards(inputs, torch.zeros_like(owner), np.r_[0, np.cumsum(SIZES)])
    model = Model(nn.Linear(D, 1, bias=False), squared, dtype=torch.float64)
    return Federation(model, shards, work or LocalWork(4), 7, backend or Loop(), **settings)


def known_gradient(i: int, x: Tensor = X) -> Tensor:
    a = torch.tensor([float(i), 1.0], dtype=torch.float64)
    return a * (a @ x)


def gradient(local: Local, x: Tensor) -> Tensor:
    return local.grad(x)


def number_of_steps(local: Local, x: Tensor) -> Tensor:
    return local.steps + 0 * x.sum()


def count(local: Local, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    return x + seen, seen + 1


@EACH_BACKEND
def test_messages_come_from_the_cohort_in_the_order_of_ids(backend: Any) -> None:
    sent = cohort(federation(backend), 1, np.array([4, 0, 3])).each(gradient, X)
    assert sent.ids.tolist() == [0, 3, 4]
    torch.testing.assert_close(sent.stacked, torch.stack([known_gradient(i) for i in (0, 3, 4)]), rtol=0, atol=1e-14)


@EACH_BACKEND
def test_a_message_does_not_depend_on_who_else_takes_part(backend: Any) -> None:
    def walk(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            return y - 0.1 * local.grad(y, batch) * y.sin()

        return local.fold(step, x) + local.sample(2).x.sum(0)

    fed = federation(backend)
    everybody = cohort(fed, 3).each(walk, X).stacked
    for ids in ([2], [1, 4], [0, 1, 3]):
        some = cohort(fed, 3, np.array(ids)).each(walk, X).stacked
        torch.testing.assert_close(some, everybody[ids], rtol=0, atol=1e-14)


@EACH_BACKEND
def test_memory_is_each_clients_own(backend: Any) -> None:
    fed = federation(backend)
    seen: Kept[Tensor] = cohort(fed, 0).keep(torch.zeros(D, dtype=torch.float64))
    for t, ids in enumerate(([0, 1], [1, 3], [1]), 1):
        before = dict(seen.rows)
        sent, new = cohort(fed, t, np.array(ids)).each(count, X, seen)
        assert set(new.rows) == set(ids) and dict(seen.rows) == before
        torch.testing.assert_close(sent.stacked, torch.stack([X + seen[i] for i in ids]))
        seen = seen | new
    assert [float(seen[i][0]) for i in range(5)] == [1, 3, 0, 1, 0]
    assert set(seen.rows) == {0, 1, 3}


@EACH_BACKEND
def test_steps_and_decay(backend: Any) -> None:
    fed = federation(backend, LocalWork(4, epochs=2), decay=lambda t: 0.5**t)
    assert cohort(fed, 1).each(number_of_steps, X).stacked.tolist() == [2, 6, 4, 2, 4]
    assert cohort(fed, 3).each(lambda local, x: local.decay * x, X).stacked[2].tolist() == (0.125 * X).tolist()


@EACH_BACKEND
def test_a_large_batch(backend: Any) -> None:
    def size(local: Local, x: Tensor) -> Tensor:
        batch = local.sample(4)
        ones = torch.ones_like(batch.y) if batch.weight is None else batch.weight
        return torch.stack([ones.sum(), (batch.x[..., 0] * ones).sum()])

    got = cohort(federation(backend), 1).each(size, X).stacked
    m = np.minimum(SIZES, 4)
    assert got.tolist() == [[m[i], m[i] * i] for i in range(5)]


@EACH_BACKEND
def test_gradients_on_a_large_batch_and_on_the_whole_shard_are_charged(backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    some = cohort(fed, 1, np.array([0, 1, 4]), meter=meter)
    some.each(lambda local, x: local.grad(x, local.sample(4)) + local.grad(x), X)
    assert meter.ledger.gradient_evaluations.tolist() == [3 + 3, 4 + 9, 0, 0, 4 + 7]


def two_large_batches(local: Local, x: Tensor) -> Tensor:
    larger, smaller = local.sample(4), local.sample(1)
    return local.grad(x, larger) + 0 * smaller.x.sum()


def large_batch_in_every_step(local: Local, x: Tensor) -> Tensor:
    def step(y: Tensor, batch: Batch, a: Tensor, b: Tensor) -> Tensor:
        return y - 0.1 * local.grad(y, Batch(a, b))

    large = local.sample(1)
    return local.fold(step, x, large.x, large.y)


@pytest.mark.parametrize(
    ("fn", "expected"), [(two_large_batches, [3, 4, 4, 1, 4]), (large_batch_in_every_step, [1, 3, 2, 1, 2])]
)
@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
def test_the_batch_that_is_charged_is_the_one_that_was_used(fn: Any, expected: list[int], backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    cohort(fed, 1, meter=meter).each(fn, X)
    assert meter.ledger.gradient_evaluations.tolist() == expected


def test_mean_is_weighted_by_p_over_the_cohort() -> None:
    fed = federation(weights=SIZES)
    clients = cohort(fed, 1, np.array([0, 1, 4]))
    g = torch.stack([known_gradient(i) for i in (0, 1, 4)])
    expected = torch.tensor([3, 9, 7], dtype=torch.float64) @ g / 19
    torch.testing.assert_close(clients.mean(clients.each(gradient, X)), expected, rtol=0, atol=1e-14)
    uniform = cohort(federation(), 1, np.array([0, 1, 4]))
    torch.testing.assert_close(uniform.mean(uniform.each(gradient, X)), g.mean(0), rtol=0, atol=1e-14)


def test_mean_goes_into_trees_and_keeps_types_and_shapes() -> None:
    def message(local: Local, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return x.float(), (local.steps, torch.ones(2, 3, dtype=torch.float64) * local.steps)

    clients = cohort(federation(), 1, np.array([1, 4]))
    a, (b, c) = clients.mean(clients.each(message, X))
    assert (a.dtype, b.shape, c.shape) == (torch.float32, (), (2, 3))
    assert float(b) == (3 + 2) / 2 == float(c[1, 2])


def test_reduce_gives_the_rule_rows_and_weights_that_sum_to_one() -> None:
    clients = cohort(federation(weights=SIZES), 1, np.array([0, 3]))
    sent = clients.each(gradient, X)

    def rule(rows: Tensor, weights: Tensor) -> Tensor:
        assert rows.shape == (2, D) and weights.tolist() == [0.75, 0.25] and weights.dtype == rows.dtype
        return rows[1]

    torch.testing.assert_close(clients.reduce(sent, rule), known_gradient(3))


def test_fraction_population_and_sizes() -> None:
    fed = federation(weights=SIZES, cohort_size=2)
    clients = cohort(fed, 4, np.array([1, 3]))
    assert clients.fraction == pytest.approx(10 / 25)
    assert (len(clients), clients.n, clients.cohort_size, clients.round) == (2, 5, 2, 4)
    assert clients.population.ids.tolist() == list(range(5)) and clients.population.round == 4
    assert cohort(federation(), 1, np.array([2])).fraction == pytest.approx(1 / 5)
    assert cohort(federation(), 1).cohort_size == 5


def test_split_deals_every_client_one_role_by_its_own_coin() -> None:
    fed = federation()
    tosses = np.zeros((200, 5))
    for t in range(200):
        heads, tails = cohort(fed, t).split(0.3)
        assert sorted([*heads.ids, *tails.ids]) == [0, 1, 2, 3, 4]
        assert heads.round == tails.round == t
        tosses[t, heads.ids] = 1
        alone = cohort(fed, t, np.array([2])).split(0.3)[0]
        assert len(alone) == tosses[t, 2], "a coin depends on the company"
    assert abs(tosses.mean() - 0.3) < 5 * (0.3 * 0.7 / 1000) ** 0.5            # five standard deviations
    assert np.abs(np.corrcoef(tosses.T) - np.eye(5)).max() < 5 / 200**0.5


def test_split_at_the_ends_and_outside() -> None:
    clients = cohort(federation(), 1)
    assert len(clients.split(0.0)[0]) == 0 and len(clients.split(1.0)[1]) == 0
    assert not clients.split(0.0)[0] and clients.split(1.0)[0]
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"clients.split\(.*expected a probability in \[0, 1\]"):
            clients.split(p)


def test_down_and_up_are_charged_to_those_who_took_part() -> None:
    fed = federation()
    meter = Meter(fed)
    clients = cohort(fed, 1, np.array([1, 4]), meter=meter)
    down = (X, X)
    sent = clients.each(lambda local, d: d[0].float(), down)
    assert meter.ledger.down.tolist() == [0, nbytes(down), 0, 0, nbytes(down)]
    assert meter.ledger.up.tolist() == [0] * 5
    clients.mean(sent)
    up = nbytes(X.float())
    assert meter.ledger.up.tolist() == [0, up, 0, 0, up]


def test_an_upload_is_charged_once_however_often_it_is_read() -> None:
    fed = federation()
    meter = Meter(fed)
    clients = cohort(fed, 1, np.array([1, 4]), meter=meter)
    sent = clients.each(gradient, X)
    clients.mean(sent)
    clients.mean(sent)
    clients.reduce(sent, lambda rows, weights: rows[0])
    assert meter.ledger.up.sum() == 2 * nbytes(X)
    clients.mean(clients.each(gradient, X))
    assert meter.ledger.up.sum() == 4 * nbytes(X), "another message, though an equal one"


def test_an_upload_is_charged_once_whoever_reads_it() -> None:
    fed = federation()
    meter = Meter(fed)
    clients = cohort(fed, 1, meter=meter)
    sent = clients.each(gradient, X)
    clients.mean(sent)
    clients.population.mean(sent)
    assert meter.ledger.up.sum() == 5 * nbytes(X)


@EACH_BACKEND
def test_memory_never_travels(backend: Any) -> None:
    fed = federation(backend)
    meter = Meter(fed)
    clients = cohort(fed, 1, meter=meter)
    big = clients.keep(torch.zeros(1000, dtype=torch.float64))
    clients.mean(clients.each(lambda local, x, m: (x + m.sum(), m + 1), X, big)[0])
    assert meter.ledger.down.tolist() == meter.ledger.up.tolist() == [nbytes(X)] * 5


@EACH_BACKEND
@pytest.mark.parametrize("skip", [0, 1, 2, 9])
def test_fold_leaves_out_the_first_minibatches(backend: Any, skip: int) -> None:
    def client(local: Local, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(carry: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
            k, y = carry
            return k + 1, y - local.grad(y, batch)

        k, _ = local.fold(step, (torch.zeros((), dtype=x.dtype), x), skip=skip)
        return k, local.steps

    fed = federation(backend)
    k, steps = cohort(fed, 1).each(client, X).stacked
    assert len(set(steps.tolist())) > 1, "clients with different numbers of steps"
    assert k.tolist() == [max(0, n - skip) for n in steps.tolist()]


@EACH_BACKEND
def test_fold_carries_trees_and_hands_constants_over(backend: Any) -> None:
    """The number of steps and of samples seen, and one tensor of each client and one of all."""

    def client(local: Local, x: Tensor) -> Tensor:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
            k, y = carry
            return k + 1, y + own * shared

        k, y = local.fold(step, (torch.zeros((), dtype=x.dtype), torch.zeros_like(x)), local.grad(x), x)
        return torch.cat([k.reshape(1), y])

    got = cohort(federation(backend), 1).each(client, X).stacked
    steps = -(-SIZES // np.minimum(SIZES, 4))
    for i in range(5):
        torch.testing.assert_close(got[i, 1:], float(steps[i]) * known_gradient(i) * X, rtol=0, atol=1e-13)
    assert got[:, 0].tolist() == steps.tolist()


def test_sent_and_kept_are_inert() -> None:
    """They hold data and nothing that could run code or move a byte."""
    fed = federation()
    clients = cohort(fed, 1)
    sent, kept = clients.each(count, X, clients.keep(torch.zeros(D, dtype=torch.float64)))
    assert set(Sent.__slots__) == {"__weakref__", "ids", "messages"} and set(Kept.__slots__) == {"default", "n", "rows"}
    for value in (sent, kept):
        assert not hasattr(value, "__dict__")
        held = [getattr(value, name) for name in type(value).__slots__]
        assert not any(isinstance(h, (Federation, type(clients), threading.Thread)) or callable(h) for h in held)
    assert repr(sent) == "Sent(from 5 nodes)" and repr(kept) == "Kept(n=5, written=5)"


def test_gradients_are_not_recorded() -> None:
    """A client's code runs without autograd, or memory would grow with the rounds."""
    sent = cohort(federation(), 1).each(lambda local, x: local.grad(x) * x.clone().requires_grad_(), X)
    assert not sent.stacked.requires_grad


@EACH_BACKEND
def test_several_memories_are_read_and_those_that_are_returned_are_new(backend: Any) -> None:
    clients = cohort(federation(backend), 1, np.array([1, 4]))
    a, b = clients.keep(torch.zeros(())), Kept(5, torch.ones(()), {4: torch.tensor(7.0)})
    sent, total, product = clients.each(lambda local, x, a, b: (x * 0 + b, a + b, 2 * b), X, a, b)
    assert sent.stacked[:, 0].tolist() == [1, 7]
    assert {i: float(v) for i, v in total.rows.items()} == {1: 1, 4: 7}
    assert {i: float(v) for i, v in product.rows.items()} == {1: 2, 4: 14}
    only_read = clients.each(lambda local, x, a, b: x + b, X, a, b)
    assert isinstance(only_read, Sent) and torch.equal(only_read.stacked, X + torch.tensor([[1.0], [7.0]]))


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@EACH_BACKEND
def test_a_named_tuple_is_one_message_and_one_memory(backend: Any) -> None:
    clients = cohort(federation(backend), 1)
    kept = clients.keep(torch.ones(D, dtype=torch.float64))
    mean = clients.mean(clients.each(lambda local, x, m: Pair(x, m), X, kept))
    torch.testing.assert_close(tuple(mean), (X, torch.ones_like(X)), rtol=0, atol=1e-14)
    pair, steps = clients.apply(lambda local, m: Pair(m, m + local.steps), kept), clients.each(number_of_steps, X)
    assert pair[2].a.tolist() == [1.0] * D and pair[2].b.tolist() == [1 + float(steps.stacked[2])] * D


@EACH_BACKEND
def test_applied_work_sends_nothing(backend: Any) -> None:
    """The ledger charges what the server sends first, as in each, and gradients; nothing goes up."""
    fed = federation(backend)
    meter = Meter(fed)
    clients = cohort(fed, 1, np.array([0, 3]), meter)
    g = clients.apply(lambda local, x: local.grad(x), clients.keep(X))
    assert set(g.rows) == {0, 3} and meter.ledger.totals()["bytes_down"] == meter.ledger.totals()["bytes_up"] == 0
    assert meter.ledger.gradient_evaluations.tolist() == [SIZES[0], 0, 0, SIZES[3], 0]
    moved, halved = clients.apply(lambda local, x, g: (x - g, g / 2), g, down=X)
    assert meter.ledger.down.tolist() == [nbytes(X), 0, 0, nbytes(X), 0] and meter.ledger.up.sum() == 0
    for i in (0, 3):
        assert torch.equal(moved[i], X - g[i]) and torch.equal(halved[i], g[i] / 2)


def test_nobody_cannot_be_applied_to() -> None:
    with pytest.raises(ConfigError, match=r"clients.apply in round 2: the cohort is empty; test `if clients:` first"):
        cohort(federation(), 2, np.array([], np.int64)).apply(lambda local: X)
