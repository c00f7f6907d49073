"""Deterministic setup of one seed's federation: load, partition, apply skew, hold samples out, build the model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.arrays import distinct
from fedsim.clock.devices import Devices
from fedsim.controller import byzantine
from fedsim.controller.batch_norm import check_minibatches, check_statistics
from fedsim.controller.initial import start_from
from fedsim.controller.placement import place, seen
from fedsim.data import Dataset, Split, load
from fedsim.data.catalogue import options_of
from fedsim.data.dataset import PIECE
from fedsim.data.sources import data_directory
from fedsim.engine import nondeterministic
from fedsim.engine.augmentation import try_augmentation
from fedsim.engine.examine import examine, give_shapes
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES
from fedsim.engine.model import Model
from fedsim.engine.numerics import Numerics
from fedsim.engine.sharing import Sharing
from fedsim.engine.unpicklable import refused
from fedsim.errors import ConfigError, DataError, PartitionError, explained, many
from fedsim.experiment.experiment import Data, Experiment
from fedsim.experiment.measures import Metric
from fedsim.gossip import check, check_connected, mixing_matrix
from fedsim.models import losses
from fedsim.partition import NaturalIdPartitioner, Partition
from fedsim.partition.partition import OwnSamples
from fedsim.problems import PROBLEMS, Problem
from fedsim.tree import count, flat, shapes

UNDIVIDED = ("mushrooms", "w8a", "phishing", "german_scale", "australian")
"""LIBSVM sets published without a test split."""



@dataclass(frozen=True)
class Prepared:
    """One seed of an experiment, ready to run.

    Attributes:
        federation: model, shards, weights, seed.
        test: the test samples on the device.
        own: each client's evaluation samples, sorted by client: its training samples, or the held-out ones.
        own_kind: "train" or "holdout".
        partition: the partition in use.
        dataset: the data set.
        problem: the problem, if the data is one.
        unheld: classes of which no client has a sample.
        devices: devices of the clients, for a clock.
        attackers: Byzantine clients.
        triggered: test samples that bear the pattern of a backdoor, with its target as their class.
        remarks: on attackers and rule.
        metrics: metrics besides loss and accuracy.
        unseen: training and evaluation samples of clients that never train.
    """

    federation: Federation
    test: Split
    own: Shards
    own_kind: str
    partition: Partition
    dataset: Dataset
    problem: Problem | None
    unheld: Sequence[str] = ()
    devices: Devices | None = None
    attackers: Sequence[int] = ()
    triggered: Split | None = None
    remarks: Sequence[str] = ()
    metrics: tuple[Metric, ...] = ()
    unseen: tuple[Shards, Shards] | None = None

    @property
    def keeps_outputs(self) -> bool:
        """True if a metric needs all outputs of the samples."""
        return any(metric.of_outputs for metric in self.metrics)


def prepare(experiment: Experiment, seed: int) -> Prepared:
    """Build the federation of one seed, with the loop backend and the cohort size of the experiment.

    Raises:
        FedsimError: data missing or corrupt, partition infeasible, or the model does not fit the data.
    """
    source = resolve_data(experiment.data)
    problem = source if isinstance(source, Problem) else None
    dataset = source.dataset if isinstance(source, Problem) else source
    train = dataset.train
    if not count(dataset.test.y):
        raise ConfigError(f"data set {dataset.name!r} has no test samples; set some aside, as test_fraction does")
    if dataset.source is not None:
        partition: Partition = OwnSamples(dataset.source.sizes, {"name": "a function of the client"})
    else:
        partition = _partition(experiment, dataset, seed)
    if problem is not None and not _own_clients(partition, train):
        raise ConfigError(
            f"partition {experiment.division} does not keep the clients of the problem {dataset.name!r}, on which its"
            " optimum and its constants depend; leave partition out, or use NaturalIdPartitioner"
        )
    unequal = experiment.weights == "samples" and len(distinct(partition.sizes)) > 1
    changed = unequal or experiment.local.weight_decay or experiment.local.augment is not None
    if problem is not None and problem.f_min is not None and changed:
        raise ConfigError(
            f"the optimum of the problem {dataset.name!r} is that of the plain mean of its clients' objectives; leave"
            " out weights, local.weight_decay and local.augment, which change it"
        )
    if experiment.topology is not None:                    # an invalid matrix fails here, not in round 1
        with explained(f"{type(experiment.topology).__name__}.matrix"):
            check(mixing_matrix(experiment.topology, 1, seed, partition.n), 1, rows=False)
            check_connected(experiment.topology, seed, partition.n)
    device, dtype = experiment.execution.torch_device(), getattr(torch, experiment.dtype)
    k = seen(partition.n, experiment.evaluation.unseen)
    (shards, own), *others = place(experiment, dataset, partition, seed, device, dtype, (k, partition.n))
    partition = partition.first(k)
    if (most := experiment.concurrency or 0) > k:
        raise ConfigError(f"concurrency is {most}, and the run has {many(k, 'client')}; expected at most {k}")
    attackers, remarks = byzantine.attackers(experiment, seed, shards.sizes)
    byzantine.poison(experiment.attack, attackers, shards, dataset.classes, seed)
    weights = shards.sizes if experiment.weights == "samples" else None
    federation = Federation(
        build_model(experiment, dataset, problem, seed, device, dtype),
        shards,
        experiment.local,
        seed,
        Loop(),
        weights=weights,
        cohort_size=experiment.waiting.expected(experiment.participation.expected(partition.n)),
        decay=experiment.decay,
        topology=experiment.topology,
        memory=MEMORIES[experiment.execution.memory](device),
    )
    if federation.model.statistics:
        check_minibatches(federation, shards.sizes)
    kind = "holdout" if experiment.evaluation.holdout else "train"
    test, unheld = dataset.test.to(device, dtype), _unheld(dataset, partition)
    measures = _measures(experiment, dataset)
    devices = None if experiment.clock is None else experiment.clock.devices(partition.n, seed)
    remarks = [*remarks, *_partial(experiment, federation.cohort_size or 0, partition.n)]
    remarks += nondeterministic.remarks(federation.model.nondeterministic)
    triggered = byzantine.triggered(experiment.attack, test)
    return Prepared(
        federation, test, own, kind, partition, dataset, problem, unheld, devices, attackers, triggered, remarks,
        measures, others[0] if others else None,
    )  # fmt: skip


def check_partition(experiment: Experiment, first: Prepared, seed: int) -> None:
    """Check that another seed than that of ``first`` can be partitioned, before any seed is run.

    Raises:
        PartitionError: infeasible.
        ConfigError: the model cannot take some client's minibatch of one sample.
    """
    if first.dataset.source is not None:
        return
    partition = _partition(experiment, first.dataset, seed)
    if first.federation.model.statistics and not experiment.evaluation.holdout:
        sizes = partition.first(seen(partition.n, experiment.evaluation.unseen)).sizes
        check_minibatches(first.federation, sizes)


def _partition(experiment: Experiment, dataset: Dataset, seed: int) -> Partition:
    name = type(experiment.division).__name__
    with explained(f"{name}.partition"):
        partition: Any = experiment.division.partition(dataset.labels, dataset.train.client, seed)
    if not isinstance(partition, Partition):
        raise PartitionError(f"{name}.partition returned a {type(partition).__name__}; expected a Partition")
    samples = count(dataset.train.y)
    if len(partition.indices) and (last := partition.indices.max()) >= samples:
        raise PartitionError(f"{name} gives a client sample {last}, and the data set has {samples}: 0 to {samples - 1}")
    return partition


def _partial(experiment: Experiment, cohort: float, n: int) -> list[str]:
    """A remark on a method of fixed workers, of which only some take part in a round."""
    if not getattr(experiment.algorithm, "fixed_workers", False) or cohort >= n:
        return []
    name = type(experiment.algorithm).__name__
    return [
        f"{name} is a method of fixed workers, and {cohort:g} of {n} take part in a round: it steps with the mean of"
        " each cohort, which its paper does not study; with all of them: --sampling.fraction 1"
    ]


def _measures(experiment: Experiment, dataset: Dataset) -> tuple[Metric, ...]:
    if not dataset.classes and any(metric.name == "perplexity" for metric in experiment.measures):
        raise ConfigError(f"metrics has perplexity, which is of classes, and {dataset.name!r} has none; leave it out")
    return experiment.measures


def _unheld(dataset: Dataset, partition: Partition) -> list[str]:
    if not dataset.classes or dataset.labels.ndim != 1 or dataset.source is not None:    # classes are one tensor
        return []
    gone = np.flatnonzero(np.bincount(dataset.labels))
    for some in np.array_split(partition.indices, len(partition.indices) // PIECE + 1):
        gone = np.setdiff1d(gone, dataset.labels[some])
        if not len(gone):                                  # as a rule after the first
            break
    return [dataset.label_names[k] if dataset.label_names else str(k) for k in gone]


def _own_clients(partition: Partition, train: Split) -> bool:
    own = NaturalIdPartitioner().partition(train.y.numpy(), train.client, 0)
    return partition.hash == own.hash


def resolve_data(data: Data | Dataset | Problem) -> Dataset | Problem:
    """Load the data set or problem that ``data`` names."""
    if not isinstance(data, Data):
        return data
    versions = tuple(_changed(value) for name, value in data.options.items() if name.endswith("path"))
    return _load(data.name, str(data_directory(data.data_dir)), data.download, _frozen(data.options), versions)


def _changed(value: Any) -> int:
    """Hash of the sizes and times of change of a file, or of the files in a folder; 0 if there is none."""
    try:
        path = Path(value).expanduser()
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        return hash(tuple(sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)))
    except (OSError, TypeError, ValueError):
        return 0


@lru_cache(maxsize=2)
def _load(
    name: str, data_dir: str, download: bool, options: tuple[tuple[str, Any], ...], versions: tuple[int, ...]
) -> Dataset | Problem:
    """Load data; the cache lets the seeds of a comparison share it until a file named in its options changes."""
    if name not in PROBLEMS:
        return load(name, data_dir, download=download, **dict(options))
    settings = dict(options)
    if name == "logistic_regression":
        source = settings.pop("data", "a9a")
        whole: dict[str, Any] = {"test_fraction": 0.0} if source in UNDIVIDED else {}   # theory is about all rows
        settings["data"] = load(source, data_dir, download=download, **whole)
    try:
        return PROBLEMS[name](**settings)
    except TypeError as error:
        raise ConfigError(f"data {name!r}: {error}; see `fedsim run --data {name} --help` for its options") from None


def data_hash(dataset: Dataset) -> str:
    """SHA-256 of the samples of a data set; of clients that are not in memory, of their numbers and the first one's."""
    digest = hashlib.sha256()
    if dataset.source is not None:
        digest.update(dataset.source.sizes.data)
    for split in (dataset.train, dataset.test):
        for tree in (split.x, split.y):
            if not isinstance(tree, Tensor):               # its names and nesting
                digest.update(repr(shapes(tree)).encode())
        for tensor in flat((split.x, split.y)):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def build_model(
    experiment: Experiment,
    dataset: Dataset,
    problem: Problem | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """Build the model of an experiment, with initial values from a file or that follow from the seed, and try it on
    training samples.

    Raises:
        ConfigError: the file is not one of this model, or the augmentation does not fit the samples.
        CodeError: a user's augmentation raised.
        ModelError: see ``fedsim.engine.examine.examine``; the model has running statistics that the method does not
            average; or, where that is refused, it has no deterministic kernel.
    """
    if experiment.local.augment is not None:
        try_augmentation(experiment.local.augment, dataset.train.first(6).to(device, dtype).x)
    model = _built(experiment, dataset, problem, seed, device, dtype)
    if experiment.init is not None:
        start_from(model.module, experiment.init)
    with nondeterministic.tolerated(device):
        examine(model, dataset.train)
    if model.numerics.strict:
        nondeterministic.refuse(model.nondeterministic)
    if experiment.share.layers != "all":
        shared = experiment.share.mask(model.module, model.names)
        if not all(shared):
            model.sharing = Sharing(shared, model.sizes, model.vector(), experiment.share)
    if experiment.local.micro_batch is not None and (model.mixes or model.statistics):
        what = "has BatchNorm in training mode" if model.statistics else "mixes the samples of a minibatch in training"
        raise ConfigError(
            f"local.micro_batch is {experiment.local.micro_batch}, and the model or its loss {what}: gradients of parts"
            " of a minibatch do not sum to its gradient. Leave it out, or use fedsim.models.group_norm(model)"
        )
    if model.statistics:
        check_statistics(experiment)
    return model


def _built(
    experiment: Experiment,
    dataset: Dataset,
    problem: Problem | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    numerics = Numerics(experiment.precision, experiment.execution.deterministic == "strict")
    made: dict[str, Any] = {"device": device, "dtype": dtype, "numerics": numerics}
    if problem is not None:
        return Model(copy.deepcopy(problem.module), problem.loss, problem.penalty, **made)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds.bits(seed, "model", 0, 0)) >> 1)
        if isinstance(experiment.model, nn.Module):
            module = _copied(experiment.model, "model")    # a copy: the user's initial values stay unchanged
        else:
            module = experiment.model.build(dataset.input_shape, dataset.classes)
        give_shapes(module, dataset.train.first(1).to(torch.device("cpu"), torch.get_default_dtype()).x)   # by the seed
        loss = loss_of(experiment, dataset)
    return Model(module, loss, **made)


