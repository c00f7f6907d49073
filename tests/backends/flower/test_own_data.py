"""The example with a user's own module, and CSV files that only their node reads."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from algorithms import FedAvg
from fedsim import Experiment, trained_model
from fedsim.backends.flower.node.data import _at, side_of
from fedsim.backends.flower.protocol.common import Common, as_text
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.server.remote_data import of_own_data
from fedsim.backends.flower.server.server_app import experiment_of, serve
from fedsim.controller.prepare import prepare
from fedsim.data import load
from fedsim.data.signature import signature
from fedsim.errors import DeployError
from fedsim.experiment.experiment import Data
from fedsim.models import MLP
from fedsim.partition import IidPartitioner
from fedsim.record.metrics import read_metrics
from tests.backends.flower.grids import FakeGrid, Node
from tests.backends.flower.test_parity import metrics

EXAMPLE = Path(__file__).parents[3] / "experiments/flower/own_data"
MODULE = "experiments.flower.own_data.hospitals"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hospitals", str(folder)])
        runpy.run_path(str(EXAMPLE / "hospitals.py"), run_name="__main__")
    return folder


def config(data: Path, **others: Any) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((EXAMPLE / "hospitals.yaml").read_text())
    return {**made, "data": {"name": "csv", "path": str(data / "server")}, **others}


def run(folder: Path, data: Path, config: dict[str, Any], **settings: Any) -> Path:
    told = [{"partition-id": i, "store": str(folder / f"{i}"), "allow": MODULE} for i in range(3)]
    grid = FakeGrid({i: Node({**told[i], "data": str(data / f"nodes/hospital-{i}")}) for i in range(3)})
    said = {"experiment": yaml.safe_dump(config), "output": str(folder / "run"), "own-data": 3, "patience": 1.0}
    return serve(grid, {**said, **settings}, say=lambda text: None).path


def test_own_samples_take_the_place_of_the_servers_alone() -> None:
    common = Common(1, 2, 0, "", signature(load("digits")))
    texts = {"name": "huggingface", "path": "/server/texts", "data_dir": "/server", "tokenizer_path": "/tokenizer"}
    assert _at(Path("/own"), texts, common) == {"name": "huggingface", "path": "/own", "tokenizer_path": "/tokenizer"}


@pytest.mark.slow
def test_the_example(data: Path, tmp_path: Path) -> None:
    rows = metrics(run(tmp_path, data, config(data)))
    last = {(row["scope"], row["metric"], row["node"]): row["value"] for row in rows if row["round"] == 5}
    assert last["server/test", "accuracy", None] > 0.9 and last["clients/train", "accuracy_mean", None] > 0.9
    losses = [last["clients/train", "loss", i] for i in range(3)]
    assert last["clients/train", "loss_mean", None] == pytest.approx(np.mean(losses))
    lines = [len((data / f"nodes/hospital-{i}/measurements.csv").read_text().splitlines()) - 1 for i in range(3)]
    trained = [size - round(0.2 * size) for size in lines]
    assert last["total", "gradient_evaluations", None] == pytest.approx(5 * 2 * sum(trained), abs=5 * 2 * 3)


@pytest.mark.slow
def test_a_node_that_does_not_train_evaluates_on_its_own_data(data: Path, tmp_path: Path) -> None:
    evaluation = {"every": 1, "clients_every": 1, "holdout": 0.2, "unseen": 0.34, "fine_tune": 3}
    rows = metrics(run(tmp_path, data, config(data, rounds=2, evaluation=evaluation)))
    nodes = {scope: {row["node"] for row in rows if row["scope"] == f"{scope}/holdout"} - {None} for scope in
             ("clients", "tuned", "unseen", "unseen_tuned")}
    assert nodes == {"clients": {0, 1}, "tuned": {0, 1}, "unseen": {0}, "unseen_tuned": {0}}
    trained = {row["node"] for row in rows if row["metric"] == "gradient_evaluations" and row["value"] > 0}
    assert trained == {None, 0, 1}
    loss = {row["scope"]: row["value"] for row in rows if row["metric"] == "loss_mean" and row["round"] == 2}
    assert loss["unseen_tuned/holdout"] < loss["unseen/holdout"]


def reorder(file: Path, columns: Callable[[list[str]], list[str]]) -> None:
    """Write the columns of a CSV file, header included, in another order."""
    rows = [line.split(",") for line in file.read_text().splitlines()]
    order = [rows[0].index(name) for name in columns(rows[0])]
    file.write_text("\n".join(",".join(row[k] for k in order) for row in rows) + "\n")


def test_the_order_of_a_nodes_columns_does_not_matter(data: Path, tmp_path: Path) -> None:
    """Columns that were matched by position trained on radii as if they were textures, without a word."""
    expected = metrics(run(tmp_path / "one", data, config(data, rounds=1)))
    shutil.copytree(data, tmp_path / "data")
    reorder(tmp_path / "data/nodes/hospital-1/measurements.csv", lambda names: [names[1], names[0], *names[2:]])
    reorder(tmp_path / "data/nodes/hospital-2/measurements.csv", lambda names: names[::-1])
    assert metrics(run(tmp_path / "other", tmp_path / "data", config(data, rounds=1))) == expected


def test_a_holdout_is_what_the_nodes_held_back(data: Path, tmp_path: Path) -> None:
    holdout = config(data, evaluation={"every": 1, "holdout": 0.2}, rounds=1)
    scopes = {row["scope"] for row in metrics(run(tmp_path, data, holdout))}
    assert "clients/holdout" in scopes and "clients/train" not in scopes


@pytest.mark.parametrize("algorithm", ["Scaffold", "EF21"])
def test_the_model_can_be_had(algorithm: str, data: Path, tmp_path: Path) -> None:
    """Though the samples are elsewhere: it scores as the run says. Nobody asks for a partition of the server's."""
    evaluation = {"every": 1, "holdout": 0.2, "unseen": 0.34}
    method = {"algorithm": {"name": algorithm}, "local": {"batch_size": 16, "epochs": 1}}
    path = run(tmp_path, data, config(data, **method, rounds=2, evaluation=evaluation))
    table = load("csv", path=str(data / "server"))
    with torch.no_grad():
        loss = cross_entropy(trained_model(path)(table.test.x), table.test.y)
    told = read_metrics(path / "seed-0/metrics.jsonl").series("server/test", "loss")[2]
    assert float(loss) == pytest.approx(told, rel=1e-5)


