"""The partition itself: its shape, its hash and its file."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import PartitionError
from fedsim.partition import DirichletPartitioner, Partition

SMALL = Partition(np.array([2, 0, 1]), np.array([0, 1, 1, 3]), {"name": "by hand", "sizes": [1, 0, 2]})


def test_shards_sizes_and_hash() -> None:
    assert SMALL.n == 3
    assert SMALL.sizes.tolist() == [1, 0, 2]
    assert [SMALL.shard(i).tolist() for i in range(3)] == [[2], [], [0, 1]]
    assert SMALL.hash == hashlib.sha256(struct.pack("<7q", 2, 0, 1, 0, 1, 1, 3)).hexdigest()


@pytest.mark.parametrize(
    ("indices", "offsets"), [([2, 1, 0], [0, 1, 1, 3]), ([2, 0, 1], [0, 2, 2, 3]), ([2, 0, 1], [0, 1, 3])]
)
def test_the_hash_sees_order_and_borders(indices: list[int], offsets: list[int]) -> None:
    assert Partition(np.array(indices), np.array(offsets), {}).hash != SMALL.hash


def test_the_hash_ignores_the_width_of_integers() -> None:
    narrow = Partition(np.array([2, 0, 1], np.int32), np.array([0, 1, 1, 3], np.uint8), {})
    assert narrow.hash == SMALL.hash
    assert narrow.indices.dtype == narrow.offsets.dtype == np.int64


def test_nobody_can_write_to_a_partition() -> None:
    mine = np.array([2, 0, 1])
    partition = Partition(mine, np.array([0, 3]), {})
    mine[0] = 9
    assert partition.indices.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="read-only"):
        partition.shard(0)[0] = 9


@pytest.mark.parametrize("i", [-1, 3])
def test_an_unknown_client_is_an_error(i: int) -> None:
    with pytest.raises(PartitionError, match=f"no client {i}: the partition has clients 0 to 2"):
        SMALL.shard(i)


@pytest.mark.parametrize(
    ("indices", "offsets"),
    [([0, 1], [0, 1]), ([0, 1], [1, 2]), ([0, 1], [0, 2, 1, 2]), ([0, 1], []), ([], [0]), ([-1], [0, 1])],
)
def test_inconsistent_arrays_are_an_error(indices: list[int], offsets: list[int]) -> None:
    with pytest.raises(PartitionError, match="must"):
        Partition(np.array(indices, np.int64), np.array(offsets, np.int64), {})


@pytest.mark.parametrize("indices", [np.zeros(2), np.zeros((2, 2), np.int64)])
def test_indices_are_a_vector_of_integers(indices: np.ndarray) -> None:
    with pytest.raises(PartitionError, match="indices must be a vector of integers"):
        Partition(indices, np.array([0, 2]), {})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = DirichletPartitioner(5, [0.5] * 5, 1).partition(np.arange(100) % 7, None, 4)
    made.save(tmp_path / "p.npz")
    loaded = Partition.load(tmp_path / "p.npz")
    assert loaded.hash == made.hash
    assert loaded.scheme == made.scheme
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    np.load(tmp_path / "p.npz", allow_pickle=False)["scheme"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SMALL.save(tmp_path / "p.npz")

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        DirichletPartitioner(5, 1.0).partition(np.arange(100) % 7, None, 0).save(tmp_path / "p.npz")
    assert Partition.load(tmp_path / "p.npz").hash == SMALL.hash
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="no partition file"):
        Partition.load(tmp_path / "none.npz")


def test_content_that_does_not_match_its_hash_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", indices=[0, 1], offsets=[0, 2], scheme="{}", hash=SMALL.hash)
    with pytest.raises(PartitionError, match=r"is corrupt: content .*, stored hash"):
        Partition.load(tmp_path / "p.npz")


def test_pickled_content_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", indices=np.array([{}], object), offsets=[0, 1], scheme="{}", hash="")
    with pytest.raises(PartitionError, match="not a readable partition file"):
        Partition.load(tmp_path / "p.npz")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.data())
def test_broken_bytes_never_load_as_something_else(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "p.npz"
    SMALL.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "at") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "at")] ^= data.draw(st.integers(1, 255), "by")
    path.write_bytes(content)
    try:
        assert Partition.load(path).hash == SMALL.hash
    except PartitionError as error:
        assert str(path) in str(error)
