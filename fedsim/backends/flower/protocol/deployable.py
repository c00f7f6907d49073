"""What real clients do not do, refused before a federation is started, and by the server however it was started."""

from __future__ import annotations

from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Experiment


def check_deployable(experiment: Experiment) -> None:
    """Raise ConfigError for what is of simulations alone: attacks, simulated seconds, samplings by losses."""
    if experiment.attack is not None:
        raise ConfigError("attack is for simulations: the clients of a deployment are what they are; leave it out")
    if experiment.clock is not None:
        raise ConfigError("a deployment takes real seconds, and the experiment simulates them; leave clock out")
    if hasattr(experiment.sampling, "choose"):
        name = type(experiment.sampling).__name__
        raise ConfigError(f"sampling {name} needs losses that real clients do not report; expected e.g. FixedSize")
