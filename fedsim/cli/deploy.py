"""``fedsim deploy`` and ``fedsim certificates``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim.backends.flower.deploy.install import flower_version
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.cli import flags
from fedsim.cli.output import Arguments, add_json, print_json
from fedsim.cli.run import print_result
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config
from fedsim.experiment.config.described import experiment_component
from fedsim.experiment.config.hints import help_of
from fedsim.experiment.config.plan import names
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.files import free_name
from fedsim.record.nodes import read_nodes
from fedsim.record.version import check_version
from fedsim.report.nodes import render_nodes

if TYPE_CHECKING:
    from fedsim.backends.flower.deploy.local_deployment import LocalDeployment
    from fedsim.experiment.experiment import Experiment

POLICY = {"timeout": float, "retries": int, "minimum": float, "patience": float}
DEPLOY = flags.Command(
    "deploy",
    "Run an experiment in real processes on this machine: a Flower SuperLink, and one SuperNode for each client.",
    experiment_component,
    {
        "nodes": "number of SuperNodes, one for each client of the experiment",
        "own_data": "folder with one folder of data for each node; the data stay on their node",
        "port": "port of the SuperLink, or 0 for any free port (default: 8000)",
        "output": "run directory to create; the federation's files are stored beside it",
        "root": "folder for new run directories (default: runs)",
        "resume": "run directory to resume, with its previous options",
        "host": "host name of the server, for --print-commands",
        **{key: f"{text.rstrip('.')} (default: {getattr(Policy, key)})" for key, text in help_of(Policy).items()},
    },
    {
        "insecure": "disable TLS and the authentication of nodes",
        "print_commands": "write the resolved experiment to a file, print the commands for real machines, and exit",
        "quiet": "show no progress on stderr",
        "json": "print the result as one line of JSON",
    },
)


def deploy(argv: Sequence[str]) -> int:
    """Deploy the experiment of a command line, and print its last metrics."""
    line = flags.read(DEPLOY, argv)
    if "help" in line.switches:
        flags.print_help(DEPLOY, {"algorithm": names("algorithm")[0], **line.settings})
        return 0
    flower_version()                                       # fails first if Flower is missing
    from fedsim.backends.flower.deploy import local_deployment as here

    resumed = Path(line.options["resume"]) if "resume" in line.options else None
    if resumed is not None and (line.settings or "output" in line.options):
        raise ConfigError(f"--resume takes all settings from {resumed}; leave the others out")
    if resumed is not None and _finished(open_run(resumed)):
        print_result(open_run(resumed), "json" in line.switches)
        return 0
    if resumed is not None:
        check_version(resumed, open_run(resumed).manifest)
    experiment = from_config(open_run(resumed).config if resumed else line.settings)
    output, local = resumed or _output(line, experiment), _local(line, resumed)
    if "print_commands" in line.switches:
        here.check(experiment, local)
        print(_commands(experiment, output.absolute(), local, line.options.get("host", "server.example.org")))
        return 0
    directory = here.deploy(experiment, output, local, progress="quiet" not in line.switches)
    if "quiet" not in line.switches:
        Console(stderr=True).print(render_nodes(read_nodes(directory.path)))
    print_result(directory, "json" in line.switches)
    return 0


def certificates(argv: Sequence[str]) -> int:
    """Create certificates for the SuperLink and keys for the nodes."""
    parser = Arguments(
        "fedsim certificates",
        description="Create a certificate authority, a certificate for the SuperLink, and a key for each SuperNode.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="created if missing")
    parser.add_argument("--nodes", type=int, required=True, help="number of SuperNodes")
    named = "host names and addresses of the SuperLink besides localhost and 127.0.0.1, which are always among them"
    parser.add_argument("--hosts", default="localhost", help=named)
    add_json(parser, "certificates")
    arguments = parser.parse_args(argv)
    from fedsim.backends.flower.deploy.certificates import make

    hosts = [host.strip() for host in arguments.hosts.split(",") if host.strip()]
    made = make(arguments.output, arguments.nodes, hosts)
    if arguments.json:
        keys = [str(made.node(i)) for i in range(made.nodes)]
        print_json({"folder": str(made.folder), "ca": str(made.ca), "server": [*map(str, made.server)], "nodes": keys})
        return 0
    print(f"{made.folder}: {made.ca.name} for every machine, server.pem and server.key for the SuperLink,")
    print(f"node-0.key ... for one node each, whose .pub is registered; keep {made.folder / 'ca.key'} secret")
    return 0


def _commands(experiment: Experiment, output: Path, local: LocalDeployment, host: str) -> str:
    """Commands for real machines, for the resolved experiment in a file, which is written here beside its app."""
    from fedsim.backends.flower.deploy import local_deployment as here
    from fedsim.backends.flower.deploy.app import write_app
    from fedsim.backends.flower.deploy.instructions import instructions

    file = here.write_experiment(here.federation_folder(output), experiment)
    write_app(file.parent / "app", {})
    needs = here.files_of(experiment, local), here.modules(experiment)
    return instructions(file, host, local, output, *needs)


def _finished(run: RunDirectory) -> bool:
    """True if all seeds of a run have finished.

    Raises:
        RunError: the run was not deployed.
    """
    places = {chosen["backend"] for chosen in run.manifest.get("backend", {}).values()} - {"flower"}
    if places:
        raise RunError(
            f"{run.path} was simulated (backend {', '.join(sorted(places))}), its clients' memories are stored here;"
            f" continue with: fedsim resume {run.path}"
        )
    return all(status["state"] == "finished" for status in run.manifest["status"].values())


def _output(line: flags.CommandLine, experiment: Experiment) -> Path:
    """Path of a run directory that does not exist."""
    if "output" not in line.options:
        return free_name(Path(line.options.get("root", "runs")), experiment.title)
    output = Path(line.options["output"])
    if output.exists():
        raise ConfigError(f"{output} exists; choose another --output, or continue it with --resume {output}")
    return output


def _local(line: flags.CommandLine, resumed: Path | None) -> LocalDeployment:
    """The command's own options; in a resumed run, those not given keep their previous values."""
    from fedsim.backends.flower.deploy.local_deployment import LocalDeployment, remembered

    known = open_run(resumed).manifest if resumed else {}
    before = known.get("deployment", {}).get("policy", {})
    numbers = {key: kind for key, kind in POLICY.items() if line.options.get(key, "auto") != "auto"}
    given: dict[str, Any] = {key: line.number(key, kind) for key, kind in numbers.items()}
    if line.options.get("timeout") == "auto":
        given["timeout"] = "auto"
    if "missing" in line.options:
        given["missing"] = line.options["missing"]
    if "nodes" not in line.options and not known:
        raise ConfigError("--nodes is missing; expected the number of SuperNodes, one for every client")
    nodes = line.number("nodes", int, known.get("clients"))
    settings = remembered(resumed) if resumed else {}
    if "own_data" in line.options:
        settings["own_data"] = Path(line.options["own_data"])
    if "port" in line.options:
        settings["port"] = line.number("port", int)
    if "insecure" in line.switches:
        settings["insecure"] = True
    return LocalDeployment(nodes, policy=Policy(**{**before, **given}), **settings)
