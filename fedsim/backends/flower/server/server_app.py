"""The ServerApp: runs an experiment as ``fedsim run`` does, into a run directory, with its clients behind Flower.

Its settings are Flower's run config:

    experiment    the file with the experiment, or its text; a file is looked for beside the app, then from here
    output        run directory; one that exists is continued from its last checkpoint
    root          folder of new run directories, where there is no output
    own-data      number of nodes, where each brings its own data; 0 to divide the experiment's data set
    log           file to which what happens is added; it is printed in any case
    timeout, retries, missing, minimum, patience    see ``fedsim.backends.flower.protocol.policy``
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.flower_host import FlowerHost
from fedsim.controller import run as controller
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, load_config
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory

POLICY = tuple(field.name for field in fields(Policy))
SETTINGS = ("experiment", "output", "root", "own-data", "log", *POLICY)


def server_app(beside: Path | None = None) -> ServerApp:
    """A ServerApp; experiments are looked for in the folder ``beside`` it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context.run_config, beside)

    return app


def serve(
    grid: Grid, config: Mapping[str, Any], beside: Path | None = None, say: Callable[[str], None] = print
) -> RunDirectory:
    """Run, or continue, what the run config says.

    Raises:
        FedsimError: see ``fedsim.run``.
    """
    if unknown := sorted(set(config) - set(SETTINGS)):
        raise ConfigError(f"unknown run config {', '.join(unknown)}; known are {', '.join(SETTINGS)}")
    policy = Policy(**{key: config[key] for key in POLICY if key in config})
    told = partial(_tell, Path(str(config["log"])), say) if config.get("log") else say
    host = FlowerHost(grid, policy, int(config.get("own-data", 0)), told)
    output = Path(str(config["output"])) if config.get("output") else None
    if output is not None and (output / "manifest.json").exists():
        say(f"continuing {output}")
        return controller.resume(output, None, lambda _: host, progress=False)
    # A round of a deployment takes seconds, and a checkpoint milliseconds: none is to be done twice after a crash.
    experiment = experiment_of(str(config.get("experiment", "")), beside).with_execution(checkpoint_every=1)
    root = Path(str(config.get("root") or "runs"))
    directory = controller.run(experiment, lambda _: host, output=output, root=root, progress=False)
    say(f"finished: {directory.path.absolute()}")
    return directory


def _tell(log: Path, say: Callable[[str], None], text: str) -> None:
    say(text)
    with contextlib.suppress(OSError), log.open("a") as file:   # no reason to end a run
        file.write(f"{text}\n")


def experiment_of(said: str, beside: Path | None) -> Experiment:
    """The experiment of a file, or of the text of one."""
    if not said.strip():
        raise ConfigError("run config lacks the experiment; give it as -c 'experiment=\"experiment.yaml\"'")
    if "\n" in said:
        try:
            config = yaml.safe_load(said)
        except yaml.YAMLError as error:
            raise ConfigError(f"the experiment is not YAML: {error}") from None
        if not isinstance(config, dict):
            raise ConfigError(f"the experiment is {config!r:.60}; expected settings, such as 'algorithm: FedAvg'")
    else:
        found = [path for path in ((beside or Path()) / said, Path(said)) if path.exists()]
        config = load_config(found[0] if found else Path(said))
    return from_config(config)


app = server_app()
