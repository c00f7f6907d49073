"""The environment in which a run or sweep is made, for its manifest."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

from fedsim.record.version import __version__


def environment() -> dict[str, Any]:
    """Time, versions, platform and git state of this process."""
    return {
        "created": datetime.now(UTC).isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
            "fedsim": __version__,
        },
        "platform": platform.platform(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory, and a flag for modified tracked files; None outside a repository."""

    def git(*arguments: str) -> str:
        # without optional locks, so that reading the state cannot block a concurrent commit
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": git("status", "--porcelain", "--untracked-files=no") != "",
        }
    except (OSError, subprocess.SubprocessError):
        return None
