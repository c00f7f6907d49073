"""Blocks whose local steps are CUDA graphs, on the pretended GPU: the bits and the ledger of blocks without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import run
from fedsim.controller.in_process import backend_of
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.branches import branches_of
from fedsim.engine.captured import MOST_GRAPHS, Graphs
from fedsim.engine.examine import examine
from fedsim.engine.fallback import BlocksOrLoop
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.model import Model
from fedsim.engine.optimizers import AdamW, HeavyBall
from fedsim.engine.step_schedules import CosineSteps
from fedsim.models.losses import cross_entropy
from tests.contract.cases import ALGORITHMS, federation, rounds, same_bits
from tests.contract.test_devices import CHOSEN
from tests.pretended.graphs import CAPTURED, WORK, State
from tests.test_devices import SMALL, recorded


def compared(fed: Federation, algorithm: Any, size: int = 4, graphs: Graphs | None = None) -> Graphs:
    """Check that a run has the bits and the ledger of blocks that are launched operation by operation."""
    graphs, runs = Graphs() if graphs is None else graphs, list[Any]()
    for backend in (Blocks(size), Blocks(size, graphs=graphs)):
        own = replace(fed, backend=backend)
        meter = Meter(own)
        runs.append((list(rounds(algorithm, own, meter=meter)), meter))
    (eager, here), (graphed, there) = runs
    assert all(same_bits(a, b) for a, b in zip(eager, graphed, strict=True))
    assert all(torch.isfinite(t).all() for t in graphed[-1] if isinstance(t, Tensor) and t.is_floating_point())
    charged, again = (meter.ledger.snapshot() for meter in (here, there))
    assert charged.keys() == again.keys() and all(torch.equal(charged[name], again[name]) for name in charged)
    return graphs


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        *((algorithm, "dense") for algorithm in CAPTURED),
        *(("FedSpeed", model) for model in ("convolutional", "tied tokens")),
    ],
)
def test_bits_and_ledger_are_those_of_blocks(algorithm: str, model: str) -> None:
    """Shards are ragged: clients leave the block one by one, and minibatches of a step differ in size."""
    graphs = compared(federation(model, WORK, dtype=torch.float32, device="cuda"), ALGORITHMS[algorithm])
    assert not graphs.eager, graphs.eager
    assert all(branch.graphs for (branch,) in graphs.branches.values())


@pytest.mark.parametrize("algorithm", CHOSEN)
def test_algorithms_of_every_kind_have_the_bits_of_blocks(algorithm: str) -> None:
    compared(federation(work=WORK, dtype=torch.float32, device="cuda"), ALGORITHMS[algorithm], 2)


@pytest.mark.parametrize("optimizer", [AdamW(), HeavyBall(state="keep")])
def test_optimisers_schedules_and_dropout(optimizer: Any) -> None:
    work = replace(WORK, batch_size=7, optimizer=optimizer, step_schedule=CosineSteps(warmup=2))
    fed = federation(work=work, device="cuda", dtype=torch.float32)
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 5), nn.Dropout(0.3), nn.Linear(5, 3)
    model = Model(nn.Sequential(*layers), cross_entropy, device="cuda")
    examine(model, Split(fed.shards.x, fed.shards.y))
    assert not compared(replace(fed, model=model), ALGORITHMS["FedAvg"]).eager


@dataclass(frozen=True)
class Halves:
    """An algorithm whose step takes the gradient of two samples of its minibatch, of which a client may have one."""

    def init(self, x: Tensor, clients: Any) -> State:
        return State(x)

    def round(self, state: State, clients: Any) -> State:
        def client(local: Any, x: Tensor) -> Tensor:
            def step(y: Tensor, batch: Any) -> Tensor:
                new: Tensor = y - 0.1 * local.grad(y, batch.part(slice(2)))
                return new

            moved: Tensor = local.fold(step, x)
            return moved

        return State(clients.mean(clients.each(client, state.x)))


def test_what_cannot_be_captured_runs_as_in_blocks_and_says_why() -> None:
    said: list[str] = []
    graphs = compared(federation(work=WORK, device="cuda"), Halves(), graphs=Graphs(say=said.append))
    assert len(graphs.eager) == len(said) == 1
    assert "samples that each client has another number of" in said[0]


def test_ragged_minibatches_of_a_model_that_mixes_them_are_cut_on_the_host() -> None:
    graphs = compared(federation("mixing", WORK, dtype=torch.float32, device="cuda"), ALGORITHMS["FedSpeed"])
    (reason,) = graphs.eager.values()
    assert "operation not permitted when stream is capturing (aten::nonzero" in reason


def test_graphs_are_few_whatever_the_shards() -> None:
    """A graph for each of the first steps of fewer and fewer clients, the others launched operation by operation."""
    graphs, fed = Graphs(), federation(work=WORK, device="cuda")
    (branch,) = graphs.branches[fed.model] = branches_of(fed.model, 1)
    branch.graphs.update((number, None) for number in range(MOST_GRAPHS - 2))
    compared(fed, ALGORITHMS["SCAFFOLD II"], graphs=graphs)
    assert len(branch.graphs) == MOST_GRAPHS and len(graphs.eager) == 1


def test_a_run_by_graphs_has_the_metrics_of_blocks(tmp_path: Path) -> None:
    found = []
    for backend in ("blocks", "graphed"):
        made = run(SMALL.with_execution(device="cuda", backend=backend, block_size=2), output=tmp_path / backend,
                   progress=False)
        found.append(recorded(made))
        assert made.manifest["backend"]["0"] == {"backend": backend, "block_size": 2, "reason": "asked for"}
    assert found[0] == found[1]


def test_what_a_trial_chose_may_fall_back() -> None:
    chosen = {"backend": "graphed", "block_size": 5}
    ran = backend_of(chosen, lambda text: None, may_fall=True)
    assert isinstance(ran, BlocksOrLoop) and ran.graphs is not None
    ran.graphs.said("step", "a reason")
    assert chosen["eager"] == {"step": "a reason"}  # type: ignore[comparison-overlap]
