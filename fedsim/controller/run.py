"""Start and resume runs; `fedsim.controller.rounds` runs the rounds of one seed.

A run resumes bit for bit: all randomness is a function of (seed, round, node), a checkpoint holds the algorithm's
state, the ledger and the length of the metrics file, and resuming truncates the metrics to that length.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from fedsim.controller.changes import accept_changes
from fedsim.controller.extend import check_extension, check_more_seeds, note_extension, note_seeds
from fedsim.controller.host import Host
from fedsim.controller.initial import check_unchanged, file_hash
from fedsim.controller.interrupt import terminate_as_interrupt
from fedsim.controller.loading import data_hash
from fedsim.controller.local_steps import check_local_steps
from fedsim.controller.notes import remark
from fedsim.controller.prepare import Prepared
from fedsim.controller.progress import RunProgress
from fedsim.controller.resuming import (
    changes_of_place,
    check_data,
    check_experiment,
    check_finished,
    check_graph,
    check_manifest,
    check_model,
    check_settings,
    layers_hash,
    place_of,
    seeds_to_extend,
)
from fedsim.controller.rounds import SeedRun
from fedsim.controller.scaling import unscaled
from fedsim.controller.watching import OnRound, Watchers, check_callback
from fedsim.data.catalogue import FORMATS
from fedsim.engine.machine import check_count, torch_threads
from fedsim.errors import BusyError, CodeError, ConfigError, DivergenceError, RunError
from fedsim.experiment.code import code_of
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.experiment import Data, Experiment
from fedsim.experiment.identity import settings_hash
from fedsim.experiment.short_forms import recorded
from fedsim.gossip import graph_file
from fedsim.partition.card import label_counts
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory, create_run, open_run
from fedsim.record.owned import Owned, write_owned
from fedsim.record.sinks.sink import LiveSinks, maker
from fedsim.record.version import check_version

HostOf: TypeAlias = Callable[[Experiment], Host]
"""Function that chooses the host of an experiment's clients."""


def run(
    experiment: Experiment, host_of: HostOf, *, output: Path | None, root: Path, progress: bool,
    on_round: OnRound | None = None,
) -> RunDirectory:  # fmt: skip
    """Run an experiment with all its seeds in a new run directory; see ``fedsim.run``."""
    check_callback(on_round)
    for tool in experiment.execution.sinks:
        maker(tool)                                        # refuses one that is not installed
    check_count("client_threads", experiment.execution.client_threads)
    with torch_threads(experiment.execution.threads), host_of(experiment) as host:
        return _run_new(experiment, output, root, progress, host, on_round)


def _run_new(
    experiment: Experiment, output: Path | None, root: Path, progress: bool, host: Host, on_round: OnRound | None
) -> RunDirectory:
    first = host.prepare(experiment, experiment.seed)  # before anything is written: a bad experiment leaves no trace
    check_local_steps(experiment, first)
    host.check_other_seeds(experiment, first, experiment.seed_list[1:])
    own = isinstance(experiment.data, Data) and experiment.data.name in FORMATS
    for text in [*experiment.remarks, *first.remarks, *([first.dataset.notes] if own else [])]:
        remark(text, host.say)
    if large := unscaled(experiment, first.dataset):
        remark(large, host.say)
    if first.unheld:
        unheld = ", ".join(first.unheld)
        remark(f"no client has a sample of class {unheld}, which cannot be learned: see partition", host.say)
    config = to_config(experiment)
    directory = create_run(root, experiment.title, config, _manifest(experiment, first, config), output)
    try:
        _run_seeds(experiment, directory, experiment.seed_list, first, progress, host, on_round)
    except (ConfigError, CodeError) as error:
        rounds = 1 if isinstance(error, CodeError) else experiment.evaluation.every
        if not _begun(directory, experiment, rounds):      # resuming would not help
            shutil.rmtree(directory.path)
        raise
    return directory


def _manifest(experiment: Experiment, first: Prepared, config: dict[str, Any]) -> dict[str, Any]:
    """What ``manifest.json`` says of a run when it begins."""
    model, graph = first.federation.model, graph_file(experiment.topology)
    return {
        "seeds": experiment.seed_list,
        **place_of(first),
        "parameters": model.d,
        "layers_hash": layers_hash(model.module),
        "precision": experiment.dtype if experiment.precision == "float32" else experiment.precision,
        **({"nondeterministic": model.nondeterministic} if model.nondeterministic else {}),
        "clients": first.partition.n,
        "data_hash": data_hash(first.dataset),
        "data_notes": first.dataset.notes,
        "client_names": list(first.dataset.client_names or ()),
        "node_names": graph.names() if graph else [],
        **({"graph_hash": graph.digest()} if graph else {}),
        "partition_hash": {str(experiment.seed): first.partition.hash},
        "larger_is_better": {metric.name: metric.larger_is_better for metric in experiment.measures},
        **({} if experiment.init is None else {"init_hash": file_hash(experiment.init)}),
        "settings_hash": settings_hash(config),
        "code": code_of(experiment),
        "backend": {},
    }


def _begun(directory: RunDirectory, experiment: Experiment, rounds: int) -> bool:
    """True if the first seed, the only one begun unless it has finished, has completed so many rounds."""
    if directory.manifest["status"][str(experiment.seed)]["state"] == "finished":
        return True
    made = checkpoint.load_latest(directory.seed_path(experiment.seed) / "checkpoints")
    return made is not None and made.round >= rounds


