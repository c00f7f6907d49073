"""Settings of a node, given by its operator in ``--node-config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.backends.flower.protocol.calls import RefusedError
from fedsim.backends.flower.protocol.toml import as_toml

KNOWN = ("partition-id", "num-partitions", "store", "data", "data-dir", "files", "allow")
LISTS = ("files", "allow")


@dataclass(frozen=True)
class NodeSettings:
    """Settings of a node, given by its operator in ``--node-config``.

    Args:
        client: number of this node's client (``partition-id``).
        store: folder of memories.
        data: file or folder with the node's own samples, in the experiment's format; None to use its part of the
            experiment's data set.
        data_dir: folder of named data sets.
        files: files and folders that an experiment may name besides the data sets there; comma-separated in the node
            config.
        allow: modules besides fedsim whose classes an experiment may name; comma-separated in the node config.
    """

    client: int
    store: Path
    data: Path | None = None
    data_dir: Path | None = None
    files: tuple[Path, ...] = ()
    allow: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], store: Path | None = None) -> NodeSettings:
        """Parse Flower's node config; ``store`` is the default of that setting.

        Raises:
            RefusedError: a setting is missing or unknown.
        """
        client = config.get("partition-id")
        if not isinstance(client, int) or isinstance(client, bool) or client < 0:
            raise RefusedError(f"partition-id is {client!r}; start the node with --node-config 'partition-id=0 ...'")
        if unknown := sorted(set(config) - set(KNOWN)):
            raise RefusedError(f"unknown node config {', '.join(unknown)}; expected {', '.join(KNOWN)}")
        paths = {key: Path(str(config[key])).expanduser() for key in ("store", "data", "data-dir") if key in config}
        if (kept := paths.get("store", store)) is None:
            raise RefusedError("the node config lacks a store; expected store=\"/folder/for/memories\"")
        files, allow = (tuple(filter(None, map(str.strip, str(config.get(key, "")).split(",")))) for key in LISTS)
        own = tuple(Path(file).expanduser() for file in files)
        return cls(client, kept, paths.get("data"), paths.get("data-dir"), own, allow)

    def config(self) -> dict[str, int | str]:
        """Settings as Flower's node config."""
        paths = {"store": self.store, "data": self.data, "data-dir": self.data_dir}
        config: dict[str, int | str] = {"partition-id": self.client}
        config |= {key: str(path) for key, path in paths.items() if path is not None}
        lists = {"files": map(str, self.files), "allow": self.allow}
        return config | {key: text for key, values in lists.items() if (text := ",".join(values))}

    def text(self) -> str:
        """Settings as the argument of ``--node-config``."""
        return " ".join(f"{key}={as_toml(value)}" for key, value in self.config().items())
