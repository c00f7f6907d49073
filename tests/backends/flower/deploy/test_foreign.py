"""A foreign app, started with all that a node's operator has, or by who has the server: real processes, TLS, keys."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedsim.backends.flower.deploy.app import app_hash, write_app
from fedsim.backends.flower.deploy.install import command, environment
from fedsim.backends.flower.deploy.instructions import NETWORKS
from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.backends.flower.deploy.ports import free
from fedsim.backends.flower.deploy.processes import Process, stop_all
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.cli import main
from tests.backends.flower.test_pinned import FOREIGN
from tests.processes import wait_until

pytestmark = [pytest.mark.flower, pytest.mark.timeout(1800)]   # on a machine that is busy with other things
EXPERIMENT = Path(__file__).parents[4] / "experiments/flower/experiment.yaml"
CODE = """
import time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

FOLDER, NODES = Path({folder!r}), {nodes}
server = ServerApp()
client = ClientApp()

@server.main()
def ask(grid, context):
    while len(nodes := list(grid.get_node_ids())) < NODES:
        time.sleep(0.2)
    asked = grid.push_messages([Message(RecordDict(), node, "query") for node in nodes])
    while not (FOLDER / "stop").exists():
        grid.pull_messages(asked)
        time.sleep(0.2)
        (FOLDER / "server").touch()

@client.query()
def answer(message, context):
    (FOLDER / f"node-{{context.node_config['partition-id']}}").touch()
    return Message(RecordDict(), reply_to=message)
"""


def foreign(folder: Path, nodes: int) -> Path:
    """An app that leaves a file wherever it runs."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(FOREIGN)
    (folder / "foreign.py").write_text(CODE.format(folder=str(folder), nodes=nodes))
    return folder


class Taken(LocalFederation):
    """A federation whose server starts any app, as its operator can have it."""

    def _superlink(self) -> Process:
        pin, self.app = self.app, None
        made = super()._superlink()
        self.app = pin
        return made


def test_nodes_refuse_what_the_server_itself_starts(tmp_path: Path) -> None:
    """A node without a pin runs the foreign app, so that it is one that can be run; the others never see its code."""
    pin, app = app_hash(write_app(tmp_path / "app", {})), foreign(tmp_path / "foreign", 3)
    settings = [NodeSettings(i, tmp_path / f"memory-{i}") for i in range(3)]
    with Taken(tmp_path / "federation", settings, port=0, app=pin) as federation:
        federation.supernodes[2].stop()
        federation.app = None
        federation.supernodes[2] = federation.supernode(settings[2], free(1)[0])
        federation.supernodes[2].start()
        run = str(federation.flwr("run", str(app))["run-id"])
        logs = [node.log for node in federation.supernodes[:2]]
        wait_until(lambda: (app / "node-2").exists() and all("refused the app" in log.read_text() for log in logs))
        assert federation.flwr("list", "--run-id", run)["runs"][0]["status"] == "running"
        assert (app / "server").exists() and not list(app.glob("node-[01]"))
        assert [f"this node runs {pin} alone" in log.read_text() for log in logs] == [True] * 2
        (app / "stop").touch()
        assert all(node.code is None for node in federation.supernodes), "nodes go on"


class Networks(NamedTuple):
    """A server between the network of its nodes and another one, each in a namespace of this machine's kernel."""

    server: str
    nodes: str
    outside: str

    def inside(self, name: str, *words: str) -> list[str]:
        """A command in one of the namespaces."""
        return [shutil.which("ip") or "ip", "netns", "exec", name, *words]

    def run(self, name: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.inside(name, *words), capture_output=True, text=True, timeout=300, **options)


SERVER = "10.77.1.1"
ADDRESSES = {"nodes": (SERVER, "10.77.1.2"), "outside": ("198.51.100.1", "198.51.100.2")}
"""Of the server and of the other machine, in each of its networks; from both, the server is called by its first one."""


@pytest.fixture
def networks() -> Iterator[Networks]:
    lacks = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if lacks or os.geteuid() != 0:
        pytest.skip(f"network namespaces and their firewalls need root, ip and nft; lacks {', '.join(lacks) or 'root'}")
    made = Networks(*(f"fedsim-{name}-{os.getpid()}" for name in Networks._fields))
    try:
        for name in made:
            if (done := subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)).returncode:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
            made.run(name, "ip", "link", "set", "lo", "up", check=True)
        for kind, own in (("nodes", made.nodes), ("outside", made.outside)):
            here, there = f"{kind}0", f"{kind}1"
            pair = ["type", "veth", "peer", there, "netns", own]
            subprocess.run(["ip", "link", "add", here, "netns", made.server, *pair], check=True)
            for name, end, address in zip((made.server, own), (here, there), ADDRESSES[kind], strict=True):
                made.run(name, "ip", "address", "add", f"{address}/24", "dev", end, check=True)
                made.run(name, "ip", "link", "set", end, "up", check=True)
            made.run(own, "ip", "route", "add", "default", "via", ADDRESSES[kind][0], check=True)
        yield made
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


