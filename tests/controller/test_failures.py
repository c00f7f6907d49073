"""Runs that fail: what they keep, what they say, and what the other seeds do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from algorithms.fedavg import FedAvgState
from fedsim import Evaluation, Experiment, resume, run
from fedsim.compress import TopK
from fedsim.controller.host import Host
from fedsim.controller.prepare import Prepared
from fedsim.errors import BusyError, ConfigError, DivergenceError, RunError
from fedsim.feedback import EF14Uplink
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory
from fedsim.report.compare import cells, compare
from tests.controller.test_run import SMALL, metrics_bytes


def test_diverging_client_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"FedAvg\.client in round \d+: client \d+.*NaN or\s+infinity"):
        run(replace(SMALL, algorithm=FedAvg(lr=1e30)), output=tmp_path / "run", progress=False)
    directory = RunDirectory(tmp_path / "run")
    status = directory.manifest["status"]["0"]
    assert status["state"] == "failed" and "DivergenceError" in status["detail"]
    assert len(list((directory.seed_path(0) / "checkpoints").iterdir())) == 1


def test_an_initial_model_without_a_finite_loss(tmp_path: Path) -> None:
    class Logarithms(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)).log()

    with pytest.raises(DivergenceError, match=r"^the initial model has test loss nan, before any training; look at"):
        run(replace(SMALL, model=Logarithms(64, 10)), output=tmp_path / "run", progress=False)


def test_a_later_seed_that_cannot_be_run_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Host.prepare

    def second_fails(self: Host, experiment: Experiment, seed: int) -> Any:
        if seed == 1:
            raise ConfigError("no such partition")
        return prepare(self, experiment, seed)

    monkeypatch.setattr(Host, "prepare", second_fails)
    with pytest.raises(ConfigError, match="no such partition"):
        run(replace(SMALL, rounds=3, evaluation=Evaluation(every=5), seeds=3), output=tmp_path / "run", progress=False)
    directory = RunDirectory(tmp_path / "run")
    states = {seed: status["state"] for seed, status in directory.manifest["status"].items()}
    assert states == {"0": "finished", "1": "failed", "2": "waiting"}
    monkeypatch.setattr(Host, "prepare", prepare)
    resume(directory.path, progress=False)
    assert {status["state"] for status in directory.manifest["status"].values()} == {"finished"}


def test_a_round_that_cannot_be_done_loses_none_before_it(tmp_path: Path) -> None:
    class Failing(Host):
        def round(self, algorithm: Any, state: Any, federation: Any, meter: Any, round: int, ids: np.ndarray) -> Any:
            if round == 5:
                raise RunError("round 5 was lost 3 times")
            return super().round(algorithm, state, federation, meter, round, ids)

    with pytest.raises(RunError, match="lost 3 times"):
        run(SMALL.with_execution(checkpoint_every=50), output=tmp_path / "run", progress=False, host=Failing())
    made = checkpoint.load_latest(tmp_path / "run" / "seed-0" / "checkpoints")
    assert made is not None and made.round == 4


def test_a_seed_that_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    experiment = replace(SMALL, algorithm=FedAvg(lr=1e39), rounds=3, seeds=2)
    for begin in (lambda: run(experiment, output=tmp_path / "run", progress=False), lambda: resume(tmp_path / "run")):
        with pytest.raises(DivergenceError, match=r"^seeds 0, 1 diverged; the first one: FedAvg\.client in round 1"):
            begin()
        states = [status["state"] for status in RunDirectory(tmp_path / "run").manifest["status"].values()]
        assert states == ["failed", "failed"]
    good = run(replace(SMALL, rounds=3, seeds=2), output=tmp_path / "good", progress=False)
    compared = compare([good.path, tmp_path / "run"])
    assert math.isnan(compared.runs[1].final.mean) and "diverged" in cells(compared)[1]


class MomentumState(NamedTuple):
    x: Any
    m: Any


class Slips(FedAvg):
    """Code that one writes by mistake; each would lose work or give numbers that no run repeats."""

    def init(self, x: Any, clients: Any) -> Any:
        return MomentumState(x, clients.keep(torch.zeros_like(x)))

    def remember(self, local: Any, x: Any, m: Any) -> Any:
        return local.grad(x), m + 1


class Late(Slips):
    """Its momentum begins as nothing, and a checkpoint that holds one could not be read back."""

    def init(self, x: Any, clients: Any) -> Any:
        return MomentumState(x, ())

    def round(self, s: Any, clients: Any) -> Any:
        x = super().round(FedAvgState(s.x), clients).x
        return MomentumState(x, x - s.x)


class Counting(Slips):
    def init(self, x: Any, clients: Any) -> Any:
        return MomentumState(x, 3)


class Naming(Slips):
    def init(self, x: Any, clients: Any) -> Any:
        return MomentumState(x, {"m": x})


class Forgetful(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        sent, m = clients.each(self.remember, s.x, s.m)
        return MomentumState(s.x - 0.1 * clients.mean(sent), m)


class Silent(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        clients.each(self.remember, s.x, s.m)


class Shorter(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        return s._replace(x=s.x[:5])


class Wider(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        return s._replace(x=s.x.double())


class Noisy(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        return s._replace(x=s.x + torch.randn_like(s.x))


class Writing(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        s.x.mul_(0.5)
        return s


class Unsent(Slips):
    def round(self, s: Any, clients: Any) -> Any:
        return s._replace(x=clients.mean(s.m))


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        (Late, r"Late\.round returned a state whose m holds \[1210\] float32, and held nothing before"),
        (Counting, r"Counting\.init returned a state whose m cannot be saved.*int: 3.*torch\.tensor"),
        (Naming, r"Naming\.init returned a state whose m holds a Tensor named m; expected tuples of tensors, or Kept"),
        (Forgetful, r"Forgetful\.round returned a state whose m has lost the memories of \d+ clients.* s\.m \| new"),
        (Silent, r"Silent\.round returned a NoneType; expected a NamedTuple with the model as x"),
        (Shorter, r"Shorter\.round returned a state whose x holds \[5\] float32, and held \[1210\] float32 before"),
        (Wider, r"Wider\.round returned a state whose x holds \[1210\] float64, and held"),
        (Noisy, r"Noisy\.round draws from, or seeds, the global generator.*clients\.key"),
        (Writing, r"Writing\.round writes into an argument"),
        (Unsent, r"clients\.mean got a Kept; expected the messages of clients\.each"),
    ],
)
def test_slips_are_told_before_they_cost_anything(tmp_path: Path, slip: type[Slips], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(replace(SMALL, algorithm=slip()), output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists(), "nothing had been measured"


def test_memories_are_lost_in_no_disguise(tmp_path: Path) -> None:
    """Also where links keep the algorithm's state within their own."""
    with pytest.raises(ConfigError, match=r"Forgetful\.round returned a state whose inner has lost the memories"):
        forgetful = replace(SMALL, algorithm=Forgetful(), uplink=EF14Uplink(TopK(0.1)))
        run(forgetful, output=tmp_path / "run", progress=False)


