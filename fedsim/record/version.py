"""Version of fedsim. Runs and sweeps of another minor version can be read, but not resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import RunError

__version__ = "0.2.0.dev0"


def check_version(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise RunError if this version cannot resume the run or sweep at ``path``."""
    made = manifest["versions"].get("fedsim", "of an unknown version")
    if made.split(".")[:2] != __version__.split(".")[:2]:
        raise RunError(
            f"{path} was made by fedsim {made}, and this is {__version__}, which may read its checkpoints and settings"
            f" differently; resume it with fedsim {made}, or run it again"
        )
