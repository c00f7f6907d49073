"""Who sends to whom in a round of gossip; made again only where W, the needs of the method or the nodes change."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.engine.federation import Federation, Meter
from fedsim.gossip import EdgeList, Topology, check, check_fixed, exchange, mixing_matrix, restrict, weigh


def exchange_among(
    fed: Federation, meter: Meter, topology: Topology, round: int, ids: np.ndarray, fixed: bool, needs: dict[str, Any]
) -> EdgeList:
    """The exchange among the nodes ``ids`` in a round.

    Args:
        fed: the federation.
        meter: remembers the last exchange among all nodes.
        topology: of the federation.
        round: number of the round.
        ids: ``[c]`` the nodes that take part.
        fixed: whether the method needs all nodes and the same W in every round.
        needs: further needs, arguments of `fedsim.gossip.check`.

    Raises:
        ConfigError: W does not meet the needs.
    """
    n, sums = fed.shards.n, needs.get("rows", True)
    whole, needed = mixing_matrix(topology, round, fed.seed, n), {**needs, "fixed": fixed}
    if meter.exchange is not None and len(ids) == n:
        last, met = meter.exchange
        if last.whole is whole and met == needed:
            return last
    check(whole, round, **needs)
    w = restrict(whole, ids, round, sums)
    if fixed:
        check_fixed(w, topology, round, fed.seed, n)
    made = exchange(whole, weigh(w, fed.p[ids], round, sums), ids)
    if len(ids) == n:
        meter.exchange = made, needed
    return made


def along(each: np.ndarray, by: np.ndarray) -> int | np.ndarray:
    """Values ``[c]`` of the senders ``by [E]`` of messages; one number if all are the same."""
    return int(each[0]) if (each == each[0]).all() else each[by]
