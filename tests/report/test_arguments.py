"""Arguments of a comparison that no run can answer are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.cli import main
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError
from fedsim.report.compare import compare
from tests.report.test_compare import FAST, make_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_run(tmp_path, "run", FAST, clients=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--client", "-1"], "client is -1; expected 0 to 4, the clients of"),
        (["--client", "5"], "client is 5; expected 0 to 4"),
        (["--client", "0", "--scope", "server/test"], "--scope server/test has no values of single clients"),
        (["--plot", "q.png", "--height", "-2"], "height is -2.0; expected inches above 0"),
        (["--plot", "q.png", "--height", "nan"], "height is nan; expected inches above 0"),
        (["--target", "nan"], "target is nan; expected a finite value of the metric"),
    ],
)
def test_the_command_names_what_is_wrong(
    words: list[str], message: str, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert main(["compare", str(path), *words]) == 2
    assert message in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not (path.parent / "q.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": None}, "metric is None; expected the name of one, such as 'accuracy'"),
        ({"scope": 3}, "scope is 3; expected the name of one, such as 'server/test'"),
        ({"target": "x"}, "target is 'x'; expected a finite value"),
        ({"client": "0"}, "client is '0'; expected 0 to 4"),
    ],
)
def test_the_function_names_what_is_wrong(settings: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(path, **settings)


def test_a_client_with_its_scope(path: Path) -> None:
    assert main(["compare", str(path), "--client", "0", "--scope", "clients/holdout"]) == 0
    assert compare(path, client=0).runs[0].final.mean == pytest.approx(compare(path).runs[0].final.mean / 2)


def test_the_number_of_classes_is_a_number() -> None:
    split: Any = Split(torch.zeros(2, 3), torch.tensor([0, 1]))
    classes: Any = "2"
    with pytest.raises(ConfigError, match="data set 'mine': classes is '2'; expected a whole number, 0 or more; 0"):
        Dataset("mine", split, split, classes=classes)
