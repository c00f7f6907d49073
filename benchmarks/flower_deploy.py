"""Overhead of a deployment: bytes on the nodes' sockets against the ledger, and where seconds go.

    python -m benchmarks.flower_deploy

Three SuperNodes with TLS and keys on the loopback interface, FedAvg on digits with models of two sizes. The nodes reach
the SuperLink through a relay that counts what passes in each direction, TLS and idle questions included. Two runs of
different length are compared, so that set-up and the last evaluation cancel.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedsim.backends.flower.deploy.app import write_app
from fedsim.backends.flower.deploy.local_federation import HOST, LocalFederation
from fedsim.backends.flower.deploy.processes import Process
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.record.metrics import read_metrics

NODES = 3
PARTS = ("compute", "encode", "memory", "load", "transport", "flower", "wall")


class Counter:
    """A TCP relay to a port, which counts the bytes to it and from it."""

    def __init__(self, to: int) -> None:
        self.to, self.bytes = to, {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self._server = socket.create_server((HOST, 0), backlog=64)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            try:
                server = socket.create_connection((HOST, self.to))
            except OSError:
                client.close()
                continue
            for a, b, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=(a, b, way), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket, way: str) -> None:
        try:
            while data := a.recv(2**16):
                with self._lock:
                    self.bytes[way] += len(data)
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (a, b):
                end.close()


class Counted(LocalFederation):
    """A federation whose nodes reach the SuperLink through a counter."""

    counter: Counter | None = None

    def supernode(self, node: NodeSettings, own_port: int) -> Process:
        """See ``LocalFederation``."""
        self.counter = self.counter or Counter(self.port)
        process = super().supernode(node, own_port)
        at = process.command.index("--superlink") + 1
        process.command[at] = f"{HOST}:{self.counter.port}"
        return process


def deployed(
    federation: Counted, folder: Path, hidden: int, rounds: int
) -> tuple[dict[str, int], dict[str, float], Path]:
    """Run FedAvg; bytes on the sockets, bytes of the ledger, and the run directory."""
    assert federation.counter is not None
    config = {
        "algorithm": "FedAvg", "data": "digits", "model": {"name": "MLP", "hidden": [hidden]},
        "partition": {"name": "IidPartitioner", "num_partitions": NODES}, "sampling": {"fraction": 1.0},
        "local": {"batch_size": 32, "epochs": 1}, "rounds": rounds, "evaluation": {"every": rounds},
    }  # fmt: skip
    output = folder / f"{hidden}-{rounds}"
    settings = {"experiment": yaml.safe_dump(config), "output": str(output), "patience": 600.0}
    before = dict(federation.counter.bytes)
    run_id = str(federation.flwr("run", str(write_app(folder / "app", settings)))["run-id"])
    while not (run := federation.flwr("list", "--run-id", run_id)["runs"][0])["status"].startswith("finished"):
        time.sleep(5)
    assert run["status"] == "finished:completed", federation.superlink.tail()
    on_wire = {way: federation.counter.bytes[way] - before[way] for way in before}
    metrics = read_metrics(output / "seed-0/metrics.jsonl")
    charged = {way: metrics.series("total", f"bytes_{way}")[rounds] for way in before}
    return on_wire, charged, output


def main() -> None:
    """Print the tables, and with ``--json`` the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 16_000], help="widths of the hidden layer")
    parser.add_argument("--rounds", type=int, nargs=2, default=[1, 4], help="rounds of the two runs")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each model")
    arguments = parser.parse_args()
    short, long = arguments.rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        nodes = [NodeSettings(i, folder / f"memory-{i}") for i in range(NODES)]
        with Counted(folder / "processes", nodes, port=0) as federation:
            for hidden in arguments.hidden:
                runs = [deployed(federation, folder, hidden, rounds) for rounds in (short, long)]
                report(hidden, long - short, runs, arguments.json)


def report(hidden: int, rounds: int, runs: list[Any], as_json: bool) -> None:
    """One model's bytes and seconds of a round."""
    wire, charged = ({way: (runs[1][k][way] - runs[0][k][way]) / rounds for way in ("up", "down")} for k in (0, 1))
    exchanges = read_metrics(runs[1][2] / "seed-0/exchanges.jsonl")
    seconds = {part: float(np.median([*exchanges.series("exchange/each", part).values()])) for part in PARTS}
    message = charged["up"] / NODES
    overhead = {way: wire[way] / charged[way] - 1 for way in wire}
    if as_json:
        print(json.dumps({"message_bytes": message, "wire": wire, "ledger": charged, "seconds": seconds}))
        return
    print(f"MLP({hidden}): a message of {message:,.0f} bytes, {NODES} nodes")
    for way in wire:
        print(f"  {way:<5}{wire[way]:>14,.0f} bytes a round on the sockets, {charged[way]:>14,.0f} in the ledger:"
              f" {100 * overhead[way]:+.1f} %")  # fmt: skip
    print("  seconds a round: " + ", ".join(f"{part} {value:.2f}" for part, value in seconds.items()))


if __name__ == "__main__":
    main()
