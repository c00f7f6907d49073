"""Protocol of robust rules: rows in, one vector out, with the number of Byzantine rows that each tolerates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.checks import whole
from fedsim.errors import ConfigError
from fedsim.robust.stack import RowStack
from fedsim.values import Vector


class Occasion(NamedTuple):
    """Where and when rows are aggregated.

    Attributes:
        key: random key, int64 0-dim; without one, rules that draw something keep the order of the rows.
        own: row of the node that aggregates, in gossip; None at a server.
        last: the rule's last result, ``[d]``; None in the first round, or if the rule does not need it.
    """

    key: Tensor | None = None
    own: int | None = None
    last: Vector | None = None


class RobustRule(ABC):
    """Base of the rules in ``fedsim.robust``: a frozen dataclass, callable as a ``fedsim.types.Rule``.

    Attributes:
        needs: (a, b) such that the rule needs ``n >= a f + b`` rows.
        robust: False for the mean, which a single row can move anywhere.
        weighted: whether rows may have unequal weights.
        remembers: whether the rule reads its last result.
        local: whether the rule reads the own row of the node that aggregates.
    """

    needs = (0, 1)                                         # no annotations: subclasses elsewhere could not resolve them
    robust = True
    weighted = False
    remembers = False
    local = False

    def __post_init__(self) -> None:
        whole(f"{type(self).__name__}.f", getattr(self, "f", 0), 0)

    def __call__(self, rows: Tensor, weights: Tensor | None = None, at: Occasion = Occasion()) -> Vector:  # noqa: B008
        """Aggregate ``rows [n, d]``, finite, with ``weights [n]`` that sum to 1 (equal by default), to ``[d]``.

        Raises:
            ConfigError: too few rows for ``f``, or unequal weights for a rule that has none.
        """
        stack = RowStack(rows)
        check(self, len(stack))
        n = len(stack)
        weights = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights.double().cpu()
        if not self.weighted and bool((weights - 1 / n).abs().max() > 1e-6):
            raise ConfigError(
                f"{name_of(self)} treats all rows alike, but their weights are unequal; set weights to uniform, or use"
                " Mean, NormMean, GeometricMedian or CenteredClipping"
            )
        return self.aggregate(stack, weights, at).to(rows.dtype)

    @abstractmethod
    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """Aggregate a stack of enough rows with weights, float64 ``[n]`` on the CPU."""


def name_of(rule: Any) -> str:
    """Name of a rule with the rule that it contains, such as "NNM, Krum"."""
    inner = getattr(rule, "rule", None)
    return own_name(rule) if inner is None else f"{own_name(rule)}, {name_of(inner)}"


def own_name(rule: Any) -> str:
    """Name of a function, of that in a ``functools.partial``, or of a rule's or an attack's class."""
    function = getattr(rule, "func", rule)
    return getattr(function, "__name__", type(function).__name__)


def check(rule: Any, n: int, place: str = "") -> None:
    """Raise ConfigError if ``n`` rows are too few for a rule; ``place`` begins the error."""
    for each in parts(rule):
        a, b = getattr(each, "needs", (0, 1))
        f = getattr(each, "f", None) or 0
        if n < a * f + b:
            most = max((n - b) // a, 0) if a else 0
            fix = f"f at most {most}" if a and n >= b else f"at least {a * f + b} rows"
            formula = f"{a if a > 1 else ''}f + {b}" if a else f"{b}"
            raise ConfigError(
                f"{place}{type(each).__name__} with f = {f} needs {formula} = {a * f + b} rows or more, and there are"
                f" {n}; expected {fix}"
            )
        n = each.left(n) if hasattr(each, "left") else n


def parts(rule: Any) -> list[Any]:
    """A rule, then the rules that it contains, from the outside in."""
    inner = getattr(rule, "rule", None)
    return [rule] if inner is None else [rule, *parts(inner)]


def tolerated(rule: Any, n: int) -> int:
    """Number of faulty rows among ``n`` that a rule tolerates: its f, or for rules without one a minority."""
    if not isinstance(rule, RobustRule) or not all(each.robust for each in parts(rule)):
        return 0                                           # nothing is known of a function
    known = [f for each in parts(rule) if (f := getattr(each, "f", None)) is not None]
    return min(known) if known else (n - 1) // 2


def with_f(rule: Any, f: int) -> Any:
    """The rule for ``f`` Byzantine rows, in all its parts that have an f."""
    if not is_dataclass(rule) or isinstance(rule, type):
        return rule
    new = {"f": f} if any(field.name == "f" for field in fields(rule)) and getattr(rule, "f", None) is not None else {}
    inner = getattr(rule, "rule", None)
    return replace(rule, **new, **({} if inner is None else {"rule": with_f(inner, f)}))
