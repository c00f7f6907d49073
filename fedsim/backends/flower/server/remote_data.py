"""Federation as the server sees it: model, test set, and the number of samples of each client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fedsim.backends.flower.protocol.common import Common
from fedsim.controller.loading import resolve_data
from fedsim.controller.model import build_model
from fedsim.controller.placement import seen
from fedsim.controller.prepare import Prepared
from fedsim.data import Dataset
from fedsim.data.catalogue import FORMATS
from fedsim.data.signature import signature
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.errors import DeployError
from fedsim.experiment.experiment import Data, Experiment
from fedsim.partition.partition import OwnSamples


class Elsewhere(Shards):
    """Shards stored at the clients; only their sizes are known."""

    def __init__(self, sizes: np.ndarray) -> None:
        self._samples = torch.empty(0), torch.empty(0)
        self.sizes = sizes
        self.offsets = np.r_[0, np.cumsum(sizes)]


def without_samples(prepared: Prepared) -> Prepared:
    """Remove the clients' samples from a prepared federation."""
    federation = replace(prepared.federation, shards=Elsewhere(prepared.federation.shards.sizes))
    return replace(prepared, federation=federation, own=Elsewhere(prepared.own.sizes), unseen=None)


def common_of(prepared: Prepared) -> Common:
    """Metadata of a prepared federation, to share with all nodes."""
    d, n, partition = prepared.federation.model.d, prepared.partition.n, prepared.partition.hash
    unseen = 0 if prepared.unseen is None else prepared.unseen[0].n
    return Common(d, n, unseen, partition, signature(prepared.dataset, same=True))


def of_own_data(experiment: Experiment, seed: int, n: int, sizes_of: Callable[[Common], np.ndarray]) -> Prepared:
    """Prepare a federation of ``n`` nodes with their own data. The server's data set defines shapes and classes, and
    its test samples evaluate the server's model.

    Args:
        experiment: its partition is ignored.
        seed: root of all randomness.
        n: number of nodes, of which `evaluation.unseen` do not train.
        sizes_of: requests the numbers of samples of the clients that train, int64.

    Raises:
        DeployError: the experiment's data is not in a file format.
    """
    data = experiment.data
    if not isinstance(data, Data) or data.name not in FORMATS:
        raise DeployError(
            f"nodes bring their own data, but the experiment's is {getattr(data, 'name', data)!r}; expected a file"
            f" format ({', '.join(FORMATS)}), with a path to the server's own files"
        )
    dataset = resolve_data(data)
    assert isinstance(dataset, Dataset)
    device, dtype = experiment.execution.torch_device(), getattr(torch, experiment.dtype)
    model = build_model(experiment, dataset, None, seed, device, dtype)
    k = seen(n, experiment.evaluation.unseen)
    sizes = sizes_of(Common(model.d, k, n - k, "", signature(dataset)))
    federation = Federation(
        model, Elsewhere(sizes), experiment.local, seed, Loop(),
        weights=sizes if experiment.weights == "samples" else None,
        cohort_size=experiment.participation.expected(k), decay=experiment.decay, topology=experiment.topology,
    )  # fmt: skip
    partition = OwnSamples(sizes, {"name": "own data of every node"})
    kind = "holdout" if experiment.evaluation.holdout else "train"
    test, metrics = dataset.test.to(device, dtype), experiment.measures
    return Prepared(federation, test, Elsewhere(sizes), kind, partition, dataset, None, metrics=metrics)
