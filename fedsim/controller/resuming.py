"""Whether a run can go on: with the settings, data, model and files that it began with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedsim.controller.loading import data_hash
from fedsim.controller.prepare import Prepared
from fedsim.controller.verify import of_seeds
from fedsim.engine.model import Model
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.code import changed
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.identity import edited, settings_hash
from fedsim.gossip import Topology, graph_file
from fedsim.record.directory import RunDirectory, describe_stops, stopped_after
from fedsim.record.files import damaged
from fedsim.record.metrics import read_metrics

NEEDED = ("data_hash", "partition_hash", "device", "threads", "backend")
"""Entries of the manifest without which a run cannot be resumed."""


def check_finished(directory: RunDirectory, seeds: Sequence[int], accept: bool) -> None:
    """Check that finished seeds have the number of rounds that ``config.yaml`` says, and files as they were written.

    Raises:
        RunError: ``config.yaml`` was edited since, or files of these seeds.
    """
    rounds = directory.config.get("rounds")
    if rounds is None:                                     # the file was cut short
        raise damaged(directory.path / "config.yaml", "rounds is missing")
    for seed in seeds:
        done = read_metrics(directory.seed_path(seed) / "metrics.jsonl").round.max(initial=0)
        if done not in (rounds, stopped_after(directory.manifest, seed)):
            raise RunError(
                f"{directory.path}: seed {seed} finished after {done} rounds, but config.yaml now says rounds:"
                f" {rounds}. Set rounds: {done} again; a run is extended by: fedsim resume {directory.path} --rounds"
                f" {rounds}"
            )
    checked = [seed for seed in seeds if any((directory.seed_path(seed) / "checkpoints").glob("round-*"))]
    if fault := next(of_seeds(directory, checked), None):  # nothing is known without checkpoints
        leave = f", or leave it as it is, noted in manifest.json: fedsim resume {directory.path} --accept-changes"
        raise RunError(f"{fault}; the seed has finished: restore the file{'' if accept else leave}")


def check_settings(directory: RunDirectory) -> None:
    """Check that ``config.yaml`` has the settings that the run began with; earlier versions recorded no hash.

    Raises:
        RunError: the file was edited since.
    """
    config, manifest, path = directory.config, directory.manifest, directory.path
    if edited(config, manifest):
        raise RunError(
            f"{path / 'config.yaml'} has other settings than the run began with (hash {settings_hash(config)[:12]},"
            f" expected {manifest['settings_hash'][:12]}), and one run would be of two experiments. Set them back, or"
            f" begin a new run: fedsim run {path / 'config.yaml'} --output NEW. All of execution may be edited; more"
            f" rounds are given by fedsim resume {path} --rounds N; to continue with other settings none the less:"
            " --accept-changes"
        )


def check_experiment(directory: RunDirectory, config: Mapping[str, Any], experiment: Experiment) -> None:
    """Check that an experiment is that of a run, whose settings are in ``config``.

    Raises:
        RunError: another setting that determines the result; the data has a hash of its own.
    """
    given = to_config(experiment)
    others = [
        key for key in {**config, **given} if key not in ("execution", "data") and config.get(key) != given.get(key)
    ]
    if others:
        raise RunError(
            f"{directory.path} was run with other settings of {', '.join(others)}; resume it with its own experiment"
        )


def check_manifest(directory: RunDirectory) -> None:
    """Raise RunError unless the manifest has all that a resumed run needs."""
    if missing := [name for name in NEEDED if name not in directory.manifest]:
        raise damaged(directory.path / "manifest.json", f"{missing[0]} is missing")


def check_data(directory: RunDirectory, first: Prepared) -> None:
    """Raise RunError unless the data is that of the run."""
    found, expected = data_hash(first.dataset), directory.manifest["data_hash"]
    if found != expected:
        raise RunError(
            f"{directory.path} was run on data with hash {expected[:12]}, the data found now has {found[:12]}; restore"
            " the data files"
        )


def check_graph(directory: RunDirectory, topology: Topology | None) -> None:
    """Raise RunError unless the graph in a topology's file is that of the run."""
    graph, expected = graph_file(topology), directory.manifest.get("graph_hash")
    if graph is not None and expected is not None and (found := graph.digest()) != expected:
        raise RunError(
            f"{directory.path} was run on a graph with hash {expected[:12]}, {graph.path} now has {found[:12]}; restore"
            " the file"
        )


def check_model(directory: RunDirectory, model: Model) -> None:
    """Raise RunError unless a model has the parameters and the layers of the run's."""
    manifest, fix = directory.manifest, "restore its code and settings, or give the experiment of the run"
    if model.d != (trained := manifest.get("parameters", model.d)):
        raise RunError(
            f"{directory.path} has trained a model of {trained:,} parameters, and the module found now has {model.d:,};"
            f" {fix}"
        )
    expected = manifest.get("layers_hash")
    if manifest["versions"].get("torch") == torch.__version__ and expected not in (None, layers_hash(model.module)):
        raise RunError(
            f"{directory.path} has trained a {type(model.module).__name__} with other layers, or other settings of its"
            f" layers, than the module found now; {fix}"
        )


def layers_hash(module: nn.Module) -> str:
    """SHA-256 of a module's layers and their settings, as PyTorch writes them, without addresses of objects."""
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(module)).encode()).hexdigest()


def seeds_to_extend(directory: RunDirectory, rounds: int) -> list[int]:
    """The seeds that can have more rounds: those that no criterion has stopped.

    Raises:
        ConfigError: there is none.
    """
    manifest = directory.manifest
    found = [seed for seed in map(int, manifest["status"]) if stopped_after(manifest, seed) is None]
    if not found:
        raise ConfigError(
            f"{directory.path} has stopped: {describe_stops(manifest)}. A run of {rounds} rounds would stop there"
            " too; begin a new one with another criterion, or without"
        )
    return found


def changes_of_place(manifest: Mapping[str, Any], first: Prepared) -> Iterator[str]:
    """Changes of code, PyTorch, device and threads since the run began, which can affect its numbers."""
    if modules := changed(manifest.get("code", {})):
        yield f"{', '.join(modules)} changed since the run began: later rounds are those of the code as it is now"
    before = {"torch": manifest["versions"].get("torch", "unknown"), **manifest}
    for name, now in {"torch": torch.__version__, **place_of(first)}.items():
        if now != before[name]:
            yield f"{name} was {before[name]} when the run began and is {now} now: the last digits may differ"


def place_of(first: Prepared) -> dict[str, Any]:
    """Device and threads of this process, for the manifest."""
    return {"device": str(first.federation.model.device), "threads": torch.get_num_threads()}
