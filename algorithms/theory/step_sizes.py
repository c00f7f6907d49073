"""Step sizes that are proved for an algorithm (``Theory``), the call that finds them, and terms that formulas share."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple, TypeAlias, TypeVar

from fedsim import Compressor
from fedsim.errors import ConfigError
from fedsim.problems import Constants, Problem

Task: TypeAlias = Problem | Constants
"""A problem whose constants are known, or the constants."""

A = TypeVar("A")


class Theory(NamedTuple):
    """Step sizes gamma by the regime that they are proved in, and the constants that they are made of."""

    gamma: dict[str, float]
    constants: dict[str, float]


@singledispatch
def theory_of(algorithm: Any, task: Task) -> Theory:
    """Step sizes of an algorithm on a task; some take more, such as ``participation``, the share of clients in a round.

    Raises:
        ConfigError: the constants of the task are unknown, or nothing is known for these settings.
    """
    name = type(algorithm).__name__
    raise ConfigError(f"no step size of theory is known for {name}; set its lr, for instance to that of EF21")


def with_theory(algorithm: A, task: Task, factor: float = 1.0, regime: str = "", **options: Any) -> A:
    """The algorithm with ``lr`` set to ``factor`` times a step size of its theory.

    Args:
        algorithm: one that ``theory_of`` knows.
        task: a problem of ``fedsim.problems``, or its constants.
        factor: experiments sweep powers of 2.
        regime: a key of ``Theory.gamma``; the algorithm's first by default.
        options: what else its theory takes, such as ``participation``.

    Raises:
        ConfigError: the constants are unknown, or there is no such step size.
    """
    name = type(algorithm).__name__
    _, _, *known = inspect.signature(theory_of.dispatch(type(algorithm))).parameters
    if unknown := options.keys() - set(known):
        takes = f"it takes {', '.join(known)}" if known else "it takes none, as everybody is in every round"
        raise ConfigError(f"the theory of {name} knows no {', '.join(sorted(unknown))}; {takes}")
    gammas = theory_of(algorithm, task, **options).gamma
    regime = regime or next(iter(gammas))
    if regime not in gammas:
        raise ConfigError(
            f"{name} has no step size for the regime {regime!r} here; it has {', '.join(gammas)} (PL needs a task with"
            " mu > 0)"
        )
    return dataclasses.replace(algorithm, lr=factor * gammas[regime])  # type: ignore[type-var]


def constants_of(task: Task) -> Constants:
    """The constants of a task.

    Raises:
        ConfigError: they are not known.
    """
    constants = task.constants if isinstance(task, Problem) else task
    if not isinstance(constants, Constants):
        raise ConfigError(
            f"theory was asked of {type(task).__name__} {task!r:.60}, whose smoothness constants L and L_i are unknown;"
            " expected a problem of fedsim.problems, or fedsim.problems.Constants(L, L_i, d)"
        )
    return constants


def refuse_minibatches(algorithm: Any) -> None:
    """For theory of full gradients.

    Raises:
        ConfigError: ``algorithm.gradient`` is "minibatch".
    """
    if algorithm.gradient == "minibatch":
        raise ConfigError(
            f'no step size of {type(algorithm).__name__} is proved for gradient = "minibatch"; set gradient to "full",'
            " or lr by hand (EF21SGDM and EF21PAGE have step sizes for minibatches)"
        )


def refuse_no_share(participation: float) -> None:
    """Raise ConfigError unless ``participation`` is a share of the clients."""
    if not 0 < participation <= 1:
        raise ConfigError(f"participation is {participation}; expected a share above 0 and at most 1")


def alpha_of(compressor: Compressor, d: int) -> float:
    """The contraction of a compressor of ``d`` coordinates.

    Raises:
        ConfigError: it is not known to be contractive.
    """
    alpha = compressor.alpha(d)
    if alpha is None:
        raise ConfigError(f"theory needs alpha of {compressor!r}, which is not known to be contractive; use Scaled")
    return alpha


def nonconvex(c: Constants, gain: Callable[[float], float]) -> dict[str, float]:
    """``1 / (L + Gamma)`` for a ``gain`` by L~, the quadratic mean of the L_i, or ("AM") their arithmetic mean.

    The smaller mean holds for any method whose clients do not hear of each other: it only weighs their errors by
    L_AM / L_i (Richtarik, Gasanov, Burlachenko 2024).
    """
    return {f"nonconvex{name}": 1 / (c.L + gain(L)) for name, L in (("", c.L_QM), (" AM", c.L_AM))}


def theta(alpha: float) -> float:
    """``1 - sqrt(1 - alpha)``."""
    return 1 - math.sqrt(1 - alpha)


def beta(alpha: float) -> float:
    """``(1 - alpha) / theta(alpha)``."""
    return (1 - alpha) / theta(alpha)


def xi(alpha: float) -> float:
    """``sqrt(beta / theta)``, in the form that loses no digits."""
    return (1 + math.sqrt(1 - alpha)) / alpha - 1
