"""Constants of the protocol: package versions, size limits, and reserved leaf numbers in a node's store."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from fedsim.errors import DeployError
from fedsim.record.version import __version__

MESSAGE = 255
"""Leaf number of a sent message, which a node retains for mixing."""
COPY = 256
"""Leaf number of the first public copy that a node retains; further copies follow."""
LARGEST_VECTORS = 64
"""Size limit of a message, in models in float64; a mixing call may hold one more per client."""
PACKAGES = {"fedsim": "fedsim-lab", "flwr": "flwr"}


def versions() -> dict[str, str]:
    """Installed versions of the packages that determine results and the wire format."""
    return {"fedsim": __version__, **{name: importlib.metadata.version(name) for name in ("flwr", "torch")}}


def check(theirs: object, mine: Mapping[str, str]) -> str:
    """Compare a node's versions with the server's; return a warning if PyTorch differs, else an empty string.

    Raises:
        DeployError: Flower or fedsim differs.
    """
    if not isinstance(theirs, dict):
        raise DeployError(f"the node reports the versions {theirs!r:.80}; expected a mapping")
    for name in ("fedsim", "flwr"):
        if theirs.get(name) != mine[name]:
            raise DeployError(
                f"the node has {name} {theirs.get(name)!r:.40}, the server {mine[name]}; install the same on both ends:"
                f" pip install {PACKAGES[name]}=={mine[name]}"
            )
    if theirs.get("torch") != mine["torch"]:
        return f"PyTorch is {theirs.get('torch')!r:.40} there and {mine['torch']} here: results may differ by rounding"
    return ""
