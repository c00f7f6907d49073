"""A process that stays: Flower starts a new one for every message, which would import PyTorch and read the data again.

The ClientApp in Flower's short process hands a call to this worker over a Unix socket, which only its user can open,
and passes on the answer. The first call of a run starts the worker; it ends with the SuperNode, or when nothing was
asked for ``IDLE_SECONDS``, which gives memory and GPU back; the next call then starts another. Every run has a worker
of its own, so that none works with modules or data as an earlier run found them.
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
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import psutil

from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.errors import DeployError
from fedsim.record.files import lock

IDLE_SECONDS = 120.0
NEW_SECONDS = 60.0
"""How long a socket is left alone that nobody listens at: its worker may be just about to."""
START_SECONDS = 300.0


class WorkerError(RuntimeError):
    """The worker failed; Flower reports it as a failure of the ClientApp."""


def ask(call: Call, experiment: str, settings: NodeSettings, run: int) -> Call:
    """The answer of this node's worker for Flower's ``run``; it is started if there is none, and again if it is killed.

    Raises:
        WorkerError: it raised an error, or was killed twice.
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
    """Answer calls, one after the other, while the process ``node`` lives and something is asked now and then."""
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
                        traceback.print_exc()
                        _send(client, Call("refused"), raised=f"{type(error).__name__}: {error}")
                except (EOFError, OSError):                # the process that asked was ended
                    continue


def _next(listener: socket.socket, path: Path, store: Path, idle: float) -> socket.socket | None:
    """The next connection; None, and the socket removed, when there was none for ``idle`` seconds."""
    if not select.select([listener], [], [], idle)[0]:
        with _alone(store):                                # who held it has connected; others will find no socket
            if not select.select([listener], [], [], 0)[0]:
                path.unlink()
                return None
    return listener.accept()[0]


def remove_orphans(folder: Path) -> None:
    """Remove the sockets of workers that were killed, which leaves no time to do it."""
    for path in folder.iterdir():
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:   # removed by another, or no socket of ours
            if path.is_socket() and time.time() - path.stat().st_mtime > NEW_SECONDS:
                probe.setblocking(False)                   # one that is busy may have no room for another connection
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


def _end_with(node: int, path: Path) -> None:
    """End this process, and remove its socket, when the process ``node`` has ended, whatever is being done."""
    with suppress(psutil.NoSuchProcess):                   # it is gone already
        process = psutil.Process(node)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    _end(path)


def _end(path: Path) -> None:
    path.unlink(missing_ok=True)
    os._exit(1)


@contextmanager
def _connected(settings: NodeSettings, run: int) -> Iterator[Connection]:
    """A connection to the worker, which is started if need be."""
    path = _address(settings, run)
    with _alone(settings.store):
        worker = _connect(path) or _start(path, settings)
    with worker:
        yield worker


def _address(settings: NodeSettings, run: int) -> Path:
    """The socket of the worker of a node and a run, in a folder for this user alone."""
    folder = Path(tempfile.gettempdir()) / f"fedsim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DeployError(f"{folder} can be opened by other users; remove it, or set TMPDIR to a folder of your own")
    name = f"{settings.store} {settings.client} {run} {os.getppid()}"
    return folder / hashlib.sha256(name.encode()).hexdigest()[:16]


def _start(path: Path, settings: NodeSettings) -> Connection:
    """A connection to a new worker, which ends with Flower's process that started this one."""
    path.unlink(missing_ok=True)                           # of one that was killed
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
    except (FileNotFoundError, ConnectionRefusedError):    # nobody listens
        return None


def _alone(store: Path) -> AbstractContextManager[None]:
    """Alone among the processes that find, start or end a worker of this node."""
    store.mkdir(parents=True, exist_ok=True)
    return lock(store)


def _send(to: Connection, call: Call, **beside: Any) -> None:
    """A call and what comes with it: plain values as JSON, then the bytes of each message. Nothing is pickled."""
    to.send_bytes(json.dumps({"verb": call.verb, "values": call.values, "data": list(call.data), **beside}).encode())
    for data in call.data.values():
        to.send_bytes(data)


def _receive(of: Connection) -> tuple[Call, dict[str, Any]]:
    beside = json.loads(of.recv_bytes())
    verb, values, names = (beside.pop(key) for key in ("verb", "values", "data"))
    return Call(verb, values, {name: of.recv_bytes() for name in names}), beside


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # Ctrl-C reaches it with the SuperNode
    signal.signal(signal.SIGTERM, lambda *_: _end(Path(sys.argv[1])))
    serve(Path(sys.argv[1]), NodeSettings.of(json.loads(sys.argv[2])), int(sys.argv[3]))
