"""The interactive report: its numbers, and the page itself in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedsim.record.directory import create_run
from fedsim.report.compare import compare
from fedsim.report.html import write_report
from fedsim.report.panels import POINTS, panels
from fedsim.report.statistics import estimate
from tests.report.test_compare import FAST, SLOW, make_run

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, curves in (("slow", SLOW), ("fast", FAST)):
        run = make_run(tmp_path / "runs", name, curves)
        for seed, values in curves.items():
            with (run / f"seed-{seed}" / "metrics.jsonl").open("a") as file:
                for row, value in enumerate(values):
                    loss = {"round": 10 * row, "scope": "server/test", "node": None, "metric": "loss"}
                    file.write(json.dumps({**loss, "value": 1 - value}) + "\n")
    return tmp_path / "runs"


def test_numbers_of_the_page_are_those_of_the_comparison(runs: Path) -> None:
    comparison = compare([runs], target=0.8)
    data = panels(comparison)
    assert [run["label"] for run in data["runs"]] == ["slow", "fast"], "in the order in which they were started"
    assert "simulated_seconds" not in data["axes"]
    first = data["metrics"][0]
    assert first["title"] == "accuracy (server/test)" and first["target"] == 0.8 and not first["log"]
    curve = first["curves"][1]
    assert curve["x"]["round"] == [0, 10, 20, 30] and curve["x"]["megabytes"] == [0, 30, 60, 90]
    expected = [estimate(column) for column in zip(*FAST.values(), strict=True)]
    assert curve["mean"] == pytest.approx([e.mean for e in expected], rel=1e-5)
    assert curve["half"] == pytest.approx([e.half_width for e in expected], rel=1e-5, abs=1e-9)
    (clients,) = data["clients"]
    assert clients["title"] == "accuracy (clients/holdout)"
    assert clients["curves"][0]["value"] == pytest.approx([(0.80 + 0.78 + 0.82) / 6] * 101)


def test_long_curves_are_thinned_and_diverged_values_are_null(tmp_path: Path) -> None:
    run = create_run(tmp_path, "long", {"algorithm": "FedAvg"}, {"seeds": [0]})
    with run.open_seed(0) as record:
        for round in range(3 * POINTS):
            record.metrics.add(round, "server/test", "loss", 1 / (1 + round) if round < 2 * POINTS else float("nan"))
            record.metrics.add(round, "server/train", "loss", 0.5)
    data = panels(compare([run.path], metric="loss"))
    curve = data["metrics"][0]["curves"][0]
    assert len(curve["mean"]) == POINTS and curve["x"]["round"][-1] == 3 * POINTS - 1
    assert curve["mean"][0] == 1 and curve["mean"][-1] is None and curve["half"] is None
    assert list(curve["x"]) == ["round"] and data["metrics"][1]["title"] == "loss (server/train)"
    json.dumps(data, allow_nan=False)


PROBE = (Path(__file__).parent / "probe.js").read_text()
FRAME = """<!doctype html><title>frame</title><body style="margin: 0"><script>
addEventListener("message", (event) => {{
  document.body.append(Object.assign(document.createElement("pre"), {{ id: "found", textContent: event.data }}));
}});
</script><iframe src="{page}" style="border: 0; width: {width}px; height: 900px"></iframe>"""


@pytest.fixture
def grid(runs: Path) -> Path:
    """Four runs over two settings."""
    for number, name in enumerate(("third", "fourth")):
        make_run(runs, name, SLOW, config={"algorithm": {"name": "FedAvg", "lr": 0.1}, "local": {"epochs": number}})
    for number, name in enumerate(("slow", "fast")):
        settings = {"algorithm": {"name": "FedAvg", "lr": 0.3}, "local": {"epochs": number}}
        (runs / name / "config.yaml").write_text(json.dumps({"execution": {"name": name}, **settings}))
    return runs


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1600])
def test_page_in_a_browser(grid: Path, tmp_path: Path, width: int) -> None:
    """Everything can be chosen, by the keyboard as well, fits the window and the paper, and raises no error."""
    path = write_report([grid], tmp_path / "report.html")
    watched = """<head><script>const errors = []; window.onerror = (text) => errors.push(text);
    ["error", "warn"].forEach((kind) => { console[kind] = (...words) => errors.push(words.join(" ")); });</script>"""
    probe = f"<script>{PROBE}</script></body>"
    path.write_text(path.read_text().replace("<head>", watched, 1).replace("</body>", probe))
    found = in_browser(path, width)
    assert found.pop("errors") == [] and found.pop("fits") and found.pop("focusable") and found.pop("named")
    assert found.pop("width") == width and found.pop("title") == "accuracy (server/test)"
    assert (found.pop("lines"), found.pop("hidden"), found.pop("bare")) == (12, 9, 3), "a line and two ends of its band"
    assert found.pop("panels") == 2 and found.pop("titles") == ["accuracy (server/test)", "loss (server/test)"]
    assert found.pop("other") == ["loss (server/test)", "megabytes that clients send and receive (1 MB = 10⁶ bytes)"]
    assert found.pop("ticks") > 1, "on a logarithmic axis"
    assert found.pop("clients") == [[4, 0], [20, 16], [0, 4]], "lines and points: percentiles, ribbons, one client each"
    assert (found.pop("points"), found.pop("cells")) == (4, 1)
    order = ["slow", "third", "fourth", "fast"]
    assert (found.pop("up")[-1], found.pop("down")[0]) == (order[-1], order[-1])
    assert found.pop("faint") == [] and found.pop("checked") > 50, "texts of a contrast below 4.5"
    assert found.pop("printed") <= 680 and not found


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_prints(grid: Path, tmp_path: Path) -> None:
    path = write_report([grid], tmp_path / "report.html")
    printing = [*command(tmp_path, 1200), f"--print-to-pdf={tmp_path / 'a.pdf'}", path.as_uri()]
    subprocess.run(printing, check=True, timeout=120)
    pages = re.findall(rb"/Type /Page\b", (tmp_path / "a.pdf").read_bytes())
    assert 2 <= len(pages) <= 12


def test_without_scripts_there_are_tables_and_pictures(grid: Path, tmp_path: Path) -> None:
    page = re.sub(r"<script.*?</script>", "", write_report([grid], tmp_path / "r.html").read_text(), flags=re.DOTALL)
    pictures = re.findall(r'<noscript>.*?</noscript>', page, flags=re.DOTALL)
    described = [re.findall(r'<img alt="(.*?)"', picture) for picture in pictures]
    assert [len(found) for found in described] == [2, 1, 1, 1] and described[1] == ["quantiles over clients by round"]
    assert page.count("<table") > 3


def in_browser(page: Path, width: int) -> dict[str, Any]:
    """What the probe found on a page in a frame of this width; a window of Chromium is 500 wide at least."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    (result,) = re.findall(r'<pre id="found">(.*?)</pre>', dom(frame.as_uri(), page.parent, max(width, 500)))
    found: dict[str, Any] = json.loads(html.unescape(result))
    return found


def command(folder: Path, width: int) -> list[str]:
    """Chromium without a window, with its profile in a folder."""
    return [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000",
    ]  # fmt: skip


def dom(address: str, folder: Path, width: int) -> str:
    """The page as Chromium shows it after five seconds."""
    shown = [*command(folder, width), "--dump-dom", address]
    return subprocess.run(shown, capture_output=True, text=True, timeout=120, check=True).stdout
