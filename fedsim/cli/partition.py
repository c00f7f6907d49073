"""``fedsim partition``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedsim.cli import flags
from fedsim.cli.output import console
from fedsim.errors import ConfigError, suggest
from fedsim.experiment.config import build
from fedsim.experiment.config.described import component, experiment_component

if TYPE_CHECKING:
    from fedsim.cli.division import Division

PARTITION = flags.Command(
    "partition",
    "Partition a data set among clients, as in an experiment with these settings, and show the result.",
    partial(component, "fedsim.cli.division", "Division"),
    {"output": "picture to draw: .png, .svg or .pdf", "save": "file to write the samples of each client to: .npz"},
    {"json": "print the numbers as JSON"},
)


def partition(argv: Sequence[str]) -> int:
    """Partition the data set of a command line, and print the heterogeneity card."""
    line = flags.read(PARTITION, argv)
    known = experiment_component().settings
    for key in line.settings.keys() - known.keys():
        raise ConfigError(f"unknown setting {key}: {suggest(key, known, see='fedsim run --help')}")
    settings = {key: value for key, value in line.settings.items() if key in PARTITION.settings().settings}
    if "help" in line.switches:
        flags.print_help(PARTITION, settings)
        return 0
    chosen: Division = build(PARTITION.settings(), settings)
    from fedsim.cli.division import divide  # PyTorch: whoever asks for help need not wait for it
    from fedsim.partition import render

    measured = divide(chosen, line.options.get("output"), line.options.get("save"))
    if "json" in line.switches:
        print(json.dumps(measured.to_dict()))
    else:
        console().print(render(measured))
    return 0
