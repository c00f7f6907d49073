"""Deployment on this machine: start a federation, run an experiment on it, report progress, and end every process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedsim.backends.flower.deploy import ports
from fedsim.backends.flower.deploy.app import app_hash, write_app
from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.backends.flower.deploy.watch import Tail, watch
from fedsim.backends.flower.protocol.deployable import check_deployable
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.controller.interrupt import terminate_as_interrupt
from fedsim.errors import ConfigError, DeployError, many
from fedsim.experiment.config import to_config
from fedsim.experiment.config.paths import OF_SAMPLES, paths
from fedsim.experiment.experiment import Data, Experiment
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.files import private, private_folder, write_atomic
from fedsim.record.places import refusal
from topologies.order import natural

NOTE = "deployment.json"
DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\.[A-Za-z_]\w*")


@dataclass(frozen=True)
class LocalDeployment:
    """Settings of a deployment on this machine.

    Args:
        nodes: number of SuperNodes, equal to the experiment's number of clients.
        port: of the SuperLink; 0 for any free port.
        insecure: True to disable TLS and node authentication.
        policy: reaction to nodes that do not respond.
        own_data: folder with one folder or file for each node, in the order of their names; None to partition the
            experiment's data set.
    """

    nodes: int
    port: int = 8000
    insecure: bool = False
    policy: Policy = field(default_factory=Policy)
    own_data: Path | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"nodes is {self.nodes}; expected 1 or more")
        ports.within(self.port)                            # before any process starts


def deploy(experiment: Experiment, output: Path, local: LocalDeployment, *, progress: bool = True) -> RunDirectory:
    """Run an experiment, or resume the run in ``output``, with a SuperLink and SuperNodes as processes on this machine.

    Files of the federation (certificates, logs, memories of the nodes) go to the folder ``output`` + ".federation".

    Raises:
        DeployError: the federation cannot be started, or the run failed.
        KeyboardInterrupt: after every process has ended.
    """
    given, output = output, output.absolute()              # what is told is the path as it was given
    check(experiment, local)
    nodes = node_settings(experiment, output, local)
    folder, _ = federation_folder(output), ports.check(local.port)   # before anything is written
    file, events = write_experiment(folder, experiment), Tail(folder / "server.log")
    config = {"experiment": str(file), "output": str(output), "own-data": local.nodes if local.own_data else 0}
    app = write_app(folder / "app", {**config, "log": str(events.path), **asdict(local.policy)})
    federation = LocalFederation(folder, nodes, local.port, local.insecure, app_hash(app))
    with terminate_as_interrupt(), federation:
        remember(output, local)
        started = federation.flwr("run", str(app))
        try:
            watch(federation, str(started["run-id"]), experiment, output, progress, events)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"continue with: fedsim deploy --resume {given}") from None
        except DeployError as error:
            hint = f"\nContinue with: fedsim deploy --resume {given}" if (output / "manifest.json").exists() else ""
            raise DeployError(f"{error}{hint}") from error
    return open_run(given)


def check(experiment: Experiment, local: LocalDeployment) -> None:
    """Raise ConfigError unless the experiment can be deployed with one node per client."""
    check_deployable(experiment)
    clients = getattr(experiment.division, "num_partitions", None)
    if local.own_data is None and isinstance(clients, int) and clients != local.nodes:
        raise ConfigError(
            f"the experiment has {many(clients, 'client')} and --nodes is {local.nodes}; every client is a node: use"
            f" --nodes {clients}, or --partition.num_partitions {local.nodes}"
        )
    if not isinstance(experiment.data, Data):
        raise ConfigError("the experiment's data is a Python object; only named data can be deployed")


def write_experiment(folder: Path, experiment: Experiment) -> Path:
    """Write the resolved experiment, which server and nodes run; return the path of the file, named by its content.

    Raises:
        RunError: the folder cannot be written.
    """
    text = yaml.safe_dump(to_config(experiment), sort_keys=False, allow_unicode=True)
    file = folder / f"experiment-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    try:
        private_folder(folder)
        write_atomic(file, text, private)
    except OSError as error:
        raise refusal(file, error, "choose another --output") from error
    return file


def federation_folder(output: Path) -> Path:
    """Folder with the files of a run's federation."""
    return output.with_name(f"{output.name}.federation")