def _copied(module: nn.Module, what: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise refused(error, "be copied", {what: module}, copy.deepcopy) from error


def loss_of(experiment: Experiment, dataset: Dataset) -> Callable[[Tensor, Tensor], Tensor]:
    """The per-sample loss of an experiment."""
    if isinstance(experiment.loss, nn.Module):
        return _copied(experiment.loss, "loss")
    if isinstance(experiment.loss, type):
        with explained(f"the loss {experiment.loss.__qualname__}"):
            return experiment.loss()  # type: ignore[no-any-return]
    if callable(experiment.loss):
        return experiment.loss
    name = experiment.loss
    if name == "auto":
        name = "cross_entropy" if dataset.classes else "squared"
    if name == "cross_entropy" and dataset.classes == 1:
        (label,) = dataset.label_names or ("the same",)
        raise DataError(
            f"all labels are {label}: there is nothing to learn; expected two classes or more"
            + _other_targets(experiment)
        )
    return getattr(losses, name)  # type: ignore[no-any-return]


def _other_targets(experiment: Experiment) -> str:
    """How to have other targets than labels that are all the same, by an option that the data set has."""
    name = experiment.data.name if isinstance(experiment.data, Data) else ""
    known, fixes = options_of(name) if name else [], []
    if "target" in known:
        fixes.append("if another column holds the labels, name it with --data.target")
    if "regression" in known:
        fixes.append("for regression set --data.regression true")
    if name == "npz":
        fixes.append("to predict numbers, save y as real numbers: y.astype(float)")
    return "".join(f"; {fix}" for fix in fixes)


def _frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in options.items()))
