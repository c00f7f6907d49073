"""The lasting worker: the same answers as without it, from one process for a run, which comes back and goes away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from fedsim.backends.flower.node import worker
from fedsim.backends.flower.node.answer import answer
from fedsim.backends.flower.node.client_app import answers_once
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.messages import wire
from tests.backends.flower.test_node import TEXT, question, told
from tests.processes import running, wait_until

# A worker outlives the process that starts it, on purpose.
pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")]


class Fails(torch.nn.Module):
    """Raises what is no refusal, or kills its process, when it is given more than the one sample of a trial."""

    def __init__(self, kills: bool = False) -> None:
        super().__init__()
        self.w, self.kills = torch.nn.Parameter(torch.zeros(64, 10)), kills

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return x.flatten(1) @ self.w
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise NotImplementedError("on purpose")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeSettings]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield NodeSettings(1, tmp_path / "memory", allow=(__name__,))
    for process in workers(tmp_path):
        os.kill(process, signal.SIGKILL)


def workers(folder: Path) -> list[int]:
    """Living workers whose sockets are in a folder."""
    return [process.pid for process in running("-m fedsim.backends.flower.node.worker", str(folder))]


def test_it_answers_as_the_node_does_and_stays(settings: NodeSettings, tmp_path: Path) -> None:
    expected = answer(question(), TEXT, NodeSettings(1, tmp_path / "other"))
    made = worker.ask(question(), TEXT, settings, 7)
    assert made.data == expected.data and made.values["memory"] == expected.values["memory"]
    (first,) = workers(tmp_path)
    again = worker.ask(question({"write": "1.2", "memory": [{"version": "1.1.0"}]}), TEXT, settings, 7)
    assert again.verb == "each" and workers(tmp_path) == [first]
    refused = worker.ask(question({"client": 2}), TEXT, settings, 7)
    assert refused.verb == "refused" and "came to client 1" in refused.values["error"]
    worker.ask(question({"write": "1.3"}), TEXT, settings, 8)
    assert len(workers(tmp_path)) == 2                     # another run has its own


def test_another_is_started_for_one_that_was_killed(settings: NodeSettings, tmp_path: Path) -> None:
    worker.ask(question(), TEXT, settings, 7)
    (first,) = workers(tmp_path)
    os.kill(first, signal.SIGKILL)
    assert worker.ask(question({"write": "1.2"}), TEXT, settings, 7).verb == "each"
    (second,) = workers(tmp_path)
    assert second != first


@pytest.mark.parametrize("kills", [False, True])
def test_what_a_module_does_is_told(
    settings: NodeSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str], kills: bool
) -> None:
    text = told(model={"name": f"{__name__}.Fails", "kills": kills}, common={"d": 640})
    call = Call("score", question().values, {"x": wire.encode(torch.zeros(640))})
    if kills:
        with pytest.raises(worker.WorkerError, match="was killed while it worked"):
            worker.ask(call, text, settings, 7)
    else:
        assert "own log says why" in worker.ask(call, text, settings, 7).values["error"]
        log = capfd.readouterr().err
        assert "in forward" in log and "NotImplementedError: on purpose" in log


def test_it_ends_when_nothing_is_asked_and_with_its_node(settings: NodeSettings, tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.node.worker import serve
serve(Path(sys.argv[1]), NodeSettings.of(json.loads(sys.argv[2])), int(sys.argv[3]), float(sys.argv[4]))
"""
    settings.store.mkdir()
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(subprocess.Popen(words))
            stack.callback(process.kill)
            return process

        node = started("sleep", "1000")
        words = [sys.executable, "-c", code, str(tmp_path / "s"), json.dumps(settings.config()), str(node.pid)]
        assert started(*words, "0.2").wait(240) == 0 and not (tmp_path / "s").exists()
        bereft = started(*words, "600")
        wait_until((tmp_path / "s").exists)
        node.kill()
        node.wait()
        assert bereft.wait(240) == 1 and not (tmp_path / "s").exists()
        assert started(*words, "600").wait(240) == 1, "its node had ended before it began"


def test_it_removes_its_socket_when_it_is_told_to_end(settings: NodeSettings, tmp_path: Path) -> None:
    worker.ask(question(), TEXT, settings, 7)
    (process,), (path,) = workers(tmp_path), (tmp_path / f"fedsim-{os.getuid()}").iterdir()
    assert path.is_socket()
    os.kill(process, signal.SIGTERM)
    wait_until(lambda: not path.exists())


def test_sockets_that_nobody_listens_at_are_removed(tmp_path: Path) -> None:
    """But for new ones, and whatever else there is."""
    with ExitStack() as stack:
        for name in ("listening", "full", "dead", "new"):
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.bind(str(tmp_path / name))
            if name in ("listening", "full"):
                made.listen(0)
            if name == "full":
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / name))
        (tmp_path / "file").touch()
        for name in ("listening", "full", "dead", "file"):
            os.utime(tmp_path / name, (0, 0))
        worker.remove_orphans(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"listening", "full", "new", "file"}


def test_only_processes_that_answer_one_message_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not answers_once()
    monkeypatch.setattr(sys, "argv", ["/venv/bin/flwr-clientapp", "--token", "x"])
    assert answers_once()