def test_targets_of_regression_are_of_the_experiments_type_on_every_side(tmp_path: Path) -> None:
    """Loaded as float32, as inputs are, and cast with them; labels of classes stay whole numbers."""
    (tmp_path / "table.csv").write_text("a,b,target\n" + "".join(f"{i},{i % 3},{i / 7}\n" for i in range(40)))
    data = Data("csv", options={"path": str(tmp_path), "target": "target", "regression": True})
    experiment = Experiment(FedAvg(), data=data, partition=IidPartitioner(2), model=MLP((4,)), dtype="float64")
    sized: list[Common] = []
    prepared = of_own_data(experiment, 0, 2, lambda common: (sized.append(common), np.array([20, 20]))[1])
    text = as_text(experiment, sized[0])
    side = side_of(text, 0, NodeSettings(client=0, store=tmp_path / "store", data=tmp_path))
    simulated = prepare(experiment, 0)
    for samples in (side.federation.shards, side.own, prepared.test, simulated.federation.shards, simulated.test):
        assert samples.x.dtype == samples.y.dtype == torch.float64
    assert not side.classification


def test_an_experiment_file_is_searched_for_beside_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower puts the folder of an app on ``sys.path``."""
    monkeypatch.syspath_prepend(EXAMPLE)
    assert experiment_of("hospitals.yaml").rounds == 5


def test_what_cannot_be(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="nodes bring their own data, but the experiment's is 'digits'"):
        run(tmp_path, data, config(data) | {"data": "digits"})
    odd = tmp_path / "server"
    odd.mkdir()
    text = (data / "server/measurements.csv").read_text().replace("malignant", "bad")
    (odd / "measurements.csv").write_text(text)
    strange = {**config(data), "data": {"name": "csv", "path": str(odd)}}
    with pytest.raises(DeployError, match=r"0 of 3 clients connected .* 1 label that .* lack, which have bad, benign"):
        run(tmp_path, data, strange)
