"""Checkpoints: atomic, checksummed, lazy, exact."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.errors import CheckpointError
from fedsim.record.checkpoint import CheckpointWarning, Loaded, load_latest, save

META = {"offset": 812, "seed": 2**63 + 1, "name": "é", "nested": {"list": [1, 2.5, None, True]}}


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(7, 3, generator=generator),
        "double": torch.randn(5, dtype=torch.float64, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "long": torch.tensor([-(2**62), 2**62]),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    }


def loaded(directory: Path) -> Loaded:
    result = load_latest(directory)
    assert result is not None
    return result


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_types_shapes_and_bits_survive(tmp_path: Path) -> None:
    tensors = state()
    save(tmp_path, 120, tensors, META)
    result = loaded(tmp_path)
    assert result.round == 120 and result.meta == META
    assert set(result.tensors) == set(tensors) and len(result.tensors) == len(tensors)
    for name, tensor in tensors.items():
        read = result.tensors[name]
        assert read.dtype == tensor.dtype and read.shape == tensor.shape
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_views_transposes_and_shared_tensors(tmp_path: Path) -> None:
    rows = torch.arange(12.0).reshape(3, 4).requires_grad_()
    save(tmp_path, 0, {"row": rows[1], "again": rows[1], "transposed": rows.T, "all": rows}, {})
    tensors = loaded(tmp_path).tensors
    assert torch.equal(tensors["row"], rows[1]) and torch.equal(tensors["again"], rows[1])
    assert torch.equal(tensors["transposed"], rows.T) and torch.equal(tensors["all"], rows)


def test_reading_gives_a_copy(tmp_path: Path) -> None:
    save(tmp_path, 0, {"x": torch.zeros(3)}, {})
    tensors = loaded(tmp_path).tensors
    tensors["x"].add_(1)
    assert torch.equal(tensors["x"], torch.zeros(3))


def test_rows_are_asked_for_shard_by_shard(tmp_path: Path) -> None:
    """When a row is asked for, all shards but the one before it are on disk: no more than that is in memory."""
    directory = tmp_path / "round-000003.tmp"
    written: list[int] = []

    def row(index: int) -> Callable[[], Tensor]:
        def make() -> Tensor:
            written.append(len(list(directory.glob("shard-*"))))
            return torch.full((256,), float(index))

        return make

    save(tmp_path, 3, {f"h/{index:03d}": row(index) for index in range(100)}, {}, shard_bytes=10 * 1024)
    assert written == [max(0, index - 1) // 10 for index in range(100)]
    tensors = loaded(tmp_path).tensors
    assert all(torch.equal(tensors[f"h/{index:03d}"], torch.full((256,), float(index))) for index in range(100))


def test_tensor_larger_than_a_shard_has_its_own(tmp_path: Path) -> None:
    path = save(tmp_path, 0, {"a": torch.zeros(2), "big": torch.ones(100), "b": torch.zeros(2)}, {}, shard_bytes=64)
    assert len(list(path.glob("shard-*"))) == 3
    assert torch.equal(loaded(tmp_path).tensors["big"], torch.ones(100))


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, 1, state(), META, shard_bytes=64) for name in ("a", "b")]
    assert names(paths[0]) == names(paths[1])
    assert all((paths[0] / name).read_bytes() == (paths[1] / name).read_bytes() for name in names(paths[0]))


@pytest.mark.process
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from fedsim.record.checkpoint import save;"
        "save(Path(sys.argv[1]), 1, {n: torch.ones(3) for n in 'abcdefgh'}, {n: 1 for n in 'abc'})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True, env=environment)
    here = save(tmp_path / "here", 1, {name: torch.ones(3) for name in "abcdefgh"}, dict.fromkeys("abc", 1))
    there = tmp_path / "other" / "round-000001"
    assert names(here) == names(there) == ["manifest.json", "shard-00000.safetensors"]
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in names(here))


def test_keeps_the_last_ones(tmp_path: Path) -> None:
    for round in (5, 10, 999_999, 1_000_000):
        save(tmp_path, round, {"x": torch.tensor(round)}, {}, keep=2)
    assert names(tmp_path) == ["round-1000000", "round-999999"]
    assert loaded(tmp_path).round == 1_000_000, "by number, not by name"


def test_old_ones_are_deleted_only_after_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, {"x": torch.tensor(1)}, {}, keep=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedsim.record.checkpoint.sync", full)
    with pytest.raises(CheckpointError, match=r"round 2 .*No space left on device.*earlier ones are untouched"):
        save(tmp_path, 2, {"x": torch.tensor(2)}, {}, keep=1)
    assert names(tmp_path) == ["round-000001"]
    assert loaded(tmp_path).tensors["x"] == 1


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "missing") is None
    assert load_latest(tmp_path) is None


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, {"x": torch.tensor(1)}, {})
    (tmp_path / "round-000002.tmp").mkdir()
    (tmp_path / "round-000002.tmp" / "shard-00000.safetensors").write_bytes(b"half")
    assert loaded(tmp_path).round == 1
    assert names(tmp_path) == ["round-000001"]


def corrupt_shard(path: Path) -> None:
    flip(path / "shard-00000.safetensors", -3)


def corrupt_meta(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 4', '"step": 5'))


def cut_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])


def remove_shard(path: Path) -> None:
    (path / "shard-00000.safetensors").unlink()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("round-000003"))


CORRUPTIONS = [corrupt_shard, corrupt_meta, cut_manifest, remove_shard, remove_manifest, rename]


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_corrupt_newest_is_skipped_with_a_warning(tmp_path: Path, corrupt: Callable[[Path], None]) -> None:
    save(tmp_path, 1, {"x": torch.tensor([1.0])}, {"step": 4})
    newest = save(tmp_path, 2, {"x": torch.tensor([2.0])}, {"step": 4})
    corrupt(newest)
    with pytest.warns(CheckpointWarning, match="skipping the corrupt checkpoint .*round-00000[23]"):
        result = load_latest(tmp_path)
    assert result is not None and result.round == 1 and result.tensors["x"] == 1.0


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"x": torch.arange(4.0)}, {"a": 1})
    for file in list(path.iterdir()):
        original = file.read_bytes()
        for position in range(0, len(original) - 1, 7):  # the last byte of a file is a newline at most
            flip(file, position)
            with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError):
                load_latest(tmp_path)
            file.write_bytes(original)


def test_none_valid_names_all(tmp_path: Path) -> None:
    for round in (1, 2):
        corrupt_shard(save(tmp_path, round, {"x": torch.tensor([1.0])}, {}))
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match=r"round-000002: .*round-000001: "):
        load_latest(tmp_path)


def test_a_rejected_round_is_saved_again(tmp_path: Path) -> None:
    """Resumed from round 1 because 2 and 3 are corrupt: 2 is replaced, 3 is gone, and 1 is kept."""
    for round in (1, 2, 3):
        path = save(tmp_path, round, {"x": torch.tensor([float(round)])}, {}, keep=3)
        if round > 1:
            corrupt_shard(path)
    save(tmp_path, 2, {"x": torch.tensor([20.0])}, {}, keep=2)
    assert names(tmp_path) == ["round-000001", "round-000002"]
    assert loaded(tmp_path).tensors["x"] == 20.0


@pytest.mark.parametrize("meta", [{"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": torch.zeros(1)}])
def test_meta_that_json_would_change_is_refused(tmp_path: Path, meta: dict[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match="meta"):
        save(tmp_path, 1, {}, meta)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("round", "keep"), [(-1, 2), (1, 0)])
def test_settings_are_checked(tmp_path: Path, round: int, keep: int) -> None:
    with pytest.raises(CheckpointError, match="expected round >= 0 and keep >= 1"):
        save(tmp_path, round, {}, {}, keep=keep)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.record.checkpoint.FORMAT", 3)
    path = save(tmp_path, 1, {}, {})
    assert json.loads((path / "manifest.json").read_text())["content"]["format"] == 3
    monkeypatch.undo()
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match=r"format 3; expected .* format 2"):
        load_latest(tmp_path)


def test_reading_goes_on_after_the_checkpoint_was_deleted(tmp_path: Path) -> None:
    save(tmp_path, 1, {"x": torch.ones(3)}, {})
    tensors = loaded(tmp_path).tensors
    for round in (2, 3):
        save(tmp_path, round, {"x": tensors["x"]}, {})
    assert torch.equal(tensors["x"], torch.ones(3)) and "round-000001" not in names(tmp_path)


KILLED = """
import sys, torch
from pathlib import Path
from fedsim.record.checkpoint import save
for round in range(10**9):
    tensors = {str(i): torch.full((1000,), float(round)) for i in range(20)}
    save(Path(sys.argv[1]), round, tensors, {}, shard_bytes=16000)
    print(round, flush=True)
"""


@pytest.mark.process
def test_kill_while_saving_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        saved = [int(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGKILL)
        saved += map(int, process.stdout.read().split())
    result = loaded(tmp_path)  # a warning would be an error here
    assert result.round in (saved[-1], saved[-1] + 1)
    assert all(torch.equal(result.tensors[str(i)], torch.full((1000,), float(result.round))) for i in range(20))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=str)
def test_a_checkpoint_that_is_replaced_is_there_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A kill, or a disk that refuses, between the two renames."""
    save(tmp_path, 50, {"x": torch.ones(2)}, {"which": "old"})
    rename, renames = Path.rename, list[str]()

    def fail(path: Path, target: Path) -> Path:
        renames.append(path.name)
        if len(renames) == 2:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        save(tmp_path, 50, {"x": torch.zeros(2)}, {"which": "new"})
    assert loaded(tmp_path).meta == {"which": "old"} and names(tmp_path) == ["round-000050"]


def test_a_deleted_run_is_not_made_again(tmp_path: Path) -> None:
    """What is left of it would block the same --output."""
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of round 1"):
        save(tmp_path / "run" / "seed-0" / "checkpoints", 1, {"x": torch.ones(1)}, {})
    assert not list(tmp_path.iterdir())
