"""An experiment as one frozen value: everything that determines a result, and how it is executed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedsim.algorithm import Algorithm, has_server
from fedsim.checks import component, plain_name, whole
from fedsim.clock import Timing, Waiting
from fedsim.data import Dataset, dataset_of
from fedsim.engine.local_work import LocalWork
from fedsim.engine.sharing import Share
from fedsim.errors import ConfigError
from fedsim.experiment.asynchronous import buffer_of, check_concurrency
from fedsim.experiment.division import DIRICHLET, check_source, division, is_problem
from fedsim.experiment.evaluation import Evaluation
from fedsim.experiment.execution import Execution
from fedsim.experiment.measures import OF_ROUNDS, Metric, as_tuple, metrics_of
from fedsim.experiment.precision import PRECISIONS, check_precision
from fedsim.experiment.sampling import FixedSize, Sampling
from fedsim.experiment.schedule import SCHEDULES, Constant, Cosine, Schedule, check_factors
from fedsim.experiment.stopping import Stop
from fedsim.feedback.compressed import Compressed
from fedsim.feedback.mechanisms import Downlink, Gossip, Uplink, short_name
from fedsim.gossip import Topology, ignored_weights
from fedsim.models import MLP, Architecture
from fedsim.models.shapes import check_model
from fedsim.partition import Partitioner, Skew
from fedsim.partition.own import as_partitioner
from fedsim.problems import Problem
from fedsim.robust.attack import Attack
from fedsim.robust.robust import Robust
from fedsim.robust.rule import own_name, parts
from fedsim.types import Rule

PARTS = (
    ("algorithm", ("init", "round"), "FedAvg(lr=0.1)"),
    ("partition", ("partition",), "DirichletPartitioner(50, alpha=0.3), a function (labels, ...)"),
    ("sampling", ("cohort", "expected"), "FixedSize(0.1)"),
    ("schedule", ("__call__",), "ExponentialDecay(0.998)"),
    ("skew", ("apply",), "RotationSkew()"),
    ("topology", ("matrix",), "Static(Ring())"),
    ("clock", ("devices",), "Clock(jitter=0.3)"),
)
"""Components of an experiment, the methods that each must have, and an example."""
OPTIONAL = ("skew", "topology", "clock")
LOSSES = ("auto", "cross_entropy", "squared", "logistic")


@dataclass(frozen=True)
class Data:
    """A data set by name, and the location of its files.

    Args:
        name: a data set, a file format for your own files, or a problem of ``fedsim.problems``; see ``fedsim list``.
        data_dir: folder of the data files; by default $FEDSIM_DATA, or else a folder in the user's cache.
        download: download missing files whose checksums are known from their public source.
        options: options of the loader, such as ``sequence_length`` or ``path``.
    """

    name: str = "digits"
    data_dir: str | None = None
    download: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One algorithm on one federation.

    Args:
        algorithm: the algorithm to run, which is required; ``fedsim list algorithms`` describes them.
        data: the data set (in Python also a ``Dataset``, a ``Problem``, or what ``dataset_of`` takes).
        partition: division of the samples among clients; a ``Problem`` defines its own clients. It can also be a
            function of labels, see ``OwnPartitioner``, and in Python an object of Flower Datasets.
        skew: distortion of each client's inputs; none by default.
        model: the network (in Python also any ``nn.Module``); a ``Problem`` defines its own.
        init: file of the initial model, a state_dict with the names and shapes of the model, as ``fedsim export`` and
            ``torch.save`` write it (.safetensors, .pt), or a run directory, whose first seed has trained it; all seeds
            begin with it. None draws the model with the seed.
        loss: per-sample loss: "auto" to choose it by the kind of the data set, a name, or a function or ``nn.Module``
            class of your own; in Python also a module (see ``fedsim.engine.model.Loss``).
        topology: network of the nodes in methods without a server, e.g. Static with a graph; null in methods with one.
        uplink: compression of what clients send to the server or to neighbours, for any algorithm; none by default.
        downlink: compression of what the server sends; none by default.
        aggregate: rule that replaces the mean of the clients' messages or, without a server, that of a node's and its
            neighbours'; for any algorithm that averages.
        attack: which clients are Byzantine, and what they send; none by default.
        share: which layers of the model travel, the others being each client's own; all by default. In Python, their
            names are enough: "all but head".
        local: local training of a client in one round.
        sampling: choice of the clients that take part in a round; by default all of them without a server and for a
            ``Problem``.
        schedule: learning-rate schedule, a factor of the local step sizes in each round.
        weights: weights of the clients in the objective, either equal or proportional to their numbers of samples.
        clock: devices and links of the clients, to measure simulated seconds; it changes no model. None by default.
        waiting: for whom the server waits in rounds with a clock: for the first messages, or until a deadline; by
            default for all.
        metrics: metrics besides loss and accuracy: scikit-learn's by name (f1_macro, roc_auc_ovr, balanced_accuracy,
            r2 ...), perplexity, update_norm, drift, or functions of outputs and targets as my.module.function (in
            Python also a function). Larger values of a function are better unless its attribute ``larger_is_better``
            is False.
        concurrency: clients under way at a time in an asynchronous method (FedBuff, FedAsync), which needs a clock; a
            round is then a server step, and sampling is uniform among idle clients. None runs synchronous rounds.
        rounds: number of communication rounds.
        seeds: number of repetitions, with seeds ``seed``, ``seed`` + 1, ...
        seed: first seed, which determines the partition, the initial model, the cohorts and the minibatches.
        evaluation: evaluation on the test set and on clients' own samples.
        stop: criterion by which a seed ends before its last round: a metric reaches a target, or has not improved for
            a while; none by default.
        dtype: floating-point type of model and inputs; use float64 for theory. Data files are read in float32.
        precision: "float32" computes everything in ``dtype``. "bf16" runs forward passes and losses, in training and
            evaluation, under PyTorch's autocast to bfloat16; parameters, gradients and what algorithms do with them
            stay in float32. "tf32" computes the model's products and convolutions in TF32, which needs a GPU.
        execution: settings that change results by rounding at most. The prefix can be left out: --backend loop is short
            for --execution.backend loop.
    """

    algorithm: Algorithm[Any]
    data: Data | Dataset | Problem = field(default_factory=Data)
    partition: Partitioner = field(default_factory=lambda: DIRICHLET)
    skew: Skew | None = None
    model: Architecture | nn.Module = field(default_factory=MLP)
    init: str | None = None
    loss: Literal["auto", "cross_entropy", "squared", "logistic"] | Callable[[Tensor, Tensor], Tensor] = "auto"
    topology: Topology | None = None
    uplink: Uplink | Gossip | None = None
    downlink: Downlink | None = None
    aggregate: Rule | None = None
    attack: Attack | None = None
    share: Share = field(default_factory=Share)
    local: LocalWork = field(default_factory=LocalWork)
    sampling: Sampling = field(default_factory=FixedSize)
    schedule: Schedule = field(default_factory=Constant)
    weights: Literal["uniform", "samples"] = "uniform"
    clock: Timing | None = None
    waiting: Waiting = field(default_factory=Waiting)
    metrics: str | Sequence[Any] = ()
    concurrency: int | None = None
    rounds: int = 100
    seeds: int = 1
    seed: int = 0
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stop | None = None
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("seeds", 1), ("seed", 0)):
            whole(name, getattr(self, name), least)
        for name, choices in (
            ("weights", ("uniform", "samples")), ("dtype", ("float32", "float64")), ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if isinstance(self.init, Path):
            object.__setattr__(self, "init", str(self.init))
        if not isinstance(self.init, str | None):
            raise ConfigError(f"init is {self.init!r:.200}; expected the path of a file that torch.save wrote")
        if isinstance(self.share, str):
            object.__setattr__(self, "share", Share(self.share))
        if isinstance(self.data, str | Path):              # by name, so that config.yaml can be run again
            place = Path(self.data).expanduser()
            if not place.is_dir():
                raise ConfigError(
                    f'data is {str(self.data)!r}, and there is no folder of that name; expected Data("{self.data}") for'
                    " a data set that is known by that name, or the path of a folder of images"
                )
            object.__setattr__(self, "data", Data("images", options={"path": str(place.absolute())}))
        if not isinstance(self.data, Data | Dataset | Problem | type):
            object.__setattr__(self, "data", dataset_of(self.data))
        object.__setattr__(self, "partition", as_partitioner(self.partition))
        self._check_parts()
        check_source(self)
        self._check_topology()
        self._check_share()
        self._check_metrics()
        self._check_sampling()
        self._check_waiting()
        check_concurrency(self)
        check_precision(self)
        plain_name(self.title)
        Robust(self.linked, self.aggregate, self.attack)

    def _check_parts(self) -> None:
        """Check that every component is an object with its methods, and not a class, a name or a number."""
        for name, verbs, example in PARTS:
            part = getattr(self, name)
            if part is None and name in OPTIONAL:
                continue
            component(name, part, verbs, example)
        if not isinstance(self.schedule, tuple(SCHEDULES.values())):
            check_factors(self.schedule, self.rounds)
        for name, kind, example in (
            ("data", Data | Dataset | Problem, 'Data("digits"), a Dataset or a Problem'),
            ("local", LocalWork, "LocalWork(batch_size=32, epochs=1)"),
            ("share", Share, 'Share("all but head"), or the names of layers'),
            ("evaluation", Evaluation, "Evaluation(every=5)"),
            ("waiting", Waiting, "Waiting(first=10, deadline=60)"),
            ("stop", Stop | None, "Stop(target=0.9), or none"),
            ("execution", Execution, 'Execution(backend="loop")'),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r:.200}; expected {example}")
        check_model("model", self.model)
        self._check_loss()

    def _check_loss(self) -> None:
        loss, known = self.loss, f"expected one of {', '.join(LOSSES)}, or a function"
        if isinstance(loss, type):
            given = f"loss is the class {loss.__qualname__}"
            if not issubclass(loss, nn.Module):
                raise ConfigError(f"{given}; {known}, or a torch.nn.Module")
            try:
                inspect.signature(loss).bind()
            except TypeError as error:
                raise ConfigError(f"{given}, {error}; expected a class without, or in Python a module") from None
        elif not callable(loss) and loss not in LOSSES:
            own = f"; in Python, give the function itself: loss={loss}" if "." in str(loss) else ""
            raise ConfigError(f"loss is {loss!r}; {known}{own}")

    def _check_topology(self) -> None:
        name = type(self.algorithm).__name__
        if not has_server(self.algorithm) and self.topology is None:
            fix = "--topology Static --topology.graph Ring"
            raise ConfigError(f"{name} has no server: it needs a topology, such as {fix}")
        if has_server(self.algorithm) and self.topology is not None:
            raise ConfigError(
                f"{name} has a server and takes no topology; leave it out, or use e.g. DFedAvg; a method without a"
                " server sets `server = False` in its class"
            )

    def _check_share(self) -> None:
        settings, name = self.evaluation, type(self.algorithm).__name__
        if settings.fine_tune and settings.fine_tune_lr is None and not hasattr(self.algorithm, "lr"):
            raise ConfigError(f"{name} has no lr to fine-tune with; set evaluation.fine_tune_lr")
        for key in ("fine_tune", "unseen"):
            if getattr(settings, key) and (self.topology is not None or is_problem(self.data)):
                raise ConfigError(f"evaluation.{key} needs a method with a server, and samples; leave it out")
        if self.share.layers == "all":
            return
        self.share.check_optimizer(self.local.optimizer)
        for given, reason in (
            (self.topology is not None, "a method with a server"),
            (self.concurrency is not None, "synchronous rounds"),
            (hasattr(self.sampling, "choose"), "a sampling that asks no client for its loss"),
            (is_problem(self.data), "a model with layers, and not a problem of theory"),
            (getattr(self.algorithm, "personal", False), "a method that has no personal models itself"),
        ):
            if given:
                raise ConfigError(f"share.layers is {self.share.layers!r}, which needs {reason}; leave it out")

    def _check_metrics(self) -> None:
        if isinstance(self.metrics, str | list):           # one form, so that equal experiments are equal
            object.__setattr__(self, "metrics", as_tuple(self.metrics))
        names = {metric.name for metric in self.measures}
        if (of_server := names & OF_ROUNDS.keys()) and not has_server(self.algorithm):
            raise ConfigError(
                f"metrics has {' and '.join(sorted(of_server))}, of what a server receives, and"
                f" {type(self.algorithm).__name__} has no server; leave it out: consensus_distance is always recorded"
            )
        if "perplexity" in names and self.loss not in ("auto", "cross_entropy"):
            raise ConfigError(f"metrics has perplexity, which is of cross_entropy, and loss is {self.loss!r:.80}")

    def _check_sampling(self) -> None:
        if not hasattr(self.sampling, "choose"):
            return
        name, why = type(self.sampling).__name__, ""
        if not has_server(self.algorithm):
            why = f"{type(self.algorithm).__name__} has no server that could choose"
        elif self.concurrency is not None:
            why = "asynchronous clients are drawn uniformly among the idle"
        if why:
            raise ConfigError(f"sampling is {name}, and {why}; leave it out, or use FixedSize")

    def _check_waiting(self) -> None:
        if self.waiting == Waiting():
            return
        name = type(self.algorithm).__name__
        if not has_server(self.algorithm):
            raise ConfigError(f"{name} has no server, so nobody waits for a cohort; leave waiting out")
        if self.clock is None:
            raise ConfigError("waiting needs a clock, such as --clock Clock, to say who arrives when")
        if self.concurrency is not None:
            raise ConfigError("waiting is for synchronous rounds, and concurrency for others; leave one of them out")

    @cached_property
    def measures(self) -> tuple[Metric, ...]:
        """The metrics besides loss and accuracy."""
        return metrics_of(self.metrics)

    @cached_property
    def linked(self) -> Algorithm[Any]:
        """The algorithm as clients run it, with messages compressed if an uplink or a downlink is set."""
        if self.uplink is None and self.downlink is None:
            return self.algorithm
        return Compressed(self.algorithm, self.uplink, self.downlink)

    @cached_property
    def method(self) -> Algorithm[Any]:
        """The algorithm to run: with its links, its rule and its attack."""
        if self.aggregate is None and self.attack is None:
            return self.linked
        return Robust(self.linked, self.aggregate, self.attack)

    @property
    def participation(self) -> Sampling:
        """The sampling with its default resolved: a tenth of the clients, or all; if asynchronous, a buffer."""
        if self.concurrency is not None and has_server(self.algorithm):
            return FixedSize(size=buffer_of(self.algorithm))
        full = self.topology is not None or is_problem(self.data)
        return FixedSize(1.0) if full and self.sampling == FixedSize() else self.sampling

    @property
    def division(self) -> Partitioner:
        """The partitioner with its default resolved."""
        return division(self.data, self.partition)

    @property
    def decay(self) -> Schedule:
        """The schedule with its default length resolved."""
        if isinstance(self.schedule, Cosine) and self.schedule.rounds is None:
            return replace(self.schedule, rounds=self.rounds)
        return self.schedule

    @property
    def remarks(self) -> list[str]:
        """Messages about settings without effect."""
        usual, found = LocalWork(), []
        given = [n for n in ("batch_size", "epochs", "steps") if getattr(self.local, n) != getattr(usual, n)]
        if given and getattr(self.algorithm, "gradient", "") == "full":
            names = " and ".join(f"local.{name}" for name in given)
            found.append(f"{type(self.algorithm).__name__} takes gradients of whole shards and ignores {names}")
        elif {"epochs", "steps"} <= set(given):
            found.append("local.steps replaces local.epochs")
        for mode, amount in (("weight_decay_mode", "weight_decay"), ("clip_mode", "clip_norm")):
            if getattr(self.local, mode) != getattr(usual, mode) and not getattr(self.local, amount):   # in a grid
                found.append(f"local.{mode} has no effect without local.{amount}")
        if isinstance(self.sampling, FixedSize) and None not in (self.sampling.fraction, self.sampling.size):
            found.append("sampling.size replaces sampling.fraction")
        if self.concurrency is None and hasattr(self.algorithm, "dispatch"):
            found.append(
                f"rounds of {type(self.algorithm).__name__} wait for their whole cohort here; it is asynchronous with"
                " --clock Clock --concurrency 20"
            )
        return found + ignored_weights(self.topology) + self.execution.remarks

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
        given = [rule for rule in (*parts(self.aggregate), self.attack) if rule is not None]
        rules = [own_name(rule).lower().strip("<>") for rule in given]            # "lambda"
        return "-".join([type(self.algorithm).__name__.lower(), *links, *rules, data])

    def with_execution(self, **settings: Any) -> Experiment:
        """The same experiment with other settings of its execution, such as ``name="baseline"``."""
        return replace(self, execution=replace(self.execution, **settings))
