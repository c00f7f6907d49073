"""The backend `auto`: whatever runs in the loop runs, and what cannot run in blocks is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from algorithms.fedavg import FedAvgState
from fedsim import Evaluation, Experiment, resume, run
from fedsim.controller import choose as choosing
from fedsim.controller.trials import Trials
from fedsim.errors import BlockError, ClientError
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import read_metrics
from tests.controller.test_run import SMALL, metrics_bytes

FEW = replace(SMALL, rounds=6, evaluation=Evaluation(every=1)).with_execution(backend="auto", block_size=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "cache"))
    monkeypatch.setattr(choosing, "variations", lambda model: [])   # others round otherwise


@dataclass(frozen=True)
class Optimised(FedAvg):
    """Local steps by an optimiser of PyTorch, which works on one tensor with a gradient."""

    def client(self, local: Any, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Any) -> Tensor:
            p = y.clone().requires_grad_()
            optimiser = torch.optim.SGD([p], lr=self.lr)
            p.grad = local.grad(p.detach(), batch)
            optimiser.step()
            return p.detach()

        return local.fold(step, x)  # type: ignore[no-any-return]


class Attentive(nn.Module):
    """Attention with a mask made from the input: whether there is anything to mask is asked of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 8, 8)
        mask = x.sum(2) == 0
        seen, _ = self.attention(x, x, x, key_padding_mask=mask if bool(mask.any()) else None, need_weights=False)
        y: Tensor = self.out(seen.mean(1))
        return y


@pytest.mark.parametrize(
    ("experiment", "reason"),
    [
        (replace(FEW, algorithm=Optimised()), r"Optimised\.client in round 1 cannot run for a block .*requires_grad_"),
        (replace(FEW, model=Attentive()), r"the model Attentive cannot run for a block of clients: RuntimeError: vmap"),
    ],
)
def test_what_only_the_loop_can_run(
    experiment: Experiment, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run(experiment, output=tmp_path / "auto", progress=False)
    chosen = directory.manifest["backend"]["0"]
    assert chosen["backend"] == "loop" and re.match(reason, chosen["reason"])
    assert f"fedsim: {chosen['reason']}; clients run one at a time\n" in capsys.readouterr().err
    loop = run(experiment.with_execution(backend="loop"), output=tmp_path / "loop", progress=False)
    assert metrics_bytes(directory) == metrics_bytes(loop)
    for size in (0, 2):
        with pytest.raises(BlockError, match=f"(?s){reason}.*--backend loop, or auto"):
            blocks = experiment.with_execution(backend="blocks", block_size=size)
            run(blocks, output=tmp_path / "blocks", progress=False)
        assert not (tmp_path / "blocks").exists()


@dataclass(frozen=True)
class Branching(FedAvg):
    """Asks what its numbers are from round 4 on, after the trial."""

    def round(self, s: Any, clients: Any) -> Any:
        if clients.round < 4:
            return super().round(s, clients)
        sent = clients.each(self.late, s.x)
        return FedAvgState(clients.mean(clients.each(self.client, s.x)) + 0 * clients.mean(sent))

    def late(self, local: Any, x: Tensor) -> Tensor:
        g: Tensor = local.grad(x)
        return x - self.lr * g if g.norm() > 0 else x


def blocks_are_faster(*arguments: Any) -> dict[str, float]:
    return {"loop": 2.0, "4": 1.0}


def test_code_that_fails_in_a_later_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trials, "run", blocks_are_faster)
    experiment = replace(FEW, algorithm=Branching())
    directory = run(experiment, output=tmp_path / "auto", progress=False)
    reason = directory.manifest["backend"]["0"]["in_loop"]["Branching.late"]
    assert reason.startswith("Branching.late in round 4 cannot run for a block of clients: RuntimeError: vmap")
    assert capsys.readouterr().err.count(f"{reason}; it runs for one client at a time from here on") == 1
    costs = [final(directory, "gradient_evaluations")]
    with pytest.raises(BlockError, match=r"Branching\.late in round 4"):
        run(experiment.with_execution(backend="blocks", block_size=5), output=tmp_path / "blocks", progress=False)
    costs += [final(run(experiment.with_execution(backend="loop"), output=tmp_path / "loop", progress=False))]
    assert costs[0] == costs[1], "the attempt in blocks is not charged"

    killed = replace(experiment, algorithm=Killed())
    with pytest.raises(ClientError, match=r"Killed\.late in round 6: client \d+ raised OSError: killed"):
        run(killed, output=tmp_path / "killed", progress=False)
    monkeypatch.setattr(Killed, "late", Branching.late)
    assert metrics_bytes(resume(tmp_path / "killed", killed, progress=False)) == metrics_bytes(directory)


@dataclass(frozen=True)
class Killed(Branching):
    def late(self, local: Any, x: Tensor) -> Tensor:
        if local._round == 6:
            raise OSError("killed")
        return super().late(local, x)


def final(directory: RunDirectory, metric: str = "gradient_evaluations") -> float:
    return read_metrics(directory.seed_path(0) / "metrics.jsonl").series("total", metric)[6]


@pytest.mark.parametrize("backend", ["auto", "loop", "blocks"])
def test_a_bug_in_the_first_round_leaves_no_run(backend: Any, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"(?s)Buggy\.client in round 1: client \d+ raised KeyError: 'lr'\n.*line"):
        run(replace(FEW, algorithm=Buggy()).with_execution(backend=backend), output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Buggy(FedAvg):
    def client(self, local: Any, x: Tensor) -> Tensor:
        settings: dict[str, Callable[[], Tensor]] = {}
        return settings["lr"]()
