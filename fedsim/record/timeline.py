"""The first rounds of a run by its clock: when each client downloads, computes, sends, waits and is absent."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.errors import RunError
from fedsim.record.files import write_atomic

KINDS = ("download", "compute", "upload", "exchange", "behind", "wait", "absent", "lost")
"""What a client does: ``behind`` is communication behind its local work, ``lost`` is work that did not count."""
SERVER = -1
"""Stands for a client in the spans of rounds, from the server's call to its step."""
MOST = 4000
"""Number of spans after which a timeline ends, with the present round."""
HEADER = ("round", "client", "kind", "start", "end")


class Span(NamedTuple):
    """What a client does for some time, in simulated seconds."""

    round: int
    client: int
    kind: str
    start: float
    end: float


class Timeline:
    """Spans of one seed, in the order in which they become known.

    Args:
        path: the file.
        done: the last round that a checkpoint holds; spans of later rounds in the file are dropped.

    Raises:
        RunError: the file is damaged.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.spans = [span for span in read_timeline(path) if span.round <= done] if path.exists() else []
        self._written = -1

    @property
    def full(self) -> bool:
        """Whether no more rounds are recorded."""
        return len(self.spans) >= MOST

    def add(self, round: int, ids: np.ndarray, kind: str, start: np.ndarray | float, end: np.ndarray | float) -> None:
        """Add spans of clients ``ids [c]`` that are not empty, unless there are too many clients to draw."""
        if len(ids) > MOST:
            return
        rows = zip(ids.tolist(), *(np.broadcast_to(t, ids.shape).tolist() for t in (start, end)), strict=True)
        self.spans += [Span(round, client, kind, a, b) for client, a, b in rows if a < b < math.inf]

    def lose(self, round: int, ids: np.ndarray, stop: np.ndarray) -> None:
        """Mark what clients ``ids [c]`` did in a round as lost, and end it at ``stop [c]``."""
        until = dict(zip(ids.tolist(), stop.tolist(), strict=True))
        kept = []
        for span in self.spans:
            if span.round == round and span.client in until:
                end = min(span.end, until[span.client])
                span = span._replace(kind="absent" if span.kind == "absent" else "lost", end=end)
            if span.start < span.end:
                kept.append(span)
        self.spans = kept

    def write(self) -> None:
        """Write the file, if something is new."""
        if len(self.spans) == self._written:
            return
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(HEADER)
        rows.writerows((*span[:3], f"{span.start:.9g}", f"{span.end:.9g}") for span in self.spans)
        write_atomic(self.path, text.getvalue())
        self._written = len(self.spans)


def read_timeline(path: Path) -> list[Span]:
    """Read the file that `Timeline.write` wrote.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        with path.open(newline="") as text:
            rows = csv.reader(text)
            if tuple(next(rows, ())) != HEADER:
                raise ValueError(f"its first line is not {','.join(HEADER)}")
            return [Span(int(t), int(client), kind, float(a), float(b)) for t, client, kind, a, b in rows]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"{path} cannot be read ({why}); a timeline is written by runs of experiments with a clock"
        ) from error
