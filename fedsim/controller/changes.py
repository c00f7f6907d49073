"""Changes to the files of a run since it was interrupted. A run with changes is resumed only if they are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from fedsim.experiment.identity import hashes_of_checkpoints, settings_hash
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory, SeedRecord


def accept_changes(directory: RunDirectory, seeds: Iterable[int]) -> list[str]:
    """Note in the manifest that the run goes on with edited settings and metrics; return what has changed."""
    config, manifest = directory.config, directory.manifest
    found, known = settings_hash(config), hashes_of_checkpoints(config, manifest)
    now: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "metrics": {}, "settings": []}
    changes = []
    if manifest.get("settings_hash") not in (None, found):
        now["settings_hash"] = manifest["settings_hash"]
    for seed in seeds:
        with directory.open_seed(seed) as record:
            made = [one for _, one in checkpoint.each(record.checkpoints) if not isinstance(one, Exception)]
            begun = {one.meta["settings_sha256"] for one in made if "settings_sha256" in one.meta}
            now["settings"] = sorted({*now["settings"], *begun - known})
            fitting = [one for one in made if record.metrics.ends_at(one.meta["offset"])]
            changed = [record.changed(one.meta, one.round) for one in fitting]
        if digests := [digest for files in changed for digest in files.values()]:
            now["metrics"][str(seed)] = digests
            names = sorted({name for files in changed for name in files})
            changes.append(f"{', '.join(names)} of seed {seed} {'was' if len(names) == 1 else 'were'} changed")
    if "settings_hash" in now or now["settings"]:
        changes.insert(0, "config.yaml has other settings than the run began with")
    if changes:
        directory.update_manifest(settings_hash=found, accepted=[*manifest.get("accepted", []), now])
    return changes


def misfit(directory: RunDirectory, seed: int, record: SeedRecord, ended: Callable[[int], bool]) -> Any:
    """Function that says why a seed cannot continue from a checkpoint, for `checkpoint.load_latest`.

    Args:
        directory: the run.
        seed: the seed.
        record: its files.
        ended: whether the run has been extended from a round, some of whose rows may have been removed since.
    """
    accepted = [
        digest for entry in directory.manifest.get("accepted", []) for digest in entry["metrics"].get(str(seed), [])
    ]

    config = directory.config
    known = hashes_of_checkpoints(config, directory.manifest)

    def why(loaded: checkpoint.Loaded) -> str | None:
        begun = loaded.meta.get("settings_sha256")
        if begun is not None and begun not in known:
            return (
                f"config.yaml has other settings than it was made with (hash {settings_hash(config)[:12]}, expected"
                f" {begun[:12]}); set them back, or continue with them: fedsim resume {directory.path} --accept-changes"
            )
        if ended(loaded.round) and record.metrics.size < loaded.meta["offset"]:
            return None
        return record.misfit(loaded.meta, loaded.round, accepted, ("clients",) if ended(loaded.round) else ())

    return why
