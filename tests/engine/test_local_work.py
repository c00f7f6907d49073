"""Local work: every epoch visits each sample once, in minibatches that depend on (seed, round, node) and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.engine import plans
from fedsim.engine.local_work import LocalWork, Shards, draw, minibatches
from fedsim.errors import ConfigError, PartitionError
from fedsim.messages.upload import upload

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def shards(sizes: list[int] | np.ndarray) -> Shards:
    """Samples that are their own row numbers."""
    offsets = np.r_[0, np.cumsum(sizes)]
    rows = torch.arange(int(offsets[-1]))
    return Shards(rows.double().unsqueeze(1), rows, offsets)


def steps(work: LocalWork, sizes: list[int], round: int = 1, seed: int = 0, ids: Any = None) -> list[list[list[int]]]:
    """Rows of each step of each client, as the clients see them."""
    ids = np.arange(len(sizes)) if ids is None else np.array(ids)
    plans = minibatches(work, shards(sizes), seed, round, ids)
    return [[row[:m].tolist() for row, m in zip(p.index, p.lengths, strict=True)] for p in plans]


def owned(sizes: list[int], i: int) -> list[int]:
    start = sum(sizes[:i])
    return list(range(start, start + sizes[i]))


@given(SIZES, st.integers(0, 12), st.integers(1, 4))
def test_an_epoch_visits_each_own_sample_once_and_keeps_the_last_partial_batch(
    sizes: list[int], batch_size: int, epochs: int
) -> None:
    work = LocalWork(batch_size, epochs)
    for i, plan in enumerate(steps(work, sizes)):
        size = min(batch_size, sizes[i]) or sizes[i]
        per_epoch = -(-sizes[i] // size)
        assert len(plan) == epochs * per_epoch == work.counts(np.array(sizes))[i]
        for e in range(epochs):
            epoch = plan[e * per_epoch : (e + 1) * per_epoch]
            assert [len(batch) for batch in epoch[:-1]] == [size] * (per_epoch - 1)
            assert len(epoch[-1]) == sizes[i] - size * (per_epoch - 1)
            assert sorted(row for batch in epoch for row in batch) == owned(sizes, i)


@given(SIZES, st.integers(0, 12), st.integers(1, 20))
def test_steps_walk_the_sequence_of_epochs(sizes: list[int], batch_size: int, K: int) -> None:
    fixed = steps(LocalWork(batch_size, steps=K), sizes)
    by_epochs = steps(LocalWork(batch_size, epochs=K), sizes)
    assert fixed == [plan[:K] for plan in by_epochs]
    assert LocalWork(batch_size, steps=K).counts(np.array(sizes)).tolist() == [K] * len(sizes)


@pytest.mark.parametrize("batch_size", [0, 9, 100])
def test_a_batch_of_zero_or_of_more_than_there_is_is_the_whole_shard(batch_size: int) -> None:
    for sizes in ([9, 4], [9, 9], [9]):                    # planned one by one and together
        work = LocalWork(batch_size, epochs=3)
        assert steps(work, sizes) == [[owned(sizes, i)] * 3 for i in range(len(sizes))]
        plans = minibatches(work, shards(sizes), 0, 1, np.arange(len(sizes)))
        assert all(plan.index.flags.writeable for plan in plans), "PyTorch warns of others"


@given(SIZES, st.data(), st.integers(1, 10**6), st.integers(0, 2**63))
def test_minibatches_do_not_depend_on_who_else_takes_part(
    sizes: list[int], data: st.DataObject, round: int, seed: int
) -> None:
    work = LocalWork(4, epochs=2)
    everybody = steps(work, sizes, round, seed)
    ids = data.draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True))
    assert steps(work, sizes, round, seed, ids) == [everybody[i] for i in ids]


def test_seed_round_node_and_epoch_each_give_another_order() -> None:
    sizes = [30, 30]
    base = steps(LocalWork(5), sizes)
    assert base == steps(LocalWork(5), sizes)
    assert base[0] != [[row - 30 for row in batch] for batch in base[1]]
    assert base[0] != steps(LocalWork(5), sizes, seed=1)[0]
    assert base[0] != steps(LocalWork(5), sizes, round=2)[0]
    two = steps(LocalWork(5, epochs=2), sizes)[0]
    assert two[:6] == base[0] != two[6:]


def test_batch_size_and_other_clients_sizes_do_not_change_the_order_of_samples() -> None:
    plans = [steps(LocalWork(b), [17, n])[0] for b, n in ((1, 3), (4, 3), (16, 40))]
    orders = [[row for batch in plan for row in batch] for plan in plans]
    assert orders[0] == orders[1] == orders[2] != owned([17], 0)


@given(SIZES, st.integers(1, 40), st.integers(0, 100))
def test_a_large_batch_is_drawn_without_replacement(sizes: list[int], size: int, round: int) -> None:
    ids = np.arange(len(sizes))
    batches = draw(shards(sizes), 3, round, ids, size)
    for i, rows in enumerate(batches):
        assert len(rows) == min(size, sizes[i]) == len(set(rows.tolist()))
        assert set(rows.tolist()) <= set(owned(sizes, i))
    (last,) = draw(shards(sizes), 3, round, ids[-1:], size)
    np.testing.assert_array_equal(last, batches[-1])


def test_large_batches_change_with_the_round_and_are_not_the_first_minibatch() -> None:
    sizes, one = np.array([40]), np.array([0])
    batches = [tuple(draw(shards(sizes), 0, t, one, 5)[0].tolist()) for t in range(20)]
    assert len(set(batches)) == 20
    assert set(batches[1]) != set(steps(LocalWork(5), [40])[0][0])


def test_regularise_clips_each_row_and_then_adds_weight_decay() -> None:
    g, x = torch.tensor([[3.0, 4.0], [0.3, 0.4]]).double(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    got = LocalWork(weight_decay=0.5, clip_norm=1.0).regularise(g, x)
    torch.testing.assert_close(got, torch.tensor([[0.6 + 0.5, 0.8], [0.3, 0.4 + 1.0]]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(got[0], LocalWork(weight_decay=0.5, clip_norm=1.0).regularise(g[0], x[0]))
    assert LocalWork().regularise(g, x) is g


def test_shards_give_rows_and_take_any_shape_of_index() -> None:
    data = shards([3, 2, 4])
    assert data.n == 3 and data.sizes.tolist() == [3, 2, 4]
    assert data.rows(1).y.tolist() == [3, 4] and data.rows(1).x.tolist() == [[3.0], [4.0]]
    index = torch.tensor([[8, 0], [1, 1], [5, 2]])
    batch = data.take(index, torch.ones(3, 2))
    assert torch.equal(batch.y, index) and torch.equal(batch.x, index.double().unsqueeze(2))
    assert batch.weight is not None and batch.weight.shape == (3, 2)


def test_runs_of_rows_are_views_where_they_lie_evenly() -> None:
    data = shards([5, 5, 7])
    for first, length in (([0, 5, 10], 5), ([2, 7], 3), ([12], 4)):
        batch = data.runs(np.array(first), np.full(len(first), length))
        assert batch is not None
        expected = data.take(torch.tensor(first).unsqueeze(1) + torch.arange(length))
        assert torch.equal(batch.x, expected.x) and torch.equal(batch.y, expected.y)
        assert batch.x.untyped_storage().data_ptr() == data.x.untyped_storage().data_ptr()
    assert data.runs(np.array([0, 5, 10]), np.array([5, 5, 7])) is None
    assert data.runs(np.array([0, 5, 11]), np.array([5, 5, 5])) is None


def test_a_client_without_samples_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"2 of 4 clients have no samples \(the first is client 1\)"):
        shards([3, 0, 2, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": -1}, "local.batch_size is -1"),
        ({"epochs": 0}, "local.epochs is 0"),
        ({"steps": 0}, "local.steps is 0"),
        ({"weight_decay": -0.1}, "local.weight_decay is -0.1"),
        ({"weight_decay": float("nan")}, "local.weight_decay is nan"),
        ({"clip_norm": 0.0}, "local.clip_norm is 0.0"),
        ({"clip_norm": float("nan")}, "local.clip_norm is nan"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalWork(**settings)


def test_arrays_of_the_host_become_tensors_whether_or_not_they_may_be_written() -> None:
    rows = np.broadcast_to(np.arange(3), (2, 3))
    own = np.arange(4.0)
    there = upload([rows, own, np.asarray(np.int64(7)), np.empty(0)], torch.device("cpu"))
    assert [t.tolist() for t in there] == [[[0, 1, 2]] * 2, [0.0, 1.0, 2.0, 3.0], 7, []]
    there[0][0] = 5                                        # a copy of what is not to be written
    assert rows.tolist() == [[0, 1, 2]] * 2 and there[1].data_ptr() == own.ctypes.data


@pytest.mark.parametrize(("ahead", "reads"), [(1, 6), (200, 5), (2**20, 4)])
def test_minibatches_read_ahead_are_those_of_each_step(
    ahead: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients finish after 1, 3 and 6 steps; the second ends with fewer samples."""
    monkeypatch.setattr(plans, "AHEAD", ahead)
    sizes, work, active = [24, 11, 4], LocalWork(4), [3, 2, 2, 1, 1, 1]
    data, order = shards(sizes), np.arange(3)
    rounds = minibatches(work, data, 0, 1, order)
    counts = work.counts(np.array(sizes))
    model = SimpleNamespace(device=torch.device("cpu"), numbers=np.float64)
    plan = plans.block_plan(rounds.stacked(order), order, counts, model)  # type: ignore[arg-type]
    taken: list[torch.Size] = []
    take = data.take
    monkeypatch.setattr(data, "take", lambda index, *rest: (taken.append(index.shape), take(index, *rest))[1])
    batches = plans.StepBatches(plan, active, data)
    for k, c in enumerate(active):
        batch = batches(k)
        assert batch.x.shape[:2] == batch.key.shape == (c, 4)
        for i in range(c):
            mine = rounds[i]
            real = slice(None) if batch.weight is None else batch.weight[i] > 0
            assert batch.y[i][real].tolist() == mine.index[k, : mine.lengths[k]].tolist()
            assert batch.key[i].tolist() == [mine.keys[k]] * 4
    assert len(taken) == reads
