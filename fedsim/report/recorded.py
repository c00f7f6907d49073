"""The rows that a seed of a run recorded, read once and indexed by scope and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.record.absences import SKIPPED, by_round
from fedsim.record.metrics import read_rows
from fedsim.record.rows import Key, MetricRows


class Column(NamedTuple):
    """A metric by round.

    Attributes:
        round: ``[T]`` int64, increasing.
        value: ``[T]`` float64.
    """

    round: np.ndarray
    value: np.ndarray

    def at(self, rounds: np.ndarray) -> np.ndarray:
        """Values ``[R]`` at these rounds; NaN where there is none."""
        if not len(self.round):
            return np.full(len(rounds), np.nan)
        place = np.minimum(np.searchsorted(self.round, rounds), len(self.round) - 1)
        return np.where(self.round[place] == rounds, self.value[place], np.nan)


NONE = Column(np.empty(0, np.int64), np.empty(0))


class OfClients(NamedTuple):
    """A metric of single clients, in the order in which it was recorded.

    Attributes:
        round: ``[N]`` int64.
        node: ``[N]`` int64 client.
        value: ``[N]`` float64.
    """

    round: np.ndarray
    node: np.ndarray
    value: np.ndarray

    def last(self) -> dict[int, float]:
        """The last value of each client, if it is finite."""
        values = dict(zip(self.node.tolist(), self.value.tolist(), strict=True))   # later rows win
        return {node: value for node, value in values.items() if math.isfinite(value)}

    def of(self, node: int) -> Column:
        """The values of one client."""
        return _column(self.round[self.node == node], self.value[self.node == node])


class Recorded:
    """The files of one seed.

    Args:
        directory: of the seed.
    """

    def __init__(self, directory: Path) -> None:
        metrics, timing = read_rows(directory / "metrics.jsonl"), read_rows(directory / "timing.jsonl")
        self._metrics, self._timing = _by_key(metrics), _by_key(timing)

    @cached_property
    def shared(self) -> dict[Key, Column]:
        """The metrics that belong to no client."""
        alone = {key: (rows.node < 0, rows) for key, rows in self._metrics.items()}
        return {key: _column(rows.round[of], rows.value[of]) for key, (of, rows) in alone.items() if of.any()}

    @cached_property
    def clients(self) -> dict[Key, OfClients]:
        """The metrics of single clients."""
        some = {key: (rows.node >= 0, rows) for key, rows in self._metrics.items()}
        return {key: OfClients(*(column[of] for column in rows)) for key, (of, rows) in some.items() if of.any()}

    @cached_property
    def last(self) -> dict[Key, float]:
        """The last value of every metric that belongs to no client."""
        return {key: float(column.value[-1]) for key, column in self.shared.items()}

    @cached_property
    def paid(self) -> dict[str, Column]:
        """The cumulative costs by name: all `fedsim.report.series.AXES` but the round itself."""
        up, down = (self.shared.get(("total", f"bytes_{way}"), NONE) for way in ("up", "down"))
        bits = self.shared.get(("total", "paper_bits"), NONE)
        begun = bits.value[bits.round == 0].sum()          # papers do not count an initial exchange of whole vectors
        seconds = self._timing.get(("host", "seconds"), OfClients(*NONE, NONE.value))
        return {
            "megabytes": Column(up.round, (down.at(up.round) + up.value) / 1e6),
            "megabytes_up": Column(up.round, up.value / 1e6),
            "paper_bits": Column(bits.round, bits.value - begun),
            "gradient_evaluations": self.shared.get(("total", "gradient_evaluations"), NONE),
            "seconds": _column(seconds.round, seconds.value),
            "simulated_seconds": self.shared.get(("simulated", "seconds"), NONE),
        }

    @cached_property
    def absent(self) -> dict[int, list[int]]:
        """Clients missing from each round; rounds without any are omitted."""
        skipped = [rows for (_, metric), rows in self._timing.items() if metric == SKIPPED]
        return by_round(skipped[0].round, skipped[0].node) if skipped else {}

    def column(self, scope: str, metric: str, client: int | None = None) -> Column:
        """A metric, or that of a client, by round; empty if it was not recorded."""
        if client is None:
            return self.shared.get((scope, metric), NONE)
        return self.clients[scope, metric].of(client) if (scope, metric) in self.clients else NONE


def _by_key(rows: MetricRows) -> dict[Key, OfClients]:
    order, counts = np.argsort(rows.key, kind="stable"), np.bincount(rows.key, minlength=len(rows.keys))
    found, end = {}, 0
    for key, count in zip(rows.keys, counts.tolist(), strict=True):
        of, end = order[end : end + count], end + count
        found[key] = OfClients(rows.round[of], rows.node[of], rows.value[of])
    return found


def _column(rounds: np.ndarray, values: np.ndarray) -> Column:
    """Sort by round; a later row of a round wins."""
    if np.all(rounds[1:] > rounds[:-1]):
        return Column(rounds, values)
    found, first = np.unique(rounds[::-1], return_index=True)
    return Column(found, values[::-1][first])


def costs_at(rounds: np.ndarray, paid: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """Cumulative costs at these rounds, by `fedsim.report.series.AXES`."""
    return {"round": rounds.astype(np.float64), **{name: column.at(rounds) for name, column in paid.items()}}
