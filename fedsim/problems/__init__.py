"""Problems with known minimiser and smoothness constants, to hold algorithms against theory."""

from fedsim.problems.constants import Constants
from fedsim.problems.logistic import logistic_regression
from fedsim.problems.problem import Problem
from fedsim.problems.quadratic import least_squares, quadratic_from, zeta_least_squares

__all__ = ["Constants", "Problem", "least_squares", "logistic_regression", "quadratic_from", "zeta_least_squares"]
