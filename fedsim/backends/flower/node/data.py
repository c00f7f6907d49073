"""Samples of a node: its part of the partition, which every node derives from the seed, or files in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.flower.protocol.calls import RefusedError
from fedsim.backends.flower.protocol.common import Common, of_text
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.controller.loading import resolve_data
from fedsim.controller.model import build_model
from fedsim.controller.prepare import Prepared, prepare
from fedsim.data import Dataset
from fedsim.data.catalogue import FORMATS
from fedsim.data.signature import MismatchError, fitted
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config
from fedsim.experiment.config.names import Imports, only_from
from fedsim.experiment.config.paths import OF_SAMPLES, paths
from fedsim.experiment.experiment import Data, Experiment
from fedsim.tree import Samples, count
from fedsim.types import Batch


class OneShard(Shards):
    """Shards of ``n`` clients with the samples of one."""

    def __init__(self, x: Samples, y: Samples, client: int, n: int) -> None:
        self._samples = x, y
        self.sizes = np.zeros(n, np.int64)
        self.sizes[client] = count(y)
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
        place: of this client in the federation, or among the newcomers.
        newcomer: True if it never trains, as the last clients with ``evaluation.unseen``.
    """

    experiment: Experiment
    federation: Federation
    initial: Tensor
    own: Batch
    classification: bool
    place: int
    newcomer: bool


def side_of(text: str, seed: int, settings: NodeSettings) -> NodeSide:
    """Build the node's side of an experiment, given as the ``text`` of ``fedsim.backends.flower.protocol.common``.

    Raises:
        RefusedError: the experiment names a module or path that is not allowed, or this node's data differ from the
            server's.
        FedsimError: the node's data cannot be read.
    """
    _, common = of_text(text)
    if not settings.client < common.total:
        raise RefusedError(f"this node is client {settings.client}, but there are clients 0 to {common.total - 1}")
    with only_from(Imports(settings.allow)):
        found = _of_partition if settings.data is None else _of_own
        try:
            experiment, model, initial, rows, own = found(text, seed, settings)
        except MismatchError as error:
            raise RefusedError(f"this node's data do not fit: {error.public}", error) from error
    if model.d != common.d:
        both = f"{model.d:,} parameters here and {common.d:,} at the server"
        raise RefusedError(f"the model has {both}; install the same")
    newcomer = settings.client >= common.n
    place, n = (settings.client - common.n, common.unseen) if newcomer else (settings.client, common.n)
    federation = Federation(
        model, OneShard(rows.x, rows.y, place, n), experiment.local, seed, Loop(),
        cohort_size=experiment.participation.expected(common.n), decay=experiment.decay,
    )  # fmt: skip
    return NodeSide(experiment, federation, initial, own, bool(common.data.classes), place, newcomer)


_Found = tuple[Experiment, Model, Tensor, Batch, Batch]


def _of_partition(text: str, seed: int, settings: NodeSettings) -> _Found:
    """Use the client's part of the experiment's data set."""
    common = of_text(text)[1]
    if not common.partition:
        raise RefusedError("every node brings its own data to this run; add to --node-config: data=\"/path\"")
    experiment, prepared, initial = _prepared(text, seed, replace(settings, client=0, store=Path()))
    if prepared.partition.hash != common.partition:
        raise RefusedError(
            f"the data set is partitioned to {prepared.partition.hash[:12]} here and to {common.partition[:12]} at the"
            " server; give both the same files and the same fedsim"
        )
    if (new := settings.client - common.n) >= 0 and prepared.unseen is not None:
        rows, own = (shards.rows(new) for shards in prepared.unseen)
    else:
        rows, own = (shards.rows(settings.client) for shards in (prepared.federation.shards, prepared.own))
    return experiment, prepared.federation.model, initial, rows, own


@lru_cache(maxsize=2)
def _prepared(text: str, seed: int, settings: NodeSettings) -> tuple[Experiment, Prepared, Tensor]:
    """Prepare the whole federation and its initial model; clients in one process, as in a simulation, share it."""
    config, common = of_text(text)
    experiment, data = _experiment(config, settings)
    found = resolve_data(replace(data, data_dir=None if settings.data_dir is None else str(settings.data_dir)))
    if isinstance(found, Dataset):
        found = fitted(found, common.data)
    prepared = prepare(replace(experiment, data=found), seed)
    return experiment, prepared, prepared.federation.model.vector()   # before local work overwrites the module


@lru_cache(maxsize=1)
def _of_own(text: str, seed: int, settings: NodeSettings) -> _Found:
    """Use all training samples in the node's own folder; its test samples serve as the holdout."""
    config, common = of_text(text)
    name = dict(config.get("data") or {}).get("name") if isinstance(config.get("data"), Mapping) else config.get("data")
    if name not in FORMATS or common.partition:
        raise RefusedError(
            f"this node has its own data, but the run divides the data set {name!r:.80} among nodes; run it with"
            f" --own-data and a file format ({', '.join(FORMATS)}), or start the node without data"
        )
    experiment, data = _experiment({**config, "data": _at(settings.data, config["data"], common)}, settings)
    dataset = resolve_data(data)
    assert isinstance(dataset, Dataset)
    dataset = fitted(dataset, common.data)
    device, dtype = experiment.execution.torch_device(), getattr(torch, experiment.dtype)
    train = dataset.train.to(device, dtype)
    own = dataset.test.to(device, dtype) if experiment.evaluation.holdout else train
    model = build_model(experiment, dataset, None, seed, device, dtype)
    return experiment, model, model.vector(), Batch(train.x, train.y), Batch(own.x, own.y)


def _at(path: Path | None, data: Any, common: Common) -> dict[str, Any]:
    """Settings of the experiment's data with the node's own files in place of the server's."""
    settings = dict(data) if isinstance(data, Mapping) else {"name": data}
    settings = {key: value for key, value in settings.items() if key not in OF_SAMPLES} | {"path": str(path)}
    if common.data.target is not None:                     # the last column there need not be the last one here
        settings["target"] = settings.get("target") or common.data.target
    return settings


def _experiment(config: Mapping[str, Any], settings: NodeSettings) -> tuple[Experiment, Data]:
    """Build the experiment, and its data with downloads disabled.

    Raises:
        RefusedError: it is invalid, or names a path that the operator has not given to experiments.
    """
    data = config.get("data")
    whole = {**config, "data": {**data, "data_dir": None} if isinstance(data, Mapping) else data}
    given = [path.resolve() for path in (*settings.files, *([settings.data] if settings.data else []))]
    for path in paths(whole):
        if not any(Path(path).resolve().is_relative_to(folder) for folder in given):
            raise RefusedError(
                f"the experiment names {path!r:.200}, which this node does not read for others; its operator can allow"
                f" that with --node-config '... files=\"{path:.200}\"', or give the node data of its own"
            )
    try:
        experiment = from_config(whole)
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    if not isinstance(experiment.data, Data):
        raise RefusedError(f"the experiment's data is a {type(experiment.data).__name__}; expected a name")
    if hub := experiment.data.options.get("hub"):
        raise RefusedError(
            f"the experiment's data is {hub!r:.80} of the Hugging Face hub, which this node does not fetch for others;"
            " save it to a folder that its operator gives to experiments, and name that by data.path"
        )
    return experiment, replace(experiment.data, download=False)
