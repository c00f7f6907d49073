"""What cannot be deployed: refused before any process starts, and by the server, which may be started by hand."""

from __future__ import annotations

from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.feedback import EF21P


def check_deployable(experiment: Experiment) -> None:
    """Raise ConfigError for an experiment that real clients cannot run."""
    if isinstance(experiment.downlink, EF21P):
        raise ConfigError("downlink EF21P needs nodes that hold a public model; deployed ones do not: use Plain")
