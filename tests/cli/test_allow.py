"""Files of others run no code of theirs: what commands import, and for whom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from fedsim.cli import main
from fedsim.cli.allow import taken, typed
from fedsim.errors import ConfigError

SMALL = ["--rounds", "1", "--partition.num_partitions", "4", "--backend", "loop", "--quiet"]
MODULE = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("IMPORTED").touch()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        return self.linear(x.flatten(1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A working directory with a module of its own, and a file that names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"module_of_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text(f"algorithm: FedAvg\nmodel: {name}.Net\n")
    return tmp_path


def module(here: Path) -> str:
    return next(here.glob("module_of_*.py")).stem


def test_a_file_imports_what_is_allowed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "own.yaml", *SMALL, "--output", "a"]) == 2
    said = capsys.readouterr().err
    assert f"model is '{module(here)}.Net', which a file names" in said and f"--allow {module(here)}\n" in said
    assert not (here / "IMPORTED").exists() and not (here / "a").exists()
    assert main(["run", "own.yaml", *SMALL, "--output", "a", "--allow", module(here)]) == 0
    assert main(["resume", "a", "--rounds", "2", "--quiet"]) == 2
    assert f"--allow {module(here)}\n" in capsys.readouterr().err
    assert main(["export", "a", "--output", "m.pt"]) == 2
    assert main(["resume", "a", "--rounds", "2", "--quiet", f"--allow={module(here)}"]) == 0
    monkeypatch.setenv("FEDSIM_ALLOW", f"other, {module(here)}")
    assert main(["export", "a", "--output", "m.pt"]) == 0


def test_what_is_typed_needs_no_leave(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--algorithm", "FedAvg", "--model", f"{module(here)}.Net", *SMALL, "--output", "a"]) == 0
    assert main(["run", "--algorithm=FedAvg", f"--model={module(here)}.Net", *SMALL, "--output", "b"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "setting",
    [
        {"model": {"name": "subprocess.getoutput", "cmd": "touch PWNED"}},
        {"model": "module.Net"},
        {"loss": {"name": "fedsim.record.files.write_atomic", "path": "PWNED"}},
        {"loss": {"name": "os.system"}},
    ],
)
def test_a_strangers_files_run_nothing(
    here: Path, setting: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    setting = json.loads(json.dumps(setting).replace("module.Net", f"{module(here)}.Net"))
    assert main(["run", "--algorithm", "FedAvg", *SMALL, "--output", "a"]) == 0
    (here / "strange.yaml").write_text(yaml.safe_dump({"algorithm": "FedAvg", **setting}))
    assert main(["run", "strange.yaml", *SMALL]) == 2
    shutil.rmtree(here / "a" / "seed-0" / "checkpoints")
    config, manifest = (yaml.safe_load((here / "a" / name).read_text()) for name in ("config.yaml", "manifest.json"))
    manifest["status"]["0"]["state"] = "interrupted"
    del manifest["settings_hash"]
    (here / "a" / "config.yaml").write_text(yaml.safe_dump({**config, **setting}))
    (here / "a" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["resume", "a", "--quiet"]) == 2
    assert main(["export", "a", "--output", "m.pt"]) == 2
    point = {"name": "p", "config": {**config, **setting}}
    listed = {"versions": manifest["versions"], "failures": {}, "points": [point]}
    (here / "s").mkdir()
    (here / "s" / "sweep.json").write_text(json.dumps(listed))
    assert main(["resume", "s", "--quiet", "--jobs", "1"]) == 1
    assert capsys.readouterr().err.count("which a file names") == 4
    assert not {"PWNED", "IMPORTED"} & {path.name for path in here.iterdir()}


def test_the_words_of_a_command_line() -> None:
    rest, modules = taken(["f.yaml", "--allow", "a,b.c", "--rounds", "3", "--allow=d"])
    assert rest == ["f.yaml", "--rounds", "3"] and modules == ["a", "b.c", "d"]
    for wrong in (["--allow"], ["--allow", "--rounds"], ["--allow", "a/b"], ["--allow="]):
        with pytest.raises(ConfigError, match=r"--allow is .*; expected a module"):
            taken(wrong)
    assert typed(["a.b", "--model", "m.Net", "--metrics=[x.y,z.w]", "c.d"]) == ["m.Net", "x.y", "z.w"]
