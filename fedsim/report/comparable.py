"""Reasons why runs may not be comparable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.errors import many
from fedsim.record.absences import summary
from fedsim.record.directory import describe_stops
from fedsim.report.labels import flat
from fedsim.report.series import RunSeries

COMPARED = ("algorithm", "topology", "uplink", "downlink", "aggregate", "attack", "share")
"""Settings whose effect a comparison measures."""
OTHERWISE = ("data", "metrics", "partition", "rounds", "seed", "seeds", "evaluation.every", "evaluation.clients_every")
"""Settings that are compared by what follows from them: hashes, measured seeds and rounds."""


def doubts(runs: Sequence[RunSeries]) -> Iterator[str]:
    """Yield what makes these runs incomparable, in sentences."""
    for run in runs:
        yield from _of_run(run)
    for name in ("data_hash", "partition_hash"):
        values = {run.label: run.manifest.get(name) for run in runs}
        if not all(_same(value, values[runs[0].label]) for value in values.values()):
            brief = {label: _brief(value) for label, value in values.items()}
            yield f"different {name.replace('_', ' ')}: {_listed(brief)}"
    layers = {run.label: _brief(found) for run in runs if (found := run.manifest.get("layers_hash"))}
    if len({*layers.values()}) > 1 and len({str(run.config.get("model")) for run in runs}) == 1:
        yield f"models of one name with different layers: {_listed(layers)}"
    seeds = {run.label: sorted(run.seeds) for run in runs}
    if any(value != seeds[runs[0].label] for value in seeds.values()):
        yield f"different seeds (differences use the common ones): {_listed(seeds)}"
    yield from _of_rounds(runs)
    yield from _of_settings(runs)


def _of_run(run: RunSeries) -> Iterator[str]:
    """Doubts about one run."""
    if run.edited:
        yield f"{run.label}: its config.yaml was edited, and says other settings than the run was made with"
    for seed, status in run.manifest["status"].items():
        if status["state"] != "finished":
            last = _last_round(run, int(seed)) if int(seed) in run.seeds else "none"
            yield (
                f"{run.label}: seed {seed} has status {status['state']} (last evaluated round: {last}); "
                "its last value is not a final one"
            )
    if stops := describe_stops(run.manifest):
        yield f"{run.label} stopped early: {stops}; final and late values are those of then"
    for seed, series in run.seeds.items():
        if math.isnan(series.value[-1]):
            what = "diverged" if run.of_nan(seed) == "diverged" else "ends where the metric is undefined"
            yield f"{run.label}: seed {seed} {what} (its last value is not finite)"
        if series.absent:
            rounds = max(*series.absent, _last_round(run, seed))
            yield f"{run.label}: seed {seed} had {summary(series.absent, rounds)}"


def _of_rounds(runs: Sequence[RunSeries]) -> Iterator[str]:
    """Differences in the rounds that were evaluated."""
    rounds = {run.label: sorted({_last_round(run, seed) for seed in run.seeds}) for run in runs}
    if len({round for values in rounds.values() for round in values}) > 1:
        yield f"different last evaluated rounds: {_listed(rounds)}"
    last = min(round for values in rounds.values() for round in values)
    measured = {run.label: _measured(run, last) for run in runs}
    if len(set(map(frozenset, measured.values()))) > 1:
        times = {label: many(len(found), "time") for label, found in measured.items()}
        yield f"measured in different rounds up to {last} (costs, last and best values depend on it): {_listed(times)}"


def _of_settings(runs: Sequence[RunSeries]) -> Iterator[str]:
    """Differences in settings that a comparison does not measure and labels do not show."""
    leaves = {run.label: {**dict(flat(run.config)), "parameters": run.manifest.get("parameters")} for run in runs}
    for key in sorted(set().union(*leaves.values())):
        if key.split(".")[0] in ("execution", *COMPARED, *OTHERWISE) or key in OTHERWISE:
            continue
        values = {label: leaves[label].get(key) for label in leaves}
        word = key.removesuffix(".name").rpartition(".")[2]
        labelled = all(f"{word}={value}" in label for label, value in values.items())
        if len(set(map(str, values.values()))) > 1 and not labelled:
            yield f"different {key}: {_listed(values)}"


def _measured(run: RunSeries, last: int) -> set[int]:
    """Evaluated rounds of all seeds, up to round ``last``."""
    return {int(round) for series in run.seeds.values() for round in series.cost["round"] if round <= last}


def _last_round(run: RunSeries, seed: int) -> int:
    return int(run.seeds[seed].cost["round"][-1])


def _same(first: Any, second: Any) -> bool:
    """Compare hashes; hashes by seed need only agree on common seeds."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(first[key] == second[key] for key in first.keys() & second.keys())
    return bool(first == second)


def _brief(value: Any) -> str:
    """First 12 characters of a hash; of hashes by seed, those of the first seed."""
    return str(next(iter(value.values()), None) if isinstance(value, Mapping) else value)[:12]


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{label}: {value}" for label, value in values.items())
