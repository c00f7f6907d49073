"""A foreign app, started with everything that a node's operator has, runs on no node and is refused by the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.backends.flower.deploy import ports
from fedsim.backends.flower.deploy.app import app_hash, built, write_app
from fedsim.backends.flower.deploy.install import command, environment
from fedsim.backends.flower.deploy.processes import Process
from fedsim.backends.flower.node.launch import pinned
from fedsim.backends.flower.server.gate import Gate
from fedsim.cli import main

FOREIGN = """
[project]
name = "foreign"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "foreign:server"
clientapp = "foreign:client"
"""


def foreign(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(FOREIGN)
    (folder / "foreign.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')\n")
    return folder


def test_the_hash_is_that_of_the_app(tmp_path: Path) -> None:
    one, same, other = (write_app(tmp_path / name, {"log": log}) for name, log in (("a", "x"), ("b", "x"), ("c", "y")))
    assert app_hash(one) == app_hash(same) != app_hash(other)


def test_a_node_ignores_the_messages_of_another_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In Flower's own loop: nothing is stored, so that nothing can be run, and the node goes on."""
    from flwr.supercore.fab import Fab
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory
    from flwr.supernode.start_client_internal import _pull_and_store_message

    content = built(foreign(tmp_path / "foreign"))
    own = built(write_app(tmp_path / "app", {}))
    pin = hashlib.sha256(own).hexdigest()

    def received(claimed: str, served: bytes) -> int:
        stores = ObjectStoreFactory()
        state = NodeStateFactory(stores).state()
        metadata = SimpleNamespace(run_id=7, group_id="", message_type="train", message_id="m")
        message: Any = SimpleNamespace(metadata=metadata)
        info: Any = SimpleNamespace(fab_hash=claimed, run_id=7, series_id=7, override_config={})
        fetched = pinned(lambda fab_hash, run_id: Fab(fab_hash, served, {}), pin)
        run = _pull_and_store_message(
            state, stores.store(), {}, lambda: (message, None), lambda run_id: info, fetched,  # type: ignore[arg-type]
            lambda *_: b"", lambda *_: None, None,
        )  # fmt: skip
        assert run is None
        return len(state.get_messages_legacy())

    assert received(hashlib.sha256(content).hexdigest(), content) == 0
    assert received(pin, content) == 0, "an app under the name of another"
    assert capsys.readouterr().err.count("fedsim: refused the app") == 2
    assert pinned(lambda fab_hash, run_id: Fab(fab_hash, own, {}), pin)(pin, 7).content == own
    assert not (tmp_path / "foreign" / "RAN").exists()


@pytest.mark.parametrize("words", [[], ["--app", "abc"], ["--app", "Z" * 64]])
def test_a_node_needs_the_hash(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", *words]) == 2
    assert "--app" in capsys.readouterr().err


REFUSED = [
    ("/v1/control/start-run", "10.0.0.7"), ("/v1/runtime/push", "192.168.1.5"), ("/docs", "10.0.0.7"),
    ("/v1/fleet/../control/start-run", "10.0.0.7"), ("/v1/fleet", "10.0.0.7"), ("/v1/control/x", "::ffff:10.0.0.7"),
    ("/v1/control/x", ""), ("/health/x", "10.0.0.7"),
]  # fmt: skip
PASSED = [
    ("/v1/fleet/pull-messages", "10.0.0.7"), ("/health", "10.0.0.7"), ("/v1/control/start-run", "127.0.0.1"),
    ("/v1/control/start-run", "::1"), ("/v1/control/start-run", "::ffff:127.0.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "client", "passes"), [(*c, False) for c in REFUSED] + [(*c, True) for c in PASSED])
def test_other_machines_reach_the_paths_of_nodes(path: str, client: str, passes: bool) -> None:
    said: list[dict[str, Any]] = []

    async def app(*_: Any) -> None:
        said.append({"status": 200})

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    scope = {"type": "http", "path": path, "client": (client, 5) if client else None, "headers": [(b"host", b"a")]}
    asyncio.run(Gate(app)(scope, None, send))
    assert said[0]["status"] == (200 if passes else 403)
    said.clear()
    asyncio.run(Gate(app)({**scope, "headers": [(b"x-forwarded-for", b"10.0.0.7")]}, None, send))
    own = passes and "fleet" not in path and path != "/health"
    assert said[0]["status"] == (200 if passes and not own else 403), "a proxy on this machine, for another one"


def address() -> str:
    """An address of this machine that is not loopback: what another machine would come from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))                # nothing is sent
        except OSError:
            return "127.0.0.1"
        found: str = probe.getsockname()[0]
        return found


@pytest.mark.flower
@pytest.mark.skipif(address().startswith("127."), reason="this machine has a loopback interface alone")
def test_a_strangers_run_is_not_started(tmp_path: Path) -> None:
    """Through the network, with Flower's own command and client; from the server itself it is."""
    (port,) = ports.free(1)
    words = [sys.executable, "-m", "fedsim", "superlink", "--insecure", "--host", "0.0.0.0", "--port", str(port)]
    link = Process("the SuperLink", words, environment(tmp_path / "link"), tmp_path / "link" / "log")
    link.start()
    try:
        link.wait_until(lambda: status(f"http://127.0.0.1:{port}/health") == 200, 120, "healthy")
        assert status(f"http://{address()}:{port}/health") == 200
        assert status(f"http://{address()}:{port}/v1/fleet/pull-messages") != 403
        assert status(f"http://{address()}:{port}/v1/control/list-runs") == 403
        assert status(f"http://127.0.0.1:{port}/v1/control/list-runs") != 403
        app, answers = foreign(tmp_path / "foreign"), {}
        for host in (address(), "127.0.0.1"):
            home = tmp_path / host
            home.mkdir()
            (home / "config.toml").write_text(f'[superlink.s]\naddress = "{host}:{port}"\ninsecure = true\n')
            line = [command("flwr"), "list", "s", "--format", "json"]
            done = subprocess.run(line, env=environment(home), capture_output=True, text=True, timeout=120)
            answers[host] = done.returncode == 0 and json.loads(done.stdout).get("success") is True
        assert answers == {address(): False, "127.0.0.1": True} and not (app / "RAN").exists()
    finally:
        link.stop()


def status(url: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
