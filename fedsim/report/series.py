"""Metrics of recorded runs: one metric of each seed over rounds, with the cumulative cost."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import ConfigError, DivergenceError, RunError, suggest
from fedsim.experiment.short_forms import recorded
from fedsim.record.absences import absent
from fedsim.record.directory import SWEEP, RunDirectory, open_run
from fedsim.record.metrics import Metrics, read_metrics

AXES = {
    "round": "round",
    "megabytes": "megabytes that clients send and receive (1 MB = 10⁶ bytes)",
    "megabytes_up": "megabytes sent up (1 MB = 10⁶ bytes)",
    "paper_bits": "bits sent up as papers count them (32 a value, no indices, from round 1 on)",
    "gradient_evaluations": "gradient evaluations, all clients",
    "seconds": "host seconds",
    "simulated_seconds": "simulated seconds, by the clock of the experiment",
}


SERVERLESS = {"server/test": "average/test"}
"""Replacement of a scope in runs without a server: the average of the nodes' models."""
OF_CLIENTS = ("clients/holdout", "clients/train", "nodes/test", "nodes/holdout")
"""Scopes with a value for each client."""


@dataclass(frozen=True)
class Series:
    """One metric of one seed at its ``T`` evaluated rounds.

    Attributes:
        value: ``[T]`` float64 the metric.
        cost: for each of `AXES` ``[T]`` float64, cumulative cost since round 0; NaN where it was not recorded.
        last: the last value of every (scope, metric) that belongs to no client.
        absent: clients missing from a round, by round.
    """

    value: np.ndarray
    cost: Mapping[str, np.ndarray]
    last: Mapping[tuple[str, str], float]
    absent: Mapping[int, Sequence[int]] = field(default_factory=dict)


NOTHING = Series(np.array([np.nan]), dict.fromkeys(AXES, np.zeros(1)), {})
"""Series of a seed that diverged before its first evaluation."""


@dataclass(frozen=True)
class RunSeries:
    """One run.

    Attributes:
        label: short name, unique among the runs it is compared with.
        path: its directory.
        config: the resolved experiment.
        manifest: versions, hashes, seeds and status.
        seeds: series by seed, of the seeds that have been evaluated at least once or diverged; NaN after the last
            evaluation of a seed that diverged.
        scope: that was read: without a server the average of the nodes' models stands for the server's.
    """

    label: str
    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    seeds: Mapping[int, Series]
    scope: str


def find_runs(paths: Sequence[Path]) -> list[RunDirectory]:
    """The runs at these paths, each a run or a folder that contains runs at any depth.

    In a folder they are in the order in which they were started, so that the first is the baseline wherever they are
    shown; those of a sweep in the order of its points.

    Raises:
        RunError: a path holds no run.
    """
    found: dict[Path, RunDirectory] = {}  # a run that is reached by two paths counts once
    if not paths:
        raise RunError("no paths of runs; expected a directory made by `fedsim run`, or a folder of them")
    for path in paths:
        runs = _runs_below(path)
        if not runs:
            raise RunError(f"{path} holds no run; expected a directory made by `fedsim run`, or a folder of them")
        found.update((run.path.resolve(), run) for run in runs)
    return list(found.values())


def _runs_below(path: Path) -> list[RunDirectory]:
    if (path / "manifest.json").is_file() and (path / "config.yaml").is_file():
        return [open_run(path)]
    if not path.is_dir():
        return []
    from topologies.order import natural  # slow: networkx

    folders = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    groups = [_runs_below(folder) for folder in sorted(folders, key=lambda child: natural(child.name))]
    if not (path / SWEEP).is_file():
        groups = sorted(filter(None, groups), key=lambda runs: min(_started(run) for run in runs))
    return [run for runs in groups for run in runs]


