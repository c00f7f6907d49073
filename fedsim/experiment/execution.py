"""Settings of the Ray backend; Ray itself is not imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedsim.checks import number, one_of, whole
from fedsim.errors import ConfigError

OnError = Literal["stop", "skip", "retry"]


@dataclass(frozen=True)
class Ray:
    """Processes on the processors and GPUs of this machine or a cluster.

    Args:
        address: of a cluster to join, as 10.0.0.1:6379; by default a session of our own on this machine.
        actors: number of processes; by default as many as processors and GPUs allow.
        cpus: processors for each.
        gpus: share of a GPU for each, such as 0.25; measured when there are GPUs and none is given.
        threads: of PyTorch in each; as many as processors by default.
        object_store_memory: bytes of shared memory for samples, memories of clients and what travels; Ray's share of
            the machine by default. What does not fit is spilled to disk.
        on_error: when a client's code raises: "stop" the run, "skip" the client in this round, or "retry" the round.
        log_to_driver: print what the processes print.
    """

    address: str | None = None
    actors: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    threads: int | None = None
    object_store_memory: int | None = None
    on_error: OnError = "stop"
    log_to_driver: bool = False

    def __post_init__(self) -> None:
        one_of(self, "on_error", get_args(OnError))
        for name in ("actors", "threads", "object_store_memory"):
            if getattr(self, name) is not None:
                whole(f"ray.{name}", getattr(self, name), 1)
        number("ray.cpus", self.cpus, lambda v: v > 0, "a finite number above 0")
        if self.gpus is not None:
            expected = "a share from 0 to 1, or a whole number of GPUs"
            number("ray.gpus", self.gpus, lambda v: 0 <= v <= 1 or (v > 1 and v.is_integer()), expected)
        if self.address is not None and self.object_store_memory is not None:
            raise ConfigError("ray.object_store_memory is given with ray.address; a cluster has its own: leave it out")
