"""Execution settings of an experiment. Ray and PyTorch are imported only when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from fedsim.checks import number, one_of, whole
from fedsim.errors import ConfigError, many, suggest
from fedsim.record.sinks.sink import SINKS

if TYPE_CHECKING:
    import torch

OnError = Literal["stop", "skip", "retry"]
CHOICES = {
    "backend": ("auto", "loop", "graphed", "blocks", "ray"),
    "memory": ("device", "host", "disk"),
    "deterministic": ("warn", "strict"),
}


@dataclass(frozen=True)
class Ray:
    """Ray actors on the CPUs and GPUs of this machine or of a cluster.

    Args:
        address: address of a cluster to join, such as 10.0.0.1:6379; by default a new session on this machine.
        actors: number of actors, each a process; by default as many as CPUs allow, or one for each GPU.
        cpus: CPUs for each actor.
        gpus: share of a GPU for each actor, such as 0.25; by default 1 if there are GPUs, or what ``actors`` leaves.
        threads: PyTorch threads in each actor; by default as many as its CPUs.
        object_store_memory: bytes of shared memory for samples, client memories and messages; by default Ray's share of
            the machine. Objects that do not fit are spilled to disk.
        on_error: reaction to an exception in a client's code: "stop" the run, "skip" the client in this round, which
            stops the run if all of its clients raise, or "retry" the round.
        log_to_driver: forward the output of the actors.
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
    """Execution settings, which change results by rounding at most.

    Args:
        backend: run clients one at a time ("loop"), in vectorised blocks ("blocks"), by the faster of these two as
            measured ("auto"), or in several processes ("ray", and "auto" if there are several GPUs or any setting of
            ``ray`` is given). On a GPU, "graphed" is the loop, or blocks of a given size, with local steps as CUDA
            graphs.
        block_size: clients in a block; with 0 the best size is measured, and "graphed" is the loop.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        threads: PyTorch threads in this process; by default unchanged. Ray actors use ``ray.threads``, and the nodes of
            a deployment their own number.
        memory: storage of client memories between rounds: "device", "host" (pinned memory, if the device is a GPU), or
            "disk" (a temporary file).
        ray: actors of the Ray backend, also without the prefix, as in --ray.actors 2.
        checkpoint_every: rounds between checkpoints; the last round always has one.
        name: name of the run directory; if empty, it is made from algorithm and data set.
        sink: tools that receive the metrics while the run is under way, tensorboard, wandb or trackio, separated by
            commas; one that fails does not stop the run. None by default.
        client_threads: clients, or blocks of them, that run at the same time on threads of this process, with one
            PyTorch thread each; results do not depend on this number. 0 runs one at a time with all ``threads``, which
            is the default for loop, graphed and blocks of a given size; otherwise the best number is measured. On a
            GPU, clients of the backend graphed that run at the same time, each on its own stream; with Ray, on the GPU
            of an actor.
        deterministic: on a GPU, an operation of the model without a deterministic kernel is reported with its layer, on
            stderr and in the manifest ("warn"), or refused ("strict"), as are then such operations in all other code.
    """

    backend: Literal["auto", "loop", "graphed", "blocks", "ray"] = "auto"
    block_size: int = 0
    device: str = "auto"
    threads: int | None = None
    memory: Literal["device", "host", "disk"] = "device"
    ray: Ray = field(default_factory=Ray)
    checkpoint_every: int = 50
    name: str = ""
    sink: str | Sequence[str] = ()
    client_threads: int | None = None
    deterministic: Literal["warn", "strict"] = "warn"

    def __post_init__(self) -> None:
        self._check_sinks()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if not isinstance(self.ray, Ray):
            raise ConfigError(f"ray is {self.ray!r:.200}; expected Ray(actors=2)")
        whole("block_size", self.block_size, 0)
        whole("checkpoint_every", self.checkpoint_every, 1)
        if self.threads is not None:
            whole("threads", self.threads, 1, ", or null for the number of the process")
        if self.client_threads is not None:
            whole("client_threads", self.client_threads, 0, ", or null to measure it")
        gpu = self.torch_device().type == "cuda"
        if gpu and self.client_threads and self.backend != "graphed" and not self.uses_ray:
            raise ConfigError(
                f"client_threads is {self.client_threads}, but on a GPU clients run at the same time as CUDA graphs"
                " alone: add --backend graphed, or leave client_threads out and auto measures how many"
            )
        if gpu and self.client_threads and self.block_size:
            raise ConfigError(
                f"client_threads is {self.client_threads} and block_size {self.block_size}, but on a GPU clients run"
                " in either blocks or graphs of several at a time; leave one of them out"
            )
        if self.uses_ray and self.client_threads and not gpu:
            raise ConfigError(
                f"client_threads is {self.client_threads}, but clients run in Ray's actors; set --ray.actors instead"
            )
        if not gpu and self.backend == "graphed":
            raise ConfigError("backend graphed replays CUDA graphs: use --device cuda, or --backend loop on a CPU")
        if self.uses_ray and self.memory != "device":
            raise ConfigError(
                f"memory is {self.memory!r}, but Ray's object store keeps the clients' memories and spills them to"
                " disk; leave memory out, and set --ray.object_store_memory"
            )

    def _check_sinks(self) -> None:
        if not isinstance(self.sink, str | list | tuple) or not all(isinstance(tool, str) for tool in self.sink):
            raise ConfigError(f"sink is {self.sink!r:.200}; expected names of tools: {', '.join(SINKS)}")
        for tool in self.sinks:
            if tool not in SINKS:
                raise ConfigError(f"sink has {tool!r}; {suggest(tool, SINKS)}")
        object.__setattr__(self, "sink", self.sinks)       # one form, so that equal settings are equal

    @property
    def sinks(self) -> tuple[str, ...]:
        """The tools of ``sink``, without repetitions."""
        names = self.sink.split(",") if isinstance(self.sink, str) else self.sink
        return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))

    @property
    def uses_ray(self) -> bool:
        """True if clients run in Ray actors."""
        if self.asks_for_ray:
            return True
        if self.backend != "auto" or self.device not in ("auto", "cuda") or self.memory != "device":
            return False                                   # settings of this process, or of one GPU
        import torch

        return torch.cuda.device_count() > 1 and find_spec("ray") is not None

    @property
    def asks_for_ray(self) -> bool:
        """True if Ray actors are requested, and not only the default for several GPUs."""
        return self.backend == "ray" or (self.backend == "auto" and self.ray != Ray())

    @property
    def remarks(self) -> list[str]:
        """Messages about settings that have no effect, or one that is hardly meant."""
        from fedsim.engine.machine import cores  # slow: PyTorch

        found = []
        for name, threads in (("threads", self.threads), ("ray.threads", self.ray.threads)):
            if threads is not None and threads > cores():
                has = many(cores(), "processor")
                found.append(f"{name} is {threads}, and this machine has {has}: more threads only wait for each other")
        if self.backend == "loop" and self.block_size:
            found.append(f"backend {self.backend} ignores block_size")
        if self.deterministic == "strict" and self.torch_device().type == "cpu":
            found.append("deterministic strict is about GPUs: on a CPU, results repeat in any case")
        return found

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
