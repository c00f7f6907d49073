"""Local steps as CUDA graphs, on the pretended GPU: the loop's bits and ledger, and one launch a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim import run
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine import branches, collected
from fedsim.engine.branches import branches_of
from fedsim.engine.captured import MOST_GRAPHS
from fedsim.engine.examine import examine
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.graphed import Graphed
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES
from fedsim.engine.model import Model
from fedsim.engine.optimizers import AdamW, HeavyBall
from fedsim.engine.step_schedules import CosineSteps
from fedsim.models.losses import cross_entropy
from tests.contract.cases import ALGORITHMS, federation, rounds, same_bits
from tests.contract.test_devices import CHOSEN
from tests.pretended.device import Trace
from tests.test_devices import SMALL, recorded

WORK = LocalWork(batch_size=4, epochs=2, weight_decay=0.01, clip_norm=0.3)
"""Ragged: the last minibatch of an epoch is smaller."""

CAPTURED = ["FedAvg momentum", "SCAFFOLD II", "FedSpeed", "FedAMD half", "FedCM", "DFedSAM", "FedProx", "FedNova"]


def compared(fed: Federation, algorithm: Any, streams: int = 1) -> tuple[Graphed, Trace, Trace]:
    """Check that a run has the loop's bits and ledger; the backend, and operations of the last round of both."""
    backend, runs, traces = Graphed(streams=streams), list[Any](), []
    for each in (Loop(), backend):
        own = replace(fed, backend=each)
        meter, trace = Meter(own), Trace(places=False)
        states = rounds(algorithm, own, meter=meter)
        runs.append(([next(states) for _ in range(3)], meter))
        with trace:
            runs[-1][0].append(next(states))
        traces.append(trace)
    (loop, here), (graphed, there) = runs
    assert all(same_bits(a, b) for a, b in zip(loop, graphed, strict=True))
    assert all(torch.isfinite(t).all() for t in graphed[-1] if isinstance(t, Tensor) and t.is_floating_point())
    charged, again = (meter.ledger.snapshot() for meter in (here, there))
    assert charged.keys() == again.keys() and all(torch.equal(charged[name], again[name]) for name in charged)
    return backend, traces[0], traces[1]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        *((algorithm, "dense") for algorithm in CAPTURED),
        *(("FedSpeed", model) for model in ("convolutional", "tied tokens", "mixing")),
    ],
)
def test_bits_and_ledger_are_the_loops_with_one_launch_a_step(algorithm: str, model: str, streams: int) -> None:
    fed = federation(model, WORK, dtype=torch.float32, device="cuda")
    backend, loop, graphed = compared(fed, ALGORITHMS[algorithm], streams)
    assert not backend.eager, backend.eager
    assert graphed.ops["launch", "graph replay"] and 3 * graphed.count("launch") < 2 * loop.count("launch")
    captures = graphed.ops["wait", "synchronize"]          # a branch may meet a size of minibatches late
    assert graphed.count("upload", "wait", "download") <= loop.count("upload", "wait", "download") + captures


@pytest.mark.parametrize("algorithm", CHOSEN)
def test_algorithms_of_every_kind_have_the_loops_bits_on_several_streams(algorithm: str) -> None:
    compared(federation(work=WORK, dtype=torch.float32, device="cuda"), ALGORITHMS[algorithm], 3)


@pytest.mark.parametrize("memory", ["host", "disk"])
def test_memories_elsewhere_have_the_loops_bits_on_several_streams(memory: str) -> None:
    fed = federation(work=WORK, dtype=torch.float32, device="cuda")
    backend, *_ = compared(replace(fed, memory=MEMORIES[memory](fed.model.device)), ALGORITHMS["SCAFFOLD II"], 3)
    assert not backend.eager


