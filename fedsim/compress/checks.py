"""Checks of settings that are compressors; one that has ``compress`` alone is given a codec."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from fedsim.checks import non_negative, takes
from fedsim.compress.own import OwnCompressor
from fedsim.errors import ConfigError

LONG = 2**40
"""A length of vector that any compressor takes, to ask whether it is contractive or unbiased."""

SIMULATED = ("compress", "unpack", "nbytes", "paper_bits", "alpha", "omega")
"""Methods of a compressor that a simulation calls."""
CODEC = {"unpack", "nbytes", "encode", "decode", "paper_bits"}
"""Methods that say how it is sent; one without any of them is given `OwnCompressor`'s."""


def non_negative_or_alpha(settings: Any, name: str) -> None:
    """Require the named field to be a number, 0 or more, or None if ``settings.compressor`` has a known alpha."""
    if getattr(settings, name) is not None:
        non_negative(settings, name)
    elif settings.compressor.alpha(LONG) is None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is None, which stands for the compressor's alpha, but that"
            f" of {settings.compressor!r} is unknown; expected a number, 0 or more"
        )


def is_compressor(settings: Any, name: str = "compressor") -> Any:
    """Require the named field to be a compressor, and return it; one with ``compress`` alone is given a codec."""
    by = getattr(settings, name)
    if isinstance(by, type) or not hasattr(by, "compress"):
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}; expected an object of fedsim.compress, such as TopK(0.01),"
            " or of a class with a method compress(x, at)"
        )
    what = f"{type(settings).__name__}.{name}: {type(by).__name__}.compress"
    takes(what, by.compress, "x", "at")
    if not type(by).__module__.startswith("fedsim."):
        _writes_elsewhere(what, by)
    if not any(hasattr(by, verb) for verb in CODEC):
        by = OwnCompressor(by)
        object.__setattr__(settings, name, by)             # frozen
    if lacking := [verb for verb in SIMULATED if not callable(getattr(by, verb, None))]:
        raise ConfigError(
            f"{type(settings).__name__}.{name}: {type(by).__name__} lacks {', '.join(lacking)}; expected compress"
            " alone, or all methods of fedsim.values.Compressor (encode and decode for deployments only)"
        )
    return by


class _Site:
    """A site for vectors ``[12]``."""

    shapes = (torch.Size([3, 4]),)

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        return torch.tensor(tag)


def _writes_elsewhere(what: str, by: Any) -> None:
    """Reject a compressor that writes into the vector that it is given: to the client it is not lossy then."""
    x = torch.linspace(-2, 2, 12)
    before, version = x.clone(), x._version
    with contextlib.suppress(Exception):                   # a run says what is wrong, with its own vectors
        by.compress(x, _Site())
    if x._version != version or not torch.equal(x, before):
        raise ConfigError(
            f"{what} writes into its argument, which the client goes on with; expected it to return another tensor:"
            " begin with x = x.clone()"
        )


def needs_no_layers(settings: Any, name: str = "compressor") -> None:
    """Require the named compressor to accept any vector, not only the model's layers."""
    by = is_compressor(settings, name)
    if getattr(by, "by_layer", False):
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}, which needs the model's layers, but gets a part of the"
            " model's vector; expected one that takes any vector, such as QSGD or TopK with scope 'global'"
        )


def contractive(settings: Any, name: str = "compressor") -> None:
    """Reject a named compressor that is only unbiased: compressed differences to a memory need a shrinking error."""
    by = is_compressor(settings, name)
    if by.alpha(LONG) is None and by.omega(LONG) is not None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}, which is unbiased and may lengthen what it compresses;"
            f" expected a contractive one: Scaled({by!r}), which divides by 1 + omega"
        )


def unbiased(settings: Any, name: str = "compressor") -> None:
    """Require the named compressor to be unbiased."""
    by = is_compressor(settings, name)
    if by.omega(LONG) is None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}, which is biased; expected an unbiased one, such as RandK,"
            " QSGD or Natural, or use EF21 with it"
        )
