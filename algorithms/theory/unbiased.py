"""DCGD, DIANA and MARINA with an unbiased compressor, whose variance is omega; L~ is the quadratic mean of the L_i.

    DCGD    convex f   gamma = 1 / (L + 2 omega max_i L_i / n): gradient descent's 1 / L with the identity
    DIANA   nonconvex  gamma = 1 / (10 L sqrt(1 + omega / n) (2 + omega))         (with the default alpha)
            convex     gamma = 1 / (L_max (1 + 6 omega / n))
    MARINA  nonconvex, everybody:   gamma = 1 / (L~ (1 + sqrt((1 - p) omega / (p n))))
            nonconvex, r clients:   gamma = 1 / (L~ (1 + sqrt((1 - p) (1 + omega) / (p r))))
"""

from __future__ import annotations

import math

from algorithms.dcgd import DCGD
from algorithms.diana import DIANA
from algorithms.marina import MARINA
from algorithms.parts import omega_of
from algorithms.theory.step_sizes import Task, Theory, constants_of, refuse_minibatches, refuse_no_share, theory_of


@theory_of.register
def _dcgd(algorithm: DCGD, task: Task) -> Theory:
    refuse_minibatches(algorithm)
    c = constants_of(task)
    omega = omega_of(algorithm.compressor, c.d)
    gamma = 1 / (c.L + 2 * omega * c.L_max / c.n)
    return Theory({"convex": gamma}, {"omega": omega, "L": c.L, "L_max": c.L_max})


@theory_of.register
def _diana(algorithm: DIANA, task: Task) -> Theory:
    refuse_minibatches(algorithm)
    c = constants_of(task)
    omega = omega_of(algorithm.compressor, c.d)
    nonconvex = 1 / (10 * c.L * math.sqrt(1 + omega / c.n) * (2 + omega))
    gammas = {"nonconvex": nonconvex, "convex": 1 / (c.L_max * (1 + 6 * omega / c.n))}
    return Theory(gammas, {"omega": omega, "L": c.L, "L_max": c.L_max})


@theory_of.register
def _marina(algorithm: MARINA, task: Task, participation: float = 1.0) -> Theory:
    refuse_minibatches(algorithm)
    refuse_no_share(participation)
    c = constants_of(task)
    omega, p = omega_of(algorithm.compressor, c.d), algorithm.probability(c.d, participation)
    variance = omega / c.n if participation == 1 else (1 + omega) / (participation * c.n)
    gamma = 1 / (c.L_QM * (1 + math.sqrt((1 - p) * variance / p)))
    return Theory({"nonconvex": gamma}, {"omega": omega, "p": p, "L_QM": c.L_QM})