def test_large_cohorts_run_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams go on when the results of a part have been read: then their memory may be allocated again."""
    monkeypatch.setattr(branches, "AT_A_TIME", 1)
    monkeypatch.setattr(collected, "SUMMED_FROM", 0)
    fed = federation(work=WORK, dtype=torch.float32, device="cuda")
    backend, *_ = compared(fed, ALGORITHMS["FedAvg momentum"], 1)
    assert not backend.eager


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("optimizer", [AdamW(), HeavyBall(state="keep")])
def test_optimisers_schedules_dropout_and_statistics(optimizer: Any, streams: int) -> None:
    work = replace(WORK, batch_size=7, optimizer=optimizer, step_schedule=CosineSteps(warmup=2))
    fed = federation(work=work, device="cuda", dtype=torch.float32)
    layers = nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3)
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Flatten(), *layers), cross_entropy, device="cuda")
    examine(model, Split(fed.shards.x, fed.shards.y))
    ends, backend = [], Graphed(streams=streams)
    for each in (Loop(), backend):
        own = replace(fed, model=model, backend=each)
        state = FedAvg().init(model.vector(), cohort(own, 0))
        start = state.x.clone()
        for round in (1, 2):
            state = FedAvg().round(state, cohort(own, round, np.array([1, 2, 4])))
        ends.append(state.x)
        model.load(start)
    assert torch.equal(ends[0], ends[1]) and not backend.eager


class State(NamedTuple):
    x: Tensor


@dataclass(frozen=True)
class Curious:
    """An algorithm whose step does what no graph can repeat."""

    what: str

    def init(self, x: Tensor, clients: Any) -> State:
        return State(x)

    def round(self, state: State, clients: Any) -> State:
        def client(local: Any, x: Tensor) -> Tensor:
            def step(y: Tensor, batch: Any) -> Tensor:
                g = local.grad(y, batch)
                eta = {"decay": lambda: 0.1 * local.decay, "number": lambda: 0.1 / (1 + float(g.norm()))}[self.what]()
                new: Tensor = y - eta * g
                return new

            moved: Tensor = local.fold(step, x)
            return moved

        return State(clients.mean(clients.each(client, state.x)))


@pytest.mark.parametrize(("what", "reason"), [("decay", "local.decay"), ("number", "not permitted when stream is")])
def test_what_cannot_be_captured_runs_as_in_the_loop_and_says_why(what: str, reason: str) -> None:
    said: list[str] = []
    ends = []
    for backend in (Loop(), Graphed(say=said.append)):
        fed = replace(federation(work=WORK, device="cuda"), backend=backend)
        *_, state = rounds(Curious(what), fed)
        ends.append(state.x)
    assert torch.equal(ends[0], ends[1])
    assert len(said) == 1 and reason in said[0] and "step" in said[0]


def test_graphs_are_few_whatever_the_shards() -> None:
    """Whole shards of many sizes: a graph for each of the first, the loop for the others."""
    backend = Graphed()
    fed = replace(federation(work="whole shard", device="cuda"), backend=backend)
    (branch,) = backend.branches[fed.model] = branches_of(fed.model, 1)
    branch.graphs.update((number, None) for number in range(MOST_GRAPHS - 2))   # type: ignore[misc]
    end = list(rounds(ALGORITHMS["FedAvg"], fed))[-1]
    loop = list(rounds(ALGORITHMS["FedAvg"], replace(fed, backend=Loop())))[-1]
    assert torch.equal(end.x, loop.x) and len(branch.graphs) == MOST_GRAPHS and len(backend.eager) == 1


def test_a_run_by_graphs_has_the_metrics_of_the_loop(tmp_path: Path) -> None:
    found = []
    for backend, streams in (("loop", None), ("graphed", None), ("graphed", 3)):
        experiment = SMALL.with_execution(device="cuda", backend=backend, block_size=0, client_threads=streams)
        made = run(experiment, output=tmp_path / f"{backend} {streams}", progress=False)
        found.append(recorded(made))
        asked = {"client_threads": streams} if streams else {}
        assert made.manifest["backend"]["0"] == {"backend": backend, **asked, "reason": "asked for"}
    assert found[0] == found[1] == found[2]
