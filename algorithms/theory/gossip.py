"""CHOCO-Gossip, whose theory is of the consensus step and of no lr: Koloskova, Stich, Jaggi, ICML 2019, Theorem 2.

With rho = 1 - |lambda_2(W)|, beta = ||I - W|| and alpha of C, the squared distance to consensus falls by
1 - rho^2 alpha / 82 a round for gamma = rho^2 alpha / (16 rho + rho^2 + 4 beta^2 + 2 rho beta^2 - 8 rho alpha). Far
larger gamma work in practice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from algorithms.choco import ChocoSGD
from algorithms.theory.step_sizes import Task, Theory, theory_of
from fedsim import Compressor
from fedsim.errors import ConfigError


class Consensus(NamedTuple):
    """Theory of CHOCO-Gossip."""

    gamma: float  # step size
    rate: float   # factor of the squared distance to consensus in a round, at most
    rho: float    # spectral gap 1 - |lambda_2|
    beta: float   # ||I - W||


def choco_gossip(compressor: Compressor, W: Any, d: int) -> Consensus:
    """The step size gamma of theory, for a symmetric mixing matrix ``W [n, n]`` and vectors of ``d`` numbers.

    Raises:
        ConfigError: W is not symmetric, or the compressor's alpha is unknown.
    """
    W = np.asarray(W.todense() if hasattr(W, "todense") else W)
    alpha = compressor.alpha(d)
    if alpha is None or W.ndim != 2 or W.shape[0] != W.shape[1] or not np.allclose(W, W.T):
        raise ConfigError(
            f"theory of CHOCO needs a symmetric matrix and a compressor of known alpha, got {list(W.shape)} and"
            f" {compressor}"
        )
    values = np.linalg.eigvalsh(W)
    rho, beta = 1 - float(np.sort(abs(values))[-2]), float(1 - values.min())
    gamma = rho**2 * alpha / (16 * rho + rho**2 + 4 * beta**2 + 2 * rho * beta**2 - 8 * rho * alpha)
    return Consensus(gamma, 1 - rho**2 * alpha / 82, rho, beta)


@theory_of.register
def _choco(algorithm: ChocoSGD, task: Task) -> Theory:
    raise ConfigError(
        "the theory of ChocoSGD is of its gamma and of no lr: call"
        " algorithms.theory.gossip.choco_gossip(compressor, W, d)"
    )
