"""Checks of hyper-parameters, used in ``__post_init__`` so that a bad value fails before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from fedsim.errors import ConfigError

_ANY_LENGTH = 2**40                                        # for queries that do not depend on a vector's length

SIMULATED = ("compress", "unpack", "nbytes", "paper_bits", "alpha", "omega")
"""Methods of a compressor that a simulation calls."""


def positive(settings: Any, *names: str) -> None:
    """Require each named field to be a finite number above 0."""
    for name in names:
        _require(settings, name, lambda v: v > 0, "a finite number above 0")


def non_negative(settings: Any, *names: str) -> None:
    """Require each named field to be a finite number, 0 or more."""
    for name in names:
        _require(settings, name, lambda v: v >= 0, "a finite number, 0 or more")


def non_negative_or_alpha(settings: Any, name: str) -> None:
    """Require the named field to be a number, 0 or more, or None if ``settings.compressor`` has a known alpha."""
    if getattr(settings, name) is not None:
        non_negative(settings, name)
    elif settings.compressor.alpha(_ANY_LENGTH) is None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is None, which stands for the compressor's alpha, but that"
            f" of {settings.compressor!r} is unknown; expected a number, 0 or more"
        )


def in_range(settings: Any, name: str, low: float, high: float, closed: bool = False) -> None:
    """Require the named field to be in [low, high), or in [low, high] if ``closed``."""
    end = "]" if closed else ")"
    _require(settings, name, lambda v: low <= v < high or (closed and v == high), f"a number in [{low}, {high}{end}")


def share(settings: Any, name: str) -> None:
    """Require the named field to be above 0 and at most 1."""
    _require(settings, name, lambda v: 0 < v <= 1, "a number above 0 and at most 1")


def at_least_one(settings: Any, *names: str) -> None:
    """Require each named field to be a whole number, 1 or more."""
    for name in names:
        whole(f"{type(settings).__name__}.{name}", getattr(settings, name), 1)


def whole(place: str, value: Any, least: int, also: str = "") -> None:
    """Require ``value`` of setting ``place`` to be a whole number, ``least`` or more; ``also`` extends the error."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{place} is {value!r}; expected a whole number, {least} or more{also}")


def number(place: str, value: Any, test: Callable[[float], bool], expected: str) -> None:
    """Require ``value`` of setting ``place`` to be a finite number that passes ``test``, described by ``expected``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or not test(float(value)):
        raise ConfigError(f"{place} is {value!r}; expected {expected}")


def plain_name(name: str) -> None:
    """Require the name of a run to be a valid directory name."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(f"name is {name!r}; expected a plain directory name, without / and not starting with a dot")


def one_of(settings: Any, name: str, choices: Sequence[str]) -> None:
    """Require the named field to be one of ``choices``."""
    value = getattr(settings, name)
    if value not in choices:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {value!r}; expected one of {', '.join(map(repr, choices))}"
        )


def is_compressor(settings: Any, name: str = "compressor") -> Any:
    """Require the named field to be a compressor, and return it."""
    by = getattr(settings, name)
    if isinstance(by, type) or not hasattr(by, "compress"):
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}; expected an object of fedsim.compress, such as TopK(0.01)"
        )
    if lacking := [verb for verb in SIMULATED if not callable(getattr(by, verb, None))]:
        raise ConfigError(
            f"{type(settings).__name__}.{name}: {type(by).__name__} lacks {', '.join(lacking)}; expected the methods of"
            " fedsim.values.Compressor (encode and decode for deployments only)"
        )
    return by


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
    if by.alpha(_ANY_LENGTH) is None and by.omega(_ANY_LENGTH) is not None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}, which is unbiased and may lengthen what it compresses;"
            f" expected a contractive one: Scaled({by!r}), which divides by 1 + omega"
        )


def unbiased(settings: Any, name: str = "compressor") -> None:
    """Require the named compressor to be unbiased."""
    by = is_compressor(settings, name)
    if by.omega(_ANY_LENGTH) is None:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {by!r}, which is biased; expected an unbiased one, such as RandK,"
            " QSGD or Natural, or use EF21 with it"
        )


def _require(settings: Any, name: str, test: Callable[[float], bool], expected: str) -> None:
    number(f"{type(settings).__name__}.{name}", getattr(settings, name), test, expected)
