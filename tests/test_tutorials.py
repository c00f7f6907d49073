"""Every tutorial runs from first to last cell, and becomes a page with its outputs."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import jupytext
import pytest

from fedsim.record.nodes import read_nodes
from tests.test_site import SITE

FILES = {file.stem: file for file in sorted(SITE.TUTORIALS.glob("*.py"))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def test_there_is_one_for_each_use() -> None:
    about = {"first_run", "own_algorithm", "own_data", "gossip", "compression", "fine_tuning", "deployment"}
    assert set(FILES) == about


@pytest.mark.process                                       # `auto` may ask for the processor's name
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"deployment"}))
def test_a_tutorial_runs(name: str, folder: Path) -> None:
    runpy.run_path(str(FILES[name]), run_name="__main__")
    assert list(folder.glob("runs/*/manifest.json"))


@pytest.mark.flower
@pytest.mark.slow
def test_the_deployment_runs_real_nodes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FILES["deployment"]), run_name="__main__")
    assert "total bytes_up: deployed" in capsys.readouterr().out
    nodes = read_nodes(folder / "runs" / "deployed")
    assert [(node.client, node.rounds, node.errors) for node in nodes] == [(0, 2, 0), (1, 2, 0), (2, 2, 0)]
    assert all(node.last_seen and node.samples > 10 and node.bytes_up > 100_000 and node.seconds > 0 for node in nodes)
    logs = [log.read_text(errors="replace") for log in (folder / "runs" / "deployed.federation").rglob("*.log")]
    assert sum("round 2: FedSpeed.client, " in log for log in logs) == 3


@pytest.mark.process
@pytest.mark.slow
def test_a_page_has_text_code_and_outputs(folder: Path) -> None:
    source = folder / "small.py"
    source.write_text(
        "# %% [markdown]\n# # Title\n# See [the guide](../guide.md).\n\n# %%\nfrom IPython.display import Image\n"
        "import matplotlib.pyplot as plt\n\nplt.figure().savefig('x.png')\nprint(6 * 7)\nImage('x.png')\n"
    )
    page, pictures = SITE.tutorial(source)
    assert page.startswith("# Title") and "[the guide](../guide.md)" in page and "print(6 * 7)" in page and "42" in page
    (name,) = pictures
    assert f"]({name})" in page and pictures[name].startswith(b"\x89PNG") and name.startswith("small")


@pytest.mark.process
def test_a_cell_that_fails_fails_the_page_in_words(folder: Path) -> None:
    source = folder / "bad.py"
    source.write_text("# %%\n1 / 0\n")
    with pytest.raises(SITE.TutorialError, match=r"(?s)bad\.py.*1 / 0.*ZeroDivisionError"):
        SITE.tutorial(source)


def test_a_kernel_that_is_missing_is_one_line(folder: Path) -> None:
    source = folder / "small.py"
    source.write_text("# %%\n1\n")
    with pytest.raises(SITE.TutorialError) as raised:
        SITE.tutorial(source, kernel="nowhere")
    said = str(raised.value)
    assert "no Jupyter kernel 'nowhere'" in said and "pip install '.[docs]'" in said and "\n" not in said


@pytest.mark.parametrize("name", FILES)
def test_sources_are_what_jupytext_reads(name: str) -> None:
    cells = jupytext.read(FILES[name]).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert all(not line.startswith("# %%") for cell in cells for line in cell.source.splitlines())
