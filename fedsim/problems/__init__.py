"""Problems with known minimiser and smoothness constants, to compare algorithms with theory."""

from collections.abc import Callable

from fedsim.problems.constants import Constants
from fedsim.problems.logistic import logistic_regression
from fedsim.problems.problem import Problem
from fedsim.problems.quadratic import least_squares, quadratic_from, zeta_least_squares

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "least_squares": least_squares,
    "zeta_least_squares": zeta_least_squares,
    "logistic_regression": logistic_regression,
}
"""Problems that can be selected by name, like data sets."""

__all__ = [
    "PROBLEMS",
    "Constants",
    "Problem",
    "least_squares",
    "logistic_regression",
    "quadratic_from",
    "zeta_least_squares",
]
