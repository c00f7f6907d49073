"""The cache of measured backends: what tells two cases apart, and several processes at once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import ALGORITHMS, EF21, EF21BC, LORA, FedAMD, FedAvg
from fedsim import LocalWork
from fedsim.algorithm import Algorithm, has_server
from fedsim.compress import LowRank, TopK
from fedsim.controller import choose as choosing
from fedsim.controller import trials
from fedsim.controller.candidates import Candidate, candidates
from fedsim.controller.in_process import backend_of
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation
from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.loop import Loop
from fedsim.engine.machine import torch_threads
from fedsim.errors import BlockError
from tests.controller.test_run import SMALL

IDS = np.arange(4)


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels depend on the machine; here only the test of them has others than the reference's."""
    monkeypatch.setattr(choosing, "variations", lambda model: [])


def test_a_choice_is_for_what_its_time_depends_on() -> None:
    federation = prepare(SMALL, 0).federation
    compressed = [EF21(compressor=TopK(0.1)), EF21(compressor=LowRank(2))]
    cases: list[Algorithm] = [FedAMD(), FedAMD(large_batch=8), *compressed, FedAvg()]
    keys = {choosing._key(federation, algorithm, 4, ()) for algorithm in cases}
    keys |= {choosing._key(replace(federation, work=LocalWork(8, steps=1)), FedAvg(), 4, ())}
    assert len(keys) == len(cases) + 1
    assert choosing._key(federation, FedAvg(lr=0.3), 4, ()) == choosing._key(federation, FedAvg(), 4, ()), "another lr"


WITH_SOME = [cls for cls in ALGORITHMS if has_server(cls()) and cls not in (EF21BC, *LORA)]


@pytest.mark.parametrize("cls", WITH_SOME, ids=lambda cls: cls.__name__)
def test_every_algorithm_can_be_tried_with_some_of_the_clients(cls: Any, tmp_path: Path) -> None:
    """A trial begins with those of the first round alone; here the last ones."""
    federation = prepare(SMALL, 0).federation
    ids = np.arange(federation.shards.n)[-4:]
    assert "trial_seconds" in choosing.choose(federation, cls(), ids, cache=tmp_path / "backends.json")


@pytest.fixture
def two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


