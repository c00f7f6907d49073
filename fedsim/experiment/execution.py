"""How an experiment is carried out. Neither Ray nor PyTorch is imported before it is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from fedsim.checks import number, one_of, whole
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    import torch

OnError = Literal["stop", "skip", "retry"]
CHOICES = {
    "backend": ("auto", "loop", "blocks", "ray"),
    "memory": ("device", "host", "disk"),
}


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


@dataclass(frozen=True)
class Execution:
    """How an experiment is carried out; its numbers change by rounding at most.

    Args:
        backend: run clients one by one ("loop"), in blocks ("blocks"), as measured to be fastest of these ("auto"), or
            in several processes ("ray"; also by "auto" where there are several GPUs, or a setting of ``ray`` is given).
        block_size: clients in a block; measured when 0.
        device: "cpu", "cuda", or the best there is.
        threads: of PyTorch in this process; by default as many as it has. Ray's actors have ``ray.threads``, nodes of a
            deployment their own.
        memory: where the clients' memories live between rounds: on the "device", the "host", or the "disk" (a temporary
            file).
        ray: processes of the Ray backend; short as well, as in --ray.actors 2.
        checkpoint_every: rounds between checkpoints; the last round always has one.
        name: name of the run directory; made from algorithm and data when empty.
    """

    backend: Literal["auto", "loop", "blocks", "ray"] = "auto"
    block_size: int = 0
    device: str = "auto"
    threads: int | None = None
    memory: Literal["device", "host", "disk"] = "device"
    ray: Ray = field(default_factory=Ray)
    checkpoint_every: int = 50
    name: str = ""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if not isinstance(self.ray, Ray):
            raise ConfigError(f"ray is {self.ray!r:.200}; expected Ray(actors=2)")
        whole("block_size", self.block_size, 0)
        whole("checkpoint_every", self.checkpoint_every, 1)
        if self.threads is not None:
            whole("threads", self.threads, 1, ", or null for those of the process")
        self.torch_device()
        if self.uses_ray and self.memory != "device":
            raise ConfigError(
                f"memory is {self.memory!r}, but Ray's object store keeps the clients' memories and spills them to"
                " disk; leave it out, and set --ray.object_store_memory"
            )

    @property
    def uses_ray(self) -> bool:
        """Whether clients run in Ray's actors."""
        if self.asks_for_ray:
            return True
        if self.backend != "auto" or self.device not in ("auto", "cuda") or self.memory != "device":
            return False                                   # which ask for this process, or for one GPU
        import torch

        return torch.cuda.device_count() > 1 and find_spec("ray") is not None

    @property
    def asks_for_ray(self) -> bool:
        """Whether Ray's actors were asked for, and are not just the choice where there are several GPUs."""
        return self.backend == "ray" or (self.backend == "auto" and self.ray != Ray())

    @property
    def remarks(self) -> list[str]:
        """Settings that change nothing, in words."""
        unread = self.backend == "loop" and self.block_size
        return ["block_size is for blocks: backend loop makes no use of it"] if unread else []

    def torch_device(self) -> torch.device:
        """The device that ``device`` names."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f'device is {self.device!r}; expected "auto", "cpu" or "cuda"')
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device is {self.device!r}, but this PyTorch ({torch.__version__}) sees no GPU; use --device cpu"
            )
        return device
