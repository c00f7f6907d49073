"""Layout of pictures: a legend has as many columns as fit, by what Matplotlib then makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from fedsim.record.figures import style
from fedsim.report import layout
from fedsim.report.layout import BORDER, GAP, HANDLE, MOST_COLUMNS, SIZES, SPACING, look


def legend_of(labels: list[str], width: str) -> tuple[Legend, list[float]]:
    """The legend of a picture, and how wide one of as many columns as each number from 1 on would be, in its widths."""
    size, (figure, (axes,), _) = SIZES[width], layout.sheet({"width": width})  # type: ignore[typeddict-item]
    lines = [axes.plot([0, 1], color=look(i)[0])[0] for i in range(len(labels))]
    layout.frame(figure, size, {}, "Accuracy", dict(zip(labels, lines, strict=True)), "")
    (legend,) = figure.legends
    return legend, [_width(figure, lines, labels, columns, size.font) for columns in range(1, MOST_COLUMNS + 2)]


def _width(figure: Figure, lines: list[Any], labels: list[str], columns: int, font: float) -> float:
    made = figure.legend(
        lines, labels, ncols=columns, fontsize=0.9 * font, borderpad=BORDER, handlelength=HANDLE, handletextpad=GAP,
        columnspacing=SPACING,
    )  # fmt: skip
    width = made.get_window_extent().width / figure.bbox.width
    made.remove()
    return width


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize(
    "labels",
    [
        ["FedAvg"],
        ["FedAvg", "SCAFFOLD", "EF21"],
        [f"FedProx, mu={mu}, epochs={epochs}" for mu in (0.01, 0.1, 1) for epochs in range(1, 6)],
        [f"a{i}" for i in range(12)],
        ["a name as long as a line of a column is wide, or nearly", "b"],
    ],
)
def test_legend_has_as_many_columns_as_fit(labels: list[str], width: str) -> None:
    with style():
        legend, widths = legend_of(labels, width)
    most = min(len(labels), MOST_COLUMNS)
    fitting = [columns for columns in range(1, most + 1) if widths[columns - 1] <= 0.98]
    assert legend._ncols == max(fitting, default=1)  # type: ignore[attr-defined]
