"""Persistent worker process: Flower starts a process per message, which would import PyTorch and load the data again.

The ClientApp in Flower's short-lived process passes a call to this worker over a Unix socket, private to the user, and
returns its response. The first call of a run starts the worker. It exits with the SuperNode, or after ``IDLE_SECONDS``
without a call, to release memory and GPU; the next call starts another. Every run has its own worker, so that none uses
stale modules or data of an earlier run.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import psutil

from fedsim.backends.flower.node.discretion import log, sentence
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.errors import DeployError
from fedsim.record.files import lock, private_folder

IDLE_SECONDS = 120.0
NEW_SECONDS = 60.0
"""Age below which a socket without a listener is not removed: its worker may be starting."""
START_SECONDS = 300.0


class WorkerError(RuntimeError):
    """The worker failed, which Flower reports as a failure of the ClientApp."""


def ask(call: Call, experiment: str, settings: NodeSettings, run: int) -> Call:
    """Send a call to this node's worker for Flower's ``run``, started on demand and once more if killed.

    Raises:
        WorkerError: the worker raised an error, or was killed twice.
    """
    try:
        made, beside = _ask(call, experiment, settings, run)
    except (EOFError, OSError):
        try:
            made, beside = _ask(call, experiment, settings, run)
        except (EOFError, OSError) as error:
            raise WorkerError("the node's worker was killed while it worked, perhaps for want of memory") from error
    if "raised" in beside:
        raise WorkerError(beside["raised"])
    return made


def _ask(call: Call, experiment: str, settings: NodeSettings, run: int) -> tuple[Call, dict[str, Any]]:
    with _connected(settings, run) as worker:
        _send(worker, call, experiment=experiment, settings=settings.config())
        return _receive(worker)


def serve(path: Path, settings: NodeSettings, node: int, idle: float = IDLE_SECONDS) -> None:
    """Serve calls sequentially until the process ``node`` ends, or for ``idle`` seconds without a call."""
    from fedsim.backends.flower.node.answer import answer  # imports PyTorch

    threading.Thread(target=_end_with, args=(node, path), daemon=True).start()
    remove_orphans(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while accepted := _next(listener, path, settings.store, idle):
            with Connection(accepted.detach()) as client:
                try:
                    call, beside = _receive(client)
                    try:
                        _send(client, answer(call, beside["experiment"], NodeSettings.of(beside["settings"])))
                    except Exception as error:
                        log(error)
                        _send(client, Call("refused"), raised=sentence(error))
                except (EOFError, OSError):                # the calling process has ended
                    continue


def _next(listener: socket.socket, path: Path, store: Path, idle: float) -> socket.socket | None:
    """Accept the next connection; after ``idle`` seconds without one, remove the socket and return None."""
    if not select.select([listener], [], [], idle)[0]:
        with _locked(store):                               # callers connect under this lock, or find no socket
            if not select.select([listener], [], [], 0)[0]:
                path.unlink()
                return None
    return listener.accept()[0]


def remove_orphans(folder: Path) -> None:
    """Remove stale sockets of killed workers."""
    for path in folder.iterdir():
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:   # removed meanwhile, or not ours
            if path.is_socket() and time.time() - path.stat().st_mtime > NEW_SECONDS:
                probe.setblocking(False)                   # the backlog of a busy worker may be full
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


def _end_with(node: int, path: Path) -> None:
    """Exit at once, and remove the socket, when the process ``node`` ends."""
    with suppress(psutil.NoSuchProcess):                   # already ended
        process = psutil.Process(node)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    _end(path)


def _end(path: Path) -> None:
    path.unlink(missing_ok=True)
    os._exit(1)


@contextmanager
def _connected(settings: NodeSettings, run: int) -> Iterator[Connection]:
    """Connect to the worker; start it if necessary."""
    path = _address(settings, run)
    with _locked(settings.store):
        worker = _connect(path) or _start(path, settings)
    with worker:
        yield worker


def _address(settings: NodeSettings, run: int) -> Path:
    """Socket path for a node and run, in a folder private to this user."""
    folder = Path(tempfile.gettempdir()) / f"fedsim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DeployError(f"{folder} can be opened by other users; remove it, or set TMPDIR to a folder of your own")
    name = f"{settings.store} {settings.client} {run} {os.getppid()}"
    return folder / hashlib.sha256(name.encode()).hexdigest()[:16]


def _start(path: Path, settings: NodeSettings) -> Connection:
    """Start a worker, tied to the Flower process that is this one's parent, and connect to it."""
    path.unlink(missing_ok=True)                           # left by a killed worker
    words = [str(path), json.dumps(settings.config()), str(os.getppid())]
    worker = subprocess.Popen([sys.executable, "-m", __name__, *words], stdin=subprocess.DEVNULL)
    end = time.monotonic() + START_SECONDS
    while not (connection := _connect(path)):
        if worker.poll() is not None:
            raise WorkerError(f"the node's worker ended with exit code {worker.returncode}; see the node's log")
        if time.monotonic() > end:
            worker.kill()
            raise WorkerError(f"the node's worker did not start within {START_SECONDS:g} s")
        time.sleep(0.05)
    return connection


def _connect(path: Path) -> Connection | None:
    try:
        return Client(str(path), "AF_UNIX")
    except (FileNotFoundError, ConnectionRefusedError):    # no listener
        return None


def _locked(store: Path) -> AbstractContextManager[None]:
    """Lock among the processes that find, start or end a worker of this node."""
    private_folder(store)
    return lock(store)


def _send(to: Connection, call: Call, **beside: Any) -> None:
    """Send a call and further values: JSON first, then the bytes of each message. Nothing is pickled."""
    to.send_bytes(json.dumps({"verb": call.verb, "values": call.values, "data": list(call.data), **beside}).encode())
    for data in call.data.values():
        to.send_bytes(data)


def _receive(of: Connection) -> tuple[Call, dict[str, Any]]:
    beside = json.loads(of.recv_bytes())
    verb, values, names = (beside.pop(key) for key in ("verb", "values", "data"))
    return Call(verb, values, {name: of.recv_bytes() for name in names}), beside


if __name__ == "__main__":
    os.umask(0o077)                                        # what it writes is this user's alone
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # Ctrl-C reaches the SuperNode's whole group
    signal.signal(signal.SIGTERM, lambda *_: _end(Path(sys.argv[1])))
    serve(Path(sys.argv[1]), NodeSettings.of(json.loads(sys.argv[2])), int(sys.argv[3]))