def resume(
    path: Path, experiment: Experiment | None, host_of: HostOf, *, progress: bool, rounds: int | None = None,
    seeds: int | None = None, on_round: OnRound | None = None, accept: bool = False,
) -> RunDirectory:  # fmt: skip
    """Continue a run that was interrupted or failed, or extend one; see ``fedsim.resume``."""
    check_callback(on_round)
    directory = open_run(path)
    states = {int(seed): status["state"] for seed, status in directory.manifest["status"].items()}
    todo = [seed for seed, state in states.items() if state != "finished"]
    changes = accept_changes(directory, states) if accept else []
    check_finished(directory, sorted(states.keys() - set(todo)), accept)
    check_settings(directory)
    config = recorded(directory.config)
    extends = rounds is not None and rounds != config["rounds"]
    if rounds is not None and extends:
        todo, config["rounds"] = seeds_to_extend(directory, rounds), rounds
        experiment = None if experiment is None else replace(experiment, rounds=rounds)
    if seeds is None and config["seeds"] > len(states):    # killed while it noted them
        seeds = config["seeds"]
    new = range(0)
    if seeds is not None:
        check_more_seeds(directory, seeds)
        new = range(config["seed"] + len(states), config["seed"] + seeds)
        todo, config["seeds"] = [*todo, *new], seeds
        experiment = None if experiment is None else replace(experiment, seeds=seeds)
    if todo:
        check_version(path, directory.manifest)            # whose settings another version may lack
    if experiment is not None:
        check_experiment(directory, config, experiment)
    if not todo:
        return directory
    check_manifest(directory)
    experiment = experiment or from_config(
        {**directory.config, "rounds": config["rounds"], "seeds": config["seeds"]}
    )
    if extends:
        check_extension(directory, experiment, experiment.rounds)
    check_unchanged(experiment.init, directory.manifest, path)
    with torch_threads(experiment.execution.threads or directory.manifest["threads"]), host_of(experiment) as there:
        first = there.prepare(experiment, todo[0])
        check_model(directory, first.federation.model)
        check_data(directory, first)
        check_graph(directory, experiment.topology)
        there.check_other_seeds(experiment, first, [seed for seed in new if seed != todo[0]])
        for text in [*changes_of_place(directory.manifest, first), *(f"{change}: accepted" for change in changes)]:
            there.say(text)
        if extends:
            note_extension(directory, experiment.rounds)
        if experiment.seeds > len(states):
            note_seeds(directory, experiment.seeds)
        _run_seeds(experiment, directory, todo, first, progress, there, on_round)
    return directory


def _run_seeds(
    experiment: Experiment, directory: RunDirectory, todo: list[int], first: Prepared, progress: bool, host: Host,
    on_round: OnRound | None,
) -> None:  # fmt: skip
    diverged: dict[int, DivergenceError] = {}              # divergence does not end the other seeds
    watchers = Watchers(on_round, LiveSinks(directory, experiment.execution.sinks, host.say))
    with RunProgress(directory.path.name, experiment.rounds, progress) as bar, terminate_as_interrupt(), watchers:
        for seed in todo:
            try:
                prepared = first if seed == todo[0] else host.prepare(experiment, seed)
                _note_partition(directory, seed, prepared)
                directory.mark(seed, "running")
                SeedRun(experiment, directory, seed, prepared, bar, host, watchers).run()
            except KeyboardInterrupt:
                directory.mark(seed, "interrupted")
                raise KeyboardInterrupt(f"continue with: fedsim resume {directory.path}") from None
            except BusyError:                              # the other process records its state
                raise
            except Exception as error:
                if isinstance(error, DivergenceError):
                    error = diverged[seed] = _with_cause(error, experiment, first)
                with contextlib.suppress(RunError):        # on a full disk, report the first error
                    directory.mark(seed, "failed", f"{type(error).__name__}: {error}")
                if seed not in diverged:
                    raise
            else:
                directory.mark(seed, "finished")
    if diverged:
        first_error = next(iter(diverged.values()))
        if len(diverged) == 1:
            raise first_error
        raise DivergenceError(f"seeds {', '.join(map(str, diverged))} diverged; the first one: {first_error}")


def _with_cause(error: DivergenceError, experiment: Experiment, first: Prepared) -> DivergenceError:
    """The error with the probable cause that is seen in the data."""
    if not (large := unscaled(experiment, first.dataset)):
        return error
    made = DivergenceError(f"{error}; {large}")
    made.__cause__ = error
    return made


def _note_partition(directory: RunDirectory, seed: int, prepared: Prepared) -> None:
    hashes = dict(directory.manifest["partition_hash"])
    if hashes.setdefault(str(seed), prepared.partition.hash) != prepared.partition.hash:
        raise RunError(
            f"seed {seed} of {directory.path} was partitioned with hash {hashes[str(seed)][:12]}, now it is"
            f" {prepared.partition.hash[:12]};"
            " run it with the versions that manifest.json names"
        )
    directory.update_manifest(partition_hash=hashes)
    sizes, dataset = prepared.partition.sizes, prepared.dataset
    seen = len(prepared.partition.indices) == sizes.sum()  # and not on nodes of a deployment, with their own data
    counts = label_counts(prepared.partition, dataset.labels, dataset.classes) if seen else None
    names = dataset.label_names or tuple(map(str, range(dataset.classes)))
    write_owned(directory.seed_path(seed), Owned(sizes, counts, names if counts is not None else ()))
