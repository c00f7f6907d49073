"""EF14 and EControl; alpha is that of C, and xi, L~ and the lemma are those of ``algorithms.theory``.

    EF14      gamma = 1 / (L (1 + xi)), down to a floor. With zeta^2 a bound on the mean of ||grad f_i - grad f||^2, the
              mean over T rounds of ||grad f(z)||^2 is at most
                  2 (f(x) - inf f) / (gamma T) + (gamma L xi zeta)^2
              at z = x - mean e_i, which moves by gamma grad f(x): e_i follows from the gradients with the gain xi, and
              f falls as in the lemma. The last term is the floor.
    EControl  gamma = 1 / (L + L~ 2 q / (2 (1 - q) - eta (1 + q))), with q = sqrt(1 - alpha) and while
              eta < 2 (1 - q) / (1 + q), about alpha / 2: EF21's with eta = 0. The paper proves gamma of the order of
              alpha / L with eta = alpha / 400; its constant is not at hand. By the lemma: let y be what C is applied
              to, and r = y - D. Then
                  new y = grad f_i(new x) - grad f_i(x) + (1 + eta) r - eta^2 e_i,   new e_i = (1 - eta) e_i + r,
                  new h_i - grad f_i(x) = eta e_i - r,
              where r reaches the new y with the gain (2 + eta) / (2 - eta), and the error of h_i with 2 / (2 - eta):
              the greatest values on |z| = 1 of (1 + eta - z) / (1 - (1 - eta) z) and (1 - z) / (1 - (1 - eta) z). As
              ||r|| <= q ||y||, the loop has a gain below 1, and the steps reach r with the gain
              L~ q / (1 - q (2 + eta) / (2 - eta)).
"""

from __future__ import annotations

import math

from algorithms.econtrol import EControl
from algorithms.ef14 import EF14
from algorithms.theory.step_sizes import (
    Task,
    Theory,
    alpha_of,
    constants_of,
    nonconvex,
    refuse_minibatches,
    theory_of,
    xi,
)
from fedsim.errors import ConfigError


@theory_of.register
def _ef14(algorithm: EF14, task: Task) -> Theory:
    refuse_minibatches(algorithm)
    c = constants_of(task)
    alpha = alpha_of(algorithm.compressor, c.d)
    return Theory({"nonconvex": 1 / (c.L * (1 + xi(alpha)))}, {"alpha": alpha, "xi": xi(alpha), "L": c.L})


@theory_of.register
def _econtrol(algorithm: EControl, task: Task) -> Theory:
    refuse_minibatches(algorithm)
    c = constants_of(task)
    alpha = alpha_of(algorithm.compressor, c.d)
    eta, q = alpha if algorithm.eta is None else algorithm.eta, math.sqrt(1 - alpha)
    limit = 2 * (1 - q) / (1 + q)
    if eta >= limit:
        raise ConfigError(
            f"no step size of EControl is proved for eta = {eta:g} and alpha = {alpha:g}, but for eta below {limit:g};"
            " give such an eta, or set lr by hand"
        )
    gammas = nonconvex(c, lambda L: L * 2 * q / (2 * (1 - q) - eta * (1 + q)))
    return Theory(gammas, {"alpha": alpha, "eta": eta, "L": c.L, "L_QM": c.L_QM, "L_AM": c.L_AM})
