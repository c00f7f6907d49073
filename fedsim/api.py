"""The calls of a script: run an experiment, and continue one that was interrupted."""

from __future__ import annotations

from pathlib import Path

from fedsim.controller import run as controller
from fedsim.controller.host import Host
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory


def run(
    experiment: Experiment,
    *,
    output: Path | str | None = None,
    root: Path | str = Path("runs"),
    progress: bool = True,
    host: Host | None = None,
) -> RunDirectory:
    """Run an experiment with all its seeds in a new run directory.

    Args:
        experiment: what to run.
        output: exactly this directory, which must not exist; by default a new one below ``root``.
        root: folder of runs.
        progress: show a progress bar on stderr.
        host: where the clients are; by default where ``experiment`` says.

    Raises:
        ConfigError: the experiment cannot be set up, or a setting is refused before anything was measured (nothing is
            left behind).
        FedsimError: it failed in mid-run (resume from its last checkpoint).
        KeyboardInterrupt: after a checkpoint of the last completed round.
    """
    where = None if output is None else Path(output)
    return controller.run(
        experiment, lambda e: host or host_of(e, progress), output=where, root=Path(root), progress=progress
    )


def resume(
    path: Path | str, experiment: Experiment | None = None, *, progress: bool = True, host: Host | None = None
) -> RunDirectory:
    """Continue a run that was interrupted or failed, to the same final metrics as if it had not been.

    Args:
        path: the run directory.
        experiment: the experiment, where its ``config.yaml`` cannot express it (a model or data set given as a Python
            object), or where its execution is another one. Clients stay in blocks of the same size, and PyTorch has
            the same threads unless ``execution.threads`` says otherwise, so that the same numbers come out.
        progress: show a progress bar on stderr.
        host: where the clients are; by default where the experiment says.

    Raises:
        FedsimError: no run there, another experiment, another version of fedsim, its data set has changed, no valid
            checkpoint, or the run failed again.
    """
    return controller.resume(Path(path), experiment, lambda e: host or host_of(e, progress), progress=progress)


def host_of(experiment: Experiment, progress: bool = True) -> Host:
    """Where an experiment's clients are when nobody says it: in this process, or in those of the Ray backend."""
    if not experiment.execution.uses_ray:
        return Host()
    from fedsim.backends.ray.ray_host import RayHost  # an optional package

    return RayHost(experiment.execution.ray, progress)
