"""What a GPU would run, on a pretended one: `make test` has no real one, and `--device cuda` must work there too.

Each test starts pytest with the pretended GPU in its process (``tests/pretended``). With FEDSIM_LONG=1 all of the
contract suite runs on it, not a sample.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import BUDGETS, parsed
from tests.pretended import device

ROOT = Path(__file__).parent.parent
LONG = bool(os.environ.get("FEDSIM_LONG"))

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(device.unavailable()), reason=device.unavailable()),
]


def on_the_gpu(*arguments: str, **environment: str) -> None:
    """Run tests there; all that are chosen must pass, and none be skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.pretended.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-2000:]
    passed = done.returncode == 0 and re.match(r"\d+ passed", last) and "skipped" not in last
    assert passed, done.stdout[-6000:] + done.stderr[-2000:]


def test_runs_repeat_resume_and_agree() -> None:
    on_the_gpu("tests/test_devices.py", "-k", "cuda" if LONG else "cuda and (dense-loop or gossip or memories)")


def test_algorithms_and_models_are_those_of_the_cpu() -> None:
    on_the_gpu("tests/contract/test_devices.py")


def test_rounds_keep_to_their_budgets_graphs_are_the_loop_streams_do_not_race_and_auto_chooses() -> None:
    on_the_gpu(*(f"tests/pretended/{name}.py" for name in ("auto", "block_graphs", "budgets", "graphs", "streams")))


def test_precision_layout_and_determinism() -> None:
    on_the_gpu("tests/pretended/numerics.py")


def test_memories_on_the_host_are_those_on_the_device() -> None:
    on_the_gpu("tests/pretended/memories.py")


@pytest.mark.ray
def test_ray_on_two_gpus_has_the_bytes_of_one_process(tmp_path: Path) -> None:
    script = f"""
from dataclasses import replace
import torch
from fedsim import run
from fedsim.errors import ConfigError
from fedsim.experiment.execution import Ray
from tests.test_devices import SMALL, recorded
assert torch.cuda.device_count() == 2
here = replace(SMALL, rounds=3).with_execution(device="cuda")
actors = here.with_execution(backend="ray", ray=Ray(actors=2, gpus=1))
one, two = (run(e, root={str(tmp_path)!r}, progress=False) for e in (here, actors))
assert recorded(one) == recorded(two) and two.manifest["backend"]["0"]["actors"] == 2
loop = run(here.with_execution(backend="loop", block_size=0), root={str(tmp_path)!r}, progress=False)
graphs = here.with_execution(backend="ray", block_size=0, client_threads=2)
two = run(graphs, root={str(tmp_path)!r}, progress=False)
chosen = dict(backend="ray", block_size=0, client_threads=2, actors=2)
assert recorded(loop) == recorded(two) and two.manifest["backend"]["0"] == chosen, two.manifest["backend"]
try:
    here.with_execution(backend="ray", client_threads=2, block_size=2)
except ConfigError as error:
    assert "either blocks or graphs" in str(error)
else:
    raise AssertionError("both are accepted")
"""
    given = device.environment(gpus=2)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", [("jsonargparse", "pooch", "ray", "typeshed_client", "docstring_parser")])
def test_the_benchmark_of_a_gpu_runs_dry_where_packages_are_missing(missing: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    script = f"""
import sys
sys.modules |= dict.fromkeys({missing!r})                  # None: importing them fails
from benchmarks.gpu import main
sys.exit(main(["--dry-run", "--out", {str(out)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(out.read_text())
    assert list(steps) == [name for name in BUDGETS if name != "table"]
    assert steps["reference"]["result"]["largest"] <= 1e-9 and "predicted" in done.stdout


@pytest.mark.parametrize("only", ["0", "14", "3-2", "x", ""])
def test_steps_that_there_are_not(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["--only", only])
    assert "expected steps from 1 to 13" in capsys.readouterr().err


@pytest.mark.skipif(not LONG, reason="takes minutes; set FEDSIM_LONG=1")
def test_the_whole_contract() -> None:
    on_the_gpu("tests/contract", "-m", "not ray", FEDSIM_TEST_DEVICE="cuda")
