"""A live page of runs, sweeps and deployments: the report, served on this machine only and updated while they run."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedsim.errors import ConfigError, FedsimError, RunError
from fedsim.record.nodes import FILE, NodeStatus, read_nodes
from fedsim.report.compare import Comparison
from fedsim.report.html import page_of, update_of
from fedsim.report.nodes import prometheus

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
)
HEADERS = {"Cache-Control": "no-store", "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
WAITING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>fedsim</title>
<body style="font: 16px/1.5 system-ui; margin: 3rem auto; max-width: 40rem"><h1>Waiting</h1><p>{reason}</p>"""


class LivePage:
    """Page of a comparison that follows its runs.

    Args:
        comparison: function that compares the runs as they are now.
        watched: folders of the runs; the comparison is repeated when a file below them has changed.

    Attributes:
        token: secret that every request has to contain.
    """

    def __init__(self, comparison: Callable[[], Comparison], watched: Sequence[Path]) -> None:
        self.token = secrets.token_urlsafe(16)
        self._comparison, self._watched, self._lock = comparison, watched, Lock()
        self._seen: tuple[Any, ...] | None = None
        self._made: Comparison | FedsimError

    def answer(self, path: str) -> tuple[HTTPStatus, str, str]:
        """Status, type and body of the answer to a request."""
        asked = urlsplit(path)
        if not secrets.compare_digest(parse_qs(asked.query).get("token", [""])[0].encode(), self.token.encode()):
            return HTTPStatus.FORBIDDEN, "text/plain", "the token is missing; use the whole address that was printed"
        if asked.path not in ("/", "/data.json", "/metrics"):
            return HTTPStatus.NOT_FOUND, "text/plain", "there is the page, /, its numbers, /data.json, and /metrics"
        if asked.path == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4", prometheus(self._nodes())
        with self._lock:                                   # two requests at a time would read all files twice
            made = self._renewed()
        whole = asked.path == "/"
        if isinstance(made, FedsimError) and not whole:
            return HTTPStatus.NO_CONTENT, "", ""
        if isinstance(made, FedsimError):
            return HTTPStatus.OK, "text/html", WAITING.format(reason=escape(str(made)))
        if whole:
            return HTTPStatus.OK, "text/html", page_of(made, live=True)
        return HTTPStatus.OK, "application/json", json.dumps(update_of(made), allow_nan=False)

    def _nodes(self) -> dict[str, list[NodeStatus]]:
        """Nodes of the deployments among the runs."""
        files = (file for folder in self._watched for file in sorted(folder.rglob(FILE)))
        return {str(file.parent): read_nodes(file.parent) for file in files}

    def _renewed(self) -> Comparison | FedsimError:
        files = sorted(path for folder in self._watched for path in folder.rglob("*.json*"))
        seen = tuple((path, stat.st_size, stat.st_mtime_ns) for path in files if (stat := _stat(path)))
        if seen != self._seen:
            try:
                self._made = self._comparison()
            except FedsimError as error:                   # no run yet, or none that was evaluated
                self._made = error
            self._seen = seen
        return self._made


def server_of(page: LivePage, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server of this page on this machine, not yet serving, and the address to open.

    Args:
        page: what to serve.
        port: its port; 0 for a free one.

    Raises:
        ConfigError: there is no such port.
        RunError: the port cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = page.answer(self.path)
            content = body.encode()
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            if status != HTTPStatus.NO_CONTENT:
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log no requests, whose addresses hold the token."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OverflowError as error:
        raise ConfigError(f"--port is {port}; expected 1 to 65535, or 0 for any free port") from error
    except OSError as error:
        raise RunError(f"cannot listen on port {port}: {error.strerror}; choose another --port, or 0") from error
    return server, f"http://{HOST}:{server.server_port}/?token={page.token}"


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except FileNotFoundError:                              # a checkpoint that was replaced meanwhile
        return None
