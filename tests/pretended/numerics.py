"""Precision, layout and determinism on the pretended GPU: as its numbers are the CPU's, TF32 shows in flags alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import FedAvg
from fedsim import Experiment, run
from fedsim.clients import cohort
from fedsim.controller import trials
from fedsim.controller.prepare import prepare
from fedsim.engine.graphed import Graphed
from fedsim.engine.kernels import Kernels, fastest, variations
from fedsim.engine.model import Model
from fedsim.engine.numerics import Numerics
from fedsim.errors import ConfigError, ModelError
from fedsim.models import LeNet5
from fedsim.models.losses import cross_entropy
from fedsim.types import Batch
from tests.engine.test_nondeterministic import Applied, backward, put
from tests.pretended.device import Trace
from tests.test_devices import SMALL, images, recorded, series_of

IMAGES = replace(SMALL, algorithm=FedAvg(lr=0.1), data=images(), model=LeNet5(), rounds=2)


def made(experiment: Experiment, root: Path, **execution: Any) -> Any:
    return run(experiment.with_execution(device="cuda", **execution), root=root, progress=False)


@pytest.mark.parametrize("experiment", [replace(SMALL, rounds=2), IMAGES], ids=["dense", "convolutional"])
def test_in_bfloat16_graphs_have_the_bits_of_the_loop_and_blocks_are_near(experiment: Any, tmp_path: Path) -> None:
    low = replace(experiment, precision="bf16")
    loop = made(low, tmp_path, backend="loop")
    graphed, blocks = (made(low, tmp_path, backend=b, block_size=k) for b, k in (("graphed", 0), ("blocks", 2)))
    streams = made(low, tmp_path, backend="graphed", block_size=0, client_threads=2)
    assert recorded(graphed) == recorded(streams) == recorded(loop)
    assert "eager" not in graphed.manifest["backend"]["0"]
    assert series_of(blocks) == pytest.approx(series_of(loop), rel=2**-8)
    exact = made(experiment, tmp_path, backend="loop")
    assert recorded(exact) != recorded(loop) and series_of(loop) == pytest.approx(series_of(exact), rel=0.02)


def test_a_gradient_in_bfloat16_waits_for_nothing() -> None:
    model = Model(LeNet5().build((1, 28, 28), 10), cross_entropy, device="cuda", numerics=Numerics("bf16"))
    x, y = torch.randn(4, 1, 28, 28, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    batch, v = Batch(x, y, None, torch.zeros(4, dtype=torch.int64, device="cuda")), model.vector()
    model.gradient(v, batch)
    with Trace() as trace:
        g = model.gradient(v, batch)
    assert g.dtype == torch.float32 and not trace.count("wait", "upload", "download")


@pytest.mark.parametrize("backend", ["loop", "graphed", "blocks"])
def test_tf32_is_taken_where_the_gpu_has_it(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = made(replace(IMAGES, precision="tf32"), tmp_path, backend=backend)
    assert fast.manifest["precision"] == "tf32"
    assert recorded(fast) == recorded(made(IMAGES, tmp_path, backend=backend))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(ConfigError, match="'cuda' is pretended, which does not; leave precision out"):
        replace(IMAGES.with_execution(device="cuda"), precision="tf32")


def test_images_with_channels_last_are_a_candidate() -> None:
    fed = prepare(IMAGES.with_execution(device="cuda"), 0).federation
    assert variations(fed.model) == [{"channels_last": True}] and not fed.model.channels_last
    seen: list[bool] = []
    fed.model.module.register_forward_pre_hook(lambda _, given: seen.append(given[0].stride(1) == 1))
    batch = fed.shards.rows(0).part(slice(4))._replace(key=torch.zeros(4, dtype=torch.int64, device="cuda"))
    x = fed.model.vector()
    first = fed.model.gradient(x, batch)
    with Kernels(channels_last=True).used_by([fed.model]):
        last = fed.model.gradient(x, batch)
    assert seen == [False, True] and not fed.model.channels_last
    torch.testing.assert_close(first, last, atol=1e-6, rtol=1e-5)
    assert fastest(fed.model, batch, variations(fed.model)).channels_last in (None, True)
    assert fed.model.channels_last is False and len(seen) > 6
    assert [Kernels.of(k.names) for k in (Kernels(), Kernels(True), Kernels(False))] == [
        Kernels(), Kernels(True), Kernels(False)
    ]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("streams", [1, 2])
def test_graphs_read_images_in_the_layout_that_was_chosen(last: bool, streams: int) -> None:
    fed = prepare(IMAGES.with_execution(device="cuda"), 0).federation
    seen: set[int] = set()
    fed.model.module.register_forward_pre_hook(lambda _, given: seen.add(given[0].stride(1)))
    backend = Graphed(kernels=Kernels(channels_last=last), streams=streams)
    state, there = IMAGES.algorithm.init(fed.model.vector(), cohort(fed, 0)), replace(fed, backend=backend)
    IMAGES.algorithm.round(state, cohort(there, 1, np.arange(4)))
    assert seen == ({1} if last else {28 * 28}) and not backend.eager and not fed.model.channels_last


def test_what_was_chosen_is_used_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "fastest", lambda *_: Kernels(channels_last=True))
    found = made(IMAGES, tmp_path, backend="auto", block_size=0)
    assert found.manifest["backend"]["0"]["kernels"] == ["channels last"]


def with_layer(layer: nn.Module) -> Experiment:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), layer, nn.Linear(16, 10))
    return replace(SMALL, model=network, rounds=2)


@pytest.fixture
def modes() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("fn", [put, backward])
@pytest.mark.parametrize("backend", ["loop", "graphed"])
def test_operations_without_a_deterministic_kernel_are_named_once(
    fn: Any, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(with_layer(Applied(fn)), tmp_path, backend=backend, block_size=0)
    where = "layer 2 (Applied)"
    assert found.manifest["nondeterministic"] == {"put_": where}
    said = capsys.readouterr().err
    assert said.count(f"{where} computes put_, of which PyTorch has no deterministic kernel") == 1
    assert said.count("put_") == 1                           # and PyTorch's own warning is not another
    assert "nondeterministic" not in made(with_layer(nn.ReLU()), tmp_path).manifest


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("fn", [put, backward])
def test_strict_refuses_the_layer_before_anything_is_written(fn: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layer 2 \(Applied\) computes put_.*deterministic is strict.*--device cpu"):
        made(with_layer(Applied(fn)), tmp_path, deterministic="strict")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("modes")
def test_strict_runs_what_is_deterministic_with_the_same_bits_and_refuses_other_code(tmp_path: Path) -> None:
    experiment = with_layer(nn.ReLU())
    warned, strict = (made(experiment, tmp_path, deterministic=what) for what in ("warn", "strict"))
    assert recorded(strict) == recorded(warned)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        put(torch.zeros(3, device="cuda"))
