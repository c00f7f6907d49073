"""Check that an experiment with asynchronous clients can be run."""

from __future__ import annotations

from typing import Any

from fedsim.algorithm import has_server
from fedsim.checks import whole
from fedsim.engine.optimizers import keeps
from fedsim.errors import ConfigError
from fedsim.feedback.mechanisms import short_name
from fedsim.robust.rule import name_of


def check_concurrency(experiment: Any) -> None:
    """Check the settings of an ``Experiment`` whose clients work at their own pace, if ``concurrency`` is set.

    Raises:
        ConfigError: the method has no asynchronous form, there is no clock, or a setting needs synchronous rounds.
    """
    concurrency, algorithm = experiment.concurrency, experiment.algorithm
    if concurrency is None:
        return
    whole("concurrency", concurrency, 1, ", or none for synchronous rounds")
    name = type(algorithm).__name__
    if not all(hasattr(algorithm, half) for half in ("dispatch", "arrive", "buffer")):
        raise ConfigError(
            f"concurrency is {concurrency}, but {name} has no asynchronous form; leave it out, or use e.g."
            " FedBuff: an algorithm with dispatch, arrive and buffer"
        )
    if experiment.clock is None:
        raise ConfigError("asynchronous clients need a clock, such as --clock Clock, to say when they arrive")
    (_check_server if has_server(algorithm) else _check_meetings)(experiment, name)
    buffer = buffer_of(algorithm)
    if buffer > concurrency:
        raise ConfigError(
            f"{name}.buffer is {buffer}, and concurrency {concurrency}, the clients under way at a time; expected a"
            " buffer of at most that many"
        )


def buffer_of(algorithm: object) -> int:
    """Messages in a server step of an asynchronous method."""
    buffer: int = getattr(algorithm, "buffer")  # noqa: B009
    return buffer


def _check_server(experiment: Any, name: str) -> None:
    uplink, rule = experiment.uplink, experiment.aggregate
    joint = [] if rule is None else [f"aggregate {name_of(rule)}"]
    if uplink is not None and not getattr(uplink, "individual", True):
        joint.append(f"uplink {short_name(uplink)}")
    if joint and getattr(experiment.algorithm, "staleness", "constant") != "constant":
        raise ConfigError(
            f"{joint[0]} gives the server one vector for all messages of a step, so {name} cannot weigh each of them by"
            f" its delay; set algorithm.staleness to constant, or leave {joint[0].split()[0]} out"
        )


def _check_meetings(experiment: Any, name: str) -> None:
    given = [] if experiment.uplink is None else [f"uplink {short_name(experiment.uplink)}"]
    given += [key for key in ("aggregate", "attack") if getattr(experiment, key) is not None]
    given += ["local.optimizer.state keep"] * keeps(experiment.local.optimizer)
    if given:
        verb = "needs" if len(given) == 1 else "need"
        raise ConfigError(
            f"{' and '.join(given)} {verb} synchronous rounds without a server: nodes of {name} meet in pairs, and two"
            f" models are averaged as they are; leave out {given[0]}, or concurrency"
        )
