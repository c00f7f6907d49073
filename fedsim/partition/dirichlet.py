"""The three partitions that papers call Dirichlet.

Class-wise (Yurochkin et al., ICML 2019, arXiv:1905.12022; Hsu et al. 2019): for every class c, shares over clients
``p_c ~ Dir(alpha 1_n)``; sizes differ between clients: ``DirichletPartitioner``.
Client-wise, without replacement (Acar et al., ICLR 2021, arXiv:2111.04263): for every client i, a prior over classes
``q_i ~ Dir(alpha 1_C)``, sizes are given: ``InnerDirichletPartitioner``.
Client-wise, with refilled pools (FL-Simulator, github.com/woodenchild95/FL-Simulator): ``ClientDirichletPartitioner``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import PartitionError
from fedsim.partition.deal import (
    by_owner,
    check_alpha,
    check_clients,
    check_count,
    check_sizes,
    check_total,
    class_labels,
    concentration,
    describe,
    draw,
    generator,
    rank_within,
    slots,
)
from fedsim.partition.partition import Partition
from fedsim.partition.quantity import even_sizes

DRAWS = 10


def share_classes(class_sizes: np.ndarray, alpha: np.ndarray, balance: bool, rng: np.random.Generator) -> np.ndarray:
    """``[n, C]`` numbers of samples: column c divides ``class_sizes[c]`` in proportions drawn from ``Dir(alpha [n])``.

    With ``balance``, a client that already owns more than the average gets nothing of the classes still to come.
    Borders between clients are rounded at random, so that each gets its share on average; where they are rounded down,
    as is common, the last client owns a sample of every class.
    """
    counts = np.zeros((len(alpha), len(class_sizes)), np.int64)
    for c, (share, size) in enumerate(zip(rng.dirichlet(alpha, len(class_sizes)), class_sizes, strict=True)):
        if balance:
            open_ = counts.sum(axis=1) <= class_sizes.sum() / len(alpha)
            share = share * open_ if (share * open_).any() else open_
        edges = np.cumsum(share)
        edges = np.minimum(np.floor(edges / edges[-1] * size + rng.random()), size).astype(np.int64)
        counts[:, c] = np.diff(edges, prepend=0)
    return counts


def raise_to_minimum(owner: np.ndarray, n: int, minimum: int) -> tuple[np.ndarray, int]:
    """Give every client ``minimum`` samples by levelling the largest clients down.

    The clients above some level give up what exceeds it, as few samples as possible and the last ones in the order of
    ``owner``; these go to the small clients in order of client number, so that a receiver is served by few givers and
    stays skewed. Takes and returns ``owner [N]``, and the number of samples that moved.
    """
    sizes = np.bincount(owner, minlength=n)
    need = np.maximum(minimum - sizes, 0)

    def excess(level: int) -> int:
        return int(np.maximum(sizes - level, 0).sum())

    moved = int(need.sum())
    level = minimum + bisect_right(range(minimum + 1, int(sizes.max()) + 1), -moved, key=lambda at: -excess(at))
    keep = np.minimum(sizes, level)
    keep[np.flatnonzero(sizes > level)[: excess(level) - moved]] += 1
    given = np.flatnonzero(rank_within(owner) >= keep[owner])
    owner = owner.copy()
    owner[given[np.argsort(owner[given], kind="stable")]] = np.repeat(np.arange(n), need)
    return owner, moved


def turns(sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Client numbers ``[sum of sizes]``: each is uniform among the clients that are not full yet.

    Clients that draw at the times of independent Poisson processes of equal rate do just that, and all times can be
    drawn at once.
    """
    times = np.concatenate([np.cumsum(rng.exponential(size=size)) for size in sizes])
    owners: np.ndarray = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(times, kind="stable")]
    return owners


