"""Properties on every device: the CPU in every run of these tests, a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import DFedSAM, FedSpeed, Scaffold
from fedsim import Evaluation, Execution, Experiment, FixedSize, LocalWork, resume, run
from fedsim.compress import TopK
from fedsim.compress.selection import _by_sorting, _by_threshold
from fedsim.controller import choose as choosing
from fedsim.controller import trials
from fedsim.controller.prepare import prepare
from fedsim.data import Dataset, Split
from fedsim.errors import ConfigError
from fedsim.feedback import EF21Uplink
from fedsim.models import MLP, CharLSTM, LeNet5
from fedsim.partition import IidPartitioner
from fedsim.record.directory import RunDirectory
from topologies import Ring, Static

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])

SMALL = Experiment(
    Scaffold(lr=0.1), partition=IidPartitioner(8), model=MLP(hidden=(16,)), local=LocalWork(batch_size=16, steps=3),
    sampling=FixedSize(0.5), rounds=6, evaluation=Evaluation(every=2),
    execution=Execution("blocks", block_size=2, checkpoint_every=2),
)  # fmt: skip


def images() -> Dataset:
    torch.manual_seed(0)
    x, y = torch.randn(160, 1, 28, 28), torch.randint(0, 10, (160,))
    return Dataset("images", Split(x[:120], y[:120]), Split(x[120:], y[120:]), classes=10)


def text() -> Dataset:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (160, 13))
    x, y = tokens[:, :-1], tokens[:, 1:]
    return Dataset("text", Split(x[:120], y[:120]), Split(x[120:], y[120:]), classes=20)


def recorded(directory: RunDirectory) -> bytes:
    return (directory.seed_path(0) / "metrics.jsonl").read_bytes()


@DEVICES
@pytest.mark.parametrize("backend", ["loop", "blocks"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": images(), "model": LeNet5(), "algorithm": FedSpeed(lr=0.1)},
        {"data": text(), "model": CharLSTM()},
        {"uplink": EF21Uplink(TopK(0.05))},
        {"algorithm": DFedSAM(), "topology": Static(Ring()), "sampling": FixedSize()},
    ],
    ids=["dense", "convolutional", "recurrent", "compressed", "gossip"],
)
@pytest.mark.slow
def test_a_run_repeats_to_the_byte(settings: dict[str, Any], backend: Any, device: str, tmp_path: Path) -> None:
    experiment = replace(SMALL, rounds=3, **settings).with_execution(device=device, backend=backend)
    first, second = (run(experiment, root=tmp_path, progress=False) for _ in range(2))
    assert recorded(first) == recorded(second)


@DEVICES
@pytest.mark.parametrize("model", [MLP(hidden=(16,)), LeNet5()], ids=["dense", "convolutional"])
def test_blocks_are_the_loop(model: Any, device: str, tmp_path: Path) -> None:
    experiment = replace(SMALL, data=images(), model=model, dtype="float64", rounds=3).with_execution(device=device)
    found = [run(experiment.with_execution(backend=b), root=tmp_path, progress=False) for b in ("loop", "blocks")]
    one, other = (series_of(directory) for directory in found)
    np.testing.assert_allclose(one, other, rtol=1e-9)


def series_of(directory: RunDirectory) -> np.ndarray:
    from fedsim.record.metrics import read_metrics

    return np.array(list(read_metrics(directory.seed_path(0) / "metrics.jsonl").series("server/test", "loss").values()))


@DEVICES
@pytest.mark.parametrize("memory", ["device", "host", "disk"])
def test_memories_elsewhere_and_an_interruption_change_nothing(memory: Any, device: str, tmp_path: Path) -> None:
    whole = run(SMALL.with_execution(device=device), output=tmp_path / "whole", progress=False)
    cut = run(SMALL.with_execution(device=device, memory=memory), output=tmp_path / "cut", progress=False)
    assert recorded(cut) == recorded(whole)
    for made in sorted((cut.seed_path(0) / "checkpoints").iterdir())[-1:]:
        for file in made.iterdir():
            file.unlink()
        made.rmdir()                                       # back to round 4
    cut.mark(0, "interrupted")
    resume(cut.path, progress=False)
    assert recorded(cut) == recorded(whole)


@DEVICES
@pytest.mark.parametrize("spoil", [lambda x: x, lambda x: x.round(decimals=1), lambda x: x.where(x < 2, torch.inf)])
def test_the_largest_by_a_threshold_are_those_by_sorting(spoil: Any, device: str) -> None:
    x: Tensor = spoil(torch.randn(4, 9_000, generator=torch.Generator().manual_seed(0))).to(device)
    for k in (1, 90, 8_999):
        rows = torch.stack([_by_threshold(row.unsqueeze(0), k)[0] for row in x])
        assert torch.equal(rows, _by_sorting(x, k))


def full_cpu() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize("full", [lambda: torch.OutOfMemoryError("CUDA out of memory"), full_cpu])
def test_blocks_for_which_there_is_no_memory_are_not_chosen(
    full: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = trials._times

    def of_a_small_gpu(trial: Any, *arguments: Any) -> list[tuple[float, float]]:
        if getattr(trial.backend, "size", 0) > 5:
            raise full()
        return times(trial, *arguments)

    monkeypatch.setattr(trials, "_times", of_a_small_gpu)
    prepared = prepare(replace(SMALL, partition=IidPartitioner(40)), 0)
    chosen = choosing.choose(prepared.federation, SMALL.algorithm, np.arange(40), cache=tmp_path / "cache")
    sizes = {name.partition(",")[0] for name in chosen["trial_seconds"]}   # with kernels of several kinds
    assert sizes == {"loop", "1", "5"}
    monkeypatch.setattr(trials, "_times", lambda *_: of_a_small_gpu(replace(prepared.federation, backend=Big())))
    with pytest.raises(type(full())):
        choosing.choose(prepared.federation, SMALL.algorithm, np.arange(40), cache=tmp_path / "other")


class Big:
    size = 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="sees no GPU; use --device cpu"):
        Execution(device="cuda")


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match="use --device cuda, or --backend loop on a CPU"):
        Execution("graphed", device="cpu")
