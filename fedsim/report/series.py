"""Metrics of recorded runs: one metric of each seed over rounds, with the cumulative cost."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.errors import ConfigError, DivergenceError, MissingRunError, RunError, suggest
from fedsim.experiment.identity import edited
from fedsim.experiment.short_forms import recorded
from fedsim.record.directory import SWEEP, RunDirectory, open_run
from fedsim.record.files import damaged, fits, read_mapping
from fedsim.report.labels import labels_of
from fedsim.report.recorded import Recorded, costs_at

AXES = {
    "round": "round",
    "megabytes": "megabytes that clients send and receive (1 MB = 10⁶ bytes)",
    "megabytes_up": "megabytes sent up (1 MB = 10⁶ bytes)",
    "paper_bits": "bits sent up as papers count them (32 a value, no indices, from round 1 on)",
    "gradient_evaluations": "gradient evaluations, all clients",
    "seconds": "host seconds",
    "simulated_seconds": "simulated seconds, by the clock of the experiment",
}

OF_SOME = {"simulated_seconds": ", as those with a clock do (--clock Clock)"}
"""Which runs have an axis that others lack."""

INSTEAD = {"server/test": "average/test", "personal/holdout": "clients/holdout", "personal/train": "clients/train"}
"""Scopes that stand for others: without a server the average of the nodes' models stands for the server's, and without
personal models the server's stands for them.
"""
OF_CLIENTS = ("clients/holdout", "clients/train", "nodes/test", "nodes/holdout")
"""Scopes with a value for each client."""


@dataclass(frozen=True)
class Series:
    """One metric of one seed at its ``T`` evaluated rounds.

    Attributes:
        value: ``[T]`` float64 values of the metric.
        cost: ``[T]`` float64 cumulative costs since round 0, by `AXES`; NaN where they were not recorded.
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
        scope: the scope that was read, perhaps by way of `INSTEAD`.
        recorded: everything that was recorded, by seed.
        edited: whether ``config.yaml`` has other settings than the run was made with.
    """

    label: str
    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    seeds: Mapping[int, Series]
    scope: str
    recorded: Mapping[int, Recorded] = field(default_factory=dict, repr=False, compare=False)
    edited: bool = False

    def of_nan(self, seed: int | None = None) -> str:
        """What NaN means: "diverged" if this seed, by default any seed, failed; otherwise "undefined"."""
        states = [status["state"] for each, status in self.manifest["status"].items() if seed in (None, int(each))]
        return "diverged" if "failed" in states else "undefined"


def find_runs(paths: Sequence[Path]) -> list[RunDirectory]:
    """The runs at these paths, each a run or a folder that contains runs at any depth.

    The runs in a folder are in the order in which they were started, so that the first one is the baseline wherever
    they are shown; the runs of a sweep are in the order of its points.

    Raises:
        RunError: a path holds no run.
    """
    found: dict[Path, RunDirectory] = {}  # a run that is reached by two paths counts once
    if not paths:
        raise RunError("no paths of runs; expected a directory made by `fedsim run`, or a folder of them")
    for path in paths:
        runs = _runs_below(path)
        if not runs:
            expected = "expected a directory made by `fedsim run`, or a folder of them"
            raise MissingRunError(f"{path} holds no run; {expected}")
        found.update((run.path.resolve(), run) for run in runs)
    return list(found.values())


def _runs_below(path: Path) -> list[RunDirectory]:
    if (path / "manifest.json").is_file() and (path / "config.yaml").is_file():
        return [open_run(path)]
    if not path.is_dir():
        return []
    from topologies.order import natural  # slow: networkx

    folders = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    points = _points(path)
    places = {name: place for place, name in enumerate(points)}
    folders.sort(key=lambda child: (places.get(child.name, len(points)), natural(child.name)))
    groups = [_runs_below(folder) for folder in folders]
    if not points:
        groups = sorted(filter(None, groups), key=lambda runs: min(_started(run) for run in runs))
    return [run for runs in groups for run in runs]


def _points(path: Path) -> list[str]:
    """Names of the points of a sweep, in order; empty for a folder that is not a sweep."""
    file = path / SWEEP
    if not file.is_file():
        return []
    points = read_mapping(file, json.loads, ("points",))["points"]
    if not fits(points, [{"name": str}]) or not all("name" in point for point in points):
        raise damaged(file, f"points is {points!r:.80}")
    return [point["name"] for point in points]


def _started(run: RunDirectory) -> float:
    """Time at which a run was started; version 0.1.0 wrote whole seconds."""
    try:
        return datetime.fromisoformat(run.manifest["created"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return math.inf


def _measured(run: RunDirectory, manifest: Mapping[str, Any]) -> bool:
    files = [run.seed_path(int(seed)) / "metrics.jsonl" for seed in manifest["status"]]
    return any(file.is_file() and file.stat().st_size for file in files) or bool(_diverged(manifest))


def _reason(manifest: Mapping[str, Any]) -> str:
    states = {seed: f"{s['state']} {s.get('detail', '')}".split("\n")[0] for seed, s in manifest["status"].items()}
    return "; ".join(f"seed {seed}: {state.strip()}" for seed, state in states.items())


class LoadedRuns(NamedTuple):
    """Runs that were read.

    Attributes:
        runs: their series.
        left_out: which of several runs have measured nothing, and why, in words.
    """

    runs: list[RunSeries]
    left_out: list[str]


def load_runs(paths: Sequence[Path], scope: str, metric: str, client: int | None = None) -> list[RunSeries]:
    """The runs of `load`."""
    return load(paths, scope, metric, client).runs


def load(paths: Sequence[Path], scope: str, metric: str, client: int | None = None) -> LoadedRuns:
    """Read one metric of all runs at these paths, or that of one client; of several runs, those that measured nothing
    are left out.

    Raises:
        RunError: no run there.
        ConfigError: a run never recorded this metric (names those that it did record).
    """
    every = find_runs(paths)
    manifests = [run.manifest for run in every]
    if client is not None:
        _check_client(client, every, manifests)
    both = list(zip(every, manifests, strict=True))
    kept = [(run, manifest) for run, manifest in both if _measured(run, manifest)]
    bare = [f"left out: {run.path} measured nothing ({_reason(m)})" for run, m in both if (run, m) not in kept]
    written = [run.config for run, _ in kept or both]
    configs = [recorded(config) for config in written]
    labels = labels_of(configs, [manifest for _, manifest in kept or both], [run.path for run, _ in kept or both])
    runs = []
    for (run, manifest), label, config, text in zip(kept or both, labels, configs, written, strict=True):
        begun = [int(seed) for seed in manifest["status"] if _begun(run.seed_path(int(seed)))]
        files = {seed: Recorded(run.seed_path(seed)) for seed in begun}
        seeds, found = _load_seeds(run.path, manifest, files, scope, metric, client)
        runs.append(RunSeries(label, run.path, config, manifest, seeds, found, files, edited(text, manifest)))
    return LoadedRuns(runs, bare if kept else [])


def _check_client(client: int, runs: Sequence[RunDirectory], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a client that a run does not have."""
    for run, manifest in zip(runs, manifests, strict=True):
        known = manifest.get("clients")
        if not isinstance(client, int) or isinstance(client, bool) or client < 0 or client >= (known or math.inf):
            there = "0 or more" if known is None else f"0 to {known - 1}"
            raise ConfigError(f"client is {client!r}; expected {there}, the clients of {run.path}")


