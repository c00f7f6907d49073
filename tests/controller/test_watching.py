"""A callback sees every round and changes nothing; sinks follow a run, and one that fails is left out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import DPSGD, FedAvg
from fedsim import Evaluation, FixedSize, RoundView, resume, run, trained_model
from fedsim.cli import main
from fedsim.controller import run as controller
from fedsim.errors import CodeError, ConfigError
from fedsim.record.directory import RunDirectory
from fedsim.record.sinks import sink as sinks
from tests.controller.test_extend import files
from tests.controller.test_run import SMALL
from topologies import Ring, Static

AVG = replace(SMALL, algorithm=FedAvg(), rounds=3, evaluation=Evaluation(every=2))
GOSSIP = replace(AVG, algorithm=DPSGD(), topology=Static(Ring()), sampling=FixedSize(1.0))


def test_a_callback_sees_every_round_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[RoundView] = []
    last: list[torch.Tensor] = []

    def watch(view: RoundView) -> None:
        seen.append(view)
        view.vector().zero_()
        for p in view.model().parameters():
            p.data.zero_()
        with pytest.raises(TypeError):
            view.metrics["server/test", "loss"] = 0.0  # type: ignore[index]
        torch.rand(3)
        last[:] = [view.vector()]

    experiment = replace(AVG, seeds=2)
    plain = run(experiment, output=tmp_path / "plain", progress=False)
    made = run(experiment, output=tmp_path / "made", progress=False, on_round=watch)
    assert files(made, 3) == files(plain, 3)
    assert [(view.seed, view.round, view.last) for view in seen] == [(s, r, r == 3) for s in (0, 1) for r in range(4)]
    assert [bool(view.metrics) for view in seen[:4]] == [True, False, True, True]
    trained = trained_model(made, seed=1)
    assert torch.equal(last[0], torch.cat([p.reshape(-1) for p in trained.parameters()]))


def test_without_a_server(tmp_path: Path) -> None:
    def watch(view: RoundView) -> None:
        average, one = view.vector(), view.vector(2)
        assert average.shape == one.shape and (torch.allclose(average, one) == (view.round == 0))
        with pytest.raises(ConfigError, match="node is 99; expected 0 to"):
            view.vector(99)

    run(GOSSIP, output=tmp_path / "made", progress=False, on_round=watch)
    assert len(files(RunDirectory(tmp_path / "made"), 3)) > 3


def raises(view: RoundView) -> None:
    if view.round == 2:
        raise ValueError("enough")


def threads(view: RoundView) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (raises, "on_round after round 2 raised ValueError: enough"),
        (threads, "changed PyTorch's number of threads"),
        (lambda view: view.round, "on_round after round 0 returned 0; expected None"),
    ],
)
def test_what_a_callback_may_not(callback: Callable[[RoundView], None], words: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        with pytest.raises(CodeError, match=words):
            run(AVG, output=tmp_path / "made", progress=False, on_round=callback)
    finally:
        torch.set_num_threads(before)
    if callback is raises:                                 # its rounds are kept
        rounds: list[int] = []
        made = resume(tmp_path / "made", progress=False, on_round=lambda view: rounds.append(view.round))
        whole = run(AVG, output=tmp_path / "whole", progress=False)
        assert rounds == [3] and files(made, 3) == files(whole, 3)
    with pytest.raises(ConfigError, match=r"on_round is .*; expected a function"):
        run(AVG, output=tmp_path / "other", on_round="print")  # type: ignore[arg-type]


def test_live_and_afterwards_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    out, words = tmp_path / "live", "--algorithm FedAvg --rounds 3 --evaluation.every 1 --seeds 2 --sink tensorboard"
    assert main(["run", *words.split(), "--quiet", "--output", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count(f"sink tensorboard: see it with tensorboard --logdir {out}") == 1
    assert main(["export", str(out), "--to", "tensorboard", str(tmp_path / "after")]) == 0
    live, after = (sorted(folder.rglob("*tfevents*")) for folder in (out, tmp_path / "after"))
    assert [path.read_bytes() for path in live] == [path.read_bytes() for path in after] and len(live) == 2
    assert main(["resume", str(out), "--rounds", "4", "--quiet"]) == 0
    assert [path.stat().st_size for path in sorted(out.rglob("*tfevents*"))] > [p.stat().st_size for p in after]


def test_a_sink_that_fails_does_not_stop_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []

    class Full:
        def write(self, seed: int, values: object, seconds: object) -> None:
            writes.append(seed)
            if len(writes) == 2:
                raise OSError("No space left on device")

        def close(self) -> None: ...

        def see(self) -> str:
            return "nothing"

    for module in (sinks, controller):
        monkeypatch.setattr(module, "maker", lambda tool: lambda run, folder: Full())
    with_sink = AVG.with_execution(sink="tensorboard, wandb")
    made = run(with_sink, output=tmp_path / "made", progress=False)
    assert with_sink.execution.sink == ("tensorboard", "wandb") and len(writes) == 4, "the second one went on"
    said = capsys.readouterr().err
    assert said.count("sink wandb failed, and the run goes on without it (OSError: No space left") == 1
    assert f"fedsim export {made.path} --to wandb DIR" in said
    ours, plain = files(made, 3), files(run(AVG, output=tmp_path / "plain", progress=False), 3)
    del ours["config"], plain["config"]
    assert ours == plain


def test_a_sink_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("wandb", "trackio"):
        monkeypatch.delitem(sys.modules, f"fedsim.record.sinks.{tool}", raising=False)
        monkeypatch.setitem(sys.modules, tool, None)
        with pytest.raises(ConfigError, match=rf"needs .*pip install '.\[{tool}\]'"):
            run(AVG.with_execution(sink=tool), output=tmp_path / "made", progress=False)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match="sink has 'tensorbord'; did you mean 'tensorboard'"):
        AVG.with_execution(sink="tensorbord")
    with pytest.raises(ConfigError, match="sink is 3; expected names"):
        AVG.with_execution(sink=3)


@pytest.mark.process
@pytest.mark.parametrize("tool", ["wandb", "trackio"])
def test_the_other_tools(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real packages, which only their extras install; none is asked for a login or a network."""
    pytest.importorskip(tool)
    made = run(replace(AVG, seeds=2), output=tmp_path / "made", progress=False)
    assert main(["export", str(made.path), "--to", tool, str(tmp_path / "out")]) == 0
    assert f"see it with {'wandb sync' if tool == 'wandb' else 'TRACKIO_DIR='}" in capsys.readouterr().out
    kept = {"wandb": "made/wandb/offline-run-*/*.wandb", "trackio": "fedsim.db"}[tool]
    assert len(list((tmp_path / "out").glob(kept))) == (2 if tool == "wandb" else 1)
    assert main(["export", str(made.path), "--to", tool, str(tmp_path / "out")]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_run_is_an_initial_model(tmp_path: Path) -> None:
    before = run(AVG, output=tmp_path / "before", progress=False)
    made = run(replace(AVG, init=str(before.path)), output=tmp_path / "made", progress=False)
    trained, seen = trained_model(before), list[torch.Tensor]()
    again = replace(AVG, init=made.config["init"])
    run(again, output=tmp_path / "again", progress=False, on_round=lambda view: seen.append(view.vector()))
    assert torch.equal(seen[0], torch.cat([p.reshape(-1) for p in trained.parameters()]))
    assert (tmp_path / "before" / "model-000003.safetensors").exists() and "init_hash" in made.manifest


def test_a_lost_last_checkpoint_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(AVG.with_execution(checkpoint_every=1), output=tmp_path / "made", progress=False)
    shutil.rmtree(made.seed_path(0) / "checkpoints" / "round-000003")
    assert main(["export", str(made.path), "--output", str(tmp_path / "model.pt")]) == 0
    said = capsys.readouterr().err
    assert "the checkpoint of round 3 in" in said and "is missing; the model is that after round 2" in said


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run --algorithm FedAvg --rounds 2 --rounds 3", "--rounds is given twice"),
        ("run --algorithm FedAvg --output a --output b", "--output is given twice"),
        ("run --algorithm FedAvg --backend loop --execution.backend blocks", "are one setting, given twice"),
        ("sweep --algorithm FedAvg --algorithm.lr 0.1,0.2 --target nan", "--target is 'nan'; expected a finite number"),
    ],
)
def test_flags(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert error in capsys.readouterr().err
