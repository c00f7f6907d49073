"""What does not go with clients whose samples a function gives."""

from __future__ import annotations

from typing import Any

from fedsim.errors import ConfigError
from fedsim.partition import NaturalIdPartitioner
from fedsim.robust.attack import Attack


def check_source(experiment: Any) -> None:
    """Refuse settings that need all samples in memory, of an ``Experiment`` whose samples come from a function.

    Raises:
        ConfigError: there is one.
    """
    if getattr(experiment.data, "source", None) is None:
        return
    attack = experiment.attack
    for given, reason in (
        (
            experiment.division != NaturalIdPartitioner() and "partition",
            "its clients are those of the function; leave it out",
        ),
        (experiment.skew is not None and "skew", "distort samples in the function"),
        (
            attack is not None and type(attack).poison is not Attack.poison and f"attack {type(attack).__name__}",
            "change samples in the function, or use an attack on messages",
        ),
        (experiment.execution.backend == "ray" and "backend ray", "use auto, loop or blocks"),
    ):
        if given:
            raise ConfigError(f"{given} is for samples in memory, not those of {experiment.data.name!r}; {reason}")
