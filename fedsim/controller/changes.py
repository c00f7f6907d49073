"""Changes to the files of a run since it was interrupted, which resuming refuses unless they are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from fedsim.experiment.identity import settings_hash
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory, SeedRecord


def accept_changes(directory: RunDirectory, seeds: Iterable[int]) -> list[str]:
    """Note in the manifest that edited settings and metrics are to be continued with; return what has changed."""
    manifest, found = directory.manifest, settings_hash(directory.config)
    now: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "metrics": {}}
    changes = []
    if manifest.get("settings_hash") not in (None, found):
        now["settings_hash"] = manifest["settings_hash"]
        changes.append("config.yaml has other settings than the run began with")
    for seed in seeds:
        with directory.open_seed(seed) as record:
            metas = [found.meta for _, found in checkpoint.each(record.checkpoints) if not isinstance(found, Exception)]
            fitting = [meta for meta in metas if record.metrics.ends_at(meta["offset"])]
            digests = [record.metrics.digest(meta["offset"]) for meta in fitting if record.misfit(meta)]
        if digests:
            now["metrics"][str(seed)] = digests
            changes.append(f"metrics.jsonl of seed {seed} was changed")
    if changes:
        directory.update_manifest(settings_hash=found, accepted=[*manifest.get("accepted", []), now])
    return changes


def misfit(directory: RunDirectory, seed: int, record: SeedRecord, ended: Callable[[int], bool]) -> Any:
    """Function that says why a checkpoint is no beginning for the rest of a seed, for `checkpoint.load_latest`.

    Args:
        directory: the run.
        seed: the seed.
        record: its files.
        ended: whether the run has been extended from this round, after which rows of its last one may have gone.
    """
    accepted = [
        digest for entry in directory.manifest.get("accepted", []) for digest in entry["metrics"].get(str(seed), [])
    ]

    def why(loaded: checkpoint.Loaded) -> str | None:
        shortened = ended(loaded.round) and record.metrics.size < loaded.meta["offset"]
        return None if shortened else record.misfit(loaded.meta, accepted)

    return why
