"""Data frames of pandas, which are recognised without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.arrays import array_of, owners_of, targets_of
from fedsim.data.columns import Samples, check_columns, target_column
from fedsim.errors import DataError


def is_frame(data: Any) -> bool:
    """True for a ``pandas.DataFrame``."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def of_frame(frame: Any, inputs: str | Sequence[str] | None, target: str | None, client: str | None) -> Samples:
    """Samples of a data frame: features float32 ``[N, d]``, by default all columns but those of target and client.

    Raises:
        ConfigError: there is no such column, or none that is called like a target.
        DataError: a column of features holds texts, or lacks values.
    """
    columns = list(map(str, frame.columns))
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DataError(f"the data frame has two columns {twice!r}; expected each name once")
    frame = frame.set_axis(columns, axis=1)
    target = target_column(columns, target)
    wanted = [inputs] if isinstance(inputs, str) else list(inputs or ())
    check_columns(columns, [target, client, *wanted])
    names = wanted or [name for name in columns if name not in (target, client)]
    if not names:
        raise DataError(f"the data frame has no column besides {target!r}; expected one of features at least")
    owners = None if client is None else owners_of(frame[client], f"column {client!r}")
    return Samples(features(frame, names), targets_of(frame[target], f"column {target!r}"), owners, names=tuple(names))


def features(frame: Any, names: Sequence[str]) -> Tensor:
    """Columns of numbers as float32 ``[N, d]``.

    Raises:
        DataError: a column holds something else, or lacks values.
    """
    found = []
    for name in names:
        values = frame[name]
        if missing := int(values.isna().sum()):
            raise DataError(
                f"column {name!r} has {missing} missing values; expected numbers: fill them, as frame.fillna(0) does,"
                " or leave the rows out, as frame.dropna()"
            )
        array = array_of(values, f"column {name!r}")
        if isinstance(array, Tensor) or array.dtype.kind not in "biuf":
            raise DataError(
                f"column {name!r} holds {values.dtype}, such as {values.iloc[0]!r:.40}; expected numbers: encode it, as"
                " pandas.get_dummies does, or name other columns: inputs=..."
            )
        found.append(array.astype(np.float32))
    return torch.from_numpy(np.stack(found, 1))
