"""``fedsim deploy`` with real processes: everything killed and resumed; own data on every node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.backends.flower.deploy import processes
from fedsim.experiment.config import from_config
from tests.backends.flower.deploy.test_local_federation import config_of, final, folder
from tests.backends.flower.test_own_data import config, reorder, run
from tests.backends.flower.test_parity import metrics
from tests.processes import children

__all__ = ["folder"]
pytestmark = [pytest.mark.flower, pytest.mark.timeout(1800)]   # on a machine that is busy with other things
ROOT = Path(__file__).parents[4]
DEPLOY = [sys.executable, "-m", "fedsim", "deploy", "--port", "0", "--quiet", "--patience", "1800"]


def test_the_command_resumes_after_everything_was_killed(folder: Path) -> None:
    """``fedsim deploy``: SIGKILL to a SuperNode and the SuperLink, exit code 1; ``--resume`` makes up for all of it.

    What the killed node had stored by then may have been heard of or not. No round goes on without a node, however long
    one takes on a busy machine, and however late the SuperLink is killed after it.
    """
    file, output = folder / "experiment.yaml", folder / "resumed"
    config = config_of(folder, "EF21", rounds=3, evaluation={"every": 3})
    file.write_text(yaml.safe_dump(config))
    words = [*DEPLOY, str(file), "--insecure", "--nodes", "3", "--output", str(output)]
    words += ["--minimum", "1", "--timeout", "1200"]
    end = time.monotonic() + 1200
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            while first.poll() is None and not checkpoints(output):
                assert time.monotonic() < end, "nothing happened"
                time.sleep(0.2)
            children(first.pid, "fedsim node")[1].kill()
            children(first.pid, "fedsim superlink")[0].kill()
            _, said = first.communicate(timeout=300)
        finally:
            first.kill()                                   # and the system ends what it started
    assert first.returncode == 1 and f"--resume {output}" in said, said
    words = [sys.executable, "-m", "fedsim", "deploy", "--quiet", "--resume", str(output), "--json"]
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not list(folder.glob("resumed.federation/node-*/memory/*/*")), "the run has ended, and its memories with it"
    result = json.loads(again.stdout)["final"]
    simulation = fedsim.run(from_config(config), output=folder / "sim-resumed", progress=False)
    for (scope, metric), value in final(simulation.path, 3).items():
        assert result[scope][metric]["mean"] == pytest.approx(value, abs=1e-6, rel=1e-6)


def checkpoints(output: Path) -> list[Path]:
    """Checkpoints of completed rounds."""
    return list(output.glob("seed-0/checkpoints/round-00000[1-9]"))


def test_every_node_has_its_own_data(tmp_path: Path) -> None:
    """The example of the documentation, with TLS and keys, columns in another order, and a proxy that is down.

    Nothing is left running, and no file of the federation is open to other users.
    """
    module = [sys.executable, "-m", "experiments.flower.own_data.hospitals", str(tmp_path / "data")]
    subprocess.run(module, check=True, cwd=ROOT)
    rows = metrics(run(tmp_path, tmp_path / "data", config(tmp_path / "data", rounds=2)))
    expected = {(row["scope"], row["metric"], row["node"]): row["value"] for row in rows}
    reorder(tmp_path / "data/nodes/hospital-1/measurements.csv", lambda names: names[::-1])
    words = ["experiments/flower/own_data/hospitals.yaml", "--allow", "experiments.flower.own_data", "--nodes", "3"]
    words += ["--own-data", str(tmp_path / "data/nodes")]
    words += ["--data.path", str(tmp_path / "data/server"), "--rounds", "2", "--output", str(tmp_path / "deployed")]
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
    nowhere = {**os.environ, **dict.fromkeys(proxies, "http://127.0.0.1:9")}
    done = subprocess.run([*DEPLOY, *words, "--json"], capture_output=True, text=True, cwd=ROOT, env=nowhere)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["final"]
    for scope, metric in (("server/test", "loss"), ("clients/train", "accuracy_mean"), ("total", "bytes_up")):
        assert result[scope][metric]["mean"] == pytest.approx(expected[scope, metric, None], rel=1e-6)
    federation = tmp_path / "deployed.federation"
    nodes = [path for i in range(3) for path in (federation / f"node-{i}").rglob("*") if path.is_file()]
    assert nodes and not [path for path in nodes if path.stat().st_mode & 0o077]
    assert federation.stat().st_mode & 0o777 == 0o700
    assert not [mark for mark in processes.marked().values() if str(tmp_path) in mark]
