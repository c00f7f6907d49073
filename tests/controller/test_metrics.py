"""Further metrics in a run: of the server, of each client and node, of the updates; and in comparisons of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import fedsim
from algorithms import DPSGD, FedAvg
from fedsim import Evaluation, Execution, run
from fedsim.backends.ray.ray_host import RayHost
from fedsim.cli import main
from fedsim.controller import scoring
from fedsim.controller.prepare import prepare
from fedsim.errors import ConfigError
from fedsim.experiment.stopping import lower_is_better
from fedsim.models import MLP
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import Metrics, read_metrics
from tests.backends.ray.shared import workers
from tests.controller.test_run import SMALL, metrics_bytes
from topologies import Ring, Static

METRICS = ("f1_macro", "perplexity", "roc_auc_ovr", "update_norm", "drift")
EACH = replace(
    SMALL, algorithm=FedAvg(), rounds=3, evaluation=Evaluation(every=1, clients_every=1), metrics=METRICS,
    execution=Execution("loop", checkpoint_every=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(EACH, output=tmp_path_factory.mktemp("metrics") / "run", progress=False)


def rows_of(directory: RunDirectory) -> Metrics:
    return read_metrics(directory.seed_path(0) / "metrics.jsonl")


def test_values_of_the_server_and_of_each_client(measured: RunDirectory) -> None:
    rows, prepared = rows_of(measured), prepare(EACH, 0)
    loaded = checkpoint.load_latest(measured.seed_path(0) / "checkpoints")
    assert loaded is not None and loaded.round == 3
    model, x, own = prepared.federation.model, loaded.tensors["x.0"], prepared.own
    predicted = model.outputs(x, prepared.test.x).argmax(1)
    expected = f1_score(prepared.test.y, predicted, average="macro")
    assert rows.series("server/test", "f1_macro")[3] == pytest.approx(expected)
    loss = rows.series("server/test", "loss")
    assert rows.series("server/test", "perplexity") == {r: pytest.approx(np.exp(value)) for r, value in loss.items()}
    of_each = []
    for node in range(own.n):
        batch = own.rows(node)
        of_each.append(f1_score(batch.y, model.outputs(x, batch.x).argmax(1), average="macro"))
        assert rows.series("clients/train", "f1_macro", node)[3] == pytest.approx(of_each[-1])
    assert rows.series("clients/train", "f1_macro_mean")[3] == pytest.approx(np.mean(of_each))
    assert rows.series("clients/train", "f1_macro_worst10")[3] == pytest.approx(min(of_each)), "larger is better"
    undefined = rows.series("clients/train", "roc_auc_ovr_undefined")[3]
    assert undefined == sum(len(own.rows(node).y.unique()) < 10 for node in range(own.n)) > 0
    assert measured.manifest["larger_is_better"] == {
        "f1_macro": True, "perplexity": False, "roc_auc_ovr": True, "update_norm": False, "drift": False,
    }  # fmt: skip


def test_update_norm_and_drift_are_of_the_round(measured: RunDirectory) -> None:
    norms = rows_of(measured).series("server", "update_norm")
    assert sorted(norms) == [1, 2, 3], "the initial model is no update"
    drift = rows_of(measured).series("clients", "drift")
    assert sorted(drift) == [1, 2, 3] and 0 < drift[3] < 10
    sent, moved = list[torch.Tensor](), list[float]()

    class Listening(FedAvg):
        def round(self, s: Any, clients: Any) -> Any:
            dx = clients.each(self.client, s.x)
            sent.append(dx.stacked)
            moved.append(float(clients.mean(dx).norm()))
            return super().round(s, clients)

    run(replace(EACH, algorithm=Listening(), metrics=()), output=measured.path.parent / "listening", progress=False)
    assert list(norms.values()) == pytest.approx(moved, rel=1e-5)
    assert drift[1] == pytest.approx(float((sent[0] - sent[0].mean(0)).square().sum(1).mean().sqrt()), rel=1e-5)


def test_progress_counts_every_byte_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = run(replace(EACH, model=MLP((100,)), metrics=()), output=tmp_path / "run", progress=True)
    metrics = read_metrics(made.seed_path(0) / "metrics.jsonl")
    total = sum(metrics.series("total", name)[3] for name in ("bytes_up", "bytes_down")) / 1e6
    assert total > 0.5 and f"  {total:,.1f} MB" in capfd.readouterr().err


def test_metrics_change_no_other_row(measured: RunDirectory) -> None:
    plain = run(replace(EACH, metrics=()), output=measured.path.parent / "plain", progress=False)
    kept = [line for line in metrics_bytes(measured).splitlines() if not any(m.encode() in line for m in METRICS)]
    assert kept == metrics_bytes(plain).splitlines()


@pytest.mark.ray
def test_actors_measure_the_same(measured: RunDirectory) -> None:
    host = RayHost(fedsim.Ray(), progress=False, workers=workers())
    there = EACH.with_execution(backend="ray", block_size=0)
    directory = run(there, output=measured.path.parent / "ray", progress=False, host=host)
    rows, here = rows_of(directory), rows_of(measured)
    assert rows.metric.tolist() == here.metric.tolist()
    np.testing.assert_allclose(rows.value, here.value, rtol=1e-4, equal_nan=True)


def test_nodes_without_a_server(tmp_path: Path) -> None:
    gossip = replace(EACH, algorithm=DPSGD(), topology=Static(Ring()), metrics=("f1_macro",))
    rows = rows_of(run(gossip, output=tmp_path / "run", progress=False))
    each = [rows.series("nodes/test", "f1_macro", node)[3] for node in range(10)]
    assert rows.series("nodes/test", "f1_macro_mean")[3] == pytest.approx(np.mean(each))
    assert 0 < rows.series("average/test", "f1_macro")[3] <= 1


def test_a_metric_that_does_not_fit_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"the metric roc_auc is undefined for outputs \[\d+, 10\].*multi_class"):
        run(replace(EACH, metrics=("roc_auc",)), output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(scoring, "MOST_OUTPUTS", 1000)
    with pytest.raises(ConfigError, match=r"metrics need all 3,\d+ outputs of 3\d+ samples at once, more than 1,000"):
        run(EACH, output=tmp_path / "run", progress=False)


def test_comparisons_know_the_direction(measured: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    f1, perplexity = (fedsim.compare(measured, metric=name) for name in ("f1_macro", "perplexity"))
    assert not f1.lower and perplexity.lower
    values = rows_of(measured).series("server/test", "perplexity")
    assert perplexity.runs[0].best.mean == min(values.values()) and perplexity.runs[0].reached == 1
    assert f1.target is not None and f1.target < f1.runs[0].final.mean
    assert lower_is_better("perplexity_mean", {"perplexity": False}) and not lower_is_better("f1_mean", {"f1": True})
    assert main(["compare", str(measured.path), "--metric", "f1_marco"]) == 2
    assert "no metric 'f1_marco' in scope 'server/test'; did you mean 'f1_macro'? It rec" in capsys.readouterr().err


def test_the_curve_of_one_client(measured: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(measured.path), "--client", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["client"] == 7
    assert result["runs"][0]["final_mean"] == rows_of(measured).series("clients/train", "accuracy", 7)[3]
    compared = fedsim.compare(measured, client=7, metric="f1_macro")
    assert len(compared.runs[0].run.seeds[0].value) == 4 and compared.runs[0].run.scope == "clients/train"
    assert main(["compare", str(measured.path), "--client", "7"]) == 0
    assert "accuracy of client 7 on clients/train" in capsys.readouterr().out
    assert main(["compare", str(measured.path), "--client", "70"]) == 2
    assert "client is 70; expected 0 to 9" in capsys.readouterr().err


def test_the_command_line_takes_metrics(tmp_path: Path) -> None:
    flags = ["--partition.num_partitions", "3", "--model", "Logistic", "--rounds", "1", "--quiet"]
    for k, given in enumerate(("f1_macro,perplexity", "[f1_macro, perplexity]")):
        more = ["--metrics", given, "--output", str(tmp_path / str(k))]
        assert main(["run", "--algorithm", "FedAvg", *flags, *more]) == 0
    assert metrics_bytes(RunDirectory(tmp_path / "0")) == metrics_bytes(RunDirectory(tmp_path / "1"))
    assert RunDirectory(tmp_path / "0").config["metrics"] == ["f1_macro", "perplexity"]
