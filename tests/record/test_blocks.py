"""Memories of clients in checkpoints: what has changed is written, and what is read is what was there."""

from __future__ import annotations

import random
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fedsim.errors import CheckpointError
from fedsim.record import blocks
from fedsim.record.blocks import History, read
from fedsim.record.checkpoint import CheckpointWarning, Loaded, load_latest, save
from fedsim.record.state import flatten, restore
from fedsim.tree import leaves
from fedsim.types import Kept
from fedsim.values import Far

CPU = torch.device("cpu")


def loaded(directory: Path) -> Loaded:
    found = load_latest(directory)
    assert found is not None
    return found


def rows_of(directory: Path, like: Any, name: str = "h") -> dict[int, Any]:
    return read(loaded(directory).memories[name], like, CPU)


def written(path: Path) -> int:
    """Bytes of the blocks that no other checkpoint has."""
    return sum(file.stat().st_size for file in path.glob("block-*") if file.stat().st_nlink == 1)


def same(a: Mapping[int, Any], b: Mapping[int, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) and x.dtype == y.dtype for i in a for x, y in zip(leaves(a[i]), leaves(b[i]), strict=True)
    )


def test_whatever_changes_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random changes, additions and losses of rows, in blocks of five rows; a new process now and then."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5 * (3 * 4 + 8))
    draw, history = random.Random(0), History()
    rows: dict[int, Any] = {}
    for round in range(60):
        nodes = draw.sample(range(40), draw.choice([0, 1, 2, 5, 30]))
        rows = {**rows, **{i: (torch.randn(3), torch.tensor(draw.randrange(9))) for i in nodes}}
        if round % 17 == 16:
            rows = {i: row for i, row in rows.items() if i % 3}
        if round % 13 == 12:
            history = History()
        save(tmp_path, round, {}, {}, memories={"h": rows}, history=history)
        assert same(rows_of(tmp_path, (torch.zeros(3), torch.tensor(0))), rows)
        assert list(rows_of(tmp_path, None)) == sorted(rows)


def test_what_is_written_is_linear_in_what_has_changed(tmp_path: Path) -> None:
    n, some, history = 4096, 16, History()
    rows = {i: torch.full((64,), float(i)) for i in range(n)}
    total, most = 0, 0
    for round in range(200):
        path = save(tmp_path, round, {}, {}, memories={"h": rows}, history=history)
        total, most = total + written(path), max(most, len(list(path.glob("block-*"))))
        rows = {**rows, **{(round * 1009 + 31 * k) % n: torch.full((64,), -1.0) for k in range(some)}}
    assert total < (n + 200 * some * 8) * 64 * 4 * 1.1, "a row is written 8 times at most here"
    assert most <= 10
    assert written(save(tmp_path, 200, {}, {}, memories={"h": rows}, history=history)) < 16 * n
    assert written(save(tmp_path, 201, {}, {}, memories={"h": rows}, history=history)) == 0, "nothing has changed"


def test_every_checkpoint_is_whole_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before are deleted, moved or damaged, or the file system has no links."""
    history, rows = History(), {i: torch.full((4,), float(i)) for i in range(50)}
    for round in range(3):
        rows = {**rows, round: torch.full((4,), 100.0 + round)}
        path = save(tmp_path, round, {}, {}, memories={"h": rows}, history=history, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000002"]
    assert same(rows_of(tmp_path, rows[0]), rows)
    shutil.rmtree(path)
    save(tmp_path, 3, {}, {}, memories={"h": rows}, history=history)
    assert same(rows_of(tmp_path, rows[0]), rows), "the one before is gone, and this one was written whole"

    def refused(*_: object) -> None:
        raise PermissionError("no links")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    rows = {**rows, 7: torch.zeros(4)}
    path = save(tmp_path, 4, {}, {}, memories={"h": rows}, history=history)
    assert len(list(path.glob("block-*"))) == 2 and same(rows_of(tmp_path, rows[0]), rows)
    file = path / "block-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.warns(CheckpointWarning, match="block-00001.safetensors does not match its checksum"):
        assert loaded(tmp_path).round == 3


def test_a_failed_save_is_no_part_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, rows = History(), {i: torch.full((4,), float(i)) for i in range(50)}
    save(tmp_path, 1, {}, {}, memories={"h": rows}, history=history)
    rows = {**rows, 3: torch.zeros(4)}
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.record.checkpoint._move_into_place", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(CheckpointError, match="full"):
            save(tmp_path, 2, {}, {}, memories={"h": rows}, history=history)
    save(tmp_path, 3, {}, {}, memories={"h": rows}, history=history)
    assert same(rows_of(tmp_path, rows[0]), rows)


def test_rows_that_were_replaced_are_not_held(tmp_path: Path) -> None:
    history, rows = History(), {0: torch.zeros(4), 1: torch.ones(4)}
    save(tmp_path, 1, {}, {}, memories={"h": rows}, history=history)
    gone = weakref.ref(rows[0])
    rows = {**rows, 0: torch.full((4,), 2.0)}
    assert gone() is None
    save(tmp_path, 2, {}, {}, memories={"h": rows}, history=history)
    assert same(rows_of(tmp_path, rows[0]), rows)


class Named(Far):
    """A tensor elsewhere, of which a checkpoint has a name; names differ in length."""

    def __init__(self, name: str) -> None:
        self.shape, self.dtype, self.name = torch.Size([4]), torch.float32, name

    def fetch(self) -> Tensor:
        raise AssertionError("a checkpoint does not fetch it")

    def saved(self) -> Tensor:
        return torch.frombuffer(bytearray(self.name.encode()), dtype=torch.uint8)


def test_names_of_tensors_elsewhere(tmp_path: Path) -> None:
    rows = {i: Named("client " + "I" * (1 + i % 3)) for i in range(9)}
    save(tmp_path, 1, {}, {}, memories={"h": rows})
    names = {i: bytes(row.numpy()).decode() for i, row in rows_of(tmp_path, torch.zeros(4)).items()}
    assert names == {i: row.name for i, row in rows.items()}


class State(NamedTuple):
    x: Tensor
    h: Kept[Any]
    none: Kept[Any]


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layout: a tensor for each client's memory, by name."""
    rows = {i: (torch.full((3,), float(i)), torch.tensor(i)) for i in (2, 11, 5)}
    tensors = {"x.0": torch.ones(3), "h.ids": torch.tensor([2, 5, 11]), "none.ids": torch.tensor([], dtype=torch.int64)}
    tensors |= {f"h.{i}.{k}": leaf for i, row in rows.items() for k, leaf in enumerate(row)}
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.record.checkpoint.FORMAT", 1)
        save(tmp_path, 4, {**tensors, "ledger.up": torch.tensor([7])}, {})
    found = loaded(tmp_path)
    assert set(found.tensors) == {"x.0", "ledger.up"} and set(found.memories) == {"h", "none"}
    empty = Kept(20, (torch.zeros(3), torch.tensor(0)))
    state = restore(State(torch.zeros(3), empty, Kept(20, torch.zeros(2))), found)
    assert torch.equal(state.x, torch.ones(3)) and same(state.h.rows, rows) and not state.none.rows
    tensors_now, memories = flatten(state)
    save(tmp_path, 5, tensors_now, {}, memories=memories)
    again = restore(state, loaded(tmp_path))
    assert same(again.h.rows, rows) and list(again.h.rows) == [2, 5, 11]
