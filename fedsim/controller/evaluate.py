"""Evaluation: the server's model on the test set and on every client, and the cumulative cost.

The scope of a metric row names the model and the samples: "server/test" is the server's model on the test set,
"clients/train" (or "clients/holdout") the same model on each client's own samples, for ALL clients, and "total" the
cumulative cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fedsim import seeds
from fedsim.arrays import shared
from fedsim.controller.consensus import center, center_of_many
from fedsim.controller.scoring import OwnScores, Scorer, columns_of, values_of
from fedsim.errors import DivergenceError
from fedsim.experiment.measures import RECORDED
from fedsim.record.metrics import OF_NODES
from fedsim.tree import Samples, count
from fedsim.types import Kept
from fedsim.values import Vector

if TYPE_CHECKING:
    from fedsim.controller.prepare import Prepared
    from fedsim.engine.federation import Meter
    from fedsim.experiment.evaluation import Evaluation
    from fedsim.messages.ledger import Ledger

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles over clients that are recorded where the clients' own values are in a separate file."""
MANY = 10_000
"""Clients, or nodes, above which their own values are written to a separate file."""


class Row(NamedTuple):
    """One metric value; ``node`` is None unless it belongs to one client."""

    scope: str
    node: int | None
    metric: str
    value: float


def server(prepared: Prepared, score: Scorer, x: Vector, round: int) -> list[Row]:
    """Loss and accuracy of the server's model on the test set; for a ``Problem`` also its objective, gradient norm and
    distance to the minimiser, and under a backdoor its success.

    Raises:
        DivergenceError: the loss is NaN or infinite.
    """
    scores = score(prepared, x, prepared.test.x, prepared.test.y)
    loss = float(scores.loss.mean())
    if not np.isfinite(loss):
        if round == 0:
            raise DivergenceError(
                f"the initial model has test loss {loss}, before any training; look at its outputs, the loss and the"
                " data"
            )
        raise DivergenceError(f"the server's model has test loss {loss} after round {round}; lower the learning rate")
    rows = [Row("server/test", None, "loss", loss)]
    if scores.accuracy is not None:
        rows.append(Row("server/test", None, "accuracy", float(scores.accuracy.mean())))
    others = values_of(prepared.metrics, scores, prepared.test.y, strict=True)
    rows += [Row("server/test", None, metric.name, value) for metric, value in others.items()]
    if prepared.triggered is not None:
        fooled = score(prepared, x, prepared.triggered.x, prepared.triggered.y).accuracy
        if fooled is not None:
            rows.append(Row("server/test", None, "attack_success", float(fooled.mean())))
    problem = prepared.problem
    if problem is not None:
        z = x.detach().cpu().double()
        rows.append(Row("server/problem", None, "objective", float(problem.value(z))))
        rows.append(Row("server/problem", None, "gradient_norm", float(problem.gradient(z).norm())))
        if problem.f_min is not None:
            rows.append(Row("server/problem", None, "suboptimality", float(problem.value(z)) - problem.f_min))
        if problem.minimizer is not None:
            rows.append(Row("server/problem", None, "distance", float((z - problem.minimizer).norm())))
    return rows


def gossip(
    prepared: Prepared,
    meter: Meter,
    score: Scorer,
    x: Kept[Vector],
    round: int,
    settings: Evaluation,
    nodes: np.ndarray,
    ids: Sequence[int],
) -> list[Row]:
    """Evaluate the average of the models of the nodes ``ids`` on the test set, and their consensus distance. The own
    models of those among ``nodes`` are evaluated too, with a holdout also on the samples that honest nodes withhold.

    "nodes consensus_distance" is the root mean square distance of the models to their average, "nodes contraction" the
    factor by which the last mixing reduced it, and "nodes contraction_bound" the upper bound of that factor, lambda^Q.
    Average and distance use the nodes' weights in the objective; the other two are reported for equal weights only.
    All of these are taken over honest nodes; "attackers/test" has the models of the others.
    """
    everybody, bad = ids, set(prepared.attackers)
    ids = [i for i in ids if i not in bad]
    p = prepared.federation.p[list(ids)]
    weights = p / p.max()
    total = float(weights.sum())                           # the number of nodes, if weights are equal
    average, squares = (center if len(ids) <= MANY else center_of_many)(x, ids, weights, total)
    of_average = server(prepared, score, average, round)
    rows = [row._replace(scope=row.scope.replace("server", "average")) for row in of_average]
    distance = float(weights @ squares) / total
    rows.append(Row("nodes", None, "consensus_distance", distance**0.5))
    for name in ("contraction", "contraction_bound"):
        value = getattr(meter, name)
        rows += [] if value is None else [Row("nodes", None, name, value)]
    if len(nodes):
        everybody = shared(np.asarray(everybody), nodes).tolist()
        rows += _of_nodes(prepared, score, x, everybody, "test", (prepared.test.x, prepared.test.y), settings)
        if (withheld := _withheld(prepared)) is not None:
            rows += _of_nodes(prepared, score, x, everybody, "holdout", withheld, settings)
    return rows


