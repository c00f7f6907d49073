"""Shell commands for the deployment of an experiment on real machines, step by step."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from fedsim.backends.flower.deploy.app import app_hash
from fedsim.backends.flower.deploy.certificates import Credentials
from fedsim.backends.flower.deploy.install import HERE, OFFLINE
from fedsim.backends.flower.deploy.local_deployment import LocalDeployment
from fedsim.backends.flower.deploy.local_federation import CONNECTION, superlink_security, supernode_security
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.toml import as_toml
from fedsim.errors import how_to_install

FOLDER = Path("federation")
NETWORKS = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"
"""Private networks (RFC 1918), in place of those of the nodes."""


def instructions(
    file: Path, host: str, local: LocalDeployment, output: Path, files: tuple[Path, ...], allow: tuple[str, ...]
) -> str:
    """Format the shell commands, with comments that name the machine.

    Args:
        file: resolved experiment, beside the folder of its app.
        host: name or address of the server.
        local: nodes, port, security and policy.
        output: run directory on the server.
        files: files that the experiment reads on nodes.
        allow: modules outside fedsim whose classes the experiment uses.
    """
    credentials = None if local.insecure else Credentials(FOLDER / "certificates", local.nodes)
    offline = "export " + " ".join(f"{name}={value}" for name, value in OFFLINE.items())
    offline += f' NO_PROXY="{HERE},$NO_PROXY" no_proxy="{HERE},$no_proxy"'
    parts = [f"# On every machine: {how_to_install('flower')}, the same version everywhere, and\n{offline}"]
    parts += ["# WITHOUT encryption and authentication."] if credentials is None else [_certificates(credentials, host)]
    app = app_hash(file.parent / "app")
    parts += [_firewall(local.port), _server(credentials, local, app)]
    if allow:
        parts.append(
            f"# The experiment uses classes of {', '.join(allow)}: install that on every machine. Importing it\n"
            "# on a node is for its operator to decide: without allow in its command, the node refuses."
        )
    if files:
        parts.append(
            f"# The experiment reads {', '.join(map(str, files))} on every node, whose operator decides that:\n"
            "# without files in its command, the node refuses."
        )
    parts += [_node(credentials, i, host, local, files, allow, app) for i in range(local.nodes)]
    parts.append(_run(file, local, output))
    return "\n\n".join(parts)


def _certificates(credentials: Credentials, host: str) -> str:
    words = ["fedsim", "certificates", "--output", str(credentials.folder), "--nodes", str(credentials.nodes)]
    words += ["--hosts", host]
    copy = f"# copy {credentials.ca.name} to every node, and to each its own key: node-0.key to node 0, ..."
    return f"# On the server, once:\n{_line(words)}\n{copy}"


def _firewall(port: int) -> str:
    """Rules for the server's firewall, which filter more and allow nothing that others forbid."""
    return "\n".join([
        "# On the server, as root: machines of nodes alone reach the port, from the networks that you set here, and on",
        "# it the paths of nodes alone, see below.",
        f"NODES='{NETWORKS}'",
        "nft -f - <<RULES",
        "table inet fedsim {",
        "  chain input {",
        "    type filter hook input priority filter; policy accept;",
        '    iif "lo" accept',
        f"    tcp dport {port} ip saddr {{ $NODES }} accept",
        f"    tcp dport {port} drop",
        "  }",
        "}",
        "RULES",
    ])


def _server(credentials: Credentials | None, local: LocalDeployment, app: str) -> str:
    address = f'address = "127.0.0.1:{local.port}"'
    trust = 'root-certificates = "%s"' if credentials else "insecure = true"
    config = f"printf '[superlink.{CONNECTION}]\\n{address}\\n{trust}\\n'"
    config += f' "$PWD/{credentials.ca}"' if credentials else ""   # wherever the server's user keeps it
    start = ["fedsim", "superlink", "--app", app, "--host", "0.0.0.0", "--port", str(local.port)]
    start += superlink_security(credentials)
    lines = [
        "# On the server, in its own terminal. Other machines reach what nodes need and nothing else; every account",
        "# on this one can start runs of the app with this SHA-256, and of no other. A proxy on this machine must pass",
        "# on /health and /v1/fleet/ alone, or say for whom it asks (X-Forwarded-For): it asks from here.",
        _line(start),
        "# and in another terminal:",
        f'export FLWR_HOME="$PWD/{FOLDER}/client" && mkdir -p "$FLWR_HOME" && {config} > "$FLWR_HOME/config.toml"',
    ]
    if credentials is not None:
        keys = [str(credentials.node(i).with_suffix(".pub")) for i in range(local.nodes)]
        lines += [_line(["flwr", "supernode", "register", key, CONNECTION]) for key in keys]
    return "\n".join(lines)


def _node(
    credentials: Credentials | None,
    i: int,
    host: str,
    local: LocalDeployment,
    files: tuple[Path, ...],
    allow: tuple[str, ...],
    app: str,
) -> str:
    own = Path("/path/to/own/data") if local.own_data else None
    settings = NodeSettings(i, Path("/var/lib/fedsim"), own, files=files, allow=allow)
    here = None if credentials is None else Credentials(Path(), local.nodes)
    words = ["fedsim", "node", "--app", app, "--superlink", f"{host}:{local.port}", *supernode_security(here, i)]
    line = _line([*words, "--node-config", settings.text()])
    return f"# On node {i}, which runs the app with this SHA-256 and no other:\n{line}"


def _run(file: Path, local: LocalDeployment, output: Path) -> str:
    config = {"experiment": str(file), "output": str(output.absolute())}
    values = {**config, "own-data": local.nodes if local.own_data else 0, **asdict(local.policy)}
    text = " ".join(f"{key}={as_toml(value)}" for key, value in values.items())
    words = ["flwr", "run", str(file.parent / "app"), CONNECTION, "-c", text, "--stream"]
    return (
        f"# On the server, when the nodes are up; {file.parent} has the experiment and its app,\n"
        f"# so copy it there if this is another machine:\n{_line(words)}\n"
        f"# flwr run exits with 0 even if the run failed; check the status:\nflwr list {CONNECTION}"
    )


def _line(words: list[str]) -> str:
    return shlex.join(words)
