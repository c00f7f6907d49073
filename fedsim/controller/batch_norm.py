"""Check by trial that a method averages BatchNorm's running statistics correctly.

The statistics of a BatchNorm layer that comes first depend on the samples alone. What they should be is therefore known
without running the method: each client's moving averages over its minibatches, and then their mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithm import has_server
from fedsim.clients import cohort
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError, ModelError, many
from fedsim.experiment.experiment import Experiment
from fedsim.models.losses import squared

COHORTS = ((0, 1, 2), (0, 2), (0, 1, 2))
"""Cohorts of three rounds, for methods with a server."""

SIZES, FEATURES = (8, 6, 4), 2

APART = 10.0
"""Mean of the inputs of clients 0 and 2 in standard deviations, and of client 1 with another sign: their updates cancel
in the mean, by which some servers choose their step.
"""


def check_statistics(experiment: Experiment) -> None:
    """Check that the method of an experiment averages BatchNorm's statistics, on a small federation of its own.

    Raises:
        ModelError: it does not.
    """
    try:
        gap = _gap(experiment)
        reason = f"they are off by {gap:.2g} of their size after {len(COHORTS)} rounds"
    except Exception as error:
        gap, reason = np.inf, f"{type(error).__name__}: {error}"
    if not gap < 1e-9:
        raise ModelError(
            f"the model has BatchNorm in training mode, and {type(experiment.algorithm).__name__} with these settings"
            f" does not leave the mean of the clients' running statistics at the server ({reason}). Train without"
            " them, fedsim.models.group_norm(model); with frozen ones, layer.eval(); or by a method that averages the"
            " clients' models, such as FedAvg"
        )


def check_minibatches(federation: Federation, sizes: np.ndarray) -> None:
    """Check that no client has a minibatch of one sample that the model cannot take.

    Args:
        federation: the model, and a sample to try.
        sizes: numbers of the clients' samples ``[n]``, for this seed or another.

    Raises:
        ConfigError: there is such a client.
    """
    model, work, shards = federation.model, federation.work, federation.shards
    batch = work.batch(sizes)
    alone = np.flatnonzero(((sizes - 1) % batch == 0) & (work.counts(sizes) > (sizes - 1) // batch))
    if not len(alone):
        return
    rows, initial = shards.rows(int(shards.sizes.argmax())), model.vector()
    try:
        model.gradient(initial, rows.part(slice(1)))
    except ValueError as error:                            # of torch
        raise ConfigError(
            f"{len(alone)} of {many(len(sizes), 'client')} have a minibatch of one sample, as client {alone[0]} with"
            f" {sizes[alone[0]]} samples and local.batch_size {work.batch_size}, but BatchNorm cannot normalise it"
            f" ({error}); choose another batch_size, or local.steps that end before"
        ) from error
    finally:
        model.load(initial)


def _gap(experiment: Experiment) -> float:
    """Largest relative error of the statistics."""
    method: Any = replace(experiment, attack=None).method
    fed = _federation(experiment, central := has_server(method))
    state, expected = method.init(fed.model.vector(), cohort(fed, 0)), fed.model.vector()[-2 * FEATURES :]
    gap = 0.0
    for round, ids in enumerate(COHORTS if central else (COHORTS[0],) * len(COHORTS), 1):
        clients = cohort(fed, round, np.array(ids))
        state = method.round(state, clients)
        each = torch.stack([_after(fed, expected, round, i) for i in ids])
        weights = torch.from_numpy(fed.p[list(ids)])
        expected = weights @ each / weights.sum()
        for x in [state.x] if central else [state.x[i] for i in ids]:
            gap = max(gap, float((x[-2 * FEATURES :] - expected).norm() / expected.norm()))
    return gap


def _federation(experiment: Experiment, central: bool) -> Federation:
    from topologies import Complete, Static  # imports networkx, which a run with a server does without

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), FEATURES, generator=generator, dtype=torch.float64).cumsum(0)
    x += APART * torch.repeat_interleave(torch.tensor([1, -1, 1]), torch.tensor(SIZES))[:, None]
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 1))
    return Federation(
        Model(module, _flat, dtype=torch.float64, mixes=True),
        Shards(x, x.sum(1), np.r_[0, np.cumsum(SIZES)]),
        replace(experiment.local, batch_size=2, epochs=1, steps=None, augment=None),
        0,
        Loop(),
        weights=np.array(SIZES) if central and experiment.weights == "samples" else None,
        topology=None if central else Static(Complete()),
    )


def _flat(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of small gradients, so that steps of any size are short: the statistics do not depend on it."""
    return 1e-12 * squared(outputs, targets)


def _after(fed: Federation, statistics: Tensor, round: int, client: int) -> Tensor:
    """Running means and variances of a client after its local work, from ``statistics`` before it."""
    (plan,) = minibatches(fed.work, fed.shards, fed.seed, round, np.array([client]))
    for rows in plan.index:
        batch = fed.shards.x[torch.from_numpy(rows)]
        statistics = 0.9 * statistics + 0.1 * torch.cat([batch.mean(0), batch.var(0)])
    return statistics
