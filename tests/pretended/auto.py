"""What ``auto`` chooses on the pretended GPU, whose seconds are given here: it has none of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import FedAvg
from fedsim import run
from fedsim.controller import choose as choosing
from fedsim.controller import trials
from fedsim.controller.candidates import candidates
from fedsim.controller.in_process import backend_of
from fedsim.engine.blocks import Blocks
from fedsim.engine.graphed import Graphed
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.experiment.execution import Execution
from tests.contract.cases import federation
from tests.pretended.graphs import Curious
from tests.test_devices import SMALL, recorded

SECONDS = {"loop": 1.0, 1: 0.5, 2: 0.3, 3: 0.3, 4: 0.2, 8: 0.4, "blocks": 0.6, "graphed blocks": 0.5}
"""Of a client's step, by backend, or by its streams."""
IDS = np.arange(6)
BLOCKS = {"1", "5", "6"} | {f"graphed in blocks of {size}" for size in (5, 6)}
GRAPHS = {"graphed", "graphed on 4 streams", "graphed on 2 streams"}


@pytest.fixture(autouse=True)
def given_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run, and take the seconds above."""
    ran = trials._times

    def times(trial: Any, algorithm: Any, ids: np.ndarray) -> list[tuple[float, float]]:
        backend, steps = trial.backend, int(trial.work.counts(trial.shards.sizes[ids]).max())
        ran(trial, algorithm, ids)
        kind: Any = backend.streams if isinstance(backend, Graphed) else type(backend).__name__.lower()
        kind = f"graphed {kind}" if getattr(backend, "graphs", None) else kind
        return [(SECONDS[kind] * len(ids) * steps, 1e-6)] * 3

    monkeypatch.setattr(trials, "_times", times)


def chosen(algorithm: Any, cache: Path, **settings: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    fed = federation(device="cuda", dtype=torch.float32)
    return choosing.choose(fed, algorithm, IDS, cache=cache, say=said.append, **settings), said


def test_graphs_on_as_many_streams_as_are_fastest(tmp_path: Path) -> None:
    found, said = chosen(FedAvg(), tmp_path / "cache")
    assert (found["backend"], found["client_threads"]) == ("graphed", 4) and not said
    assert set(found["trial_seconds"]) == {"loop", *GRAPHS, *BLOCKS}, "no more streams than clients"
    ran = backend_of(found, lambda text: None, may_fall=True)
    assert isinstance(ran, Graphed) and ran.streams == 4
    assert chosen(FedAvg(), tmp_path / "cache") == (found, said)


@pytest.mark.parametrize(("threads", "graphs"), [(0, {"graphed"}), (3, {"graphed on 3 streams"})])
def test_streams_that_are_given(threads: int, graphs: set[str], tmp_path: Path) -> None:
    found, _ = chosen(FedAvg(), tmp_path / "cache", threads=threads)
    assert set(found["trial_seconds"]) == {"loop", *graphs, *({"1", "5", "6"} if threads else BLOCKS)}


def test_blocks_alone(tmp_path: Path) -> None:
    assert set(chosen(FedAvg(), tmp_path / "cache", blocks_only=True)[0]["trial_seconds"]) == {"1", "5", "6"}


def test_steps_that_cannot_be_captured_are_dropped_and_not_kept(tmp_path: Path) -> None:
    found, said = chosen(Curious("decay"), tmp_path / "cache")
    assert found["backend"] == "loop" and set(found["trial_seconds"]) == {"loop"}, "nor can they run in blocks"
    assert list(found["dropped"]) == ["graphed"] and "local.decay" in found["dropped"]["graphed"]
    assert said[-1].startswith("graphed was not measured: it reads local.decay")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: operation not supported"), torch.OutOfMemoryError("full")])
def test_trials_that_fail_end_no_run(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = Graphed.run

    def fails(self: Graphed, *rest: Any) -> Any:
        if self.streams > 1:
            raise error
        return ran(self, *rest)

    monkeypatch.setattr(Graphed, "run", fails)
    found, said = chosen(FedAvg(), tmp_path / "cache")
    assert found["backend"] == "graphed" and "client_threads" not in found
    assert set(found["trial_seconds"]) >= {"loop", "graphed"} and "graphed on 4 streams" not in found["trial_seconds"]
    full = isinstance(error, torch.OutOfMemoryError)
    why = f"graphed on 4 streams was not measured: FedAvg.round in round 1 raised RuntimeError: {error}"
    assert said == ([] if full else [why])


def test_a_run_repeats_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    here = replace(SMALL, rounds=3, seeds=2).with_execution(device="cuda", backend="auto", block_size=0)
    found = [run(here, output=tmp_path / name, progress=False) for name in ("a", "b")]
    of_a, of_b = (made.manifest["backend"] for made in found)
    assert of_a == of_b and of_a["0"]["client_threads"] == 4 and of_a["1"]["backend"] == "graphed"
    loop = run(here.with_execution(backend="loop"), output=tmp_path / "loop", progress=False)
    assert recorded(found[0]) == recorded(found[1]) == recorded(loop)


@pytest.mark.parametrize("backend", ["loop", "blocks", "auto"])
def test_clients_at_the_same_time_are_graphs_on_a_gpu(backend: Any) -> None:
    with pytest.raises(ConfigError, match="add --backend graphed, or leave client_threads out"):
        Execution(backend, client_threads=2, device="cuda")


def test_others_have_no_graphs() -> None:
    fed = federation(device="cpu")
    assert not any(candidate.graphs for candidate in candidates(fed, 6, False, None))
    assert {type(candidate.backend) for candidate in candidates(fed, 6, False, None)} == {Loop, Blocks}
