"""The controller: what a run writes, that it repeats, and what it refuses."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAMD, FedAvg, FedSpeed, Scaffold
from fedsim import Bernoulli, Clients, Data, Evaluation, Execution, Experiment, FixedSize, Local, LocalWork, resume, run
from fedsim.controller import host, scoring
from fedsim.engine.machine import cores
from fedsim.errors import ConfigError
from fedsim.experiment.config import to_config
from fedsim.experiment.schedule import ExponentialDecay
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner, IidPartitioner, NoiseSkew, Partition
from fedsim.problems import least_squares
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import Metrics, read_metrics
from fedsim.sweeps.grid import Point
from fedsim.sweeps.jobs import jobs_of

SMALL = Experiment(
    FedSpeed(lr=0.1, rho=0.05),
    partition=DirichletPartitioner(10, alpha=0.3, min_partition_size=2),
    model=MLP(hidden=(16,)),
    local=LocalWork(batch_size=16, steps=3),
    sampling=FixedSize(0.4),
    rounds=12,
    evaluation=Evaluation(every=2, clients_every=4),
    execution=Execution("blocks", block_size=4, checkpoint_every=5, name="small"),
)


def metrics_bytes(directory: RunDirectory, seed: int = 0) -> bytes:
    return (directory.seed_path(seed) / "metrics.jsonl").read_bytes()


def metrics(directory: RunDirectory, seed: int = 0) -> Metrics:
    return read_metrics(directory.seed_path(seed) / "metrics.jsonl")


def test_a_run_writes_everything_that_a_reader_needs(tmp_path: Path) -> None:
    directory = run(replace(SMALL, seeds=2), root=tmp_path, progress=False)
    manifest = directory.manifest
    assert manifest["seeds"] == [0, 1] and manifest["clients"] == 10 and manifest["parameters"] == 64 * 16 + 16 + 170
    assert set(manifest["partition_hash"]) == {"0", "1"} and len(manifest["data_hash"]) == 64
    assert manifest["backend"]["0"] == {"backend": "blocks", "block_size": 4, "reason": "asked for"}
    assert {s["state"] for s in manifest["status"].values()} == {"finished"}
    rows = metrics(directory)
    accuracy = rows.series("server/test", "accuracy")
    assert list(accuracy) == [0, 2, 4, 6, 8, 10, 12]
    assert accuracy[12] > accuracy[0] + 0.2
    assert set(rows.series("clients/train", "accuracy_worst10")) == {0, 4, 8, 12}
    own = rows.node[(rows.round == 12) & (rows.scope == "clients/train") & (rows.metric == "accuracy")]
    assert own.tolist() == list(range(10))                 # every client, whether it was sampled or not
    assert rows.series("clients/train", "scored") == dict.fromkeys((0, 4, 8, 12), 10.0)
    assert list(rows.series("total", "gradient_evaluations")) == list(accuracy)
    assert metrics_bytes(directory, 0) != metrics_bytes(directory, 1)


def test_client_summaries_are_those_of_the_client_rows(tmp_path: Path) -> None:
    rows = metrics(run(SMALL, root=tmp_path, progress=False))
    last = (rows.round == 12) & (rows.scope == "clients/train")
    each = rows.value[last & (rows.metric == "accuracy")]
    summary = {m: rows.value[last & (rows.metric == m)][0] for m in ("accuracy_mean", "accuracy_worst10")}
    assert summary["accuracy_mean"] == pytest.approx(each.mean(), abs=1e-12)
    assert summary["accuracy_worst10"] == pytest.approx(each.min(), abs=1e-12)     # the worst tenth of ten is one


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold(), FedSpeed(), FedAMD(lr=0.05)])
def test_a_repeated_run_repeats_to_the_byte(tmp_path: Path, algorithm: object) -> None:
    experiment = replace(SMALL, algorithm=algorithm, rounds=4)
    first, second = (run(experiment, root=tmp_path, progress=False) for _ in range(2))
    assert first.path != second.path                       # a second run never overwrites a first
    assert metrics_bytes(first) == metrics_bytes(second)


def test_the_same_cohorts_and_partition_for_every_algorithm(tmp_path: Path) -> None:
    runs = [run(replace(SMALL, algorithm=a, rounds=4), root=tmp_path, progress=False) for a in (FedAvg(), Scaffold())]
    hashes = {r.manifest["partition_hash"]["0"] for r in runs}
    first = [metrics(r).series("server/test", "loss")[0] for r in runs]
    assert len(hashes) == 1 and first[0] == first[1]       # same partition, same initial model


def test_an_existing_output_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        run(SMALL, output=str(tmp_path / "mine"), progress=False)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_bad_experiment_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.size is 11"):
        run(replace(SMALL, sampling=FixedSize(size=11)), root=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


class FixedPointState(NamedTuple):
    x: Tensor


@dataclass(frozen=True)
class Mine:
    """A user's algorithm: gradient descent with a mean of whole-shard gradients."""

    lr: float = 0.5

    def init(self, x: Tensor, clients: Clients) -> FixedPointState:
        return FixedPointState(x)

    def round(self, s: FixedPointState, clients: Clients) -> FixedPointState:
        return FixedPointState(s.x - self.lr * clients.mean(clients.each(self.client, s.x)))

    def client(self, local: Local, x: Tensor) -> Tensor:
        return local.grad(x)


