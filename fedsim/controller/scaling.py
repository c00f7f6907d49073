"""Features in units of very different size, the usual cause of a loss that grows: steps that suit the small ones are
far too large for the others.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedsim.data import Dataset
from fedsim.data.catalogue import FORMATS, NAMED, options_of
from fedsim.experiment.experiment import Data, Experiment

LARGE = 30.0
"""Root mean square of a feature from which on it is hardly scaled."""
LOOKED_AT = 10_000
"""Samples that are looked at."""
GROWN = 10.0
"""Factor by which a loss above that of the initial model says that steps are too large."""


def unscaled(experiment: Experiment, dataset: Dataset) -> str:
    """Say which feature of a table is large, and how to scale all; "" if none is, or inputs are no table."""
    x = dataset.train.x
    if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point() or not x.numel():
        return ""
    rows = x[:LOOKED_AT].cpu().numpy().astype(np.float64)
    size = np.sqrt((rows**2).mean(0))
    if size.max() <= LARGE:
        return ""
    names = dataset.feature_names or [f"feature {k}" for k in range(x.shape[1])]
    ranges = [
        f"{names[k]} from {rows[:, k].min():,.6g} to {rows[:, k].max():,.6g}"
        for k in dict.fromkeys([int(size.argmax()), int(size.argmin())])
    ]
    data, named = experiment.data, NAMED | FORMATS
    by_option = isinstance(data, Data) and data.name in named and "standardize" in options_of(data.name)
    fix = "--data.standardize true" if by_option else "dataset_of(..., standardize=True)"
    return f"features are not scaled ({', '.join(ranges)}): {fix} gives each mean 0 and variance 1"


def growth(first: float | None, loss: float, round: int) -> str:
    """Say that a test loss is far above the ``first`` one, of the initial model; "" if it is not, or nobody knows."""
    if first is None or not loss > max(GROWN * first, first + 1.0):
        return ""
    now = f"the test loss is {loss:,.4g} after round {round}"
    return f"{now}, and {first:,.4g} before training: lower the learning rate"
