"""Status of the nodes of a deployment, in the file ``nodes.json`` of its run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsim.errors import MissingRunError
from fedsim.record.files import damaged, read_mapping, write_atomic

FILE = "nodes.json"


@dataclass
class NodeStatus:
    """What the server has learned about a node since it started.

    Attributes:
        client: id of its client.
        connected: whether it is connected.
        last_seen: when its last response arrived, in seconds since 1970; 0 for never.
        samples: number of its training samples.
        rounds: rounds in which it has answered.
        seconds: duration of its own work, as it reports it.
        bytes_down: size of all calls that it answered, including evaluations, which the ledger leaves out.
        bytes_up: size of the messages in its answers.
        errors: number of calls without a valid answer.
        error: the last of these errors, in words.
    """

    client: int
    connected: bool = False
    last_seen: float = 0.0
    samples: int = 0
    rounds: int = 0
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    errors: int = 0
    error: str = ""


def write_nodes(run: Path, nodes: list[NodeStatus]) -> None:
    """Write the status of all nodes into a run directory, atomically."""
    write_atomic(run / FILE, json.dumps({"nodes": [asdict(node) for node in nodes]}) + "\n")


def read_nodes(run: Path) -> list[NodeStatus]:
    """Read the status of the nodes of a run; empty if it was not deployed.

    Raises:
        RunError: the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return []
    try:
        return [NodeStatus(**node) for node in read_mapping(path, json.loads, ("nodes",))["nodes"]]
    except TypeError as error:
        raise damaged(path, str(error)) from error


def nodes_of(run: Path) -> list[NodeStatus]:
    """Read the status of the nodes of a deployed run.

    Raises:
        MissingRunError: the run was not deployed.
        RunError: the file is damaged.
    """
    if not (found := read_nodes(run)):
        raise MissingRunError(f"{run} has no nodes: {FILE} is missing; expected a run of `fedsim deploy`")
    return found
