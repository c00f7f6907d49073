"""Curves and the HTML report."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, RunError
from fedsim.record.directory import create_run
from fedsim.report.compare import compare
from fedsim.report.curves import curve_of, curves, draw
from fedsim.report.html import write_report
from fedsim.report.layout import Options
from fedsim.report.panels import panels
from fedsim.report.statistics import estimate
from tests.report.test_compare import FAST, SLOW, make_run

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs", "fast", FAST)
    make_run(tmp_path / "runs", "slow", SLOW)
    make_run(tmp_path / "runs", "single", {0: SLOW[0]})
    return tmp_path / "runs"


def texts(figure: Figure) -> list[str]:
    """All words in a figure."""
    axes, (legend,) = figure.axes[0], figure.legends
    shown = [legend.get_title().get_text(), axes.get_xlabel(), axes.get_ylabel(), figure.get_supxlabel()]
    return [*shown, *(text.get_text() for text in legend.get_texts())]


def test_figure_says_what_it_shows(runs: Path) -> None:
    assert texts(draw(compare([runs]), "megabytes")) == [
        "Accuracy (server/test)",
        "megabytes that clients send and receive (1 MB = 10⁶ bytes)",
        "accuracy",
        "Measured: server/test. Line: mean over seeds, band: 95 % Student-t interval (none for one seed)."
        " A point: one\nevaluated round, at the mean megabytes of the seeds.",
        "fast (3 seeds)",
        "slow (3 seeds)",
        "single (1 seed)",
        "target 0.79",
    ]


def test_single_seeds_have_no_band_and_say_so(runs: Path) -> None:
    figure = draw(compare([runs / "single"]))
    assert not figure.axes[0].collections
    assert "One seed, no interval." in figure.get_supxlabel()


def test_the_number_of_seeds_is_stated_once(runs: Path) -> None:
    shown = texts(draw(compare([runs / "fast", runs / "slow"])))
    assert "mean over 3 seeds" in shown[3] and shown[4:] == ["fast", "slow", "target 0.79"]


GAP = {0: [1.0, 1e-3, 6e-9], 1: [2.0, 3e-3, 7e-9]}


def test_a_metric_over_decades_has_a_logarithmic_axis(tmp_path: Path) -> None:
    gap = compare([make_run(tmp_path, "gap", GAP, "suboptimality")], metric="suboptimality")
    figure = draw(gap)
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[0].get_yscale() == "log" and 1e-10 < low < 6e-9 and high > 2
    assert texts(figure)[-1] == r"target $6.9 \times 10^{-9}$"
    assert draw(gap, log_y=False).axes[0].get_yscale() == "linear"
    near = compare([make_run(tmp_path, "near", {0: [1.0, 0.5, 0.1]}, "loss")], metric="loss")
    assert draw(near).axes[0].get_yscale() == "linear" and draw(near, log_y=True).axes[0].get_yscale() == "log"


def test_a_gap_that_ends_below_zero_leaves_the_logarithmic_axis_and_says_so(tmp_path: Path) -> None:
    gap = compare([make_run(tmp_path, "gap", {0: [1.0, 1e-3, -1e-12]}, "suboptimality")], metric="suboptimality")
    figure = draw(gap)
    assert figure.axes[0].get_yscale() == "log" and np.isnan(np.asarray(figure.axes[0].lines[0].get_ydata())[-1])
    assert "Values of 0 and below have no place" in figure.get_supxlabel() and texts(figure)[4:] == ["gap"]
    none = compare([make_run(tmp_path, "none", {0: [-1.0, -2.0]}, "loss")], metric="loss")
    with pytest.raises(ConfigError, match="log_y is true, but no value is positive"):
        draw(none, log_y=True)


def test_a_run_that_pays_before_round_1_starts_on_the_axis(tmp_path: Path) -> None:
    """A dotted line over what it paid; against rounds it starts on the axis anyway."""
    path = make_run(tmp_path, "a", {0: [0.1, 0.5, 0.6]})
    file = path / "seed-0" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["value"] += 5e6 * (row["metric"] == "bytes_up")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = draw(compare([path]), "megabytes", target_line=False)
    curve, start = figure.axes[0].lines
    assert np.asarray(start.get_xdata()).tolist() == [0, 5] and np.asarray(start.get_ydata()).tolist() == [0.1, 0.1]
    assert np.asarray(curve.get_xdata())[0] == 5 and "Dotted: paid before round 1" in figure.get_supxlabel()
    assert len(draw(compare([path]), "round", target_line=False).axes[0].lines) == 1


def test_options_of_a_figure(runs: Path) -> None:
    comparison = compare([runs])
    words = Options(title="T", xlabel="x", ylabel="y", footnote="")
    figure = draw(comparison, "megabytes", target_line=False, log_x=True, **words)
    assert texts(figure) == ["T", "x", "y", "", "fast (3 seeds)", "slow (3 seeds)", "single (1 seed)"]
    assert figure.axes[0].get_xscale() == "log"
    assert draw(comparison, width="column", height=3.0).get_size_inches().tolist() == [3.4, 3.0]
    assert draw(comparison).get_size_inches()[0] == 7.0
    with pytest.raises(ConfigError, match="unknown option titel of a figure: did you mean 'title'"):
        draw(comparison, titel="T")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="width is 'colum'; did you mean 'column'"):
        draw(comparison, width="colum")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", ["column", "page"])
def test_nothing_in_a_figure_is_cut_or_covered(tmp_path: Path, width: Literal["column", "page"]) -> None:
    for index in range(6):
        make_run(tmp_path, f"a method with quite a long name, number {index}" * (1 + index % 2), {0: [0.1, 0.5]})
    figure = draw(compare([tmp_path]), "megabytes", width=width)
    figure.draw_without_rendering()                               # lays it out
    (legend,), axes = figure.legends, figure.axes[0]
    whole, box = figure.bbox, legend.get_window_extent()
    assert box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    assert axes.get_tightbbox().y1 <= box.y0 + 1, "the legend is above the axes"
    assert axes.get_window_extent().height > 1.2 * figure.dpi, "inches"
    assert axes.xaxis.label.get_window_extent().width <= whole.width


def test_fonts_of_a_pdf_are_truetype(runs: Path, tmp_path: Path) -> None:
    curves(compare([runs]), tmp_path / "c.pdf")
    content = (tmp_path / "c.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_lines_and_bands_are_mean_and_interval(runs: Path) -> None:
    axes = draw(compare([runs / "fast"])).axes[0]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0, 10, 20, 30]
    expected = [estimate(column) for column in zip(*FAST.values(), strict=True)]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [e.mean for e in expected]
    corners = axes.collections[0].get_paths()[0].vertices
    top = max(y for x, y in np.asarray(corners) if x == 20)
    assert top == pytest.approx(expected[2].mean + (expected[2].half_width or 0))


def test_curve_uses_the_rounds_that_all_seeds_have(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", {0: [0.1, 0.5, 0.6], 1: [0.1, 0.7]})
    curve = curve_of(compare([path]).runs[0].run.seeds, "seconds")
    np.testing.assert_allclose(curve.x, [0, 5])
    np.testing.assert_allclose(curve.mean, [0.1, 0.6])


def test_seeds_that_end_after_different_rounds_share_no_final_measurement(tmp_path: Path) -> None:
    run = create_run(tmp_path, "stopped", {}, {"seeds": [0, 1]})
    for seed, end in ((0, 1), (1, 2)):
        with run.open_seed(seed) as record:
            for round in range(end + 1):
                record.metrics.add(round, "server/test", "accuracy", 0.5)
            record.metrics.add(end, "clients/train", "loss_mean", 0.25)
    shown = {metric["title"]: metric["curves"] for metric in panels(compare([run.path]))["metrics"]}
    assert shown["loss mean (clients/train)"] == [None] and shown["accuracy (server/test)"] != [None]
    with pytest.raises(ConfigError, match="no round in which loss_mean was measured for all of its seeds"):
        draw(compare([run.path], "clients/train", "loss_mean"))


def test_costs_of_different_magnitude_are_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    make_run(tmp_path, "plain", SLOW)
    make_run(tmp_path, "compressed", SLOW, megabytes=0.1)
    comparison = compare([tmp_path])
    assert draw(comparison, "megabytes").axes[0].get_xscale() == "log"
    assert draw(comparison, "round").axes[0].get_xscale() == "linear"


def test_many_runs_have_distinct_lines(tmp_path: Path) -> None:
    for index in range(20):
        make_run(tmp_path, f"run{index:02d}", {0: [0.1, 0.5]})
    lines = draw(compare([tmp_path])).axes[0].lines[:20]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


@pytest.mark.parametrize(("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_files_are_equal_when_repeated(runs: Path, tmp_path: Path, name: str, start: bytes) -> None:
    comparison = compare([runs])
    contents = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        curves(comparison, folder / name)
        contents.append((folder / name).read_bytes())
    assert contents[0] == contents[1] and contents[0].startswith(start)


def test_bad_arguments_of_curves(runs: Path, tmp_path: Path) -> None:
    comparison = compare([runs])
    with pytest.raises(ConfigError, match="did you mean 'megabytes'"):
        draw(comparison, "megabyte")
    with pytest.raises(ConfigError, match=r"a \.png, \.svg or \.pdf file"):
        curves(comparison, tmp_path / "curves.bmp")


def without_timing(root: Path) -> Path:
    run = create_run(root, "bare", {}, {"seeds": [0]})
    with run.open_seed(0) as record:
        record.metrics.add(0, "server/test", "accuracy", 0.5)
    return run.path


def test_curve_of_a_cost_that_nobody_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recorded seconds; choose .*gradient_evaluations, simulated_seconds$"):
        draw(compare([without_timing(tmp_path)]), "seconds")


class Page(HTMLParser):
    """Collects what the tests look at, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def without_scripts(page: Path) -> str:
    """What a page says without those that draw its curves."""
    return re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)


