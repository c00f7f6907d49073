"""Runs with personal models: what is measured of each client's own model, of newcomers, and what a resumed run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import EF21, DFedAvg, Ditto, FedAvg, FedBuff, PerFedAvg
from fedsim import (
    MLP,
    Clock,
    Data,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    PowerOfChoice,
    compare,
    read_metrics,
    records,
    render,
    resume,
    run,
    trained_model,
)
from fedsim.controller.prepare import prepare
from fedsim.engine.sharing import Share
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, to_config
from fedsim.models.losses import correct
from topologies import Ring, Static

BASE = Experiment(
    FedAvg(lr=0.2),
    partition=DirichletPartitioner(6, alpha=0.3, min_partition_size=20),
    model=MLP((12,)),
    share="all but 3",  # type: ignore[arg-type]
    local=LocalWork(batch_size=16),
    sampling=FixedSize(0.7),
    rounds=4,
    evaluation=Evaluation(every=2, clients_every=2, holdout=0.3, fine_tune=3, unseen=0.3),
    execution=Execution(backend="loop"),
)


class Nameless:
    """A method without a step size."""

    init = FedAvg.init
    round = FedAvg.round


def rows_of(path: Path) -> Any:
    return read_metrics(path / "seed-0" / "metrics.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(BASE, output=tmp_path_factory.mktemp("personal") / "run", progress=False).path


def accuracy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(correct(module(x), y).mean())


def test_each_client_s_own_model_is_measured_on_its_withheld_samples(made: Path) -> None:
    rows, prepared = rows_of(made), prepare(BASE, 0)
    assert prepared.federation.shards.n == 4 and prepared.unseen is not None
    for node in range(4):
        own = prepared.own.rows(node)
        mine = trained_model(made, seed=0, node=node)
        assert rows.series("personal/holdout", "accuracy", node)[4] == pytest.approx(accuracy(mine, own.x, own.y))
    server = trained_model(made, seed=0)
    assert torch.equal(server[3].weight, prepare(BASE, 0).federation.model.module[3].weight)   # type: ignore[index]
    for node in range(2):
        own = prepared.unseen[1].rows(node)
        assert rows.series("unseen/holdout", "accuracy", node)[4] == pytest.approx(accuracy(server, own.x, own.y))
    own = prepared.own.rows(1)
    assert rows.series("clients/holdout", "accuracy", 1)[4] == pytest.approx(accuracy(server, own.x, own.y))


def test_means_and_worst_of_every_kind_of_model_are_there_when_clients_are_due(made: Path) -> None:
    rows = rows_of(made)
    for scope, clients in (("personal", 4), ("tuned", 4), ("unseen", 2), ("unseen_tuned", 2)):
        assert list(rows.series(f"{scope}/holdout", "accuracy_mean")) == [0, 2, 4]
        each = [rows.series(f"{scope}/holdout", "accuracy", node)[4] for node in range(clients)]
        assert rows.series(f"{scope}/holdout", "accuracy_mean")[4] == pytest.approx(np.mean(each))
        assert rows.series(f"{scope}/holdout", "accuracy_worst10")[4] == pytest.approx(min(each))
        assert rows.series(f"{scope}/holdout", "scored")[4] == clients


def test_newcomers_never_train_and_training_is_that_of_the_others_alone(tmp_path: Path) -> None:
    """Their samples can be anything."""
    fine = prepare(BASE, 0).federation.shards
    without = prepare(replace(BASE, evaluation=replace(BASE.evaluation, unseen=0.0)), 0).federation.shards
    assert fine.n == 4 and without.n == 6
    for node in range(4):
        assert torch.equal(fine.rows(node).x, without.rows(node).x)


def test_fine_tuning_is_plain_training_from_the_client_s_model() -> None:
    from fedsim.controller.personal import fine_tuned
    from fedsim.engine.local_work import minibatches

    evaluation = Evaluation(holdout=0.3, fine_tune=2, fine_tune_lr=0.3, fine_tune_layers="3")
    case = replace(BASE, evaluation=evaluation)
    fed = prepare(case, 0).federation
    start = fed.model.vector()
    tuned = fine_tuned(case, fed, lambda _: start, range(fed.shards.n))
    work = replace(fed.work, steps=2)
    for i, plan in enumerate(minibatches(work, fed.shards, fed.seed, 0, np.arange(fed.shards.n))):
        module: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        nn.utils.vector_to_parameters(start.clone(), module.parameters())
        optimizer = torch.optim.SGD(module[3].parameters(), lr=0.3)
        for rows, length in zip(plan.index, plan.lengths, strict=True):
            x, y = (t[torch.from_numpy(rows[:length].copy())] for t in (fed.shards.x, fed.shards.y))
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(tuned[i], nn.utils.parameters_to_vector(module.parameters()).detach())


def test_measuring_changes_no_model_and_costs_nothing(made: Path, tmp_path: Path) -> None:
    plain = replace(BASE, evaluation=Evaluation(every=4, clients_every=None, holdout=0.3, unseen=0.3))
    rows, other = rows_of(made), rows_of(run(plain, output=tmp_path / "plain", progress=False).path)
    for scope, metric in (("server/test", "loss"), ("total", "bytes_up"), ("total", "gradient_evaluations")):
        assert rows.series(scope, metric)[4] == other.series(scope, metric)[4]


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.2), Ditto(lr=0.2)], ids=["layers", "Ditto"])
def test_a_resumed_run_has_the_same_bytes(algorithm: Any, tmp_path: Path) -> None:
    case = replace(BASE, algorithm=algorithm, share=BASE.share if isinstance(algorithm, FedAvg) else Share())
    whole = run(case, output=tmp_path / "whole", progress=False).path
    run(replace(case, rounds=2), output=tmp_path / "part", progress=False)
    resume(tmp_path / "part", rounds=4, progress=False)
    a, b = ((path / "seed-0" / "metrics.jsonl").read_bytes() for path in (whole, tmp_path / "part"))
    assert a == b and b"personal/holdout" in a


def test_methods_with_personal_models_are_measured_and_exported(tmp_path: Path) -> None:
    case = replace(BASE, algorithm=Ditto(lr=0.2, lam=1.0), share=Share(), rounds=2)
    made = run(case, output=tmp_path / "ditto", progress=False)
    own = prepare(case, 0).own.rows(3)
    module = trained_model(made, seed=0, node=3)
    found = rows_of(made.path).series("personal/holdout", "accuracy", 3)[2]
    assert found == pytest.approx(accuracy(module, own.x, own.y))
    with pytest.raises(ConfigError, match="node is 4; expected 0 to 3"):
        trained_model(made, seed=0, node=4)


def test_fedavg_has_no_personal_model_but_a_tuned_one(tmp_path: Path) -> None:
    case = replace(BASE, algorithm=PerFedAvg(lr=0.2), share=Share(), rounds=2)
    made = run(case, output=tmp_path / "run", progress=False)
    rows = rows_of(made.path)
    assert not rows.series("personal/holdout", "accuracy_mean") and rows.series("tuned/holdout", "accuracy_mean")
    with pytest.raises(ConfigError, match="has one model, at its server"):
        trained_model(made, seed=0, node=0)


def test_comparisons_show_personal_models_beside_the_server_s(made: Path, tmp_path: Path) -> None:
    plain = run(replace(BASE, share=Share()), output=tmp_path / "plain", progress=False).path
    for metric in ("accuracy_mean", "accuracy_worst10"):
        found = compare([made, plain], "personal/holdout", metric)
        for summary, path, scope in zip(found.runs, (made, plain), ("personal", "clients"), strict=True):
            assert summary.run.scope == f"{scope}/holdout"
            assert records(found)[found.runs.index(summary)]["final_mean"] == pytest.approx(
                rows_of(path).series(f"{scope}/holdout", metric)[4]
            )
        assert not [warning for warning in found.warnings if "share" in warning]
        assert "personal/holdout or clients/holdout" in " ".join(str(render(found)).split())
    newcomers = compare([made, plain], "unseen_tuned/holdout", "accuracy_mean")
    assert [summary.run.scope for summary in newcomers.runs] == ["unseen_tuned/holdout"] * 2
    assert compare([made, plain], "personal/holdout", "accuracy", client=1).runs[1].run.scope == "clients/holdout"


def test_settings_are_files_too() -> None:
    case = replace(BASE, share=Share("all but 3", "alternate", 0.4))
    assert from_config(to_config(case)) == case
    assert from_config({"algorithm": "FedAvg", "share": {"layers": "all but 3"}}).share == BASE.share
    assert replace(BASE, share="3").share == Share("3")  # type: ignore[arg-type]


def test_what_does_not_go_with_personal_layers_is_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({"algorithm": DFedAvg(), "topology": Static(Ring())}, r"evaluation\.fine_tune needs a method with a server"),
        (
            {"algorithm": DFedAvg(), "topology": Static(Ring()), "evaluation": Evaluation()},
            "share.layers is 'all but 3', which needs a method with a server",
        ),
        ({"algorithm": Ditto()}, "which needs a method that has no personal models itself"),
        ({"algorithm": FedBuff(buffer=2), "concurrency": 3, "clock": Clock()}, "which needs synchronous rounds"),
        ({"data": Data("least_squares"), "evaluation": Evaluation()}, "a model with layers"),
        ({"sampling": PowerOfChoice()}, "a sampling that asks no client for its loss"),
        ({"share": 3}, "share is 3; expected Share"),
        ({"algorithm": Nameless()}, r"Nameless has no lr to fine-tune with; set evaluation\.fine_tune_lr"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(BASE, **settings)  # type: ignore[arg-type]
    for evaluation, message in (
        ({"fine_tune": 3}, "fine_tune needs samples that it does not train on"),
        ({"fine_tune": -1}, "fine_tune is -1"),
        ({"unseen": 1.0}, "unseen is 1.0; expected a share from 0 to below 1"),
        ({"fine_tune": 1, "holdout": 0.2, "fine_tune_lr": 0.0}, "fine_tune_lr is 0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Evaluation(**evaluation)  # type: ignore[arg-type]
    for case, message in (
        (replace(BASE, share=Share("all but head")), "'head' is no layer of the model"),
        (replace(BASE, evaluation=replace(BASE.evaluation, unseen=0.01)), "unseen is 0.01, 0 of 6 clients"),
        (replace(BASE, evaluation=replace(BASE.evaluation, fine_tune_layers="7")), "fine_tune_layers: '7' is no"),
        (replace(BASE, algorithm=EF21(), evaluation=Evaluation()), "EF21 made no step .* so share would have"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(case, output=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