def remember(output: Path, local: LocalDeployment) -> None:
    """Store the settings of a run's deployment beside it, for ``remembered``; its policy is in the manifest."""
    own_data = None if local.own_data is None else str(local.own_data.absolute())
    note = {"port": local.port, "insecure": local.insecure, "own_data": own_data}
    write_atomic(federation_folder(output) / NOTE, json.dumps(note) + "\n")


def remembered(output: Path) -> dict[str, Any]:
    """Load the settings stored by ``remember``, as arguments of ``LocalDeployment``; empty if there are none."""
    note = federation_folder(output.absolute()) / NOTE
    if not note.exists():
        return {}
    try:
        known: dict[str, Any] = json.loads(note.read_text())
        return {**known, "own_data": known["own_data"] and Path(known["own_data"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{note} is damaged ({error!r}); remove it, and repeat --port and --own-data") from None


def node_settings(experiment: Experiment, output: Path, local: LocalDeployment) -> list[NodeSettings]:
    """Settings of every node. On the user's own machine every module and file of the experiment is allowed."""
    data, own, folder = experiment.data, own_folders(local), federation_folder(output)
    assert isinstance(data, Data)
    directory = None if data.data_dir is None else Path(data.data_dir).expanduser().absolute()
    files, allow = files_of(experiment, local), modules(experiment)
    return [
        NodeSettings(i, folder / f"node-{i}" / "memory", own[i] if own else None, directory, files, allow)
        for i in range(local.nodes)
    ]


def files_of(experiment: Experiment, local: LocalDeployment) -> tuple[Path, ...]:
    """Files that a node must be allowed to read to run this experiment, besides its own data and named data sets.

    Raises:
        ConfigError: a path has a comma, which no list of files in a node config can hold.
    """
    config = {**to_config(experiment), "topology": None}
    omitted = OF_SAMPLES if local.own_data else ("data_dir",)
    data = {key: value for key, value in config["data"].items() if key not in omitted}
    found = [*paths({**config, "data": data})]
    if commas := [path for path in found if "," in path]:
        raise ConfigError(f"the experiment reads {commas[0]!r}, and commas separate the files of a node; rename it")
    return tuple(map(Path, found))


def own_folders(local: LocalDeployment) -> list[Path]:
    """Paths of the nodes' own data, in natural order of their names."""
    if local.own_data is None:
        return []
    if not local.own_data.is_dir():
        raise ConfigError(f"{local.own_data} is not a folder; expected one with a folder or file for each node")
    shown = (path.absolute() for path in local.own_data.iterdir() if not path.name.startswith("."))
    found = sorted(shown, key=lambda path: natural(path.name))
    if len(found) != local.nodes:
        raise ConfigError(f"{local.own_data} holds {len(found)} folders or files; expected {local.nodes}, one a node")
    return found


def modules(experiment: Experiment) -> tuple[str, ...]:
    """Modules that a node must allow to run this experiment."""
    return tuple(sorted(modules_of(to_config(experiment))))   # whose paths are absolute: none looks like a module


def modules_of(config: Any) -> set[str]:
    """Modules of the dotted names in an experiment's settings."""
    if isinstance(config, Mapping):
        return set().union(*(modules_of(value) for value in config.values()))
    if isinstance(config, Sequence) and not isinstance(config, str):
        return set().union(*(modules_of(value) for value in config))
    found = DOTTED.fullmatch(config) if isinstance(config, str) else None
    return {found[1]} if found else set()
