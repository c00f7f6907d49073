"""``fedsim nodes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedsim.cli.output import Arguments, add_json, console, print_json
from fedsim.record.directory import open_run
from fedsim.record.nodes import nodes_of
from fedsim.report.nodes import render_nodes


def nodes(argv: Sequence[str]) -> int:
    """Print the status of the nodes of a deployment, also while it runs."""
    about = "Show the nodes of a deployment, also while it runs: last seen, rounds, samples, seconds, bytes, errors."
    parser = Arguments("fedsim nodes", description=about)
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory of fedsim deploy")
    add_json(parser, "nodes")
    arguments = parser.parse_args(argv)
    run = open_run(arguments.run)
    found = nodes_of(run.path)
    if arguments.json:
        print_json({"run": str(arguments.run), "nodes": [asdict(node) for node in found]})
    else:
        console().print(render_nodes(found))
        if all(seed["state"] != "running" for seed in run.manifest["status"].values()):
            console().print("The run is not under way; these are its nodes as they were last.")
    return 0