def test_a_problem_of_theory_runs_like_any_task(tmp_path: Path) -> None:
    problem = least_squares(n=10, d=5, condition=5.0)
    from fedsim.partition import NaturalIdPartitioner

    experiment = Experiment(
        Mine(lr=1.0), data=problem, partition=NaturalIdPartitioner(), sampling=FixedSize(1.0), rounds=200,
        dtype="float64", evaluation=Evaluation(every=100), execution=Execution("loop"),
    )  # fmt: skip
    directory = run(experiment, root=tmp_path, progress=False)
    rows = metrics(directory)
    assert rows.series("server/problem", "distance")[200] < 1e-8
    assert rows.series("server/problem", "suboptimality")[200] < 1e-14
    directory.mark(0, "interrupted")
    with pytest.raises(ConfigError, match="experiment"):   # the file cannot name a Python object; the script can
        resume(directory.path, progress=False)
    resume(directory.path, experiment, progress=False)


def test_a_users_module_and_loss(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ELU(), nn.Linear(8, 10))
    before = [p.clone() for p in module.parameters()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    experiment = replace(SMALL, model=module, loss=loss, seeds=2, rounds=3)
    rows = [metrics(run(experiment, root=tmp_path, progress=False), s).series("server/test", "loss") for s in (0, 1)]
    assert rows[0][0] == rows[1][0] and rows[0][2] != rows[1][2]   # both seeds start from the user's own values
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "samples"},
        {"sampling": Bernoulli(0.3)},
        {"schedule": ExponentialDecay(0.5)},
        {"skew": NoiseSkew(1.0)},
        {"partition": IidPartitioner(10)},
        {"local": LocalWork(batch_size=16, steps=3, weight_decay=0.1)},
        {"local": LocalWork(batch_size=16, steps=3, clip_norm=0.01)},
        {"seed": 5},
    ],
)
def test_every_setting_matters(tmp_path: Path, change: dict[str, object]) -> None:
    plain, changed = (
        metrics(run(e, root=tmp_path, progress=False), e.seed).series("server/test", "loss")[4]
        for e in (replace(SMALL, rounds=4), replace(SMALL, rounds=4, **change))  # type: ignore[arg-type]
    )
    assert plain != changed


def test_holdout_is_not_trained_on(tmp_path: Path) -> None:
    experiment = replace(SMALL, partition=IidPartitioner(10), evaluation=Evaluation(every=4, holdout=0.25), rounds=4)
    rows = metrics(run(experiment, root=tmp_path, progress=False))
    assert "accuracy_mean" in rows.metric[rows.scope == "clients/holdout"]
    from fedsim.controller.prepare import prepare

    prepared = prepare(experiment, 0)
    assert prepared.own.sizes.sum() + prepared.federation.shards.sizes.sum() == prepared.partition.sizes.sum()
    trained = {row.numpy().tobytes() for row in prepared.federation.shards.x}
    kept = [row.numpy().tobytes() in trained for row in prepared.own.x]
    assert np.mean(kept) < 0.02                            # a few scanned digits are equal to the pixel


def test_auto_backend_is_recorded_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "cache"))
    experiment = replace(SMALL, rounds=3).with_execution(backend="auto", block_size=0)
    first, second = (run(experiment, root=tmp_path, progress=False) for _ in range(2))
    chosen = first.manifest["backend"]["0"]
    assert chosen == second.manifest["backend"]["0"] and set(chosen["trial_seconds"]) >= {"loop", "1", "4"}
    assert metrics_bytes(first) == metrics_bytes(second)


def test_all_seeds_have_the_backend_that_was_measured_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([2, 3, 4])
    choice = lambda *a, **k: {"backend": "blocks", "block_size": next(sizes)}  # noqa: E731
    monkeypatch.setattr("fedsim.controller.in_process.choose", choice)
    experiment = replace(SMALL, rounds=2, seeds=3).with_execution(backend="auto", block_size=0)
    directory = run(experiment, root=tmp_path, progress=False)
    assert directory.manifest["backend"] == {seed: {"backend": "blocks", "block_size": 2} for seed in ("0", "1", "2")}