def _load_seeds(
    path: Path, manifest: Mapping[str, Any], recorded: Mapping[int, Recorded], scope: str, metric: str,
    client: int | None = None,
) -> tuple[dict[int, Series], str]:  # fmt: skip
    numbers, diverged = sorted(recorded), _diverged(manifest)
    scopes = [scope, *([INSTEAD[scope]] if scope in INSTEAD else [])]
    if client is not None and scope == "server/test":
        scopes = [*OF_CLIENTS, scope]
    for measured in scopes:
        loaded = {seed: series_of(recorded[seed], measured, metric, client) for seed in numbers}
        seeds = {
            seed: _to_its_end(series) if seed in diverged else series
            for seed, series in loaded.items() if len(series.value)
        }  # fmt: skip
        if seeds:
            break
    if seeds or not any(series.last for series in loaded.values()):
        seeds |= {seed: NOTHING for seed in diverged if seed not in seeds}
    if not seeds:
        keys = {key for series in loaded.values() for key in series.last}
        if client is not None:
            raise ConfigError(
                f"{path} has no metric {metric!r} of client {client}; clients are measured where"
                " evaluation.clients_every says, at most evaluation.clients_at_most of them, on their own samples with"
                " a server, or on the test set without"
            )
        known, near = sorted(map(" ".join, keys)), difflib.get_close_matches(metric, {name for _, name in keys}, n=1)
        hint = f"did you mean {near[0]!r}? It" if near and near[0] != metric else "it"
        raise ConfigError(
            f"{path} has no metric {metric!r} in scope {scope!r}; {hint} recorded:"
            f" {', '.join(known) or 'nothing yet'}"
        )
    return seeds, measured


def under_metric(run: RunSeries, scope: str, metric: str) -> RunSeries:
    """The same run under another metric that belongs to no client.

    Raises:
        ConfigError: it was never recorded; names the metrics that were.
    """
    seeds, found = _load_seeds(run.path, run.manifest, run.recorded, scope, metric)
    return replace(run, seeds=seeds, scope=found)


def _begun(seed: Path) -> bool:
    """Whether there is something to read: ``timing.jsonl`` is the last file to be made, and stays."""
    metrics = seed / "metrics.jsonl"
    return (seed / "timing.jsonl").exists() or (metrics.is_file() and metrics.stat().st_size > 0)


def _to_its_end(series: Series) -> Series:
    """Append NaN, at the cost of the last evaluation, to the series of a diverged seed."""
    cost = {name: np.append(paid, paid[-1]) for name, paid in series.cost.items()}
    return replace(series, value=np.append(series.value, np.nan), cost=cost)


def _diverged(manifest: Mapping[str, Any]) -> list[int]:
    return [
        int(seed) for seed, status in manifest["status"].items()
        if status.get("state") == "failed" and status["detail"].startswith(DivergenceError.__name__)
    ]  # fmt: skip


def series_of(recorded: Recorded, scope: str, metric: str, client: int | None = None) -> Series:
    """A metric of a seed, or that of a client, with its cumulative costs."""
    column = recorded.column(scope, metric, client)
    return Series(column.value, costs_at(column.round, recorded.paid), recorded.last, recorded.absent)


def relabelled(runs: Sequence[RunSeries], labels: Mapping[str, str]) -> list[RunSeries]:
    """The runs with new labels, given by directory or by present label.

    Raises:
        ConfigError: a name is that of no run, or two runs would have the same label.
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
