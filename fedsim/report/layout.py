"""Common layout of the pictures of comparisons: colours, sizes, the legend above and the footnote below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, suggest

# Okabe and Ito (2008), distinct under all common forms of colour blindness; without yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


class Size(NamedTuple):
    """Width and height of a figure without its legend, in inches, and size of its font, in points."""

    width: float
    height: float
    font: float

    @property
    def characters(self) -> int:
        """Approximate number of characters in a line."""
        return int(self.width * 72 / (0.53 * self.font))


SIZES = {"column": Size(3.4, 2.3, 7.0), "page": Size(7.0, 4.0, 9.5)}
MOST_COLUMNS = 8
"""Most columns of a legend."""
BORDER, HANDLE, GAP, SPACING = 0.2, 2.2, 0.8, 1.5
"""Lengths in a legend, in units of its font size: the border, the line of a label, the gap between this and the label,
and the space between columns.
"""


class Options(TypedDict, total=False):
    """Options of a figure; what is left out is chosen by the data.

    Attributes:
        title: title above the legend; "" for none.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.
        footnote: text below the axes, instead of the explanation of lines and bands; "" for none.
        width: ``column`` (3.4 inches) or ``page`` (7 inches), the usual widths in journals, with suitable fonts.
        height: height of the whole figure in inches; by default the legend adds to a fixed height of the axes.
        log_x: logarithmic horizontal axis; by default if one run pays more than ten times what another does.
        log_y: logarithmic vertical axis; by default if the metric is positive and spans a factor of 30 or more.
        target_line: draw the target up to which costs are counted; True by default.
    """

    title: str
    xlabel: str
    ylabel: str
    footnote: str
    width: Literal["column", "page"]
    height: float
    log_x: bool | None
    log_y: bool | None
    target_line: bool | None


def size_of(options: Options) -> Size:
    """Size of a figure with these options.

    Raises:
        ConfigError: an option is unknown, or a size is invalid.
    """
    for name in options.keys() - Options.__annotations__.keys():
        raise ConfigError(f"unknown option {name} of a figure: {suggest(name, list(Options.__annotations__))}")
    width = options.get("width", "page")
    if width not in SIZES:
        raise ConfigError(f"width is {width!r}; {suggest(width, SIZES)}")
    if not (isinstance(height := options.get("height", 1.0), Real) and 0 < height <= 100):
        raise ConfigError(f"height is {height!r}; expected inches above 0, at most 100")
    return SIZES[width]


def look(index: int) -> tuple[str, str]:
    """Colour and dashes of the run with this index in a comparison, the same in all of its pictures."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def sheet(options: Options, panels: int = 1) -> tuple[Figure, list[Axes], Size]:
    """A figure with panels, side by side on a page or one below the other in a column, and its size."""
    size = size_of(options)
    across = 1 if panels == 1 or size.width < 5 else 2 if panels in (2, 4) else 3
    down = -(-panels // across)
    whole = Size(size.width, size.height if panels == 1 else 0.55 * size.height * down, size.font)
    figure = Figure(figsize=(whole.width, options.get("height", whole.height)), layout="constrained")
    every = figure.subplots(down, across, squeeze=False, sharex=False).flatten().tolist()
    for axes in every[panels:]:
        axes.remove()
    return figure, every[:panels], whole


def plain(axes: Axes, size: Size) -> None:
    """Remove the frame at the top and right, and draw a faint grid."""
    axes.tick_params(which="both", labelsize=size.font if size.width < 5 else 0.95 * size.font)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)


def frame(
    figure: Figure, size: Size, options: Options, title: str, legend: Mapping[str, Artist], footnote: str
) -> None:
    """Add the title and the legend above the panels, and the footnote below."""
    footnote = textwrap.fill(options.get("footnote", footnote), int(size.characters / 0.85))
    if footnote:
        figure.supxlabel(footnote, fontsize=0.85 * size.font, color="0.35", x=0.01, ha="left", linespacing=1.3)
    title = textwrap.fill(options.get("title", title), size.characters - 4)
    labels = [textwrap.fill(label, size.characters - 8) for label in legend]
    box = _legend(figure, list(legend.values()), labels, title, size)
    if "height" not in options:
        figure.set_figheight(size.height + box.get_window_extent().height / figure.dpi)


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], title: str, size: Size) -> Any:
    """The legend, in as many columns as fit."""
    font = 0.9 * size.font
    return figure.legend(
        handles, labels, loc="outside upper left", ncols=_columns(figure, labels, font), fontsize=font, frameon=False,
        title=title, title_fontproperties={"weight": "bold", "size": 1.1 * size.font}, alignment="left",
        borderpad=BORDER, handlelength=HANDLE, handletextpad=GAP, columnspacing=SPACING,
    )  # fmt: skip


def _columns(figure: Figure, labels: Sequence[str], font: float) -> int:
    """Number of columns of a legend that fit, by the widths of their labels. Making a legend with many entries to
    measure its width would take longer than drawing the figure.
    """
    unit, probe = font * figure.dpi / 72, figure.text(0, 0, "", fontsize=font)
    widths = []
    for label in labels:
        probe.set_text(label)
        widths.append(probe.get_window_extent().width)
    probe.remove()
    for columns in range(min(len(labels), MOST_COLUMNS), 1, -1):
        widest = [max(column) + (HANDLE + GAP) * unit for column in np.array_split(widths, columns)]
        if sum(widest) + ((columns - 1) * SPACING + 2 * BORDER) * unit <= 0.98 * figure.bbox.width:
            return columns
    return 1
