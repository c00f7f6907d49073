"""Pictures besides one metric's curves: panels, ribbons over clients, Pareto fronts and heat maps of sweeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.record import figures
from fedsim.report.compare import compare
from fedsim.report.curves import draw
from fedsim.report.pareto import draw_pareto, front, pareto
from fedsim.report.ribbons import draw_ribbons, ribbon_of, ribbons
from fedsim.report.sweep_maps import draw_heat_map, map_of
from tests.report.test_compare import FAST, SLOW, Curves, make_run

pytestmark = pytest.mark.slow


def words(figure: Figure) -> list[str]:
    """Words of the axes and of the legend."""
    (legend,) = figure.legends
    return [axes.get_title("left") for axes in figure.axes] + [text.get_text() for text in legend.get_texts()]


def add_rows(run: Path, metric: str, values: Curves, scope: str = "server/test", node: int | None = None) -> None:
    for seed, series in values.items():
        with (run / f"seed-{seed}" / "metrics.jsonl").open("a") as file:
            for row, value in enumerate(series):
                entry = {"round": 10 * row, "scope": scope, "node": node, "metric": metric, "value": value}
                file.write(json.dumps(entry) + "\n")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A slow run, and a fast one at three times its cost, both with a loss and five clients."""
    for name, curves, megabytes in (("slow", SLOW, 3.0), ("fast", FAST, 9.0)):
        run = make_run(tmp_path / "runs", name, curves, megabytes=megabytes)
        add_rows(run, "loss", {seed: [1 - value for value in series] for seed, series in curves.items()})
        for client in range(1, 5):                         # client 0 has half of the model's accuracy
            shifted = {seed: [value / 2 + client / 10 for value in series] for seed, series in curves.items()}
            add_rows(run, "accuracy", shifted, "clients/holdout", client)
    return tmp_path / "runs"


def test_several_metrics_are_drawn_side_by_side(two: Path) -> None:
    figure = draw(compare([two]), also=["loss"])
    assert words(figure) == ["accuracy (server/test)", "loss (server/test)", "slow", "fast", "target 0.79"]
    accuracy, loss = figure.axes
    assert np.asarray(loss.lines[0].get_ydata()) == pytest.approx(1 - np.asarray(accuracy.lines[0].get_ydata()))
    assert accuracy.lines[0].get_color() == loss.lines[0].get_color() and len(loss.lines) == 2, "it has no target"
    with pytest.raises(ConfigError, match="has no metric 'los' in scope 'server/test'; did you mean 'loss'"):
        draw(compare([two]), also=["los"])
    narrow = draw(compare([two]), also=["loss"], width="column")
    assert narrow.axes[0].get_position().x0 == narrow.axes[1].get_position().x0, "one below the other"


def test_ribbons_are_quantiles_over_clients(two: Path) -> None:
    comparison = compare([two])
    ribbon = ribbon_of(comparison.runs[0].run.recorded, ("clients/holdout", "accuracy"))
    assert ribbon is not None and ribbon.x["round"].tolist() == [0, 10, 20, 30] and ribbon.clients.tolist() == [5] * 4
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)
    ends = [[series[-1] / 2 + client / 10 for client in range(5)] for series in SLOW.values()]
    assert ribbon.value[:, -1] == pytest.approx(np.mean([np.quantile(end, shares) for end in ends], axis=0))
    figure = draw_ribbons(comparison, "megabytes")
    assert words(figure)[:2] == ["slow", "fast"] and len({axes.get_ylim() for axes in figure.axes}) == 1
    assert np.asarray(figure.axes[1].lines[0].get_xdata()).tolist() == pytest.approx([0, 90, 180, 270])
    with pytest.raises(ConfigError, match=r"no run has loss of single clients \(recorded of them: clients/holdout acc"):
        draw_ribbons(compare([two], metric="loss"))


