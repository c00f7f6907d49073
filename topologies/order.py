"""Natural order of names: numbers in them compare as numbers."""

from __future__ import annotations

import re

NUMBER = re.compile(r"((?<==)-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|[0-9]+)")
"""A run of digits; after ``=``, as in ``lr=0.03``, a decimal number."""


def natural(name: str) -> tuple[tuple[tuple[bool, float, str], ...], str]:
    """Sort key by which ``node-2`` precedes ``node-10``, and ``lr=0.03`` precedes ``lr=0.1``; distinct for distinct
    names."""
    parts = [(bool(i % 2), part) for i, part in enumerate(NUMBER.split(name)) if part]
    return tuple((False, _value(part), "") if number else (True, 0, part) for number, part in parts), name


def _value(digits: str) -> float:
    return int(digits) if digits.isdecimal() else float(digits)
