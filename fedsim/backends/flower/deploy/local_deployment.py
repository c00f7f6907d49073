"""A whole deployment on this machine: start a federation, run an experiment on it, watch, and end every process."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fedsim.backends.flower.deploy import ports
from fedsim.backends.flower.deploy.app import write_app
from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.backends.flower.deploy.watch import Tail, watch
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.controller.interrupt import terminate_as_interrupt
from fedsim.errors import ConfigError, DeployError
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Data, Experiment
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.files import write_atomic

NOTE = "deployment.json"
DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\.[A-Za-z_]\w*")


@dataclass(frozen=True)
class LocalDeployment:
    """How a deployment on this machine is made.

    Args:
        nodes: number of SuperNodes; as many as the experiment has clients.
        port: of the SuperLink; 0 for any that is free.
        insecure: without TLS and node authentication.
        policy: what happens when a node does not answer.
        own_data: a folder with one folder or file for each node, in the order of their names; none to divide the
            experiment's data set among the nodes.
    """

    nodes: int
    port: int = 8000
    insecure: bool = False
    policy: Policy = field(default_factory=Policy)
    own_data: Path | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"nodes is {self.nodes}; expected 1 or more")
        ports.within(self.port)                            # before anything starts


def deploy(experiment: Experiment, output: Path, local: LocalDeployment, *, progress: bool = True) -> RunDirectory:
    """Run an experiment, or continue the run in ``output``, with a SuperLink and SuperNodes as real processes here.

    Files of the federation - certificates, logs, memories of the nodes - go into the folder ``output`` + ".federation".

    Raises:
        DeployError: the federation cannot be started, or the run failed.
        KeyboardInterrupt: after every process has ended.
    """
    output = output.absolute()
    check(experiment, local)
    experiment = at_home(experiment)
    nodes = node_settings(experiment, output, local)
    federation = LocalFederation(federation_folder(output), nodes, local.port, local.insecure)
    with terminate_as_interrupt(), federation:
        text = yaml.safe_dump(to_config(experiment), sort_keys=False)
        config = {"experiment": text, "output": str(output), "own-data": local.nodes if local.own_data else 0}
        told = Tail(federation.folder / "server.log")
        config["log"] = str(told.path)
        app = write_app(federation.folder / "app", {**config, **asdict(local.policy)})
        remember(output, local)
        started = federation.flwr("run", str(app))
        try:
            watch(federation, str(started["run-id"]), experiment, output, progress, told)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"continue with: fedsim deploy --resume {output}") from None
        except DeployError as error:
            hint = f"\nContinue with: fedsim deploy --resume {output}" if (output / "manifest.json").exists() else ""
            raise DeployError(f"{error}{hint}") from error
    return open_run(output)


def check(experiment: Experiment, local: LocalDeployment) -> None:
    """Raise ConfigError unless the experiment can be deployed, with a node for every client."""
    clients = getattr(experiment.division, "num_partitions", None)
    if local.own_data is None and isinstance(clients, int) and clients != local.nodes:
        raise ConfigError(
            f"the experiment has {clients} clients and --nodes is {local.nodes}; every client is a node: use --nodes"
            f" {clients}, or --partition.num_partitions {local.nodes}"
        )
    if not isinstance(experiment.data, Data):
        raise ConfigError("the experiment's data was made in Python; only named data can be deployed")


def federation_folder(output: Path) -> Path:
    """Where the files of a run's federation are."""
    return output.with_name(f"{output.name}.federation")


def remember(output: Path, local: LocalDeployment) -> None:
    """Note beside a run how it was deployed, for ``remembered``; its policy is in the manifest."""
    own_data = None if local.own_data is None else str(local.own_data.absolute())
    note = {"port": local.port, "insecure": local.insecure, "own_data": own_data}
    write_atomic(federation_folder(output) / NOTE, json.dumps(note) + "\n")


def remembered(output: Path) -> dict[str, Any]:
    """What ``remember`` noted, as arguments of ``LocalDeployment``; nothing where there is no note."""
    note = federation_folder(output.absolute()) / NOTE
    if not note.exists():
        return {}
    try:
        known: dict[str, Any] = json.loads(note.read_text())
        return {**known, "own_data": known["own_data"] and Path(known["own_data"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{note} is damaged ({error!r}); remove it, and give --port and --own-data again") from None


def node_settings(experiment: Experiment, output: Path, local: LocalDeployment) -> list[NodeSettings]:
    """What every node is told. On one's own machine an experiment may name what it likes."""
    data, own, folder = experiment.data, own_folders(local), federation_folder(output)
    assert isinstance(data, Data)
    directory = None if data.data_dir is None else Path(data.data_dir)
    allow = modules(experiment)
    return [
        NodeSettings(i, folder / f"node-{i}" / "memory", own[i] if own else None, directory, allow)
        for i in range(local.nodes)
    ]


def own_folders(local: LocalDeployment) -> list[Path]:
    """Each node's own data, in the order of the names."""
    if local.own_data is None:
        return []
    if not local.own_data.is_dir():
        raise DeployError(f"{local.own_data} is not a folder; expected one with a folder or file for each node")
    shown = (path.absolute() for path in local.own_data.iterdir() if not path.name.startswith("."))
    found = sorted(shown, key=natural)
    if len(found) != local.nodes:
        raise DeployError(f"{local.own_data} holds {len(found)} folders or files; expected {local.nodes}, one a node")
    return found


def natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """The key of an order of names in which node-2 comes before node-10."""
    parts = [part for part in re.split(r"([0-9]+)", path.name) if part]
    return [(False, int(p), "") if p[0] in "0123456789" else (True, 0, p) for p in parts], path.name


def at_home(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths, as processes of a federation start in folders of their own."""
    data = experiment.data
    assert isinstance(data, Data)
    path = data.options.get("path")
    options = {**data.options, "path": str(Path(str(path)).expanduser().absolute())} if path else data.options
    directory = None if data.data_dir is None else str(Path(data.data_dir).expanduser().absolute())
    return replace(experiment, data=replace(data, options=options, data_dir=directory))


def modules(experiment: Experiment) -> tuple[str, ...]:
    """Modules that a node must allow for this experiment."""
    return tuple(sorted(modules_of(to_config(at_home(experiment)))))   # an absolute path looks like no module


def modules_of(config: Any) -> set[str]:
    """Modules that the names in an experiment's settings lead to."""
    if isinstance(config, Mapping):
        return set().union(*(modules_of(value) for value in config.values()))
    if isinstance(config, Sequence) and not isinstance(config, str):
        return set().union(*(modules_of(value) for value in config))
    found = DOTTED.fullmatch(config) if isinstance(config, str) else None
    return {found[1]} if found else set()
