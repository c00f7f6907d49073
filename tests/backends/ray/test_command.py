"""``fedsim run --backend ray`` in a process of its own: interrupted, killed, on a cluster that loses a machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from algorithms import Scaffold
from fedsim import Evaluation, Execution, Experiment, FixedSize
from fedsim.backends.flower.deploy.ports import free
from fedsim.backends.ray.session import PREFIX
from fedsim.models import MLP
from fedsim.partition import IidPartitioner
from tests.backends.ray.shared import measured, measured_here
from tests.processes import LINGER, kill_tree, wait_until, wait_until_ended

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]   # on a machine that is busy with other things
EXPERIMENT = Experiment(
    Scaffold(), partition=IidPartitioner(8), model=MLP((400,)), sampling=FixedSize(1.0), rounds=7,
    evaluation=Evaluation(every=1), execution=Execution("blocks", block_size=2),
)  # fmt: skip
WORDS = [
    *("--algorithm", "tests.backends.ray.dying.Waiting", "--partition", "IidPartitioner"),
    *("--partition.num_partitions", "8", "--model", "MLP", "--model.hidden", "[400]", "--sampling.fraction", "1.0"),
    *("--rounds", "7", "--evaluation.every", "1", "--checkpoint_every", "3", "--block_size", "2", "--backend", "ray"),
]
"""The same, on the command line. A memory has 120 kB: what is smaller than 100, Ray keeps in the driver."""
ALLOW = ["--allow", "tests.backends.ray.dying"]


def fedsim(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedsim", *words]


def environment(folder: Path) -> dict[str, str]:
    """One thread, and a mark by which processes are found."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "FEDSIM_TEST": str(folder)}


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""What lets into the cluster."""


@contextlib.contextmanager
def started(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, which does not outlive the test: a Ray that is left running would slow down all others."""
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Measurements of the run in this process."""
    return measured_here(EXPERIMENT, tmp_path_factory.mktemp("here") / "run")


def test_ctrl_c_and_kill_leave_nothing_behind_and_go_on(one_process: bytes, tmp_path: Path) -> None:
    """Ctrl-C in round 2, kill -9 of the resumed driver in round 5, and the rest: the same measurements."""
    run, env = tmp_path / "run", environment(tmp_path)
    begin = fedsim("run", *WORDS, "--ray.actors", "2", "--algorithm.folder", str(tmp_path), "--output", str(run))
    for argv, round, stop, code in (
        (begin, 2, signal.SIGINT, 130),
        (fedsim("resume", str(run), *ALLOW), 5, signal.SIGKILL, -signal.SIGKILL),
    ):
        with started(argv, env=env, stdout=subprocess.DEVNULL) as process:
            wait_until((tmp_path / str(round)).exists)
            process.send_signal(stop)
            _, said = process.communicate(timeout=240)
        assert process.returncode == code, said
        (tmp_path / f"{round}-go").touch()
        if stop == signal.SIGINT:
            lines = said.splitlines()
            assert lines[0].startswith("fedsim: ray: 2 actors on 1 machine x 4 clients a round, 1 thread"), said
            assert lines[-1] == f"fedsim: interrupted; continue with: fedsim resume {run}" and len(lines) <= 4, said
            wait_until_ended(tmp_path)
            assert not list(Path("/tmp").glob(f"{PREFIX}{process.pid}-*"))
            assert sorted(path.name for path in (run / "seed-0" / "checkpoints").iterdir()) == ["round-000001"]
    wait_until_ended(tmp_path, besides=LINGER)
    assert b'"round": 4,' in measured(run) and b'"round": 5,' not in measured(run)
    subprocess.run(fedsim("resume", str(run), "--quiet", *ALLOW), env=env, capture_output=True, check=True)
    assert measured(run) == one_process
    wait_until_ended(tmp_path, besides=LINGER)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A head and a node as processes of their own, a processor each: the address, and the node's process."""
    (port,) = free(1)                                      # a server of Ray shares one that it happens to hold already
    ray = str(Path(sys.executable).parent / "ray")
    common = ["--num-cpus=1", "--object-store-memory=150000000", "--block"]
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"      # a short name, for its sockets
    head = [ray, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"]
    env = environment(tmp_path) | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0"}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        leaders = []
        for name, argv in (("head", head), ("node", [ray, "start", f"--address=127.0.0.1:{port}"])):
            log = stack.enter_context((tmp_path / name).open("wb"))
            process = subprocess.Popen([*argv, *common], env=env, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(kill_tree, process.pid)
            leaders.append(process.pid)
            wait_until(partial(lambda log: b"runtime started" in log.read_bytes(), tmp_path / name))
        yield f"127.0.0.1:{port}", leaders[1]


def test_a_machine_of_a_cluster_is_lost(one_process: bytes, tmp_path: Path, cluster: tuple[str, int]) -> None:
    """Its memories are gone: back to the checkpoint, and on with the actor that is left, to the same measurements."""
    address, node = cluster
    run = tmp_path / "run"
    (tmp_path / "2-go").touch()
    words = ["--ray-address", address, "--algorithm.folder", str(tmp_path), "--output", str(run)]
    env = environment(tmp_path) | TOKEN
    with started(fedsim("run", *WORDS, *words, "--json"), env=env, stdout=subprocess.PIPE) as process:
        wait_until((tmp_path / "5").exists)
        kill_tree(node)
        (tmp_path / "5-go").touch()
        result, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert json.loads(result), "Ray says nothing on stdout"
    assert "ray: 2 actors on 2 machines x 4 clients a round" in said
    assert "going back to the last checkpoint" in said and "ray: 1 actor" in said
    assert measured(run) == one_process


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    argv = fedsim("run", *WORDS, "--ray-address", "127.0.0.1:1", "--output", str(tmp_path / "run"))
    env = environment(tmp_path)
    result = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert "the Ray cluster at 127.0.0.1:1 does not answer" in result.stderr and "Traceback" not in result.stderr
    wait_until_ended(tmp_path)
