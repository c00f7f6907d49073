"""The server's half of a federation: model and test set, and of the clients' samples only how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fedsim.backends.flower.protocol.common import Common
from fedsim.controller.prepare import Prepared, build_model, resolve_data
from fedsim.data import Dataset
from fedsim.data.catalogue import FORMATS
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.errors import DeployError
from fedsim.experiment.experiment import Data, Experiment
from fedsim.partition import Partition


class Elsewhere(Shards):
    """Shards that are with their clients; here are their sizes."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.x = self.y = torch.empty(0)
        self.sizes = sizes
        self.offsets = np.r_[0, np.cumsum(sizes)]


def without_samples(prepared: Prepared) -> Prepared:
    """The same without the clients' samples."""
    federation = replace(prepared.federation, shards=Elsewhere(prepared.federation.shards.sizes))
    return replace(prepared, federation=federation, own=Elsewhere(prepared.own.sizes))


def common_of(prepared: Prepared) -> Common:
    """What all clients' data has in common."""
    dataset = prepared.dataset
    d, n, partition = prepared.federation.model.d, prepared.partition.n, prepared.partition.hash
    return Common(dataset.input_shape, dataset.classes, dataset.label_names, d, n, partition)


def of_own_data(experiment: Experiment, seed: int, n: int, sizes_of: Callable[[Common], np.ndarray]) -> Prepared:
    """The federation of ``n`` clients that bring their own data; the server's data set says what it looks like, and its
    test samples are what the server's model is measured on.

    Args:
        experiment: its partition is not used.
        seed: root of all randomness.
        n: number of clients.
        sizes_of: asks the clients how many samples they have, int64 ``[n]``.
    """
    data = experiment.data
    if not isinstance(data, Data) or data.name not in FORMATS:
        raise DeployError(
            f"nodes bring their own data, but the experiment's is {getattr(data, 'name', data)!r}; expected a file"
            f" format ({', '.join(FORMATS)}), whose path leads here to the server's own files"
        )
    dataset = resolve_data(data)
    assert isinstance(dataset, Dataset)
    device, dtype = experiment.execution.torch_device(), getattr(torch, experiment.dtype)
    model = build_model(experiment, dataset, None, seed, device, dtype)
    sizes = sizes_of(Common(dataset.input_shape, dataset.classes, dataset.label_names, model.d, n, ""))
    federation = Federation(
        model, Elsewhere(sizes), experiment.local, seed, Loop(),
        weights=sizes if experiment.weights == "samples" else None,
        cohort_size=experiment.participation.expected(n), decay=experiment.decay, topology=experiment.topology,
    )  # fmt: skip
    partition = Partition(np.arange(sizes.sum()), np.r_[0, np.cumsum(sizes)], {"name": "own data of every node"})
    kind = "holdout" if experiment.evaluation.holdout else "train"
    return Prepared(federation, dataset.test.to(device, dtype), Elsewhere(sizes), kind, partition, dataset, None)