def test_seconds_are_those_of_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = scoring.score

    def slow(*arguments: Any, **settings: Any) -> Any:
        time.sleep(0.4)
        return score(*arguments, **settings)

    monkeypatch.setattr("fedsim.controller.scoring.score", slow)
    begun = time.perf_counter()
    directory = run(replace(SMALL, rounds=6).with_execution(checkpoint_every=2), root=tmp_path, progress=False)
    whole = time.perf_counter() - begun
    seconds = read_metrics(directory.seed_path(0) / "timing.jsonl").series("host", "seconds")
    assert list(seconds) == [0, 2, 4, 6] and list(seconds.values()) == sorted(seconds.values())
    assert whole > 6 * 0.4 and seconds[6] < whole - 6 * 0.4


def test_data_by_name_of_a_problem(tmp_path: Path) -> None:
    from fedsim.partition import NaturalIdPartitioner

    data = Data("least_squares", options={"n": 4, "d": 3})
    experiment = replace(SMALL, data=data, partition=NaturalIdPartitioner(), algorithm=FedAvg(lr=0.1), dtype="float64")
    directory = run(experiment, root=tmp_path, progress=False)
    assert "objective" in metrics(directory).metric
    directory.mark(0, "interrupted")
    resume(directory.path, progress=False)


def test_the_number_of_client_threads_cannot_be_seen(tmp_path: Path) -> None:
    written = []
    for backend, threads in (("loop", 1), ("loop", 2), ("blocks", 1), ("blocks", 2)):
        settings = replace(SMALL, rounds=3).with_execution(backend=backend, client_threads=threads, block_size=2)
        done = run(settings, output=tmp_path / f"{backend}{threads}", progress=False)
        written.append(metrics_bytes(done))
        assert done.manifest["backend"]["0"]["client_threads"] == threads
    assert written[0] == written[1] and written[2] == written[3]


@pytest.mark.parametrize("settings", [{"client_threads": -1}, {"client_threads": 2, "backend": "ray"}])
def test_numbers_of_client_threads_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="client_threads is"):
        Execution(**settings)


@pytest.mark.parametrize("kept", [10**9, 0])
def test_partitions_are_made_once_for_seeds_that_are_small(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    @dataclass(frozen=True)
    class Counted(IidPartitioner):
        def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
            made.append(seed)
            return super().partition(labels, natural, seed)

    monkeypatch.setattr(host, "KEPT_BYTES", kept)
    few = replace(SMALL, partition=Counted(4), rounds=1, seeds=3, evaluation=Evaluation(clients_every=None))
    directory = run(few, output=tmp_path / "run", progress=False)
    assert made == ([0, 1, 2] if kept else [0, 1, 2, 1, 2])  # 0 is run first, 1 and 2 are checked before
    alone = run(replace(few, seed=2, seeds=1), output=tmp_path / "alone", progress=False)
    assert metrics_bytes(directory, 2) == metrics_bytes(alone, 2)


def test_a_host_of_two_runs_gives_none_the_partition_of_the_other(tmp_path: Path) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    few, used = replace(SMALL, rounds=1, seeds=2), host.Host()
    with pytest.raises(KeyboardInterrupt):                 # before its seed 1, whose partition has been made
        run(few, output=tmp_path / "ended", host=used, progress=False, on_round=stopped)
    other = replace(few, partition=IidPartitioner(10), seed=1, seeds=1)
    made = run(other, output=tmp_path / "next", host=used, progress=False)
    alone = run(other, output=tmp_path / "alone", progress=False)
    assert made.manifest["partition_hash"] == alone.manifest["partition_hash"]


def test_numbers_of_threads_beyond_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = cores() + 1
    few = replace(SMALL, rounds=1, execution=Execution("loop", threads=many))
    run(few, output=tmp_path / "run", progress=False)
    assert f"note: threads is {many}, and this machine has " in capsys.readouterr().err
    few = replace(few, execution=Execution("loop", client_threads=100 * many))
    with pytest.raises(ConfigError, match=f"client_threads is {100 * many:,}, and this machine has"):
        run(few, output=tmp_path / "never", progress=False)
    assert not (tmp_path / "never").exists()
    points = [Point(f"lr={k}", to_config(few)) for k in range(100 * many)]
    with pytest.raises(ConfigError, match=f"--jobs is {100 * many:,}, and this machine has .*; expected about"):
        jobs_of(200 * many, points)
