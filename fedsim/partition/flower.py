"""Any partitioner of Flower Datasets (github.com/adap/flower, datasets) as one of ours, unchanged."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import PartitionError, how_to_install
from fedsim.partition.deal import concentration, generator
from fedsim.partition.dirichlet import share_classes
from fedsim.partition.partition import Partition

DRAWS = 200
"""Draws of Dirichlet shares, 20 times as many as Flower Datasets tries."""


@dataclass(frozen=True)
class FlowerPartitioner:
    """A partitioner of Flower Datasets, which divides the training samples in their order.

    Its column (``partition_by``) holds the labels, or the natural clients if its kind has "NaturalId" in its name. Its
    draws follow from its own ``seed``, so all seeds of an experiment share one partition.

    Args:
        partitioner: an object of ``flwr_datasets.partitioner``; it is copied, not used.
    """

    partitioner: Any

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``.

        Raises:
            PartitionError: Flower Datasets is not installed, or cannot divide the samples so.
        """
        try:
            from datasets import Dataset
        except ImportError as error:
            raise PartitionError(
                f"partitioners of Flower Datasets need datasets ({error}): {how_to_install('huggingface')}"
            ) from error
        used, kind = copy.deepcopy(self.partitioner), type(self.partitioner).__name__
        column = getattr(used, "_partition_by", "label")
        owners = natural if "NaturalId" in kind else labels
        if owners is None:
            raise PartitionError(f"{kind}: this data set has no natural clients; use a partitioner by labels")
        if "Vertical" in kind:
            raise PartitionError(f"{kind} divides features among clients, which no method here does; divide samples")
        self._check_feasible(kind, labels)
        table = Dataset.from_dict({column: owners, "row of fedsim": np.arange(len(labels))})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")            # of every attempt; the error says what failed
                used.dataset = table
                parts = [
                    np.asarray(used.load_partition(k)["row of fedsim"][:], np.int64)
                    for k in range(used.num_partitions)
                ]
        except (ValueError, TypeError, KeyError) as error:
            raise PartitionError(f"{kind} of Flower Datasets: {error}") from error
        scheme = {"partitioner": f"flwr_datasets {kind}", **_settings(self.partitioner)}
        return Partition(np.concatenate(parts), np.r_[0, np.cumsum([len(part) for part in parts])], scheme)

    def _check_feasible(self, kind: str, labels: np.ndarray) -> None:
        """Tell at once what Flower Datasets would try many times."""
        samples = len(labels)
        n, least = (getattr(self.partitioner, name, None) for name in ("_num_partitions", "_min_partition_size"))
        if isinstance(n, int) and n > samples:
            raise PartitionError(f"{kind}: {n} partitions of {samples} samples; num_partitions may be {samples}")
        if not isinstance(n, int) or not isinstance(least, int):
            return
        if n * least > samples:
            raise PartitionError(
                f"{kind}: {n} partitions of at least {least} of {samples} samples; min_partition_size may be"
                f" {samples // n}"
            )
        if kind == "DirichletPartitioner" and least and labels.ndim == 1:
            self._check_likely(kind, np.unique(labels, return_counts=True)[1], n, least)

    def _check_likely(self, kind: str, sizes: np.ndarray, n: int, least: int) -> None:
        """Refuse a smallest size that none of many draws of the same law has."""
        alpha = concentration(getattr(self.partitioner, "_alpha", 1.0), n, "partitions")
        balance, rng = bool(getattr(self.partitioner, "_self_balancing", False)), generator(0)
        largest = 0
        for _ in range(DRAWS):
            largest = max(largest, int(share_classes(sizes, alpha, balance, rng).sum(1).min()))
            if largest >= least:
                return
        raise PartitionError(
            f"{kind}: in {DRAWS} draws of such shares the smallest of {n} partitions had {largest} samples at most, so"
            f" that Flower Datasets would try in vain for {least}; lower min_partition_size or num_partitions, raise"
            " alpha, or use fedsim's DirichletPartitioner, which moves the samples that lack"
        )


def _settings(partitioner: Any) -> dict[str, Any]:
    """Its plain settings, for the record."""
    plain = {name.lstrip("_"): value for name, value in vars(partitioner).items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float | str | bool)}
