"""An experiment: everything that determines a result, as one frozen value, and how it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from fedsim.algorithm import Algorithm, has_server
from fedsim.checks import number, plain_name, whole
from fedsim.data import Dataset
from fedsim.engine.local_work import LocalWork
from fedsim.errors import ConfigError
from fedsim.experiment.execution import Execution
from fedsim.experiment.sampling import FixedSize, Sampling
from fedsim.experiment.schedule import Constant, Cosine, Schedule
from fedsim.feedback.compressed import Compressed
from fedsim.feedback.mechanisms import Downlink, Gossip, Uplink, short_name
from fedsim.gossip import Topology
from fedsim.models import MLP, Architecture
from fedsim.partition import DirichletPartitioner, NaturalIdPartitioner, Partitioner, Skew
from fedsim.problems import PROBLEMS, Problem

PARTS = (
    ("algorithm", ("init", "round"), "FedAvg(lr=0.1)"),
    ("partition", ("partition",), "DirichletPartitioner(50, alpha=0.3)"),
    ("sampling", ("cohort", "expected"), "FixedSize(0.1)"),
    ("schedule", ("__call__",), "ExponentialDecay(0.998)"),
    ("skew", ("apply",), "RotationSkew()"),
    ("topology", ("matrix",), "Static(Ring())"),
)
"""Components of an experiment, what each must be able to do, and an example."""
OPTIONAL = ("skew", "topology")
DIRICHLET = DirichletPartitioner(50, alpha=0.3)
"""How samples are divided by default."""
LOSSES = ("auto", "cross_entropy", "squared", "logistic")


@dataclass(frozen=True)
class Data:
    """Which data set, and where its files are.

    Args:
        name: a data set, a file format for your own files, or a problem of ``fedsim.problems``; see ``fedsim list``.
        data_dir: folder of the data files; the environment variable FEDSIM_DATA or a user cache folder by default.
        download: fetch missing files from the public source, where their checksums are known.
        options: the loader's own options, such as ``sequence_length`` or ``path``.
    """

    name: str = "digits"
    data_dir: str | None = None
    download: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """When and what to measure. The last round is always measured.

    Args:
        every: rounds between evaluations of the server's model on the test set; it is also evaluated with the clients.
        clients_every: rounds between evaluations on every single client's samples; 0 for the last round only, null for
            none.
        worst: share of clients in the "worst" mean.
        holdout: share of each client's samples withheld from training to evaluate on; with 0 clients are measured on
            what they train on.
    """

    every: int = 5
    clients_every: int | None = 0
    worst: float = 0.1
    holdout: float = 0.0

    def __post_init__(self) -> None:
        whole("evaluation.every", self.every, 1)
        if self.clients_every is not None:
            whole("evaluation.clients_every", self.clients_every, 0, "; 0 is the last round only, null is never")
        number("evaluation.worst", self.worst, lambda v: 0 < v <= 1, "a share above 0 and at most 1")
        number("evaluation.holdout", self.holdout, lambda v: 0 <= v < 1, "a share from 0 to below 1")


@dataclass(frozen=True)
class Experiment:
    """One algorithm on one federation.

    Args:
        algorithm: what is run, required; ``fedsim list`` names them all.
        data: the data set (from Python also a ``Dataset`` or a ``Problem``).
        partition: how samples are divided among clients; a ``Problem`` has clients of its own.
        skew: distortion of each client's inputs; none by default.
        model: the network (from Python also any ``nn.Module``); a ``Problem`` brings its own.
        loss: per-sample loss; by the data set's kind when "auto" (from Python also any function, see
            ``fedsim.engine.model.Loss``).
        topology: who talks to whom, for methods without a server, e.g. Static with a graph; none with a server.
        uplink: how clients compress what they send, to a server or to neighbours, by any algorithm; none by default.
        downlink: how the server compresses what it sends; none by default.
        local: what a client does in a round.
        sampling: who takes part in a round; everybody by default where there is no server, and with a ``Problem``.
        schedule: how local step sizes change over rounds; Cosine descends over all of them by default.
        weights: weight of each client in the objective: all equal, or by its number of samples.
        rounds: communication rounds.
        seeds: number of repetitions, with seeds ``seed``, ``seed`` + 1, ...
        seed: first seed; data partition, initial model, cohorts and minibatches all follow from it.
        evaluation: when and what to measure.
        dtype: floating-point type of model and inputs; float64 for theory. (Files of samples are read in float32.)
        execution: how all this is carried out, which changes numbers by rounding at most. "execution." can be left out:
            --backend loop is short for --execution.backend loop.
    """

    algorithm: Algorithm[Any]
    data: Data | Dataset | Problem = field(default_factory=Data)
    partition: Partitioner = field(default_factory=lambda: DIRICHLET)
    skew: Skew | None = None
    model: Architecture | nn.Module = field(default_factory=MLP)
    loss: Literal["auto", "cross_entropy", "squared", "logistic"] | Callable[[Tensor, Tensor], Tensor] = "auto"
    topology: Topology | None = None
    uplink: Uplink | Gossip | None = None
    downlink: Downlink | None = None
    local: LocalWork = field(default_factory=LocalWork)
    sampling: Sampling = field(default_factory=FixedSize)
    schedule: Schedule = field(default_factory=Constant)
    weights: Literal["uniform", "samples"] = "uniform"
    rounds: int = 100
    seeds: int = 1
    seed: int = 0
    evaluation: Evaluation = field(default_factory=Evaluation)
    dtype: Literal["float32", "float64"] = "float32"
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("seeds", 1), ("seed", 0)):
            whole(name, getattr(self, name), least)
        for name, choices in (("weights", ("uniform", "samples")), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        self._check_parts()
        self._check_topology()
        plain_name(self.title)
        Compressed(self.algorithm, self.uplink, self.downlink)

    def _check_parts(self) -> None:
        """Every component is an object that can do its part, and no class, name or number in its place."""
        for name, verbs, example in PARTS:
            part = getattr(self, name)
            if part is None and name in OPTIONAL:
                continue
            if isinstance(part, type) or not all(callable(getattr(part, verb, None)) for verb in verbs):
                given = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
                can = ", ".join(verbs)
                raise ConfigError(f"{name} is {given:.200}; expected e.g. {example}, or another object with {can}")
        for name, kind, example in (
            ("data", Data | Dataset | Problem, 'Data("digits"), a Dataset or a Problem'),
            ("local", LocalWork, "LocalWork(batch_size=32, epochs=1)"),
            ("evaluation", Evaluation, "Evaluation(every=5)"),
            ("execution", Execution, 'Execution(backend="loop")'),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r:.200}; expected {example}")
        if isinstance(self.model, type) or not (isinstance(self.model, nn.Module) or hasattr(self.model, "build")):
            raise ConfigError(f"model is {self.model!r:.200}; expected an nn.Module, or settings such as MLP((100,))")
        if not callable(self.loss) and self.loss not in LOSSES:
            raise ConfigError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}, or a function")

    def _check_topology(self) -> None:
        name = type(self.algorithm).__name__
        if not has_server(self.algorithm) and self.topology is None:
            fix = "--topology Static --topology.graph Ring"
            raise ConfigError(f"{name} has no server: it needs a topology, such as {fix}")
        if has_server(self.algorithm) and self.topology is not None:
            raise ConfigError(
                f"{name} has a server and takes no topology; leave it out, or use e.g. DFedAvg; a method without a"
                " server says `server = False` in its class"
            )

    @cached_property
    def method(self) -> Algorithm[Any]:
        """What runs: the algorithm, with its messages compressed where a link asks for it."""
        if self.uplink is None and self.downlink is None:
            return self.algorithm
        return Compressed(self.algorithm, self.uplink, self.downlink)

    @property
    def participation(self) -> Sampling:
        """Who takes part in a round, with the default made explicit: a tenth, or everybody."""
        everybody = self.topology is not None or is_problem(self.data)
        return FixedSize(1.0) if everybody and self.sampling == FixedSize() else self.sampling

    @property
    def division(self) -> Partitioner:
        """How samples are divided, with the default made explicit."""
        return division(self.data, self.partition)

    @property
    def decay(self) -> Schedule:
        """The schedule, with its default length made explicit."""
        if isinstance(self.schedule, Cosine) and self.schedule.rounds is None:
            return replace(self.schedule, rounds=self.rounds)
        return self.schedule

    @property
    def remarks(self) -> list[str]:
        """Settings that change nothing, in words."""
        usual, said = LocalWork(), []
        given = [n for n in ("batch_size", "epochs", "steps") if getattr(self.local, n) != getattr(usual, n)]
        if given and getattr(self.algorithm, "gradient", "") == "full":
            names = " and ".join(f"local.{name}" for name in given)
            said.append(f"{type(self.algorithm).__name__} takes gradients of whole shards and makes no use of {names}")
        elif {"epochs", "steps"} <= set(given):
            said.append("local.steps replaces local.epochs")
        if isinstance(self.sampling, FixedSize) and None not in (self.sampling.fraction, self.sampling.size):
            said.append("sampling.size replaces sampling.fraction")
        return said + self.execution.remarks

    @property
    def seed_list(self) -> list[int]:
        """The seeds, in order."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def title(self) -> str:
        """Name of the run: the given one, or algorithm and data."""
        if self.execution.name:
            return self.execution.name
        data = self.data.dataset.name if isinstance(self.data, Problem) else self.data.name
        links = [short_name(link).lower() for link in (self.uplink, self.downlink) if link is not None]
        return "-".join([type(self.algorithm).__name__.lower(), *links, data])

    def with_execution(self, **settings: Any) -> Experiment:
        """The same experiment with other settings of its execution, such as ``name="baseline"``."""
        return replace(self, execution=replace(self.execution, **settings))


def is_problem(data: Data | Dataset | Problem) -> bool:
    """Whether this is, or names, a problem of theory."""
    return isinstance(data, Problem) or (isinstance(data, Data) and data.name in PROBLEMS)


def division(data: Data | Dataset | Problem, partition: Partitioner) -> Partitioner:
    """How samples are divided, with the default made explicit: a problem of theory has clients of its own."""
    return NaturalIdPartitioner() if is_problem(data) and partition == DIRICHLET else partition
