"""Federation on this machine: a SuperLink and SuperNodes as processes on the loopback interface.

    FOLDER/certificates/      see ``fedsim.backends.flower.deploy.certificates``
    FOLDER/superlink/         Flower home and log of the SuperLink
    FOLDER/node-0/            Flower home, log and memories of a node
    FOLDER/client/            Flower home of the commands
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsim.backends.flower.deploy import ports
from fedsim.backends.flower.deploy.certificates import Credentials, make
from fedsim.backends.flower.deploy.install import command, environment
from fedsim.backends.flower.deploy.processes import Process, end_leftovers, stop_all
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.toml import as_toml
from fedsim.errors import DeployError
from fedsim.record.files import private_folder

HOST = "127.0.0.1"
START_SECONDS = 600.0
COMMAND_SECONDS = 600.0
"""Time for the SuperLink to start, and for a command of Flower, each seconds on a machine that does nothing else."""
CONNECTION = "fedsim"
"""Name of the SuperLink in Flower's commands."""
FEDSIM = (sys.executable, "-m", "fedsim")
_THREADS = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
"""One thread per process by default, as all nodes share this machine."""


@dataclass
class LocalFederation:
    """SuperLink and SuperNodes; a context manager that ends all of them on exit.

    Args:
        folder: of all files.
        nodes: settings of each SuperNode.
        port: of the SuperLink; 0 for any free port.
        insecure: True to disable TLS and node authentication.
        app: SHA-256 of the one app that can be started and that nodes run; None for any.
    """

    folder: Path
    nodes: Sequence[NodeSettings]
    port: int = 8000
    insecure: bool = False
    app: str | None = None
    credentials: Credentials | None = field(init=False, default=None)
    superlink: Process = field(init=False)
    supernodes: list[Process] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if [node.client for node in self.nodes] != list(range(len(self.nodes))) or not self.nodes:
            raise DeployError(f"nodes are {list(self.nodes)!r:.200}; expected clients 0, 1, ..., at least one")
        self.folder = self.folder.absolute()

    def __enter__(self) -> Self:
        self.port = ports.check(self.port)
        private_folder(self.folder)
        end_leftovers(self.folder)
        try:
            self._prepare()
            self.superlink.start()
            self.superlink.wait_until(self._healthy, START_SECONDS, "healthy")
            self._register()
            for node in self.supernodes:
                node.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process."""
        if hasattr(self, "superlink"):
            stop_all([*self.supernodes, self.superlink])

    def flwr(self, *arguments: str) -> Any:
        """Run a Flower command on this federation; return its parsed JSON output.

        Raises:
            DeployError: the command failed, or did not end.
        """
        words = [command("flwr"), *arguments, CONNECTION, "--format", "json"]
        home, said = self.folder / "client", f"`flwr {' '.join(arguments)}`"
        try:
            done = subprocess.run(
                words, env=environment(home), cwd=home, capture_output=True, text=True, timeout=COMMAND_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeployError(f"{said} did not end within {COMMAND_SECONDS:g} s") from None
        with suppress(ValueError):
            answer = json.loads(done.stdout)
            if done.returncode == 0 and (not isinstance(answer, dict) or answer.get("success", True)):
                return answer
        output = (done.stdout + done.stderr).strip()[-2000:]
        raise DeployError(f"{said} failed with exit code {done.returncode}: {output}")

    def _prepare(self) -> None:
        """Write certificates and the commands' configuration, and create the processes."""
        if not self.insecure:
            folder = self.folder / "certificates"
            self.credentials = Credentials(folder, len(self.nodes))
            if (folder / "ca.crt").exists():
                self.credentials.check()
            else:
                make(folder, len(self.nodes))
        home = self.folder / "client"
        home.mkdir(parents=True, exist_ok=True)
        secure = f"root-certificates = {as_toml(str(self.credentials.ca))}" if self.credentials else "insecure = true"
        config = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{HOST}:{self.port}"\n'
        (home / "config.toml").write_text(f"{config}{secure}\n", encoding="utf-8")
        self.superlink = self._superlink()
        own_ports = ports.free(len(self.nodes))
        self.supernodes = [self.supernode(node, own) for node, own in zip(self.nodes, own_ports, strict=True)]

    def _superlink(self) -> Process:
        home = self.folder / "superlink"
        words = [*FEDSIM, "superlink", "--host", HOST, "--port", str(self.port)]
        words += [*superlink_security(self.credentials), *([] if self.app is None else ["--app", self.app])]
        return Process("the SuperLink", words, environment(home, **_THREADS), home / "superlink.log")

    def supernode(self, node: NodeSettings, own_port: int) -> Process:
        """Create a SuperNode process, not started; ``own_port`` serves its subprocesses."""
        home = self.folder / f"node-{node.client}"
        program = [command("flower-supernode")] if self.app is None else [*FEDSIM, "node", "--app", self.app]
        words = [*program, "--superlink", f"{HOST}:{self.port}", "--host", HOST]
        words += ["--port", str(own_port), *supernode_security(self.credentials, node.client)]
        words += ["--node-config", node.text()]
        name = f"SuperNode {node.client}"
        return Process(name, words, environment(home, **_THREADS), home / "supernode.log", umask=0o077)

    def _healthy(self) -> bool:
        scheme = "https" if self.credentials else "http"
        trust = ssl.create_default_context(cafile=str(self.credentials.ca)) if self.credentials else None
        try:
            url = f"{scheme}://{HOST}:{self.port}/health"
            direct = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
            )
            with direct.open(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _register(self) -> None:
        """Register the nodes' public keys at the SuperLink."""
        if self.credentials is not None:
            for i in range(len(self.nodes)):
                self.flwr("supernode", "register", str(self.credentials.node(i).with_suffix(".pub")))


def superlink_security(credentials: Credentials | None) -> list[str]:
    """Security options of a SuperLink."""
    if credentials is None:
        return ["--insecure"]
    certificate, key = credentials.server
    files = ["--ssl-ca-certfile", str(credentials.ca), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    return [*files, "--enable-supernode-auth"]


def supernode_security(credentials: Credentials | None, i: int) -> list[str]:
    """Security options of a SuperNode."""
    if credentials is None:
        return ["--insecure"]
    return ["--root-certificates", str(credentials.ca), "--auth-supernode-private-key", str(credentials.node(i))]
