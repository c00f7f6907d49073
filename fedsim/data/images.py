"""Steps of the image loaders: normalized tensors, checked labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import ConfigError, DataError

Constants = float | Sequence[float]  # one for all channels, or one for each


def normalize(pixels: NDArray[Any], mean: Constants, std: Constants) -> Tensor:
    """Bytes ``[N, H, W]`` or ``[N, C, H, W]`` as float32 ``[N, C, H, W]``: ``(byte / 255 - mean) / std``."""
    x = torch.from_numpy(pixels.astype(np.float32))
    x = x.unsqueeze(1) if x.ndim == 3 else x
    centre, spread = (torch.tensor(constants, dtype=torch.float32).view(-1, 1, 1) for constants in (mean, std))
    if not {len(centre), len(spread)} <= {1, x.shape[1]} or not (spread > 0).all():
        raise ConfigError(
            f"mean={mean}, std={std}; expected one number, or one for each of {x.shape[1]} channels, and std > 0"
        )
    return x.div_(255).sub_(centre).div_(spread)


def check_labels(labels: NDArray[Any], count: int, classes: int | None, where: Path) -> Tensor:
    """Labels as int64 ``[N]``; raises `DataError` unless there are ``count`` of them, all below ``classes``."""
    if labels.shape != (count,):
        raise DataError(f"{where}: labels of shape {list(labels.shape)}; expected one for each of {count} images")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels of type {labels.dtype}; expected whole numbers")
    if count == 0:
        raise DataError(f"{where}: no images; expected at least one")
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        wrong = int(np.argmax((labels < 0) | (labels >= (classes or np.inf))))
        top = "" if classes is None else f" to {classes - 1}"
        raise DataError(f"{where}: image {wrong} has label {labels[wrong]}; expected 0{top}")
    return torch.from_numpy(labels.astype(np.int64))
