"""A user's own module and loss: refused by name before a run begins, or right on every backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg
from fedsim import Dataset, Evaluation, Execution, Experiment, FixedSize, LocalWork, Split, run
from fedsim.cli import main
from fedsim.clients import cohort
from fedsim.controller import choose as choosing
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.loop import CHUNK, Loop
from fedsim.partition import DirichletPartitioner, IidPartitioner
from fedsim.record.checkpoint import load_latest
from fedsim.record.metrics import read_metrics

TOKENS = 30


class Spectral(nn.Module):
    """A layer with spectral norm, whose power iteration goes on in two buffers; or frozen."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))
        if frozen:
            self.layer.parametrizations.eval()  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.layer(x.flatten(1))
        return out


class Counting(nn.Module):
    """Its step grows with the number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(64, 10), 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        out: Tensor = self.layer(x.flatten(1)) * (1 + 0.1 * self.calls)
        return out


class Contrasting(nn.Module):
    """In training, a loss below the mean of the minibatch counts half."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[B]``."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses * torch.where(losses < losses.mean(), 0.5, 1.0) if self.training else losses


class Centring(nn.Module):
    """It subtracts the mean of the minibatch in training, and holds its last activations, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 10)
        self.activations: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.activations = h = torch.tanh(self.first(x.flatten(1)))
        out: Tensor = self.second(h - h.mean(0) if self.training else h)
        return out


class Bag(nn.Module):
    """A model of text with sparse gradients."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words, self.output = nn.Embedding(TOKENS, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T]`` to logits."""
        out: Tensor = self.output(self.words(x).mean(1))
        return out


SMALL = Experiment(
    FedAvg(lr=0.2), partition=DirichletPartitioner(6, alpha=0.3, min_partition_size=2), local=LocalWork(16),
    sampling=FixedSize(0.5), rounds=3, evaluation=Evaluation(every=1), execution=Execution("loop"),
)  # fmt: skip
BLOCKS = Execution("blocks", block_size=3)


def model_of(experiment: Experiment, folder: Path) -> Tensor:
    """The server's model after the last round."""
    made = run(experiment, output=folder, progress=False)
    loaded = load_latest(made.seed_path(0) / "checkpoints")
    assert loaded is not None
    return loaded.tensors["x.0"]


@pytest.mark.parametrize("backend", ["loop", "blocks", "auto"])
@pytest.mark.parametrize(
    ("model", "moved"),
    [("Spectral", "buffer layer.parametrizations.weight.0._u"), ("Counting", "attribute calls")],
)
def test_state_ends_a_run_before_it_begins(
    model: str, moved: str, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--algorithm", "FedAvg", "--partition", "IidPartitioner", "--partition.num_partitions", "4"]
    made = ["--model", f"{__name__}.{model}", "--backend", backend, "--output", str(tmp_path / "run"), "--quiet"]
    assert main(["run", *words, *made]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"fedsim: {model} keeps state besides its parameters: {moved}") and "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_frozen_spectral_norm_runs_and_repeats(tmp_path: Path) -> None:
    experiment = replace(SMALL, model=Spectral(frozen=True), dtype="float64")
    first, again = (model_of(experiment, tmp_path / name) for name in ("a", "b"))
    blocks = model_of(replace(experiment, execution=BLOCKS), tmp_path / "c")
    assert torch.equal(first, again)
    torch.testing.assert_close(blocks, first, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "loss"),
    [(Centring, "auto"), (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Contrasting())],
    ids=["model", "loss of a dense model"],
)
def test_what_mixes_samples_gives_the_same_in_blocks(model: Any, loss: Any, tmp_path: Path) -> None:
    """With ragged clients, and minibatches that do not divide their samples."""
    torch.manual_seed(0)
    experiment = replace(SMALL, model=model(), loss=loss, dtype="float64")
    assert prepare(experiment, 0).federation.model.mixes
    loop = model_of(experiment, tmp_path / "loop")
    blocks = model_of(replace(experiment, execution=BLOCKS), tmp_path / "blocks")
    torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", [Loop(), Blocks(2)])
def test_a_full_gradient_of_what_mixes_samples_is_that_of_the_shard(backend: Any) -> None:
    """Of more samples than the engine takes in one pass."""
    experiment = replace(SMALL, model=Centring(), partition=IidPartitioner(2), dtype="float64")
    fed = replace(prepare(experiment, 0).federation, backend=backend)
    assert fed.shards.sizes.min() > CHUNK
    x = fed.model.vector()
    sent = cohort(fed, 1).each(lambda local, x: local.grad(x), x)
    each = [fed.model.gradient(x, fed.shards.rows(i)) for i in range(2)]
    torch.testing.assert_close(sent.stacked, torch.stack(each), rtol=0, atol=1e-12)


def test_a_trial_of_blocks_leaves_no_trace(tmp_path: Path) -> None:
    """In blocks, a module sees tensors that mean nothing afterwards."""
    federation = prepare(replace(SMALL, model=Centring()), 0).federation
    choosing.choose(federation, FedAvg(), np.arange(3), cache=tmp_path / "backends.json")
    assert federation.model.module.activations is None


def test_lazy_layers_follow_from_the_seed() -> None:
    experiment = replace(SMALL, model=nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(10)))
    first, again, other = (prepare(experiment, seed).federation.model for seed in (0, 0, 1))
    assert first.d == 65 * 8 + 9 * 10 and first.dense is not None
    assert torch.equal(first.vector(), again.vector()) and not torch.equal(first.vector(), other.vector())
    assert isinstance(experiment.model, nn.Module) and all(map(nn.parameter.is_lazy, experiment.model.parameters()))


def test_sparse_embeddings_train_as_dense_ones(tmp_path: Path) -> None:
    x = torch.randint(0, TOKENS, (120, 5), generator=torch.Generator().manual_seed(0))
    split = Split(x, x[:, 0] % 3)
    trained = []
    for sparse in (False, True):
        torch.manual_seed(0)
        data = Dataset("words", train=split, test=split, classes=3)
        for execution in (SMALL.execution, BLOCKS):
            experiment = replace(SMALL, data=data, model=Bag(sparse), execution=execution)
            trained.append(model_of(experiment, tmp_path / f"{len(trained)}"))
    assert torch.equal(trained[0], trained[2]) and torch.equal(trained[1], trained[3])


def test_a_loss_that_is_a_module_is_in_eval_mode_for_evaluation(tmp_path: Path) -> None:
    loss, first = Contrasting(), []
    for name in ("auto", loss):
        made = run(replace(SMALL, loss=name, rounds=1), output=tmp_path / str(len(first)), progress=False)
        first.append(read_metrics(made.seed_path(0) / "metrics.jsonl").series("server/test", "loss")[0])
    assert first[0] == pytest.approx(first[1], abs=1e-6) and loss.training