def _started(run: RunDirectory) -> float:
    """Time at which a run was started; that of 0.1.0 is given in whole seconds."""
    try:
        return datetime.fromisoformat(run.manifest["created"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return math.inf


def unmeasured(paths: Sequence[Path]) -> list[str]:
    """Say which of several runs at these paths measured nothing, and why, and are left out of a comparison."""
    runs = find_runs(paths)
    bare = [run for run in runs if not _measured(run)]
    if len(bare) == len(runs):
        return []
    return [f"left out: {run.path} measured nothing ({_reason(run)})" for run in bare]


def _measured(run: RunDirectory) -> bool:
    seeds = [int(seed) for seed in run.manifest["status"]]
    files = [run.seed_path(seed) / "metrics.jsonl" for seed in seeds]
    return any(file.is_file() and file.stat().st_size for file in files) or any(_diverged(run, seed) for seed in seeds)


def _reason(run: RunDirectory) -> str:
    states = {seed: f"{s['state']} {s.get('detail', '')}".split("\n")[0] for seed, s in run.manifest["status"].items()}
    return "; ".join(f"seed {seed}: {state.strip()}" for seed, state in states.items())


def load_runs(paths: Sequence[Path], scope: str, metric: str, client: int | None = None) -> list[RunSeries]:
    """Read one metric of all runs at these paths, or that of one client; of several runs, those that measured nothing
    are left out.

    Raises:
        RunError: no run there.
        ConfigError: a run never recorded this metric (names those that it did record).
    """
    every = find_runs(paths)
    if client is not None:
        _check_client(client, every)
    directories = [run for run in every if _measured(run)] or every
    configs = [recorded(run.config) for run in directories]
    labels = _labels(configs, [run.path for run in directories])
    return [
        RunSeries(label, run.path, config, run.manifest, *_load_seeds(run, scope, metric, client))
        for run, config, label in zip(directories, configs, labels, strict=True)
    ]


def _check_client(client: int, runs: Sequence[RunDirectory]) -> None:
    """Refuse a client that a run does not have."""
    for run in runs:
        known = run.manifest.get("clients")
        if not isinstance(client, int) or isinstance(client, bool) or client < 0 or client >= (known or math.inf):
            there = "0 or more" if known is None else f"0 to {known - 1}"
            raise ConfigError(f"client is {client!r}; expected {there}, the clients of {run.path}")


def _load_seeds(run: RunDirectory, scope: str, metric: str, client: int | None) -> tuple[dict[int, Series], str]:
    seeds_of_run = map(int, run.manifest["status"])
    numbers = sorted(n for n in seeds_of_run if _begun(run.seed_path(n)))
    scopes = [scope, *([SERVERLESS[scope]] if scope in SERVERLESS else [])]
    if client is not None:
        scopes = [*OF_CLIENTS, scope] if scope in SERVERLESS else [scope]
    for measured in scopes:
        loaded = {seed: _load_series(run.seed_path(seed), measured, metric, client) for seed in numbers}
        seeds = {seed: _to_its_end(series, run, seed) for seed, series in loaded.items() if len(series.value)}
        if seeds:
            break
    if seeds or not any(series.last for series in loaded.values()):
        every = map(int, run.manifest["status"])
        seeds |= {seed: NOTHING for seed in every if seed not in seeds and _diverged(run, seed)}
    if not seeds:
        keys = {key for series in loaded.values() for key in series.last}
        if client is not None:
            raise ConfigError(
                f"{run.path} has no metric {metric!r} of client {client}; clients are measured where"
                " evaluation.clients_every says, on their own samples with a server, or on the test set without"
            )
        known, near = sorted(map(" ".join, keys)), difflib.get_close_matches(metric, {name for _, name in keys}, n=1)
        hint = f"did you mean {near[0]!r}? It" if near and near[0] != metric else "it"
        raise ConfigError(
            f"{run.path} has no metric {metric!r} in scope {scope!r}; {hint} recorded:"
            f" {', '.join(known) or 'nothing yet'}"
        )
    return seeds, measured


def _begun(seed: Path) -> bool:
    """Whether there is something to read: ``timing.jsonl`` is the last file made, and does not go again."""
    metrics = seed / "metrics.jsonl"
    return (seed / "timing.jsonl").exists() or (metrics.is_file() and metrics.stat().st_size > 0)


def _to_its_end(series: Series, run: RunDirectory, seed: int) -> Series:
    """Append NaN, at the cost of the last evaluation, where the seed diverged."""
    if not _diverged(run, seed):
        return series
    cost = {name: np.append(paid, paid[-1]) for name, paid in series.cost.items()}
    return replace(series, value=np.append(series.value, np.nan), cost=cost)


def _diverged(run: RunDirectory, seed: int) -> bool:
    status = run.manifest["status"].get(str(seed), {})
    return status.get("state") == "failed" and bool(status["detail"].startswith(DivergenceError.__name__))


def _load_series(directory: Path, scope: str, metric: str, client: int | None) -> Series:
    metrics, timing = read_seed(directory)
    costs = paid_by_round(metrics, timing)
    return series_of(metrics.series(scope, metric, client), costs, _last_values(metrics), absent(timing))


def read_seed(directory: Path) -> tuple[Metrics, Metrics]:
    """Read metrics and timing of one seed, by its directory."""
    return read_metrics(directory / "metrics.jsonl"), read_metrics(directory / "timing.jsonl")


def paid_by_round(metrics: Metrics, timing: Metrics) -> dict[str, Mapping[int, float]]:
    """The cumulative costs of a seed by name and round: what `AXES` are made of, without the round itself."""
    up, down = metrics.series("total", "bytes_up"), metrics.series("total", "bytes_down")
    bits = metrics.series("total", "paper_bits")
    return {
        "megabytes": {round: (down.get(round, math.nan) + up[round]) / 1e6 for round in up},
        "megabytes_up": {round: paid / 1e6 for round, paid in up.items()},
        # from round 1 on: papers do not count an initial exchange of whole vectors
        "paper_bits": {round: paid - bits.get(0, 0.0) for round, paid in bits.items()},
        "gradient_evaluations": metrics.series("total", "gradient_evaluations"),
        "seconds": timing.series("host", "seconds"),
        "simulated_seconds": metrics.series("simulated", "seconds"),
    }


def series_of(
    measured: Mapping[int, float],
    costs: Mapping[str, Mapping[int, float]],
    last: Mapping[tuple[str, str], float] | None = None,
    absent: Mapping[int, Sequence[int]] | None = None,
) -> Series:
    """Series of a metric by round, with the costs that were paid by then."""
    rounds = list(measured)
    paid = {name: np.array([paid.get(round, np.nan) for round in rounds]) for name, paid in costs.items()}
    cost = {"round": np.array(rounds, np.float64), **paid}
    return Series(np.array(list(measured.values())), cost, last or {}, absent or {})


def _last_values(rows: Metrics) -> dict[tuple[str, str], float]:
    shared = np.flatnonzero(rows.node == -1)
    return {(rows.scope[row], rows.metric[row]): float(rows.value[row]) for row in shared}  # later rows replace earlier


def _labels(configs: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> list[str]:
    """The first of name, algorithm, algorithm with the settings that differ, directory, that tells all runs apart."""
    settings = [dict(flat(config)) for config in configs]
    differing = {key for key in set().union(*settings) if len({str(leaves.get(key)) for leaves in settings}) > 1}

    keys = sorted(differing - {"algorithm.name", "metrics"})
    whole = [key if key == "execution.name" else key.removesuffix(".name") for key in keys]   # partition=..., name=...
    last = [key.rsplit(".", 1)[-1] for key in whole]
    short = [name if last.count(name) == 1 else key for key, name in zip(whole, last, strict=True)]

    def with_settings(run: int) -> str:
        shown = [f"{name}={settings[run].get(key)}" for key, name in zip(keys, short, strict=True)]
        return ", ".join([_algorithm(configs[run]), *shown])

    ways: list[Callable[[int], str]] = [
        lambda run: str(configs[run].get("execution", {}).get("name") or _algorithm(configs[run])),
        lambda run: _algorithm(configs[run]),
        *([with_settings] if len(differing) <= 4 else []),
        lambda run: paths[run].name,
    ]
    for way in ways:
        labels = [way(run) for run in range(len(configs))]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def relabelled(runs: Sequence[RunSeries], labels: Mapping[str, str]) -> list[RunSeries]:
    """The runs with new labels for those that are named by their directory or by their label.

    Raises:
        ConfigError: a name is that of no run, or two runs would have one label.
    """
    new: dict[Path, str] = {}
    for name, label in labels.items():
        path = Path(name).resolve()
        at_path = [run.path for run in runs if run.path.resolve() == path]
        by_label = [run.path for run in runs if run.label == name]
        if not (found := at_path or by_label):
            known = suggest(name, [run.label for run in runs])
            raise ConfigError(f"the label {label!r} is of {name!r}, no run here; {known}, or a directory")
        new[found[0]] = label
    named = [replace(run, label=new.get(run.path, run.label)) for run in runs]
    taken = [label for label, times in Counter(run.label for run in named).items() if times > 1]
    if taken:
        raise ConfigError(f"{len(taken)} labels are those of several runs: {', '.join(taken)}; choose others")
    return named


def _algorithm(config: Mapping[str, Any]) -> str:
    """Class of the algorithm, from ``algorithm: {name: FedAvg, ...}`` or ``algorithm: FedAvg``."""
    algorithm = config.get("algorithm", "run")
    path = algorithm.get("name", "run") if isinstance(algorithm, Mapping) else algorithm
    return str(path).rsplit(".", 1)[-1]


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a config by their dotted names."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [leaf for key, child in value.items() for leaf in flat(child, f"{prefix}.{key}" if prefix else str(key))]
