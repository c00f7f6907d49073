"""Entry points for scripts: run an experiment, or resume an interrupted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from fedsim.controller import run as controller
from fedsim.controller.host import Host
from fedsim.controller.trained import trained
from fedsim.controller.watching import OnRound
from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.files import write_atomic


def run(
    experiment: Experiment,
    *,
    output: Path | str | None = None,
    root: Path | str = Path("runs"),
    progress: bool = True,
    host: Host | None = None,
    on_round: OnRound | None = None,
) -> RunDirectory:
    """Run an experiment with all its seeds in a new run directory.

    Args:
        experiment: the experiment to run.
        output: run directory to create, which must not exist; by default a new one below ``root``.
        root: parent folder of run directories.
        progress: show a progress bar on stderr.
        host: host of the clients; by default the one that ``experiment.execution`` selects.
        on_round: called with a `RoundView` after every round, from round 0 on; what it raises ends the run, which can
            be resumed.

    Raises:
        ConfigError: the experiment cannot be set up, or a setting is rejected before the first measurement; no run
            directory is left behind.
        FedsimError: the run failed midway; resume it from its last checkpoint.
        KeyboardInterrupt: the run was interrupted; a checkpoint of the last completed round has been written.
    """
    _check_experiment("run", experiment)
    experiment = _with_file(experiment)
    directory = None if output is None else Path(output)
    place = lambda e: host or host_of(e, progress)  # noqa: E731
    return controller.run(
        experiment, place, output=directory, root=Path(root), progress=progress, on_round=on_round
    )


def resume(
    path: Path | str,
    experiment: Experiment | None = None,
    *,
    rounds: int | None = None,
    seeds: int | None = None,
    progress: bool = True,
    host: Host | None = None,
    on_round: OnRound | None = None,
    accept_changes: bool = False,
) -> RunDirectory:
    """Continue an interrupted or failed run, or one with more rounds; its final metrics equal those of an uninterrupted
    run of as many rounds.

    Args:
        path: the run directory.
        experiment: needed if ``config.yaml`` cannot express the experiment (a model or data set given as a Python
            object), or to change its execution. The block size stays the same, and so does PyTorch's number of threads
            unless ``execution.threads`` is set, so that the numbers do not change.
        rounds: rounds to run in all, more than each seed has done; by default as many as the run was begun with. What
            only a last round measures, such as the final evaluation of clients, is then that of the new last round.
        seeds: seeds to have in all, as many as the run was begun with or more.
        progress: show a progress bar on stderr.
        host: host of the clients; by default the one that ``experiment.execution`` selects.
        on_round: called with a `RoundView` after every round, from round 0 on; what it raises ends the run, which can
            be resumed.
        accept_changes: continue although ``config.yaml`` or ``metrics.jsonl`` were edited since, and note it in
            ``manifest.json``.

    Raises:
        FedsimError: the directory holds no run, or one of another experiment or version of fedsim; the data set has
            changed; there is no valid checkpoint; a run of so many rounds would have begun otherwise, as with Cosine
            over all rounds; or the run failed again.
    """
    if experiment is not None:
        _check_experiment("resume", experiment)
    place = lambda e: host or host_of(e, progress)  # noqa: E731
    return controller.resume(
        Path(path), experiment, place, progress=progress, rounds=rounds, seeds=seeds, on_round=on_round,
        accept=accept_changes,
    )


def trained_model(
    run: Path | str | RunDirectory,
    seed: int | None = None,
    node: int | None = None,
    experiment: Experiment | None = None,
) -> nn.Module:
    """Return the module that a run has trained, on the CPU and in eval mode, from its latest checkpoint.

    Args:
        run: the run, or its directory.
        seed: one of its seeds; the first by default.
        node: without a server, the node whose model it is; by default the weighted average of all models.
        experiment: needed if ``config.yaml`` cannot express the experiment.

    Raises:
        FedsimError: there is no run, checkpoint, seed or node; or the nodes of a deployment keep their models.
    """
    directory = run if isinstance(run, RunDirectory) else open_run(Path(run))
    return trained(directory, seed, node, experiment)[0]


def _with_file(experiment: Experiment) -> Experiment:
    """The experiment with the file of a trained model for ``init``, if that is a run; the file is kept in the run.

    Raises:
        FedsimError: the run has no model; see `trained_model`.
    """
    if experiment.init is None or not (Path(experiment.init) / "manifest.json").is_file():
        return experiment
    module, round = trained(source := open_run(Path(experiment.init)))
    state = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    file = source.path.resolve() / f"model-{round:06d}.safetensors"
    write_atomic(file, save(state))
    return replace(experiment, init=str(file))


def _check_experiment(call: str, given: Any) -> None:
    if not isinstance(given, Experiment):
        fix = f"Experiment({type(given).__name__}(...))" if hasattr(given, "round") else "Experiment(FedAvg())"
        raise ConfigError(f"fedsim.{call} got {given!r:.200}; expected an Experiment, such as {fix}")


def host_of(experiment: Experiment, progress: bool = True) -> Host:
    """Return the host that an experiment's execution selects: this process, or the actors of the Ray backend."""
    if not experiment.execution.uses_ray:
        return Host()
    from fedsim.backends.ray.ray_host import RayHost  # an optional package

    return RayHost(experiment.execution.ray, progress)
