"""Figure files: formats, embedded fonts, equal bytes for equal figures. Matplotlib is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedsim.errors import ConfigError
from fedsim.record.files import atomic
from fedsim.record.places import check_file, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Formats, and the metadata to leave out because it differs from one writing to the next."""


def style() -> AbstractContextManager[None]:
    """Settings under which figures are made and saved: TrueType fonts, as journals refuse Type 3, the default."""
    import matplotlib

    return matplotlib.rc_context(
        {"font.family": "DejaVu Sans", "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "fedsim"}
    )


def format_of(path: Path | str) -> str:
    """Format that a file name stands for.

    Raises:
        ConfigError: none of `METADATA`.
    """
    suffix = Path(path).suffix.lower()[1:]
    if suffix not in METADATA:
        raise ConfigError(f"a picture is a .png, .svg or .pdf file, got {path}: change the suffix")
    return suffix


def kind_of(file: Path | str | IO[bytes], format: str | None = None) -> str:
    """The given format, or that of a file name; what is wrong with the file fails before anything is drawn.

    Raises:
        ConfigError: none of `METADATA`.
        PlaceError: the file cannot be written there.
    """
    if isinstance(file, Path | str):
        check_file(file, "picture.png")
        return format or format_of(file)
    return format or format_of("")


def write(file: Path | str | IO[bytes], draw: Callable[[], Figure], format: str | None = None) -> None:
    """Draw a figure in `style` and `save` it, in the given format or that of the file name.

    Raises:
        ConfigError: another format; nothing is drawn then.
        RunError: it cannot be written.
    """
    kind = kind_of(file, format)
    with style():
        save(draw(), file, kind)


def save(figure: Figure, file: Path | str | IO[bytes], format: str) -> None:
    """Write a figure to a file, in a new folder if need be; whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    if isinstance(file, Path | str):
        with writing(Path(file)), atomic(Path(file)) as made:
            _save(figure, made, format)
    else:
        _save(figure, file, format)


def _save(figure: Figure, file: IO[bytes], format: str) -> None:
    with style():
        figure.savefig(file, format=format, dpi=150, metadata=METADATA[format])
