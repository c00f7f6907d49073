"""Metadata that the server shares with all nodes of a federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.errors import DeployError


@dataclass(frozen=True)
class Common:
    """Properties of the federation's data and model that all nodes share.

    Attributes:
        input_shape: of one sample.
        classes: number of classes, 0 for regression.
        labels: class names; None if classes are plain numbers.
        d: number of model parameters.
        n: number of clients.
        partition: hash of the partition; empty if every node has its own data.
    """

    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...] | None
    d: int
    n: int
    partition: str

    @classmethod
    def of(cls, values: Any) -> Common:
        """Parse the values of a received call; raise DeployError if they are malformed."""
        try:
            labels = None if values["labels"] is None else tuple(map(str, values["labels"]))
            shape = tuple(int(length) for length in values["input_shape"])
            return cls(shape, int(values["classes"]), labels, int(values["d"]), int(values["n"]), values["partition"])
        except (KeyError, TypeError, ValueError) as error:
            raise DeployError(f"the server's description of the data is malformed: {error!r}") from None
