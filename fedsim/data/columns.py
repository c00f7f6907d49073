"""Columns of a ``datasets.Dataset`` of Hugging Face as tensors: images, token ids, features, class labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.arrays import owners_of, targets_of
from fedsim.errors import ConfigError, DataError, few, suggest

TARGETS = ("label", "labels", "target", "y", "fine_label", "class")
"""Names that columns of targets have."""
ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids")
"""Columns that are keyword arguments of a language model."""


class Samples(NamedTuple):
    """Samples of one split.

    Attributes:
        x: tensor ``[N, ...]`` or a dict of tensors.
        y: ``[N]`` class numbers, strings or real numbers.
        client: ``[N]`` natural owners, or None.
        labels: name of class ``k`` at position ``k``, if ``y`` holds class numbers.
        names: of the features, if ``x`` is ``[N, d]`` of columns that have some.
    """

    x: Any
    y: NDArray[Any]
    client: NDArray[Any] | None = None
    labels: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None


def target_column(columns: Sequence[str], target: str | None) -> str:
    """The column of targets: the named one, or one that is called so.

    Raises:
        ConfigError: none is.
    """
    found = target or next((name for name in TARGETS if name in columns), None)
    if found is None:
        raise ConfigError(f"none of the columns {few(columns)} is called label; name the targets: target=...")
    return found


def check_columns(columns: Sequence[str], named: Sequence[str | None]) -> None:
    """Raise ConfigError for a name that no column has."""
    for name in named:
        if name is not None and name not in columns:
            raise ConfigError(f"there is no column {name!r}; {suggest(name, columns)}")


def of_table(
    table: Any,
    inputs: str | Sequence[str] | None,
    target: str | None,
    client: str | None,
    tokenize: Callable[[list[str]], Mapping[str, Any]] | None,
) -> Samples:
    """Samples of a ``datasets.Dataset``; see ``fedsim.data.adapters.dataset_of``."""
    columns = list(table.column_names)
    target = target_column(columns, target)
    check_columns(columns, [target, client, *([inputs] if isinstance(inputs, str) else inputs or ())])
    if not len(table):
        raise DataError("the table has no rows; expected samples")
    rest = [name for name in columns if name not in (target, client)]
    names = [inputs] if isinstance(inputs, str) else list(inputs or _inputs(table, rest))
    parts: dict[str, Tensor] = {}
    for name in names:
        parts |= _column(table, name, tokenize)
    labels = getattr(table.features[target], "names", None)
    y = targets_of(table[target][:], f"column {target!r}")
    owners = None if client is None else owners_of(table[client][:], f"column {client!r}")
    if labels is not None and (y < 0).any():
        raise DataError(f"column {target!r} has samples without a label (-1); expected labels: leave these samples out")
    one = len(parts) == 1 and isinstance(inputs, str | None) and not set(parts) & set(ARGUMENTS)
    x = next(iter(parts.values())) if one else parts
    return Samples(x, y, owners, None if labels is None else tuple(labels))


def _inputs(table: Any, columns: Sequence[str]) -> list[str]:
    """The columns of inputs, where they are clear."""
    tokens = [name for name in ARGUMENTS if name in columns]
    if tokens:
        return tokens
    images = [name for name in columns if _kind(table, name) == "Image"]
    if len(images) == 1 or len(columns) == 1:
        return images or list(columns)
    texts = [name for name in columns if getattr(table.features[name], "dtype", "") in ("string", "large_string")]
    if len(texts) == 1:
        return texts
    raise ConfigError(f"the inputs may be any of {', '.join(columns) or 'no column'}; name them: inputs=...")


def _kind(table: Any, name: str) -> str:
    return type(table.features[name]).__name__


def _column(
    table: Any, name: str, tokenize: Callable[[list[str]], Mapping[str, Any]] | None
) -> dict[str, Tensor]:
    """The tensors of a column by name: several of a text."""
    values = table[name][:]
    if isinstance(values[0], str):
        if tokenize is None:
            raise ConfigError(
                f"column {name!r} holds texts; give tokenize, a function of a list of texts, such as lambda texts:"
                ' tokenizer(texts, padding="max_length", truncation=True, max_length=64)'
            )
        made = tokenize(list(values))
        if not isinstance(made, Mapping):
            raise ConfigError(
                f"tokenize returned a {type(made).__name__}; expected tensors or arrays [N, ...] by name, as tokenizers"
                " of transformers return"
            )
        return {key: _numbers(key, value) for key, value in made.items()}
    if _kind(table, name) == "Image":
        values = [np.array(image) for image in values]
    return {name: _numbers(name, values)}


def _numbers(name: str, values: Any) -> Tensor:
    try:
        array = values.numpy() if isinstance(values, Tensor) else np.array(values)
        if array.dtype.kind == "O":
            raise ValueError("rows of unequal length")
    except ValueError:
        raise DataError(
            f"column {name!r} has rows of unequal shape; expected one: resize images, pad and truncate token ids"
        ) from None
    if array.dtype.kind not in "buif":
        raise DataError(f"column {name!r} holds {array.dtype}; expected numbers, images or texts")
    t = torch.from_numpy(array)
    if t.dtype in (torch.uint8, torch.bool):
        return t
    return t.float() if t.is_floating_point() else t.long()