def test_a_run_in_progress_stays_so(tmp_path: Path) -> None:
    """A second process that resumes it leaves without a trace."""
    directory = run(replace(SMALL, rounds=3), output=tmp_path / "run", progress=False)
    directory.mark(0, "running")
    with directory.open_seed(0), pytest.raises(BusyError, match="written by another process"):
        resume(directory.path, progress=False)
    assert directory.manifest["status"]["0"]["state"] == "running"


def test_resume_says_what_may_change_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run(replace(SMALL, rounds=3), output=tmp_path / "run", progress=False)
    directory.mark(0, "interrupted")
    directory.update_manifest(device="cuda:0")
    resume(directory.path, progress=False)
    assert "device was cuda:0 when the run began and is cpu now: the last digits may differ" in capsys.readouterr().err


def test_resume_has_the_threads_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless others are asked for, which is said."""
    def resumed(experiment: Experiment | None) -> tuple[int, str]:
        directory.mark(0, "interrupted")
        resume(directory.path, experiment, progress=False, host=host)
        return host.threads, capsys.readouterr().err

    host, before = Counting(), torch.get_num_threads()
    few = replace(SMALL, rounds=2)
    directory = run(few.with_execution(threads=before + 2), output=tmp_path / "run", progress=False, host=host)
    assert directory.manifest["threads"] == host.threads == before + 2
    capsys.readouterr()
    assert resumed(None) == resumed(few) == (before + 2, "")
    threads, said = resumed(few.with_execution(threads=before + 1))
    assert threads == before + 1 and f"threads was {before + 2} when the run began and is {before + 1} now" in said
    directory.update_manifest(threads=before + 3)
    assert resumed(few)[0] == before + 3, "also those that the process happened to have"
    assert torch.get_num_threads() == before


class Counting(Host):
    """Knows with how many threads a run was prepared."""

    threads = 0

    def prepare(self, experiment: Experiment, seed: int) -> Prepared:
        self.threads = torch.get_num_threads()
        return super().prepare(experiment, seed)


def test_disk_full_keeps_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.record.metrics import RowWriter

    written = RowWriter.flush

    def full(self: RowWriter) -> None:
        if self.size > 3000:
            raise RunError("no space left")
        written(self)

    monkeypatch.setattr(RowWriter, "flush", full)
    with pytest.raises(RunError, match=r"no space left.*fedsim resume"):
        run(SMALL, output=tmp_path / "run", progress=False)
    monkeypatch.setattr(RowWriter, "flush", written)
    resume(tmp_path / "run", progress=False)
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    assert metrics_bytes(RunDirectory(tmp_path / "run")) == metrics_bytes(whole)
