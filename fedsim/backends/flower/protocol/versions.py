"""What both ends agree on: versions, limits, and the number of a message among a node's memories."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from fedsim.errors import DeployError
from fedsim.record.version import __version__

MESSAGE = 255
"""Number, among the leaves of a call, of the message that was sent: the node keeps it where it is to be mixed."""
COPY = 256
"""The same of the public copies from which a node made what it was sent, and more for each that follows."""
LARGEST_VECTORS = 64
"""A message may hold as much as so many models in float64; a call that mixes, one more for every client."""
PACKAGES = {"fedsim": "fedsim-lab", "flwr": "flwr"}


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed and how it travels."""
    return {"fedsim": __version__, **{name: importlib.metadata.version(name) for name in ("flwr", "torch")}}


def check(theirs: object, mine: Mapping[str, str]) -> str:
    """What is to be said of a node's versions; empty when they are the server's.

    Raises:
        DeployError: Flower or fedsim differ.
    """
    if not isinstance(theirs, dict):
        raise DeployError(f"the node says its versions are {theirs!r:.80}; expected a mapping")
    for name in ("fedsim", "flwr"):
        if theirs.get(name) != mine[name]:
            raise DeployError(
                f"the node has {name} {theirs.get(name)!r:.40}, the server {mine[name]}; install the same on both ends:"
                f" pip install {PACKAGES[name]}=={mine[name]}"
            )
    if theirs.get("torch") != mine["torch"]:
        return f"PyTorch is {theirs.get('torch')!r:.40} there and {mine['torch']} here: results may differ by rounding"
    return ""
