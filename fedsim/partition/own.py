"""A function of labels, or an object of Flower Datasets, as a partitioner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.errors import PartitionError, explained
from fedsim.partition.flower import FlowerPartitioner
from fedsim.partition.partition import Partition


@dataclass(frozen=True)
class OwnPartitioner:
    """A function ``divide(labels, ...)`` that returns the client of each sample.

    Args:
        function: of the labels ``[N]`` and, if it has a parameter of that name, the ``seed``, a number from 0; its
            result is ``[N]`` whole numbers, the clients 0 to n - 1, each of which owns at least one sample.
        options: its other arguments.

    Raises:
        PartitionError: the function does not begin with ``labels``.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not divides(self.function):
            raise PartitionError(
                f"partition is the function {self.name}; expected one whose first parameter is labels: def"
                f" {self.name}(labels, ...)"
            )

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``.

        Raises:
            CodeError: the function raised.
            PartitionError: it does not return one client for each sample, or leaves one without samples.
        """
        takes_seed = "seed" in inspect.signature(self.function).parameters
        with explained(f"the partition {self.name}"):
            owner = np.asarray(self.function(labels, **({"seed": seed} if takes_seed else {}), **self.options))
        if owner.shape != (len(labels),) or owner.dtype.kind not in "iu":
            raise PartitionError(
                f"partition {self.name} returned {owner.dtype} of shape {owner.shape} for {len(labels)} samples;"
                " expected the client of each sample, whole numbers from 0, as in labels % 10"
            )
        if owner.min() < 0:
            raise PartitionError(f"partition {self.name} returned the client {owner.min()}; expected 0 or more")
        clients, sizes = np.unique(owner, return_counts=True)
        if (gaps := np.flatnonzero(clients != np.arange(len(clients)))).size:
            raise PartitionError(
                f"partition {self.name} gave no sample to client {gaps[0]}, but some to client {clients[-1]}; expected"
                " at least one for each"
            )
        scheme = {"name": self.name, **self.options, "seed": seed}
        return Partition(np.argsort(owner, kind="stable"), np.r_[0, np.cumsum(sizes)], scheme)


def as_partitioner(given: Any) -> Any:
    """A partitioner: a function of labels or an object of Flower Datasets as one, anything else as it is."""
    if callable(getattr(given, "load_partition", None)):
        return FlowerPartitioner(given)
    return OwnPartitioner(given) if divides(given) else given


def divides(function: Any) -> bool:
    """True for a function that begins with ``labels``."""
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "labels"
