"""Flower ServerApp: run an experiment as ``fedsim run`` does, into a run directory, with clients behind Flower.

Its settings are Flower's run config:

    experiment    experiment file, searched for beside the app, then in the working directory; or YAML text
    output        run directory; an existing one is resumed from its last checkpoint
    root          folder of new run directories when ``output`` is empty
    own-data      number of nodes that bring their own data; 0 to partition the experiment's data set
    log           file to append events to; they are always printed
    timeout, retries, missing, minimum, patience    see ``fedsim.backends.flower.protocol.policy``
"""

from __future__ import annotations

import contextlib
import sys
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


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of the ServerApp."""
    serve(grid, context.run_config)


def serve(grid: Grid, config: Mapping[str, Any], say: Callable[[str], None] = print) -> RunDirectory:
    """Start or resume the run described by a run config.

    Raises:
        FedsimError: see ``fedsim.run``.
    """
    if unknown := sorted(set(config) - set(SETTINGS)):
        raise ConfigError(f"unknown run config {', '.join(unknown)}; expected {', '.join(SETTINGS)}")
    policy = Policy(**{key: config[key] for key in POLICY if key in config})
    report = partial(_log, Path(str(config["log"])), say) if config.get("log") else say
    host = FlowerHost(grid, policy, int(config.get("own-data", 0)), report)
    output = Path(str(config["output"])) if config.get("output") else None
    if output is not None and (output / "manifest.json").exists():
        say(f"continuing {output}")
        return controller.resume(output, None, lambda _: host, progress=False)
    # A round takes seconds and a checkpoint milliseconds: checkpoint every round, so that a crash repeats none.
    experiment = experiment_of(str(config.get("experiment", ""))).with_execution(checkpoint_every=1)
    root = Path(str(config.get("root") or "runs"))
    directory = controller.run(experiment, lambda _: host, output=output, root=root, progress=False)
    say(f"finished: {directory.path.absolute()}")
    return directory


def _log(log: Path, say: Callable[[str], None], text: str) -> None:
    say(text)
    with contextlib.suppress(OSError), log.open("a") as file:   # a full disk must not end the run
        file.write(f"{text}\n")


def experiment_of(source: str) -> Experiment:
    """Load an experiment from a file, or parse YAML text, which has more than one line.

    Flower puts the app's folder on ``sys.path``, so a relative path is searched for there.
    """
    if not source.strip():
        raise ConfigError("run config lacks the experiment; give it as -c 'experiment=\"experiment.yaml\"'")
    if "\n" in source:
        try:
            config = yaml.safe_load(source)
        except yaml.YAMLError as error:
            raise ConfigError(f"the experiment is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(config, dict):
            raise ConfigError(f"the experiment is {config!r:.60}; expected settings, such as 'algorithm: FedAvg'")
    else:
        found = (path for folder in sys.path if (path := Path(folder) / source).exists())
        config = load_config(next(found, Path(source)))
    return from_config(config)
