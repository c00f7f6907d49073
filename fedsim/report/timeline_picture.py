"""A timeline as a picture: one line for each client, coloured by what it does. Drawn without pyplot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsim.errors import ConfigError, RunError
from fedsim.record import figures
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.timeline import SERVER, Span, read_timeline

MOST_CLIENTS = 100
"""More lines than this cannot be told apart."""
NUMBERED = 40
"""Number of lines up to which each one has its number."""
TASKS = 6
"""Tasks in the picture by default, of each client that works at a time."""


class Look(NamedTuple):
    """Colour, height of the bar and name in the legend of a kind of span."""

    color: str
    height: float
    label: str


# after Okabe and Ito (2008), distinct under all common forms of colour blindness
LOOKS = {
    "download": Look("#56B4E9", 0.86, "downloads"),
    "compute": Look("#0072B2", 0.86, "computes"),
    "upload": Look("#E69F00", 0.86, "uploads"),
    "exchange": Look("#E69F00", 0.86, "receives from neighbours"),
    "behind": Look("#E69F00", 0.3, "communicates behind its work"),
    "lost": Look("#D55E00", 0.86, "works in vain"),
    "wait": Look("#dfe3e8", 0.86, "waits"),
    "absent": Look("#f0e6d8", 0.86, "absent"),
}
INK, GRID = "#333333", "#9aa5b1"


def timeline(
    run: RunDirectory | Path | str,
    path: Path | str | IO[bytes],
    *,
    format: str | None = None,
    seed: int | None = None,
    since: float = 0.0,
    until: float | None = None,
) -> dict[str, float]:
    """Draw what each client of a run with a clock does in its first rounds; equal bytes for equal runs.

    The fastest of up to 100 clients that take part are on top. A thin line marks each step of the server.

    Args:
        run: the run.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        format: format for an open file.
        seed: one of its seeds; the first by default.
        since: simulated seconds at which the picture begins.
        until: simulated seconds at which it ends; by default after about six tasks of each client at work.

    Returns:
        The share of the clients' time in the picture that each kind of span takes, by its name; "idle" for the rest.

    Raises:
        ConfigError: another file format, a seed that the run lacks, a time without anything to see, or a run without
            a clock.
        RunError: the run has no timeline yet, or the file cannot be written.
    """
    kind = figures.kind_of(path, format)
    made = run if isinstance(run, RunDirectory) else open_run(Path(run))
    for name, t in (("since", since), ("until", until)):
        if t is not None and not (isinstance(t, Real) and 0 <= t < math.inf):
            raise ConfigError(f"{name} is {t!r}; expected seconds from 0 on")
    if until is not None and until <= since:
        raise ConfigError(f"until is {until:g} s, not after since, {since:g} s; expected an end after the beginning")
    spans = _spans(made, seed)
    whole = max(span.end for span in spans)
    if since >= whole:
        raise ConfigError(f"a timeline from {since:g} s; expected a time before its end at {whole:g} s")
    end = _end([span for span in spans if span.end > since]) if until is None else until
    shown = [span for span in spans if span.end > since and span.start < end]
    lines = _lines(shown)
    if not lines:
        raise ConfigError(f"nobody works from {since:g} to {end:g} s; the timeline ends at {whole:g} s")
    with figures.style():
        figure = Figure(figsize=(8.0, 1.3 + max(2.0, min(0.24 * len(lines), 7.5))), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, shown, lines)
        _rounds(axes, shown)
        left_out = len({span.client for span in shown} - {SERVER}) - len(lines)
        _finish(axes, shown, lines, since, end, whole, left_out)
        figures.save(figure, path, kind)
    return _shares(shown, lines, since, end)


def _spans(run: RunDirectory, seed: int | None) -> list[Span]:
    if run.config.get("clock") is None:
        raise ConfigError(f"{run.path} has no clock, so no timeline; expected a run with one: --clock Clock")
    known = [int(each) for each in run.manifest["status"]]
    if seed is not None and seed not in known:
        raise ConfigError(f"seed is {seed!r}; {run.path} has {', '.join(map(str, known))}")
    path = run.seed_path(known[0] if seed is None else seed) / "timeline.csv"
    spans = read_timeline(path)
    if not any(span.client != SERVER for span in spans):
        raise RunError(f"{path} has no spans of clients: the run has saved no round, or too many clients to see")
    return spans


def _end(spans: Sequence[Span]) -> float:
    """Time by which there have been about six tasks for each client that works at a time."""
    work = [span for span in spans if span.kind in ("compute", "lost")]
    if not work:
        return max(span.end for span in spans)
    together = len({span.client for span in work if span.round == work[0].round})
    last = work[: TASKS * together][-1]
    return max([span.end for span in spans if span.round == last.round and span.client == SERVER] or [last.end])


def _lines(spans: Sequence[Span]) -> list[int]:
    """Clients from top to bottom, by the mean length of their work as far as it is known."""
    seconds: dict[int, list[float]] = {span.client: [] for span in spans if span.client != SERVER}
    for span in spans:
        if span.kind in ("compute", "lost"):
            seconds[span.client].append(span.end - span.start)
    mean = {client: float(np.mean(own)) if own else np.inf for client, own in seconds.items()}
    some = sorted(seconds)[:: max(1, -(-len(seconds) // MOST_CLIENTS))]   # spread over all, if they are too many
    return sorted(some, key=lambda client: (mean[client], client))


def _draw(axes: Axes, spans: Sequence[Span], lines: Sequence[int]) -> None:
    place = {client: k for k, client in enumerate(lines)}
    for z, (kind, look) in enumerate(LOOKS.items()):
        bars = [
            [(s.start, y - h), (s.end, y - h), (s.end, y + h), (s.start, y + h)]
            for s in spans
            if s.kind == kind and s.client in place
            for y, h in [(place[s.client], look.height / 2)]
        ]
        edge = 0.5 if kind == "compute" and len(lines) <= NUMBERED else 0.0   # between tasks without a pause
        shapes = PolyCollection(bars, facecolors=look.color, edgecolors="white", linewidths=edge, zorder=2 + z)
        axes.add_collection(shapes)


def _rounds(axes: Axes, spans: Sequence[Span]) -> None:
    ends = [span.end for span in spans if span.client == SERVER]
    if 1 < len(ends) <= 4 * MOST_CLIENTS:
        axes.vlines(ends, 0, 1, transform=axes.get_xaxis_transform(), color=INK, linewidth=0.6, alpha=0.5, zorder=20)


def _finish(
    axes: Axes, spans: Sequence[Span], lines: Sequence[int], since: float, end: float, whole: float, left_out: int
) -> None:
    n, part = len(lines), since > 0 or end < whole         # who sees the picture alone does not take it for all
    recorded = f", of {float(f'{whole:.4g}'):,g} recorded" if part else ""
    axes.set_xlim(since, end)
    axes.set_ylim(n - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.set_xlabel(f"simulated seconds{recorded}", fontsize=9, color=INK)
    axes.set_ylabel("client, the fastest on top", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:,g}"))
    if n <= NUMBERED:
        axes.set_yticks(range(n), [str(client) for client in lines], fontsize=8 if n <= 25 else 7)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: str(lines[int(y)]) if y == int(y) and 0 <= y < n else "")
        )
    kinds = {span.kind for span in spans}
    patches = [Patch(color=look.color, label=look.label) for kind, look in LOOKS.items() if kind in kinds]
    axes.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(patches), fontsize=8, frameon=False,
        handlelength=1.2, handleheight=0.9, columnspacing=1.4, borderaxespad=0.2, labelcolor=INK,
    )  # fmt: skip
    if left_out > 0:
        axes.set_title(f"{n} of {n + left_out:,} clients", loc="right", fontsize=8, color=INK)


def _shares(spans: Sequence[Span], lines: Sequence[int], since: float, end: float) -> dict[str, float]:
    """Share of the clients' time that each kind of span takes; communication behind work does not reduce idle time."""
    seconds: defaultdict[str, float] = defaultdict(float)
    shown = set(lines)
    for span in spans:
        if span.client in shown:
            seconds[span.kind] += min(span.end, end) - max(span.start, since)
    whole = len(lines) * (end - since)
    shares = {kind: seconds[kind] / whole for kind in LOOKS if seconds[kind]}
    rest = 1 - sum(share for kind, share in shares.items() if kind != "behind")
    return {**shares, "idle": max(0.0, rest)}


def names(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares by the names of the legend."""
    return {LOOKS[kind].label if kind in LOOKS else kind: share for kind, share in shares.items()}