def test_threads_are_tried_where_pytorch_has_several(
    two_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SECONDS", 600.0)        # on a busy machine, too
    federation = prepare(SMALL, 0).federation
    settings: Any = {"cache": tmp_path / "backends.json", "rounds": 3}
    tried = choosing.choose(federation, FedAvg(), IDS, **settings)["trial_seconds"]
    assert set(tried) == {"loop", "1", "4", "loop on 2 threads", "1 on 2 threads"}
    of_one = choosing.choose(federation, FedAvg(), IDS, threads=0, **settings)
    assert set(of_one["trial_seconds"]) == {"loop", "1", "4"} and "client_threads" not in of_one
    always = choosing.choose(federation, FedAvg(), IDS, threads=3, **settings)
    assert always["client_threads"] == 3
    assert set(always["trial_seconds"]) == {f"{n} on 3 threads" for n in ("loop", 1, 4)}


def test_trials_of_much_work_end_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of expensive steps a few clients and steps are tried, and not in blocks of many."""
    asked = []

    def slow(trial: Federation, algorithm: Any, ids: np.ndarray) -> list[tuple[float, float]]:
        steps = len(ids) * int(trial.work.counts(trial.shards.sizes[ids]).max())
        asked.append((trial.backend, steps))
        now[0] += 0.3 * steps
        return [(0.1 * steps, 0.1 * steps)] * 3

    now = [0.0]
    monkeypatch.setattr(trials, "_times", slow)
    federation = prepare(replace(SMALL, local=LocalWork(8)), 0).federation
    chosen = choosing.choose(federation, FedAvg(), np.arange(8), cache=tmp_path / "a", rounds=1)
    assert now[0] < 2 * trials.SECONDS and Blocks(8) not in dict(asked)
    of_all = chosen["trial_seconds"]["loop"]
    assert of_all == pytest.approx(0.1 * 8 * federation.work.counts(federation.shards.sizes[:8]).max())
    now[0], long = 0.0, choosing.choose(federation, FedAvg(), np.arange(8), cache=tmp_path / "b", rounds=1000)
    assert set(long["trial_seconds"]) >= {"loop", "1", "5", "8"}, "a long run is worth more"


def test_likely_backends_of_a_convolution_are_tried_at_any_cost(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the plain loop would be chosen as the only one that the time allowed."""
    monkeypatch.setattr(trials, "_times", lambda trial, algorithm, ids: [(30.0 * len(ids), 30.0 * len(ids))] * 3)
    monkeypatch.setattr(trials, "fastest", lambda *_: REFERENCE)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    federation = prepare(replace(SMALL, model=model), 0).federation
    tried = candidates(federation, len(IDS), False, None)
    assert list(trials.Trials(federation, FedAvg(), IDS, 1, {}).run(tried, [])) == ["loop", "1 on 2 threads", "1"]


def test_kernels_vary_for_the_fastest_and_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each that helps is kept, unless the difference is within the noise."""
    asked: list[Any] = []
    factors = {"channels first": 0.8, "oneDNN": 0.99}

    def times(trial: Federation, algorithm: Any, ids: np.ndarray) -> list[tuple[float, float]]:
        backend: Any = trial.backend
        asked.append(backend)
        took = len(ids) * (1e-3 if isinstance(backend, Loop) else 5e-4)
        return [(took * prod(factors[name] for name in backend.kernels.names),) * 2] * 3

    monkeypatch.setattr(trials, "_times", times)
    monkeypatch.setattr(choosing, "variations", lambda model: [{"channels_last": False}, {"onednn": True}])
    federation, settings = prepare(SMALL, 0).federation, {"threads": 0, "cache": tmp_path / "backends.json"}
    chosen = choosing.choose(federation, FedAvg(), IDS, **settings)     # type: ignore[arg-type]
    assert set(chosen["trial_seconds"]) == {"loop", "1", "4", "1, channels first", "1, channels first, oneDNN"}
    assert (chosen["block_size"], chosen["kernels"]) == (1, ["channels first"])
    ran = backend_of(chosen, lambda text: None, may_fall=False)
    assert ran == Blocks(1, kernels=Kernels(channels_last=False)) and ran in asked
    before = len(asked)
    assert choosing.choose(federation, FedAvg(), IDS, **settings) == chosen and len(asked) == before   # type: ignore[arg-type]
    of_ray = choosing.choose(federation, FedAvg(), IDS, kernels=False, **settings)     # type: ignore[arg-type]
    assert set(of_ray["trial_seconds"]) == {"loop", "1", "4"} and "kernels" not in of_ray


def test_kernels_of_a_convolution_are_those_of_its_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {False: 0.001, True: 0.0}
    now, asked = [0.0], list[Any]()

    def gradient(model: Any, x: torch.Tensor, batch: Any, *rest: Any) -> torch.Tensor:
        asked.append((model.channels_last, len(batch.y)))
        now[0] += seconds[model.channels_last]
        return torch.zeros_like(x)

    monkeypatch.setattr(choosing, "variations", lambda model: [{"channels_last": False}])
    monkeypatch.setattr("fedsim.engine.model.Model.gradient", gradient)
    monkeypatch.setattr("fedsim.engine.kernels.time.perf_counter", lambda: now[0])
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    federation = prepare(replace(SMALL, model=model, local=LocalWork(8)), 0).federation
    for faster, kernels in ((False, ["channels first"]), (True, [])):
        seconds[faster], seconds[not faster] = 0.001, 0.002
        tried, varied = [Candidate(0, 0)], [{"channels_last": False}]
        found = trials.Trials(federation, FedAvg(), IDS, 1, {}).run(tried, varied)
        assert list(found) == [", ".join(["loop", *kernels])]
    assert {(True, 8), (False, 8)} <= {*asked}


def keep(cache: Path, process: int) -> None:
    for k in range(20):
        choosing._keep(cache, f"{process}.{k}", {"loop": 1.0})


@pytest.mark.process
def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "backends.json"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=keep, args=(cache, p)) for p in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(json.loads(cache.read_text())) == 80
    assert choosing._keep(cache, "0.0", {"loop": 2.0}) == {"loop": 1.0}, "who was first decides"
    assert [path.name for path in tmp_path.iterdir()] == ["backends.json"]


def test_a_broken_cache_is_measured_again(tmp_path: Path) -> None:
    federation, cache = prepare(SMALL, 0).federation, tmp_path / "backends.json"
    for content in ("null", "{", "[1]"):
        cache.write_text(content)
        assert "trial_seconds" in choosing.choose(federation, FedAvg(), IDS, cache=cache)


class Branching(nn.Module):
    """A model that asks what its input is, which a block of clients has no one answer to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x.flatten(1))
        return y if y.isfinite().all() else torch.zeros_like(y)


def test_a_model_that_cannot_run_in_blocks_runs_in_the_loop(tmp_path: Path) -> None:
    federation, cache = prepare(replace(SMALL, model=Branching()), 0).federation, tmp_path / "backends.json"
    assert choosing.choose(federation, FedAvg(), IDS, cache=cache)["backend"] == "loop"
    with pytest.raises(BlockError, match=r"(?s)model Branching cannot run for a block .*torch.where.*--backend loop"):
        choosing.choose(federation, FedAvg(), IDS, cache=cache, blocks_only=True)
    assert not cache.exists(), "who mends the model gets another answer"


def test_blocks_that_do_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    federation, tried = prepare(SMALL, 0).federation, list[int]()
    ran = Blocks.run
    monkeypatch.setattr(Blocks, "run", lambda self, *rest: (tried.append(self.size), ran(self, *rest))[1])
    ids, vector = np.arange(federation.shards.n), federation.model.d * 4
    monkeypatch.setattr(trials, "free_memory", lambda device: 5 * trials.VECTORS * vector)
    chosen = choosing.choose(federation, FedAvg(), ids, threads=0, cache=tmp_path / "short.json")
    assert set(tried) == {1, 5} and not chosen["trial_seconds"].keys() - {"loop", "1", "5"}
    monkeypatch.setattr(trials, "free_memory", lambda device: 0)
    nothing = choosing.choose(federation, FedAvg(), ids, threads=0, cache=tmp_path / "none.json")
    assert set(nothing["trial_seconds"]) == {"loop"}, "the first candidate runs all the same"
