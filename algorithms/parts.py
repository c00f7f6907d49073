"""Parts that several algorithms share: gradients over a round's minibatches, local steps, common checks."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch

from fedsim import SGD, Batch, Clients, Compressor, Local, Vector
from fedsim.checks import non_negative, one_of, share
from fedsim.compress.checks import contractive
from fedsim.errors import ConfigError

EPS = 1e-12  # keeps g / ||g|| finite where the gradient vanishes

Gradient = Literal["full", "minibatch"]
"""Of the whole shard, or of the samples in the round's minibatches: over an epoch, the same."""

Start = Literal["dense", "compressed", "zero"]
"""How clients' first estimates of their gradients begin: as they are, compressed, or zero."""


def gradient_of(local: Local, x: Vector, kind: Gradient) -> Vector:
    """A client's gradient ``[d]`` at ``x``, of that kind."""
    return local.grad(x) if kind == "full" else mean_gradient(local, x)


def mean_gradient(local: Local, x: Vector) -> Vector:
    """Mean of the gradients at ``x`` over the samples of this round's minibatches; in an epoch, the whole shard's."""

    def step(g: Vector, batch: Batch, x: Vector, share: Vector) -> Vector:
        return g + share * local.grad(x, batch)

    return local.fold(step, torch.zeros_like(x), x, shares=True)


def mean_difference(local: Local, x: Vector, y: Vector) -> Vector:
    """Mean of the gradients at ``x`` minus those at ``y`` over the samples of this round's minibatches."""

    def step(total: Vector, batch: Batch, x: Vector, y: Vector, share: Vector) -> Vector:
        return total + share * (local.grad(x, batch) - local.grad(y, batch))

    return local.fold(step, torch.zeros_like(x), x, y, shares=True)


def sam_gradient(local: Local, y: Vector, batch: Batch, rho: float) -> Vector:
    """``grad f(y + rho g / ||g||)`` with ``g = grad f(y)``, both on ``batch``; ``g`` itself where rho is 0."""
    g = local.grad(y, batch)
    return local.grad(y + rho * g / (torch.linalg.vector_norm(g) + EPS), batch) if rho else g


def plain_steps(local: Local, why: str) -> None:
    """Raise ConfigError, which says ``why``, unless local steps are those of SGD with one step size."""
    if not isinstance(local.optimizer, SGD):
        raise ConfigError(f"local.optimizer is {type(local.optimizer).__name__}, but {why}")
    if local.step_schedule is not None:
        raise ConfigError(
            f"local.step_schedule changes the step size within a round, but {why.partition(';')[0]}; leave it out, or"
            " use the experiment's schedule, of rounds"
        )


def one_momentum(local: Local, settings: Any) -> None:
    """Raise ConfigError if the algorithm's own ``momentum`` meets an optimiser that has one."""
    by = local.optimizer
    if settings.momentum and (getattr(by, "momentum", 0) or getattr(by, "beta1", 0)):
        name = type(settings).__name__
        raise ConfigError(
            f"local.optimizer {type(by).__name__} and {name}.momentum {settings.momentum} are two momenta of the same"
            f" steps; set {name}.momentum to 0"
        )


def omega_of(compressor: Compressor, d: int) -> float:
    """The variance of a compressor of ``d`` coordinates.

    Raises:
        ConfigError: it is biased.
    """
    omega = compressor.omega(d)
    if omega is None:
        raise ConfigError(f"theory needs omega of {compressor!r}, which is biased; use an unbiased one, or EF21")
    return omega


def consensus_step(settings: Any) -> None:
    """Check ``gamma`` and ``compressor`` of compressed gossip."""
    share(settings, "gamma")
    contractive(settings)


def everybody(clients: Clients, name: str) -> None:
    """Raise unless all nodes take part: a correction that a node misses would never be made up for."""
    if len(clients) < clients.n:
        raise ConfigError(
            f"{name} needs every node in every round, {len(clients)} of {clients.n} take part; set sampling.fraction"
            " to 1, or use DFedAvg or DFedSAM, which allow absent nodes"
        )


def local_sgd(local: Local, x: Vector, lr: float) -> Vector:
    """The local steps of a round from ``x``: ``y <- y - eta grad f_i(y; B)`` over its minibatches."""

    def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
        return local.descend(y, local.grad(y, batch), eta)

    return local.fold(step, x, lr * local.decay)


def heavy_ball(local: Local, x: Vector, lr: float, momentum: float) -> Vector:
    """The same with momentum: ``m <- theta m + grad f_i(y; B),  y <- y - eta m``; m starts at 0 in every round."""

    def step(carry: tuple[Vector, Vector], batch: Batch, eta: Vector) -> tuple[Vector, Vector]:
        y, m = carry
        m = momentum * m + local.grad(y, batch)
        return local.descend(y, m, eta), m

    return local.fold(step, (x, torch.zeros_like(x)), lr * local.decay)[0]


def sarah_steps(local: Local, x: Vector, v: Vector, lr: float) -> Vector:
    """The local steps of a round from ``x`` along an estimate of the gradient that begins with ``v`` and is recursive:

    ``g <- g - grad f_i(y'; B) + grad f_i(y; B),  (y', y) <- (y, y - eta g)``. In the first step the two gradients
    cancel, so it needs none. Source: SARAH, Nguyen, Liu, Scheinberg, Takac, ICML 2017 (arXiv 1703.00102).
    """

    def step(carry: tuple[Vector, Vector, Vector], batch: Batch, eta: Vector) -> tuple[Vector, Vector, Vector]:
        y_prev, y, g = carry
        g = g - local.grad(y_prev, batch) + local.grad(y, batch)
        return y, y - eta * g, g

    eta = lr * local.decay
    return local.fold(step, (x, x - eta * v, v), eta, skip=1)[1]


Staleness = Literal["constant", "polynomial", "hinge"]
"""Weights of messages by their delay, after FedAsync (Xie et al. 2019)."""


def staleness_weight(kind: Staleness, tau: np.ndarray, a: float, b: float) -> np.ndarray:
    """Weights ``[c]`` of messages that are ``tau [c]`` server steps late."""
    weights: np.ndarray = np.ones(len(tau))
    if kind == "polynomial":
        weights = (1.0 + tau) ** -a
    elif kind == "hinge":
        weights = 1 / (a * np.maximum(tau - b, 0) + 1)
    return weights


def check_staleness(settings: Any) -> None:
    """Require the settings of a weight of staleness to be in range."""
    one_of(settings, "staleness", get_args(Staleness))
    non_negative(settings, "a", "b")
