"""Deterministic setup of one seed's federation: load, partition, apply skew, hold samples out, build the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.arrays import distinct
from fedsim.clock.devices import Devices
from fedsim.controller import byzantine
from fedsim.controller.batch_norm import check_minibatches
from fedsim.controller.loading import problem_and_dataset
from fedsim.controller.model import build_model
from fedsim.controller.placement import place, seen
from fedsim.data import Dataset, Split
from fedsim.data.dataset import PIECE
from fedsim.engine import nondeterministic
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES
from fedsim.errors import ConfigError, PartitionError, explained, many
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.measures import Metric
from fedsim.gossip import check, check_connected, mixing_matrix
from fedsim.partition import NaturalIdPartitioner, Partition
from fedsim.partition.partition import OwnSamples
from fedsim.problems import Problem
from fedsim.tree import count


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
        remarks: notes for the user, on attackers, participation and nondeterministic operations.
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


def prepare(experiment: Experiment, seed: int, partition: Partition | None = None) -> Prepared:
    """Build the federation of one seed, with the loop backend and the cohort size of the experiment.

    Args:
        experiment: the experiment.
        seed: the seed.
        partition: that of the seed, if it has been made.

    Raises:
        FedsimError: data missing or corrupt, partition infeasible, or the model does not fit the data.
    """
    problem, dataset = problem_and_dataset(experiment.data)
    if not count(dataset.test.y):
        raise ConfigError(f"data set {dataset.name!r} has no test samples; set some aside, as test_fraction does")
    partition = partition or _partition(experiment, dataset, seed)
    if problem is not None:
        _check_problem(experiment, problem, partition)
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
    federation = Federation(
        build_model(experiment, dataset, problem, seed, device, dtype),
        shards,
        experiment.local,
        seed,
        Loop(),
        weights=shards.sizes if experiment.weights == "samples" else None,
        cohort_size=experiment.waiting.expected(experiment.participation.expected(partition.n)),
        decay=experiment.decay,
        topology=experiment.topology,
        memory=MEMORIES[experiment.execution.memory](device),
    )
    if federation.model.statistics:
        check_minibatches(federation, shards.sizes)
    test = dataset.test.to(device, dtype)
    remarks = [*remarks, *_partial(experiment, federation.cohort_size or 0, partition.n)]
    return Prepared(
        federation,
        test,
        own,
        "holdout" if experiment.evaluation.holdout else "train",
        partition,
        dataset,
        problem,
        _unheld(dataset, partition),
        None if experiment.clock is None else experiment.clock.devices(partition.n, seed),
        attackers,
        byzantine.triggered(experiment.attack, test),
        [*remarks, *nondeterministic.remarks(federation.model.nondeterministic)],
        _measures(experiment, dataset),
        others[0] if others else None,
    )


def check_partition(experiment: Experiment, first: Prepared, seed: int) -> Partition:
    """The partition of another seed than that of ``first``, checked before any seed is run.

    Raises:
        PartitionError: infeasible.
        ConfigError: the model cannot take some client's minibatch of one sample.
    """
    partition = _partition(experiment, first.dataset, seed)
    if first.federation.model.statistics and not experiment.evaluation.holdout:
        sizes = partition.first(seen(partition.n, experiment.evaluation.unseen)).sizes
        check_minibatches(first.federation, sizes)
    return partition


def _partition(experiment: Experiment, dataset: Dataset, seed: int) -> Partition:
    if dataset.source is not None:
        return OwnSamples(dataset.source.sizes, {"name": "a function of the client"})
    name = type(experiment.division).__name__
    with explained(f"{name}.partition"):
        partition: Any = experiment.division.partition(dataset.labels, dataset.train.client, seed)
    if not isinstance(partition, Partition):
        raise PartitionError(f"{name}.partition returned a {type(partition).__name__}; expected a Partition")
    samples = count(dataset.train.y)
    if len(partition.indices) and (last := partition.indices.max()) >= samples:
        raise PartitionError(f"{name} gives a client sample {last}, and the data set has {samples}: 0 to {samples - 1}")
    return partition


def _check_problem(experiment: Experiment, problem: Problem, partition: Partition) -> None:
    """Check that a problem keeps its clients and, if its optimum is known, its objective.

    Raises:
        ConfigError: it does not.
    """
    dataset = problem.dataset
    own = NaturalIdPartitioner().partition(dataset.train.y.numpy(), dataset.train.client, 0)
    if partition.hash != own.hash:
        raise ConfigError(
            f"partition {experiment.division} does not keep the clients of the problem {dataset.name!r}, on which its"
            " optimum and its constants depend; leave partition out, or use NaturalIdPartitioner"
        )
    unequal = experiment.weights == "samples" and len(distinct(partition.sizes)) > 1
    changed = unequal or experiment.local.weight_decay or experiment.local.augment is not None
    if problem.f_min is not None and changed:
        raise ConfigError(
            f"the optimum of the problem {dataset.name!r} is that of the plain mean of its clients' objectives; leave"
            " out weights, local.weight_decay and local.augment, which change it"
        )


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
