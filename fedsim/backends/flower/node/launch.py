"""A SuperNode that runs one app alone: the one whose SHA-256 its operator was given.

Whoever reaches a SuperLink's control API can start an app of his own on all of its nodes. A node asks for the app of a
run before anything of it is read; here an app with another hash is not handed on, and its messages are ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedsim.backends.flower.protocol.program import run
from fedsim.errors import ConfigError

GET_FAB = 4
"""Place of the function that fetches an app, in what Flower's connection to a SuperLink yields."""


def pinned(get_fab: Callable[[str, int], Any], app: str) -> Callable[[str, int], Any]:
    """Fetch apps as ``get_fab`` does, but those with another SHA-256 than ``app`` count as no longer running."""
    from flwr.supercore.run import RunNotRunningException

    def get(fab_hash: str, run_id: int) -> Any:
        if fab_hash == app:
            fab = get_fab(fab_hash, run_id)
            if hashlib.sha256(fab.content).hexdigest() == app:
                return fab
        said = f"fedsim: refused the app {fab_hash:.64} of run {run_id}; this node runs {app} alone"
        print(said, file=sys.stderr, flush=True)
        raise RunNotRunningException

    return get


def check_hash(app: str) -> str:
    """The hash of an app.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", app):
        raise ConfigError(f"--app is {app!r}; expected the 64 hexadecimal digits of a SHA-256, as fedsim deploy prints")
    return app


def node(app: str, options: Sequence[str]) -> None:
    """Run a SuperNode with the options of ``flower-supernode``, which runs the app with this SHA-256 alone.

    Raises:
        ConfigError: the options are wrong.
        DeployError: it ended with an error.
    """
    from flwr.supernode import start_client_internal as internal

    connect = internal._init_connection

    @contextmanager
    def connection(**settings: Any) -> Iterator[Any]:
        with connect(**settings) as made:
            functions: tuple[Any, ...] = made
            yield (*functions[:GET_FAB], pinned(functions[GET_FAB], app), *functions[GET_FAB + 1 :])

    internal._init_connection = connection  # type: ignore[assignment]
    os.umask(0o077)                                        # memories are for no other user
    run("supernode", options)