def test_clients_that_were_measured_in_one_round_are_drawn(tmp_path: Path) -> None:
    """By default they are measured at the end alone; one seed has a row for each of them, of the same round."""
    run = make_run(tmp_path, "run", {0: [0.8]})
    for client in range(1, 5):
        add_rows(run, "accuracy", {0: [client / 10]}, "clients/holdout", client)
    comparison = compare([run])
    ribbon = ribbon_of(comparison.runs[0].run.recorded, ("clients/holdout", "accuracy"))
    assert ribbon is not None and ribbon.x["round"].tolist() == [0] and ribbon.clients.tolist() == [5]
    (axes,) = draw_ribbons(comparison).axes
    assert axes.lines[0].get_marker() == "o" and np.asarray(axes.lines[0].get_ydata()) == pytest.approx([0.3])
    lines = [bar for bar in axes.collections if isinstance(bar, LineCollection)]
    bars = [segment[:, 1] for bar in lines for segment in map(np.asarray, bar.get_segments())]
    np.testing.assert_allclose(bars, [[0.14, 0.4], [0.2, 0.4]])
    assert [tick for tick in axes.get_xticks() if -0.5 < tick < 0.5] == [0], "rounds are whole"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def ended(figure: Figure, file: IO[bytes], **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", ended)
    with pytest.raises(KeyboardInterrupt):
        figures.save(Figure(), path, "png")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_the_front_is_of_points_that_none_dominates() -> None:
    assert front([1, 2, 3, 2], [0.5, 0.7, 0.6, 0.7], lower=False) == [0, 1, 3], "equal points are both on it"
    assert front([1, 2, 3], [0.5, 0.7, 0.2], lower=True) == [0, 2]
    assert front([math.nan, 2, 3], [0.5, math.nan, 0.2], lower=True) == [2]
    assert front([1, 1], [0.5, 0.6], lower=False) == [1]


def test_final_metrics_against_costs(two: Path, tmp_path: Path) -> None:
    figure = draw_pareto(compare([two]))
    (axes,) = figure.axes
    assert words(figure)[1:] == ["slow", "fast", "Pareto front"]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [90, 270]
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx([0.8, (0.83 + 0.82 + 0.86) / 3])
    assert [text.get_text() for text in axes.texts] == ["slow", "fast"]
    with pytest.raises(ConfigError, match=r"none of the runs recorded simulated seconds, as .* \(--clock Clock\)"):
        draw_pareto(compare([two]), "simulated_seconds")
    with pytest.raises(ConfigError, match="is a cost; choose a metric"):
        draw_pareto(compare([two], "total", "bytes_up"))
    for picture in (pareto, ribbons):
        for folder in ("1", "2"):
            picture(compare([two]), tmp_path / folder / "a.svg")
        assert (tmp_path / "1" / "a.svg").read_bytes() == (tmp_path / "2" / "a.svg").read_bytes()


def test_a_front_of_one_point_has_no_line(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, {0: [0.1, end]}) for name, end in (("good", 0.8), ("bad", 0.6))]
    figure = draw_pareto(compare(runs))
    (axes,), (legend,) = figure.axes, figure.legends
    assert words(figure)[1:] == ["good", "bad"] and not axes.lines
    assert [text.get_text() for text in axes.texts] == ["good", "bad"], "a dominated run has a name too"
    assert legend.get_title().get_text() == "Final accuracy (server/test) against megabytes"
    assert "seeds" not in figure.get_supxlabel(), "there is one"


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two methods at two step sizes and two numbers of epochs."""
    for method, base in (("FedAvg", 0.5), ("FedProx", 0.6)):
        for lr in (0.03, 1.0):
            for epochs in (1, 10):
                config = {"algorithm": {"name": method, "lr": lr}, "local": {"epochs": epochs}}
                end = base + lr / 10 - epochs / 100
                make_run(tmp_path / "grid", f"{method}-{lr}-{epochs}", {0: [0.1, end], 1: [0.1, end]}, config=config)
    return tmp_path / "grid"


def test_heat_maps_are_over_the_settings_that_differ(grid: Path) -> None:
    comparison = compare([grid])
    made = map_of(comparison)
    assert (made.rows, made.columns) == (("algorithm.lr", ["0.03", "1"]), ("local.epochs", ["1", "10"]))
    assert list(made.panels) == ["FedAvg", "FedProx"] and made.further == []
    np.testing.assert_allclose(made.panels["FedAvg"], [[0.493, 0.403], [0.59, 0.5]])
    figure = draw_heat_map(comparison)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.49", "0.40", "0.59", "0.50"]
    assert figure.get_suptitle() == "Final accuracy (server/test)"
    assert figure.get_supxlabel().startswith("A cell: mean over seeds. Higher is better")
    both = map_of(comparison, ["algorithm.name", "algorithm.lr"])
    np.testing.assert_allclose(both.panels[""], [[0.493, 0.59], [0.593, 0.69]], err_msg="the best over epochs")
    assert both.further == ["local.epochs"] and both.rows[1] == ["FedAvg", "FedProx"]


def test_a_heat_map_of_one_seed_speaks_of_no_mean(tmp_path: Path) -> None:
    for lr, epochs in ((0.1, 1), (1.0, 2)):
        make_run(tmp_path, f"{lr}", {0: [0.1, lr / 2]}, config={"lr": lr, "epochs": epochs})
    assert draw_heat_map(compare([tmp_path])).get_supxlabel().startswith("Higher is better")


def test_heat_maps_refuse_what_they_cannot_show(grid: Path) -> None:
    comparison = compare([grid])
    for settings, text in (
        (["lr", "local.epochs"], "lr is no setting that differs between these runs; known"),
        (["algorithm.lr"], "settings are algorithm.lr; expected two different ones"),
        (["algorithm.lr", "algorithm.lr"], "expected two different ones"),
    ):
        with pytest.raises(ConfigError, match=text):
            map_of(comparison, settings)
    with pytest.raises(ConfigError, match="these differ: none; choose two"):
        map_of(compare([grid / "FedAvg-1.0-1"]))


def test_the_command_draws_each_kind(two: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.png"
    for arguments in (
        [str(two), "--also", "loss"],
        [str(two), "--kind", "ribbons", "--width", "column"],
        [str(two), "--kind", "pareto", "--x", "seconds"],
        [str(grid), "--kind", "heatmap", "--settings", "local.epochs, algorithm.lr"],
    ):
        assert main(["compare", *arguments, "--plot", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
        assert capsys.readouterr().out.endswith(f"\n{picture}\n")
    for arguments, text in (
        (["--kind", "pareto", "--also", "loss"], "--also is no option of --kind pareto"),
        (["--kind", "heatmap", "--x", "seconds"], "--x is no option of --kind heatmap"),
        (["--settings", "a,b"], "--settings is no option of --kind curves"),
    ):
        assert main(["compare", str(two), "--plot", str(picture), *arguments]) == 2 and not picture.exists()
        assert text in capsys.readouterr().err