def _of_nodes(
    prepared: Prepared,
    score: Scorer,
    x: Kept[Vector],
    ids: Sequence[int],
    kind: str,
    samples: tuple[Samples, Samples],
    settings: Evaluation,
) -> list[Row]:
    """Rows of the own models of the nodes ``ids``, all on the same samples; ``kind`` names these in the scope."""
    p = prepared.federation.p[list(ids)]
    initial = None if all(i in x.rows for i in ids) else score(prepared, x.default, *samples)
    scores = [initial if initial and i not in x.rows else score(prepared, x.rows[i], *samples) for i in ids]
    losses = np.array([s.loss.mean() for s in scores])
    hits = [s.accuracy.mean() for s in scores if s.accuracy is not None]
    others = columns_of([values_of(prepared.metrics, s, samples[1]) for s in scores])
    each = OwnScores(ids, losses, np.array(hits) if hits else None, p / p.max(), others)
    return of_scope("nodes", kind, prepared, each, settings)


def _withheld(prepared: Prepared) -> tuple[Samples, Samples] | None:
    """The samples that honest nodes withhold from training, all together; None where there are none."""
    own = prepared.own
    if prepared.own_kind != "holdout" or not count(own.y):  # a deployment's nodes have theirs for themselves
        return None
    honest = np.repeat(~np.isin(np.arange(own.n), prepared.attackers), own.sizes)
    rows = own.take(torch.from_numpy(np.flatnonzero(honest)).to(prepared.federation.model.device))
    return rows.x, rows.y


def scored(prepared: Prepared, settings: Evaluation) -> np.ndarray:
    """Clients that are evaluated one by one, sorted: all of them, or a sample of ``clients_at_most``."""
    n, k = prepared.federation.shards.n, settings.clients_at_most
    return np.arange(n) if n <= k else np.sort(seeds.places(prepared.federation.seed, "scored", 0, n, k))


def clients(prepared: Prepared, scores: OwnScores, settings: Evaluation) -> list[Row]:
    """Rows of the server's model on clients' own samples: each value, mean, weighted mean and mean of the worst.

    Attackers are in rows of their own, of scope "attackers/train" or "attackers/holdout".
    """
    return of_scope("clients", prepared.own_kind, prepared, scores, settings)


def of_scope(scope: str, kind: str, prepared: Prepared, scores: OwnScores, settings: Evaluation) -> list[Row]:
    """Rows of models on clients' own samples or on the test set, with separate rows for attackers; see `clients`."""
    bad = np.isin(scores.nodes, prepared.attackers)
    many = prepared.federation.shards.n > MANY
    rows = _by_node(f"{scope}/{kind}", scores if not bad.any() else scores.only(~bad), settings, many)
    return rows + (_by_node(f"attackers/{kind}", scores.only(bad), settings, many) if bad.any() else [])


def _by_node(scope: str, scores: OwnScores, settings: Evaluation, many: bool) -> list[Row]:
    """Number of scored nodes, each node's value, the mean, the mean weighted by ``scores.samples``, the mean of the
    worst nodes and, for ``many`` nodes, quantiles. Nodes where a metric is undefined are left out, and counted; if none
    is left, the means are NaN.
    """
    rows = [Row(scope, None, "scored", float(len(scores.nodes)))]
    others = [(metric.name, values, metric.larger_is_better) for metric, values in scores.others.items()]
    for metric, every, larger in (("loss", scores.loss, False), ("accuracy", scores.accuracy, True), *others):
        if every is None:
            continue
        rows += [Row(scope, node, metric, float(value)) for node, value in zip(scores.nodes, every, strict=True)]
        defined = ~np.isnan(every) if metric not in RECORDED else np.ones(len(every), bool)
        each, samples = every[defined], scores.samples[defined]
        if not defined.all():
            rows.append(Row(scope, None, f"{metric}_undefined", float((~defined).sum())))
        worst = f"{metric}_worst{settings.worst * 100:g}"
        if not len(each):
            rows += [Row(scope, None, name, math.nan) for name in (f"{metric}_mean", f"{metric}_weighted_mean", worst)]
            continue
        if many:
            cuts = zip(QUANTILES, np.quantile(each, QUANTILES), strict=True)
            rows += [Row(scope, None, f"{metric}_q{share * 100:g}", float(value)) for share, value in cuts]
        count = max(1, round(settings.worst * len(each)))
        ordered = np.sort(each) if larger else np.sort(each)[::-1]
        rows.append(Row(scope, None, f"{metric}_mean", float(each.mean())))
        rows.append(Row(scope, None, f"{metric}_weighted_mean", float(np.average(each, weights=samples))))
        rows.append(Row(scope, None, worst, float(ordered[:count].mean())))
    return rows


def updates(meter: Meter, x: Vector, before: Vector | None) -> list[Row]:
    """Norm of the last update of the server's model, and the drift of its clients, where they are measured."""
    norm = [] if before is None else [Row("server", None, "update_norm", float((x - before).norm()))]
    return norm + ([] if meter.drift is None else [Row("clients", None, "drift", meter.drift)])


def cost(ledger: Ledger, nodes: np.ndarray, simulated: Mapping[str, float]) -> list[Row]:
    """Cumulative bytes and gradient evaluations, in total and of each of ``nodes``, and what the clock has
    ``simulated``.
    """
    of_clock = [Row("simulated", None, name, float(value)) for name, value in simulated.items()]
    rows = [Row("total", None, name, float(value)) for name, value in ledger.totals().items()]
    for name, each in ledger.by_node().items():
        rows += [Row("total", node, name, float(each[node])) for node in nodes.tolist()]
    return rows + of_clock


def of_clients(scope: str, node: int | None) -> bool:
    """Return whether a row is written only when clients, or nodes, are evaluated one by one."""
    return node is not None or scope.startswith(OF_NODES)
