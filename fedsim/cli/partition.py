"""``fedsim partition``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fedsim.cli import flags
from fedsim.cli.output import console, writing
from fedsim.controller.prepare import resolve_data
from fedsim.data import Dataset
from fedsim.errors import ConfigError, suggest
from fedsim.experiment.config import build
from fedsim.experiment.config.described import describe, experiment_component
from fedsim.experiment.division import DIRICHLET, division
from fedsim.experiment.experiment import Data
from fedsim.partition import Partitioner, card, plot, render
from fedsim.problems import Problem


@dataclass(frozen=True)
class Division:
    """A data set divided among clients, as in an experiment.

    Args:
        data: the data set.
        partition: division of the samples among clients.
        seed: seed of the random draws.
    """

    data: Data | Dataset = field(default_factory=Data)
    partition: Partitioner = field(default_factory=lambda: DIRICHLET)
    seed: int = 0


PARTITION = flags.Command(
    "partition",
    "Partition a data set among clients, as in an experiment with these settings, and show the result.",
    partial(describe, Division),
    {"output": "picture to draw: .png, .svg or .pdf", "save": "file to write the samples of each client to: .npz"},
    {"json": "print the numbers as JSON"},
)


def partition(argv: Sequence[str]) -> int:
    """Partition the data set of a command line, and print the heterogeneity card."""
    line = flags.read(PARTITION, argv)
    for key in line.settings.keys() - experiment_component().settings.keys():
        raise ConfigError(f"unknown setting {key}: {suggest(key, list(experiment_component().settings))}")
    settings = {key: value for key, value in line.settings.items() if key in PARTITION.settings().settings}
    if "help" in line.switches:
        flags.print_help(PARTITION, settings)
        return 0
    chosen = build(Division, settings)
    source = resolve_data(chosen.data)
    dataset = source.dataset if isinstance(source, Problem) else source
    labels = dataset.labels
    parts = division(chosen.data, chosen.partition).partition(labels, dataset.train.client, chosen.seed)
    measured = card(parts, labels, dataset.classes)
    if "output" in line.options:
        with writing(Path(line.options["output"])):
            plot(parts, labels, dataset.classes, line.options["output"])
    if "save" in line.options:
        with writing(Path(line.options["save"])):
            parts.save(line.options["save"])
    if "json" in line.switches:
        print(json.dumps(measured.to_dict()))
    else:
        console().print(render(measured))
    return 0
