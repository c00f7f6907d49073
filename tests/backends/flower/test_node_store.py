"""A node's memory on disk: written whole, checked when read, dropped only by calls that are newer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.forms import fingerprint
from fedsim.errors import DeployError

RUN = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path, RUN, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)])
def test_what_is_read_is_what_was_written(store: NodeStore, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (100 * torch.rand(shape)).to(dtype)
    store.write("1.2.0", value)
    found = store.read("1.2.0")
    assert found.dtype == dtype and torch.equal(found, value)


def test_a_row_of_a_stack_is_stored_alone(store: NodeStore) -> None:
    store.write("1.1.0", torch.zeros(1000, 10)[3])
    assert (store.folder / "1.1.0.safetensors").stat().st_size < 500


def test_versions_are_dropped_when_they_are_older_than_the_call_and_not_alive(store: NodeStore) -> None:
    for name in ("1.9.0", "1.10.0", "1.10.255", "2.1.0", "2.2.0"):
        store.write(name, torch.ones(3))
    store.write(fingerprint(torch.ones(3)), torch.ones(3))
    store.drop(["1.10.0"], (2, 1))
    assert store.names() == ["1.10.0", "2.1.0", "2.2.0", fingerprint(torch.ones(3))]
    store.drop([], (1, 10))                                # a call that was long under way harms nothing newer
    assert "1.10.0" in store.names() and "2.1.0" in store.names()


def test_runs_and_clients_are_apart(tmp_path: Path) -> None:
    NodeStore(tmp_path, RUN, 1).write("1.1.0", torch.ones(1))
    for other in (NodeStore(tmp_path, RUN, 2), NodeStore(tmp_path, "f" * 32, 1)):
        with pytest.raises(DeployError, match=r"memory 1\.1\.0 is not there .*: the node's store was emptied"):
            other.read("1.1.0")


def test_what_is_forgotten_is_one_client_of_one_run(tmp_path: Path) -> None:
    stores = [NodeStore(tmp_path, RUN, 1), NodeStore(tmp_path, RUN, 2), NodeStore(tmp_path, "f" * 32, 1)]
    for store in stores:
        store.write("1.1.0", torch.ones(1))
    stores[0].forget(), stores[0].forget()
    assert [store.names() for store in stores] == [[], ["1.1.0"], ["1.1.0"]]
    stores[1].forget()
    assert [path.name for path in tmp_path.iterdir()] == ["f" * 32]


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_flipped_bit_is_noticed(store: NodeStore, at: int) -> None:
    store.write("1.1.0", torch.arange(5.0))
    path = store.folder / "1.1.0.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DeployError, match="does not match its checksum"):
        store.read("1.1.0")


def test_what_a_dead_process_left_half_written_is_removed(store: NodeStore) -> None:
    store.write("1.1.0", torch.ones(1))
    dead, mine = (store.folder / f".1.2.0.safetensors.{pid}.tmp" for pid in (2**22 + 1, os.getpid()))
    dead.touch(), mine.touch()
    store.drop(["1.1.0"], (1, 2))
    assert not dead.exists() and mine.exists() and store.names() == ["1.1.0"]


@pytest.mark.parametrize("name", ["../1.1.0", "1.1", "1.1.0/..", "a.b.c", "1.1.0\n", ""])
def test_names_cannot_lead_elsewhere(store: NodeStore, name: str) -> None:
    for use in (lambda: store.read(name), lambda: store.write(name, torch.ones(1))):
        with pytest.raises(DeployError, match="a memory is called"):
            use()
    with pytest.raises(DeployError, match="token"):
        NodeStore(Path("/tmp"), f"../{RUN}", 1)


def test_first_values_are_known_by_type_shape_and_content() -> None:
    values = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), torch.ones(4)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(torch.ones(4)) == fingerprint(torch.ones(9)[2:6])
