"""``fedsim topology``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from fedsim.cli import flags
from fedsim.cli.output import console
from fedsim.errors import ConfigError, suggest
from fedsim.experiment.config import build, override
from fedsim.experiment.config.described import component, experiment_component
from fedsim.experiment.short_forms import in_full
from fedsim.record.directory import open_run

if TYPE_CHECKING:
    from fedsim.cli.network import Network

TOPOLOGY = flags.Command(
    "topology",
    "Show the topology of an experiment without a server: its mixing rate, and the communication cost of a round.",
    partial(component, "fedsim.cli.network", "Network"),
    {
        "output": "picture of the graph: .png, .svg or .pdf; nodes are coloured by the label skew of their data",
        "run": "run to take topology and partition from; nodes are coloured by their last test accuracy",
    },
    {"json": "print the numbers as JSON"},
)


def topology(argv: Sequence[str]) -> int:
    """Print the properties of a command line's topology, and draw it."""
    line = flags.read(TOPOLOGY, argv)
    run = open_run(Path(line.options["run"])) if "run" in line.options else None
    if run is not None and not run.config.get("topology") and "topology" not in line.settings:
        raise ConfigError(f"{run.path} has a server and no topology; give one with --topology, or leave out --run")
    settings = line.settings if run is None else override(in_full(run.config), line.settings, [])
    own = TOPOLOGY.settings().settings
    known = experiment_component().settings.keys() | own.keys()
    for key in settings.keys() - known:
        raise ConfigError(f"unknown setting {key}: {suggest(key, sorted(known), see='fedsim run --help')}")
    settings = {key: value for key, value in settings.items() if key in own}
    if "help" in line.switches:
        flags.print_help(TOPOLOGY, settings)
        return 0
    network: Network = build(TOPOLOGY.settings(), settings)
    from fedsim.cli.network import DIAMETER_NODES, in_words, show  # PyTorch: whoever asks for help need not wait for it

    measured = show(network, run, line.options.get("output"))
    if "json" in line.switches:
        print(json.dumps(measured))
    else:
        console().print(f"{in_words(measured['topology'])}, round {measured['round']}", markup=False, highlight=False)
        console().print(_render(measured, DIAMETER_NODES))
    return 0


def _render(measured: dict[str, Any], most: int) -> Table:
    table = Table("", "", box=SIMPLE)
    table.show_header = False
    table.columns[1].justify = "right"

    def three(key: str) -> str:
        return " / ".join(f"{round(measured[key][name], 2):,.12g}" for name in ("min", "mean", "max"))

    yes = {True: "yes", False: "no"}
    far = "" if measured["connected"] else "infinite"
    rows = {
        "nodes": f"{measured['nodes']:,}",
        "directed edges": f"{measured['directed_edges']:,}",
        "in-degree, min / mean / max": three("in_degree"),
        "out-degree, min / mean / max": three("out_degree"),
        "connected in this round": yes[measured["connected"]],
        "diameter": far or str(measured["diameter"] or f"not computed above {most:,} nodes"),
        "W symmetric": yes[measured["symmetric"]],
        "W doubly stochastic": yes[measured["doubly_stochastic"]],
        "lambda, contraction of disagreement in a round": f"{measured['lambda']:.4f}",
        "spectral gap, 1 - lambda": f"{measured['spectral_gap']:.4f}",
        f"message: {measured['parameters']:,} parameters": f"{measured['message_bytes']:,} bytes",
        "all messages of a round, 1 gossip step": f"{measured['bytes_per_round']:,} bytes",
    }
    if measured.get("bytes_over_links"):
        rows["bytes over a link in the run, min / mean / max"] = three("bytes_over_links")
    for row in rows.items():
        table.add_row(*row)
    return table