GET = """
import ssl, sys, urllib.error, urllib.request
url, ca, *claims = sys.argv[1:]
request = urllib.request.Request(url, headers=dict(claim.split("=") for claim in claims))
trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca))
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({}), trust).open(request, timeout=4).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print("unreachable")
"""


class Machines:
    """The machines of a deployment that does what `--print-commands` prints, and their commands."""

    def __init__(self, folder: Path, networks: Networks, port: int, lines: list[str]) -> None:
        self.folder, self.networks, self.port, self.lines = folder, networks, port, lines
        self.ca = folder / "server/federation/certificates/ca.crt"
        (folder / "server").mkdir()
        self.link = self._process(networks.server, self.commands("fedsim", "superlink")[0], folder / "server")
        self.nodes = [
            self._process(networks.nodes, [*words, "--port", str(free(1)[0])], self.ca.parent)
            for words in self.commands("fedsim", "node")
        ]

    def commands(self, *start: str) -> list[list[str]]:
        """Printed commands that begin with some words."""
        lines = [shlex.split(line) for line in self.lines if line[:1].islower() and "<<" not in line]
        return [words for words in lines if words[: len(start)] == [*start]]

    def _process(self, network: str, words: list[str], cwd: Path) -> Process:
        log = self.folder / "logs" / f"{words[1]}-{words[-1]}.log"
        line = self.networks.inside(network, shutil.which("env") or "env", "-C", str(cwd), sys.executable, "-m", *words)
        return Process(words[1], line, environment(log.with_suffix(".home")), log)

    def close(self) -> None:
        """Type the printed rules of the firewall on the server, with the network of the nodes."""
        first, last = (self.lines.index(line) for line in (f"NODES='{NETWORKS}'", "RULES"))
        rules = "\n".join(self.lines[first : last + 1]).replace(NETWORKS, "10.77.1.0/24")
        self.networks.run(self.networks.server, "sh", "-ec", rules, check=True)

    def status(self, name: str, path: str, *claims: str, address: str = SERVER) -> str:
        """Status of the answer to a machine's request, with headers such as ``Host=a``."""
        words = [sys.executable, "-I", "-c", GET, f"https://{address}:{self.port}{path}", str(self.ca), *claims]
        return self.networks.run(name, *words).stdout.strip()

    def flwr(self, name: str, *arguments: str) -> dict[str, Any]:
        """What Flower's command answers to a machine."""
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        address = "127.0.0.1" if name == self.networks.server else SERVER
        config = f'[superlink.fedsim]\naddress = "{address}:{self.port}"\nroot-certificates = "{self.ca}"\n'
        (home / "config.toml").write_text(config)
        words = [command("flwr"), *arguments, "fedsim", "--format", "json"]
        done = self.networks.run(name, *words, env=environment(home), cwd=home)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def test_other_machines_start_nothing(
    tmp_path: Path, networks: Networks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed commands, each in the network of its machine: the port is closed to strangers by the printed rules,
    the control API to nodes by the SuperLink, and on the server itself no other app is started.
    """
    (port,) = free(1)
    words = ["deploy", str(EXPERIMENT), "--nodes", "2", "--partition.num_partitions", "2", "--print-commands"]
    assert main([*words, "--host", SERVER, "--port", str(port), "--output", str(tmp_path / "run")]) == 0
    at = Machines(tmp_path, networks, port, capsys.readouterr().out.splitlines())
    server, node, outside = networks
    monkeypatch.chdir(tmp_path / "server")
    assert main(at.commands("fedsim", "certificates")[0][1:]) == 0
    app = foreign(tmp_path / "foreign", 2)
    try:
        at.link.start()
        at.link.wait_until(lambda: at.status(server, "/health", address="127.0.0.1") == "200", 240, "healthy")
        for i in range(2):
            assert at.flwr(server, "supernode", "register", str(at.ca.parent / f"node-{i}.pub"))["success"]
        assert at.status(outside, "/health") == "200" and at.status(outside, "/docs") == "403", "no rules yet"
        at.close()
        for each in at.nodes:
            each.start()
        wait_until(lambda: all("SuperNode ID" in each.log.read_text() for each in at.nodes))
        assert at.status(outside, "/health") == "unreachable" and at.status(node, "/health") == "200"
        for path in ("/v1/control/list-runs", "/v1/runtime/pull-messages", "/docs", "/v1/fleet/../control/list-runs"):
            assert at.status(node, path) == at.status(node, path, "X-Forwarded-For=127.0.0.1") == "403"
        assert at.flwr(node, "run", str(app))["success"] is False
        ours = at.flwr(server, "run", str(app))
        assert ours["success"] is False and "alone" in json.dumps(ours), ours
        assert "fedsim: refused the app" in at.link.log.read_text()
        assert at.flwr(server, "list")["runs"] == [] and sorted(app.iterdir()) == sorted(app.glob("*.[pt][yo]*"))
        assert at.flwr(server, "run", str(tmp_path / "run.federation/app"))["run-id"], "the experiment's own app"
    finally:
        stop_all([*at.nodes, at.link])
