"""What a user sees who makes a slip: one error with the way out, from the command line and from a script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedsim.cli import main
from tests.cli.test_commands import TINY

MINE = """
from dataclasses import dataclass
from algorithms import FedAvg
from fedsim import IidPartitioner

@dataclass(frozen=True)
class Mine(FedAvg):
    at: str = "client"

    def client(self, local, x):
        return local.batches() if self.at == "client" else super().client(local, x)

    def round(self, s, clients):
        if self.at == "client":
            return super().round(s, clients)
        return s._replace(x=clients.each(self.client, s.x).mean(0))

@dataclass(frozen=True)
class Halved(IidPartitioner):
    def partition(self, labels, natural, seed):
        return labels.halves()
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--algorithm", "{}.Mine"], r"Mine\.client in round 1: client \d raised AttributeError: local\.bat"),
        (["--algorithm", "{}.Mine", "--algorithm.at", "server"], r"Mine\.round in round 1 raised AttributeError: a Se"),
        (["--algorithm", "FedAvg", "--partition", "{}.Halved"], r"Halved\.partition raised AttributeError: 'numpy\.nd"),
    ],
)
def test_code_of_the_user_is_named_without_a_traceback(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"mine_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["run", *TINY, *(word.format(module) for word in argv), "--output", str(tmp_path / "run")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert re.match(f"fedsim: {said}", error) and f"{module}.py, line " in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
