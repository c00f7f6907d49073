"""The model that a run has trained, as an ordinary module of PyTorch."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.clients import cohort
from fedsim.controller.initial import check_unchanged
from fedsim.controller.keeping import method_of
from fedsim.controller.personal import kept_of_models, personal_model
from fedsim.controller.prepare import Prepared, prepare
from fedsim.controller.resuming import check_model
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config
from fedsim.experiment.config.write import only_in_python
from fedsim.experiment.experiment import Experiment
from fedsim.partition.partition import OwnSamples, Partition
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import read_metrics
from fedsim.record.owned import read_owned
from fedsim.record.state import restore
from fedsim.tree import fetched
from fedsim.types import Kept
from fedsim.values import Vector


def trained(
    run: RunDirectory, seed: int | None = None, node: int | None = None, experiment: Experiment | None = None
) -> tuple[nn.Module, int]:
    """Return the module of a run's latest checkpoint, on the CPU and in eval mode, and the round of the checkpoint.

    Args:
        run: the run.
        seed: one of its seeds; the first by default.
        node: the client whose own model to return, without a server or where clients have personal models; by default
            the server's model, or the weighted average of the honest nodes' models.
        experiment: needed if the run's model or data were made in Python.

    Raises:
        RunError: the run has no checkpoint, its nodes keep their models, or the module has changed.
        ConfigError: there is no such seed or node, or ``experiment`` is missing for parts made in Python.
    """
    seeds = [int(name) for name in run.manifest["status"]]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(f"{run.path} has no seed {seed}; expected one of {', '.join(map(str, seeds))}")
    if experiment is None and (places := only_in_python(run.config)):
        raise ConfigError(
            f"{run.path} has a part made in Python ({', '.join(places)}), which its config.yaml cannot hold; give its"
            f" experiment: fedsim.trained_model({str(run.path)!r}, experiment=experiment)"
        )
    experiment = (experiment or from_config(run.config)).with_execution(device="cpu")
    check_unchanged(experiment.init, run.manifest, run.path)
    with run.open_seed(seed) as record:                    # no other process may write checkpoints meanwhile
        loaded = checkpoint.load_latest(record.checkpoints)
    if loaded is None:
        raise RunError(f"{run.path}, seed {seed}, has no checkpoint; run or resume it first")
    deployed = loaded.meta["backend"].get("backend") == "flower"
    own = _own_data(run, seed) if deployed else None
    if own is not None:                                    # those that do not train are not in the record
        experiment = replace(experiment, evaluation=replace(experiment.evaluation, unseen=0.0, holdout=0.0))
    prepared = prepare(experiment, seed, own)
    fed = prepared.federation
    check_model(run, fed.model)
    begun = method_of(experiment, fed.model).init(fed.model.shared(), cohort(fed, 0))
    if deployed and isinstance(begun.x, Kept):
        raise RunError(f"{run.path} was deployed without a server; its nodes keep their models")
    if deployed and node is not None and kept_of_models(prepared, begun) is not None:
        what = f"model of client {node} stays" if fed.model.sharing is None else f"layers of client {node} stay"
        raise RunError(f"{run.path} was deployed, and the {what} with it; leave out the node")
    _note_missing(run, seed, loaded.round)
    return _module(fed.model, vector_of(prepared, restore(begun, loaded), run, node)), loaded.round


def _own_data(run: RunDirectory, seed: int) -> Partition | None:
    """Stand-in for the samples of a deployment's nodes where these have data of their own: as many, each the first of
    the server's; None where the nodes divided the experiment's data set.
    """
    if (owned := read_owned(run.seed_path(seed))) is None:
        return None
    own = OwnSamples(owned.sizes, {})
    if own.hash != run.manifest["partition_hash"].get(str(seed)):
        return None
    return Partition(np.zeros(own.offsets[-1], np.int64), own.offsets, {})


def vector_of(prepared: Prepared, state: Any, run: RunDirectory, node: int | None = None) -> Vector:
    """The model ``[d]`` of a state: the server's or the average of honest nodes, or a node's own.

    Raises:
        ConfigError: no such node, or all have the server's model.
    """
    fed, x, own = prepared.federation, state.x, personal_model(prepared, state)
    if isinstance(x, Kept):
        honest = np.where(np.isin(np.arange(x.n), prepared.attackers), 0.0, fed.p)
        return _of_node(x, node, honest / honest.sum())
    if node is None:
        return fed.model.whole(fetched(x))
    if own is None:
        raise ConfigError(f"{run.path} has one model, at its server; leave out the node")
    return own(_existing(node, fed.shards.n))


def _note_missing(run: RunDirectory, seed: int, round: int) -> None:
    """Warn if a finished seed has lost the checkpoint of its last round."""
    if run.manifest["status"][str(seed)]["state"] != "finished":
        return
    last = int(read_metrics(run.seed_path(seed) / "metrics.jsonl").round.max(initial=0))
    folder = run.seed_path(seed) / "checkpoints"
    if round < last and not (folder / f"round-{last:06d}").exists():           # a corrupt one has been told of
        text = f"the checkpoint of round {last} in {folder} is missing"
        warnings.warn(text, checkpoint.CheckpointWarning, stacklevel=3)


def _of_node(x: Kept[Vector], node: int | None, p: np.ndarray) -> Vector:
    """The model of one node, or the average with weights ``p``."""
    if node is not None:
        return x[_existing(node, x.n)]
    average = torch.zeros_like(x[0])
    for i, weight in enumerate(p.tolist()):
        average += weight * x[i]
    return average


def _existing(node: int, n: int) -> int:
    if not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < n:
        raise ConfigError(f"node is {node!r}; expected 0 to {n - 1}")
    return node


def _module(model: Any, x: Vector) -> nn.Module:
    module: nn.Module = model.load(x)
    for parameter in module.parameters():                  # memory of their own: x is one vector
        parameter.data = parameter.data.clone()
    return module.eval()
