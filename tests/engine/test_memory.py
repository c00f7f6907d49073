"""Memories put away between rounds: the same values, in bounded room, through checkpoints too."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DFedSAM, FedSpeed, Scaffold
from fedsim import Execution, Experiment, FixedSize, run
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES, OnDevice, OnDisk, Prefetched
from fedsim.errors import ConfigError, RunError
from fedsim.partition import IidPartitioner
from fedsim.record.checkpoint import load_latest
from fedsim.tree import fetching
from fedsim.types import Kept
from fedsim.values import Far
from tests.test_clients import D, X, federation
from topologies import Ring, Static


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4)])
def test_a_row_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.arange(12, dtype=torch.float64)[: torch.Size(shape).numel()].reshape(shape) - 3).to(dtype)
    row = OnDisk().put(value)
    assert isinstance(row, Far) and (row.shape, row.dtype) == (value.shape, dtype)
    assert torch.equal(row.fetch(), value) and row.fetch().dtype == dtype


def test_rows_that_are_out_of_use_make_room() -> None:
    disk, size = OnDisk(), 8 * 1000
    rows = [disk.put(torch.full((1000,), float(i), dtype=torch.float64)) for i in range(5)]
    for i in range(100):
        rows[i % 5] = disk.put(torch.full((1000,), float(i), dtype=torch.float64))
    gc.collect()
    assert disk.size <= 6 * size, "one more than are in use: the new one is written before the old one goes"
    assert [float(row.fetch()[0]) for row in rows] == [95, 96, 97, 98, 99]  # type: ignore[union-attr]


def test_nothing_is_moved_twice_and_the_host_keeps_what_it_has() -> None:
    disk = OnDisk()
    row = disk.put(torch.ones(3))
    assert disk.put(row) is row  # type: ignore[arg-type]
    x = torch.ones(3)
    assert MEMORIES["host"](x.device).put(x) is x


def test_a_full_disk_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=r"cannot write 12 bytes .*No space left.*TMPDIR"):
        OnDisk().put(torch.ones(3))


def test_rows_of_a_stack_keep_no_memory_of_others() -> None:
    stack = torch.arange(6.0).view(3, 2)
    rows: Any = OnDevice().put_rows(stack)
    assert torch.equal(torch.stack(rows), stack)
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)
    there: Any = OnDisk().put_rows(stack.t())              # no contiguous one
    assert torch.equal(torch.stack([row.fetch() for row in there]), stack.t())


def test_stored_and_new_rows_are_stacked_together() -> None:
    disk, default = OnDisk(), (torch.zeros(2), torch.tensor(1.0))
    rows = {k: (disk.put(torch.full((2,), float(k))), disk.put(torch.tensor(-float(k)))) for k in (1, 3)}
    x, y = Kept(4, default, rows).stacking([3, 0, 1])()
    assert x.tolist() == [[3.0, 3.0], [0.0, 0.0], [1.0, 1.0]] and y.tolist() == [-3.0, 1.0, -1.0]
    a, b = fetching((rows[3][0], default[1]))()
    assert a.tolist() == [3.0, 3.0] and b is default[1], "what is here is not copied"


def test_what_is_read_next_is_begun_before_it_is_needed() -> None:
    events = []

    def begin(k: int) -> Callable[[], int]:
        events.append(f"begin {k}")
        return lambda: events.append(f"wait {k}") or k

    read = Prefetched(begin, 3)
    assert [read(k) for k in range(3)] == [0, 1, 2]
    assert events == ["begin 0", "begin 1", "wait 0", "begin 2", "wait 1", "wait 2"]
    read = Prefetched(begin, 4)
    assert [read(k) for k in (1, 0, 3, 2)] == [1, 0, 3, 2], "threads may be out of order"


@pytest.mark.parametrize("backend", [Loop(), Blocks(2), Blocks(2, threads=2)])
def test_a_federation_puts_memories_away(backend: Any) -> None:
    fed = replace(federation(), memory=OnDisk(), backend=backend)
    clients = cohort(fed, 1)
    kept = clients.keep(torch.zeros(D, dtype=X.dtype))
    for _ in range(3):
        _, kept = clients.each(lambda local, x, m: (x, m + local.steps), X, kept)
    assert all(isinstance(row, Far) for row in kept.rows.values())
    assert [float(kept[i][0]) for i in range(5)] == [3, 9, 6, 3, 6], "three rounds of 1, 3, 2, 1 and 2 steps"


@pytest.mark.parametrize("algorithm", [Scaffold(), FedSpeed(), DFedSAM()], ids=["scaffold", "fedspeed", "dfedsam"])
def test_a_run_is_the_same_wherever_memories_live(algorithm: Any, tmp_path: Path) -> None:
    gossip = isinstance(algorithm, DFedSAM)
    settings: dict[str, Any] = {
        "partition": IidPartitioner(6),
        "sampling": FixedSize(0.5),
        "topology": Static(Ring()) if gossip else None,
        "rounds": 4,
        "execution": Execution("loop", checkpoint_every=2),
    }
    experiment = Experiment(algorithm, **settings)
    runs = {
        place: run(experiment.with_execution(memory=place), root=tmp_path / place, progress=False).path
        for place in ("device", "disk")
    }
    metrics = [(path / "seed-0/metrics.jsonl").read_bytes() for path in runs.values()]
    assert metrics[0] == metrics[1]
    device, disk = (load_latest(path / "seed-0/checkpoints") for path in runs.values())
    assert device and disk and all(torch.equal(device.tensors[name], disk.tensors[name]) for name in device.tensors)


def test_another_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory is 'tape'; expected one of device, host, disk"):
        Execution(memory="tape")  # type: ignore[arg-type]


def test_ray_has_a_place_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"memory is 'disk', but Ray's object store .* --ray.object_store_memory"):
        Execution(backend="ray", memory="disk")


def test_a_row_is_read_only_where_it_is_asked_for() -> None:
    disk = OnDisk()
    kept = Kept(2, torch.zeros(3), {0: disk.put(torch.ones(3))}) | Kept(2, torch.zeros(3), {})
    assert isinstance(kept.rows[0], Far) and torch.equal(kept[0], torch.ones(3))
