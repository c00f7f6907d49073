"""Monitor of a run on a federation, from the files it writes and the status that Flower reports."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.controller.notes import note
from fedsim.controller.progress import RunProgress
from fedsim.errors import DeployError, FedsimError
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import open_run
from fedsim.record.metrics import Metrics, read_metrics

LOOK_SECONDS = 0.5
ASK_SECONDS = 20.0
"""Interval between status requests to Flower; the run's files are faster."""
ASK_AGAIN_SECONDS = 2.0
"""Interval between status requests once the files show the end of the run."""
TRIES = 5
"""Status requests in a row that may fail, as on a machine that is busy; the SuperLink's end is seen without them."""


class Tail:
    """Reader of lines appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Read the complete lines appended since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        return whole.decode(errors="replace").splitlines()


def watch(
    federation: LocalFederation, run_id: str, experiment: Experiment, output: Path, progress: bool, events: Tail
) -> None:
    """Show progress and print the server's events until the run ends.

    Raises:
        DeployError: the run or the SuperLink failed, or Flower does not tell how the run is.
    """
    asked, failed, shown = time.monotonic(), 0, dict[int, tuple[int, int]]()
    with RunProgress(output.name, experiment.rounds, progress) as bar:
        while True:
            time.sleep(LOOK_SECONDS)
            federation.superlink.check()
            _show(bar, experiment, output, shown)
            _print_events(events)
            if time.monotonic() > asked + (ASK_AGAIN_SECONDS if _ended(output) else ASK_SECONDS):
                try:
                    run = federation.flwr("list", "--run-id", run_id)["runs"][0]
                except DeployError as error:
                    failed, asked = failed + 1, time.monotonic()
                    federation.superlink.check()           # its end is the reason, if it has ended
                    if failed == TRIES:
                        raise
                    note(f"{error}; asking again")
                    continue
                failed, asked = 0, time.monotonic()
                if run["status"].startswith("finished"):
                    break
        _show(bar, experiment, output, shown)
        _print_events(events)
    if run["status"] != "finished:completed":
        why = _recorded_failure(output) or run.get("status-details", "")
        raise DeployError(f"the run is {run['status']}: {why}\nLog: {federation.superlink.log}")


def _print_events(events: Tail) -> None:
    for line in events.lines():
        note(line)


def _ended(output: Path) -> bool:
    """Check the run directory for the end of the run: no seed is running, and some have started."""
    with contextlib.suppress(FedsimError, OSError):
        states = {seed["state"] for seed in open_run(output).manifest["status"].values()}
        return "running" not in states and states != {"waiting"}
    return False


def _recorded_failure(output: Path) -> str:
    """Reason of a failure as recorded in the run directory; empty if there is none."""
    with contextlib.suppress(FedsimError, OSError):
        return next((seed["detail"] for seed in open_run(output).manifest["status"].values() if seed["detail"]), "")
    return ""


def _show(bar: RunProgress, experiment: Experiment, output: Path, shown: dict[int, tuple[int, int]]) -> None:
    """Update the progress bar: last completed round and last metrics of every started seed.

    Exchanges are recorded during a round; its metrics or a later exchange show its completion.
    """
    for seed in experiment.seed_list:
        with contextlib.suppress(FedsimError):             # not started
            folder = output / f"seed-{seed}"
            metrics = read_metrics(folder / "metrics.jsonl")
            exchanges = read_metrics(folder / "exchanges.jsonl")
            round = int(max(exchanges.round.max(initial=1) - 1, metrics.round.max(initial=0)))
            state = round, len(metrics.round)
            if seed not in shown:
                bar.start(seed, round)
            if shown.get(seed) != state:
                shown[seed] = state
                tested = ("server/test", "average/test")
                loss, accuracy = (_last(metrics, tested, name) for name in ("loss", "accuracy"))
                sent = [_last(metrics, ("total",), name) or 0.0 for name in ("bytes_down", "bytes_up")]
                bar.update(round, accuracy, loss, sum(sent))


def _last(metrics: Metrics, scopes: tuple[str, ...], metric: str) -> float | None:
    values = [value for scope in scopes for value in metrics.series(scope, metric).values()]
    return values[-1] if values else None
