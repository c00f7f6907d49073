"""Purity of an algorithm's code: same arguments, same result, arguments unmodified; reproducible runs depend on it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.snapshot import alike
from fedsim.errors import ConfigError, FedsimError, ModelError
from fedsim.tree import tensors_of
from fedsim.values import Packed

MT19937_BYTES = 4 * 624 + 4
"""Size of the state of NumPy's global generator: its words, and the position among them."""


@contextlib.contextmanager
def pure(name: str, *arguments: Any) -> Iterator[None]:
    """Check that a call of an algorithm's code, made in this context, is pure.

    Args:
        name: name of the code, for errors.
        arguments: its arguments: tensors, and tuples and mappings of them. Other values are not inspected, to avoid
            traversing all clients' memories in every round.

    Raises:
        ConfigError: it wrote into an argument, or drew from a global generator of PyTorch or NumPy.
    """
    before = generator_states()
    with unwritten(name, arguments):
        yield
    if generator_states() != before:
        raise ConfigError(
            f"{name} draws from, or seeds, the global generator of PyTorch or NumPy, which no seed of a run controls;"
            " expected fedsim.seeds.uniform_of(local.key(), d), at the server of clients.key(), for d numbers in [0, 1)"
        )


@contextlib.contextmanager
def unwritten(name: str, arguments: Any) -> Iterator[None]:
    """Check that the code ``name``, run in this context, does not write into its arguments; see ``pure``.

    Raises:
        ConfigError: it did.
    """
    versions = [(t, t._version) for t in _tensors(arguments) if not t.is_inference()]
    yield
    if any(t._version != version for t, version in versions):
        raise ConfigError(
            f"{name} writes into an argument, which others read as well; expected new tensors: y = 0.5 * x instead of"
            " x.mul_(0.5), or x.clone() before writing"
        )


@contextlib.contextmanager
def intact(code: str, what: str, given: Any, error: type[FedsimError] = ModelError) -> Iterator[None]:
    """Check that a user's code, run in this context, leaves the tensors ``given`` to it as they are, and put them back
    if not. Unlike ``unwritten``, this finds writes through NumPy and ``.data`` too, for the price of a copy.

    Args:
        code: name of the code, for errors.
        what: name of what it is given.
        given: tensors, in tuples, lists, dicts and dataclasses.
        error: type of the error.

    Raises:
        FedsimError: it wrote into one of them.
    """
    before = [(t, None if t.is_inference() else t._version, t.detach().clone()) for t in tensors_of(given)]
    found = []
    try:
        yield
    finally:
        for t, version, copy in before:
            if (version is not None and t._version != version) or not alike(t.detach(), copy):
                found.append(t.data.copy_(copy))           # the samples are those of later runs too
    if found:
        raise error(
            f"{code} writes into {what}, which others read after it; expected new tensors: x * 2 for x.mul_(2), or"
            " x = x.clone() before writing (and before x.numpy(), which shares its memory)"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Packed):
        yield from value.parts
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def generator_states() -> list[bytes]:
    """States of the global generators of PyTorch and NumPy."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    numpy = np.random.mtrand.get_bit_generator()
    if isinstance(numpy, np.random.MT19937):               # read in place: as a dict it takes 60 microseconds
        states.append(ctypes.string_at(numpy.ctypes.state_address, MT19937_BYTES))
    return states
