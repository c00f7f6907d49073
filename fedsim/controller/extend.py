"""Give a run more rounds or seeds than it was begun with, so that it equals a run that had them from the start.

Only the end of a run depends on its number of rounds: the last round is always evaluated, clients included, and
followed by the method's ``finish``. So the rows that only a last round has are removed, and a run whose last state
cannot be undone is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml

from fedsim.checks import whole
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.identity import settings_hash
from fedsim.experiment.schedule import Cosine
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory, stopped_after
from fedsim.record.files import write_atomic
from fedsim.record.version import __version__
from fedsim.robust.robust import innermost


def check_extension(directory: RunDirectory, experiment: Experiment, rounds: int) -> None:
    """Check that with this number of rounds the run would equal one that had it from the start.

    Raises:
        ConfigError: fewer rounds than a seed has done, or a schedule that spans all rounds.
        RunError: the run was deployed, or its method's ``finish`` has changed its last state.
        BusyError: the run is in progress.
    """
    path, planned = directory.path, directory.config["rounds"]
    if isinstance(experiment.schedule, Cosine) and experiment.schedule.rounds is None:
        raise ConfigError(
            f"the schedule of {path} is Cosine over all of its {planned} rounds, so those of a run of {rounds} have"
            " other step sizes; start a new run, or give the next one a schedule.rounds of its own"
        )
    if any(chosen["backend"] == "flower" for chosen in directory.manifest["backend"].values()):
        raise RunError(f"{path} was deployed, and its clients have left; start a new deployment with rounds: {rounds}")
    for seed in map(int, directory.manifest["status"]):
        if stopped_after(directory.manifest, seed) is not None:
            continue                                       # as it would have in a run of more rounds
        done = _done(directory, seed)
        if done >= rounds:
            raise ConfigError(
                f"rounds is {rounds}, and seed {seed} of {path} has done {done}; expected more, as no round is undone"
            )
        if done == planned and hasattr(innermost(experiment.algorithm), "finish"):
            raise RunError(
                f"seed {seed} of {path} has finished: {type(experiment.algorithm).__name__}.finish has used what was"
                f" under way after round {planned}, which round {planned + 1} would need; start a new run: fedsim run"
                f" {path / 'config.yaml'} --rounds {rounds} --output NEW"
            )


def check_more_seeds(directory: RunDirectory, seeds: int) -> None:
    """Refuse fewer seeds than a run has, and any for a deployment.

    Raises:
        ConfigError: fewer seeds, or no whole number.
        RunError: the run was deployed.
    """
    whole("seeds", seeds, 1)
    path, known = directory.path, len(directory.manifest["status"])
    if seeds < known:
        raise ConfigError(f"seeds is {seeds}, and {path} has {known}; expected more, as none is taken away")
    if any(chosen["backend"] == "flower" for chosen in directory.manifest["backend"].values()):
        raise RunError(f"{path} was deployed, and its clients have left; start a new deployment with seeds: {seeds}")


def note_seeds(directory: RunDirectory, seeds: int) -> None:
    """Write down more seeds. Killed at any point of this, it can be repeated."""
    config = directory.config
    longer = {**config, "seeds": seeds}
    _note(directory, "more_seeds", {"from": config["seeds"], "to": seeds}, longer)
    status, first = directory.manifest["status"], config["seed"]
    numbers = list(range(first, first + seeds))
    waiting = {str(seed): {"state": "waiting", "detail": ""} for seed in numbers}
    directory.update_manifest(seeds=numbers, status={**waiting, **status})


def _note(directory: RunDirectory, what: str, change: dict[str, int], longer: dict[str, Any]) -> None:
    """Write a change into the manifest, then the settings that follow into ``config.yaml``."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries = [*directory.manifest.get(what, []), {**change, "at": now, "fedsim": __version__}]
    directory.update_manifest(**{what: entries, "settings_hash": settings_hash(longer)})
    text = yaml.safe_dump(longer, sort_keys=False, allow_unicode=True)
    write_atomic(directory.path / "config.yaml", text)


def _done(directory: RunDirectory, seed: int) -> int:
    with directory.open_seed(seed) as record:              # no other process may write checkpoints meanwhile
        loaded = checkpoint.load_latest(record.checkpoints)
    return 0 if loaded is None else loaded.round


def note_extension(directory: RunDirectory, rounds: int) -> None:
    """Write down the new number of rounds. If this is interrupted, the run can still be resumed, to either number."""
    config, manifest = directory.config, directory.manifest
    for seed, status in manifest["status"].items():
        if status["state"] == "finished" and stopped_after(manifest, int(seed)) is None:
            directory.mark(int(seed), "interrupted", f"to be extended to {rounds} rounds")
    _note(directory, "extended", {"from": config["rounds"], "to": rounds}, {**config, "rounds": rounds})


def was_end(manifest: dict[str, Any], round: int) -> bool:
    """Whether the run has been extended from this round, which may still have the rows of a last round."""
    return any(entry["from"] == round for entry in manifest.get("extended", []))
