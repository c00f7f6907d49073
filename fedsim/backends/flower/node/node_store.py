"""A node's memory on its own disk: versions that are written once, checksummed, and dropped when the server says so.

    FOLDER/RUN/client-2/3.17.0.safetensors      version "3.17.0": epoch 3 of the server, its 17th call, leaf 0

A call of the server says which versions it reads, under which name the new ones are kept, and which are alive: those of
the last state that it holds or has in a checkpoint. What a lost reply left behind is then simply never read, and a
server that goes back to a checkpoint finds the versions of that checkpoint. Versions are named by the order of the
server's calls, and a call drops only what is older than itself, so one that was delayed cannot harm a newer one. The
whole folder is removed when the server says that the run has ended; one that failed needs its own to go on.
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

from fedsim.errors import DeployError
from fedsim.record.files import remove_unfinished, write_atomic

NAME = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,3}")
"""A version: epoch of the server, number of its call, leaf of the memory."""
SHARED = re.compile(r"shared-[0-9a-f]{64}")
"""A first value that both ends agreed upon, by its SHA-256."""
RUN = re.compile(r"[0-9a-f]{32}")


class NodeStore:
    """Versions of one client of one run.

    Args:
        folder: the node's own folder for memories of all runs.
        run: token of the run, 32 hexadecimal digits.
        client: number of the client.
    """

    def __init__(self, folder: Path, run: str, client: int) -> None:
        if not RUN.fullmatch(run):
            raise DeployError(f"the run's token is {run!r:.80}; expected 32 hexadecimal digits")
        self.folder = folder / run / f"client-{client}"

    def write(self, name: str, value: Tensor) -> None:
        """Keep a value: after a crash it is there whole, or not at all."""
        path = self._path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            data = save({"value": value.detach().cpu().contiguous()})
            write_atomic(path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise DeployError(f"cannot keep memory in {path}: {error.strerror}; give the node another store") from error

    def read(self, name: str) -> Tensor:
        """The value of a version.

        Raises:
            DeployError: it is not here, or the file is damaged.
        """
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeployError(
                f"memory {name} is not in {self.folder} ({error.strerror}): the node's store was emptied or replaced;"
                " bring it back, or start the run again"
            ) from error
        digest, content = data[:32], data[32:]
        if hashlib.sha256(content).digest() != digest:
            raise DeployError(f"memory {path} does not match its checksum; restore the file, or start the run again")
        try:
            return load(content)["value"]
        except (SafetensorError, KeyError) as error:
            raise DeployError(f"memory {path} is not a tensor: {error}") from error

    def names(self) -> list[str]:
        """All versions, and shared first values, that are here."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def drop(self, alive: Iterable[str], now: tuple[int, int]) -> None:
        """Forget the versions before call ``now`` = (epoch, number) that are not ``alive``."""
        kept = set(alive)
        for name in self.names():
            if NAME.fullmatch(name) and name not in kept and order(name)[:2] < now:
                self._path(name).unlink(missing_ok=True)
        remove_unfinished(self.folder)

    def forget(self) -> None:
        """Remove everything: the run has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):                            # other clients are still there
            self.folder.parent.rmdir()

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name) and not SHARED.fullmatch(name):
            raise DeployError(f"a memory is called {name!r:.80}; expected a version such as 3.17.0")
        return self.folder / f"{name}.safetensors"


def order(name: str) -> tuple[int, int, int]:
    """(epoch, number, leaf) of a version."""
    epoch, number, leaf = name.split(".")
    return int(epoch), int(number), int(leaf)
