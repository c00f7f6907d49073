"""A run on a federation, watched from outside: by the files that it writes, and by what Flower says of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fedsim.deploy.federation import Federation
from fedsim.errors import DeployError, FedsimError
from fedsim.experiment import Experiment
from fedsim.progress import RunProgress
from fedsim.record import open_run
from fedsim.rows import Metrics, read_metrics

LOOK_SECONDS = 0.5
ASK_SECONDS = 20.0
"""Between questions to Flower how the run stands; the run's files tell sooner."""
ASK_AGAIN_SECONDS = 2.0
"""The same, once the files say that it has ended."""


def watch(federation: Federation, run_id: str, experiment: Experiment, output: Path, progress: bool) -> None:
    """Show how a run goes on, until it has ended.

    Raises:
        DeployError: it, or the SuperLink, failed.
    """
    asked, shown = time.monotonic(), dict[int, int]()
    with RunProgress(output.name, experiment.rounds, progress) as bar:
        while True:
            time.sleep(LOOK_SECONDS)
            federation.superlink.check()
            _show(bar, experiment, output, shown)
            if time.monotonic() > asked + (ASK_AGAIN_SECONDS if _ended(output) else ASK_SECONDS):
                run = federation.flwr("list", "--run-id", run_id)["runs"][0]
                asked = time.monotonic()
                if run["status"].startswith("finished"):
                    break
        _show(bar, experiment, output, shown)
    if run["status"] != "finished:completed":
        why = _noted(output) or run.get("status-details", "")
        raise DeployError(f"the run is {run['status']}: {why}\nThe whole log: {federation.superlink.log}")


def _ended(output: Path) -> bool:
    """Whether the run's own record says that nothing more will come."""
    with contextlib.suppress(FedsimError, OSError):
        states = {seed["state"] for seed in open_run(output).manifest["status"].values()}
        return "running" not in states and states != {"waiting"}
    return False


def _noted(output: Path) -> str:
    """Why a run failed, as it noted itself."""
    with contextlib.suppress(FedsimError, OSError):
        return next((seed["detail"] for seed in open_run(output).manifest["status"].values() if seed["detail"]), "")
    return ""


def _show(bar: RunProgress, experiment: Experiment, output: Path, shown: dict[int, int]) -> None:
    """The last round of every seed that has begun, and what was measured last."""
    for seed in experiment.seed_list:
        with contextlib.suppress(FedsimError):             # not begun
            folder = output / f"seed-{seed}"
            metrics = read_metrics(folder / "metrics.jsonl")
            exchanges = read_metrics(folder / "exchanges.jsonl")
            round = int(max(exchanges.round.max(initial=0), metrics.round.max(initial=0)))
            if seed not in shown:
                bar.start(seed, round)
            if shown.get(seed) != round:
                shown[seed] = round
                tested = ("server/test", "average/test")
                loss, accuracy = (_last(metrics, tested, name) for name in ("loss", "accuracy"))
                sent = [_last(metrics, ("total",), name) or 0.0 for name in ("bytes_down", "bytes_up")]
                bar.update(round, accuracy, loss, sum(sent) / 1e6)


def _last(metrics: Metrics, scopes: tuple[str, ...], metric: str) -> float | None:
    values = [value for scope in scopes for value in metrics.series(scope, metric).values()]
    return values[-1] if values else None
