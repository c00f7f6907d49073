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


PROBE = """
<script>
const lines = () => document.querySelectorAll("#curves .scatterlayer .trace path.js-line").length;
const change = (element, value) => { element.value = value; element.onchange(); };
const found = { errors, lines: lines(), title: document.querySelector("#curves .ytitle").textContent };
const [metric, cost] = document.querySelectorAll("#curve-controls select");
const boxes = document.querySelectorAll("#curve-controls input");
document.querySelector("#runs input").click();
found.hidden = lines();
boxes[2].click();
found.bare = lines();
change(metric, 1);
change(cost, "megabytes");
found.other = ["y", "x"].map((name) => document.querySelector(`#curves .${name}title`).textContent);
boxes[1].click();
found.ticks = document.querySelectorAll("#curves .ytick").length;
const table = document.querySelector("table.sortable");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
table.querySelectorAll("th button")[2].click();
found.up = names();
table.querySelectorAll("th button")[2].click();
found.down = names();
const used = [...document.querySelectorAll("#runs input, .controls select, th button")];
found.focusable = used.every((element) => element.tabIndex === 0);
found.fits = document.documentElement.scrollWidth <= window.innerWidth;
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
</script>
"""


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1600])
def test_page_in_a_browser(runs: Path, tmp_path: Path, width: int) -> None:
    """Runs, intervals and axes are chosen, tables sorted, all by the keyboard as well, without an error."""
    path = write_report([runs], tmp_path / "report.html")
    watched = "<head><script>const errors = []; window.onerror = (text) => errors.push(text);</script>"
    path.write_text(path.read_text().replace("<head>", watched, 1).replace("</body>", f"{PROBE}</body>"))
    found = in_browser(path, width)
    assert found.pop("errors") == [] and found.pop("fits") and found.pop("focusable")
    assert found.pop("title") == "accuracy (server/test)"
    assert (found.pop("lines"), found.pop("hidden"), found.pop("bare")) == (6, 3, 1), "a line and two ends of its band"
    assert found.pop("other") == ["loss (server/test)", "megabytes that clients send and receive (1 MB = 10⁶ bytes)"]
    assert found.pop("ticks") > 1, "on a logarithmic axis"
    assert (found.pop("up"), found.pop("down")) == (["slow", "fast"], ["fast", "slow"]) and not found


def in_browser(page: Path, width: int) -> dict[str, Any]:
    """What the probe found on a page in a window of this width."""
    (result,) = re.findall(r'<pre id="found">(.*?)</pre>', dom(page.as_uri(), page.parent, width))
    found: dict[str, Any] = json.loads(html.unescape(result))
    return found


def dom(address: str, folder: Path, width: int) -> str:
    """The page as Chromium shows it after five seconds, with its profile in a folder."""
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
