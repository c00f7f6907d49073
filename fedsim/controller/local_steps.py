"""Check at set-up that an algorithm makes local steps, if there are settings that have no effect without them."""

from __future__ import annotations

from dataclasses import replace

from fedsim.clients import cohort
from fedsim.controller.prepare import Prepared
from fedsim.engine.dry_run import Dry
from fedsim.engine.memory import OnDevice
from fedsim.errors import ConfigError, DivergenceError
from fedsim.experiment.experiment import Experiment
from fedsim.types import Batch

ROUNDS = 3
"""Rounds within which a method has to make a local step; some methods toss a coin for it."""


def check_local_steps(experiment: Experiment, prepared: Prepared) -> None:
    """Run the algorithm without data or gradients, if a setting has an effect in ``local.descend`` only.

    Raises:
        ConfigError: the algorithm did not call it, or refuses the local optimiser.
    """
    settings = experiment.local.step_settings
    settings += ["share"] * (prepared.federation.model.sharing is not None)
    if not settings:
        return
    test, algorithm = prepared.test, experiment.algorithm
    dry = Dry(Batch(test.x, test.y).part(slice(1)))
    fed = replace(prepared.federation, backend=dry, memory=OnDevice())
    try:
        state = algorithm.init(fed.model.shared(), cohort(fed, 0))
        for round in range(1, ROUNDS + 1):
            ids = experiment.participation.cohort(fed.seed, round, fed.shards.n)
            state = algorithm.round(state, cohort(fed, round, ids))
            if dry.descended:
                return
    except DivergenceError:                                # with zero gradients; a real round will show
        return
    raise ConfigError(
        f"{type(algorithm).__name__} made no step by local.descend when it was tried with zero gradients, so"
        f" {' and '.join(settings)} would have no effect; leave {'it' if len(settings) == 1 else 'them'} out, or use a"
        " method whose local steps are made by it, such as FedAvg (a method of your own: whatever the gradients are)"
    )
