"""Layout that the pictures of comparisons share: colours, sizes, the legend above and the footnote below."""

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
    """Of a figure without its legend: inches, and points of the font."""

    width: float
    height: float
    font: float

    @property
    def characters(self) -> int:
        """Characters in a line, about."""
        return int(self.width * 72 / (0.53 * self.font))


SIZES = {"column": Size(3.4, 2.3, 7.0), "page": Size(7.0, 4.0, 9.5)}
MOST_COLUMNS = 8
"""Of a legend."""
BORDER, HANDLE, GAP, SPACING = 0.2, 2.2, 0.8, 1.5
"""Around a legend, of the line beside a label and to it, and between columns, in sizes of its font."""


class Options(TypedDict, total=False):
    """Options of a figure; whatever is left out is chosen by the data.

    Attributes:
        title: above the legend; "" for none.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.
        footnote: below the axes, instead of the explanation of lines and bands; "" for none, as under a caption.
        width: ``column`` (3.4 inches) or ``page`` (7 inches), the usual widths of journals, with fonts to suit.
        height: inches of the whole figure; by default the axes keep their height, and the legend adds to it.
        log_x: logarithmic horizontal axis; by default where one run pays over ten times what another does.
        log_y: logarithmic vertical axis; by default where the metric is positive and spans a factor of 30 or more.
        target_line: draw the target that costs are counted to; True by default.
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
        ConfigError: an option is unknown, or no size.
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
    """Colour and dashes of the run at this place of a comparison, the same in every picture of it."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def sheet(options: Options, panels: int = 1) -> tuple[Figure, list[Axes], Size]:
    """A figure with so many panels: side by side on a page, one below the other in a column; and its size."""
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
    """Leave out what carries no information."""
    axes.tick_params(which="both", labelsize=size.font if size.width < 5 else 0.95 * size.font)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)


def frame(
    figure: Figure, size: Size, options: Options, title: str, legend: Mapping[str, Artist], footnote: str
) -> None:
    """Title and legend above the panels, where they hide nothing, and the footnote below."""
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
    """How many columns of a legend fit beside each other, by the widths of their labels: to make a legend of many
    entries only to see how wide it is takes longer than to draw what they stand for.
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
