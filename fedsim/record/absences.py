"""Clients missing from rounds: reported as it happens, and counted from the record afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from fedsim.errors import many
from fedsim.record.metrics import Metrics

SKIPPED = "skipped"
"""Metric of the rows of clients that are missing from a round."""
NAMED = 10
"""Largest number of clients listed in a message."""


class Absence:
    """Reports changes in the set of missing clients. Clients outside a cohort keep their status."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.missing: set[int] = set()

    def note(self, round: int, cohort: Iterable[int], skipped: Collection[int]) -> None:
        """Record a round, in which the clients ``skipped`` of a cohort took no part."""
        if not skipped and not self.missing:
            return
        now = (self.missing - set(cohort)) | set(skipped)
        if now != self.missing:
            self.say(f"round {round}: {many(len(now), 'client')} missing{_listed(map(str, sorted(now)))}")
        self.missing = now


def absent(timing: Metrics) -> dict[int, list[int]]:
    """Clients missing from each round; rounds without any are omitted."""
    rows = timing.metric == SKIPPED
    return by_round(timing.round[rows], timing.node[rows])


def by_round(rounds: np.ndarray, clients: np.ndarray) -> dict[int, list[int]]:
    """Group clients by round."""
    found: dict[int, list[int]] = {}
    for round, client in zip(rounds.tolist(), clients.tolist(), strict=True):
        found.setdefault(round, []).append(client)
    return found


def summary(by_round: Mapping[int, Collection[int]], rounds: int) -> str:
    """One-line summary of clients missing ``by_round``, in a run of so many rounds."""
    times = Counter(client for clients in by_round.values() for client in clients)
    some = len(by_round)
    names = (f"{client}{'' if count == some else f' ({count})'}" for client, count in sorted(times.items()))
    return f"{many(len(times), 'client')} missing in {some} of {rounds} rounds{_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    named = list(names)
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return f": {', '.join(named[:NAMED] + more)}" if named else " any more"
