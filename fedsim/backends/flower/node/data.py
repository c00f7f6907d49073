"""Samples of a node: its part of the partition, which every node derives from the seed, or files in its own folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.flower.protocol.calls import parsed
from fedsim.backends.flower.protocol.common import Common
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.controller.prepare import Prepared, build_model, prepare, resolve_data
from fedsim.data import Dataset
from fedsim.data.catalogue import FORMATS
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config
from fedsim.experiment.config.names import only_from
from fedsim.experiment.experiment import Data, Experiment
from fedsim.types import Batch


class OneShard(Shards):
    """Shards of ``n`` clients with the samples of one."""

    def __init__(self, x: Tensor, y: Tensor, client: int, n: int) -> None:
        self.x, self.y = x, y
        self.sizes = np.zeros(n, np.int64)
        self.sizes[client] = len(x)
        self.offsets = np.r_[0, np.cumsum(self.sizes)]


@dataclass(frozen=True)
class NodeSide:
    """Federation as one client sees it.

    Attributes:
        experiment: the experiment.
        federation: with this client's samples only.
        initial: the initial model ``[d]``, derived from the seed.
        own: samples on which the client evaluates.
        classification: True if targets are classes.
    """

    experiment: Experiment
    federation: Federation
    initial: Tensor
    own: Batch
    classification: bool


def side_of(text: str, seed: int, common: Common, settings: NodeSettings) -> NodeSide:
    """Build the node's side of the experiment in the JSON ``text``.

    Raises:
        FedsimError: the experiment names a module that is not allowed, or the data is missing or does not match
            ``common``.
    """
    if not settings.client < common.n:
        raise DeployError(f"this node is client {settings.client}, but there are clients 0 to {common.n - 1}")
    with only_from(settings.allow):
        found = _of_partition if settings.data is None else _of_own
        experiment, model, initial, rows, own = found(text, seed, common, settings)
    if model.d != common.d:
        raise DeployError(f"the model has {model.d:,} parameters here and {common.d:,} at the server; install the same")
    federation = Federation(
        model, OneShard(rows.x, rows.y, settings.client, common.n), experiment.local, seed, Loop(),
        cohort_size=experiment.participation.expected(common.n), decay=experiment.decay,
    )  # fmt: skip
    return NodeSide(experiment, federation, initial, own, bool(common.classes))


_Found = tuple[Experiment, Model, Tensor, Batch, Batch]


def _of_partition(text: str, seed: int, common: Common, settings: NodeSettings) -> _Found:
    """Use the client's part of the experiment's data set."""
    if not common.partition:
        raise DeployError("every node brings its own data to this run; add to --node-config: data=\"/path\"")
    experiment, prepared, initial = _prepared(text, seed, settings.data_dir, settings.allow)
    if prepared.partition.hash != common.partition:
        raise DeployError(
            f"the data set is partitioned to {prepared.partition.hash[:12]} here and to {common.partition[:12]} at the"
            " server; give both the same files and the same fedsim"
        )
    _check_shape(prepared.dataset, common)
    rows, own = (shards.rows(settings.client) for shards in (prepared.federation.shards, prepared.own))
    return experiment, prepared.federation.model, initial, rows, own


@lru_cache(maxsize=2)
def _prepared(
    text: str, seed: int, data_dir: Path | None, allow: tuple[str, ...]
) -> tuple[Experiment, Prepared, Tensor]:
    """Prepare the whole federation and its initial model; clients in one process, as in a simulation, share it."""
    experiment, data = _experiment(text)
    experiment = replace(experiment, data=replace(data, data_dir=None if data_dir is None else str(data_dir)))
    prepared = prepare(experiment, seed)
    return experiment, prepared, prepared.federation.model.vector()   # before local work overwrites the module


def _experiment(text: str) -> tuple[Experiment, Data]:
    """Parse the experiment, and its data with downloads disabled."""
    experiment = from_config(parsed(text, "experiment"))
    if not isinstance(experiment.data, Data):
        raise DeployError(f"the experiment's data is a {type(experiment.data).__name__}; expected a name")
    return experiment, replace(experiment.data, download=False)


@lru_cache(maxsize=1)
def _of_own(text: str, seed: int, common: Common, settings: NodeSettings) -> _Found:
    """Use all training samples in the node's own folder; its test samples serve as the holdout."""
    experiment, data = _experiment(text)
    if data.name not in FORMATS or common.partition:
        raise DeployError(
            f"this node has its own data ({settings.data}), but the run divides the data set {data.name!r} among nodes;"
            f" run it with --own-data and a file format ({', '.join(FORMATS)}), or start the node without data"
        )
    dataset = resolve_data(replace(data, options={**data.options, "path": str(settings.data)}))
    assert isinstance(dataset, Dataset)
    _check_shape(dataset, common)
    dataset = _relabelled(dataset, common)
    device, dtype = experiment.execution.torch_device(), getattr(torch, experiment.dtype)
    train = dataset.train.to(device, dtype)
    own = dataset.test.to(device, dtype) if experiment.evaluation.holdout else train
    model = build_model(experiment, dataset, None, seed, device, dtype)
    return experiment, model, model.vector(), Batch(train.x, train.y), Batch(own.x, own.y)


def _check_shape(dataset: Dataset, common: Common) -> None:
    if dataset.input_shape != common.input_shape:
        raise DeployError(
            f"this node's samples have shape {list(dataset.input_shape)}, the experiment's {list(common.input_shape)};"
            " give the node data of that shape"
        )
    if bool(dataset.classes) != bool(common.classes) or dataset.classes > common.classes:
        raise DeployError(f"this node's data has {_kinds(dataset.classes)}, the experiment's {_kinds(common.classes)}")


def _kinds(classes: int) -> str:
    return f"{classes} classes" if classes else "numbers as targets"


def _relabelled(dataset: Dataset, common: Common) -> Dataset:
    """Renumber the classes as at the server: a node need not have samples of every class."""
    if dataset.label_names is None or common.labels is None:
        return replace(dataset, classes=common.classes)
    if strange := sorted(set(dataset.label_names) - set(common.labels)):
        raise DeployError(
            f"this node's data has the label {strange[0]!r}; the experiment's are {', '.join(common.labels)}"
        )
    number = torch.tensor([common.labels.index(label) for label in dataset.label_names])
    train, test = (split._replace(y=number[split.y]) for split in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, classes=common.classes, label_names=common.labels)
