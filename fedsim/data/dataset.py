"""What a data set is: two splits of tensors, and who each sample belongs to by nature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fedsim.errors import DataError


class Split(NamedTuple):
    """Samples of one split.

    Attributes:
        x: inputs ``[N, ...]``; float32 features or images, int64 token ids for text.
        y: targets ``[N]`` int64 class labels, ``[N, T]`` int64 next tokens, or ``[N]`` float32 for regression.
        client: ``[N]`` int64 natural owner of each sample (writer, subject, role, hospital), or None.
    """

    x: Tensor
    y: Tensor
    client: np.ndarray | None = None


@dataclass(frozen=True)
class Dataset:
    """A named data set.

    Attributes:
        name: how the loader calls it.
        train: samples that clients train on.
        test: samples that nobody trains on.
        classes: number of classes (vocabulary size for text, 0 for regression).
        client_names: name of natural client ``k`` at position ``k``; None without natural clients.
        label_names: name of class ``k`` at position ``k``; None when labels are just numbers.
        notes: what a reader of a result must know (e.g. samples that differ from the published files).
    """

    name: str
    train: Split
    test: Split
    classes: int
    client_names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        shapes = [split.x.shape[1:] for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"data set {self.name!r}: training inputs have shape {list(shapes[0])}, test inputs {list(shapes[1])}; "
                "expected the same"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.train.x.shape[1:])
