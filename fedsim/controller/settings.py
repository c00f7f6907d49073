"""What a run is to be resumed with: the model and the settings that it began with."""

from __future__ import annotations

from fedsim.errors import RunError
from fedsim.experiment.identity import edited, settings_hash
from fedsim.record.directory import RunDirectory


def check_model(directory: RunDirectory, d: int) -> None:
    """Raise RunError unless a module of ``d`` parameters fits the run's checkpoints."""
    if d != (trained := directory.manifest.get("parameters", d)):
        raise RunError(
            f"{directory.path} has trained a model of {trained:,} parameters, and the module found now has {d:,};"
            " restore its code and settings, or give the experiment of the run"
        )


def check_settings(directory: RunDirectory) -> None:
    """Refuse to continue a run with other settings than its first rounds had; earlier versions recorded no hash.

    Raises:
        RunError: ``config.yaml`` was edited since.
    """
    config, manifest, path = directory.config, directory.manifest, directory.path
    if edited(config, manifest):
        raise RunError(
            f"{path / 'config.yaml'} has other settings than the run began with (hash {settings_hash(config)[:12]},"
            f" expected {manifest['settings_hash'][:12]}), and one run would be of two experiments. Set them back, or"
            f" begin a new run: fedsim run {path / 'config.yaml'} --output NEW. All of execution may be edited; more"
            f" rounds are given by fedsim resume {path} --rounds N; to continue with other settings none the less:"
            " --accept-changes"
        )
