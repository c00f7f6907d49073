"""Files of a seed whose hashes are in its checkpoints."""

from __future__ import annotations

from pathlib import Path

from fedsim.record.columns import FOLDER, columns_hash
from fedsim.record.files import file_digest

DEVICES = "devices.npz"
COVERED = {"metrics_sha256": "metrics.jsonl", "columns_sha256": FOLDER, "devices_sha256": DEVICES}
"""Files of a seed by the name of their hash in a checkpoint."""


def hashes_of(seed: Path, round: int) -> dict[str, str]:
    """Hashes of a seed's files but ``metrics.jsonl``, as they were after a round, by their names in a checkpoint."""
    return {"columns_sha256": columns_hash(seed, round).hexdigest(), "devices_sha256": digest_of(seed / DEVICES)}


def digest_of(path: Path) -> str:
    """SHA-256 of a file; empty if there is none."""
    return file_digest(path) if path.exists() else ""
