"""Who defines the clients: the partitioner, a problem, or the function that returns the clients' samples."""

from __future__ import annotations

from typing import Any

from fedsim.data import Dataset
from fedsim.errors import ConfigError
from fedsim.partition import DirichletPartitioner, NaturalIdPartitioner, Partitioner
from fedsim.problems import PROBLEMS, Problem
from fedsim.robust.attack import Attack

DIRICHLET = DirichletPartitioner(50, alpha=0.3)
"""Default partition."""


def is_problem(data: Any) -> bool:
    """True if the data of an experiment is, or names, a ``Problem``."""
    return isinstance(data, Problem) or (not isinstance(data, Dataset) and data.name in PROBLEMS)


def division(data: Any, partition: Partitioner) -> Partitioner:
    """The partitioner with its default resolved: a ``Problem``, or a function of clients, defines its own clients."""
    own = is_problem(data) or getattr(data, "source", None) is not None
    return NaturalIdPartitioner() if own and partition == DIRICHLET else partition


def check_source(experiment: Any) -> None:
    """Check an ``Experiment`` whose samples come from a function, and are not all in memory.

    Raises:
        ConfigError: a setting needs all samples in memory.
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