def test_report_is_self_contained(runs: Path, tmp_path: Path) -> None:
    path = write_report([runs], tmp_path / "out" / "report.html")
    page = Page(path.read_text())
    assert page.headings[:2] == ["fast, slow, single", "Summary"] and page.headings[-3:] == ["fast", "slow", "single"]
    assert len(page.sources) == 4, "against rounds and megabytes, of clients, and a front; not seconds without a clock"
    for source in page.sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64" and b"</svg>" in base64.b64decode(data)
    own = re.sub(r'src="data:[^"]*"', "", without_scripts(path))
    assert "http" not in own


def test_report_shows_numbers_config_manifest_and_warnings(runs: Path, tmp_path: Path) -> None:
    text = write_report([runs], tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "<td>0.837 ± 0.052</td>" in text and "missed by 1 of 3" in text
    assert "different seeds" in text and "algorithm: FedAvg" in text and "&quot;data_hash&quot;: &quot;d&quot;" in text
    assert "<td>total gradient_evaluations</td><td>6,000 ± 0</td>" in text
    assert "<td>2</td><td>30</td><td>0.86</td><td>0.86</td><td>finished</td>" in text


def test_report_escapes_and_shows_failures(tmp_path: Path) -> None:
    make_run(tmp_path, "a", {0: [0.1, 0.5], 1: []}, config={"name": "<b>$body & co</b>"}, state="failed")
    text = without_scripts(write_report([tmp_path], tmp_path / "report.html"))
    assert "<b>" not in text and "<h1>&lt;b&gt;$body &amp; co&lt;/b&gt;</h1>" in text
    assert "<td>1</td><td>-</td><td>-</td><td>-</td><td>failed</td>" in text
    Page(text)


def test_report_without_timing_leaves_that_curve_out(tmp_path: Path) -> None:
    text = write_report([without_timing(tmp_path)], tmp_path / "report.html").read_text()
    assert "none of the runs recorded megabytes" in text and len(Page(text).sources) == 1


def test_report_that_cannot_be_written(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"report\.html: .* is no folder"):
        write_report([runs], tmp_path / "file" / "report.html")