def draw_classes(prior: np.ndarray, owner: np.ndarray, class_sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Classes ``[m]`` for places filled one after the other: place j draws from ``prior[owner[j]]``, ``prior [n, C]``.

    A class that has run out is left out of all later draws. Vectorised: all places draw at once; then, from the class
    that runs out first to the last, the places that came too late draw again.
    """
    wanted = np.zeros(len(owner), np.int64)
    late, left = np.arange(len(owner)), class_sizes > 0
    while len(late):
        weight = prior * left
        exhausted = weight.sum(axis=1, keepdims=True) == 0                    # nothing that the client's prior knows
        weight = np.where(exhausted, class_sizes * left, weight)
        edges = np.cumsum(weight, axis=1)
        edges /= edges[:, -1:]
        wanted[late] = (edges[owner[late]] <= rng.random((len(late), 1))).sum(axis=1)
        late = np.flatnonzero(rank_within(wanted) >= class_sizes[wanted])
        if len(late):
            left = left & (np.arange(len(class_sizes)) != wanted[late[0]])
            late = late[wanted[late] == wanted[late[0]]]
    return wanted


@dataclass(frozen=True)
class DirichletPartitioner:
    """Class-wise Dirichlet: each class is divided among the clients in proportions drawn from Dir(alpha).

    Draws with a client below ``min_partition_size`` are rejected, 10 at most, as in Flower Datasets. Then, where Flower
    gives up, the draw that lacks the fewest samples is repaired: the largest clients give samples to the small ones
    (``raise_to_minimum``). ``scheme["draws"]`` and ``scheme["samples_moved"]`` record what happened.

    Args:
        num_partitions: number of clients.
        alpha: concentration, one number or one per client; 0.1 is strongly skewed, 100 nearly IID.
        min_partition_size: fewest samples a client may own; 0 allows empty clients.
        self_balancing: stop filling clients that own more than the average number of samples.
    """

    num_partitions: int
    alpha: float | Sequence[float]
    min_partition_size: int = 10
    self_balancing: bool = False

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        check_count("min_partition_size", self.min_partition_size, minimum=0)
        object.__setattr__(self, "alpha", check_alpha(self.alpha))
        concentration(self.alpha, self.num_partitions, "partitions")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample is used once."""
        _, label = class_labels(labels, self)
        n, minimum = self.num_partitions, self.min_partition_size
        if n * minimum > len(label):
            fix = f"min_partition_size may be {len(label) // n}, or num_partitions {len(label) // minimum}"
            need = f"{n} clients of {minimum} samples or more need {n * minimum} samples"
            raise PartitionError(f"{need}, and there are {len(label)}: {fix}")
        rng = generator(seed)
        alpha = concentration(self.alpha, n, "partitions")
        drawn: list[tuple[int, np.ndarray]] = []
        while len(drawn) < DRAWS and (not drawn or drawn[-1][0]):
            counts = share_classes(np.bincount(label), alpha, self.self_balancing, rng)
            drawn.append((int(np.maximum(minimum - counts.sum(axis=1), 0).sum()), counts))
        _, best = min(drawn, key=lambda pair: pair[0])                  # the draw that lacks the fewest samples
        owner, wanted = slots(best, rng)
        samples = draw(label, wanted, rng)
        owner, moved = raise_to_minimum(owner, n, minimum)
        return by_owner(samples, owner, n, describe(self, seed, draws=len(drawn), samples_moved=moved))


@dataclass(frozen=True)
class InnerDirichletPartitioner:
    """Client-wise Dirichlet, without replacement: each client draws a prior over classes from Dir(alpha).

    Samples are dealt one by one, as in Flower Datasets and the authors' code: a client is drawn uniformly among those
    that are not full, then a class from its prior. A class that has run out is left out of later draws, so large
    clients, which are served last, follow their priors less closely; a client whose prior has nothing left draws in
    proportion to the sizes of the classes that are left.

    Args:
        partition_sizes: number of samples of each client; samples beyond their sum are not used.
        alpha: concentration, one number or one per class that occurs; 0.1 is strongly skewed, 100 nearly IID.
    """

    partition_sizes: Sequence[int]
    alpha: float | Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "partition_sizes", check_sizes(self.partition_sizes))
        object.__setattr__(self, "alpha", check_alpha(self.alpha))

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice."""
        classes, label = class_labels(labels, self)
        check_total(self.partition_sizes, len(label))
        rng = generator(seed)
        n = len(self.partition_sizes)
        prior = rng.dirichlet(concentration(self.alpha, len(classes), "classes"), n)
        owner = turns(self.partition_sizes, rng)
        wanted = draw_classes(prior, owner, np.bincount(label), rng)
        return by_owner(draw(label, wanted, rng), owner, n, describe(self, seed))


@dataclass(frozen=True)
class ClientDirichletPartitioner:
    """Client-wise Dirichlet of FL-Simulator: clients follow their own class priors, at the price of repeated samples.

    Every client draws a prior from Dir(alpha) and gets N / num_partitions samples (sizes differ by at most one). When a
    class's pool is exhausted it is RESET to the full class: samples repeat, mostly across clients and now and then
    within one, others stay unused, and class totals are NOT conserved. No other partitioner uses a sample twice.

    Args:
        num_partitions: number of clients.
        alpha: concentration, one number or one per class that occurs; 0.1 is strongly skewed, 100 nearly IID.
    """

    num_partitions: int
    alpha: float | Sequence[float]

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        object.__setattr__(self, "alpha", check_alpha(self.alpha))

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; samples may be used several times or not at all."""
        classes, label = class_labels(labels, self)
        n = self.num_partitions
        check_clients(n, len(label))
        rng = generator(seed)
        prior = rng.dirichlet(concentration(self.alpha, len(classes), "classes"), n)
        owner, wanted = slots(rng.multinomial(even_sizes(len(label), n), prior), rng)
        return by_owner(draw(label, wanted, rng), owner, n, describe(self, seed))
