"""Clients' memories in slabs of the host, on the pretended GPU: the bits and files of the device's, and what they cost.

``tests/test_pretended_gpu.py`` runs this file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import DFedSAM, Scaffold
from fedsim import run
from fedsim.clients import cohort
from fedsim.engine import slabs
from fedsim.engine.graphed import Graphed
from fedsim.engine.memory import MEMORIES
from fedsim.engine.slabs import HostRow, OnHost, Pool
from fedsim.errors import RunError
from fedsim.types import Kept
from tests.contract.cases import ALGORITHMS, federation, rounds, tensors
from tests.pretended.counts import WAITS, counted, numbers
from tests.pretended.device import Trace
from tests.test_devices import SMALL, recorded
from topologies import Ring, Static

GPU = torch.device("cuda")


def on_host() -> OnHost:
    memory = MEMORIES["host"](GPU)
    assert isinstance(memory, OnHost)
    return memory


def kept(state: Any) -> list[Kept[Any]]:
    """Memories in a state."""
    if isinstance(state, Kept):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return [found for part in parts for found in kept(part)]


@pytest.mark.parametrize("backend", ["loop", "blocks of 2", "blocks of 2 on 2 threads", "graphs on 2 streams"])
@pytest.mark.parametrize("algorithm", ["SCAFFOLD II", "DFedSAM", "EF21", "SCAFFOLD, EF14"])
def test_bits_are_those_of_memories_on_the_device(algorithm: str, backend: str) -> None:
    """Clients of the table take part in rounds one after the other, others come back later."""
    ends = []
    for place in ("device", "host"):
        graphs = backend == "graphs on 2 streams"
        fed = federation(backend="loop" if graphs else backend, dtype=torch.float32, device="cuda", memory=place)
        if graphs:
            fed = replace(fed, backend=Graphed(streams=2))
        ends.append(list(rounds(ALGORITHMS[algorithm], fed)))
    for one, other in zip(*ends, strict=True):             # also the older states, which newer rows leave alone
        assert all(map(torch.equal, tensors(one), tensors(other)))
    rows = [leaf for memory in kept(ends[1][-1]) for row in memory.rows.values() for leaf in slabs_of(row)]
    assert rows and not any(isinstance(row, torch.Tensor) for row in rows)


def slabs_of(row: Any) -> list[Any]:
    return [leaf for branch in row for leaf in slabs_of(branch)] if isinstance(row, tuple) else [row]


COPIES = {
    ("SCAFFOLD II", "loop"): (2 + 3, 3),
    ("SCAFFOLD II", "blocks of 4"): (2 + 3, 2),
    ("SCAFFOLD II", "blocks of 2"): (3 + 3, 3),
    ("FedSpeed", "blocks of 4"): (2 + 3, 2),
    ("DFedSAM", "loop"): (2 + 3, 2),
}
"""Copies to the device, of rows after those of any round, and copies back: the last cohort has three clients."""


@pytest.mark.parametrize(("case", "budget"), COPIES.items(), ids=map(", ".join, COPIES))
def test_nobody_waits_for_a_row(case: tuple[str, str], budget: tuple[int, int]) -> None:
    algorithm, backend = case
    round, step, trace = counted(algorithm, backend=backend, memory="host")
    assert step["uploads"] == step["queued"] == step["waits"] == 0 and round["waits"] == 1, trace.places_of(*WAITS)
    found = round["uploads"], round["queued"]
    assert all(a <= b for a, b in zip(found, budget, strict=True)), trace.places_of("upload", *WAITS)


def test_rows_that_lie_side_by_side_are_one_copy() -> None:
    """A round of everybody: copies are as many as blocks, whatever the number of clients."""
    fed = federation(device="cuda", dtype=torch.float32, memory="host", backend="blocks of 2")
    states = rounds(ALGORITHMS["SCAFFOLD II"], fed, (tuple(range(6)),) * 4)
    for _ in range(4):
        next(states)
    with Trace() as trace:
        next(states)
    found, blocks = numbers(trace), 3
    assert found["uploads"] == blocks + 1 + blocks and found["queued"] == blocks, trace.places_of("upload", *WAITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4)])
def test_rows_come_back_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    memory = on_host()
    numbers = torch.arange(5 * torch.Size(shape).numel(), dtype=torch.float64) - 3
    stack = numbers.reshape(5, *shape).to(dtype).cuda()
    rows: Any = memory.put_rows(stack)
    assert {(row.shape, row.dtype, row.device.type) for row in rows} == {(stack.shape[1:], dtype, "cuda")}
    assert torch.equal(HostRow.begin(rows[::-1])(), stack.flip(0)) and torch.equal(rows[3].fetch(), stack[3])
    assert torch.equal(rows[3].saved(), stack[3].cpu()) and memory.put(rows[3]) is rows[3]


def test_what_a_method_keeps_on_the_host_stays_there() -> None:
    memory, value = on_host(), torch.ones(2, 3)
    assert memory.put(value) is value
    rows: Any = memory.put_rows(value)
    assert torch.equal(torch.stack(rows), value) and not any(row.data_ptr() == value.data_ptr() for row in rows)


def test_a_few_clients_are_new() -> None:
    memory, first = on_host(), torch.zeros(3, device="cuda")
    known = Kept(4, first, {2: memory.put(torch.ones(3, device="cuda"))})
    assert known.stacking([1, 2, 3])().tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]


def test_rows_out_of_use_make_room_and_others_stay() -> None:
    memory = on_host()
    rows: Any = memory.put_rows(torch.zeros(100, 100, device="cuda"))
    for turn in range(1, 50):
        some = slice(turn % 10, None, 10)
        rows[some] = memory.put_rows(torch.full((10, 100), float(turn), device="cuda"))
    gc.collect()
    (pool,) = memory._pools.values()
    assert pool.held <= 2 * 110 * pool.size, "a slab is as large as those before; new rows are there before old ones go"
    last = [max(t for t in range(50) if t == 0 or t % 10 == k % 10) for k in range(100)]
    assert [float(row.fetch()[0]) for row in rows] == last


def test_slabs_grow_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "FIRST_ROWS", 1)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1024)
    memory = on_host()
    rows = [memory.put(torch.full((10,), float(k), device="cuda")) for k in range(60)]
    (pool,) = memory._pools.values()
    assert [slab.nbytes for slab in pool.slabs] == [40, 40, 120, 240, 480, 1000, 1000][: len(pool.slabs)]
    assert [float(row.fetch()[0]) for row in rows] == list(range(60))  # type: ignore[union-attr]
    assert len(memory.put_rows(torch.zeros(40, 10, device="cuda"))) == 40, "more than one slab has"
    assert memory.put(torch.zeros(1000, device="cuda")).fetch().shape == (1000,)  # type: ignore[union-attr]


def no_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeError("CUDA error: out of memory\nmore")


@pytest.mark.parametrize(
    ("module", "name", "fails", "reason"),
    [(slabs, "free_memory", lambda device: 1000, "1,000 are free"),
     (torch, "empty", no_memory, "CUDA error: out of memory")],
)  # fmt: skip
def test_a_host_without_room_is_an_error_that_says_what_to_do(
    module: Any, name: str, fails: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = torch.ones(50_000, device="cuda")
    monkeypatch.setattr(module, name, fails)
    expected = f"200,000 bytes each need 4,000,000 more .* besides 0 that they have: {reason}; use --memory disk"
    with pytest.raises(RunError, match=expected):
        on_host().put(value)


def test_a_pool_gives_the_first_places_in_order() -> None:
    pool = Pool(torch.Size([4]), torch.float32)
    places = pool.take(6)
    pool.returned.extend([places[4], places[1], places[2]])
    again = pool.take(4)
    assert again[:3] == [places[1], places[2], places[4]] and again[3].row == 6
    assert [(at.start, at.stop, len(part)) for at, part in pool.parts(again)] == [(0, 2, 2), (2, 3, 1), (3, 4, 1)]


@pytest.mark.parametrize("backend", ["loop", "blocks"])
@pytest.mark.parametrize("gossip", [False, True])
def test_checkpoints_hold_the_same_bytes(gossip: bool, backend: Any, tmp_path: Path) -> None:
    experiment = replace(SMALL, rounds=5).with_execution(device="cuda", backend=backend, checkpoint_every=1)
    if gossip:
        experiment = replace(experiment, algorithm=DFedSAM(), topology=Static(Ring()))
    runs = {
        place: run(experiment.with_execution(memory=place), output=tmp_path / place, progress=False)
        for place in ("device", "host")
    }
    assert recorded(runs["device"]) == recorded(runs["host"])
    files = [sorted((made.seed_path(0) / "checkpoints").rglob("block-*")) for made in runs.values()]
    assert files[0] and [f.name for f in files[0]] == [f.name for f in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_the_next_rows_are_on_their_way_before_a_client_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = federation(device="cuda", dtype=torch.float32, memory="host", backend="blocks of 2")
    algorithm, events = Scaffold(), list[str]()
    load, gradients = OnHost.load, type(fed.model).gradients
    everybody = np.arange(6)
    state = algorithm.init(fed.model.vector(), cohort(fed, 0))
    state = algorithm.round(state, cohort(fed, 1, everybody))
    monkeypatch.setattr(OnHost, "load", lambda *a: events.append("load") or load(*a))
    monkeypatch.setattr(type(fed.model), "gradients", lambda *a: events.append("step") or gradients(*a))
    algorithm.round(state, cohort(fed, 2, everybody))
    last = len(events) - 1 - events[::-1].index("load")
    assert events[:3] == ["load", "load", "step"] and events.count("load") == 3 and "step" in events[last:]
