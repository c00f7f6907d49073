"""Seconds of a round: Flower's simulation engine against the Ray backend, on the same work, two processors each.

    python -m benchmarks.flower_simulation               # both works
    python -m benchmarks.flower_simulation overhead

FedAvg on the same model, samples and cohorts. Flower's clients are written as its users write them: load the
parameters, train with torch.optim.SGD, send the parameters back; its server uses ``grid.send_and_receive``. Each engine
has two processes of one thread, and measures itself in a process of its own, after the first round; the median of the
rounds counts. Where a client makes one step on all its samples, both engines must end with the same model, and
the script fails otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from benchmarks.work import Work
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.session import session
from fedsim.clients import cohort
from fedsim.experiment.execution import Ray
from fedsim.models import MLP, Logistic

LR = 0.1
CASES = {
    "overhead": (Work(Logistic(), 1000, 100, 20, 20), 50),
    "mlp": (Work(MLP(), 100, 50, 100), 10),
}
"""A round's work, and the size of our blocks."""


def chosen(work: Work, round: int) -> np.ndarray:
    """Clients that take part in a round."""
    return np.sort(np.random.default_rng(round).choice(work.clients, work.cohort, replace=False))


def ours(name: str, rounds: int) -> tuple[list[float], Tensor]:
    """Seconds of each round, and the last model, with the Ray backend."""
    work, block_size = CASES[name]
    seconds = []
    with session(cpus=2, gpus=0, object_store_bytes=500_000_000) as ray:
        backend, algorithm = RayActors(Workers(ray, Ray(actors=2)), block_size), FedAvg(lr=LR)
        fed = replace(work.federation(), backend=backend)
        state = algorithm.init(fed.model.vector(), cohort(fed, 0))
        for round in range(1, rounds + 1):
            start = time.perf_counter()
            state = algorithm.round(state, cohort(fed, round, chosen(work, round)))
            seconds.append(time.perf_counter() - start)
    return seconds, state.x


def train(name: str, client: int, vector: np.ndarray) -> np.ndarray:
    """One client's round, as written by hand."""
    work, _ = CASES[name]
    shards, net = work.shards, work.module()
    nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    order = torch.randperm(work.samples) + client * work.samples
    for rows in torch.split(order, work.batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(shards.x[rows]), shards.y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach().numpy()


def flowers(name: str, rounds: int) -> tuple[list[float], Tensor]:
    """The same with Flower's simulation engine."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    (work, _), client_app, server_app = CASES[name], ClientApp(), ServerApp()
    seconds: list[float] = []
    x = nn.utils.parameters_to_vector(work.module().parameters()).detach().numpy()

    @client_app.train()
    def answer(message: Message, context: Context) -> Message:
        from benchmarks import flower_simulation  # this file, as Flower's processes know it

        torch.set_num_threads(1)
        content: Any = message.content
        y = flower_simulation.train(name, int(content["who"]["client"]), content["model"]["x"].numpy())
        return Message(RecordDict({"model": ArrayRecord({"x": Array(y)})}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        nonlocal x
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < work.clients:
            time.sleep(0.1)
            nodes = sorted(grid.get_node_ids())
        for round in range(1, rounds + 1):
            start, model = time.perf_counter(), ArrayRecord({"x": Array(x)})
            messages = [
                Message(
                    RecordDict({"model": model, "who": ConfigRecord({"client": int(client)})}),
                    message_type="train", dst_node_id=nodes[client], group_id=str(round),
                )
                for client in chosen(work, round)
            ]  # fmt: skip
            replies = []
            for reply in grid.send_and_receive(messages):
                if reply.has_error():
                    raise RuntimeError(f"a client failed: {reply.error.reason}")
                found: Any = reply.content
                replies.append(found["model"]["x"].numpy())
            x = np.stack(replies).mean(0)
            seconds.append(time.perf_counter() - start)

    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app, client_app, work.clients, backend_config=resources)
    return seconds, torch.from_numpy(x)


def measured(side: str, name: str, rounds: int) -> dict[str, Any]:
    """One engine's seconds and model, in a process of its own."""
    here = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    quiet = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    quiet["RAY_worker_niceness"] = "0"                     # as ours: a busy machine must not favour one side
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"                 # on the stdout of Flower's process long lines are cut
        command = [sys.executable, "-m", "benchmarks.flower_simulation", name, "--rounds", str(rounds)]
        options = ["--side", side, "--into", str(file)]
        result = subprocess.run([*command, *options], env={**os.environ, **quiet}, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{side} failed: {result.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="of each engine; 15 by default")
    parser.add_argument("--side", choices=["ours", "flower"], help="measure one engine in this process")
    parser.add_argument("--into", type=Path, help="file for what --side found")
    arguments = parser.parse_args()
    if arguments.side:
        torch.set_num_threads(1)
        seconds, x = (ours if arguments.side == "ours" else flowers)(arguments.cases[0], arguments.rounds)
        model = x.tolist() if arguments.cases[0] == "overhead" else None
        arguments.into.write_text(json.dumps({"seconds": seconds, "x": model}))
        return
    for name in arguments.cases or CASES:
        sides = {side: measured(side, name, arguments.rounds) for side in ("ours", "flower")}
        one, other = (side["x"] for side in sides.values())
        if one is not None and (apart := np.abs(np.subtract(one, other)).max()) > 1e-5:
            sys.exit(f"{name}: the engines end with different models: {apart:.1e} apart")
        took = {side: float(np.median(found["seconds"][1:])) for side, found in sides.items()}
        row = {side: f"{1e3 * value:.1f} ms" for side, value in took.items()}
        print(f"{name:9} {row}  x{took['flower'] / took['ours']:.1f}", flush=True)


if __name__ == "__main__":
    main()
