"""What all nodes of a federation have in common, as the server tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.errors import DeployError


@dataclass(frozen=True)
class Common:
    """What all nodes' data has in common, as the server says it.

    Attributes:
        input_shape: of one sample.
        classes: number of classes, 0 for regression.
        labels: their names, None where they are just numbers.
        d: length of the model's vector.
        n: number of clients.
        partition: hash of the partition; empty where every node has its own data.
    """

    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...] | None
    d: int
    n: int
    partition: str

    @classmethod
    def of(cls, values: Any) -> Common:
        """As it arrived."""
        try:
            labels = None if values["labels"] is None else tuple(map(str, values["labels"]))
            shape = tuple(int(length) for length in values["input_shape"])
            return cls(shape, int(values["classes"]), labels, int(values["d"]), int(values["n"]), values["partition"])
        except (KeyError, TypeError, ValueError) as error:
            raise DeployError(f"the server's description of the data is malformed: {error!r}") from None
