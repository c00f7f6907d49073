"""Pre-aggregation: steps that replace rows by combinations of rows before a rule, as in ``NNM(Krum(f=2))``.

- Nearest-neighbour mixing: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, AISTATS 2023 (arXiv 2302.01772).
- Bucketing: Karimireddy, He, Jaggi, ICLR 2022 (arXiv 2006.09365).
- Adaptive robust clipping: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, ICLR 2025 (arXiv 2405.14432).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from inspect import isfunction

import torch
from torch import Tensor

from fedsim.checks import at_least_one, positive
from fedsim.errors import ConfigError
from fedsim.robust.centers import Mean
from fedsim.robust.coordinates import TrimmedMean
from fedsim.robust.rule import Occasion, RobustRule, name_of, parts
from fedsim.robust.stack import RowStack
from fedsim.seeds import uniform_of
from fedsim.values import Vector


class Before(RobustRule):
    """Base of pre-aggregation steps; the field ``rule`` is the rule that follows."""

    rule: RobustRule

    def __post_init__(self) -> None:
        if not isinstance(self.rule, RobustRule):
            given = f"the function {name_of(self.rule)}" if isfunction(self.rule) else f"{self.rule!r:.80}"
            raise ConfigError(
                f"{type(self).__name__}.rule is {given}; expected a rule of fedsim.robust, such as TrimmedMean(f=2), or"
                " a class of your own derived from fedsim.robust.rule.RobustRule"
            )
        f = getattr(self, "f", 0)
        if f is not None:
            super().__post_init__()

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """True if the rule has weights, and this step keeps one row for each."""
        return self.rule.weighted

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """See ``RobustRule``."""
        return self.rule.remembers

    @property
    def local(self) -> bool:  # type: ignore[override]
        """See ``RobustRule``."""
        return self.rule.local

    def left(self, n: int) -> int:
        """Number of rows that ``n`` become."""
        return n

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        new = stack.mixed(self.mixture(stack, at))
        if len(new) != len(stack):
            weights = torch.full((len(new),), 1 / len(new), dtype=torch.float64)
        return self.rule.aggregate(new, weights, at)

    @abstractmethod
    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """Combinations of the rows that replace them, float64 ``[n', n]``."""


@dataclass(frozen=True)
class _Tolerant(Before):
    """Base of steps with a number of Byzantine rows f, by default that of the rule."""

    rule: RobustRule = field(default_factory=TrimmedMean)
    f: int | None = None
    needs = (2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.f is None:
            object.__setattr__(self, "f", f_of(self))


@dataclass(frozen=True)
class NNM(_Tolerant):
    """Nearest-neighbour mixing: every row becomes the mean of the n - f rows nearest to it, itself included.

    Args:
        rule: the rule that follows.
        f: Byzantine rows; n >= 2 f + 1. By default that of the rule.
    """

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """False: the neighbours of a row count alike."""
        return False

    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """See ``Before``."""
        assert self.f is not None
        squares, n = stack.squares.clone().fill_diagonal_(-1), len(stack)
        near = squares.argsort(dim=1, stable=True)[:, : n - self.f]
        return torch.zeros_like(squares).scatter_(1, near, 1 / (n - self.f))


@dataclass(frozen=True)
class Bucketing(Before):
    """The rows in random order become means of s consecutive ones; f of the rule that follows stays what it is.

    Args:
        rule: the rule that follows, on ceil(n / s) rows.
        s: rows in a bucket; the last one may be smaller.
    """

    rule: RobustRule = field(default_factory=TrimmedMean)
    s: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "s")
        if self.local:
            raise ConfigError(f"Bucketing.rule is {self.rule!r}, which needs a node's own row; expected another rule")

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """False: the rows of a bucket count alike."""
        return False

    def left(self, n: int) -> int:
        """See ``Before``."""
        return -(-n // self.s)

    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """See ``Before``."""
        n = len(stack)
        order = torch.arange(n) if at.key is None else uniform_of(at.key.cpu(), n).argsort()
        m = torch.zeros(self.left(n), n, dtype=torch.float64)
        for bucket, rows in enumerate(torch.split(order, self.s)):
            m[bucket, rows] = 1 / len(rows)
        return m


@dataclass(frozen=True)
class Clipping(Before):
    """Every row is shortened to a norm of at most c.

    Args:
        rule: the rule that follows.
        c: largest norm, in units of the rows.
    """

    rule: RobustRule = field(default_factory=Mean)
    c: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "c")

    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """See ``Before``."""
        return torch.diag((self.c / stack.norms).clamp(max=1.0))


@dataclass(frozen=True)
class ARC(_Tolerant):
    """Adaptive robust clipping: the k = floor(2 f (n - f) / n) longest rows are shortened to the norm of the next.

    Args:
        rule: the rule that follows.
        f: Byzantine rows; n >= 2 f + 1. By default that of the rule.
    """

    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """See ``Before``."""
        assert self.f is not None
        n, norms = len(stack), stack.norms
        bound = norms.sort(descending=True).values[2 * self.f * (n - self.f) // n]
        return torch.diag(torch.where(norms > bound, bound / norms, 1.0))


@dataclass(frozen=True)
class Jointly(Before):
    """All vectors of a message are one row for the rule; by default it is applied to each by itself.

    Args:
        rule: the rule.
    """

    rule: RobustRule = field(default_factory=TrimmedMean)

    def mixture(self, stack: RowStack, at: Occasion) -> Tensor:
        """See ``Before``."""
        return torch.eye(len(stack), dtype=torch.float64)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return self.rule.aggregate(stack, weights, at)


def f_of(step: Before) -> int:
    """The f of the rule that follows a step.

    Raises:
        ConfigError: it has none.
    """
    for rule in parts(step)[1:]:
        if (f := getattr(rule, "f", None)) is not None:
            return int(f)
    raise ConfigError(
        f"{type(step).__name__}.f is missing, and {type(step.rule).__name__} has none; expected the number of Byzantine"
        " rows"
    )
