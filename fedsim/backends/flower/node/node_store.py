"""Memory of a node on its own disk, as immutable, checksummed versions, deleted when the server no longer needs them.

    FOLDER/RUN/client-2/3.17.0.safetensors      version "3.17.0": epoch 3 of the server, its 17th call, leaf 0

A call lists the versions it reads, the name of those it writes, and those alive: referenced by the server's last state
or a checkpoint. Versions left by a lost response are never read, and a server that resumes from a checkpoint finds the
versions of that checkpoint. Versions are named in the order of the server's calls, and a call deletes only older ones,
so that a delayed call cannot harm a newer one. The whole folder is deleted at the end of the run; a failed run needs
it to resume.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.backends.flower.protocol.calls import RefusedError
from fedsim.record.files import private, private_folder, remove_unfinished, write_atomic

NAME = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,3}")
"""A version: server epoch, call number, leaf of the memory."""
SHARED = re.compile(r"shared-[0-9a-f]{64}")
"""A shared initial value, by its SHA-256."""
RUN = re.compile(r"[0-9a-f]{32}")


class NodeStore:
    """Versions of one client in one run.

    Args:
        folder: the node's folder of memories, for all runs.
        run: token of the run, 32 hexadecimal digits.
        client: number of the client.
    """

    def __init__(self, folder: Path, run: str, client: int) -> None:
        if not RUN.fullmatch(run):
            raise RefusedError(f"the run's token is {run!r:.80}; expected 32 hexadecimal digits")
        self.folder = folder / run / f"client-{client}"

    def write(self, name: str, value: Tensor) -> None:
        """Store a value atomically."""
        path = self._path(name)
        try:
            private_folder(self.folder.parent.parent)
            private_folder(self.folder.parent)
            private_folder(self.folder)
            data = save({"value": value.detach().cpu().contiguous()})
            write_atomic(path, hashlib.sha256(data).digest() + data, private)
        except OSError as error:
            raise RefusedError(f"cannot keep a memory: {error.strerror}; give the node another store", path) from error

    def read(self, name: str) -> Tensor:
        """Load the value of a version.

        Raises:
            RefusedError: it is missing, or the file is damaged.
        """
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RefusedError(
                f"memory {name} is not there ({error.strerror}): the node's store was emptied or replaced; bring it"
                " back, or start the run again",
                path,
            ) from error
        digest, content = data[:32], data[32:]
        if hashlib.sha256(content).digest() != digest:
            fix = "restore the file, or start the run again"
            raise RefusedError(f"memory {name} does not match its checksum; {fix}", path)
        try:
            return load(content)["value"]
        except (SafetensorError, KeyError) as error:
            raise RefusedError(f"memory {name} is not a tensor", f"{path}: {error}") from error

    def names(self) -> list[str]:
        """Names of all stored versions and shared initial values."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def drop(self, alive: Iterable[str], now: tuple[int, int]) -> None:
        """Delete versions older than call ``now`` = (epoch, number), except those ``alive``."""
        kept = set(alive)
        for name in self.names():
            if NAME.fullmatch(name) and name not in kept and order(name)[:2] < now:
                self._path(name).unlink(missing_ok=True)
        remove_unfinished(self.folder)

    def forget(self) -> None:
        """Delete everything at the end of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):                            # other clients still use it
            self.folder.parent.rmdir()

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name) and not SHARED.fullmatch(name):
            raise RefusedError(f"a memory is called {name!r:.80}; expected a version such as 3.17.0")
        return self.folder / f"{name}.safetensors"


def order(name: str) -> tuple[int, int, int]:
    """Parse a version into (epoch, call number, leaf)."""
    epoch, number, leaf = name.split(".")
    return int(epoch), int(number), int(leaf)
