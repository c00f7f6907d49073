"""An algorithm's code is pure: the same result from the same arguments, which stay as they are, or no run repeats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.types import Kept, Packed


@contextlib.contextmanager
def pure(name: str, *arguments: Any) -> Iterator[None]:
    """For a call of an algorithm's code.

    Args:
        name: of the code.
        arguments: what it was given: tensors, tuples, mappings and ``Kept`` of them. Anything else is not looked at.

    Raises:
        ConfigError: it wrote into an argument, or drew from a global generator of PyTorch or NumPy.
    """
    dice = _dice()
    versions = [(t, t._version) for t in _tensors(arguments)]
    yield
    if any(t._version != version for t, version in versions):
        raise ConfigError(
            f"{name} writes into an argument, which others read as well; expected new tensors: y = 0.5 * x instead of"
            " x.mul_(0.5), or x.clone() before writing"
        )
    if not all(map(np.array_equal, dice, _dice())):
        raise ConfigError(
            f"{name} draws random numbers that no seed of a run controls; expected"
            " fedsim.seeds.uniform_of(local.key(), d), at the server of clients.key(), which gives d numbers in [0, 1)"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Packed):
        yield from value.parts
    elif isinstance(value, Kept):
        yield from _tensors((value.default, *value.rows.values()))
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def _dice() -> list[np.ndarray]:
    """States of the global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    _, words, at, *_ = np.random.get_state(legacy=True)    # noqa: NPY002, it is the one to watch
    return [torch.get_rng_state().numpy(), *(state.numpy() for state in cuda), np.append(words, at)]
