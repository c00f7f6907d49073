"""Step sizes in theory: what an algorithm's ``theory(task)`` gives, and an algorithm with such a step size.

A contractive compressor has E||C(x) - x||^2 <= (1 - alpha) ||x||^2. With theta = 1 - sqrt(1 - alpha) and beta =
(1 - alpha) / theta, xi = sqrt(beta / theta) = (1 + sqrt(1 - alpha)) / alpha - 1 is what its errors cost: 0 for the
identity, about 2 / alpha for strong compression.

Most step sizes here follow from one lemma. Let x <- x - gamma g, where the errors of g keep to the length of the steps:
    sum_t ||g^t - grad f(x^t)||^2 <= Gamma^2 sum_t ||x^{t+1} - x^t||^2                        (in expectation)
Then gamma = 1 / (L + Gamma) gives  sum_t ||grad f(x^t)||^2 <= 2 (f(x^0) - inf f) / gamma, by summing the descent
    f(x^{t+1}) <= f(x^t) - gamma/2 ||grad f(x^t)||^2
                  + gamma/2 ||g^t - grad f(x^t)||^2 - (1/(2 gamma) - L/2) ||x^{t+1} - x^t||^2
since gamma^2 Gamma^2 + gamma L <= 1. So Gamma is the gain of a method, from steps to errors; gains of parts in a row
multiply, side by side they add up. An estimate that follows a vector by contractive messages, g <- g + C(v - g), has
the gain xi from changes of v to v - g.

Step sizes are those of full gradients, but for EF21SGDM and EF21PAGE, and of rounds in which everybody takes part, but
where ``theory`` takes ``participation``.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from fedsim import Compressor
from fedsim.errors import ConfigError
from fedsim.problems import Constants, Problem

Task: TypeAlias = Problem | Constants
"""What theory can speak of."""

A = TypeVar("A")


class Theory(NamedTuple):
    """Step sizes gamma by the regime that they are proved in, and the constants that they are made of."""

    gamma: dict[str, float]
    constants: dict[str, float]


def with_theory(algorithm: A, task: Task, factor: float = 1.0, regime: str = "", **options: Any) -> A:
    """The algorithm with ``lr`` set to ``factor`` times a step size of its theory.

    Args:
        algorithm: one with a ``theory``.
        task: a problem of ``fedsim.problems``, or its constants.
        factor: experiments sweep powers of 2.
        regime: a key of ``Theory.gamma``; the algorithm's first by default.
        options: what else its ``theory`` takes, such as ``participation``.

    Raises:
        ConfigError: the constants are unknown, or there is no such step size.
    """
    name = type(algorithm).__name__
    theory = getattr(algorithm, "theory", None)
    if theory is None:
        raise ConfigError(f"no step size in theory is known to {name}; set its lr, for instance to that of EF21")
    first, *known = inspect.signature(theory).parameters
    if first != "task":
        raise ConfigError(f"the theory of {name} is of no lr: call its theory({', '.join([first, *known])}) yourself")
    if unknown := options.keys() - set(known):
        takes = f"it takes {', '.join(known)}" if known else "it takes none, as everybody is in every round"
        raise ConfigError(f"the theory of {name} knows no {', '.join(sorted(unknown))}; {takes}")
    gammas = theory(task, **options).gamma
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


def alpha_of(compressor: Compressor, d: int) -> float:
    """The contraction of a compressor of ``d`` coordinates.

    Raises:
        ConfigError: it is not known to be contractive.
    """
    alpha = compressor.alpha(d)
    if alpha is None:
        raise ConfigError(f"theory needs alpha of {compressor!r}, which is not known to be contractive; use Scaled")
    return alpha


def omega_of(compressor: Compressor, d: int) -> float:
    """The variance of a compressor of ``d`` coordinates.

    Raises:
        ConfigError: it is biased.
    """
    omega = compressor.omega(d)
    if omega is None:
        raise ConfigError(f"theory needs omega of {compressor!r}, which is biased; use an unbiased one, or EF21")
    return omega


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
